"""The report of one plan: table, figures, their data, and one page that ties them together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.curves import curves_data, curves_figure
from analysis.figures.distributions import distribution_summary, distributions_data, distributions_figure
from analysis.figures.samples import samples_csv, samples_data, samples_figure
from analysis.load import finished, one_protocol
from analysis.methods import SHORT, bits_group, bits_name, method_name
from analysis.render import number
from analysis.report_files import (
    Built,
    dataset_name,
    figure_section,
    listed,
    table_links,
    write_figure,
    write_json,
    write_table,
    write_text,
)
from analysis.tables.components import CAPTION, components_data, components_table, render_components
from robuq.record.mlflow import fetch_artifact, read_history

SHOWN_LAYER = "fc2"  # behind GELU: the layer whose tokens are farthest from normal
SHOWN_VARIANTS = ("robuq_uniform", "baseline")  # whose tokens the distribution figure shows, first come first
READING = """\
- **n** is the number of runs, one per seed of quantization-aware training; {pretrained}.
  An interval says how much the mean would move with other seeds of the same kind, not with other data sets, sizes or
  lengths of training.
- **±** is half of the 95 % Student t interval of the mean over those n runs. With three seeds its factor is
  t = 4.30 of the standard error: wide, and honest about three seeds.
- **Δ to baseline** pairs runs that share their seeds, so that what a seed does to both cancels. The table's
  CSV also holds its p-value, Holm's correction over all rows, and the effect size.
- **Held-out loss** is the primary metric: the noise-prediction error (mean squared error per pixel) on images that
  training never saw, at fixed noise and timesteps. It has far less noise than what is measured on drawn images.
- **FD** (`fd_classifier`) is a Fréchet distance in the features of a small classifier trained on this data set. It
  is no FID and cannot be compared with published ones{floor}.
- Marks are per activation width. With many rows some unmarked row is unlucky: read the intervals, not the bold type.
- {rates}
"""
LIMITS = """\
What is shown is what these runs did: one data set, one small model, a short training. It shows which components
matter here and by how much. It does not show the paper's numbers, what happens at the width of DiT-XL/2 (where the
rotation makes tokens more normal), or speed on hardware: quantization is simulated in floating point.
"""


def write_report(
    plan: str,
    runs: pd.DataFrame,
    folder: Path,
    *,
    description: str = "",
    baseline: str = "baseline",
    tracking_uri: str = "",
) -> list[Path]:
    """Write the report of `runs` (from `analysis.load.load_runs`) into `folder`; the files, report.md first.

    `baseline` is the variant that the others are compared with. Artefacts are fetched through `tracking_uri`, which
    local ones do not need. Equal runs give equal bytes.

    Raises:
        ValueError: the runs have several protocols, none is finished, or `components_data` refuses them.
        FileNotFoundError: an artefact is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    one_protocol(finished(runs))
    data = components_data(runs, baseline)
    where = dataset_name(listed(finished(runs)["dataset"]))
    headed = {"title": f"Components, {where}", "label": f"components_{plan}"}
    files = write_table(components_table(data), data, folder, "components", **headed)
    shown = runs[runs["key"].isin(" ".join(data["keys"]).split())]  # not those of learning rates that lost
    figures = {
        "distributions": functools.partial(build_distributions, shown),
        "samples": functools.partial(build_samples, shown),
        "curves": functools.partial(build_curves, shown),
    }
    captions: dict[str, str] = {}
    for name, build in figures.items():
        if built := build(tracking_uri):
            captions[name] = built[2]
            headed = {"title": f"{name.capitalize()}, {where}", "label": f"{name}_{plan}"}
            files += write_figure(built, folder, name, **headed)
    page = _page(plan, description, baseline, runs, data, captions)
    files.append(write_json(_manifest(plan, baseline, runs, data), folder / "manifest.json"))
    return [write_text(folder / "report.md", page), *files]


# --- figures: (figure, data for its CSV, caption), or nothing where no run has the artefact ------------------------


def _opener(tracking_uri: str) -> Callable[[str], Path]:
    return functools.partial(fetch_artifact, tracking_uri)


def build_distributions(runs: pd.DataFrame, tracking_uri: str) -> Built | None:
    run = run_with_tokens(runs)
    if run is None:
        return None
    with np.load(_opener(tracking_uri)(run["tokens"]), allow_pickle=False) as arrays:
        tokens = {name: arrays[name] for name in arrays.files}
    role = SHOWN_LAYER if f"{SHOWN_LAYER}.raw" in tokens else sorted(tokens)[0].partition(".")[0]
    data, summary = distributions_data(tokens, role), distribution_summary(tokens)
    shape = summary[summary["role"] == role].iloc[0]
    kurtosis = "; ".join(
        f"{name} {' → '.join(number(value, 2) for value in part['excess_kurtosis'])}"
        for name, part in summary.groupby("role", sort=False)
    )
    caption = (
        f"Tokens that enter `{role}` of the middle block of `{run['variant']}` ({run['label']}, seed {run['seed']}), "
        f"each divided by its own standard deviation: {shape['tokens']} tokens of width {shape['width']}. Left: "
        "densities on a logarithmic axis, with the quantizer's levels (means over tokens) where it has any. "
        f"Right: quantiles against the normal's. Excess kurtosis before → after rotation (0 is normal): {kurtosis}."
    )
    return distributions_figure(data), data, caption


def run_with_tokens(runs: pd.DataFrame) -> dict[str, Any] | None:
    """The first preferred variant's run with the fewest bits and the lowest seed, else any run."""
    own = finished(runs)
    own = own[own["tokens"].notna()].sort_values(["act_bits", "seed", "pretrain_seed", "variant"])
    for name in SHOWN_VARIANTS:
        if len(part := own[own["variant"] == name]):
            return {str(key): value for key, value in part.iloc[0].items()}
    return {str(key): value for key, value in own.iloc[0].items()} if len(own) else None


def build_samples(runs: pd.DataFrame, tracking_uri: str) -> Built | None:
    data = samples_data(runs, _opener(tracking_uri))
    if data.empty:
        return None
    seeds = ", ".join(str(seed) for seed in sorted(data["seed"].unique()))
    caption = (
        "Images drawn from each variant; the images of a column start from the same noise and label. "
        f"From the runs of seed {seeds}, and not chosen: the first image of each class. "
        f"{SHORT}"
    )
    return samples_figure(data), samples_csv(data), caption


def build_curves(runs: pd.DataFrame, tracking_uri: str) -> Built | None:
    data = curves_data(runs, functools.partial(read_history, tracking_uri))
    if data.empty:
        return None
    caption = (
        "Training loss of quantization-aware training. Each curve is smoothed by a centred running mean over a tenth "
        "of its logged points; lines are means over seeds, bands their lowest and highest. The panels leave out the "
        "highest values of the first fifth of training. n is the number of seeds. Compare the table's held-out losses, "
        f"not these. {SHORT}"
    )
    return curves_figure(data), data, caption


# --- the page -----------------------------------------------------------------------------------------------------


def _page(
    plan: str, description: str, baseline: str, runs: pd.DataFrame, data: pd.DataFrame, captions: dict[str, str]
) -> str:
    parts = [f"# {plan}", description.strip(), "## What was run", _what(runs, baseline)]
    if failures := _failures(runs):
        parts += ["## Failed runs", failures]
    parts += ["## Components", render_components(data, "markdown").strip(), CAPTION]
    parts.append(table_links("components"))
    for name, caption in captions.items():
        parts += figure_section(name, caption)
    if missing := [name for name in ("distributions", "samples", "curves") if name not in captions]:
        parts.append(f"No finished run has what these figures need: {', '.join(missing)}.")
    parts += ["## How to read this", _reading(runs, data), "## What it shows and what it cannot show", LIMITS.strip()]
    parts.append("The run keys behind every row are in [manifest.json](manifest.json).")
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(runs: pd.DataFrame, baseline: str) -> str:
    done = finished(runs)
    widths = [bits_name(bits) for bits in sorted({bits_group(b) for b in done["act_bits"].dropna()}, reverse=True)]
    lines = [
        f"{len(done)} finished runs, {len(runs) - len(done)} failed: {done['variant'].nunique()} variants"
        + (f" at {', '.join(widths)}" if widths else ""),
        f"data: {listed(done['dataset'])}; model width {listed(done['width'])}, {listed(done['num_layers'])} blocks",
        f"quantization-aware training: {listed(done['steps'])} steps, batch {listed(done['batch_size'])}, "
        f"learning rate {listed(done['lr'])}",
        f"seeds {listed(done['seed'])}; pre-training seeds {listed(done['pretrain_seed'])}",
        f"compared with: {method_name(baseline)} (`{baseline}`)",
        f"protocol `{one_protocol(done)}` (data, evaluation and code epoch; only equal ones share a table)",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _failures(runs: pd.DataFrame) -> str:
    failed = runs[runs["status"] == "failed"].sort_values(["variant", "label", "seed", "key"])
    lines = [
        f"- {run['variant']} {run['label']} seed {run['seed']} (`{run['key']}`): {run['failure']}"
        for _, run in failed.iterrows()
    ]
    return "\n".join(lines)


def _reading(runs: pd.DataFrame, data: pd.DataFrame) -> str:
    done = finished(runs)
    count = done["pretrain_seed"].nunique()
    pretrained = (
        "all of them start from one pre-trained network" if count == 1 else f"from {count} pre-trained networks"
    )
    return READING.format(pretrained=pretrained, floor=_floor(done), rates=_rates(done, data)).strip()


def _floor(done: pd.DataFrame) -> str:
    if "fd_floor" not in done or done["fd_floor"].isna().all():
        return ""
    images = f"{done['fd_floor_images'].max():g}" if "fd_floor_images" in done else "an unrecorded number of"
    return (
        f"; its floor, {images} held-out real images in place of drawn ones, is "
        f"{number(float(done['fd_floor'].mean()), 2)}, and the fewer images, the higher is any such distance"
    )


def _rates(done: pd.DataFrame, data: pd.DataFrame) -> str:
    if done["lr"].nunique() <= 1:
        return f"Every row was trained with one learning rate ({listed(done['lr'])}); it was not tuned for any row."
    used = ", ".join(f"{row['variant']} {row['label']}: {row['lr']:g}" for _, row in data.iterrows())
    rows = done.assign(bits=done["act_bits"].map(bits_group)).groupby(["bits", "variant"], dropna=False)
    if rows["lr"].nunique().max() == 1:
        return f"Every row was trained with one learning rate, not all with the same; none was tuned ({used})."
    return (
        f"Learning rates {listed(done['lr'])} were tried; a row shows the one with its lowest mean loss on validation "
        f"images, on which nothing was trained and on which no number of the table is measured ({used}). Only runs "
        "with that learning rate enter the table and the figures."
    )


def _manifest(plan: str, baseline: str, runs: pd.DataFrame, data: pd.DataFrame) -> dict[str, Any]:
    rows = [
        {"variant": row["variant"], "label": row["label"], "n": row["n"], "runs": row["keys"].split()}
        for _, row in data.iterrows()
    ]
    failed = sorted(runs.loc[runs["status"] == "failed", "key"])
    protocol = one_protocol(finished(runs))
    return {"plan": plan, "baseline": baseline, "protocol": protocol, "rows": rows, "failed": failed}
