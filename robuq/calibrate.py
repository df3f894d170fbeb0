"""Calibration: what static scales and learned steps see of the data before they are used."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from robuq.batches import known_labels, noised_at_mixed_timesteps
from robuq.config import CalibrationConfig
from robuq.data.load import ImageData
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT
from robuq.quant.linear import QuantizedLinear
from robuq.quant.surgery import quantized_linears
from robuq.seeding import derived_generator
from robuq.telemetry import captured_inputs, evenly


@torch.no_grad()
def calibrate_(model: DiT, data: ImageData, schedule: NoiseSchedule, config: CalibrationConfig, seed: int) -> None:
    """Give every static scale and learned step its value, in place; dynamic quantizers need none.

    One pass over noised training images at timesteps spread over the schedule. Weights are quantized meanwhile, and so
    is what is quantized dynamically; the inputs of the layers to be calibrated are not. So each scale is fitted to
    tokens of the very network that it will work in, and does not depend on the order in which layers are visited.
    """
    layers = {name: layer for name, layer in quantized_linears(model).items() if _is_static(layer)}
    if not layers:
        return
    training = model.training
    model.eval()
    with _inputs_unquantized(layers.values()), captured_inputs(model, list(layers), _per_batch(config)) as captured:
        for images, timesteps, labels in _batches(model, data, schedule, config, seed):
            model(images, timesteps, labels)
    model.train(training)
    for name, layer in layers.items():
        tokens = layer.rotation(evenly(torch.cat(captured[name]), config.max_tokens))
        if layer.act_quantizer is not None:
            layer.act_quantizer.calibrate_(tokens)


def _is_static(layer: QuantizedLinear) -> bool:
    return layer.spec.act is not None and layer.spec.act.mode == "static"


def _per_batch(config: CalibrationConfig) -> int:
    """Tokens kept of each layer and batch, so that the batches together hold at least `max_tokens`."""
    batches = -(-config.num_images // config.batch_size)
    return -(-config.max_tokens // batches)


def _batches(
    model: DiT, data: ImageData, schedule: NoiseSchedule, config: CalibrationConfig, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Noised images, timesteps and labels, on the model's device."""
    generator = derived_generator(seed, "calibration")
    chosen = torch.randperm(len(data.train_images), generator=generator)[: config.num_images]
    images, timesteps = noised_at_mixed_timesteps(data.train_images[chosen], schedule, generator)
    labels = known_labels(data.train_labels[chosen], model.null_label)
    device = next(model.parameters()).device
    for first in range(0, len(images), config.batch_size):
        part = slice(first, first + config.batch_size)
        yield images[part].to(device), timesteps[part].to(device), labels[part].to(device)


@contextmanager
def _inputs_unquantized(layers: Collection[QuantizedLinear]) -> Iterator[None]:
    quantizers = [layer.act_quantizer for layer in layers]
    try:
        for layer in layers:
            layer.act_quantizer = None
        yield
    finally:
        for layer, quantizer in zip(layers, quantizers, strict=True):
            layer.act_quantizer = quantizer
