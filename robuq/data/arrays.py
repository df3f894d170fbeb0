"""Arrays in .npz files that somebody else may have written: plain numbers only, nothing unpickled, and no more memory
than the files on the disk can account for. Free of torch."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from robuq.config import ConfigError
from robuq.storage_fault import StorageFault, check_readable, reading

MAX_RATIO = 1100  # of unpacked to packed bytes: deflate's most is 1032
UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, SyntaxError, RuntimeError, OverflowError,
    MemoryError, TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def read_arrays(file: Path, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Those arrays of an .npz.

    Raises:
        ConfigError: it cannot be read, lacks one of them, or holds something other than plain arrays.
    """
    try:
        with reading(file), zipfile.ZipFile(file) as archive:
            known = archive.namelist()
            if lacking := [name for name in names if f"{name}.npy" not in known]:
                raise ConfigError(f"{file}: no array {lacking[0]!r}: it needs {' and '.join(names)}")
            return {name: _array(archive, f"{name}.npy") for name in names}
    except UNREADABLE as error:
        if isinstance(error, (ConfigError, StorageFault)):
            raise
        if isinstance(error, zipfile.BadZipFile):
            check_readable(file)  # an end of the archive that the disk does not give is none to zipfile
        reason = str(error) or type(error).__name__
        raise ConfigError(f"cannot read {file}: {reason}: it must be an .npz of plain arrays") from None


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    """Raises ValueError before memory is taken for more than the archive can hold."""
    info = archive.getinfo(name)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{name} has the format {version}")
        shape, _, dtype = read[version](stream)
    size = prod(shape) * dtype.itemsize
    if dtype.hasobject or size > min(info.file_size, MAX_RATIO * max(info.compress_size, 1)):
        raise ValueError(f"{name} is no plain array of {info.file_size} bytes")
    with archive.open(info) as stream:
        array: NDArray[np.generic] = np.lib.format.read_array(stream, allow_pickle=False)
    return array
