"""Precision and recall by nearest neighbours: is a generated image like real ones, and the reverse?

Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative models".
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024  # rows of a distance block: 8 MB in float64


def precision_recall(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    """(N, F), (M, F) -> precision and recall, in the dtype of the features.

    A set's manifold is the union of balls around its points that reach to their k-th nearest neighbour in the
    set. Precision: the fraction of fake in the manifold of real. Recall: the fraction of real in that of fake.

    Raises:
        ValueError: fewer than k + 1 vectors in a set.
    """
    centre = real.mean(dim=0)  # small norms keep |a|^2 + |b|^2 - 2 a.b accurate
    real, fake = real - centre, fake - centre
    real_radii, fake_radii = squared_radii(real, k), squared_radii(fake, k)
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    inside = 0
    for points, radii in zip(torch.split(fake, BLOCK), torch.split(fake_radii, BLOCK), strict=True):
        realistic = torch.zeros(len(points), dtype=torch.bool, device=real.device)
        for start in range(0, len(real), BLOCK):
            part = slice(start, start + BLOCK)
            distances = squared_distances(points, real[part])
            realistic |= (distances <= real_radii[part]).any(dim=1)
            covered[part] |= (distances <= radii[:, None]).any(dim=0)
        inside += int(realistic.sum())
    return inside / len(fake), int(covered.sum()) / len(real)


def squared_radii(points: Tensor, k: int) -> Tensor:
    """(N, F) -> (N,): squared distance to the k-th nearest other point.

    The matrix of distances is symmetric: each block above the diagonal serves its rows and its columns.

    Raises:
        ValueError: no point has k others.
    """
    if len(points) <= k:
        raise ValueError(f"{len(points)} feature vectors have no {k}-th neighbours: need at least {k + 1}")
    parts = torch.split(points, BLOCK)
    nearest = [points.new_full((len(part), k), torch.inf) for part in parts]
    for row, upper in enumerate(parts):
        for column in range(row, len(parts)):
            distances = squared_distances(upper, parts[column])
            if row == column:
                distances.fill_diagonal_(torch.inf)
            else:
                nearest[column] = _smallest(nearest[column], distances.T)
            nearest[row] = _smallest(nearest[row], distances)
    return torch.cat(nearest)[:, -1]


def _smallest(nearest: Tensor, distances: Tensor) -> Tensor:
    """(B, k), (B, C) -> (B, k), ascending."""
    k = nearest.shape[1]
    closest = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return torch.cat([nearest, closest], dim=1).topk(k, dim=1, largest=False).values


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(A, F), (B, F) -> (A, B)"""
    norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_(min=0)
