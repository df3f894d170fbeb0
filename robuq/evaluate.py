"""How a network is judged: held-out loss, drawn images and their metrics, cost, and what enters its linears."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robuq.batches import known_labels, noised_at_mixed_timesteps
from robuq.checkpoint import read_sealed, save_sealed
from robuq.config import BitAllocation, DiffusionConfig, EvalConfig, LossConfig, ModelConfig, PrecisionMap
from robuq.cost import average_bits, layer_costs, summarise
from robuq.data.load import ImageData
from robuq.diffusion.loss import HeldOutLoss, held_out_loss
from robuq.diffusion.sampler import sample_images
from robuq.diffusion.schedule import NoiseSchedule
from robuq.distributions import distributions
from robuq.metrics.classifier import FeatureClassifier
from robuq.metrics.protocol import image_metrics
from robuq.models import DiT
from robuq.quant.linear import QuantizedLinear
from robuq.seeding import derived_generator
from robuq.stages import ProgressFile
from robuq.stopping import stop_point
from robuq.telemetry import block_layers, capture_tokens, levels_in_sigmas, rotated_tokens

SAMPLES, TOKENS, DISTRIBUTIONS = "samples.npz", "tokens.npz", "distributions.npz"
TOKEN_IMAGES, MAX_TOKENS = 64, 512


class NotFiniteError(ArithmeticError):
    """A network whose loss or images are not finite cannot be judged."""


def evaluate(
    model: DiT,
    data: ImageData,
    classifier: FeatureClassifier,
    real_features: Tensor,
    diffusion: DiffusionConfig,
    config: EvalConfig,
    work: Path,
) -> dict[str, float]:
    """Metrics by name; `num_images=0` leaves out those of drawn images.

    `work` receives `samples.npz` (`images` (G, H, W, C) uint8, `labels` (G,)), `tokens.npz` (`middle_tokens`),
    `distributions.npz` (`distributions`), and the images drawn so far, from which a killed evaluation continues.

    Raises:
        NotFiniteError: the held-out loss or a drawn image is not finite.
    """
    metrics = loss_metrics(model, data, diffusion, config)
    if config.distributions:
        schedule = NoiseSchedule(diffusion)
        np.savez(work / TOKENS, allow_pickle=False, **middle_tokens(model, data, schedule))
        np.savez_compressed(work / DISTRIBUTIONS, allow_pickle=False, **distributions(model, data, schedule))
    if config.sample.num_images:
        labels = balanced_labels(config.sample.num_images, data.num_classes)
        images = drawn_images(model, known_labels(labels, model.null_label), diffusion, config, work)
        wanted = labels if model.null_label else None  # an unconditional network was not told what to draw
        metrics |= image_metrics(classifier, real_features, images, wanted, config)
        save_grid(images, labels, config.grid_images, work / SAMPLES)
    return metrics


def loss_metrics(model: DiT, data: ImageData, diffusion: DiffusionConfig, config: EvalConfig) -> dict[str, float]:
    """`held_out_loss`, and `held_out_loss_bin_<i>` over tenths of the timesteps, least noise first.

    `validation_loss` is the same of the validation images, where there are any: to choose by, so that held-out images
    are left to report on.
    """
    schedule = NoiseSchedule(diffusion)
    loss = _checked_loss("held-out", model, schedule, data.held_out_images, data.held_out_labels, config.loss)
    bins = {f"held_out_loss_bin_{i}": value for i, value in enumerate(loss.per_timestep) if value is not None}
    metrics = {"held_out_loss": loss.mean, **bins}
    if len(data.validation_images):
        tuning = _checked_loss(
            "validation", model, schedule, data.validation_images, data.validation_labels, config.loss
        )
        metrics["validation_loss"] = tuning.mean
    return metrics


def probe_loss(model: DiT, data: ImageData, schedule: NoiseSchedule, config: LossConfig) -> float:
    """The loss that searches compare networks by: of validation images, or of training images if there are none.

    Raises:
        NotFiniteError: it is not finite.
    """
    images, labels = data.validation_images, data.validation_labels
    if not len(images):
        images, labels = data.train_images, data.train_labels
    return _checked_loss("probe", model, schedule, images, labels, config).mean


def _checked_loss(
    name: str, model: DiT, schedule: NoiseSchedule, images: Tensor, labels: Tensor, config: LossConfig
) -> HeldOutLoss:
    loss = held_out_loss(model, schedule, images, known_labels(labels, model.null_label), config)
    if not math.isfinite(loss.mean):
        raise NotFiniteError(f"{name} loss is {loss.mean}: the network diverged")
    return loss


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """(count,) int64: image i shows class i mod num_classes."""
    return torch.arange(count) % num_classes


def drawn_images(model: DiT, labels: Tensor, diffusion: DiffusionConfig, config: EvalConfig, work: Path) -> Tensor:
    """(N,) -> (N, C, H, W); batches that an earlier attempt left in `work` are not drawn again."""
    progress = ProgressFile(work, "sampling", len(labels))
    parts = []
    for first in range(0, len(labels), config.sample.batch_size):
        file = work / f"checkpoint-images-{first:08d}.npy"
        kept = read_sealed(file)
        if kept is None:
            batch = labels[first : first + config.sample.batch_size]
            kept = _npy(sample_images(model, batch, diffusion, config.sample, first_index=first).numpy())
            save_sealed(file, kept)
        parts.append(torch.from_numpy(np.load(io.BytesIO(kept), allow_pickle=False)))
        progress.update(min(first + config.sample.batch_size, len(labels)))
        stop_point()
    images = torch.cat(parts)
    if not bool(images.isfinite().all()):
        raise NotFiniteError("a drawn image is not finite: the network diverged")
    return images


def _npy(images: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, images, allow_pickle=False)
    return stream.getvalue()


def save_grid(images: Tensor, labels: Tensor, count: int, file: Path) -> None:
    """The first `count` images. Latents are no pictures: only images of one or three channels are kept."""
    if images.shape[1] in (1, 3):
        np.savez_compressed(file, images=to_uint8(images[:count]), labels=labels[:count].numpy())


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [-1, 1] -> (N, H, W, C), 0..255."""
    pixels: NDArray[np.uint8] = (images.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def middle_tokens(model: DiT, data: ImageData, schedule: NoiseSchedule) -> dict[str, NDArray[np.float32]]:
    """{`qkv.raw`: (T, D), `qkv.rotated`: (T, D), `qkv.levels`: (L,), ...} of the middle block, T <= 512.

    The tokens are spread evenly over held-out images, noised to timesteps spread evenly over the schedule. A layer
    without a rotation is shown behind a random one of its width. `levels`, of layers that quantize their input: the
    quantizer's levels in the rotated tokens, in units of a token's standard deviation around its mean.
    """
    generator = derived_generator(0, "distributions")
    chosen = torch.randperm(len(data.held_out_images), generator=generator)[:TOKEN_IMAGES]
    images, timesteps = noised_at_mixed_timesteps(data.held_out_images[chosen], schedule, generator)
    labels = known_labels(data.held_out_labels[chosen], model.null_label)
    middle = f"transformer_blocks.{len(model.transformer_blocks) // 2}."
    layers = {name: role for name, role in block_layers(model).items() if name.startswith(middle)}
    device = next(model.parameters()).device
    inputs = (images.to(device), timesteps.to(device), labels.to(device))
    tokens = capture_tokens(model, *inputs, list(layers), MAX_TOKENS)
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, role in layers.items():
        layer = model.get_submodule(name)
        rotated = rotated_tokens(layer, tokens[name])
        arrays[f"{role}.raw"] = tokens[name].cpu().numpy()
        arrays[f"{role}.rotated"] = rotated.float().cpu().numpy()
        if isinstance(layer, QuantizedLinear) and layer.act_quantizer is not None:
            arrays[f"{role}.levels"] = levels_in_sigmas(layer.act_quantizer, rotated).float().cpu().numpy()
    return arrays


def cost_metrics(model: ModelConfig, precision: PrecisionMap, allocation: BitAllocation | None) -> dict[str, float]:
    """`macs`, `bops` and `rotation_ops` (additions) of one forward of one image, `weight_bytes`, and the mean
    activation bits of the block linears by each weighting, where they are quantized."""
    costs = layer_costs(model, precision, allocation)
    summary = summarise(costs)
    bits = {f"average_bits_{by}": average_bits(costs, by) for by in ("layers", "macs", "elements")}
    known: Mapping[str, float] = {name: value for name, value in bits.items() if value is not None}
    return {
        "macs": float(summary.macs),
        "bops": float(summary.bops),
        "weight_bytes": float(summary.weight_bytes),
        "rotation_ops": float(summary.rotation_ops),
        **known,
    }
