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

import numpy as np
from numpy.typing import NDArray

from robuq.config import ConfigError

UNSIGNED_BYTE = 0x08


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array in a plain or gzip-compressed IDX file of unsigned bytes.

    Raises:
        ConfigError: not readable, not IDX, or shorter or longer than its header says.
    """
    content = _content(file)
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise ConfigError(f"{file} is no IDX file of unsigned bytes: it starts with {content[:4].hex() or 'nothing'}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ConfigError(f"{file} is cut off inside its header: fetch it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != prod(shape):
        raise ConfigError(f"{file} holds {len(content) - start} values, its header says {shape}: fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(file: Path) -> bytes:
    try:
        raw = file.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
