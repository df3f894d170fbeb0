"""One layer's tokens under a grid of one's choice: the recorded histogram, the levels, and the error that they make."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.figures.distributions import STATES, Arrays
from analysis.gaussian_grids import lloyd_max, mid_rise, mid_tread, optimal_step
from analysis.render import TextTable, number

RECORDED = "recorded"  # the levels that the run's own quantizer had
GRIDS = (RECORDED, "mid_rise", "mid_tread", "lloyd_max")
BITS = (1, 2, 3, 4)
CAPTION = "The grid's mean squared error on these tokens, in units of their variance, and on a normal variable."
Levels = NDArray[np.float64]


def layers_of(arrays: Arrays) -> dict[str, tuple[str, int]]:
    """{`0.qkv`: (role, block)} in the recorded order."""
    return {
        f"{block}.{role}": (str(role), int(block)) for role, block in zip(arrays["role"], arrays["block"], strict=True)
    }


def timestep_bins(arrays: Arrays) -> dict[str, list[int]]:
    """{`all timesteps` or `t = 0 to 125`: places of its bins}."""
    edges, count = arrays["timestep_edges"], arrays["histogram"].shape[1]
    single = {f"t = {edges[place]:g} to {edges[place + 1]:g}": [place] for place in range(count)}
    return {"all timesteps": list(range(count)), **single}


def levels_of(grid: str, bits: int) -> Levels:
    """The grid's levels at the step of least squared error on N(0, 1), in standard deviations.

    Raises:
        ValueError: unknown grid.
    """
    if grid == "lloyd_max":
        return lloyd_max(2**bits)
    known = {"mid_rise": mid_rise, "mid_tread": mid_tread}
    if grid not in known:
        raise ValueError(f"unknown grid {grid!r}: allowed are {', '.join(GRIDS[1:])}")
    return known[grid](bits, optimal_step(grid, bits))


def with_grid(data: pd.DataFrame, states: tuple[str, ...], grid: str, bits: int) -> pd.DataFrame:
    """`layer_data` or `distributions_data` with the given states alone (`raw`, `rotated`), and the levels of a grid in
    place of the recorded ones unless these are asked for."""
    kept = data[data["state"].isin([*states, ""]) | (data["curve"] == "level")]
    if grid == RECORDED:
        return kept.reset_index(drop=True)
    levels = levels_of(grid, bits)
    own = pd.DataFrame({"role": data["role"].iloc[0], "state": "rotated", "curve": "level", "x": levels, "y": 0.0})
    return pd.concat([kept[kept["curve"] != "level"], own], ignore_index=True)


def grid_errors(data: pd.DataFrame) -> pd.DataFrame:
    """One row a state of `with_grid`: state, levels (how many), error (mean of (x - Q(x))^2 with Q the nearest level,
    in the tokens' variances, over the histogram's bins at their centres), sqnr_db, and normal_error: the same for
    N(0, 1) over those bins. Empty without levels."""
    levels = np.sort(data.loc[data["curve"] == "level", "x"].to_numpy(dtype=np.float64))
    rows = []
    for state, (name, _, _) in STATES.items():
        part = data[(data["curve"] == "histogram") & (data["state"] == state)]
        if len(part) and len(levels):
            x, density = (part[column].to_numpy(dtype=np.float64) for column in ("x", "y"))
            own, normal = _error(x, density, levels), _error(x, np.exp(-(x**2) / 2), levels)
            sqnr = -10 * math.log10(own) if own > 0 else math.inf
            values = {"error": own, "sqnr_db": sqnr, "normal_error": normal}
            rows.append({"state": name, "levels": len(levels), **values})
    return pd.DataFrame(rows, columns=["state", "levels", "error", "sqnr_db", "normal_error"])


def errors_table(data: pd.DataFrame) -> TextTable:
    """`grid_errors` as text."""
    rows = [
        {
            "Tokens": row["state"],
            "Levels": str(row["levels"]),
            "Error": number(row["error"], 4),
            "SQNR (dB)": number(row["sqnr_db"], 2),
            "On N(0, 1)": number(row["normal_error"], 4),
        }
        for _, row in data.iterrows()
    ]
    cells = pd.DataFrame(rows)
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    return TextTable(cells, marks, words=("Tokens",), caption=CAPTION)


def _error(x: NDArray[np.float64], density: NDArray[np.float64], levels: Levels) -> float:
    nearest = np.abs(x[:, None] - levels).argmin(axis=1)
    return float(((x - levels[nearest]) ** 2 * density).sum() / density.sum())
