"""Figures of distributions.npz and of the central limit theorem's rate, against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import stats
from shape_arrays import BINS, BLOCKS, EDGES, ROLES, Arrays, shape_arrays

from analysis.figures import convergence
from analysis.figures.convergence import (
    KURTOSIS,
    SOURCES,
    convergence_data,
    convergence_figure,
    hadamard_factors,
    kl_floor,
    kl_to_normal,
    network_data,
    rotated,
)
from analysis.figures.distributions import by_role_data, by_timestep_data, layer_data, panels_figure
from analysis.figures.normality import (
    depth_data,
    depth_figure,
    kurtosis_map_figure,
    normality_data,
    symmetric_ticks,
    token_spread_figure,
    tokens_a_cell,
)
from analysis.figures.weights import weights_data, weights_figure
from robuq import telemetry


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return shape_arrays()


# --- histograms of any layer at any timestep ----------------------------------------------------------------------


def test_densities_are_those_of_what_was_drawn(arrays: Arrays) -> None:
    """A bin of probability p from n values: standard error sqrt(p (1 - p) / n), over its width w."""
    data = layer_data(arrays, "fc1", 1, [0])
    for state, law in (("raw", stats.laplace(scale=math.sqrt(0.5))), ("rotated", stats.norm())):
        part = data[(data["curve"] == "histogram") & (data["state"] == state)]
        w, p = np.diff(EDGES), np.diff(law.cdf(EDGES))
        assert (part["y"].to_numpy() * w).sum() == pytest.approx(1)
        assert (np.abs(part["y"] * w - p) <= 5 * np.sqrt(p / 20_000) + 2 / 20_000).all()


def test_quantiles_of_a_histogram_are_within_a_bin_of_the_values() -> None:
    values = np.random.default_rng(1).standard_t(4, 5000)
    counts = np.histogram(values, EDGES)[0]
    arrays = {
        "role": np.array(["qkv"]),
        "block": np.array([0]),
        "edges": EDGES,
        "histogram": np.stack([counts, counts])[None, None],
        "levels": np.full((1, 1, 16), np.nan),
    }
    data = layer_data(arrays, "qkv", 0, [0])
    qq = data[(data["curve"] == "qq") & (data["state"] == "raw")]
    exact = np.quantile(values, stats.norm.cdf(qq["x"]), method="hazen")
    bins = np.diff(EDGES)[np.searchsorted(EDGES, exact) - 1]
    dense = (qq["x"].abs() < 3).to_numpy()  # six values lie beyond: between them a quantile may be anywhere
    assert (np.abs(qq["y"] - exact) <= bins)[dense].all()
    assert qq["y"].min() >= EDGES[values.min() > EDGES].max()
    assert qq["y"].max() <= EDGES[values.max() < EDGES].min()
    assert not (data["curve"] == "level").any()


def test_bins_of_timesteps_are_taken_together(arrays: Arrays) -> None:
    mixed = {**arrays, "histogram": arrays["histogram"].copy(), "levels": arrays["levels"].copy()}
    mixed["histogram"][:, 1] = 0
    mixed["histogram"][:, 1, :, 64] = 20_000  # a bin of timesteps whose tokens all have one value
    mixed["levels"][:, 1] *= 3
    alone, both = (layer_data(mixed, "qkv", 0, bins) for bins in ([0], [0, 1]))
    pick = (alone["curve"] == "histogram") & (alone["state"] == "rotated")
    expected = alone["y"][pick].to_numpy() / 2
    expected[64] += 0.5 / np.diff(EDGES)[64]
    assert both["y"][pick].to_numpy() == pytest.approx(expected)
    assert both.loc[both["curve"] == "level", "x"].to_list() == [-3, -1, 1, 3]


def test_an_unknown_layer_names_the_known_ones(arrays: Arrays) -> None:
    with pytest.raises(ValueError, match="no 'fc3' in block 0: there are fc1, fc2, proj, qkv in 0-2"):
        layer_data(arrays, "fc3", 0, [0])
    with pytest.raises(ValueError, match="in block 3"):
        layer_data(arrays, "fc2", 3, [0])


def test_panels(arrays: Arrays) -> None:
    roles, times = by_role_data(arrays, 1), by_timestep_data(arrays, "fc2", 1)
    assert list(dict.fromkeys(roles["panel"])) == list(ROLES)
    assert list(dict.fromkeys(times["panel"])) == ["t = 0 to 250", "t = 500 to 750", "t = 750 to 1000"]
    figure = panels_figure(times, "fc2")
    assert len(figure.axes) == 6
    assert len(figure.axes[0].lines) == 2 + 4  # normal density, tokens after rotation, levels


# --- normality ----------------------------------------------------------------------------------------------------


def test_each_cell_keeps_its_place(arrays: Arrays) -> None:
    data = normality_data(arrays)
    assert len(data) == len(ROLES) * BLOCKS * BINS * 2
    row = data[(data["role"] == "proj") & (data["block"] == 2) & (data["bin"] == 3) & (data["state"] == "rotated")]
    assert len(row) == 1
    assert row["kurtosis"].item() == arrays["kurtosis"][9, 3, 1]
    assert row[["kurtosis_10", "kurtosis_50", "kurtosis_90"]].to_numpy()[0] == pytest.approx(
        arrays["token_kurtosis"][9, 3, 1]
    )
    assert row[["first_timestep", "end_timestep", "width", "tokens"]].to_numpy().tolist() == [[750, 1000, 64, 300]]
    assert tokens_a_cell(data) == "300 tokens"


def test_the_map_shows_blocks_by_timesteps_around_zero(arrays: Arrays) -> None:
    figure = kurtosis_map_figure(normality_data(arrays))
    panels = [ax for ax in figure.axes if ax.images]
    shown = panels[3].images[0]  # second row, second column
    np.testing.assert_array_equal(shown.get_array(), arrays["kurtosis"][1::4, :, 1])
    assert shown.norm.vmin == -shown.norm.vmax == -np.abs(arrays["kurtosis"]).max()
    assert shown.norm(0.0) == pytest.approx(0.5)
    dots = [len(ax.lines[0].get_xdata()) for ax in panels]
    assert sum(dots) == (arrays["kurtosis"] < -0.05).sum()


def test_the_map_of_normal_tokens_has_a_scale() -> None:
    one = {
        "role": np.array(["qkv"]),
        "block": np.array([0]),
        "width": np.array([[16]]),
        "timestep_edges": np.array([0, 10]),
        "kurtosis": np.zeros((1, 1, 2)),
        "kl": np.zeros((1, 1, 2)),
        "kl_floor": np.zeros((1, 1, 2)),
        "num_tokens": np.ones((1, 1, 2), int),
        "token_kurtosis": np.zeros((1, 1, 2, 3)),
    }
    assert len(kurtosis_map_figure(normality_data(one)).axes) == 3


def test_ticks_are_symmetric() -> None:
    assert symmetric_ticks(12) == [-10, -3, -1, 0, 1, 3, 10]
    assert symmetric_ticks(1) == [-1, 0, 1]


def test_depth_is_a_mean_over_timesteps_with_its_range(arrays: Arrays) -> None:
    data = depth_data(normality_data(arrays)).set_index(["role", "block", "state"])
    row, cells = data.loc[("fc2", 1, "raw")], arrays["kl"][7, :, 0]
    assert row[["kl", "low", "high"]].to_list() == pytest.approx([cells.mean(), cells.min(), cells.max()])
    assert row["bins"] == BINS
    figure = depth_figure(data.reset_index())
    assert [ax.get_title("left") for ax in figure.axes] == list(ROLES)


def test_token_spread_shows_one_block(arrays: Arrays) -> None:
    ax = token_spread_figure(normality_data(arrays), 2).axes[0]
    assert ax.lines[1].get_ydata() == pytest.approx(arrays["token_kurtosis"][8, :, 0, 1])
    assert ax.lines[1].get_xdata().tolist() == [125, 375, 625, 875]
    assert 0 in ax.get_yticks()
    assert len(ax.get_yticks(minor=True)) == 0  # every tick has a number


# --- weights ------------------------------------------------------------------------------------------------------


def test_weights_of_a_role_are_one_density(arrays: Arrays) -> None:
    data = weights_data(arrays)
    own = data[data["role"] == "fc1"].set_index("curve")
    assert own.loc["histogram", "y"].sum() / 8 == pytest.approx(1)  # bins of 1/8
    assert own.loc["count", "y"] == 90_000
    assert own.loc["level", "y"].to_list() == pytest.approx(arrays["weight_codes"][0].tolist())
    assert own.loc["level", "x"].iloc[2] == pytest.approx(arrays["weight_level"][0])
    tau = math.sqrt(2 / math.pi) / 2  # deviations of a normal weight
    assert own.loc["normal", "y"].max() == pytest.approx(stats.norm.pdf(0) * tau, rel=0.02)
    assert own.loc["branch", "y"] == pytest.approx(0.05)


def test_layers_count_by_their_weights(arrays: Arrays) -> None:
    uneven = {**arrays, "num_weights": arrays["num_weights"].copy(), "weight_codes": arrays["weight_codes"].copy()}
    uneven["num_weights"][:4] *= 2
    uneven["weight_codes"][:4] = [0.5, 0.0, 0.5]
    level = weights_data(uneven).query("role == 'qkv' and curve == 'level'")
    zero = (2 * 0.0 + 2 * arrays["weight_codes"][0, 1]) / 4
    assert level["y"].iloc[1] == pytest.approx(zero)


def test_roles_without_ternary_weights_are_left_out(arrays: Arrays) -> None:
    some = {**arrays, "num_weights": np.where(arrays["role"] == "qkv", 0, arrays["num_weights"])}
    assert list(dict.fromkeys(weights_data(some)["role"])) == ["proj", "fc1", "fc2"]
    none = weights_data({**arrays, "num_weights": np.zeros_like(arrays["num_weights"])})
    assert none.empty
    with pytest.raises(ValueError, match="no layer has ternary weights"):
        weights_figure(none)


def test_the_panels_say_n_and_the_shares(arrays: Arrays) -> None:
    figure = weights_figure(weights_data(arrays))
    assert figure.axes[0].get_title("left") == "qkv, n = 90,000"
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{share:.0%}" for share in arrays["weight_codes"][0]]


# --- convergence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 64, 128, 512])
def test_rotation_is_scipys(width: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, width))
    # sums of `width` products in another order
    assert rotated(x) == pytest.approx(x @ scipy.linalg.hadamard(width) / math.sqrt(width), abs=1e-13 * width)


@pytest.mark.parametrize("width", [12, 48, 144, 1152])
def test_other_widths_have_hadamard_matrices_too(width: int) -> None:
    matrix = rotated(np.eye(width)) * math.sqrt(width)
    assert np.abs(np.abs(matrix) - 1).max() < 1e-12
    assert np.abs(matrix @ matrix.T - width * np.eye(width)).max() < 1e-9
    assert math.prod(len(factor) for factor in hadamard_factors(width)) == width


@pytest.mark.parametrize("width", [0, 6, 20, 100])
def test_a_width_without_one_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"no rotation of width {width}: need 12\*\*i \* 2\*\*k"):
        hadamard_factors(width)


def test_excess_kurtosis_of_the_sources() -> None:
    assert KURTOSIS["student"] == pytest.approx(float(stats.t(convergence.DEGREES).stats(moments="k")))
    assert KURTOSIS["laplace"] == pytest.approx(float(stats.laplace.stats(moments="k")))
    parts = ((1 - convergence.SHARE, 1.0), (convergence.SHARE, convergence.FACTOR))
    second, fourth = (sum(p * stats.norm(scale=s).moment(order) for p, s in parts) for order in (2, 4))
    assert KURTOSIS["contaminated"] == pytest.approx(float(fourth / second**2 - 3))


def test_half_of_the_energy_lies_in_one_channel() -> None:
    x = SOURCES["dominated"](np.random.default_rng(0), 50, 64)
    energy = np.square(x)
    assert energy.max(1) / energy.sum(1) == pytest.approx(0.5)
    assert len(set(energy.argmax(1))) > 20


def test_rates_are_the_theorems() -> None:
    """Measured within four standard errors of k / n and of -2 K / n, in each of the 33 cells."""
    data = convergence_data(np.random.default_rng(5), (16, 64, 144, 256), 1 << 17)
    rates = data[data["measure"] != "kl"]
    assert len(rates) == 4 * (3 + 4)
    assert (np.abs(rates["measured"] - rates["expected"]) < 4 * rates["error"]).all()
    over = rates[(rates["measure"] == "over tokens") & (rates["source"] == "laplace")]
    assert over["expected"].to_list() == pytest.approx([3 / 16, 3 / 64, 3 / 144, 3 / 256])
    dominated = rates[rates["source"] == "dominated"]
    assert (dominated["measured"] < -0.48).all()  # at every width


def test_equal_generators_give_equal_data_and_the_global_one_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first, second = (convergence_data(np.random.default_rng(2), (16, 12), 5000) for _ in range(2))
    assert first.equals(second)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_kl_is_scipys_entropy_of_the_bins_and_the_telemetrys() -> None:
    x = np.random.default_rng(3).laplace(size=(100, 256))
    z = stats.zscore(x, axis=1)
    p = np.histogram(z, stats.norm.ppf(np.linspace(0, 1, 65)))[0] / z.size
    assert kl_to_normal(z) == pytest.approx(stats.entropy(p, np.full(64, 1 / 64)), abs=1e-12)
    assert telemetry.BINS == convergence.KL_BINS
    assert kl_to_normal(z) == pytest.approx(telemetry.kl_to_normal(torch.from_numpy(x)), abs=1e-4)  # float32 edges


def test_kl_floor_is_a_normal_samples_mean() -> None:
    """2 n KL of n values is near chi-squared with 63 degrees of freedom: deviation sqrt(126)."""
    rng, n, draws = np.random.default_rng(4), 4096, 200
    mean = np.mean([kl_to_normal(rng.normal(size=n)) for _ in range(draws)])
    assert mean == pytest.approx(kl_floor(n), abs=4 * math.sqrt(126 / draws) / (2 * n))


def test_kl_of_nearly_normal_values_is_the_square_of_their_kurtosis_over_48() -> None:
    """Density phi (1 + kappa (x^4 - 6 x^2 + 3) / 24): the exact integral, to the first order in kappa."""
    kappa, x = 0.05, np.linspace(-8, 8, 20_001)
    ratio = 1 + kappa * (x**4 - 6 * x**2 + 3) / 24
    kl = np.trapezoid(stats.norm.pdf(x) * ratio * np.log(ratio), x)
    assert kl == pytest.approx(kappa**2 / 48, rel=2 * kappa)


def test_a_networks_rows_are_the_rotated_ones(arrays: Arrays) -> None:
    data = network_data(arrays)
    assert data["measured"].to_numpy() == pytest.approx(arrays["kurtosis"][..., 1].ravel())
    assert set(data.loc[data["role"] == "fc2", "width"]) == {256}
    drawn = convergence_data(np.random.default_rng(0), (16, 64), 4096)
    assert [ax.get_visible() for ax in convergence_figure(drawn).axes] == [True, True, True, False]
    panel = convergence_figure(drawn, data).axes[3]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == list(ROLES)
