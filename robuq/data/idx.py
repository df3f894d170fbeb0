"""The IDX format of MNIST-like data sets: big-endian header, then unsigned bytes. Free of torch.

Header: two zero bytes, the element type (0x08 for unsigned bytes), the number of dimensions, then each
dimension as a 32-bit integer. Source: the format's description beside the MNIST database.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from robuq.config import ConfigError
from robuq.storage_fault import reading

UNSIGNED_BYTE = 0x08
MAX_AXES, MAX_VALUES = 4, 2**31


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array in a plain or gzip-compressed IDX file of unsigned bytes.

    No more is unpacked than the header announces: a small compressed file can hold any amount of nothing.

    Raises:
        ConfigError: not readable, not IDX, or shorter or longer than its header says.
    """
    try:
        with reading(file), _opened(file) as stream:
            shape = _shape(stream, file)
            content = stream.read(prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    if len(content) != prod(shape):
        got = f"{len(content)} values" if len(content) < prod(shape) else f"more than {prod(shape)} values"
        raise ConfigError(f"{file} holds {got}, its header says {shape}: fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _opened(file: Path) -> IO[bytes]:
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(file)) if packed else file.open("rb")


def _shape(stream: IO[bytes], file: Path) -> tuple[int, ...]:
    start = stream.read(4)
    if len(start) < 4 or start[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise ConfigError(f"{file} is no IDX file of unsigned bytes: it starts with {start.hex() or 'nothing'}")
    axes = start[3]
    header = stream.read(4 * axes)
    if len(header) < 4 * axes:
        raise ConfigError(f"{file} is cut off inside its header: fetch it again")
    shape = struct.unpack(f">{axes}I", header)
    if not 1 <= axes <= MAX_AXES or prod(shape) > MAX_VALUES:
        raise ConfigError(f"{file} has an array of {axes} axes, {prod(shape)} values: at most {MAX_AXES}, {MAX_VALUES}")
    return shape
