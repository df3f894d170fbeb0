"""Judging a network: what is drawn, measured and written."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robuq.config import (
    BLOCK_ROLES,
    MODEL_PRESETS,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    FeatureConfig,
    LossConfig,
    PrecisionMap,
    SampleConfig,
    resolve_specs,
)
from robuq.data.load import ImageData, load_data
from robuq.diffusion.sampler import sample_images
from robuq.diffusion.schedule import NoiseSchedule
from robuq.evaluate import (
    NotFiniteError,
    balanced_labels,
    cost_metrics,
    drawn_images,
    evaluate,
    loss_metrics,
    middle_tokens,
    to_uint8,
)
from robuq.metrics.classifier import FeatureClassifier, predict, reference_images, train_classifier
from robuq.metrics.protocol import image_metrics
from robuq.models import DiT, build_dit
from robuq.quant.surgery import quantize_
from robuq.variants import variant

NANO = MODEL_PRESETS["nano"]
CONFIG = EvalConfig(
    loss=LossConfig(repeats=1, max_images=100),
    sample=SampleConfig(steps=2, num_images=24, batch_size=10),
    features=FeatureConfig(epochs=1, max_images=300, channels=4, width=8),
    grid_images=7,
)
DIFFUSION = DiffusionConfig()
KINDS = ("raw", "rotated", "levels")
QUANTIZED = ("robuq_uniform", "minmax")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def classifier(data: ImageData) -> FeatureClassifier:
    return train_classifier(data, CONFIG.features)


def reference(classifier: FeatureClassifier, data: ImageData) -> torch.Tensor:
    return predict(classifier, reference_images(data, CONFIG.features)[0])[0]


def model_with(precision: PrecisionMap, num_classes: int = 10) -> DiT:
    model = build_dit(NANO.updated(num_classes=num_classes), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # a fresh DiT's gates are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    quantize_(model, resolve_specs(precision, NANO.num_layers), seed=0)
    return model


def test_all_of_it(tmp_path: Path, data: ImageData, classifier: FeatureClassifier) -> None:
    model, real = model_with(variant("robuq_uniform")), reference(classifier, data)
    metrics = evaluate(model, data, classifier, real, DIFFUSION, CONFIG, tmp_path)
    labels = torch.arange(24) % 10
    images = sample_images(model, labels, DIFFUSION, CONFIG.sample)
    expected = image_metrics(classifier, real, images, labels, CONFIG)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert {"fd_classifier", "precision", "recall", "classifier_score", "label_agreement"} <= metrics.keys()
    assert metrics["held_out_loss"] > 0
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as samples:
        assert samples["labels"].tolist() == list(range(7))
        assert samples["images"].dtype == np.uint8
        assert samples["images"].shape == (7, 8, 8, 1)
        pixels = (images[:7, 0].double() + 1) * 127.5
        assert np.abs(samples["images"][..., 0] - pixels.numpy()).max() <= 0.5 + 1e-4
    with np.load(tmp_path / "tokens.npz", allow_pickle=False) as tokens:
        assert sorted(tokens) == sorted(f"{role}.{kind}" for role in BLOCK_ROLES for kind in KINDS)
        assert all(tokens[name].dtype == np.float32 for name in tokens)


def test_without_images(tmp_path: Path, data: ImageData, classifier: FeatureClassifier) -> None:
    config = CONFIG.updated(sample=CONFIG.sample.updated(num_images=0), distributions=False)
    metrics = evaluate(model_with(PrecisionMap()), data, classifier, torch.empty(0), DIFFUSION, config, tmp_path)
    assert metrics == loss_metrics(model_with(PrecisionMap()), data, DIFFUSION, config)
    assert list(tmp_path.iterdir()) == []


def test_loss_is_the_mean_of_its_bins(data: ImageData) -> None:
    """100 timesteps, one from each hundredth of the schedule: ten in each bin."""
    metrics = loss_metrics(model_with(PrecisionMap()), data, DIFFUSION, CONFIG)
    bins = [metrics[f"held_out_loss_bin_{i}"] for i in range(10)]
    assert metrics["held_out_loss"] == pytest.approx(sum(bins) / 10, rel=1e-9)
    assert len(metrics) == 10 + 2


def test_validation_loss_has_the_protocol_of_the_held_out_loss(data: ImageData) -> None:
    model = model_with(variant("robuq_uniform"))
    swapped = replace(
        data,
        validation_images=data.held_out_images,
        validation_labels=data.held_out_labels,
        held_out_images=data.validation_images,
        held_out_labels=data.validation_labels,
    )
    one, other = (loss_metrics(model, parts, DIFFUSION, CONFIG) for parts in (data, swapped))
    assert (one["held_out_loss"], one["validation_loss"]) == (other["validation_loss"], other["held_out_loss"])
    assert one["held_out_loss"] != one["validation_loss"]


def test_without_validation_images_there_is_no_such_loss() -> None:
    data = load_data(DataConfig(validation=0))
    assert "validation_loss" not in loss_metrics(model_with(PrecisionMap()), data, DIFFUSION, CONFIG)


def test_labels_are_balanced() -> None:
    assert balanced_labels(25, 10).bincount().tolist() == [3] * 5 + [2] * 5
    assert balanced_labels(3, 10).tolist() == [0, 1, 2]


def test_pixels() -> None:
    values = torch.tensor([-2.0, -1.0, -1 + 1 / 127.5, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(values).tolist() == [[[[0], [0], [1], [128], [255], [255]]]]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_killed_drawing_continues_with_the_batches_it_has(tmp_path: Path, data: ImageData) -> None:
    model, labels = model_with(PrecisionMap()), balanced_labels(24, 10)
    (whole := tmp_path / "whole").mkdir()
    images = drawn_images(model, labels, DIFFUSION, CONFIG, whole)
    assert images.shape == (24, 1, 8, 8)
    (work := tmp_path / "killed").mkdir()
    drawn: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: drawn.append(len(inputs[0])))
    for kept in ("checkpoint-images-00000000.npy", "checkpoint-images-00000020.npy"):
        (work / kept).write_bytes((whole / kept).read_bytes())
    (work / "checkpoint-images-00000010.partial").write_bytes(b"half")
    again = drawn_images(model, labels, DIFFUSION, CONFIG, work)
    assert drawn == [10] * CONFIG.sample.steps
    assert torch.equal(again, images)
    (damaged := work / "checkpoint-images-00000020.npy").write_bytes(damaged.read_bytes()[:-1])
    assert torch.equal(drawn_images(model, labels, DIFFUSION, CONFIG, work), images)
    handle.remove()
    assert drawn[CONFIG.sample.steps :] == [4] * CONFIG.sample.steps


def test_batch_size_changes_no_image(tmp_path: Path) -> None:
    model, labels = model_with(PrecisionMap()), balanced_labels(6, 10)
    images = []
    for size in (6, 4, 1):
        (work := tmp_path / str(size)).mkdir()
        config = CONFIG.updated(sample=CONFIG.sample.updated(batch_size=size))
        images.append(drawn_images(model, labels, DIFFUSION, config, work))
    for other in images[1:]:
        torch.testing.assert_close(other, images[0], rtol=0, atol=1e-4)


def test_unconditional_networks_are_judged_too(tmp_path: Path, data: ImageData, classifier: FeatureClassifier) -> None:
    model, real = model_with(PrecisionMap(), num_classes=0), reference(classifier, data)
    metrics = evaluate(model, data, classifier, real, DIFFUSION, CONFIG, tmp_path)
    assert "fd_classifier" in metrics
    assert "label_agreement" not in metrics


@pytest.mark.parametrize("num_images", [0, 4])
def test_a_broken_network_is_not_judged(
    tmp_path: Path, data: ImageData, classifier: FeatureClassifier, num_images: int
) -> None:
    model = model_with(PrecisionMap())
    with torch.no_grad():
        model.proj_out_2.bias[0] = math.nan
    config = CONFIG.updated(sample=CONFIG.sample.updated(num_images=num_images))
    with pytest.raises(NotFiniteError, match="held-out loss is nan"):
        evaluate(model, data, classifier, torch.empty(0), DIFFUSION, config, tmp_path)
    with pytest.raises(NotFiniteError, match="image is not finite"):
        drawn_images(model, balanced_labels(4, 10), DIFFUSION, CONFIG, tmp_path)


@pytest.mark.parametrize("name", ["full_precision", "ternary_rotation", "robuq_uniform", "minmax"])
def test_tokens_of_the_middle_block(data: ImageData, name: str) -> None:
    tokens = middle_tokens(model_with(variant(name)), data, NoiseSchedule(DIFFUSION))
    assert sorted(tokens) == sorted(
        f"{role}.{kind}" for role in BLOCK_ROLES for kind in (KINDS if name in QUANTIZED else KINDS[:2])
    )
    for role in BLOCK_ROLES:
        raw, rotated = tokens[f"{role}.raw"], tokens[f"{role}.rotated"]
        assert raw.shape == rotated.shape == (512, 128 if role == "fc2" else 32)
        norms = np.linalg.norm(raw, axis=1)
        np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), norms, rtol=1e-4)
        assert np.allclose(raw, rotated) == (name == "minmax")  # which has no rotation


def test_levels_of_the_middle_block(data: ImageData) -> None:
    """At 8 bits, min-max levels span a token's values; RobustQuantizer's at 2 bits are symmetric around its mean."""
    schedule = NoiseSchedule(DIFFUSION)
    wide, robust = (middle_tokens(model_with(variant(*v)), data, schedule) for v in (("minmax", 8), ("robuq_uniform",)))
    for role in BLOCK_ROLES:
        x = wide[f"{role}.rotated"].astype(np.float64)
        z = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        ends = wide[f"{role}.levels"][[0, -1]]
        step = (z.max(1) - z.min(1)).mean() / 255
        np.testing.assert_allclose(ends, [z.min(1).mean(), z.max(1).mean()], rtol=0, atol=step / 2 + 1e-5)
        levels = robust[f"{role}.levels"]
        np.testing.assert_allclose(levels, -levels[::-1], atol=1e-6)
        assert levels.shape == (4,)


def test_cost_metrics() -> None:
    full, quantized = (cost_metrics(NANO, variant(name), None) for name in ("full_precision", "robuq_uniform"))
    assert {"macs", "bops", "weight_bytes"} <= full.keys()
    assert not any(name.startswith("average_bits") for name in full)
    assert [quantized[f"average_bits_{by}"] for by in ("layers", "macs", "elements")] == pytest.approx([2.0] * 3)
    assert quantized["bops"] < full["bops"]
    assert quantized["weight_bytes"] < full["weight_bytes"]
