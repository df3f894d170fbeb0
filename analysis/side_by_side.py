"""Ours beside what was published, with the difference where the two are the same quantity, and why not where not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from analysis.evaluations import winner
from analysis.gaussian_grids import grid_error, lloyd_max, mean_squared_error, mid_rise, optimal_step
from analysis.load import finished
from analysis.methods import bits_group
from analysis.paper import Artefact
from analysis.product import Feed, Product
from analysis.published import load_published, protocol_name, published, published_text
from analysis.render import NONE, TextTable, number
from analysis.stats import mean_interval
from analysis.tables.cost import DRAWN, cost_data
from robuq.config import BLOCK_ROLES, MODEL_PRESETS, PrecisionMap
from robuq.cost import layer_costs
from robuq.record.search_record import SearchRecord

OURS_FOR = {  # published metric of quality -> ours, which is another quantity
    "FID": "fd_classifier",
    "IS": "classifier_score",
    "Precision": "precision",
}
SAME, SAME_NETWORK, OTHER_NETWORK, OTHER_DATA, NOT_HERE, NOT_RUN = (
    "same quantity",
    "same network; the paper's count is unknown",
    "other network: no difference",
    "other data and metric: no difference",
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
AMPN_TABLE, AMPN = "main_conditional", "robuq"  # whose runs, and which of them, have AMPN's bits
PAPER_SPEED_UP = "speed-up"  # by the paper's count: full precision's GFLOPs over the network's
COLUMNS = (
    *("artefact", "dataset", "method", "label", "act_bits", "protocol", "metric", "published", "published_text"),
    *("our_metric", "ours", "ours_half_width", "n", "difference", "verdict", "source"),
)
Products = Mapping[str, tuple[Artefact, Feed, Product]]


def side_by_side(products: Products) -> pd.DataFrame:
    """One row a published number and data set of ours, or one where no data set can have it.

    `difference` is ours minus the published value, and is given where both are one quantity: costs of DiT-XL/2 and
    errors of grids. A Fréchet distance in a small classifier's features on digits is no FID on ImageNet, and bits of
    our layers are not those of DiT-XL/2's: such rows show both and say so. Rows that no run can have are marked, too.

    Raises:
        FileNotFoundError: the record of a run whose bits are shown is gone.
    """
    reference, costs = load_published(), cost_data()
    frames = {
        name: [feed.runs for made, feed, _ in products.values() if name in made.published and len(feed.runs)]
        for name in reference["artefact"].unique()
    }
    found = found_bits(products)
    rows = [row for _, known in reference.iterrows() for row in _rows(known, frames[known["artefact"]], costs, found)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(
    row: pd.Series[Any], frames: Sequence[pd.DataFrame], costs: pd.DataFrame, found: pd.DataFrame
) -> list[dict[str, Any]]:
    if row["metric"] in BITS_OF:
        return _bits_rows(row, found) or [_row(row, None, NOT_RUN)]
    if (value := _computed(row, costs)) is not None:
        counted = row["artefact"] in ("cost", "figure2")
        return [_row(row, value, SAME_NETWORK if counted else SAME, dataset=DRAWN if counted else row["dataset"])]
    if row["metric"] not in OURS_FOR or pd.isna(row["variant"]):
        return [_row(row, None, NOT_HERE)]
    measured = [_measured(row, runs) for runs in frames]
    return [one for one in measured if one is not None] or [_row(row, None, NOT_RUN)]


# --- bits by role -------------------------------------------------------------------------------------------------


def found_bits(products: Products) -> pd.DataFrame:
    """Columns dataset, act_bits (the budget), by (AMPN or the search), role, bits (mean over blocks): one row a role of
    each run with AMPN, and of the winner of each search under a mean."""
    feeds = [feed for made, feed, _ in products.values() if made.id == AMPN_TABLE]
    searches = [feed.search for made, feed, _ in products.values() if "bits" in made.published and feed.search]
    rows = [row for feed in feeds for row in _bits_of_runs(feed)]
    rows += [row for record in searches for row in _bits_of_search(record)]
    return pd.DataFrame(rows, columns=["dataset", "act_bits", "by", "role", "bits"])


def _bits_of_runs(feed: Feed) -> Iterator[dict[str, Any]]:
    done = finished(feed.runs)
    for _, run in done[done["variant"] == AMPN].iterrows():
        own = {"dataset": run["dataset"], "act_bits": bits_group(run["act_bits"]), "by": "AMPN"}
        for role, bits in _bits_by_role(feed.full_record(run["key"]).allocation).items():
            yield own | {"role": role, "bits": bits}


def _bits_of_search(record: SearchRecord) -> Iterator[dict[str, Any]]:
    best = winner(record)
    if best is None or record.budget["weights"] == "bops":
        return
    own = {"dataset": record.dataset, "act_bits": float(record.budget["limit"]), "by": "the search"}
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
        _ours(row, part["bits"], OTHER_NETWORK, str(dataset), f"{row['metric']}, {by}")
        for (dataset, by), part in own.groupby(["dataset", "by"], sort=False)
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
    if row["metric"] == "clip":  # QuEST's: the outermost level of the optimal mid-rise grid
        return float(mid_rise(int(bits), optimal_step("mid_rise", int(bits)))[-1])
    if grid is None:
        return _three_levels(row["metric"])
    return optimal_step(grid, int(bits)) if row["metric"] == "step" else grid_error(grid, int(bits))


def _three_levels(metric: str) -> float:
    """-s, 0, s: the best three levels are a uniform grid."""
    levels = lloyd_max(3)
    return float(levels[-1]) if metric == "step" else mean_squared_error(levels)


def _measured(row: pd.Series[Any], runs: pd.DataFrame) -> dict[str, Any] | None:
    done = finished(runs)
    own = done[done["variant"] == row["variant"]]
    if pd.notna(row["act_bits"]):
        own = own[own["act_bits"].round() == row["act_bits"]]
    elif row["variant"] != "full_precision" or own.empty:
        own = own[own["act_bits"] == own["act_bits"].min()]  # the width is not said: ours at the fewest bits
    if own.empty:
        return None
    metric = OURS_FOR[row["metric"]]
    return _ours(row, own[metric], OTHER_DATA, str(own["dataset"].iloc[0]), metric)


def _ours(row: pd.Series[Any], values: pd.Series[Any], verdict: str, dataset: str, metric: str) -> dict[str, Any]:
    """Measured in runs: a mean with its interval and n, and no difference."""
    estimate = mean_interval(values)
    made = _row(row, estimate.mean, verdict, dataset)
    own = {"our_metric": metric, "ours_half_width": estimate.half_width, "n": estimate.n, "difference": math.nan}
    return made | own


def _row(row: pd.Series[Any], value: float | None, verdict: str, dataset: str = "") -> dict[str, Any]:
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
        "our_metric": row["metric"] if value is not None else NONE,
        "ours": math.nan if value is None else value,
        "ours_half_width": math.nan,
        "n": 0,
        "difference": math.nan if value is None else value - row["value"],
        "verdict": verdict,
        "source": row["source"],
    }


def side_by_side_table(data: pd.DataFrame) -> TextTable:
    """Settings of the paper, which are no results, are left out."""
    shown = data[data["artefact"] != "settings"]
    cells = pd.DataFrame([_text(row) for _, row in shown.iterrows()])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    words = ("Artefact", "Method", "W/A", "Protocol", "Metric", "Our metric", "On", "")
    places = [i for i in range(1, len(shown)) if shown["artefact"].iloc[i] != shown["artefact"].iloc[i - 1]]
    return TextTable(cells, marks, tuple(places), words=words)


def _text(row: pd.Series[Any]) -> dict[str, str]:
    digits = max(2, len(row["published_text"].partition(" ")[0].partition(".")[2]))
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
        "Our metric": row["our_metric"],
        "On": row["dataset"],
        "Difference": number(row["difference"], digits),
        "": row["verdict"],
    }
