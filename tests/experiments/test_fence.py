"""One command's workers at a time: whoever begins waits for those before, and late ones do nothing."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fenced_driver import lines_of

from experiments.fence import Fenced, LeaveRequest, behind_fence, fence_of, take_fence
from experiments.output import Output
from experiments.signals import descendants, kill
from robuq.config import ConfigError

DRIVER = Path(__file__).with_name("fenced_driver.py")
Start = Callable[[], subprocess.Popen[bytes]]
LOOKS = 6000  # of 20 ms, for a busy machine


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a driver, which waits for `begin`; ends all that it started."""
    drivers: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "PYTHONPATH": str(DRIVER.parent), "OMP_NUM_THREADS": "1"}

    def started() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(DRIVER), str(tmp_path)]
        drivers.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        stdout = drivers[-1].stdout
        assert stdout is not None
        assert stdout.readline() == b"ready\n"
        return drivers[-1]

    yield started
    for driver in drivers:
        under = descendants(driver.pid)
        driver.kill()
        driver.communicate()
        for process in under:
            kill(process)


def test_a_worker_of_the_command_that_has_the_fence_passes(tmp_path: Path) -> None:
    take_fence(tmp_path)
    with behind_fence(tmp_path, fence_of(tmp_path)), behind_fence(tmp_path, fence_of(tmp_path)):
        pass


def test_a_late_worker_of_an_earlier_command_does_nothing(tmp_path: Path) -> None:
    take_fence(tmp_path)
    earlier = fence_of(tmp_path)
    take_fence(tmp_path)
    with pytest.raises(Fenced), behind_fence(tmp_path, earlier):
        raise AssertionError("a worker of an earlier command went on")


def test_a_worker_from_before_there_was_a_fence_does_nothing_behind_one(tmp_path: Path) -> None:
    before = fence_of(tmp_path)
    with behind_fence(tmp_path, before):
        pass
    take_fence(tmp_path)
    with pytest.raises(Fenced), behind_fence(tmp_path, before):
        raise AssertionError("a worker of an earlier command went on")


def test_a_command_waits_for_workers_of_the_one_before(tmp_path: Path) -> None:
    take_fence(tmp_path)
    order: list[str] = []

    def next_command() -> None:
        take_fence(tmp_path)
        order.append("taken")

    with behind_fence(tmp_path, fence_of(tmp_path)):
        waiting = threading.Thread(target=next_command)
        waiting.start()
        waiting.join(0.2)
        order.append("worker ends")
    waiting.join()
    assert order == ["worker ends", "taken"]


def test_a_worker_is_asked_to_leave_while_a_command_waits_for_it(tmp_path: Path) -> None:
    take_fence(tmp_path)
    asked = LeaveRequest(tmp_path)
    assert not asked()
    with behind_fence(tmp_path, fence_of(tmp_path)):
        waiting = threading.Thread(target=take_fence, args=[tmp_path])
        waiting.start()
        while not asked():  # ends by that alone
            select.select([], [], [], 0.01)
    waiting.join()
    assert not LeaveRequest(tmp_path)()


def test_workers_that_do_not_end_are_said_in_one_line(tmp_path: Path) -> None:
    output = Output(tmp_path)
    take_fence(output.store.root)
    with (
        behind_fence(output.store.root, fence_of(output.store.root)),
        pytest.raises(ConfigError, match="workers of an earlier command still write") as caught,
    ):
        take_fence(output.store.root, patience=0.0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_no_worker_of_a_killed_command_writes_after_the_next_has_begun(tmp_path: Path, start: Start) -> None:
    """Ray's workers do not look for the end of their command while they work, and outlive it for a second or two."""
    first, second = start(), start()
    begin(first)
    wait_until_written(tmp_path, first, 20)
    first.kill()
    first.wait()
    begin(second)
    wait_until_written(tmp_path, second, 20)
    lines = lines_of(tmp_path)
    begun = lines.index(("begun", str(second.pid)))
    workers = [process for kind, process in lines[:begun] if kind == "worker"]
    assert workers, "the first command's worker wrote nothing"
    assert not set(workers) & {process for kind, process in lines[begun:] if kind == "worker"}


def begin(driver: subprocess.Popen[bytes]) -> None:
    assert driver.stdin is not None
    driver.stdin.write(b"now\n")
    driver.stdin.flush()


def wait_until_written(folder: Path, driver: subprocess.Popen[bytes], count: int) -> None:
    """`count` lines by workers since the driver began."""
    for _ in range(LOOKS):
        lines = lines_of(folder)
        begun = ("begun", str(driver.pid))
        if begun in lines and len(lines) - lines.index(begun) > count:
            return
        assert driver.poll() is None
        select.select([], [], [], 0.02)
    raise AssertionError("the command's worker does not write")
