"""One look for every figure: the style file, a colour, marker and line style per variant, and reproducible files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib import style
from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("robuq.mplstyle")
COLUMN_WIDTH = 3.3  # inches, one column of a two-column page

# seaborn's variant of Okabe and Ito's palette, safe for the colour-blind, without its yellow, which is invisible on
# white, and its brown and pale pink; no two neighbours share a line style, so that lines stay apart in grey.
BLUE, ORANGE, GREEN, RED, PINK, _, _, _, _, SKY = sns.color_palette("colorblind").as_hex()
BLACK = "#000000"
DARK, GREY, LIGHT = "#505050", "#7F7F7F", "#B0B0B0"


@dataclass(frozen=True)
class Look:
    color: str
    marker: str
    linestyle: str | tuple[float, tuple[float, ...]]


DASH_DOT_DOT = (0.0, (5.0, 1.5, 1.0, 1.5, 1.0, 1.5))
DASH_DASH_DOT = (0.0, (5.0, 1.5, 5.0, 1.5, 1.0, 1.5))
LOOKS = {  # black and greys: activations in full precision
    "full_precision": Look(BLACK, "", "-"),
    "ternary_only": Look(GREY, "P", "--"),
    "ternary_rotation": Look(LIGHT, "X", ":"),
    "ternary_low_rank": Look(BLACK, "d", "--"),
    "ternary_low_rank_rotation": Look(DARK, "*", "-."),
    "bitnet_v2": Look(PINK, "<", "--"),
    "binarydm": Look(ORANGE, "o", ":"),
    "qdit": Look(SKY, "^", ":"),
    "lsq": Look(ORANGE, "v", "-"),
    "quest": Look(SKY, ">", "-"),
    "minmax": Look(ORANGE, "o", "--"),
    "minmax_low_rank": Look(PINK, "s", ":"),
    "minmax_rotation": Look(SKY, "^", "-."),
    "baseline": Look(BLUE, "D", DASH_DOT_DOT),
    "robust_no_rotation": Look(GREEN, "v", "--"),
    "robuq_uniform": Look(RED, "h", "-"),
    "robuq_to_4": Look(GREEN, "P", "-."),
    "robuq": Look(GREEN, "P", DASH_DASH_DOT),
    "uniform": Look(DARK, "s", "--"),
    "greedy": Look(GREEN, "v", ":"),
    "exact": Look(BLUE, "D", "-."),
    "paper": Look(ORANGE, "^", DASH_DOT_DOT),
    "search": Look(PINK, "*", "-"),
    "exact_longer": Look(SKY, ">", "--"),
}
OTHERS = tuple(look for name, look in LOOKS.items() if name != "full_precision")


def looks(variants: list[str]) -> dict[str, Look]:
    """A look for each variant: its own if it is a known one, else the next that is free."""
    taken = {LOOKS[name] for name in variants if name in LOOKS}
    free = [look for look in OTHERS if look not in taken] or list(OTHERS)
    others = [name for name in variants if name not in LOOKS]
    return {name: LOOKS[name] if name in LOOKS else free[others.index(name) % len(free)] for name in variants}


@contextmanager
def styled() -> Iterator[None]:
    """The project's style inside the block, on matplotlib's defaults rather than on the user's settings."""
    with mpl.rc_context(), style.context(["default", STYLE]):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """`name.pdf` and `name.png`, without dates: equal figures give equal bytes."""
    pdf, png = folder / f"{name}.pdf", folder / f"{name}.png"
    with styled():
        figure.savefig(pdf, metadata={"CreationDate": None})
        figure.savefig(png, metadata={"Software": None})
    return [pdf, png]
