"""The kernel distance: a squared maximum mean discrepancy, unbiased at every number of images."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024  # rows of a kernel block


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """(N, F), (M, F) -> E k(x, x') + E k(y, y') - 2 E k(x, y), k(a, b) = (a.b / F + 1)^3, over distinct pairs.

    Unbiased, so it can fall below zero. Source: Binkowski et al. 2018. Paper: the mean over random subsets.
    We: all images at once, because the estimate is unbiased either way and this one varies less.

    Raises:
        ValueError: fewer than two vectors in a set.
    """
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"{len(real)} real and {len(fake)} fake feature vectors: need at least 2 of each")
    real, fake = real.double(), fake.double()
    n, m = len(real), len(fake)
    same = (_sum(real, real) - _diagonal(real)) / (n * (n - 1)) + (_sum(fake, fake) - _diagonal(fake)) / (m * (m - 1))
    return float(same - 2 * _sum(real, fake) / (n * m))


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([(part @ b.T / a.shape[1] + 1).pow_(3).sum() for part in torch.split(a, BLOCK)]).sum()


def _diagonal(a: Tensor) -> Tensor:
    return (a.square().sum(dim=1) / a.shape[1] + 1).pow(3).sum()
