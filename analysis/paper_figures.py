"""Builders of the paper's figures, and which runs are behind each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evaluations import allocation_name, mean_bits, named_allocations, weighting
from analysis.figures import convergence
from analysis.figures.bits import bits_data, bits_figure
from analysis.figures.distributions import (
    Arrays,
    by_role_data,
    by_timestep_data,
    panels_figure,
    tokens_by_role,
    tokens_by_timestep,
)
from analysis.figures.normality import (
    depth_data,
    depth_figure,
    kurtosis_map_figure,
    normality_data,
    token_spread_figure,
    tokens_a_cell,
    tokens_text,
)
from analysis.figures.score_cost import (
    AMPN,
    csv_of,
    grid_data,
    score_cost_data,
    score_cost_figure,
    shown_variants,
)
from analysis.figures.search import pareto_data, pareto_figure
from analysis.figures.weights import weights_data, weights_figure
from analysis.load import finished, one_protocol
from analysis.methods import short_name
from analysis.product import Builder, Cells, Feed, Product
from analysis.report import build_curves, build_distributions, build_samples, run_with_tokens
from analysis.report_files import dataset_name
from analysis.search_figures import pareto_caption
from robuq.record.search_record import SearchRecord

NAMES = {"binarydm": "BinaryDM-style", **dict.fromkeys(AMPN, "RobuQ + AMPN")}  # of figure 2
AMPN_WIDTHS = {
    "robuq_to_4": "AMPN chooses from 1 to 4 bits, as in the paper; 4 bits on average leave it no choice: there RobuQ "
    "with AMPN is RobuQ.",
    "robuq": "AMPN chooses from 1 to 8 bits, where the paper's has 1 to 4.",
}


def _shown(runs: pd.DataFrame) -> pd.DataFrame:
    """Of the many rows of the main plan those of figure 2, but one."""
    return runs[runs["variant"].isin(set(shown_variants(runs)) - {"binarydm"})]


def _cells_of(runs: pd.DataFrame) -> Cells:
    rows = finished(runs).groupby(["variant", "label"], sort=False)
    return [{"row": f"{name} {label}", "columns": [], "keys": part["key"].to_list()} for (name, label), part in rows]


def figure2(feed: Feed) -> Product | None:
    done = finished(feed.runs)
    if done.empty or done["bops"].isna().all():
        return None
    one_protocol(done)
    data = score_cost_data(feed.runs, feed.full_record)
    drawn = grid_data(feed.runs, feed.open_file)
    names = {name: NAMES.get(name, short_name(name)) for name in data["variant"]}
    cells = [{"row": _named(r.variant, r.bits), "columns": ["point"], "keys": r.keys_.split()} for r in _rows(data)]
    cells += [{"row": name, "columns": ["grid"], "keys": [part["key"].iloc[0]]} for name, part in _by_variant(drawn)]
    counts = sorted({int(n) for n in data["classifier_score_n"]})
    caption = (
        "Classifier score (higher is better) against cost, one line a method, its points labelled with their "
        f"activation bits; bars, and the band around full precision's line, are 95 % t intervals over n = "
        f"{', '.join(map(str, counts))} seeds. Points of one width and equal cost are set side by side and share a "
        "label. Top: in the convention that meets the paper's figure 2 at 4 bits, which has none for weights that are "
        "not ternary. Middle: bit operations of one forward pass. Full precision costs more than either panel shows. "
        "Bottom: images at the fewest bits; those of a row start from the same noise and label, and are the first of "
        f"their classes, not chosen. RobuQ is without AMPN where its name does not say so. "
        f"{AMPN_WIDTHS['robuq_to_4' if 'robuq_to_4' in names else 'robuq']}"
    )
    return Product(csv_of(data, drawn), cells, caption, figure=score_cost_figure(data, drawn, names))


def _named(variant: str, bits: float) -> str:
    return variant if pd.isna(bits) else f"{variant} A{bits:g}"


def _rows(data: pd.DataFrame) -> list[Any]:
    return list(data.rename(columns={"keys": "keys_"}).itertuples(index=False))


def _by_variant(samples: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    return list(samples.groupby("variant", sort=False)) if len(samples) else []


def _of_report(
    build: Callable[[pd.DataFrame, str], Any], keys_of: Callable[[pd.DataFrame, pd.DataFrame], Cells]
) -> Builder:
    """A figure of every plan's report, of the shown rows."""

    def built(feed: Feed) -> Product | None:
        runs = _shown(feed.runs)
        made = build(runs, feed.tracking_uri)
        if made is None:
            return None
        figure, data, caption = made
        return Product(data, keys_of(runs, data), caption, figure=figure)

    return built


def _sample_cells(runs: pd.DataFrame, data: pd.DataFrame) -> Cells:
    keys = data["key"].drop_duplicates()
    shown = runs.set_index("key").loc[keys]
    return [{"row": f"{run['variant']} {run['label']}", "columns": [], "keys": [key]} for key, run in shown.iterrows()]


def _distribution_cells(runs: pd.DataFrame, data: pd.DataFrame) -> Cells:
    run = run_with_tokens(runs)
    return [{"row": f"{run['variant']} {run['label']}", "columns": [], "keys": [run["key"]]}] if run else []


def bits(feed: Feed) -> Product | None:
    record = feed.search
    if record is None or not record.evaluations:
        return None
    by = weighting(record)
    named = {allocation_name(record, name): widths for name, widths in named_allocations(record).items()}
    means = {name: mean_bits(record, widths)[by] for name, widths in named.items()}
    data = bits_data(named, means, by)
    caption = (
        f"Activation bits of every block linear on {dataset_name(record.dataset)}, by allocator, within the search's "
        "budget, and their mean. The published mean bits are those of another network."
    )
    return Product(data, _search_cells(record), caption, figure=bits_figure(data))


def pareto(feed: Feed) -> Product | None:
    record = feed.search
    if record is None or not record.front:
        return None
    data = pareto_data(record)
    return Product(data, _search_cells(record), pareto_caption(record, data), figure=pareto_figure(data))


def _search_cells(record: SearchRecord) -> Cells:
    """A search's evaluations are no runs of a plan: its name leads to its record, its confirmation has run keys."""
    return [{"row": name, "columns": ["confirmed"], "keys": keys} for name, keys in record.confirmed.items()]


# --- distributions ------------------------------------------------------------------------------------------------

MEASURED = "robuq_uniform"  # whose activations and weights are shown, at its fewest bits
SHOWN_ROLE = "fc2"  # behind GELU: the layer whose tokens are farthest from normal


def _of_arrays(make: Callable[[Arrays], tuple[Figure, pd.DataFrame, str]]) -> Builder:
    """A figure of one run's distributions.npz."""

    def built(feed: Feed) -> Product | None:
        measured = _measured(feed)
        if measured is None:
            return None
        run, arrays = measured
        figure, data, text = make(arrays)
        return Product(data, _cell_of(run), f"{text} {_of_run(run)}", figure=figure)

    return built


def _measured(feed: Feed) -> tuple[pd.Series[Any], Arrays] | None:
    """The run whose distributions are shown, and they."""
    if feed.runs.empty:
        return None
    runs = finished(feed.runs)
    runs = runs[(runs["variant"] == MEASURED) & runs["distributions"].notna()]
    if runs.empty:
        return None
    run = runs.sort_values(["act_bits", "seed", "pretrain_seed"]).iloc[0]
    with np.load(feed.open_file(run["distributions"]), allow_pickle=False) as arrays:
        return run, {name: arrays[name] for name in arrays.files}


def _of_run(run: pd.Series[Any]) -> str:
    return f"Of `{run['variant']}` ({run['label']}, seed {run['seed']}) on {dataset_name(run['dataset'])}, n = 1 run."


def _cell_of(run: pd.Series[Any]) -> Cells:
    return [{"row": f"{run['variant']} {run['label']}", "columns": [], "keys": [run["key"]]}]


def _middle(arrays: Arrays) -> int:
    blocks = np.unique(arrays["block"])
    return int(blocks[len(blocks) // 2])


def _by_role(arrays: Arrays) -> tuple[Figure, pd.DataFrame, str]:
    data = by_role_data(arrays, _middle(arrays))
    text = (
        f"Tokens that enter the block linears of block {_middle(arrays)}, each divided by its own standard deviation, "
        f"over all timesteps, {tokens_text(tokens_by_role(arrays, _middle(arrays)))} a layer: densities with the "
        "quantizer's levels, and quantiles against the normal's."
    )
    return panels_figure(data), data, text


def _by_timestep(arrays: Arrays) -> tuple[Figure, pd.DataFrame, str]:
    data = by_timestep_data(arrays, SHOWN_ROLE, _middle(arrays))
    text = (
        f"Tokens that enter `{SHOWN_ROLE}` of block {_middle(arrays)}, each divided by its own standard deviation, at "
        f"little, middling and much noise: {tokens_text(tokens_by_timestep(arrays, SHOWN_ROLE, _middle(arrays)))} each."
    )
    return panels_figure(data), data, text


def _kurtosis(arrays: Arrays) -> tuple[Figure, pd.DataFrame, str]:
    data = normality_data(arrays)
    text = (
        "Excess kurtosis (0 is normal) of the tokens that enter each block linear, by depth and timestep; "
        f"{tokens_a_cell(data)} a cell."
    )
    return kurtosis_map_figure(data), data, text


def _depth(arrays: Arrays) -> tuple[Figure, pd.DataFrame, str]:
    measured = normality_data(arrays)
    data = depth_data(measured)
    text = (
        "Kullback-Leibler divergence from the normal of the tokens that enter each block linear, each in units of its "
        f"own standard deviation. Lines: means over {data['bins'].max()} bins of timesteps, {tokens_a_cell(measured)} "
        "in each; bands: from the lowest to the highest bin; dotted: what a normal sample of equal size shows."
    )
    return depth_figure(data), data, text


def _tokens(arrays: Arrays) -> tuple[Figure, pd.DataFrame, str]:
    data, block = normality_data(arrays), _middle(arrays)
    text = (
        f"Excess kurtosis (0 is normal) of single tokens that enter the block linears of block {block}, by timestep. "
        f"Lines: medians over the tokens of a bin of timesteps ({tokens_a_cell(data)}); bands: the middle 80 % of "
        "them, from the 10 % to the 90 % quantile."
    )
    return token_spread_figure(data, block), data[data["block"] == block], text


def _weights(arrays: Arrays) -> tuple[Figure, pd.DataFrame, str]:
    data = weights_data(arrays)
    text = "Latent weights in units of their ternary threshold, against the normal density, with the three levels."
    return weights_figure(data), data, text


# --- the central limit theorem -------------------------------------------------------------------------------------

TRAINED = "trained network"  # the measure of a trained network's rows
RATE = (
    "How far from normal drawn tokens are after a Hadamard rotation of width n: tokens of independent heavy-tailed "
    "channels, and tokens that one channel dominates. {values} values a point; bars are 95 % intervals. Two laws: over "
    "tokens, all in one unit, excess kurtosis is k / n, with k that of a channel; within a token, in the token's own "
    "unit, it is −2K / n, with K the kurtosis over its channels. What is expected to be too small to be told from 0 is "
    "not drawn. The divergence's line is of the first order only: the excess kurtosis squared over 48, and on top of "
    "it what a normal sample of equal size shows."
)
NETWORK = (
    "Trained network: a point is a block linear in a bin of timesteps, of {tokens}; each layer has one draw of signs, "
    "hence the scatter around the dashed line of the mean over draws."
)


@functools.cache
def _drawn(values: int) -> pd.DataFrame:
    """The same for each data set. `values`: of one point."""
    return convergence.convergence_data(np.random.default_rng(0), values=values)


def central_limit(feed: Feed) -> Product:
    """Of drawn tokens, and of a trained network where one was recorded."""
    drawn, measured = _drawn(convergence.VALUES), _measured(feed)
    text = RATE.format(values=_power_of_two(convergence.VALUES))
    if measured is None:
        return Product(drawn, [], text, figure=convergence.convergence_figure(drawn))
    run, arrays = measured
    network = convergence.network_data(arrays)
    data = pd.concat([drawn, network.assign(measure=TRAINED, source=run["variant"])], ignore_index=True)
    caption = f"{text} {NETWORK.format(tokens=tokens_a_cell(network))} {_of_run(run)}"
    return Product(data, _cell_of(run), caption, figure=convergence.convergence_figure(drawn, network))


def _power_of_two(count: int) -> str:
    exponent = count.bit_length() - 1
    return f"2^{exponent}" if count == 1 << exponent else str(count)


samples = _of_report(build_samples, _sample_cells)
distributions = _of_report(build_distributions, _distribution_cells)
curves = _of_report(build_curves, lambda runs, _: _cells_of(runs))
by_role, by_timestep, kurtosis = (_of_arrays(make) for make in (_by_role, _by_timestep, _kurtosis))
kl_by_depth, tokens, weights = (_of_arrays(make) for make in (_depth, _tokens, _weights))
