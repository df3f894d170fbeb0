"""SIGINT and SIGTERM: what each of two does to a command, to its work and to the processes under it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_stages import toy

from experiments.executors import LocalExecutor, attempt
from experiments.launch import Job, Sweep, launch
from experiments.signals import descendants, exit_code, handled_signals
from robuq.config import RunConfig
from robuq.stages import Stage, StageStore
from robuq.stopping import Stopped, ask_also, forget_request, request_stop, stop_point, stop_requested

DRIVER = Path(__file__).with_name("signalled_driver.py")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
PATIENCE = 120  # seconds, for a busy machine


def test_nothing_is_requested_by_itself() -> None:
    assert not stop_requested()
    stop_point()


def test_a_request_and_a_check_are_both_asked() -> None:
    request_stop()
    with pytest.raises(Stopped):
        stop_point()
    forget_request()
    ask_also(lambda: True)
    with pytest.raises(Stopped):
        stop_point()
    ask_also(None)
    stop_point()


@pytest.mark.parametrize("number", list(CODES))
def test_outside_of_work_the_first_signal_ends_the_command(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped), handled_signals():
        signal.raise_signal(number)
    assert exit_code() == CODES[number]
    assert not stop_requested()
    assert signal.getsignal(number) == before


def test_during_a_launch_the_work_is_told_and_a_later_launch_goes_on(tmp_path: Path) -> None:
    attempts: list[str] = []

    def work(stage: Stage, root: Path, device: str) -> dict[str, object]:
        attempts.append(stage.id)
        store = StageStore(root)
        store.open_work(stage)
        if len(attempts) == 1:
            signal.raise_signal(signal.SIGTERM)
        stop_point()
        store.commit(stage, {"seconds": 0.0, "metrics": {}})
        return {}

    stages = (toy("full_precision"), toy("qat", number=1))
    job = Job(RunConfig(variant="a"), stages)

    def launched() -> None:
        with handled_signals():
            launch(
                Sweep([job], StageStore(tmp_path), lambda s: 1.0), LocalExecutor(tmp_path, "cpu", work), lambda e: None
            )

    with pytest.raises(Stopped):
        launched()
    assert attempts == [stages[0].id]
    launched()
    assert attempts == [stages[0].id, *(stage.id for stage in stages)]


def test_a_stage_that_stopped_has_not_failed(tmp_path: Path) -> None:
    def work(stage: Stage, root: Path, device: str) -> dict[str, object]:
        StageStore(root).open_work(stage)
        raise Stopped

    stage = toy("qat")
    assert attempt(work, stage, tmp_path, "cpu").status == "stopped"
    assert StageStore(tmp_path).failure(stage) is None


@pytest.mark.parametrize(("number", "twice"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGINT, True)])
def test_in_process(tmp_path: Path, number: signal.Signals, twice: bool) -> None:
    check_signalled("local", tmp_path, number, twice)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "twice"), [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
def test_on_ray_no_process_is_left(tmp_path: Path, number: signal.Signals, twice: bool) -> None:
    check_signalled("ray", tmp_path, number, twice)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_every_process_and_workers_keep_what_they_have(tmp_path: Path) -> None:
    check_signalled("ray", tmp_path, signal.SIGINT, twice=False, group=True)


def check_signalled(executor: str, folder: Path, number: signal.Signals, twice: bool, group: bool = False) -> None:
    """Work that never ends by itself is stopped: by its own checkpoint after one signal, at once after two. `group`:
    the signal goes to all processes of the command, as a terminal's does."""
    environment = {**os.environ, "PYTHONPATH": str(DRIVER.parent), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [sys.executable, str(DRIVER), executor, str(folder), "deaf" if twice else "listening"],
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert driver.stderr is not None
    wait_for(folder / "begun", driver)
    under = descendants(driver.pid)
    if group:
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    if twice:
        assert read_line(driver) == "robuq: stopping at the next step, with a checkpoint; once more stops at once"
        driver.send_signal(number)
    error = driver.stderr.read().decode()
    assert driver.wait(PATIENCE) == CODES[number]
    driver.stderr.close()
    assert "the same command continues where it was" in error
    assert (folder / "kept").exists() is not twice
    assert bool(under) is (executor == "ray")
    for process in under:
        wait_until_gone(process)


def wait_for(file: Path, driver: subprocess.Popen[bytes]) -> None:
    for _ in range(20 * PATIENCE):
        if file.exists():
            return
        assert driver.poll() is None, driver.stderr.read().decode() if driver.stderr else ""
        select.select([], [], [], 0.05)
    raise AssertionError(f"{file.name} is not there")


def read_line(driver: subprocess.Popen[bytes]) -> str:
    assert driver.stderr is not None
    return driver.stderr.readline().decode().strip()


def wait_until_gone(process: int) -> None:
    """A process that has ended, or that only waits for its parent to notice."""
    for _ in range(20 * PATIENCE):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "ZX":
            return
        select.select([], [], [], 0.05)
    raise AssertionError(f"process {process} outlives the command: {Path(f'/proc/{process}/cmdline').read_text()}")
