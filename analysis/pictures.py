"""A figure as a page shows it: PNG bytes, the data behind it, and words for those who do not see it."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis.report_files import Built
from analysis.style import styled

DPI = 220  # twice the pixels that a column of 3.3 inches has on a page
PAD = 0.08  # inches of white around a figure, which a dark page needs
DRAWING = threading.RLock()  # the style is global to the process, and a page has a thread for each reader
LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


@dataclass(frozen=True)
class Picture:
    name: str  # of its files
    png: bytes
    data: pd.DataFrame
    caption: str  # Markdown without links
    text: str  # the alternative text


def draw(name: str, build: Callable[[], Built], text: str = "") -> Picture:
    """`text`: what the figure shows, in words; its caption if there is nothing better."""
    with DRAWING:
        figure, data, caption = build()
        png = png_of(figure)
    caption = LINK.sub(r"\1", caption)
    return Picture(name, png, data, caption, text or caption)


def png_of(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with styled():
        figure.savefig(
            stream,
            format="png",
            dpi=DPI,
            facecolor="white",
            bbox_inches="tight",
            pad_inches=PAD,
            metadata={"Software": None},
        )
    return stream.getvalue()
