"""What the commands' tests share."""

from pathlib import Path

import pytest
from command_in_process import Complaint, Robuq, command, finished_record

from experiments.output import Output
from experiments.plan import single_run


@pytest.fixture
def robuq(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Robuq:
    """(exit code, standard output, standard error) of a command, in this process."""
    return command(capfd, monkeypatch)


@pytest.fixture
def complaint(robuq: Robuq) -> Complaint:
    """The one line that a command ends with, which prints nothing else."""

    def run(*words: object) -> str:
        code, out, err = robuq(*words)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        return err.removeprefix("robuq: ").strip()

    return run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An output folder with one recorded run, `baseline/0`, whose stages are gone."""
    run = single_run("baseline", 2, "nano", 0, {})
    Output(tmp_path / "results").save(finished_record(run, "p"))
    return tmp_path / "results"
