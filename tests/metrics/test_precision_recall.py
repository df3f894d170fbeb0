import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from robuq.metrics import precision_recall as module
from robuq.metrics.precision_recall import precision_recall, squared_radii


def points(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * scale + shift


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """The definition: whole distance matrices; the zero to itself is the first of each sorted row."""
    real_radii = np.sort(cdist(real, real), axis=1)[:, k]
    fake_radii = np.sort(cdist(fake, fake), axis=1)[:, k]
    across = cdist(fake, real)
    return (across <= real_radii).any(axis=1).mean(), (across <= fake_radii[:, None]).any(axis=0).mean()


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(6, 40),
    m=st.integers(6, 40),
    width=st.integers(1, 5),
    k=st.integers(1, 5),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 10_000),
)
def test_agrees_with_brute_force(n, m, width, k, shift, seed):
    real, fake = points(n, width, seed), points(m, width, seed + 1, shift=shift)
    assert precision_recall(real, fake, k) == pytest.approx(brute_force(real.numpy(), fake.numpy(), k), abs=1e-12)


@pytest.mark.parametrize("block", [1, 2, 7, 50, 1000])
def test_blocks_change_nothing(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    real, fake = points(50, 8, 0), points(43, 8, 1, scale=0.7)
    assert precision_recall(real, fake, 3) == pytest.approx(brute_force(real.numpy(), fake.numpy(), 3), abs=1e-12)


def test_far_from_the_origin_in_single_precision():
    """|a|^2 is 10^8 there, where float32 has steps of 8: distances of about 1 survive because we centre first."""
    real, fake = points(60, 4, 0, shift=5000.0), points(60, 4, 1, shift=5000.0)
    expected = brute_force(real.float().double().numpy(), fake.float().double().numpy(), 3)
    assert precision_recall(real.float(), fake.float(), 3) == pytest.approx(expected, abs=2 / 60)


def test_copies_are_perfect_and_strangers_are_not():
    real = points(40, 3, 0)
    assert precision_recall(real, real.clone(), 3) == (1.0, 1.0)
    assert precision_recall(real, real + 1000, 3) == (0.0, 0.0)


def test_collapse_has_precision_without_recall():
    real = points(200, 2, 0)
    fake = real[:1] + 1e-6 * points(200, 2, 1)
    precision, recall = precision_recall(real, fake, 3)
    assert precision == 1.0
    assert recall <= 1 / 200


def test_the_smallest_sets():
    """k + 1 points are just enough."""
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert squared_radii(line, 2).tolist() == [9.0, 4.0, 9.0]
    with pytest.raises(ValueError, match="3 feature vectors have no 3-th neighbours: need at least 4"):
        squared_radii(line, 3)
