"""Made-up contents of a distributions.npz."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Arrays = dict[str, NDArray[Any]]
ROLES, BLOCKS, BINS = ("qkv", "proj", "fc1", "fc2"), 3, 4
EDGES = np.sinh(np.linspace(-5, 5, 129))
WEIGHT_EDGES = np.linspace(-12, 12, 193)


def shape_arrays() -> Arrays:
    """12 layers in 4 bins of timesteps: Laplacian tokens before and normal ones after, and normal weights."""
    rng = np.random.default_rng(0)
    count = len(ROLES) * BLOCKS
    z = {"raw": stats.laplace(scale=math.sqrt(0.5)).rvs(20_000, random_state=rng), "rotated": rng.normal(size=20_000)}
    weights = rng.normal(size=30_000)
    tau = np.abs(weights).mean() / 2
    histograms = np.stack([np.histogram(values, EDGES)[0] for values in z.values()]).astype(np.uint32)
    codes = [(weights <= -tau).mean(), (np.abs(weights) < tau).mean(), (weights >= tau).mean()]
    kurtosis = np.stack([5 + rng.normal(size=(count, BINS)), rng.normal(0, 0.2, (count, BINS))], -1)
    return {
        "layer": np.array([f"transformer_blocks.{i // 4}.{ROLES[i % 4]}" for i in range(count)]),
        "role": np.array(ROLES * BLOCKS),
        "block": np.arange(count) // 4,
        "timestep_edges": np.linspace(0, 1000, BINS + 1),
        "edges": EDGES,
        "weight_edges": WEIGHT_EDGES,
        "width": np.tile(np.where(np.array(ROLES * BLOCKS) == "fc2", 256, 64)[:, None], (1, BINS)),
        "num_tokens": np.full((count, BINS, 2), 300),
        "kurtosis": kurtosis,
        "kl": np.abs(kurtosis) / 10,
        "kl_floor": np.full((count, BINS, 2), 0.002),
        "token_kurtosis": kurtosis[..., None] + np.array([-1.0, 0.0, 1.0]),
        "expected_kurtosis": np.full((count, BINS), -0.1),
        "histogram": np.broadcast_to(histograms, (count, BINS, 2, 128)).copy(),
        "levels": np.broadcast_to(np.r_[[-1.5, -0.5, 0.5, 1.5], np.full(12, np.nan)], (count, BINS, 16)).copy(),
        "num_weights": np.full(count, weights.size),
        "weight_histogram": np.tile(np.histogram(weights / tau, WEIGHT_EDGES)[0].astype(np.uint32), (count, 1)),
        "weight_codes": np.tile(np.array(codes), (count, 1)),
        "weight_level": np.full(count, np.abs(weights[np.abs(weights) >= tau]).mean() / tau),
        "weight_rms": np.full(count, weights.std() / tau),
        "branch_share": np.full(count, 0.05),
    }
