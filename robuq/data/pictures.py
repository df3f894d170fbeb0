"""Image files as arrays, cropped and resized as DiT does. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robuq.config import ConfigError

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
    try:
        with Image.open(file) as picture:
            mode: str = picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read {file}: {error}: replace or remove it") from None
    if mode.startswith(DEEP_MODES):
        raise ConfigError(f"{file} has mode {mode!r}, more than 8 bits a channel: save it with 8 bits")
    return mode


def _picture(file: Path, mode: str, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as picture:
            return np.asarray(centre_crop(picture.convert(mode), size))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read {file}: {error}: replace or remove it") from None


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
