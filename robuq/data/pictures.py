"""Image files as arrays, cropped and resized as DiT does. Free of torch."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robuq.config import ConfigError
from robuq.storage_fault import reading

FORMATS = ("PNG", "JPEG")  # of what others can do, some start programs
MAX_PIXELS, MAX_RATIO = 2**26, 100  # of a file; of its longer side to its shorter one
UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, struct.error, zlib.error)
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")  # first letters of the modes with more than 8 bits a channel


def read_pictures(files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """(N, C, size, size): C = 1 where every file is grey, else 3.

    Raises:
        ConfigError: a file that is no picture, is cut off, or has more than 8 bits a channel.
    """
    grey = all(_mode(file) in GREY_MODES for file in files)
    pictures = [_picture(file, "L" if grey else "RGB", size) for file in files]
    stacked = np.stack(pictures)
    return stacked[:, None] if grey else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _mode(file: Path) -> str:
    with _opened(file) as picture:
        mode: str = picture.mode
        width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_RATIO * min(width, height):
        raise ConfigError(f"{file} is {width} x {height}: at most {MAX_PIXELS} pixels and {MAX_RATIO} to 1 are read")
    if mode.startswith(DEEP_MODES):
        raise ConfigError(f"{file} has mode {mode!r}, more than 8 bits a channel: save it with 8 bits")
    return mode


def _picture(file: Path, mode: str, size: int) -> NDArray[np.uint8]:
    with _opened(file) as picture:
        return np.asarray(centre_crop(picture.convert(mode), size))


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Raises ConfigError, also where the file turns out to be damaged later."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: what it says of large or odd files, we say or do not mind
            with reading(file), Image.open(file, formats=FORMATS) as picture:
                yield picture
    except UNREADABLE as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot read {file} as PNG or JPEG: {error}: replace or remove it") from None
    except Image.DecompressionBombError:
        raise ConfigError(f"{file} has more than {MAX_PIXELS} pixels: make it smaller, or remove it") from None


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The middle square, `size` pixels wide.

    Halve by box averaging while the shorter side is at least twice as long as wanted, then resize bicubically.
    Source: the preprocessing of DiT, which is that of guided diffusion.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    shape = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    picture = picture.resize(shape, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))
