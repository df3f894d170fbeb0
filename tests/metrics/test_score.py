from math import e

import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from robuq.metrics.score import classifier_score


def test_confident_and_varied_is_the_number_of_classes():
    logits = torch.eye(5).repeat(4, 1) * 1000
    assert classifier_score(logits)[0] == pytest.approx(5)


def test_one_answer_for_all_or_no_answer_at_all_is_one():
    assert classifier_score(torch.eye(5)[:1].repeat(9, 1) * 1000)[0] == pytest.approx(1)
    assert classifier_score(torch.zeros(9, 5))[0] == pytest.approx(1)


def test_two_by_hand():
    """p = (1, 0) and (1/2, 1/2): marginal (3/4, 1/4)."""
    logits = torch.tensor([[1000.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    first, second = torch.tensor(4 / 3).log(), (torch.tensor(2 / 3).log() + torch.tensor(2.0).log()) / 2
    assert classifier_score(logits)[0] == pytest.approx(e ** float((first + second) / 2), rel=1e-6)


class Identity(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


@pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features")
@pytest.mark.filterwarnings("ignore:std.*degrees of freedom")  # theirs, of one split
def test_agrees_with_torchmetrics():
    """In one split, where its shuffling does not matter."""
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    metric = InceptionScore(feature=Identity(), splits=1)
    metric.update(logits.view(64, 10, 1, 1))
    mean, sd = classifier_score(logits)
    assert mean == pytest.approx(float(metric.compute()[0]), rel=1e-5)
    assert sd == 0


def test_splits_are_interleaved():
    """Images in the order of their labels score as in any other order."""
    logits = torch.eye(4).repeat_interleave(6, dim=0) * 1000
    assert classifier_score(logits, splits=3) == pytest.approx((4, 0), abs=1e-6)


def test_the_spread_is_that_of_the_splits():
    logits = torch.eye(2)[[0, 0, 0, 1]] * 1000  # splits: (0, 0) and (0, 1), scores 1 and 2
    assert classifier_score(logits, splits=2) == pytest.approx((1.5, 0.5))


@pytest.mark.parametrize("splits", [0, 5])
def test_impossible_splits_are_refused(splits):
    with pytest.raises(ValueError, match="use 1 to 4 splits"):
        classifier_score(torch.zeros(4, 2), splits)
