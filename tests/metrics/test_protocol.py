import pytest
import torch

from robuq.config import DataConfig, EvalConfig, FeatureConfig
from robuq.data.load import load_data
from robuq.metrics.classifier import predict, reference_images, train_classifier
from robuq.metrics.frechet import frechet_distance, moments
from robuq.metrics.protocol import image_metrics, real_floor

CONFIG = EvalConfig(features=FeatureConfig(epochs=4))


@pytest.fixture(scope="module")
def setting():
    data = load_data(DataConfig())
    classifier = train_classifier(data, CONFIG.features)
    return data, classifier, predict(classifier, reference_images(data, CONFIG.features)[0])[0]


def test_held_out_images_beat_noisy_ones(setting):
    """By all but recall, which noise does not lower: it widens the balls around the generated images."""
    data, classifier, reference = setting
    images, labels = data.held_out_images, data.held_out_labels
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    clean = image_metrics(classifier, reference, images, labels, CONFIG)
    noisy = image_metrics(classifier, reference, (images + 0.7 * noise).clamp(-1, 1), labels, CONFIG)
    assert all(clean[name] < noisy[name] for name in ("fd_classifier", "kd_classifier"))
    assert all(clean[name] > noisy[name] for name in ("precision", "classifier_score", "label_agreement"))
    assert not any("fid" in name for name in clean)


def test_one_class_alone_has_precision_without_recall(setting):
    data, classifier, reference = setting
    zeros = data.held_out_images[data.held_out_labels == 0]
    whole = image_metrics(classifier, reference, data.held_out_images, None, CONFIG)
    part = image_metrics(classifier, reference, zeros, None, CONFIG)
    assert part["precision"] > 0.7
    assert part["recall"] < 0.2  # a tenth of the images are zeros
    assert part["fd_classifier"] > 5 * whole["fd_classifier"]
    assert part["classifier_score"] < 1.5


def test_the_reference_itself_is_perfect(setting):
    data, classifier, reference = setting
    metrics = image_metrics(classifier, reference, data.train_images, data.train_labels, CONFIG)
    assert metrics["fd_classifier"] == pytest.approx(0, abs=1e-6)
    assert metrics["precision"] == metrics["recall"] == 1


def test_unconditional_images_have_no_label_agreement(setting):
    data, classifier, reference = setting
    metrics = image_metrics(classifier, reference, data.held_out_images, None, CONFIG)
    assert "label_agreement" not in metrics


def test_labels_that_are_wrong_agree_with_nothing(setting):
    data, classifier, reference = setting
    _, logits = predict(classifier, data.held_out_images)
    wrong = (logits.argmax(dim=1) + 1) % 10
    assert image_metrics(classifier, reference, data.held_out_images, wrong, CONFIG)["label_agreement"] == 0


def test_diverged_images_are_refused(setting):
    data, classifier, reference = setting
    images = data.held_out_images[:10].clone()
    images[3, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="diverged"):
        image_metrics(classifier, reference, images, None, CONFIG)


def test_the_floor_is_the_distance_of_held_out_images(setting):
    data, classifier, reference = setting
    held_out, _ = predict(classifier, data.held_out_images)
    floor = real_floor(reference, 10_000, 0, held_out)
    assert floor.mean == pytest.approx(frechet_distance(*moments(reference), *moments(held_out)))
    assert (floor.num_images, floor.draws, floor.sd) == (450, 1, 0)


def normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))


def test_draws_are_disjoint_seeded_and_sized():
    reference = normal(300, 0)
    floor = real_floor(reference, 100, 1)
    assert (floor.num_images, floor.draws) == (100, 8)
    assert floor == real_floor(reference, 100, 1) != real_floor(reference, 100, 2)
    assert real_floor(reference, 1000, 1).num_images == 150


def test_without_held_out_images_the_floor_estimates_theirs():
    """Draws from one normal distribution: both kinds of floor at the same sizes differ by chance only."""
    inside = real_floor(normal(1200, 0), 200, 0)
    outside = real_floor(normal(1000, 1), 200, 0, normal(1600, 2))
    assert abs(inside.mean - outside.mean) < 4 * (inside.sd**2 + outside.sd**2) ** 0.5


def test_fewer_images_raise_the_floor():
    reference, held_out = normal(1000, 0), normal(1000, 1)
    few, many = (real_floor(reference, count, 0, held_out).mean for count in (50, 500))
    assert few > 2 * many
