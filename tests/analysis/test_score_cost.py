from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from paper_records import plan_records

from analysis.figures.labels import HEIGHT, WIDTH, Label, place_labels
from analysis.figures.score_cost import placed, score_cost_data, score_cost_figure
from analysis.load import runs_frame
from analysis.paper_figures import figure2
from analysis.product import Feed
from analysis.style import LOOKS
from robuq.record.run_record import RunRecord


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    return plan_records("paper_main", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def data(records: list[RunRecord]) -> pd.DataFrame:
    by_key = {record.key: record for record in records}
    return score_cost_data(runs_frame(records), by_key.__getitem__)


def feed(records: list[RunRecord]) -> Feed:
    return Feed("paper_main", runs_frame(records), {record.key: record for record in records})


def test_ampn_is_shown_with_the_papers_widths_where_they_were_recorded(records: list[RunRecord]) -> None:
    to_4 = figure2(feed(records))
    to_8 = figure2(feed([record for record in records if record.variant != "robuq_to_4"]))
    assert to_4 is not None
    assert to_8 is not None
    assert sorted(to_4.data.loc[to_4.data["variant"] == "robuq_to_4", "bits"]) == [2, 3]
    assert "robuq" not in set(to_4.data["variant"])
    assert sorted(to_8.data.loc[to_8.data["variant"] == "robuq", "bits"]) == [2, 3, 4]
    assert "AMPN chooses from 1 to 4 bits" in to_4.caption
    assert "AMPN chooses from 1 to 8 bits" in to_8.caption
    for product in (to_4, to_8):
        assert product.figure is not None
        legend = [text.get_text() for text in product.figure.subfigs[0].legends[0].get_texts()]
        assert legend[-1] == "RobuQ + AMPN"
        assert {"BinaryDM-style", "Baseline"} <= set(legend)


def test_only_points_of_one_width_and_cost_are_moved(data: pd.DataFrame) -> None:
    """The baseline and RobuQ cost the same at each width; BitNet v2 is alone."""
    points = placed(data, "bops").set_index(["variant", "bits"])
    one, other = points.loc[("baseline", 2.0)], points.loc[("robuq_uniform", 2.0)]
    assert one["bops"] == other["bops"]
    assert one["group"] == other["group"]
    assert one["x"] < other["x"]
    alone = points.loc[("bitnet_v2", 2.0)]
    assert alone["x"] == alone["bops"] / 1e9
    assert points["group"].value_counts()[alone["group"]] == 1
    assert placed(data, "gflops")["variant"].isin(["binarydm"]).sum() == 0  # no count for binary weights


def test_full_precision_has_its_interval_as_a_band(data: pd.DataFrame) -> None:
    figure = score_cost_figure(data, pd.DataFrame(), {})
    row = data[data["variant"] == "full_precision"].iloc[0]
    for ax in figure.subfigs[0].axes:
        box = ax.patches[0].get_bbox() if hasattr(ax.patches[0], "get_bbox") else ax.patches[0].get_path().get_extents()
        assert (box.y0, box.y1) == pytest.approx((row["classifier_score_low"], row["classifier_score_high"]))


def test_every_group_of_points_has_one_label_in_its_panel(data: pd.DataFrame) -> None:
    figure = score_cost_figure(data, pd.DataFrame(), {})
    for ax, cost in zip(figure.subfigs[0].axes, ("gflops", "bops"), strict=True):
        groups = placed(data, cost).groupby("group")
        assert sorted(text.get_text() for text in ax.texts) == sorted(
            f"A{part['bits'].iloc[0]:g}" for _, part in groups
        )
        own = {LOOKS[part["variant"].iloc[0]].color for _, part in groups if len(part) == 1}
        assert own <= {to_hex(str(text.get_color())) for text in ax.texts}


# --- placing labels -----------------------------------------------------------------------------------------------


def panel() -> Axes:
    ax = Figure(figsize=(3, 2)).subplots()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    return ax


def boxes(ax: Axes) -> list[tuple[float, float, float, float]]:
    """Left, bottom, right and top of each label, in points."""
    scale = 72 / ax.figure.get_dpi()
    centres = [np.asarray(ax.transData.transform(text.get_position())) * scale for text in ax.texts]
    return [(x - WIDTH / 2, y - HEIGHT / 2, x + WIDTH / 2, y + HEIGHT / 2) for x, y in centres]


def test_labels_touch_nothing_where_there_is_room() -> None:
    """Random points with bars, joined by a line: no label on a bar, on the line or on another label."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        ax = panel()
        x, y, reach = np.sort(rng.uniform(1, 9, 5)), rng.uniform(2, 8, 5), rng.uniform(0.1, 0.8, 5)
        labels = [
            Label("A2", np.array([[a, b]]), np.array([b - r]), np.array([b + r]))
            for a, b, r in zip(x, y, reach, strict=True)
        ]
        line = np.column_stack([x, y])
        place_labels(ax, labels, [line])
        scale = 72 / ax.figure.get_dpi()
        drawn = [np.linspace(one, other, 200) for one, other in itertools.pairwise(line)]
        drawn += [np.linspace(*bar, 200) for label in labels for bar in label.bars]
        points = ax.transData.transform(np.concatenate(drawn)) * scale
        for place, (left, bottom, right, top) in enumerate(boxes(ax)):
            inside = (points > (left, bottom)).all(1) & (points < (right, top)).all(1)
            assert not inside.any()
            others = boxes(ax)[:place]
            assert all(left >= b[2] or right <= b[0] or bottom >= b[3] or top <= b[1] for b in others)


def test_a_label_stays_within_the_panel_and_is_led_to_its_point_when_far() -> None:
    ax = panel()
    corner = Label("A2", np.array([[0.05, 0.05]]), np.array([0.05]), np.array([0.05]))
    place_labels(ax, [corner], [])
    x, y = ax.texts[0].get_position()
    assert 0 < x < 10
    assert 0 < y < 10
    full = panel()
    lines = [np.array([[0.0, y], [10.0, y]]) for y in np.arange(3, 7.01, 0.2)]
    place_labels(full, [Label("A2", np.array([[5.0, 5.0]]), np.array([5.0]), np.array([5.0]))], lines)
    assert not 3 < full.texts[0].get_position()[1] < 7
    assert len(full.lines) == 1  # the leader
