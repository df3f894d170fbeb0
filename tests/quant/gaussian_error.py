"""The closed-form error of a codebook on a normal variable, with scipy's distribution: a reference for grids."""

import numpy as np
import torch
from scipy.stats import norm


def gaussian_mse(codebook: torch.Tensor) -> float:
    """E (Q(x) - x)^2 for x ~ N(0, 1), Q the nearest of the ascending levels `codebook` (L,).

    Over a cell (a, b) of level l: (1 + l^2) P - (b phi(b) - a phi(a)) - 2 l M, with P = Phi(b) - Phi(a) and
    M = phi(a) - phi(b).
    """
    level = codebook.double().numpy()
    edge = (level[1:] + level[:-1]) / 2
    probability = np.diff(norm.cdf(edge), prepend=0.0, append=1.0)
    moment = -np.diff(norm.pdf(edge), prepend=0.0, append=0.0)
    d_edge_density = np.diff(edge * norm.pdf(edge), prepend=0.0, append=0.0)
    return float(np.sum((1 + level**2) * probability - d_edge_density - 2 * level * moment))
