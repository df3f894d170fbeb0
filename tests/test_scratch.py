"""Temporary folders: gone with their command, or with the next one where it was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from robuq.scratch import ScratchFolder, remove_abandoned, scratch_folder

HOLD = """
import sys
from robuq.scratch import ScratchFolder
folder = ScratchFolder("held")
(folder.path / "file").write_text("kept")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_is_gone_after_its_block_even_if_that_fails(temporary: Path) -> None:
    def use() -> None:
        with scratch_folder("x") as folder:
            (folder / "sub").mkdir()
            seen.append(folder)
            raise ValueError("broken")

    seen: list[Path] = []
    with pytest.raises(ValueError, match="broken"):
        use()
    assert seen[0].parent == temporary
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_found_and_removed_and_nothing_else(temporary: Path) -> None:
    mine = ScratchFolder("mine")
    foreign = temporary / "somebody-elses"
    foreign.mkdir()
    environment = {"TMPDIR": str(temporary)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    held = Path(holder.stdout.readline().strip())
    assert remove_abandoned() == []
    assert (held / "file").read_text() == "kept"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert remove_abandoned() == [held]
    assert sorted(temporary.iterdir()) == sorted([mine.path, foreign])
    holder.stdin.close()
    holder.stdout.close()
    mine.close()


def test_a_folder_that_was_moved_away_while_it_was_looked_at_is_left_alone(temporary: Path) -> None:
    (temporary / "robuq-x-tmp-1").symlink_to(temporary)
    assert remove_abandoned() == []
    assert (temporary / "robuq-x-tmp-1").is_symlink()
