"""Which files a data set consists of. Free of torch, so that fingerprints stay cheap."""

from __future__ import annotations

import os
from pathlib import Path

from robuq.config import ConfigError, DataConfig

# os.path.isfile and isdir, unlike those of Path, take names that nothing can have.
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def fashion_mnist_files(config: DataConfig) -> tuple[Path, ...]:
    """Training images, training labels, test images, test labels; compressed or not.

    Raises:
        ConfigError: one is missing; the message holds the command that installs them.
    """
    folder = Path(config.path) if config.path else FASHION_FOLDER
    return tuple(_fashion_file(folder, name) for name in FASHION_FILES)


def _fashion_file(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.gz", folder / name):
        if os.path.isfile(file):
            return file
    raise ConfigError(
        f"Fashion-MNIST: no {name}.gz in {folder}: run `apt-get install dataset-fashion-mnist`, "
        "or set data.path to the folder that holds the IDX files"
    )


def image_files(config: DataConfig) -> dict[str, list[Path]]:
    """{class: its image files}, both sorted by name: `path/<class>/*.png|jpg|jpeg`.

    Raises:
        ConfigError: no such folder, fewer than two classes, or a class without images.
    """
    root = Path(config.path or "")
    if not os.path.isdir(root):
        raise ConfigError(f"image folder {root} does not exist: set data.path to a folder of class folders")
    try:
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        files = {folder.name: _images_in(folder) for folder in folders}
    except OSError as error:
        raise ConfigError(f"image folder {root} cannot be read ({error.strerror}): make it readable") from None
    if not any(files.values()):
        raise ConfigError(f"no images under {root}: expected {root}/<class>/*{'|*'.join(IMAGE_SUFFIXES)}")
    if empty := [name for name, found in files.items() if not found]:
        raise ConfigError(f"class folder {root / empty[0]} holds no images ({', '.join(IMAGE_SUFFIXES)}): remove it")
    return files


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def latents_file(config: DataConfig) -> Path:
    """Raises ConfigError where it is missing."""
    file = Path(config.path or "")
    if not os.path.isfile(file):
        raise ConfigError(f"latents file {file} does not exist: set data.path to an .npz with latents and labels")
    return file
