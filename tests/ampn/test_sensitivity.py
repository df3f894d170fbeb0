"""Sensitivities: equal to their slow definitions, and the network is left as it was."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from robuq.ampn.sensitivity import Damages, Questions, make_questions, measure, measure_sensitivity, summary
from robuq.ampn.table import SensitivityTable
from robuq.calibrate import calibrate_
from robuq.config import (
    MODEL_PRESETS,
    CalibrationConfig,
    ConfigError,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    SensitivityConfig,
    decision_name,
    resolve_specs,
)
from robuq.data.load import ImageData, load_data
from robuq.diffusion.loss import noise_prediction_loss
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT, build_dit
from robuq.quant.bits import decision_layers, set_bits_
from robuq.quant.surgery import quantize_
from robuq.variants import variant

NANO = MODEL_PRESETS["nano"]
TINY = ModelConfig(image_size=4, width=16, num_layers=2, num_heads=1)
CONFIG = SensitivityConfig(candidates=(1, 2, 4, 8), reference=4, num_images=12, batch_size=5, repeats=2, seed=3)
MEASURES = ("loss", "output_error", "second_order")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(DiffusionConfig())


def quantized_model(
    data: ImageData, schedule: NoiseSchedule, name: str = "robuq_uniform", config: ModelConfig = NANO
) -> DiT:
    model = build_dit(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # a fresh DiT's gates and output are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    quantize_(model, resolve_specs(variant(name), config.num_layers), seed=0)
    if config is NANO:
        calibrate_(model, data, schedule, CalibrationConfig(num_images=32, max_tokens=256), seed=0)
    return model


def as_double(model: DiT) -> DiT:
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()
    return model


def doubled(questions: Questions) -> Questions:
    return Questions(*(t.double() if t.is_floating_point() else t for t in vars(questions).values()))


def with_one_changed(model: DiT, config: SensitivityConfig, name: str, bits: int) -> DiT:
    changed = copy.deepcopy(model).eval()
    set_bits_(changed, dict.fromkeys(decision_layers(changed), config.reference) | {name: bits})
    return changed


@torch.no_grad()
def losses(model: DiT, schedule: NoiseSchedule, questions: Questions) -> Tensor:
    asked = (questions.images, questions.labels, questions.noise, questions.timesteps)
    return noise_prediction_loss(model, schedule, *asked)


def slow_loss(
    model: DiT, schedule: NoiseSchedule, questions: Questions, config: SensitivityConfig
) -> tuple[Tensor, Tensor]:
    """(L, C, M) and the base (M,): whole passes of the ordinary network, all images at once."""
    names = list(decision_layers(model))
    base = losses(with_one_changed(model, config, names[0], config.reference), schedule, questions).double()
    increases = [
        losses(with_one_changed(model, config, name, bits), schedule, questions).double() - base
        for name in names
        for bits in config.candidates
    ]
    return torch.stack(increases).view(len(names), len(config.candidates), -1), base


@pytest.mark.parametrize("name", ["robuq_uniform", "baseline", "quest", "lsq", "robust_ptq_mad", "qdit"])
def test_the_loss_is_the_slow_definition(data: ImageData, schedule: NoiseSchedule, name: str) -> None:
    model = as_double(quantized_model(data, schedule, name))
    questions = make_questions(model, data, schedule, CONFIG)
    damages = measure(model, schedule, questions, CONFIG)
    slow, base = slow_loss(model, schedule, doubled(questions), CONFIG)
    torch.testing.assert_close(damages.base, base, rtol=1e-9, atol=0)
    assert slow.abs().median() > 1e-6  # the comparison is not one of zeros
    torch.testing.assert_close(damages.loss, slow, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 24])
def test_the_loss_is_the_slow_definition_in_float32(data: ImageData, schedule: NoiseSchedule, batch_size: int) -> None:
    model = quantized_model(data, schedule)
    questions = make_questions(model, data, schedule, CONFIG)
    damages = measure(model, schedule, questions, CONFIG.updated(batch_size=batch_size))
    slow, base = slow_loss(model, schedule, questions, CONFIG)
    difference = (damages.loss - slow).abs() / base
    # Rounding alone is some float32 eps. A pass quantizes some 10^4 values of an item, of which about one in 10^6 lies
    # so close to the middle of two levels that rounding moves it: a few items in a hundred differ by a level.
    assert difference.quantile(0.9) < 1e-5
    assert difference.mean() < 1e-4


def test_the_reference_costs_nothing_and_other_widths_are_measured_against_it(
    data: ImageData, schedule: NoiseSchedule
) -> None:
    model = quantized_model(data, schedule)
    table = measure_sensitivity(model, data, schedule, CONFIG)
    assert table.candidates == (1, 2, 4, 8)
    assert table.decisions == tuple(decision_layers(model))
    assert table.num_images == 12
    for values in (table.loss, table.loss_se, *table.loss_halves, table.second_order):
        assert [row[2] for row in values] == [0.0] * 8
        assert all(row[k] != 0 for row in values for k in (0, 1, 3))
    without = measure_sensitivity(model, data, schedule, CONFIG.updated(candidates=[1, 2, 8]))
    for measure_name in MEASURES:
        kept = table.matrix(measure_name)[:, [0, 1, 3]]
        assert (without.matrix(measure_name) == kept).all()


def test_single_candidates(data: ImageData, schedule: NoiseSchedule) -> None:
    model = quantized_model(data, schedule)
    whole = measure_sensitivity(model, data, schedule, CONFIG)
    one = measure_sensitivity(model, data, schedule, CONFIG.updated(candidates=[2]))
    itself = measure_sensitivity(model, data, schedule, CONFIG.updated(candidates=[4]))
    for name in MEASURES:
        assert (one.matrix(name)[:, 0] == whole.matrix(name)[:, 1]).all()
        assert (itself.matrix(name)[:, 0] == whole.matrix(name)[:, 2]).all()
    assert not itself.matrix("loss").any()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_changes_nothing(data: ImageData, schedule: NoiseSchedule, batch_size: int) -> None:
    model = as_double(quantized_model(data, schedule))
    ours, other = (
        measure_sensitivity(model, data, schedule, CONFIG.updated(batch_size=size)) for size in (5, batch_size)
    )
    for name in (*MEASURES, "loss_se", "loss_halves"):
        assert np.array(getattr(other, name)) == pytest.approx(np.array(getattr(ours, name)), rel=1e-7, abs=1e-13)
    assert other.base_loss == pytest.approx(ours.base_loss, rel=1e-12)


def snapshot(model: DiT) -> dict[str, object]:
    """Everything that could have been touched, by value or by identity."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "tensors": [(name, id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()],
        "gradients": [(parameter.grad is None, parameter.requires_grad) for parameter in model.parameters()],
        "specs": [(layer.spec, layer.act_quantizer.spec) for layer in decision_layers(model).values()],
    }


class Interrupted(Exception):
    pass


def interrupt(done: int, total: int) -> None:
    raise Interrupted


@pytest.mark.parametrize("progress", [None, interrupt])
@pytest.mark.parametrize("name", ["robuq_uniform", "lsq"])
def test_the_model_is_left_as_it_was(
    data: ImageData, schedule: NoiseSchedule, name: str, progress: Callable[[int, int], None] | None
) -> None:
    model = quantized_model(data, schedule, name).train()
    model.transformer_blocks[1].attn1.eval()  # a mixture of modes
    before, values = snapshot(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    try:
        measure_sensitivity(model, data, schedule, CONFIG, progress)
    except Interrupted:
        assert progress is not None
    assert snapshot(model) == before
    assert all(torch.equal(values[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    questions = make_questions(model, data, schedule, CONFIG)
    asked = (questions.images, questions.labels, questions.noise, questions.timesteps)
    noise_prediction_loss(model, schedule, *asked).mean().backward()  # and it can still be trained
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "weight" in name)


def measured(table: SensitivityTable) -> SensitivityTable:
    return table.updated(seconds={})


def test_only_validation_images_matter(data: ImageData, schedule: NoiseSchedule) -> None:
    model = quantized_model(data, schedule)
    expected = measured(measure_sensitivity(model, data, schedule, CONFIG))
    others = replace(
        data,
        held_out_images=-data.held_out_images[:7],
        held_out_labels=data.held_out_labels.flip(0)[:7],
        train_images=-data.train_images,
        train_labels=data.train_labels.flip(0),
    )
    assert measured(measure_sensitivity(model, others, schedule, CONFIG)) == expected
    changed = replace(data, validation_images=-data.validation_images)
    assert measured(measure_sensitivity(model, changed, schedule, CONFIG)) != expected


def test_training_images_stand_in_where_there_are_no_validation_images(
    data: ImageData, schedule: NoiseSchedule
) -> None:
    model = quantized_model(data, schedule)
    none = {"validation_images": data.validation_images[:0], "validation_labels": data.validation_labels[:0]}
    swapped = replace(data, validation_images=data.train_images, validation_labels=data.train_labels)
    table = measured(measure_sensitivity(model, replace(data, **none), schedule, CONFIG))
    assert table == measured(measure_sensitivity(model, swapped, schedule, CONFIG))
    assert table != measured(measure_sensitivity(model, data, schedule, CONFIG))


def test_questions_are_fixed_by_the_seed_and_evenly_chosen(data: ImageData, schedule: NoiseSchedule) -> None:
    model = quantized_model(data, schedule)
    first, again = (make_questions(model, data, schedule, CONFIG) for _ in range(2))
    other = make_questions(model, data, schedule, CONFIG.updated(seed=4))
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    chosen = data.validation_images[torch.arange(12) * len(data.validation_images) // 12]
    assert torch.equal(first.images, torch.cat([chosen, chosen]))
    assert torch.equal(other.images, first.images)
    for name in ("noise", "timesteps", "signs"):
        assert not torch.equal(getattr(first, name), getattr(other, name))
        assert not torch.equal(getattr(first, name)[:12], getattr(first, name)[12:])
    for part in first.timesteps.split(12):  # one in each twelfth
        assert sorted((part * 12 // 1000).tolist()) == list(range(12))
    assert first.signs.unique().tolist() == [-1, 1]


def test_two_images_do_and_one_does_not(data: ImageData, schedule: NoiseSchedule) -> None:
    model = quantized_model(data, schedule)
    config = CONFIG.updated(num_images=2, repeats=1)
    table = measure_sensitivity(model, data, schedule, config)
    loss, (first, second) = table.matrix("loss"), np.array(table.loss_halves)
    assert table.num_images == 2
    assert loss == pytest.approx((first + second) / 2, rel=1e-12, abs=1e-15)
    # the standard error of the mean of two numbers is half their distance
    assert np.array(table.loss_se) == pytest.approx(abs(first - second) / 2, rel=1e-9, abs=1e-15)
    one = replace(data, validation_images=data.validation_images[:1], validation_labels=data.validation_labels[:1])
    with pytest.raises(ConfigError, match="sensitivity on 1 image: its standard error needs at least 2"):
        measure_sensitivity(model, one, schedule, config)


def test_summary_by_hand() -> None:
    """Two images with two repeats each: items are image 0, image 1, image 0, image 1."""
    config = CONFIG.updated(candidates=[2], num_images=2)
    loss = torch.tensor([1.0, 2.0, 3.0, 8.0], dtype=torch.float64).view(1, 1, 4)  # images: 2 and 5
    noise, signal = torch.tensor([1.0, 1.0, 2.0, 2.0]).double(), torch.tensor([4.0, 4.0, 4.0, 12.0]).double()
    damages = Damages((decision_name(0, "qkv"),), loss[0, 0], loss, noise.view(1, 1, 4), signal[None], 2 * loss, {})
    table = summary(damages, config)
    assert table.num_images == 2
    assert table.base_loss == 3.5
    assert table.loss == ((3.5,),)
    assert table.loss_halves == (((2.0,),), ((5.0,),))
    assert table.loss_se[0][0] == pytest.approx(1.5)
    assert table.output_error == ((0.25,),)
    assert table.second_order == ((7.0,),)


def test_the_output_error_is_that_of_the_layer_alone(data: ImageData, schedule: NoiseSchedule) -> None:
    model = as_double(quantized_model(data, schedule))
    table = measure_sensitivity(model, data, schedule, CONFIG)
    reference = with_one_changed(model, CONFIG, decision_name(0, "qkv"), CONFIG.reference)
    layers, seen = decision_layers(reference), {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0]))
    losses(reference, schedule, doubled(make_questions(model, data, schedule, CONFIG)))
    for row, (name, layer) in enumerate(layers.items()):
        x, weight = layer.rotation(seen[name]), layer.quantized_weight()
        effective = weight + layer.low_rank_left @ layer.low_rank_right
        for column, bits in enumerate(CONFIG.candidates):
            set_bits_(reference, {name: bits})
            noise = ((layer.act_quantizer(x) - x) @ weight.T).square().sum()
            expected = noise / (x @ effective.T).square().sum()
            assert table.output_error[row][column] == pytest.approx(expected.item(), rel=1e-6)
        set_bits_(reference, {name: CONFIG.reference})


def explicit_change(model: DiT, schedule: NoiseSchedule, item: Questions, name: str, bits: int) -> Tensor:
    """J d of one item (n,): the Jacobian row by row, in the ordinary network, by the output of one of its layers."""
    reference = with_one_changed(model, CONFIG, name, CONFIG.reference)
    layer = decision_layers(reference)[name]
    kept: dict[str, Tensor] = {}

    def shift(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept["input"], kept["output"] = inputs[0].detach(), output.detach()
        kept["shift"] = torch.zeros_like(output, requires_grad=True)
        return output + kept["shift"]

    handle = layer.register_forward_hook(shift)
    noisy = schedule.add_noise(item.images, item.noise, item.timesteps)
    outputs = reference(noisy, item.timesteps, item.labels)[:, : item.noise.shape[1]].flatten()
    rows = [torch.autograd.grad(output, kept["shift"], retain_graph=True)[0].flatten() for output in outputs]
    handle.remove()
    set_bits_(reference, {name: bits})
    d = (layer(kept["input"]) - kept["output"]).detach().flatten()
    return torch.stack(rows) @ d


@pytest.mark.parametrize("learned_variance", [False, True])
def test_second_order_is_the_gauss_newton_value_on_average(schedule: NoiseSchedule, learned_variance: bool) -> None:
    data = load_data(DataConfig(image_size=4))
    config = CONFIG.updated(candidates=[1, 3], batch_size=512)
    model = as_double(quantized_model(data, schedule, config=TINY.updated(learned_variance=learned_variance)))
    item = doubled(make_questions(model, data, schedule, config)).part(4, 1, torch.zeros((), dtype=torch.float64))
    draws = 2000
    signs = torch.randint(2, (draws, *item.signs.shape[1:]), generator=torch.Generator().manual_seed(9)) * 2.0 - 1
    many = Questions(*(tensor.expand(draws, *tensor.shape[1:]) for tensor in vars(item).values()))
    damages = measure(model, schedule, replace(many, signs=signs), config)
    n = item.noise.numel()
    for row, name in enumerate(damages.decisions):
        for column, bits in enumerate(config.candidates):
            change = explicit_change(model, schedule, item, name, bits)
            estimates = damages.second_order[row, column]
            # for every direction v: <v, J d>^2 / n
            torch.testing.assert_close(
                estimates, (signs.double().flatten(1) @ change).square() / n, rtol=1e-6, atol=1e-15
            )
            gauss_newton = change.square().sum().item() / n
            assert gauss_newton > 0
            assert abs(estimates.mean().item() - gauss_newton) < 5 * estimates.std().item() / draws**0.5


def test_layers_behind_closed_gates_cost_nothing(data: ImageData, schedule: NoiseSchedule) -> None:
    """A fresh DiT: all gates are zero, but its output is not, so that an open gate would show."""
    model = build_dit(NANO, seed=0)
    with torch.no_grad():
        model.proj_out_2.weight.normal_(generator=torch.Generator().manual_seed(1))
    quantize_(model, resolve_specs(variant("robuq_uniform"), NANO.num_layers), seed=0)
    table = measure_sensitivity(model, data, schedule, CONFIG)
    assert not table.matrix("loss").any()
    assert not table.matrix("second_order").any()
    assert (table.matrix("output_error") > 0).all()


def test_without_a_residual_the_loss_is_all_structure_and_gradients_foresee_it(data: ImageData) -> None:
    """Hardly any noise in the images, and the network's own answer as the noise to be predicted: every change costs."""
    schedule = NoiseSchedule(DiffusionConfig(beta_start=1e-10, beta_end=2e-10))
    model = quantized_model(data, schedule)
    config = SensitivityConfig(candidates=(1, 2, 3, 4, 5))
    questions = make_questions(model, data, schedule, config)
    reference = with_one_changed(model, config, decision_name(0, "qkv"), 8)
    with torch.no_grad():
        own = reference(questions.images, questions.timesteps, questions.labels)
    table = summary(measure(model, schedule, replace(questions, noise=own), config), config)
    loss, second_order = table.matrix("loss"), table.matrix("second_order")
    assert table.base_loss < 1e-5
    assert (loss > 0).all()
    assert table.noise()["split_half_spearman"] > 0.98
    assert spearmanr(loss.ravel(), second_order.ravel()).statistic > 0.95
    # An estimate's relative variance is at most 2 per image: 0.14 for 96 of them.
    assert 0.8 < np.median(second_order / loss) < 1.25


def test_progress_counts_decisions_of_all_batches(data: ImageData, schedule: NoiseSchedule) -> None:
    seen: list[tuple[int, int]] = []
    model = quantized_model(data, schedule)
    table = measure_sensitivity(model, data, schedule, CONFIG, lambda done, total: seen.append((done, total)))
    batches = 5  # 24 items by 5
    assert seen == [(4 * count, 8 * batches) for count in range(1, 2 * batches + 1)]
    assert set(table.seconds) == {"reference", *MEASURES}
    assert all(seconds > 0 for seconds in table.seconds.values())


def test_a_network_without_quantized_activations_is_refused(data: ImageData, schedule: NoiseSchedule) -> None:
    model = quantized_model(data, schedule, "ternary_only")
    with pytest.raises(ValueError, match=r"activations of transformer_blocks\.0\.qkv are not quantized"):
        measure_sensitivity(model, data, schedule, CONFIG)
