"""What the commands' tests share."""

import pytest
from command_in_process import Robuq, command


@pytest.fixture
def robuq(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Robuq:
    """(exit code, standard output, standard error) of a command, in this process."""
    return command(capfd, monkeypatch)
