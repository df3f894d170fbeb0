"""Commands, disks and the tally that the tests of faults share. `--fault-table FILE` writes the tally as a table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_commands import FaultCommands, Tally, Undisturbed, mounted, why_no_mounts
from postgresql_server import PostgresServer, find_binaries

TALLY = pytest.StashKey[Tally]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", metavar="FILE", help="Write faults x cases x survived to this file.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


def pytest_unconfigure(config: pytest.Config) -> None:
    file = config.getoption("--fault-table", default=None)
    if file:
        Path(file).write_text(config.stash[TALLY].table())


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    return pytestconfig.stash.setdefault(TALLY, Tally())


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultCommands]:
    started = FaultCommands(tmp_path_factory.mktemp("faults"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def undisturbed(commands: FaultCommands) -> Undisturbed:
    return Undisturbed(commands)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("Debian's package postgresql is not installed")
    server = PostgresServer(binaries)
    yield server
    server.remove()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes, where tests may mount one."""
    if why := why_no_mounts(tmp_path / "trial"):
        pytest.skip(why)
    with mounted(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture
def output(undisturbed: Undisturbed, commands: FaultCommands, tmp_path: Path) -> Path:
    """A copy of a finished sweep, without its tracking store: that would name the original's artefacts."""
    undisturbed.contents("sweep")
    done = commands.folder / "undisturbed-sweep"
    for part in ("stages", "runs"):
        shutil.copytree(done / part, tmp_path / "out" / part)
    return undisturbed.output(tmp_path / "out")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
