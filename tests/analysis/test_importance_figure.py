"""The importance of a search's parameters: from its record, at the rungs that enough evaluations reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.figures.importance import LEAST, SHOWN, importance_data, importance_figure
from analysis.load import runs_frame
from analysis.search_report import write_search_report
from analysis.style import save_figure
from robuq.ampn.search import FEWEST
from robuq.record.search_record import SearchRecord

SearchMaker = Callable[..., SearchRecord]
UNIT = "FloatDistribution(high=1.0, log=False, low=0.0, step=None)"
SPACE = dict.fromkeys(("one", "other", "third"), UNIT)


def with_space(record: SearchRecord, space: dict[str, str]) -> SearchRecord:
    """Every second loss is the first parameter's own; known allocations have none, as the space cannot express them."""
    rng = np.random.default_rng(1)
    evaluations = []
    for one in record.evaluations:
        params = {name: float(rng.random()) for name in space} if one.number > 2 else {}
        losses = {rung: next(iter(params.values()), 0.5) for rung in one.values}
        evaluations.append(one.model_copy(update={"params": params, "values": losses}))
    settings = {**record.sampler_settings, "parameters": space}
    return record.model_copy(update={"evaluations": evaluations, "sampler_settings": settings})


@pytest.fixture(scope="module")
def record(make_search: SearchMaker) -> SearchRecord:
    return with_space(make_search(2, 40), SPACE)


def data_of(record: SearchRecord) -> list[dict[str, object]]:
    return importance_data(record, np.random.default_rng(0)).to_dict("records")  # type: ignore[return-value]


def test_shares_of_every_rung_that_enough_reached(record: SearchRecord) -> None:
    data = importance_data(record, np.random.default_rng(0))
    reached = {
        int(rung): sum(rung in one.values and bool(one.params) for one in record.evaluations)
        for rung in {rung for one in record.evaluations for rung in one.values}
    }
    assert dict(data.groupby("steps")["n"].first()) == {rung: n for rung, n in reached.items() if n >= LEAST}
    assert LEAST >= 2 * FEWEST  # of which importances can be asked
    assert (data.groupby("steps")["importance"].sum() - 1).abs().max() < 1e-9
    assert (data.groupby("steps")["parameter"].first() == "one").all()
    assert (data["low"] <= data["high"]).all()


def test_equal_seeds_give_equal_ranges(record: SearchRecord) -> None:
    assert data_of(record) == data_of(record)


def test_few_evaluations_one_parameter_or_one_loss_have_no_importance(record: SearchRecord) -> None:
    few = record.model_copy(update={"evaluations": record.evaluations[:12]})
    alike = [one.model_copy(update={"values": dict.fromkeys(one.values, 0.5)}) for one in record.evaluations]
    assert data_of(few) == []
    assert data_of(with_space(record, {"draw": "IntDistribution(high=9, log=False, low=0, step=1)"})) == []
    assert data_of(record.model_copy(update={"evaluations": alike})) == []


def test_a_record_from_before_spaces_were_kept_has_none(record: SearchRecord) -> None:
    assert data_of(record.model_copy(update={"sampler_settings": {}})) == []


def test_the_figure_is_one_column_wide_and_shows_the_first(make_search: SearchMaker, tmp_path: Path) -> None:
    space = {f"parameter.{place}": UNIT for place in range(SHOWN + 4)}
    data = importance_data(with_space(make_search(2, 40), space), np.random.default_rng(0))
    figure = importance_figure(data)
    assert [len(ax.get_yticks()) for ax in figure.axes] == [SHOWN] * len(figure.axes)
    save_figure(figure, tmp_path, "importance")
    with Image.open(tmp_path / "importance.png") as image:
        assert image.width == 990  # 3.3 inches at 300 dpi


def test_nothing_to_draw_is_an_error(record: SearchRecord) -> None:
    with pytest.raises(ValueError, match="no rung has enough evaluations"):
        importance_figure(importance_data(record.model_copy(update={"evaluations": []}), np.random.default_rng(0)))


def test_the_report_has_it_and_its_other_numbers_stay(
    record: SearchRecord, make_search: SearchMaker, tmp_path: Path
) -> None:
    """Which figures there are changes no number of another."""
    without = record.model_copy(update={"sampler_settings": {}})
    for name, one in (("with", record), ("without", without)):
        write_search_report(one, runs_frame([]), tmp_path / name)
    page = (tmp_path / "with" / "report.md").read_text()
    assert "## Importance of the parameters" in page
    assert (tmp_path / "with" / "importance.csv").exists()
    for name in ("correlations.csv", "history.csv", "evaluations.csv"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_a_record_is_read_back_from_json(record: SearchRecord) -> None:
    again = SearchRecord.parse(json.loads(record.model_dump_json()), "record")
    assert data_of(again) == data_of(record)
