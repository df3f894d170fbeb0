"""Data sets as tensors: training, validation and held-out images with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from robuq.config import ConfigError, DataConfig, ModelConfig
from robuq.data.arrays import read_arrays
from robuq.data.files import fashion_mnist_files, image_files, latents_file
from robuq.data.idx import read_idx
from robuq.data.pictures import read_pictures
from robuq.data.split import Split, stratified_split, training_split

MAX_CLASSES = 100_000
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True)
class ImageData:
    """Images in [-1, 1] (latents: as they are), and labels 0 .. num_classes - 1.

    What is trained sees the training images only; choices are made by the validation images, of which there may be
    none; the held-out images are what results are reported on.
    """

    train_images: Tensor  # (N, C, H, W) float32
    train_labels: Tensor  # (N,) int64
    validation_images: Tensor  # (V, C, H, W) float32
    validation_labels: Tensor  # (V,) int64
    held_out_images: Tensor  # (M, C, H, W) float32
    held_out_labels: Tensor  # (M,) int64
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class _Whole:
    """A data set before it is split, or with the split it came with."""

    images: Tensor  # (N, C, H, W)
    labels: NDArray[np.int64]  # (N,)
    classes: tuple[str, ...]
    split: Split | None = None


def load_data(config: DataConfig) -> ImageData:
    """Read, resize and split.

    Raises:
        ConfigError: one line: files are missing or damaged, sizes do not fit, or there is a single class.
    """
    readers = {"digits": _digits, "fashion_mnist": _fashion_mnist, "image_folder": _image_folder, "latents": _latents}
    whole = readers[config.name](config)
    if (present := len(np.unique(whole.labels))) < 2:
        raise ConfigError(f"{config.name} has images of {present} class, but the metrics' classifier needs at least 2")
    split = whole.split or stratified_split(whole.labels, config)
    images, labels = whole.images, torch.from_numpy(whole.labels)
    train, validation, held_out = (torch.from_numpy(part) for part in (split.train, split.validation, split.held_out))
    return ImageData(
        train_images=images[train],
        train_labels=labels[train],
        validation_images=images[validation],
        validation_labels=labels[validation],
        held_out_images=images[held_out],
        held_out_labels=labels[held_out],
        classes=whole.classes,
    )


def check_model_fits(model: ModelConfig, data: ImageData) -> None:
    """Raise ConfigError where the network and the images disagree. An unconditional network fits any classes."""
    channels, height, _ = data.image_shape
    if model.image_size != height:
        raise ConfigError(f"model.image_size is {model.image_size}, the images have {height}: make them equal")
    if model.in_channels != channels:
        raise ConfigError(f"model.in_channels is {model.in_channels}, the images have {channels}: make them equal")
    if model.num_classes not in (0, data.num_classes):
        raise ConfigError(
            f"model.num_classes is {model.num_classes}, the data have {data.num_classes}: "
            f"set {data.num_classes}, or 0 for an unconditional model"
        )


def _digits(config: DataConfig) -> _Whole:
    from sklearn.datasets import load_digits  # takes about a second: only where it is needed

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # 0..16 -> [-1, 1]; (N, 1, 8, 8)
    labels = digits.target.astype(np.int64)
    return _Whole(_resized(images, config), labels, tuple(str(name) for name in digits.target_names))


def _fashion_mnist(config: DataConfig) -> _Whole:
    files = fashion_mnist_files(config)
    images, labels = _fashion_pair(files[0], files[1])
    held_out_images, held_out_labels = _fashion_pair(files[2], files[3])
    kept = np.concatenate(parts := training_split(labels, config))
    ends = np.cumsum([len(parts[0]), len(parts[1]), len(held_out_labels)])
    split = Split(*np.split(np.arange(ends[-1]), ends[:-1]))
    used = torch.from_numpy(np.concatenate([images[kept], held_out_images]))[:, None]  # (N, 1, 28, 28)
    used_labels = np.concatenate([labels[kept], held_out_labels])
    return _Whole(_resized(_from_bytes(used), config), used_labels, FASHION_CLASSES, split)


def _fashion_pair(image_file: Path, label_file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 28, 28) and (N,)"""
    images, labels = read_idx(image_file), read_idx(label_file).astype(np.int64)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ConfigError(f"{image_file}: images {images.shape} with labels {labels.shape}: not Fashion-MNIST")
    if not len(labels):
        raise ConfigError(f"{label_file} holds no labels: not Fashion-MNIST")
    if labels.max() >= len(FASHION_CLASSES):
        raise ConfigError(f"{label_file}: label {labels.max()} is above 9: not Fashion-MNIST")
    return images, labels


def _image_folder(config: DataConfig) -> _Whole:
    files = image_files(config)
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files.values()]).astype(np.int64)
    pictures = read_pictures([file for found in files.values() for file in found], config.image_size)
    return _Whole(_from_bytes(torch.from_numpy(pictures)), labels, tuple(files))


def _latents(config: DataConfig) -> _Whole:
    file = latents_file(config)
    arrays = read_arrays(file, ("latents", "labels"))
    latents, labels = arrays["latents"], arrays["labels"]
    size = config.image_size
    if latents.ndim != 4 or latents.shape[2:] != (size, size) or len(latents) == 0:
        raise ConfigError(f"{file}: latents have shape {latents.shape}, expected (N, C, {size}, {size})")
    with np.errstate(over="ignore"):  # what is too large for float32 is not finite there
        values = latents.astype(np.float32) if latents.dtype.kind == "f" else None
    if values is None or not np.isfinite(values).all():
        raise ConfigError(f"{file}: latents must be finite floating-point numbers, got {latents.dtype}")
    if labels.shape != latents.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ConfigError(
            f"{file}: labels must be {len(latents)} class numbers from 0, got {labels.dtype} {labels.shape}"
        )
    if labels.max() >= MAX_CLASSES:
        raise ConfigError(f"{file}: got label {labels.max()}, at most {MAX_CLASSES - 1} is read")
    numbers = labels.astype(np.int64)
    return _Whole(torch.from_numpy(values), numbers, _numbered(numbers))


def _numbered(labels: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def _from_bytes(images: Tensor) -> Tensor:
    """0..255 -> [-1, 1]"""
    return images.float() / 127.5 - 1


def _resized(images: Tensor, config: DataConfig) -> Tensor:
    """(N, C, H, H) -> (N, C, image_size, image_size), by averaging areas."""
    native, size = images.shape[-1], config.image_size
    if size > native:
        raise ConfigError(f"data.image_size {size} is above the {native} pixels of {config.name}: set at most {native}")
    return images if size == native else F.interpolate(images, size=(size, size), mode="area")
