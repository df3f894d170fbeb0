import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from robuq.metrics import kernel
from robuq.metrics.kernel import kernel_distance


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


class Identity(torch.nn.Module):
    num_features = 8

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


@pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features")
def test_agrees_with_torchmetrics():
    """With one subset of everything, theirs is ours."""
    real, fake = features(60, 0), features(60, 1, 0.3)
    metric = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=60, normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(real.view(60, 8, 1, 1), real=True)
    metric.update(fake.view(60, 8, 1, 1), real=False)
    assert kernel_distance(real, fake) == pytest.approx(float(metric.compute()[0]), rel=1e-6)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_change_nothing(monkeypatch, block):
    expected = kernel_distance(features(30, 0), features(20, 1))
    monkeypatch.setattr(kernel, "BLOCK", block)
    assert kernel_distance(features(30, 0), features(20, 1)) == pytest.approx(expected, rel=1e-12)


def test_it_is_unbiased():
    """The mean over many small samples of one distribution is zero within four standard errors."""
    draws = torch.tensor([kernel_distance(features(6, 2 * seed), features(9, 2 * seed + 1)) for seed in range(400)])
    assert draws.mean().abs() < 4 * draws.std() / 400**0.5
    assert (draws < 0).any()


def test_single_images_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(features(1, 0), features(5, 0))
