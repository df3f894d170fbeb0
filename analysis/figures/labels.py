"""Labels beside points: each where it touches no line, no error bar, no point and no other label, if there is room."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis.style import BLACK, GREY

Points = NDArray[np.float64]  # (n, 2)
SIZE = 6  # of the text
WIDTH, HEIGHT = 7.0, 5.0  # points, of two characters of that size
GAP = 1.5  # points, around a label
MARK = 1.5  # points, that a marker or a cap reaches beyond its place
STEP = 3.0  # points, between distances that are tried
REACH = 12  # of these
DIRECTIONS = 16
APART = 0.5  # points, of the samples along a line
HIT, OUTSIDE, AWAY = 1.0, 50.0, 0.06  # costs: a sample or label touched, out of the panel, a point of distance
LEADER = 6.0  # points away from which a line leads to what is labelled


@dataclass(frozen=True)
class Label:
    """`text` for points at `anchors`, (n, 2), with error bars from `low` to `high`, (n,); all in the data's units."""

    text: str
    anchors: Points
    low: Points
    high: Points
    color: str = BLACK

    @property
    def bars(self) -> list[Points]:
        return [
            np.array([[x, low], [x, high]]) for (x, _), low, high in zip(self.anchors, self.low, self.high, strict=True)
        ]


def place_labels(ax: Axes, labels: Sequence[Label], lines: Sequence[Points]) -> None:
    """Draw `labels` into `ax`, whose place and limits must be final. `lines`: what they should not touch, besides their
    own and each other's bars; each (n, 2), in data's units."""
    scale = 72 / ax.figure.get_dpi()
    bars = [bar for label in labels for bar in label.bars]
    taken = np.concatenate([_samples(ax.transData.transform(line) * scale) for line in (*lines, *bars)])
    panel = np.array(ax.get_window_extent().extents) * scale
    for label in labels:
        own = np.concatenate([ax.transData.transform(bar) * scale for bar in label.bars])
        own = np.concatenate([own - MARK, own + MARK])
        centre = min(_candidates(own), key=lambda place: _cost(place, own, taken, panel))
        taken = np.concatenate([taken, _filled(centre)])
        _draw(ax, label, centre / scale, own / scale, _distance(centre, own) > LEADER)


def _samples(line: Points) -> Points:
    """Points along a line, so close that no label fits between two; of one point that point."""
    parts = [line] + [
        np.linspace(start, end, 2 + int(math.dist(start, end) / APART)) for start, end in itertools.pairwise(line)
    ]
    return np.concatenate(parts)


def _candidates(own: Points) -> Iterator[Points]:
    """Centres around all of `own`, from near to far."""
    middle, reach = (own.min(0) + own.max(0)) / 2, (own.max(0) - own.min(0)) / 2
    for distance in range(REACH):
        around = reach + (WIDTH / 2 + GAP, HEIGHT / 2 + GAP) + distance * STEP
        for direction in _directions():
            yield middle + direction * around


def _directions() -> list[Points]:
    """From the centre of a square to its edge; below and above first, which win where all is free."""
    angles = np.arange(DIRECTIONS) * 2 * math.pi / DIRECTIONS
    rays = [np.array([math.cos(angle), math.sin(angle)]) for angle in angles]
    return sorted((ray / np.abs(ray).max() for ray in rays), key=lambda ray: (round(abs(float(ray[0])), 9), ray[1]))


def _cost(centre: Points, own: Points, taken: Points, panel: Points) -> float:
    half = np.array([WIDTH / 2, HEIGHT / 2]) + GAP / 2
    touched = int((np.abs(taken - centre) < half).all(1).sum())
    outside = (centre - half < panel[:2]).any() or (centre + half > panel[2:]).any()
    return HIT * touched + OUTSIDE * outside + AWAY * _distance(centre, own)


def _distance(centre: Points, own: Points) -> float:
    """Points of white between a label and what it labels."""
    gaps = np.maximum(np.maximum(own.min(0) - centre, centre - own.max(0)), 0)
    return math.hypot(*np.maximum(gaps - (WIDTH / 2, HEIGHT / 2), 0))


def _filled(centre: Points) -> Points:
    """A label's own place, as samples that others touch."""
    x, y = np.meshgrid(np.linspace(-WIDTH / 2, WIDTH / 2, 8), np.linspace(-HEIGHT / 2, HEIGHT / 2, 6))
    return centre + np.column_stack([x.ravel(), y.ravel()])


def _draw(ax: Axes, label: Label, centre: Points, own: Points, leader: bool) -> None:
    """`centre`, `own`: in pixels."""
    back = ax.transData.inverted()
    if leader:
        nearest = np.clip(centre, own.min(0), own.max(0))
        half = np.array([WIDTH, HEIGHT]) / 2 * ax.figure.get_dpi() / 72
        ends = back.transform(np.array([nearest, np.clip(nearest, centre - half, centre + half)]))
        ax.plot(ends[:, 0], ends[:, 1], color=GREY, lw=0.4, zorder=0, scalex=False, scaley=False)
    x, y = back.transform(centre)
    text = ax.text(x, y, label.text, fontsize=SIZE, ha="center", va="center_baseline", color=label.color)
    text.set_in_layout(False)
