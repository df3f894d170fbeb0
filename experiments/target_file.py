"""A file that a command will write at its end, looked at before the long work: can it be, and is nothing lost by it?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from robuq.config import ConfigError


def check_target(file: Path, kind: str, is_of_kind: Callable[[Path], bool]) -> None:
    """Writes nothing that stays. `kind`: what the command writes, "a PNG"; `is_of_kind`: whether a file is one.

    Raises:
        ConfigError: the file cannot be written, or another kind of file is there.
    """
    try:
        _check_folder(file)
        is_other = file.is_file() and file.stat().st_size > 0 and not is_of_kind(file)
    except OSError as error:
        raise not_written(file, error) from None
    if is_other:
        raise ConfigError(f"{file} is there, and is not {kind}: move it away, or choose another --file")


def not_written(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {file} ({error.strerror}): choose another --file")


def _check_folder(file: Path) -> None:
    """Raises OSError: `file` is a folder, or nothing can be written to the nearest folder that is there."""
    if file.is_dir():
        raise IsADirectoryError(0, "it is a folder")
    folder = next(path for path in file.absolute().parents if os.path.lexists(path))
    if not file.exists() or file.is_file():  # not a device
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"0")
