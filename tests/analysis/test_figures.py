from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from analysis.figures.curves import curves_data, curves_figure, smooth, window_of
from analysis.figures.distributions import (
    BINS,
    REACH,
    distribution_summary,
    distributions_data,
    distributions_figure,
    standardised,
)
from analysis.figures.samples import plot_samples, samples_csv, samples_data, tile
from analysis.load import runs_frame
from analysis.methods import METHODS
from analysis.style import LOOKS, looks, styled
from experiments.plan import load_plan, packaged_plans
from robuq.record.run_record import RunRecord
from robuq.variants import VARIANTS

Maker = Callable[..., RunRecord]
Rows = Sequence[Mapping[str, Any]]


# --- style ------------------------------------------------------------------------------------------------------


def test_no_two_variants_look_alike_even_in_grey() -> None:
    assert len({(look.marker, look.linestyle) for look in LOOKS.values()}) == len(LOOKS)
    assert len({(look.color, look.linestyle) for look in LOOKS.values()}) == len(LOOKS)


def test_other_variants_get_the_looks_that_are_left() -> None:
    chosen = looks(["baseline", "robuq_uniform", "lsq", "quest"])
    assert chosen["baseline"] == LOOKS["baseline"]
    assert len(set(chosen.values())) == 4


def test_every_row_of_the_papers_plans_has_a_name_of_its_own() -> None:
    plans = [name for name in packaged_plans() if name.startswith("paper_")]
    rows = {run.variant for name in plans for run in load_plan(name, ["seeds=0"]).runs}
    assert rows | set(VARIANTS) <= set(METHODS)
    assert len({name for name, _ in METHODS.values()}) == len(METHODS)
    assert len({name for _, name in METHODS.values()}) == len(METHODS)


def test_ampn_is_told_from_robuq_without_it_by_colour_and_marker() -> None:
    without, with_ampn = looks(["robuq_uniform", "robuq"]).values()
    assert without.color != with_ampn.color
    assert without.marker != with_ampn.marker


def test_style_leaves_the_users_settings_alone() -> None:
    before = dict(mpl.rcParams)
    with styled():
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before


# --- curves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 7, 101])
def test_smoothing_is_the_mean_of_what_is_near(window: int) -> None:
    x = np.random.default_rng(0).normal(size=30)
    half = window // 2
    slow = [x[max(0, i - half) : i + half + 1].mean() for i in range(30)]
    # cumulative sums of 30 values of order one: 30 eps * 30
    assert smooth(x, window) == pytest.approx(slow, abs=1e-13)


def test_windows_are_odd() -> None:
    assert [window_of(points) for points in (1, 10, 30, 100)] == [1, 1, 5, 11]


def frame_and_reader(make_record: Maker, losses: dict[str, list[float]]) -> tuple[pd.DataFrame, Callable[[str], Rows]]:
    rows = {name: [{"step": float(10 * i), "loss": x} for i, x in enumerate(xs, 1)] for name, xs in losses.items()}
    records = [
        make_record("minmax", 2, seed, artifacts={"history.jsonl": name}) for seed, name in enumerate(sorted(losses))
    ]
    return runs_frame(records), lambda location: rows[location]


def test_a_curve_is_the_mean_over_seeds_with_their_range(make_record: Maker) -> None:
    runs, read = frame_and_reader(make_record, {"a": [3.0, 2.0, 1.0], "b": [5.0, 2.0, 0.0]})
    data = curves_data(runs, read)
    assert data["step"].to_list() == [10, 20, 30]
    assert data["loss"].to_list() == [4.0, 2.0, 0.5]
    assert data["low"].to_list() == [3.0, 2.0, 0.0]
    assert data["high"].to_list() == [5.0, 2.0, 1.0]
    assert set(data["n"]) == {2}


def test_runs_without_training_have_no_curve(make_record: Maker) -> None:
    runs, read = frame_and_reader(make_record, {"a": []})
    assert curves_data(runs, read).empty
    assert curves_data(runs_frame([make_record(artifacts={})]), read).empty


def test_a_shorter_history_is_left_out_and_n_says_so(make_record: Maker) -> None:
    runs, read = frame_and_reader(make_record, {"a": [3.0, 2.0], "b": [5.0]})
    assert curves_data(runs, read)["n"].to_list() == [1, 1]


@pytest.mark.parametrize("widths", [(2,), (4, 3, 2)])
def test_one_panel_per_width(make_record: Maker, widths: tuple[int, ...]) -> None:
    records = [make_record("minmax", bits, 0, artifacts={"history.jsonl": "a"}) for bits in widths]
    records.append(make_record("full_precision", 2, 0, artifacts={"history.jsonl": "a"}))
    data = curves_data(runs_frame(records), lambda _: [{"step": s, "loss": 1 / s} for s in range(1, 9)])
    visible = [ax for ax in curves_figure(data).axes if ax.get_visible()]
    assert [ax.get_title("left") for ax in visible] == [f"A{bits}, n = 1" for bits in widths]
    assert all(len(ax.lines) == 2 for ax in visible)  # the variant, and full precision


# --- distributions ----------------------------------------------------------------------------------------------


def test_tokens_are_standardised_one_by_one() -> None:
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32) * [[1], [10], [100], [1], [1]] + 3
    x[4] = 2.5
    z = standardised(x.astype(np.float32)).reshape(4, 64)  # the constant token is left out
    assert z == pytest.approx(stats.zscore(x[:4].astype(np.float32).astype(np.float64), axis=1), abs=1e-12)


def test_histogram_and_quantiles_of_normal_tokens_follow_the_normal() -> None:
    """4e5 values: a density's standard error is sqrt(f / (n w)), at most .0025, and a quantile's is below .02 where
    |x| < 3; both within four of them."""
    raw = np.random.default_rng(0).normal(2, 3, size=(400, 1000)).astype(np.float32)
    data = distributions_data({"fc2.raw": raw}, "fc2")
    histogram, qq = (data[data["curve"] == curve] for curve in ("histogram", "qq"))
    assert histogram["y"].sum() * 2 * REACH / BINS == pytest.approx(1, abs=1e-6)
    assert np.abs(histogram["y"] - stats.norm.pdf(histogram["x"])).max() < 0.01
    inner = qq[qq["x"].abs() < 3]
    assert np.abs(inner["x"] - inner["y"]).max() < 0.08


def test_values_beyond_the_histogram_still_count() -> None:
    token = np.array([[*([0.0] * 99), 50.0]], dtype=np.float32)  # one of a hundred lies 9.9 sd away
    histogram = distributions_data({"qkv.raw": token}, "qkv").query("curve == 'histogram'")
    assert histogram["y"].sum() * 2 * REACH / BINS == pytest.approx(0.99)


def test_levels_are_drawn_where_recorded(tokens_file: Path) -> None:
    with np.load(tokens_file) as arrays:
        tokens = dict(arrays)
    data = distributions_data(tokens, "fc2")
    assert data.loc[data["curve"] == "level", "x"].to_list() == pytest.approx(tokens["fc2.levels"].tolist())
    figure = distributions_figure(data)
    assert [ax.get_xlabel() for ax in figure.axes] == ["activation / token sd", "normal quantile"]
    assert len(figure.axes[0].lines) == 2 + 4  # normal density, tokens after rotation, four levels


def test_summary_is_scipys_kurtosis(tokens_file: Path) -> None:
    with np.load(tokens_file) as arrays:
        tokens = dict(arrays)
    summary = distribution_summary(tokens).set_index(["role", "state"])
    expected = stats.kurtosis(stats.zscore(tokens["fc1.raw"].astype(np.float64), axis=1).ravel())
    assert summary.loc[("fc1", "raw"), "excess_kurtosis"] == pytest.approx(expected, rel=1e-9)
    assert len(summary) == 8


def test_an_unknown_role_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'fc3': there are fc2"):
        distributions_data({"fc2.raw": np.ones((2, 4), np.float32)}, "fc3")


# --- samples ----------------------------------------------------------------------------------------------------


def test_the_same_image_of_every_variant_is_shown(runs: pd.DataFrame) -> None:
    data = samples_data(runs, lambda location: Path(location.removeprefix("file://")))
    assert data.groupby("key", sort=False)["index"].apply(list).map(tuple).nunique() == 1
    assert data["class_label"].to_list()[:10] == list(range(10))
    assert set(data["seed"]) == {0}
    rows = data.drop_duplicates("key")
    assert rows["variant"].iloc[0] == "full_precision"
    assert rows["bits"].fillna(9).to_list() == sorted(rows["bits"].fillna(9), reverse=True)


def test_pixels_survive_the_csv(runs: pd.DataFrame) -> None:
    data = samples_data(runs, lambda location: Path(location.removeprefix("file://")))
    text = samples_csv(data)
    pixels = np.frombuffer(bytes.fromhex(text["pixels"].iloc[3]), np.uint8).reshape(8, 8, 1)
    assert np.array_equal(pixels, data["pixels"].iloc[3])


def test_other_labels_are_refused(make_record: Maker, tmp_path: Path) -> None:
    for name, labels in (("a", [0, 1]), ("b", [1, 0])):
        np.savez(tmp_path / name, images=np.zeros((2, 4, 4, 1), np.uint8), labels=labels)
    records = [make_record(v, 2, 0, artifacts={"samples.npz": f"{n}.npz"}) for v, n in (("minmax", "a"), ("lsq", "b"))]
    with pytest.raises(ValueError, match="drew other labels"):
        samples_data(runs_frame(records), lambda location: tmp_path / location)


def test_one_class_and_colour(make_record: Maker, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    np.savez(tmp_path / "a", images=images, labels=[0, 0, 0])
    data = samples_data(runs_frame([make_record(artifacts={"samples.npz": "a.npz"})]), lambda name: tmp_path / name)
    assert data["index"].to_list() == [0, 1, 2]
    ax = Figure().subplots()
    plot_samples(data, ax)
    assert ax.images[0].get_array().shape == (5, 14, 3)


def test_tiles_keep_every_pixel() -> None:
    a, b = np.full((3, 2, 1), 7, np.uint8), np.full((3, 2, 1), 9, np.uint8)
    canvas = tile([[a, b], [b, a]], breaks=[1])
    assert canvas.shape == (3 + 2 + 3, 2 + 1 + 2, 1)  # the gap of one pixel and a third of three
    assert [canvas[0, 0, 0], canvas[0, 3, 0], canvas[5, 0, 0], canvas[5, 3, 0]] == [7, 9, 9, 7]
    assert (canvas[3:5] == 255).all()
