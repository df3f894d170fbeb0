"""Ours beside what was published, with the difference where the two are the same quantity, and why not where not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from analysis.evaluations import winner
from analysis.gaussian_grids import grid_error, lloyd_max, mean_squared_error, optimal_step
from analysis.load import finished
from analysis.methods import bits_group
from analysis.own_settings import AMPN_ROWS, own_settings
from analysis.paper import Artefact
from analysis.product import Feed, Product
from analysis.published import load_published, protocol_name, published, published_text
from analysis.render import NONE, TextTable, number
from analysis.stats import mean_interval
from analysis.tables.cost import DRAWN, cost_data
from robuq.config import BLOCK_ROLES, MODEL_PRESETS, PrecisionMap
from robuq.config.quant import QUEST_CLIP
from robuq.cost import layer_costs
from robuq.record.search_record import SearchRecord

OURS_FOR = {  # published metric of quality -> ours, which is another quantity
    "FID": "fd_classifier",
    "IS": "classifier_score",
    "Precision": "precision",
}
SAME, TAKEN, SAME_NETWORK, OTHER_NETWORK, OTHER_DATA, SAME_SETTING, OTHER_SETTING, NOT_HERE, NOT_RUN = (
    "same quantity",
    "published constant, used as it is",
    "same network; the paper's count is unknown",
    "other network: no difference",
    "other data and metric: no difference",
    "same setting",
    "other setting",
    "not to be had here",
    "not recorded",
)
GRIDS = {"mid-rise": "mid_rise", "mid-tread": "mid_tread", "as coded": "as_coded", "Lloyd-Max": "lloyd_max"}
COST_COLUMNS = {  # published metric -> column of `cost_data`
    "GFLOPs": "paper_total",
    "W x A GFLOPs": "paper_W x A",
    "A x A GFLOPs": "paper_A x A",
    "adaLN GFLOPs": "paper_adaLN",
    "compression": "compression",
}
WEIGHTED: dict[str, Literal["layers", "macs"]] = {"mean bits by MACs": "macs", "mean bits by layers": "layers"}
BITS_OF = {f"mean bits {role}": role for role in BLOCK_ROLES}
AMPN_TABLE = "main_conditional"  # whose runs have AMPN's bits
SETTINGS = "settings"  # the artefact of what is no result
NEAREST = {  # our row beside a published number -> the rows in its place, the first that a data set has
    AMPN_ROWS[0]: AMPN_ROWS,
    "robuq_warm_100": ("robuq_warm_100", "robuq_warm_50"),  # a third of the training, on digits and Fashion-MNIST
}
PAPER_SPEED_UP = "speed-up"  # by the paper's count: full precision's GFLOPs over the network's
COLUMNS = (
    *("artefact", "dataset", "method", "label", "act_bits", "protocol", "metric", "published", "published_text"),
    *("our_row", "our_metric", "ours", "ours_half_width", "n", "difference", "verdict", "source"),
)
Products = Mapping[str, tuple[Artefact, Feed, Product]]


@dataclass(frozen=True)
class _Ours:
    """All that stands beside the published numbers. `runs`: by artefact and data set; `datasets`: all of ours."""

    runs: Mapping[str, Mapping[str, pd.DataFrame]]
    costs: pd.DataFrame
    bits: pd.DataFrame
    settings: pd.DataFrame
    datasets: Sequence[str]


def side_by_side(products: Products) -> pd.DataFrame:
    """One row a published number and data set of ours, or one where no data set can have it.

    `difference` is ours minus the published value, and is given where both are one quantity: costs of DiT-XL/2, errors
    of grids, constants. A Fréchet distance in a small classifier's features on digits is no FID on ImageNet, and bits
    of our layers are not those of DiT-XL/2's: such rows show both and say so. Rows that no run can have are marked,
    too, and so are data sets that lack a row. `our_row` is the variant, the search or, of settings, the variants.

    Raises:
        FileNotFoundError: the record of a run whose bits are shown is gone.
    """
    reference, ours = load_published(), _ours_of(products)
    rows = [row for _, known in reference.iterrows() for row in _rows(known, ours)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _ours_of(products: Products) -> _Ours:
    runs: dict[str, dict[str, pd.DataFrame]] = {}
    datasets: dict[str, None] = {}
    for made, feed, _ in products.values():
        if feed.search:
            datasets[feed.search.dataset] = None
        elif len(feed.runs):
            dataset = str(feed.runs["dataset"].iloc[0])
            datasets[dataset] = None
            for name in made.published:
                runs.setdefault(name, {})[dataset] = feed.runs
    settings = own_settings(feed for made, feed, _ in products.values() if made.id == AMPN_TABLE)
    return _Ours(runs, cost_data(), found_bits(products), settings, list(datasets))


def _rows(row: pd.Series[Any], ours: _Ours) -> list[dict[str, Any]]:
    if row["artefact"] == SETTINGS:
        return _of_each(row, _settings_rows(row, ours.settings), ours.datasets)
    if row["metric"] in BITS_OF:
        return _of_each(row, _bits_rows(row, ours.bits), ours.datasets)
    if row["metric"] == "clip":
        clip = QUEST_CLIP[int(row["act_bits"]) - 1]
        return [_row(row, clip, TAKEN, dataset=row["dataset"], name=row["variant"])]
    if (value := _computed(row, ours.costs)) is not None:
        counted = row["artefact"] in ("cost", "figure2")
        return [_row(row, value, SAME_NETWORK if counted else SAME, dataset=DRAWN if counted else row["dataset"])]
    if row["metric"] not in OURS_FOR or pd.isna(row["variant"]):
        return [_row(row, None, NOT_HERE)]
    measured = [_measured(row, runs) for runs in ours.runs.get(row["artefact"], {}).values()]
    return _of_each(row, [one for one in measured if one is not None], ours.datasets)


def _of_each(row: pd.Series[Any], found: list[dict[str, Any]], datasets: Sequence[str]) -> list[dict[str, Any]]:
    """What was found, and a row that says so for each data set of ours that lacks it."""
    lacking = [name for name in datasets if name not in {one["dataset"] for one in found}]
    return [*found, *(_row(row, None, NOT_RUN, dataset=name) for name in lacking)] or [_row(row, None, NOT_RUN)]


def _settings_rows(row: pd.Series[Any], settings: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for _, own in settings[settings["metric"] == row["metric"]].iterrows():
        verdict = SAME_SETTING if own["value"] == row["value"] else OTHER_SETTING
        made = _row(row, own["value"], verdict, own["dataset"], own["variant"])
        rows.append(made | {"difference": math.nan})
    return rows


# --- bits by role -------------------------------------------------------------------------------------------------


def found_bits(products: Products) -> pd.DataFrame:
    """Columns dataset, act_bits (the budget), by (AMPN or the search), name (of the variant or the search), role, bits
    (mean over blocks): one row a role of each run with AMPN, of the nearest to the paper's widths that a data set and
    budget has, and of the winner of each search under a mean."""
    feeds = [feed for made, feed, _ in products.values() if made.id == AMPN_TABLE]
    searches = [feed.search for made, feed, _ in products.values() if "bits" in made.published and feed.search]
    rows = [row for feed in feeds for row in _bits_of_runs(feed)]
    rows += [row for record in searches for row in _bits_of_search(record)]
    return pd.DataFrame(rows, columns=["dataset", "act_bits", "by", "name", "role", "bits"])


def _bits_of_runs(feed: Feed) -> Iterator[dict[str, Any]]:
    done = finished(feed.runs)
    for budget, part in done.groupby(done["act_bits"].map(bits_group)):
        for _, run in _nearest(part, AMPN_ROWS[0]).iterrows():
            own = {"dataset": run["dataset"], "act_bits": budget, "by": "AMPN", "name": run["variant"]}
            for role, bits in _bits_by_role(feed.full_record(run["key"]).allocation).items():
                yield own | {"role": role, "bits": bits}


def _nearest(runs: pd.DataFrame, variant: str) -> pd.DataFrame:
    """The runs of the row, or of the first of those in its place that there is; none where there is none."""
    there = set(runs["variant"])
    name = next((one for one in NEAREST.get(variant, ()) if one in there), variant)
    return runs[runs["variant"] == name]


def _bits_of_search(record: SearchRecord) -> Iterator[dict[str, Any]]:
    best = winner(record)
    if best is None or record.budget["weights"] == "bops":
        return
    own: dict[str, Any] = {"dataset": record.dataset, "act_bits": float(record.budget["limit"])}
    own |= {"by": "the search", "name": record.name}
    for role, bits in _bits_by_role(best.bits).items():
        yield own | {"role": role, "bits": bits}


def _bits_by_role(allocation: Mapping[str, int]) -> dict[str, float]:
    """Mean over the blocks, each alike; nothing for an empty allocation."""
    widths: dict[str, list[int]] = {}
    for decision, bits in allocation.items():
        widths.setdefault(decision.rpartition(".")[2], []).append(bits)
    return {role: sum(own) / len(own) for role, own in widths.items()}


def _bits_rows(row: pd.Series[Any], found: pd.DataFrame) -> list[dict[str, Any]]:
    own = found[(found["role"] == BITS_OF[row["metric"]]) & (found["act_bits"] == row["act_bits"])]
    return [
        _mean(row, part["bits"], OTHER_NETWORK, str(dataset), str(name), f"{row['metric']}, {by}")
        for (dataset, by, name), part in own.groupby(["dataset", "by", "name"], sort=False)
    ]


# --- computed and measured ----------------------------------------------------------------------------------------


def _computed(row: pd.Series[Any], costs: pd.DataFrame) -> float | None:
    """The same quantity, from the code alone: None where it is none of those."""
    if row["artefact"] == "quantizers":
        return _grid(row)
    if row["metric"] in WEIGHTED:
        return _published_mean(row["act_bits"], WEIGHTED[row["metric"]])
    same = costs[(costs["model"] == DRAWN) & (costs["act_bits"] == row["act_bits"])]
    own = same[same["variant"] == ("bitnet_v2" if row["variant"] == "bitnet_v2" else "robuq_uniform")]
    if own.empty or row["variant"] == "binarydm" or row["artefact"] not in ("cost", "figure2"):
        return None
    if row["metric"] == PAPER_SPEED_UP:
        full = costs[(costs["model"] == DRAWN) & (costs["variant"] == "full_precision")]
        return float(full["paper_total"].iloc[0] / own["paper_total"].iloc[0])
    column = COST_COLUMNS.get(row["metric"])
    return None if column is None else float(own[column].iloc[0])


def _published_mean(act_bits: float, weights: Literal["layers", "macs"]) -> float:
    """Of the published mean bits by role, each block linear weighted alike or by its MACs in DiT-XL/2."""
    rows = published("bits")
    rows = rows[rows["act_bits"] == act_bits]
    known = dict(zip(rows["metric"], rows["value"], strict=True))
    costs = layer_costs(MODEL_PRESETS[DRAWN], PrecisionMap())
    macs = {cost.role: cost.macs for cost in costs if cost.role in BLOCK_ROLES}
    shares = {role: macs[role] if weights == "macs" else 1 for role in BLOCK_ROLES}
    mean: float = sum(share * known[f"mean bits {role}"] for role, share in shares.items()) / sum(shares.values())
    return mean


def _grid(row: pd.Series[Any]) -> float | None:
    bits, grid = row["act_bits"], GRIDS.get(row["method"])
    if grid is None:
        return _three_levels(row["metric"])
    return optimal_step(grid, int(bits)) if row["metric"] == "step" else grid_error(grid, int(bits))


def _three_levels(metric: str) -> float:
    """-s, 0, s: the best three levels are a uniform grid."""
    levels = lloyd_max(3)
    return float(levels[-1]) if metric == "step" else mean_squared_error(levels)


def _measured(row: pd.Series[Any], runs: pd.DataFrame) -> dict[str, Any] | None:
    done = finished(runs)
    if pd.notna(row["act_bits"]):
        done = done[done["act_bits"].round() == row["act_bits"]]
    own = _nearest(done, row["variant"])
    if pd.isna(row["act_bits"]) and row["variant"] != "full_precision":
        own = own[own["act_bits"] == own["act_bits"].min()]  # the width is not said: ours at the fewest bits
    if own.empty:
        return None
    metric, first = OURS_FOR[row["metric"]], own.iloc[0]
    return _mean(row, own[metric], OTHER_DATA, str(first["dataset"]), str(first["variant"]), metric)


def _mean(
    row: pd.Series[Any], values: pd.Series[Any], verdict: str, dataset: str, name: str, metric: str
) -> dict[str, Any]:
    """Measured in runs: a mean with its interval and n, and no difference."""
    estimate = mean_interval(values)
    made = _row(row, estimate.mean, verdict, dataset, name)
    own = {"our_metric": metric, "ours_half_width": estimate.half_width, "n": estimate.n, "difference": math.nan}
    return made | own


def _row(row: pd.Series[Any], value: float | None, verdict: str, dataset: str = "", name: str = "") -> dict[str, Any]:
    return {
        "artefact": row["artefact"],
        "dataset": dataset or NONE,
        "method": row["method"],
        "label": row["label"] if pd.notna(row["label"]) else NONE,
        "act_bits": row["act_bits"],
        "protocol": protocol_name(row),
        "metric": row["metric"],
        "published": row["value"],
        "published_text": published_text(row),
        "our_row": name or NONE,
        "our_metric": row["metric"] if value is not None else NONE,
        "ours": math.nan if value is None else value,
        "ours_half_width": math.nan,
        "n": 0,
        "difference": math.nan if value is None else value - row["value"],
        "verdict": verdict,
        "source": row["source"],
    }


def side_by_side_table(data: pd.DataFrame) -> TextTable:
    """The rows as text, a rule between artefacts."""
    cells = pd.DataFrame([_text(row) for _, row in data.iterrows()])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    words = ("Artefact", "Method", "W/A", "Protocol", "Metric", "Our row", "Our metric", "On", "")
    places = [i for i in range(1, len(data)) if data["artefact"].iloc[i] != data["artefact"].iloc[i - 1]]
    return TextTable(cells, marks, tuple(places), words=words)


def _text(row: pd.Series[Any]) -> dict[str, str]:
    digits = len(row["published_text"].partition(" ")[0].partition(".")[2])
    digits = digits if row["artefact"] == SETTINGS else max(2, digits)
    ours = number(row["ours"], digits)
    spread = "" if math.isnan(row["ours_half_width"]) else f" ± {number(row['ours_half_width'], digits)}"
    count = f" (n = {row['n']})" if row["n"] else ""
    return {
        "Artefact": row["artefact"],
        "Method": row["method"],
        "W/A": row["label"] if row["label"] != NONE or math.isnan(row["act_bits"]) else f"A{row['act_bits']:g}",
        "Protocol": row["protocol"],
        "Metric": row["metric"],
        "Published": f"{row['published_text']} [{row['source']}]",
        "Ours": f"{ours}{spread}{count}",
        "Our row": row["our_row"],
        "Our metric": row["our_metric"],
        "On": row["dataset"],
        "Difference": number(row["difference"], digits),
        "": row["verdict"],
    }
