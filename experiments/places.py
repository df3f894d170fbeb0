"""Which parts of an output folder are folders and which are files, and what is said where somebody has it otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from experiments.fence import LOCK
from robuq.config import ConfigError
from robuq.stages import KINDS, QUARANTINE

STAGES = ("stages", *(f"stages/{kind}" for kind in (*KINDS, QUARANTINE)))
FOLDERS = (*STAGES, "runs", "searches", "artifacts", "reports", "paper", "samples", QUARANTINE)
FILES = ("sweep.lock", "mlflow.db", f"stages/{LOCK}")
OF_PLANS = ("runs", "searches", "reports", "artifacts")  # with one folder for each plan or search
OF_ANOTHER_KIND = (FileExistsError, NotADirectoryError, IsADirectoryError)
REMEDY = "move it away, or choose another --output"

# The functions of os.path, unlike those of Path, take what the system refuses to look at for absent: whoever needs it
# says what is wrong.


def check_places(folder: Path) -> None:
    """Raises ConfigError: this is no output folder, and could not become one."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    if _is_no_folder(there):
        raise ConfigError(f"cannot write to {folder} ({there} is no folder): choose another --output")
    _check_folders(folder / name for name in FOLDERS)
    for file in (folder / name for name in FILES):
        if os.path.exists(file) and not os.path.isfile(file):
            raise ConfigError(f"cannot use {file} (it is no file): {REMEDY}")


def check_places_of(folder: Path, plan: str) -> None:
    """Raises ConfigError: what the plan, or the search, leaves would have no folder."""
    _check_folders(folder / part / plan for part in OF_PLANS)


def of_another_kind(error: BaseException, folder: Path) -> ConfigError | None:
    """What the error says of a part of `folder`: it is a file where a folder is needed, or the other way round; None
    where it is about something else."""
    if not isinstance(error, OF_ANOTHER_KIND):
        return None
    names = (error.filename2, error.filename)  # of two, as of a renaming, the second was to be written
    places = [Path(os.fsdecode(name)) for name in names if isinstance(name, (str, bytes, os.PathLike))]
    place = next((path for path in places if path.is_relative_to(folder)), None)
    return None if place is None else ConfigError(f"cannot use {place} ({error.strerror}): {REMEDY}")


def _check_folders(paths: Iterable[Path]) -> None:
    for path in paths:
        if _is_no_folder(path):
            raise ConfigError(f"cannot use {path} (it is no folder): {REMEDY}")


def _is_no_folder(path: Path) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)
