"""The sensitivity table: its shape, its file, its noise, its tidy rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from robuq.ampn.table import SensitivityTable, split_decision
from robuq.config import BLOCK_ROLES, ConfigError, decision_name


def test_saved_and_loaded_it_is_the_same(table: SensitivityTable, tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    table.save(file)
    assert SensitivityTable.load(file) == table


def test_a_file_that_cannot_be_read_is_an_error_of_one_line(table: SensitivityTable, tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    values = table.model_dump(mode="json")
    for content in (None, "{", "[]", json.dumps(values | {"loss": values["loss"][:-1]})):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigError, match=r"sensitivity\.json") as caught:
            SensitivityTable.load(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": [2, 1, 8]}, "ascend"),
        ({"loss_se": [[0.0, 0.0]] * 4}, "loss_se is 4 x 2, but there are 4 decisions x 3 candidates"),
        ({"output_error": [[0.0] * 3] * 3}, "output_error is 3 x 3"),
        ({"loss_halves": [[[0.0] * 3] * 4, [[0.0] * 3] * 5]}, "loss_halves is 5 x 3"),
        ({"decisions": ["transformer_blocks.0.adaln"] * 4}, "is no decision"),
        ({"loss": [[float("nan")] * 3] * 4}, "loss.0.0: got nan, a finite number is needed"),
    ],
)
def test_what_does_not_fit_is_refused(table: SensitivityTable, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SensitivityTable.parse(table.model_dump(mode="json") | changes)


@pytest.mark.parametrize("role", BLOCK_ROLES)
def test_a_decisions_name_is_taken_apart(role: str) -> None:
    assert split_decision(decision_name(12, role)) == (12, role)


@pytest.mark.parametrize(
    "name", ["", "fc1", "transformer_blocks.1", "transformer_blocks.x.fc1", "transformer_blocks.01.fc1", "blocks.1.fc1"]
)
def test_what_is_no_decisions_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no decision"):
        split_decision(name)


def test_rows_are_tidy(table: SensitivityTable) -> None:
    rows = table.rows()
    assert len(rows) == 4 * 3
    assert rows[5] == {
        "block": 0,
        "role": "proj",
        "bits": 8,
        "loss": 0.0,
        "loss_se": 0.0,
        "output_error": 1e-5,
        "sqnr_db": pytest.approx(50.0),
        "second_order": table.second_order[1][2],
    }
    spotless = table.updated(output_error=[[0.0] * 3] * 4)
    assert spotless.rows()[0]["sqnr_db"] is None


@pytest.mark.parametrize("measure", ["loss", "output_error", "second_order"])
def test_matrices_are_decisions_by_candidates(table: SensitivityTable, measure: Any) -> None:
    matrix = table.matrix(measure)
    assert matrix.shape == (4, 3)
    assert matrix.tolist() == [list(row) for row in getattr(table, measure)]


class TestNoise:
    def test_halves_that_agree_and_halves_that_are_reversed(self, table: SensitivityTable) -> None:
        loss = table.matrix("loss")
        agreeing = table.updated(loss_halves=[loss.tolist(), (2 * loss).tolist()])
        assert agreeing.noise()["split_half_spearman"] == pytest.approx(1.0)
        assert agreeing.noise()["split_half_spearman_within"] == pytest.approx(1.0)
        opposed = table.updated(loss_halves=[loss.tolist(), (-loss).tolist()])
        assert opposed.noise()["split_half_spearman"] == pytest.approx(-1.0)

    def test_is_the_correlation_of_ranks_without_the_reference(self, table: SensitivityTable) -> None:
        halves = np.random.default_rng(0).normal(size=(2, 4, 3))
        ranks = [rankdata(half[:, :2]) for half in halves]  # 8 bits, the reference, is the third column
        noisy = table.updated(loss_halves=halves.tolist())
        assert noisy.noise()["split_half_spearman"] == pytest.approx(np.corrcoef(ranks)[0, 1])

    def test_relative_error_is_of_the_size_of_the_increase(self, table: SensitivityTable) -> None:
        loss = table.matrix("loss")
        relative = table.updated(loss=(-loss).tolist(), loss_se=(0.25 * loss).tolist())
        assert relative.noise()["median_relative_se"] == pytest.approx(0.25)

    def test_of_nothing_measured_is_finite(self, table: SensitivityTable) -> None:
        nothing = [[0.0] * 3] * 4
        empty = table.updated(loss=nothing, loss_se=nothing, loss_halves=[nothing, nothing])
        assert set(empty.noise().values()) == {0.0}
