"""How images are judged: the same features, reference and floor for every variant.

The reference is the training images, as is the field's custom; at most `FeatureConfig.max_images` of them.
A Frechet distance is biased upwards at finite numbers of images, so it is to be read beside its floor: the same
distance with held-out real images, which the classifier has not seen either, in place of generated ones. The
bias depends on the number of images: compare only equal numbers, and see the sizes beside the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robuq.config import EvalConfig
from robuq.metrics.classifier import FeatureClassifier, predict
from robuq.metrics.frechet import frechet_distance, moments
from robuq.metrics.kernel import kernel_distance
from robuq.metrics.precision_recall import precision_recall
from robuq.metrics.score import classifier_score

SCORE_SPLIT = 5000  # images a split of the score, as the field has it; fewer images are one split
FLOOR_DRAWS = 8


def image_metrics(
    classifier: FeatureClassifier, real_features: Tensor, images: Tensor, labels: Tensor | None, config: EvalConfig
) -> dict[str, float]:
    """Judge images (N, C, H, W), drawn for labels (N,), against features (M, F) of real ones.

    fd_classifier: Frechet distance (lower is better). kd_classifier: kernel distance (lower). precision, recall:
    fractions (higher). classifier_score: from 1 to the number of classes (higher). label_agreement: the fraction of
    images that the classifier assigns to their label; left out where `labels` is None (an unconditional model).

    Raises:
        ValueError: images are not finite, or too few.
    """
    if not torch.isfinite(images).all():
        raise ValueError("generated images are not finite: the network has diverged")
    features, logits = predict(classifier, images)
    precision, recall = precision_recall(real_features.double(), features.double(), config.neighbours)
    score, _ = classifier_score(logits, max(1, len(images) // SCORE_SPLIT))
    metrics = {
        "fd_classifier": frechet_distance(*moments(real_features), *moments(features)),
        "kd_classifier": kernel_distance(real_features, features),
        "precision": precision,
        "recall": recall,
        "classifier_score": score,
    }
    if labels is not None:
        metrics["label_agreement"] = float((logits.argmax(dim=1) == labels).double().mean())
    return metrics


@dataclass(frozen=True)
class Floor:
    """The distance of real images from real images: what a perfect generator would get."""

    mean: float
    sd: float  # over the draws
    num_images: int  # in place of the generated ones
    draws: int


def real_floor(reference: Tensor, num_images: int, seed: int, held_out: Tensor | None = None) -> Floor:
    """The Frechet distance of up to `num_images` real images from the reference features (M, F).

    With held-out features (L, F): random draws of min(num_images, L) of them against the whole reference (one draw
    where all are taken). Without: random draws from the reference itself, at most half of it, against the rest.
    Fewer images than `num_images` raise the floor, and so do class proportions that differ by chance; all held-out
    images together have the reference's proportions. Say the sizes beside the floor.

    Raises:
        ValueError: fewer than two images on a side.
    """
    generator = torch.Generator().manual_seed(seed)
    source = reference if held_out is None else held_out
    size = min(num_images, len(reference) // 2 if held_out is None else len(source))
    draws = FLOOR_DRAWS if size < len(source) else 1
    distances = []
    for _ in range(draws):
        order = torch.randperm(len(source), generator=generator)
        rest = source[order[size:]] if held_out is None else reference
        distances.append(frechet_distance(*moments(rest), *moments(source[order[:size]])))
    return Floor(float(np.mean(distances)), float(np.std(distances)), size, draws)
