"""The Frechet distance between two normal distributions, and the moments that it needs.

Never called FID: that name belongs to one network's features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

Array = NDArray[np.float64]


def moments(features: Tensor) -> tuple[Array, Array]:
    """(N, F) -> mean (F,) and unbiased covariance (F, F), in float64.

    Raises:
        ValueError: fewer than two feature vectors, or some that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features have shape {tuple(features.shape)}, need (N, F) with N of at least 2")
    x = features.detach().cpu().double().numpy()
    if not np.isfinite(x).all():
        raise ValueError("features are not finite: the network that drew the images has diverged")
    centred = x - (mean := x.mean(axis=0))
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_distance(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> float:
    """|mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)); (F,), (F, F) twice; never negative.

    Singular covariances are allowed. Source: Dowson and Landau 1982.
    """
    shift = float(np.sum((mu1 - mu2) ** 2))
    spread = float(np.trace(cov1) + np.trace(cov2)) - 2 * trace_sqrt_product(cov1, cov2)
    return max(shift + spread, 0.0)


def trace_sqrt_product(cov1: Array, cov2: Array) -> float:
    """tr (cov1 cov2)^(1/2) of two symmetric positive semidefinite matrices (F, F).

    The product's eigenvalues are those of the symmetric L^T cov1 L with cov2 = L L^T: no square root of a
    general matrix, hence no complex remainder. L is Cholesky's factor, or V sqrt(w) where cov2 is singular.
    """
    try:
        eigenvalues = linalg.eigh(cov1, cov2, type=2, eigvals_only=True, driver="gvd", check_finite=False)
    except linalg.LinAlgError:  # cov2 has no Cholesky factor
        w, v = linalg.eigh(cov2)
        factor = v * np.sqrt(np.clip(w, 0, None))
        eigenvalues = linalg.eigvalsh(factor.T @ cov1 @ factor)
    return float(np.sqrt(np.clip(eigenvalues, 0, None)).sum())
