"""The figures of one search with their captions, as its report shows them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evaluations import (
    allocation_name,
    budget_name,
    mean_bits,
    named_allocations,
    rung_steps,
    sensitivity_table,
    weighting,
)
from analysis.figures.bits import bits_data, bits_figure
from analysis.figures.importance import RESAMPLES, SHOWN, importance_data, importance_figure, rungs_text
from analysis.figures.search import (
    beyond,
    history_data,
    history_figure,
    pareto_data,
    pareto_figure,
    rung_name,
    rungs_figure,
)
from analysis.figures.sensitivity import drawn_text, sensitivity_data, sensitivity_figure
from analysis.methods import WEIGHTINGS
from analysis.render import number
from analysis.report_files import Built
from robuq.record.search_record import SearchRecord

SEED = 0  # of the resamples
TITLES = {  # name of the figure -> title, in the order of the page
    "bits": "Bits of each layer",
    "history": "History of the search",
    "pareto": "Pareto front",
    "importance": "Importance of the parameters",
    "rungs": "What a cheap rung says of the last",
    "sensitivity": "Sensitivity",
}


def search_figures(record: SearchRecord, pairs: pd.DataFrame, correlations: pd.DataFrame) -> dict[str, Built]:
    """{name: figure} in the order of `TITLES`; those that have nothing to show are left out.

    `pairs`, `correlations`: of `rungs_data` and `rung_correlations`.
    """
    built = {
        "bits": _bits(record),
        "history": _history(record),
        "pareto": _pareto(record),
        "importance": _importance(record),
        "rungs": _rungs(record, pairs, correlations),
        "sensitivity": _sensitivity(record),
    }
    return {name: figure for name, figure in built.items() if figure is not None}


def _bits(record: SearchRecord) -> Built | None:
    weights, named = weighting(record), named_allocations(record)
    if not named:
        return None
    shown = {allocation_name(record, name): bits for name, bits in named.items()}
    data = bits_data(shown, {name: mean_bits(record, bits)[weights] for name, bits in shown.items()}, weights)
    caption = (
        f"Activation bits of each block linear, by kind and depth; above each panel the mean weighted by "
        f"{WEIGHTINGS[weights]}. Budget: {budget_name(record)}; n = {data['block'].nunique() * data['role'].nunique()} "
        "decisions. Paper: the published mean bits by kind, scaled to the budget."
    )
    return bits_figure(data), data, caption


def _history(record: SearchRecord) -> Built | None:
    """Of a search with one objective: with two there is no one best."""
    data = history_data(record)
    if len(record.search["objectives"]) > 1 or data["value"].isna().all():
        return None
    known = data[data["value"].notna()]
    rungs = ", ".join(f"{(known['steps'] == r).sum()} ({rung_name(r)})" for r in rung_steps(record))
    caption = (
        "Every evaluation at every rung that it reached, from the cheapest rung to the last, in the order in which the "
        "sampler asked for them; hollow: stopped there; ×: failed; △ at the edge: above the panel. Lines: the known "
        f"allocations. Values are those of one seed. n: {rungs}."
    )
    return history_figure(data), data, caption


def _pareto(record: SearchRecord) -> Built | None:
    data = pareto_data(record)
    if len(record.search["objectives"]) < 2 or data.empty:
        return None
    return pareto_figure(data), data, pareto_caption(record, data)


def pareto_caption(record: SearchRecord, data: pd.DataFrame) -> str:
    steps = rung_steps(record)[-1]
    return (
        f"Validation loss {rung_name(steps) if steps else 'before any training'} against cost of n = {len(data)} "
        f"allocations, one seed each; filled, and joined: the {data['front'].sum()} that no other beats in both; "
        f"hollow: beaten{'; △ at the edge: above the panel' if beyond(data) else ''}. Known allocations have marks of "
        "their own, beaten or not."
    )


def _importance(record: SearchRecord) -> Built | None:
    """With a generator of its own: which figures there are must not change the numbers of others."""
    data = importance_data(record, np.random.default_rng(SEED))
    if data.empty:
        return None
    left_out = data["parameter"].nunique() - SHOWN
    more = f" The {SHOWN} most important of {SHOWN + left_out} are shown." if left_out > 0 else ""
    caption = (
        "How far each parameter of the space sets the best evaluations of a rung apart from all of them (PED-ANOVA, as "
        f"Optuna's dashboard has it), as shares that sum to 1. Lines: the middle 80 % over {RESAMPLES} resamples of "
        "the evaluations; where they overlap, the order of two parameters may be luck. A resample repeats some "
        "evaluations and lacks others, so a share of all may lie outside its line. Only evaluations with "
        f"parameters count: n = {rungs_text(data)}.{more}"
    )
    return importance_figure(data), data, caption


def _rungs(record: SearchRecord, pairs: pd.DataFrame, correlations: pd.DataFrame) -> Built | None:
    if pairs.empty:
        return None
    costs = " Allocations of all costs are here together." if len(record.search["objectives"]) > 1 else ""
    caption = (
        "What was known of an allocation cheaply against its validation loss at the last rung, with Spearman's ρ, its "
        "95 % bootstrap interval over evaluations, and their number n. Additive prediction: the summed sensitivities "
        "of its layers' bits. Hollow, at an edge: beyond the panel. Only evaluations that reached the last rung are "
        f"here.{costs} As numbers: [correlations](correlations.csv)."
    )
    return rungs_figure(pairs, correlations), pairs, caption


def _sensitivity(record: SearchRecord) -> Built | None:
    table = sensitivity_table(record)
    if table is None:
        return None
    data, noise = sensitivity_data(table), table.noise()
    before = "before any training" if table.warm_up_steps == 0 else f"after {table.warm_up_steps} steps of training"
    caption = (
        f"What it costs to give one layer so few bits while all others have {table.reference}, {before}: increase of "
        f"the diffusion loss (of {number(table.base_loss, 4)}), noise over signal of the layer's output, and the "
        f"increase that gradients predict. {drawn_text(data)} n = {table.num_images} images. White: not above zero; a "
        "dot: not above two standard errors. Noise of the loss increase: Spearman's ρ between the two halves of the "
        f"images is {number(noise['split_half_spearman'], 2)} over all layers and all bits measured, "
        f"{number(noise['split_half_spearman_within'], 2)} (median) among layers at one bit-width; the median standard "
        f"error is {number(100 * noise['median_relative_se'], 0)} % of the increase."
    )
    return sensitivity_figure(data), data, caption
