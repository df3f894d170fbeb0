"""What a person sees: plain lines in a pipe, a table on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from toy_stages import toy, work

from experiments.executors import LocalExecutor
from experiments.launch import Job, Sweep, launch
from experiments.progress import LiveDisplay, PlainDisplay, display_of, duration
from robuq.config import RunConfig
from robuq.stages import StageStore, write_json

SHARED = toy("full_precision", number=1)
QAT = [toy("qat", {"full_precision": SHARED}, number=2), toy("qat", {"full_precision": SHARED}, fail="nan")]
JOBS = [Job(RunConfig(variant="minmax", seed=seed), (SHARED, qat)) for seed, qat in enumerate(QAT)]


def shown(root: Path, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=150, legacy_windows=False)
    sweep = Sweep(JOBS, StageStore(root), lambda s: 90.0)
    display = display_of(sweep, StageStore(root), 1, console)
    with display.showing():
        launch(sweep, LocalExecutor(root, "cpu", work), lambda end: None, [display])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_one_line_an_event_without_control_characters(tmp_path: Path) -> None:
    lines = shown(tmp_path, terminal=False).splitlines()
    assert len(lines) == 3 + 2  # stages and runs
    assert lines[0] == "[1/3 stages] full_precision shared by 2 runs: done in 0 s, about 3 min left"
    assert lines[1] == "[2/3 stages] qat minmax W32A32 seed 0: done in 0 s, about 90 s left"
    assert lines[2] == "[1/2 runs] minmax W32A32 seed 0: finished"
    assert "FAILED (toy_stages.ToyError: nan)" in lines[3]
    assert lines[4] == f"[2/2 runs] minmax W32A32 seed 1: FAILED: qat {QAT[1].key}: toy_stages.ToyError: nan"
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_table_that_ends_with_the_sum(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "\x1b[" in text
    assert "stages 2/3 done, 1 failed; runs 2/2" in text


def test_a_running_stage_shows_step_speed_loss_and_time_left(tmp_path: Path) -> None:
    store, console = StageStore(tmp_path), Console(file=io.StringIO(), width=150)
    sweep = Sweep(JOBS[:1], store, lambda s: 100.0)
    display = LiveDisplay(sweep, store, 1, console)
    sweep.start(SHARED)
    console.print(display.render())  # nothing is known yet
    progress = {"phase": "training", "step": 50, "steps": 300, "loss": 0.12345, "steps_per_second": 12.5}
    write_json(store.open_work(SHARED) / "progress.json", progress)
    console.print(display.render())
    assert isinstance(console.file, io.StringIO)
    row = next(line for line in console.file.getvalue().splitlines() if "50/300" in line)
    assert row.split()[:5] == ["full_precision", "minmax", "W32A32", "seed", "0"]
    assert row.split()[-5:] == ["50/300", "12.5", "0.1235", "20", "s"]


def test_a_pipe_and_a_terminal_get_different_displays(tmp_path: Path) -> None:
    sweep = Sweep(JOBS, StageStore(tmp_path), lambda s: 1.0)
    piped, terminal = Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(display_of(sweep, StageStore(tmp_path), 1, piped), PlainDisplay)
    assert isinstance(display_of(sweep, StageStore(tmp_path), 1, terminal), LiveDisplay)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
