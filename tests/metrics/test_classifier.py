from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from robuq.config import ConfigError, DataConfig, FeatureConfig
from robuq.data.files import FASHION_FOLDER
from robuq.data.load import ImageData, load_data
from robuq.metrics.classifier import (
    FeatureClassifier,
    accuracy,
    build_classifier,
    load_classifier,
    predict,
    reference_images,
    save_classifier,
    train_classifier,
)

SMALL = FeatureConfig(width=8, channels=4, epochs=1)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataConfig())


def same(one: FeatureClassifier, other: FeatureClassifier) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_digits_are_recognised(digits):
    classifier = train_classifier(digits, FeatureConfig())
    assert accuracy(classifier, digits.held_out_images, digits.held_out_labels) >= 0.97


@pytest.mark.skipif(not FASHION_FOLDER.is_dir(), reason="package dataset-fashion-mnist is missing")
def test_fashion_is_recognised_even_by_little_training():
    """.887 with the default configuration, which takes half a minute."""
    data = load_data(DataConfig(name="fashion_mnist", image_size=28, limit=2000))
    classifier = train_classifier(data, FeatureConfig(epochs=3))
    assert accuracy(classifier, data.held_out_images[:2000], data.held_out_labels[:2000]) >= 0.7


def test_training_is_seeded_and_leaves_the_global_generator_alone(digits):
    before = torch.random.get_rng_state()
    one, same_again = train_classifier(digits, SMALL), train_classifier(digits, SMALL)
    other = train_classifier(digits, SMALL.updated(seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(one, same_again)
    assert not same(one, other)


def test_it_comes_out_in_eval_mode(digits):
    assert not train_classifier(digits, SMALL).training


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 4, 4), (4, 32, 32), (3, 1, 1), (3, 65, 65)])
def test_any_size_of_image(shape):
    classifier = build_classifier(shape, 7, SMALL)
    images = torch.zeros(3, *shape)
    assert classifier(images).shape == (3, 7)
    assert classifier.features(images).shape == (3, 8)


def test_prediction_does_not_depend_on_the_other_images(digits):
    classifier = build_classifier((1, 8, 8), 10, SMALL)
    images = digits.train_images[:600]
    features, logits = predict(classifier, images)
    assert torch.allclose(predict(classifier, images[300:310])[0], features[300:310], atol=1e-6)
    assert torch.allclose(classifier(images), logits, atol=1e-6)
    assert not features.requires_grad


def test_accuracy_by_hand():
    class Constant(FeatureClassifier):
        def features(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 8)

    classifier = Constant((1, 4, 4), 3, SMALL)
    with torch.no_grad():
        classifier.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert accuracy(classifier, torch.zeros(4, 1, 4, 4), torch.tensor([1, 0, 1, 1])) == 0.75


def test_the_reference_is_limited_and_keeps_labels_with_images(digits):
    images, labels = reference_images(digits, FeatureConfig(max_images=100))
    assert len(images) == 100
    found = (digits.train_images[:, None] == images[None]).flatten(2).all(dim=2).long().argmax(dim=0)
    assert torch.equal(digits.train_labels[found], labels)
    everything, _ = reference_images(digits, FeatureConfig())
    assert torch.equal(everything, digits.train_images)


def test_validation_and_held_out_images_are_not_looked_at(digits):
    """The same classifier and reference whatever they are."""
    nothing = {
        name: torch.full_like(getattr(digits, name), torch.nan) for name in ("validation_images", "held_out_images")
    }
    blind = replace(digits, **nothing)
    assert same(train_classifier(digits, SMALL), train_classifier(blind, SMALL))
    assert torch.equal(reference_images(digits, SMALL)[0], reference_images(blind, SMALL)[0])


def test_saved_classifiers_are_bit_equal(tmp_path, digits):
    classifier = train_classifier(digits, SMALL)
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    loaded = load_classifier(tmp_path / "classifier.safetensors")
    assert same(classifier, loaded)
    assert loaded.config == SMALL
    assert not loaded.training


def test_other_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ConfigError, match="no saved classifier"):
        load_classifier(tmp_path / "other")
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot read"):
        load_classifier(tmp_path / "broken")
    with pytest.raises(ConfigError, match="cannot read"):
        load_classifier(tmp_path / "missing")
