"""How fast a Hadamard rotation makes tokens normal as they become wider: the central limit theorem at work, and where
it does not hold.

Let x have n independent channels of variance 1 and excess kurtosis k, and y = x H / sqrt(n). Fourth cumulants of
independent variables add up, each weighted by (+-1 / sqrt(n))^4 = 1 / n^2, so that one rotated channel has

    over tokens      E[y^4] / E[y^2]^2 - 3 = k / n

A quantizer with a scale per token sees each token in units of its own root mean square, which the rotation keeps.
Averaged over random signs, E[sum y^4] = (3 (sum x^2)^2 - 2 sum x^4) / n, and with the token's own K = n sum x^4 /
(sum x^2)^2, which is near k + 3,

    within a token   n sum y^4 / (sum y^2)^2 - 3 = -2 K / n

A token that one channel dominates has K near n: it does not become normal at any width. To the first order in its
excess kurtosis kappa a symmetric density is kappa^2 / 48 nats away from the normal (Gram and Charlier's series).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import linalg, special

from analysis.style import BLACK, BLUE, COLUMN_WIDTH, GREEN, GREY, ORANGE, PINK, RED, SKY, styled

Values = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]  # of distributions.npz

WIDTHS = (16, 32, 64, 128, 256, 512, 1152, 2304, 4608)  # DiT-XL/2 has 1152 and 4608
VALUES = 1 << 20  # drawn for each source and width
KL_BINS = 64  # equally probable ones under the normal
TICKS = (16, 64, 256, 1152, 4608)
BLOCK = 64  # order of the largest factor of a rotation
DEGREES, SHARE, FACTOR = 9, 0.01, 10.0  # Student's t: its 8th moment, the variance of x^4, exists only above 8


def student(rng: np.random.Generator, tokens: int, width: int) -> Values:
    return rng.standard_t(DEGREES, (tokens, width))


def laplace(rng: np.random.Generator, tokens: int, width: int) -> Values:
    return rng.laplace(size=(tokens, width))


def contaminated(rng: np.random.Generator, tokens: int, width: int) -> Values:
    """Normal values, each with a chance of `SHARE` to be `FACTOR` times as large."""
    x = rng.standard_normal((tokens, width))
    x[rng.random((tokens, width)) < SHARE] *= FACTOR
    return x


def dominated(rng: np.random.Generator, tokens: int, width: int) -> Values:
    """Normal values, and one channel of random place and sign that holds half of the token's energy."""
    x = rng.standard_normal((tokens, width))
    place = rng.integers(width, size=(tokens, 1))
    np.put_along_axis(x, place, 0.0, 1)
    largest = np.sqrt(np.square(x).sum(1, keepdims=True)) * rng.choice([-1.0, 1.0], (tokens, 1))
    np.put_along_axis(x, place, largest, 1)
    return x


SOURCES: dict[str, Callable[[np.random.Generator, int, int], Values]] = {
    "student": student,
    "laplace": laplace,
    "contaminated": contaminated,
    "dominated": dominated,
}
# Excess kurtosis: 6 / (nu - 4); 3; 3 E[s^4] / E[s^2]^2 - 3 of a normal with random deviation s. The channels of
# `dominated` are not independent.
KURTOSIS = {
    "student": 6 / (DEGREES - 4),
    "laplace": 3.0,
    "contaminated": 3 * (1 - SHARE + SHARE * FACTOR**4) / (1 - SHARE + SHARE * FACTOR**2) ** 2 - 3,
}
NAMES = {
    "student": f"Student t, {DEGREES} d.o.f.",
    "laplace": "Laplace",
    "contaminated": f"normal, {100 * SHARE:g} % of values × {FACTOR:g}",
    "dominated": "one channel has half the energy",
}
LOOKS = {"student": (BLUE, "o"), "laplace": (ORANGE, "s"), "contaminated": (GREEN, "^"), "dominated": (PINK, "D")}
ROLES = {"qkv": (BLACK, "x"), "proj": (RED, "+"), "fc1": (SKY, "o"), "fc2": (GREY, "^")}  # no colour of `LOOKS`


def rotated(x: Values) -> Values:
    """(T, n) -> x H / sqrt(n), n = 12^i 2^k. Without random signs, which change nothing for symmetric channels.

    H is a Kronecker product. Each factor is applied to the first axis of the rest, which then becomes the last: after
    all factors every axis is where it was.

    Raises:
        ValueError: a width that is no product of 12s and a power of two.
    """
    tokens, width = x.shape
    for factor in hadamard_factors(width):
        x = (x.reshape(tokens, len(factor), -1).swapaxes(1, 2) @ factor).reshape(tokens, width)
    y: Values = x / np.sqrt(width)
    return y


def hadamard_factors(width: int) -> list[Values]:
    """Matrices of which the Kronecker product is a Hadamard matrix: of order 12 (Paley), then Sylvester's."""
    rest, factors = width, []
    while rest % 12 == 0 and rest:
        factors.append(_paley_12())
        rest //= 12
    if width < 1 or rest & (rest - 1):
        raise ValueError(f"no rotation of width {width}: need 12**i * 2**k")
    while rest > 1:
        factors.append(linalg.hadamard(min(rest, BLOCK), dtype=np.float64))
        rest //= len(factors[-1])
    return factors


def _paley_12() -> Values:
    """I + [[0, 1], [-1, chi(i - j)]] with the quadratic residues of 11."""
    chi = np.full(11, -1.0)
    chi[[i * i % 11 for i in range(1, 11)]] = 1.0
    chi[0] = 0.0
    matrix = np.eye(12)
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = -1.0
    matrix[1:, 1:] += linalg.toeplitz(chi, chi[-np.arange(11)])
    return matrix


def convergence_data(rng: np.random.Generator, widths: Sequence[int] = WIDTHS, values: int = VALUES) -> pd.DataFrame:
    """Drawn tokens, rotated. One row per `measure`, `source` and `width`.

    Columns: `tokens` (how many), `measured`, its standard `error` over tokens, and `expected`. measure "over tokens":
    excess kurtosis of all values in one unit, expected k / n. "within a token": mean excess kurtosis of tokens in
    their own unit, expected -2 K / n of the tokens as drawn. "kl": nats between the values of "within a token" and
    the normal, as binned, expected kappa^2 / 48 and what as many normal values would show (no error: NaN).
    """
    rows = []
    for source, draw in SOURCES.items():
        for width in widths:
            tokens = max(2, values // width)
            x = draw(rng, tokens, width)
            rows += [{"source": source, "width": width, "tokens": tokens, **row} for row in _measures(source, x)]
    return pd.DataFrame(rows)[["measure", "source", "width", "tokens", "measured", "error", "expected"]]


def _measures(source: str, x: Values) -> list[dict[str, Any]]:
    width, y = x.shape[1], rotated(x)
    before = np.mean(x**4, 1) / np.mean(x**2, 1) ** 2
    second, fourth = np.mean(y**2, 1), np.mean(y**4, 1)
    own, expected = fourth / second**2, float(-2 * before.mean() / width)
    z = y / np.sqrt(second)[:, None]
    within = {"measured": own.mean() - 3, "error": _standard_error(own), "expected": expected}
    kl = {"measured": kl_to_normal(z), "error": np.nan, "expected": expected**2 / 48 + kl_floor(z.size)}
    rows = [{"measure": "within a token", **within}, {"measure": "kl", **kl}]
    if source in KURTOSIS:
        ratio = fourth.mean() / second.mean() ** 2
        # the ratio's first-order influence of one token (delta method)
        influence = fourth / second.mean() ** 2 - 2 * ratio * second / second.mean()
        over = {"measured": ratio - 3, "error": _standard_error(influence), "expected": KURTOSIS[source] / width}
        rows.append({"measure": "over tokens", **over})
    return rows


def _standard_error(values: Values) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def kl_to_normal(z: Values) -> float:
    """Nats from a histogram of Phi(z) with equally probable bins, for values of mean 0 and variance 1."""
    counts = np.histogram(special.ndtr(z), KL_BINS, (0, 1))[0]
    p = counts / z.size
    return float(special.xlogy(p, p * KL_BINS).sum())


def kl_floor(values: int) -> float:
    """What a normal sample shows on average (Miller and Madow)."""
    return (KL_BINS - 1) / (2 * values)


def network_data(arrays: Arrays) -> pd.DataFrame:
    """A trained network's tokens: one row a layer and bin of timesteps.

    Columns `role`, `block`, `bin`, `width`, `tokens`, `measured` (excess kurtosis within a rotated token, around its
    mean), `expected` (-2 K / n, before the layer's signs were drawn), `kl` and `kl_floor`.
    """
    layers, bins = np.indices(arrays["expected_kurtosis"].shape).reshape(2, -1)
    return pd.DataFrame(
        {
            "role": arrays["role"][layers],
            "block": arrays["block"][layers],
            "bin": bins,
            "width": arrays["width"][layers, bins],
            "tokens": arrays["num_tokens"][layers, bins, 1],
            "measured": arrays["kurtosis"][layers, bins, 1],
            "expected": arrays["expected_kurtosis"][layers, bins],
            "kl": arrays["kl"][layers, bins, 1],
            "kl_floor": arrays["kl_floor"][layers, bins, 1],
        }
    )


# --- drawing ------------------------------------------------------------------------------------------------------


def plot_rate(data: pd.DataFrame, measure: str, ax: Axes) -> None:
    """Measured values with 95 % intervals on the expected lines; both logarithmic, a kurtosis without its sign. Not
    drawn: what is expected to be too small to be told from 0."""
    for source, (color, marker) in LOOKS.items():
        part = data[(data["measure"] == measure) & (data["source"] == source)]
        if not len(part):
            continue
        sign = np.sign(part["expected"].iloc[0])
        ax.plot(part["width"], sign * part["expected"], color=color, lw=0.9)
        look = {"color": color, "marker": marker, "ms": 3, "ls": "", "elinewidth": 0.8}
        interval = 1.96 * part["error"].fillna(0)
        seen = (sign * part["expected"] > interval) & (sign * part["measured"] > 0)
        ax.errorbar(part["width"][seen], sign * part["measured"][seen], interval[seen], label=NAMES[source], **look)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(TICKS, [str(tick) for tick in TICKS], fontsize=6)
    ax.minorticks_off()
    ax.set_xlabel("token width n")


def plot_network(data: pd.DataFrame, ax: Axes) -> None:
    """Each layer and bin of timesteps: measured over expected."""
    low = min(data["measured"].min(), data["expected"].min())
    ax.plot([low, 0], [low, 0], color=BLACK, lw=0.9, ls="--")
    ax.axhline(0, color=GREY, lw=0.7, ls=":")
    for role, (color, marker) in ROLES.items():
        own = data[data["role"] == role]
        if len(own):
            look: dict[str, Any] = {"marker": marker, "ms": 2.6, "mew": 0.6, "color": color, "mfc": "none"}
            ax.plot(own["expected"], own["measured"], ls="", label=role, **look)
    ax.set_xlabel("expected $-2K/n$")
    ax.set_ylabel("excess kurtosis")


def convergence_figure(data: pd.DataFrame, network: pd.DataFrame | None = None) -> Figure:
    """Rates of drawn tokens; with `network_data` also a trained network's layers, beside the expectation."""
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 3.75))
        (over, within), (kl, trained) = figure.subplots(2, 2)
        plot_rate(data, "over tokens", over)
        over.set_title("over tokens: $k/n$", loc="left")
        over.set_ylabel("excess kurtosis")
        plot_rate(data, "within a token", within)
        within.set_title("within a token: $-2K/n$", loc="left")
        within.set_ylabel("− excess kurtosis")
        plot_rate(data, "kl", kl)
        kl.set_title("within a token", loc="left")
        kl.set_ylabel("KL to the normal (nats)")
        trained.set_visible(network is not None)
        if network is not None:
            plot_network(network, trained)
            trained.set_title("trained network", loc="left")
            trained.legend(loc="upper left", fontsize=6, handletextpad=0.1, borderpad=0, labelspacing=0.2)
        handles, labels = within.get_legend_handles_labels()
        handles.append(Line2D([], [], color=BLACK, lw=0.9))
        look = {"columnspacing": 0.8, "handlelength": 1.4}
        figure.legend(handles, [*labels, "expected"], loc="outside lower center", ncols=2, **look)
    return figure
