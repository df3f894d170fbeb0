"""Drawn images as columns: one a method, one row an image index, the same noise and label along a row."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from analysis.figures.samples import Drawn, tile
from analysis.methods import bits_group, in_order, method_name
from analysis.tables.components import PAIRS

LEAST = 64  # pixels of one image, at the least


@dataclass(frozen=True)
class Column:
    """One run's images. `labels`: the classes along the images."""

    name: str
    key: str
    seed: int
    labels: tuple[int, ...]
    images: tuple[NDArray[np.uint8], ...]  # (H, W, C) each

    @property
    def text(self) -> str:
        """What the picture shows, in words."""
        classes = ", ".join(map(str, self.labels))
        return f"{len(self.images)} images drawn by {self.name} (run {self.key}, seed {self.seed}); classes {classes}"


def sampled_runs(parts: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """{name of the cell: its run with samples of the lowest seed, as a row of the runs} of `leaderboard.cells`: full
    precision first, then from many bits to few, the methods in their order."""
    named = pd.Series({place: name for name, part in parts.items() for place in part.index}, dtype="str")
    if named.empty:
        return {}
    runs = pd.concat(list(parts.values()))
    runs = runs.assign(cell=named)[runs["samples"].notna()]
    order = {name: place for place, name in enumerate(in_order(runs["variant"]))}
    runs = runs.assign(bits=runs["act_bits"].map(bits_group), place=runs["variant"].map(order))
    first = runs.sort_values(PAIRS, kind="stable").drop_duplicates("cell")
    first = first.sort_values(["bits", "place", "cell"], ascending=[False, True, True], na_position="first")
    rows: list[dict[Any, Any]] = first.to_dict("records")
    return {row["cell"]: row for row in rows}


def title_of(name: str, variant: str) -> str:
    """The cell's name with the method's in place of the variant's."""
    return method_name(variant) + name.removeprefix(variant)


def column_of(drawn: Drawn, title: str) -> Column:
    rows = drawn.rows
    labels = tuple(int(label) for label in rows["class_label"])
    return Column(title, drawn.key, int(rows["seed"].iloc[0]), labels, tuple(rows["pixels"]))


def column_png(column: Column) -> bytes:
    """One image below the other."""
    return _png([[image] for image in column.images])


def row_png(column: Column) -> bytes:
    """One image beside the other."""
    return _png([list(column.images)])


def difference_png(a: Column, b: Column) -> bytes:
    """|a - b| image by image: black where both agree."""
    pairs = zip(a.images, b.images, strict=True)
    return _png([[np.abs(x.astype(np.int16) - y.astype(np.int16)).astype(np.uint8) for x, y in pairs]])


def distance(a: Column, b: Column) -> float:
    """Root mean squared difference of the pixels, of 255."""
    pairs = zip(a.images, b.images, strict=True)
    return float(np.sqrt(np.mean([np.square(x.astype(float) - y.astype(float)).mean() for x, y in pairs])))


def _png(rows: list[list[NDArray[np.uint8]]]) -> bytes:
    """Whole multiples of the pixels, so that nothing is blurred; what is between images is transparent, for pages of
    any colour."""
    zoom = max(1, -(-LEAST // rows[0][0].shape[0]))
    between = tile([[np.zeros_like(image[..., :1]) for image in row] for row in rows], [])
    canvas = np.concatenate([tile(rows, []), 255 - between], axis=-1).repeat(zoom, axis=0).repeat(zoom, axis=1)
    stream = io.BytesIO()
    Image.fromarray(canvas).save(stream, format="PNG")
    return stream.getvalue()
