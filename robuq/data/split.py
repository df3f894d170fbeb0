"""Which images are held out, which are set aside for validation, and which are used at most. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robuq.config import ConfigError, DataConfig

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Indices of images, ascending and disjoint."""

    train: Indices
    validation: Indices
    held_out: Indices


def stratified_split(labels: NDArray[np.int64], config: DataConfig) -> Split:
    """Hold out the fraction `held_out` of every class, at least one image; split what is left by `training_split`.

    Raises:
        ConfigError: a class has a single image.
    """
    ranks, counts = _ranks(labels, config.split_seed)
    if (counts < 2).any():
        label = int(labels[np.argmin(counts)])
        raise ConfigError(f"class {label} has one image, but a split needs two: add images, or leave the class out")
    wanted = np.clip(np.rint(counts * config.held_out), 1, counts - 1)
    rest = np.flatnonzero(ranks >= wanted)
    train, validation = training_split(labels[rest], config)
    return Split(rest[train], rest[validation], np.flatnonzero(ranks < wanted))


def training_split(labels: NDArray[np.int64], config: DataConfig) -> tuple[Indices, Indices]:
    """Indices (train, validation) of images that are not held out.

    Validation gets the fraction `validation` of every class, one image at least (none of a class with a single one);
    training then keeps `limit` of the others, so that validation does not depend on it.
    """
    if config.validation == 0:
        return limited(labels, config), np.arange(0)
    ranks, counts = _ranks(labels, config.split_seed)
    wanted = np.minimum(np.maximum(np.rint(counts * config.validation), 1), counts - 1)
    train = np.flatnonzero(ranks >= wanted)
    return train[limited(labels[train], config)], np.flatnonzero(ranks < wanted)


def limited(labels: NDArray[np.int64], config: DataConfig) -> Indices:
    """Indices of at most `limit` images, ascending: every class in proportion, but at least one image of each.

    A smaller limit keeps a subset of what a larger one keeps.

    Raises:
        ConfigError: `limit` is below the number of classes.
    """
    if config.limit is None or config.limit >= len(labels):
        return np.arange(len(labels))
    if config.limit < (classes := len(np.unique(labels))):
        raise ConfigError(f"data.limit {config.limit} is below the {classes} classes: set at least {classes}")
    ranks, counts = _ranks(labels, config.split_seed)
    return np.sort(np.argsort(ranks / counts, kind="stable")[: config.limit])


def _ranks(labels: NDArray[np.int64], seed: int) -> tuple[Indices, Indices]:
    """Each image's place in a random order of its class, and the size of its class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    ranks, counts = np.empty_like(labels), np.empty_like(labels)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = np.arange(len(members))
        counts[members] = len(members)
    return ranks, counts
