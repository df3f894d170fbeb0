"""The sample grid: every row one variant, every column one label and one noise, the same for all rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.load import finished
from analysis.methods import bits_group, in_order, short_name
from analysis.style import COLUMN_WIDTH, styled

COLUMNS = 10  # images a row
NAME_WIDTH, LETTER = 18, 0.062  # characters that a row's name has room for, and inches that each more takes
PIXELS_IN_CSV = 4096  # images with more values than this are named by index, their pixels stay in samples.npz


@dataclass(frozen=True)
class Drawn:
    """What one run drew. `labels`: of all its images, by which runs that drew alike are known; `rows`: its shown
    images, as `samples_data` has them."""

    key: str
    labels: NDArray[np.int64]
    rows: pd.DataFrame


def samples_data(runs: pd.DataFrame, open_file: Callable[[str], Path]) -> pd.DataFrame:
    """One row per shown image: `bits`, `variant`, `label`, `key` and `seed` of the run, `index` and `class_label` of
    the image, and the image `pixels` (H, W, C) uint8.

    Of each variant and width the run with the lowest seed is shown. Image i of every run starts from the same noise;
    the first image of each class is shown, the classes in order, at most ten, or the first ten images of one class.

    Raises:
        ValueError: two runs drew the same image index with other labels.
    """
    return side_by_side([drawn(run, open_file) for run in _shown_runs(runs)])


def drawn(run: Mapping[Any, Any], open_file: Callable[[str], Path]) -> Drawn:
    """`run`: a row of the runs, with samples."""
    with np.load(open_file(str(run["samples"])), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    own = {"bits": bits_group(run["act_bits"]), **{name: run[name] for name in ("variant", "label", "key", "seed")}}
    shown = _first_of_each_class(labels)
    rows = [{**own, "index": i, "class_label": int(labels[i]), "pixels": images[i]} for i in shown]
    return Drawn(str(run["key"]), labels, pd.DataFrame(rows))


def side_by_side(parts: Sequence[Drawn]) -> pd.DataFrame:
    """The rows of all.

    Raises:
        ValueError: two drew the same image index with other labels.
    """
    for part in parts:
        if not np.array_equal(part.labels, parts[0].labels):
            raise ValueError(f"run {part.key} drew other labels than the rows above it: sample them all alike")
    return pd.concat([part.rows for part in parts], ignore_index=True) if parts else pd.DataFrame()


def samples_csv(data: pd.DataFrame) -> pd.DataFrame:
    """The data with pixels as hexadecimal text, row by row; empty for large images."""
    text = [pixels.tobytes().hex() if pixels.size <= PIXELS_IN_CSV else "" for pixels in data["pixels"]]
    shapes = [" ".join(str(n) for n in pixels.shape) for pixels in data["pixels"]]
    return data.drop(columns="pixels").assign(shape=shapes, pixels=text)


def plot_samples(data: pd.DataFrame, ax: Axes) -> None:
    """All images in one axes: one row per run, named at the left by its `name` if the data has that column, else by its
    variant and width; the label above each column."""
    groups = list(data.groupby("key", sort=False))
    bits = [part["bits"].fillna(0).iloc[0] for _, part in groups]
    breaks = [i for i in range(1, len(bits)) if bits[i] != bits[i - 1]]
    canvas = tile([[np.asarray(pixels) for pixels in part["pixels"]] for _, part in groups], breaks)
    ax.imshow(canvas[..., 0] if canvas.shape[-1] == 1 else canvas, cmap="gray", vmin=0, vmax=255, aspect="equal")
    height, width = groups[0][1]["pixels"].iloc[0].shape[:2]
    tops = row_tops(len(groups), height, breaks)
    ax.set_yticks([top + height / 2 for top in tops[:-1]], [_row_name(part) for _, part in groups])
    classes = [str(label) for label in groups[0][1]["class_label"]]
    ax.set_xticks([(width + 1) * i + width / 2 for i in range(len(classes))], classes)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xlabel("class label (one noise per column)")
    ax.xaxis.set_label_position("top")
    for spine in ax.spines.values():
        spine.set_visible(False)


def row_tops(count: int, height: int, breaks: list[int]) -> list[int]:
    """Pixel rows at which the rows of images begin, and where one more would; a wider gap before each of `breaks`."""
    gaps = [1 + (height // 3 if i in breaks else 0) for i in range(1, count + 1)]
    return [0, *(int(top) for top in np.cumsum([height + gap for gap in gaps]))]


def tile(rows: list[list[NDArray[np.uint8]]], breaks: list[int]) -> NDArray[np.uint8]:
    """Rows of K images (H, W, C) -> (height, K (W + 1) - 1, C), white lines between."""
    height, width, channels = rows[0][0].shape
    tops = row_tops(len(rows), height, breaks)
    canvas = np.full((tops[-1] - 1, len(rows[0]) * (width + 1) - 1, channels), 255, dtype=np.uint8)
    for top, row in zip(tops, rows, strict=False):
        for j, image in enumerate(row):
            canvas[top : top + height, j * (width + 1) : j * (width + 1) + width] = image
    return canvas


def samples_figure(data: pd.DataFrame) -> Figure:
    """As `plot_samples`; wider than a column of the paper where names are long."""
    height, width = data["pixels"].iloc[0].shape[:2]
    count = data["key"].nunique()
    columns = len(data) // count
    cell = 2.0 / columns  # inches; the rest of the column is for the rows' names
    longest = max(map(len, data["name"])) if "name" in data else 0
    more = LETTER * max(longest - NAME_WIDTH, 0)
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH + more, 0.45 + count * cell * height / width))
        ax = figure.subplots()
        plot_samples(data, ax)
    return figure


def _shown_runs(runs: pd.DataFrame) -> list[dict[Hashable, Any]]:
    runs = finished(runs)
    runs = runs[runs["samples"].notna()].assign(bits=lambda rows: rows["act_bits"].map(bits_group))
    order = {name: place for place, name in enumerate(in_order(runs["variant"]))}
    runs = runs.assign(place=lambda rows: rows["variant"].map(order))
    runs = runs.sort_values(["bits", "place", "seed", "pretrain_seed", "lr"], ascending=[False, True, True, True, True])
    runs = pd.concat([runs[runs["bits"].isna()], runs[runs["bits"].notna()]])
    return runs.drop_duplicates(["bits", "variant"]).to_dict("records")


def _first_of_each_class(labels: NDArray[np.int64]) -> list[int]:
    classes, first = np.unique(labels, return_index=True)
    return [int(i) for i in (first if len(classes) > 1 else np.arange(len(labels)))[:COLUMNS]]


def _row_name(part: pd.DataFrame) -> str:
    if "name" in part:
        return str(part["name"].iloc[0])
    bits = part["bits"].iloc[0]
    name = short_name(str(part["variant"].iloc[0]))
    return name if np.isnan(bits) else f"{name}, A{bits:g}"
