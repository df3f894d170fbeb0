"""What a sweep has done and is doing, off a folder of stages laid out by hand: states, reasons and time left."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from analysis.live import run_states, seconds_left, stages_at_work, state_counts


def run(key: str, qat: str) -> dict[str, Any]:
    stages = {"full_precision": {"key": "f" * 16, "done": False}, "qat": {"key": qat, "done": False}}
    return {"key": key, "variant": "baseline", "label": "W1.58A2", "seed": 0, "stages": stages}


PLAN = {"runs": [run("one", "a" * 16), run("two", "b" * 16), run("three", "c" * 16), run("four", "d" * 16)]}


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """full_precision and one's qat are done in 10 s each, two's failed, three's is at half of 8 s, four's waits."""
    write(tmp_path / "full_precision" / ("f" * 16) / "result.json", {"seconds": 10.0})
    write(tmp_path / "qat" / ("a" * 16) / "result.json", {"seconds": 10.0})
    write(tmp_path / "qat" / f"{'b' * 16}.work" / "failure.json", {"reason": "diverged", "error": "at step\n 3"})
    file = tmp_path / "qat" / f"{'c' * 16}.work" / "progress.json"
    write(file, {"step": 4, "steps": 8, "steps_per_second": 1.0, "loss": 0.5, "phase": "qat"})
    os.utime(file, (0, 0))
    return tmp_path


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def test_each_state_with_its_reason(stages: Path) -> None:
    runs = run_states(PLAN, stages).set_index("key")
    assert runs["state"].to_list() == ["finished", "failed", "started", "waiting"]
    assert runs.loc["two", "failure"] == "diverged: at step 3"
    assert runs["stages_done"].to_list() == [2, 1, 1, 1]
    assert runs.loc["three", "seconds_left"] == 4.0
    assert runs.loc["three", "quiet_seconds"] > 1e9  # it spoke in 1970
    assert state_counts(runs) == {"finished": 1, "failed": 1, "started": 1, "waiting": 1}


def test_a_sweep_that_has_not_begun_waits(tmp_path: Path) -> None:
    assert set(run_states(PLAN, tmp_path / "none")["state"]) == {"waiting"}
    assert math.isnan(seconds_left(PLAN, tmp_path / "none"))
    assert stages_at_work(tmp_path / "none").empty


def test_time_left(stages: Path) -> None:
    """One qat of 10 s, and 4 s of the one at work, one after the other; the failed one is not tried again."""
    assert seconds_left(PLAN, stages) == 10 + 4


def test_time_left_from_the_speed_of_what_is_at_work(stages: Path) -> None:
    """Nothing of the kind is done: 8 steps at one a second."""
    (stages / "qat" / ("a" * 16) / "result.json").unlink()
    (stages / "qat" / ("a" * 16)).rmdir()
    assert seconds_left(PLAN, stages) == 2 * 8 + 4


def test_begun_stages_without_a_plan(stages: Path) -> None:
    data = stages_at_work(stages)
    assert data["key"].to_list() == ["c" * 16, "b" * 16]
    assert data["state"].to_list() == ["started", "failed"]
