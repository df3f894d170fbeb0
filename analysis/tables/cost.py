"""What networks cost, by their configurations: bit operations split by precision, and size (the paper's cost table).

No run is needed.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.render import NONE, TextTable, number
from robuq.config import MODEL_PRESETS, PrecisionMap, display_label
from robuq.cost import CLASSES, layer_costs, paper_gflops, summarise
from robuq.variants import variant

MODELS = ("DiT-XL/2", "fashion", "digits")  # presets, the paper's first
ROWS = (  # (variant, name, activation bits)
    ("full_precision", "Full precision", (32,)),
    ("bitnet_v2", "BitNet v2", (4, 3)),
    ("robuq_uniform", "Baseline, RobuQ", (4, 3, 2)),
)
UNITS = {"T": 1e12, "G": 1e9, "M": 1e6}  # of bit operations: the largest of which a network has one in full precision
DRAWN = "DiT-XL/2"  # the network of the paper's figure 2
CAPTION = (
    "Bit operations (BOPs) of one image and forward pass: multiply-accumulates times the bits of both operands, in "
    "the unit beside the network's name. They are split by precision: the block linears (W x A), attention's products "
    "(A x A), adaLN, the full-precision low-rank branch, and what stays in full precision (other). Size: packed "
    "weights. Fewer BOPs, smaller: than full precision, by what factor; theoretical, no hardware is asked. RobuQ with "
    "AMPN under a budget by MACs costs what one width of that mean costs. GFLOPs as drawn: in a convention chosen "
    "because it meets the paper's figure 2 at 4 bits. How the paper counts is unknown: its own numbers stand in the "
    "table of published ones."
)


def cost_data() -> pd.DataFrame:
    """One row a network and variant.

    Columns: model, variant, name, label, act_bits, `g_<class>` (10^9 MACs x bits x bits / 32^2, BOPs / 1024e9), bops,
    weight_bytes, compression, speed_up, `paper_<class>` and `paper_total` (see `robuq.cost.paper_gflops`).
    """
    return pd.DataFrame(
        [_row(model, name, shown, bits) for model in MODELS for name, shown, widths in ROWS for bits in widths]
    )


def _row(model: str, name: str, shown: str, bits: int) -> dict[str, Any]:
    precision: PrecisionMap = variant(name, min(bits, 8))
    costs = layer_costs(MODEL_PRESETS[model], precision)
    summary, paper = summarise(costs), paper_gflops(costs)
    return {
        "model": model,
        "variant": name,
        "name": shown,
        "label": display_label(precision),
        "act_bits": float(bits),
        **{f"g_{kind}": summary.gflops[kind] for kind in CLASSES},
        "bops": summary.bops,
        "weight_bytes": summary.weight_bytes,
        "compression": summary.compression,
        "speed_up": summary.speed_up,
        **{f"paper_{kind}": paper[kind] for kind in CLASSES},
        "paper_total": sum(paper.values()),
    }


def cost_table(data: pd.DataFrame) -> TextTable:
    rows = [_text(row) for _, row in data.iterrows()]
    cells = pd.DataFrame(rows)
    rules = tuple(i for i in range(1, len(data)) if data["model"].iloc[i] != data["model"].iloc[i - 1])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    return TextTable(cells, marks, rules, words=("Network", "Method", "W/A"), caption=CAPTION)


def _text(row: pd.Series[Any]) -> dict[str, str]:
    unit, size = unit_of(row)
    parts = {kind: significant(1024e9 * row[f"g_{kind}"] / size) for kind in CLASSES}
    return {
        "Network": f"{row['model']} ({unit})",
        "Method": row["name"],
        "W/A": row["label"],
        **parts,
        "BOPs": significant(row["bops"] / size),
        "Size (MB)": significant(row["weight_bytes"] / 1e6),
        "Fewer BOPs": number(row["speed_up"], 1),
        "Smaller": number(row["compression"], 1),
        "GFLOPs as drawn": number(row["paper_total"], 2) if row["model"] == DRAWN else NONE,
    }


def unit_of(row: pd.Series[Any]) -> tuple[str, float]:
    return next((name, size) for name, size in UNITS.items() if row["bops"] * row["speed_up"] >= size)


def significant(value: float) -> str:
    """Three digits that count, never an exponent: 0.00123, 12.3, 1234; a dash for zero, which means none of it."""
    if value == 0:
        return NONE
    exponent = int(f"{value:.2e}".partition("e")[2])
    return number(value, max(0, 2 - exponent))
