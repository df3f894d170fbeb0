"""Drawn images as columns: one a method, one row an image index, the same noise and label along a row."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from analysis.figures.samples import tile
from analysis.methods import method_name

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


def columns_of(data: pd.DataFrame) -> dict[str, Column]:
    """{name: column} of `figures.samples.samples_data`, in its order."""
    columns = {}
    for key, part in data.groupby("key", sort=False):
        first = part.iloc[0]
        name = f"{method_name(first['variant'])} {first['label']}"
        labels = tuple(int(label) for label in part["class_label"])
        columns[name] = Column(name, str(key), int(first["seed"]), labels, tuple(part["pixels"]))
    return columns


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
