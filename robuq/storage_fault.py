"""The disk does not take what is written: full, read-only or broken; or it does not give what was. Whatever library
noticed it, it is said alike."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = "make room there"
WRITABLE, PERMITTED = "make it writable, or choose another place", "give it the permissions, or choose another place"
BROKEN, RESTORE = "look after the disk, or choose another place", "look after the disk, or restore the file"
# What a disk that fails, or a file system whose own checksums do not fit, answers; ESTALE and EREMOTEIO over a network.
OF_DISKS = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ESTALE, errno.EREMOTEIO)
WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the others may come of reading
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: f"{ROOM}, or have the quota raised",
    errno.EROFS: WRITABLE,
    errno.EACCES: PERMITTED,
    errno.EPERM: PERMITTED,
    **dict.fromkeys(OF_DISKS, BROKEN),
}
OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
OF_TABLES = re.compile(
    r"already exists|no such (table|column)|duplicate column"
)  # SQLite has one code for all errors of SQL
OF_SAFETENSORS = re.compile(r"\(os error (\d+)\)")  # it has no exception for them


CHUNK = 1 << 20


class StorageFault(RuntimeError):
    """A folder can no longer be written to, a file not be read, or a study's database is away: one line that names it
    and says what to do. What is there is left as it is, and the same command goes on."""


def storage_fault(error: BaseException, folder: Path) -> StorageFault | None:
    """What the error, or one that it was made of, says of `folder`, or of another place that it names; None where it
    is about something else."""
    for each in _chain(error):
        if isinstance(each, StorageFault):
            return each
        number = _errno(each)
        if number is not None and number in REMEDIES:
            verb = "write to" if number in WRITES else "use"
            return StorageFault(f"cannot {verb} {_place(each, folder)} ({os.strerror(number)}): {REMEDIES[number]}")
    return None


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """A write that fails does not say where, while an opening does: inside, it was in `folder`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(folder)
        raise


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Inside, a file is read. One that the disk does not give says nothing of what is in it: it is not damaged, and
    must not be taken for that.

    Raises:
        StorageFault: the disk did not give it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_DISKS:
            raise
        raise StorageFault(f"cannot read {file} ({os.strerror(error.errno)}): {RESTORE}") from error


def check_readable(file: Path) -> None:
    """Read it once through. Before a library maps it into memory: the kernel would end a process that meets there what
    the disk does not give.

    Raises:
        StorageFault: the disk does not give it.
    """
    with reading(file), file.open("rb") as stream:
        while stream.read(CHUNK):
            continue


def is_locked_out(error: BaseException) -> bool:
    """Whether another program held an SQLite file for too long."""
    return _is_of_sqlite(error, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_no_database(error: BaseException) -> bool:
    """Whether a file is not the SQLite database that it should be."""
    return _is_of_sqlite(error, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def is_half_made(error: BaseException) -> bool:
    """Whether tables of an SQLite file are there that were to be made, or are not there that must be."""
    return any(isinstance(each, sqlite3.OperationalError) and OF_TABLES.search(str(each)) for each in _chain(error))


def _is_of_sqlite(error: BaseException, *codes: int) -> bool:
    return any(isinstance(each, sqlite3.Error) and _sqlite_code(each) in codes for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from or while they were handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _place(error: BaseException, folder: Path) -> Path:
    """Of two file names, as of a copy, the second is written."""
    names = (error.filename2, error.filename) if isinstance(error, OSError) else ()
    name = next((name for name in names if isinstance(name, (str, bytes, os.PathLike))), None)
    file = folder if name is None else Path(os.fsdecode(name))
    return folder if file.is_relative_to(folder) or not file.is_absolute() else file.parent


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, sqlite3.Error):
        return OF_SQLITE.get(_sqlite_code(error))
    found = OF_SAFETENSORS.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _sqlite_code(error: sqlite3.Error) -> int:
    """The primary result code: the low byte of the extended one. 0 where the error is not SQLite's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
