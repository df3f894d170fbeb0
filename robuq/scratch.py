"""Temporary folders that go with the command that made them, or with the next one where it was killed.

`robuq-<purpose>-tmp-*` under the system's temporary folder. Whoever made one holds its lock, which the system takes
back when the process ends: a folder that nobody holds was left by a killed command. Free of torch.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "robuq-{}-tmp-"


class ScratchFolder:
    """An empty folder that is nobody else's; `close` removes it."""

    def __init__(self, purpose: str) -> None:
        """Raises OSError: the temporary folder cannot be written to."""
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=NAME.format(purpose)))
            held = _held(self.path)
            if held is not None:
                self._held = held
                return
            # another command took it for one that was left behind, in the moment before it was held

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held >= 0:
            os.close(self._held)
        self._held = -1


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A scratch folder for the time of the block. Raises OSError: the temporary folder cannot be written to."""
    folder = ScratchFolder(purpose)
    try:
        yield folder.path
    finally:
        folder.close()


def remove_abandoned() -> list[Path]:
    """What was removed. A folder that something still writes to may keep a part of it; the next call takes it."""
    removed = []
    for path in _all():
        held = _held(path)
        if held is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)
            removed.append(path)
    return removed


def _all() -> list[Path]:
    return sorted(Path(tempfile.gettempdir()).glob(NAME.format("*") + "*"))


def _held(path: Path) -> int | None:
    """A descriptor that holds the folder; None where another process does, or where it is gone or somebody else's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    if not path.is_dir() or path.stat().st_ino != os.fstat(descriptor).st_ino:
        os.close(descriptor)
        return None
    return descriptor
