"""Runs that differ in their seeds alone: by their configurations, of which one is read for each that there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pytest

from analysis.configurations import Configurations
from analysis.leaderboard import cells, leaderboard_data, leaderboard_table
from analysis.load import runs_frame
from robuq.config import RunConfig
from robuq.record.run_record import RunRecord

Maker = Callable[..., RunRecord]


class Reader:
    """The records' configurations, and which were asked for. `gone`: keys whose file is lost."""

    def __init__(self, records: list[RunRecord], *gone: str) -> None:
        self.asked: list[str] = []
        self._configs = {one.key: one.config for one in records if one.key not in gone}

    def __call__(self, plan: str, key: str) -> Mapping[str, Any] | None:
        self.asked.append(key)
        return self._configs.get(key)


@pytest.fixture
def records(make_record: Maker) -> list[RunRecord]:
    """Six seeds of one variant; every third has another calibration, which no column tells."""
    found = []
    for seed in range(6):
        one = make_record(seed=seed)
        config = RunConfig.parse({**one.config, "seed": seed, "pretrain_seed": seed % 2})
        if seed % 3 == 2:
            config = config.updated(calibration=config.calibration.updated(num_images=7))
        own = {"config": config.model_dump(mode="json"), "key": config.key(), "pretrain_seed": seed % 2}
        found.append(one.updated(**own))
    return found


def test_runs_that_differ_in_more_than_seeds_are_never_averaged(records: list[RunRecord]) -> None:
    reader = Reader(records)
    parts = cells(runs_frame(records), Configurations(reader))
    assert {name: part["seed"].to_list() for name, part in parts.items()} == {
        f"robuq_uniform W1.58A2 run {records[0].key[:8]}": [0, 1, 3, 4],
        f"robuq_uniform W1.58A2 run {records[2].key[:8]}": [2, 5],
    }
    assert reader.asked == [records[0].key, records[2].key]  # the others' keys say it


def test_nothing_is_read_twice(records: list[RunRecord]) -> None:
    """Nor is a new seed of a known configuration."""
    reader = Reader(records)
    configurations = Configurations(reader)
    configurations.of(runs_frame(records[:3]))
    assert len(reader.asked) == 2
    names = configurations.of(runs_frame(records))
    assert len(reader.asked) == 2
    assert names.nunique() == 2


def test_a_run_whose_configuration_is_gone_joins_no_mean(records: list[RunRecord], make_record: Maker) -> None:
    """Its key is no hash of the others' configuration, and its file is not there."""
    lost = records[1].updated(key="0" * 16, seed=9)
    runs = runs_frame([*records[:2], lost])
    sizes = sorted(len(part) for part in cells(runs, Configurations(Reader([*records], lost.key))).values())
    assert sizes == [1, 2]


def test_many_configurations_are_read_and_not_guessed(records: list[RunRecord]) -> None:
    """Every run with a seed and a configuration of its own."""
    many = []
    for seed in range(300):
        config = RunConfig.parse(records[0].config)
        config = config.updated(calibration=config.calibration.updated(num_images=seed + 1), seed=seed)
        many.append(records[0].updated(config=config.model_dump(mode="json"), key=config.key(), seed=seed))
    reader = Reader(many)
    assert Configurations(reader).of(runs_frame(many)).nunique() == len(reader.asked) == 300


def test_rows_of_one_name_show_a_key(records: list[RunRecord], make_record: Maker) -> None:
    data = leaderboard_data(runs_frame([*records, make_record("baseline")]), Configurations(Reader(records)))
    table = leaderboard_table(data)
    shown = pd.concat([data["variant"], table.cells[["run", "n"]]], axis=1)
    assert set(shown.itertuples(index=False, name=None)) == {
        ("robuq_uniform", records[0].key[:8], "4"),
        ("robuq_uniform", records[2].key[:8], "2"),
        ("baseline", "", "1"),
    }
    assert "lowest seed" in table.caption
    plain = leaderboard_table(data[data["variant"] == "baseline"])
    assert "run" not in plain.cells
