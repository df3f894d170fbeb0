"""Static scales and learned steps see full-precision tokens of the network that they will work in."""

from dataclasses import replace

import pytest
import torch

from robuq.batches import noised_at_mixed_timesteps
from robuq.calibrate import calibrate_
from robuq.config import (
    BLOCK_ROLES,
    MODEL_PRESETS,
    ActQuant,
    CalibrationConfig,
    DataConfig,
    DiffusionConfig,
    PrecisionMap,
    resolve_specs,
)
from robuq.data.load import ImageData, load_data
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT, build_dit
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.surgery import needs_calibration, quantize_, quantized_linears
from robuq.telemetry import captured_inputs
from robuq.variants import variant

NANO = MODEL_PRESETS["nano"]
CONFIG = CalibrationConfig(num_images=20, batch_size=8, max_tokens=100)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(DiffusionConfig())


def model_with(precision: PrecisionMap) -> DiT:
    model = build_dit(NANO, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # a fresh DiT's gates are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    quantize_(model, resolve_specs(precision, NANO.num_layers), seed=0)
    return model


def without_acts(precision: PrecisionMap) -> PrecisionMap:
    return precision.updated(**{role: getattr(precision, role).updated(act=None) for role in BLOCK_ROLES})


def states(model: DiT) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "act_quantizer" in name}


@pytest.mark.parametrize("name", ["lsq", "robust_ptq_percentile", "robust_ptq_mad"])
def test_scales_are_those_of_the_weight_quantized_networks_tokens(
    data: ImageData, schedule: NoiseSchedule, name: str
) -> None:
    """The reference's layers may take the other of two equal forms, whose rounding differs; where that moves one of
    attention's 8-bit values by a level, a mean over 3200 of them moves by some 1e-5 of itself."""
    precision = variant(name)
    model, reference = model_with(precision), model_with(without_acts(precision)).eval()
    assert needs_calibration(model)
    calibrate_(model, data, schedule, CONFIG, seed=5)
    assert not needs_calibration(model)
    seen = watched(reference, data, schedule, model)
    for layer_name, layer in quantized_linears(model).items():
        if layer.act_quantizer is not None and layer_name in seen:
            fresh = ActFakeQuantizer(layer.act_quantizer.spec, layer.in_features)
            fresh.calibrate_(layer.rotation(seen[layer_name]))
            torch.testing.assert_close(layer.act_quantizer.state_dict(), fresh.state_dict(), rtol=1e-4, atol=1e-6)


def watched(reference: DiT, data: ImageData, schedule: NoiseSchedule, model: DiT) -> dict[str, torch.Tensor]:
    """What the reference's layers see of the very inputs that calibration gave to `model`, written down here anew."""
    given: list[tuple[torch.Tensor, ...]] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    calibrate_(model, data, schedule, CONFIG, seed=5)
    handle.remove()
    assert [len(inputs[0]) for inputs in given] == [8, 8, 4]
    names = [name for name in quantized_linears(model) if "norm1" not in name]
    with torch.no_grad(), captured_inputs(reference, names, 34) as captured:  # ceil(100 / 3 batches)
        for inputs in given:
            reference(*inputs)
    return {name: torch.cat(parts)[torch.arange(100) * 102 // 100] for name, parts in captured.items()}


def test_images_are_noised_training_images_over_all_timesteps(data: ImageData, schedule: NoiseSchedule) -> None:
    model = model_with(variant("lsq"))
    given: list[tuple[torch.Tensor, ...]] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    calibrate_(model, data, schedule, CONFIG, seed=5)
    handle.remove()
    timesteps = torch.cat([inputs[1] for inputs in given])
    _, expected = noised_at_mixed_timesteps(torch.zeros(20, 1, 8, 8), schedule, torch.Generator().manual_seed(0))
    assert torch.equal(timesteps, expected)
    nearly_clean = given[0][0][0]  # timestep 25: the training image shines through
    distances = (data.train_images - nearly_clean).square().flatten(1).mean(1)
    assert float(distances.min()) < 0.1 * float(distances.median())


def test_seed_decides_and_mode_and_gradients_stay(data: ImageData, schedule: NoiseSchedule) -> None:
    one, same, other = (model_with(variant("robust_ptq_sigma")) for _ in range(3))
    one.train()
    for model, seed in ((one, 5), (same, 5), (other, 6)):
        calibrate_(model, data, schedule, CONFIG, seed)
    assert one.training
    assert all(torch.equal(value, states(same)[name]) for name, value in states(one).items())
    assert any(not torch.equal(value, states(other)[name]) for name, value in states(one).items())
    assert all(parameter.grad is None for parameter in one.parameters())
    layers = quantized_linears(one).values()
    assert all(layer.act_quantizer is not None and not layer._forward_pre_hooks for layer in layers)


def test_quantizers_come_back_after_an_error(data: ImageData, schedule: NoiseSchedule) -> None:
    model = model_with(variant("lsq"))

    def fails(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        calibrate_(model, data, schedule, CONFIG, seed=5)
    handle.remove()
    layers = quantized_linears(model).values()
    assert all(layer.act_quantizer is not None and not layer._forward_pre_hooks for layer in layers)


def test_dynamic_quantizers_need_nothing(data: ImageData, schedule: NoiseSchedule) -> None:
    model = model_with(variant("robuq_uniform"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrate_(model, data, schedule, CONFIG, seed=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_more_images_than_there_are(data: ImageData, schedule: NoiseSchedule) -> None:
    few = replace(data, train_images=data.train_images[:3], train_labels=data.train_labels[:3])
    model = model_with(variant("lsq"))
    calibrate_(model, few, schedule, CalibrationConfig(), seed=0)
    assert not needs_calibration(model)


def test_static_scales_fit_their_tokens(data: ImageData, schedule: NoiseSchedule) -> None:
    """Calibrated at 8 bits, the network gives nearly the weight-only network's output."""
    act = ActQuant(bits=8, scale="absmax", granularity="per_channel", mode="static", grid="mid_tread")
    precision = variant("lsq")
    changed = {role: getattr(precision, role).updated(act=act) for role in BLOCK_ROLES}
    model, reference = model_with(precision.updated(**changed)), model_with(without_acts(precision))
    calibrate_(model, data, schedule, CalibrationConfig(), seed=0)
    images, timesteps = noised_at_mixed_timesteps(data.held_out_images[:64], schedule, torch.Generator().manual_seed(1))
    labels = data.held_out_labels[:64]
    with torch.no_grad():
        exact = reference.eval()(images, timesteps, labels)
        error = model.eval()(images, timesteps, labels) - exact
    # 8 bits lose 6.02 * 8 dB less a range of some sigmas: at least 25 dB remain after eight layers.
    assert float(10 * torch.log10(exact.square().mean() / error.square().mean())) > 25
