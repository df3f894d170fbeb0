import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg
from torchmetrics.image.fid import FrechetInceptionDistance

from robuq.metrics.frechet import frechet_distance, moments, trace_sqrt_product


def covariance(rank: int, size: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(size, rank))
    return x @ x.T / rank


@given(mean=st.floats(-5, 5), one=st.floats(0, 9), other=st.floats(0, 9))
def test_one_dimension(mean, one, other):
    """(m1 - m2)^2 + (s1 - s2)^2"""
    got = frechet_distance(np.zeros(1), np.array([[one**2]]), np.array([mean]), np.array([[other**2]]))
    assert got == pytest.approx(mean**2 + (one - other) ** 2, abs=1e-9)


def test_commuting_covariances_have_a_closed_form():
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))
    one, other = np.arange(1.0, 8.0), np.arange(7.0) ** 2  # the second has a zero eigenvalue
    got = frechet_distance(np.ones(7), basis * one @ basis.T, np.zeros(7), basis * other @ basis.T)
    assert got == pytest.approx(7 + np.sum((np.sqrt(one) - np.sqrt(other)) ** 2), abs=1e-6)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_agrees_with_the_general_matrix_root(size):
    one, other = covariance(3 * size, size, 1), covariance(2 * size, size, 2)
    assert trace_sqrt_product(one, other) == pytest.approx(np.trace(linalg.sqrtm(one @ other)).real, rel=1e-10)


@pytest.mark.parametrize(("rank_one", "rank_other"), [(3, 20), (20, 3), (3, 2), (0, 5), (5, 0), (0, 0)])
def test_singular_covariances(rank_one, rank_other):
    """Against the sum of singular values of the product of the two factors, which are known here."""
    size = 12
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(size, rank_one)), generator.normal(size=(size, rank_other))
    expected = linalg.svdvals(x.T @ y).sum() if rank_one and rank_other else 0.0
    # Rounding leaves eigenvalues of about size * eps * |one| |other| in place of zeros; the root is taken of them.
    one, other = x @ x.T, y @ y.T
    noise = size * np.sqrt(size * np.finfo(float).eps * np.linalg.norm(one, 2) * np.linalg.norm(other, 2))
    assert trace_sqrt_product(one, other) == pytest.approx(expected, abs=noise)


def test_equal_distributions_are_at_zero_and_the_distance_is_symmetric():
    one, other = covariance(30, 10, 1), covariance(30, 10, 2)
    mean = np.arange(10.0)
    assert frechet_distance(mean, one, mean, one) == pytest.approx(0, abs=1e-9)
    there, back = frechet_distance(mean, one, -mean, other), frechet_distance(-mean, other, mean, one)
    assert there == pytest.approx(back, rel=1e-12)


class Flat(torch.nn.Module):
    """Features are the pixels."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(200, 3, 2, 2, generator=generator, dtype=torch.float64)
    fake = torch.rand(150, 3, 2, 2, generator=generator, dtype=torch.float64) ** 2
    metric = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = frechet_distance(*moments(real.flatten(1)), *moments(fake.flatten(1)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-9)


def test_moments_are_numpys():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 100
    mean, cov = moments(x)
    assert np.allclose(mean, x.double().numpy().mean(axis=0), rtol=1e-14)
    assert np.allclose(cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10)


def test_unusable_features_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        moments(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        moments(torch.full((4, 3), torch.nan))
