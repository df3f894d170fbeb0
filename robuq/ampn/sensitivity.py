"""Sensitivity: what each decision costs in quality with each bit-width, while all others have the reference's.

Three measures of a decision with b bits, on noised validation images:

    loss          mean over images of  loss(this layer has b bits) - loss(reference)
    output_error  |Q_b(x) W - x W|^2 / |x E|^2
    second_order  mean over images of  <J^T v, d>^2 / n,  d = y_b - y

x is the rotated input of the layer in the reference network, W its quantized weight, E = W + L R with the low-rank
branch, y its output. The branch is in the signal, because what follows the layer sees their sum; the noise is the same
with and without it, since the branch takes the input unquantized. The bias is in neither.

second_order is the Gauss-Newton estimate of the loss's increase. The loss of an image is the mean of (f - eps)^2 over
its n outputs f, whose curvature is 2 I / n, so that to second order in d, with J = df / dy,

    loss(y + d) - loss(y) = 2 <f - eps, J d> / n + |J d|^2 / n.

The first term is left out: its mean over the noise is zero where the residual f - eps is what x_t cannot tell of the
noise, as in a network trained to the conditional mean. (Not so in a network that was trained at other widths than the
reference's: there the loss can fall where this estimate rises.) The second is estimated without bias by a vector v of
random signs, E_v <v, J d>^2 = |J d|^2, so that one backward pass, J^T v at the outputs of all layers at once, serves
all decisions and bit-widths. J is straight-through where the quantizers' gradients are.
Sources: Hutchinson's estimator (1989); Dong et al., HAWQ-V2; Li et al., BRECQ (Gauss-Newton in output space).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from robuq.ampn.frozen import FrozenLinear, frozen
from robuq.ampn.table import Rows, SensitivityTable
from robuq.batches import known_labels
from robuq.config import BLOCK_ROLES, ConfigError, SensitivityConfig, decision_name
from robuq.data.load import ImageData
from robuq.diffusion.loss import stratified_timesteps
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT
from robuq.models.dit import activation, feed_forward, modulated_block, modulations
from robuq.quant.bits import decision_layers, with_bits
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.seeding import derived_generator

Progress = Callable[[int, int], None]
Candidates = dict[str, list[tuple[int, ActFakeQuantizer]]]  # of each decision: column of the table, quantizer
SMALLEST = 1e-30  # signal of a layer that hands on nothing but its bias; its noise is zero as well


def measure_sensitivity(
    model: DiT,
    data: ImageData,
    schedule: NoiseSchedule,
    config: SensitivityConfig,
    progress: Progress | None = None,
) -> SensitivityTable:
    """The table of a quantized `model`, which is left as it was.

    Only validation images are used (training images where there are none). How they are split into batches enters
    through the rounding of the model's own products alone, if its scales are static or of single tokens.
    `progress` is told how many decisions are done, of how many, batches counted one by one.

    Raises:
        ConfigError: fewer than two images.
        ValueError: a block linear without quantized activations, or a width that its quantizer cannot have.
    """
    questions = make_questions(model, data, schedule, config)
    return summary(measure(model, schedule, questions, config, progress), config)


# --- what the network is asked ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """Items are images with their noise; with repeats all images come again, with other noise."""

    images: Tensor  # (M, C, H, W)
    labels: Tensor  # (M,)
    noise: Tensor  # (M, C, H, W)
    timesteps: Tensor  # (M,)
    signs: Tensor  # (M, C, H, W), +-1: the direction v of the second-order estimate

    def part(self, first: int, count: int, like: Tensor) -> Questions:
        """Items first .. first + count - 1, on the device and with the floating type of `like`."""
        parts = (tensor[first : first + count].to(like.device) for tensor in vars(self).values())
        return Questions(*(part.to(like.dtype) if part.is_floating_point() else part for part in parts))


def make_questions(model: DiT, data: ImageData, schedule: NoiseSchedule, config: SensitivityConfig) -> Questions:
    """Evenly chosen images; noise, stratified timesteps and signs are functions of `config.seed` alone.

    Raises:
        ConfigError: fewer than two images.
    """
    images, labels = data.validation_images, data.validation_labels
    if not len(images):
        images, labels = data.train_images, data.train_labels
    count = min(len(images), config.num_images)
    if count < 2:
        raise ConfigError(f"sensitivity on {count} image: its standard error needs at least 2 validation images")
    chosen = torch.arange(count) * len(images) // count
    images, labels = images[chosen], known_labels(labels[chosen], model.null_label)
    draws: list[tuple[Tensor, ...]] = []
    for repeat in range(config.repeats):
        generator = derived_generator(config.seed, "sensitivity", repeat)
        noise = torch.randn(images.shape, generator=generator)
        timesteps = stratified_timesteps(count, schedule.num_timesteps, generator)
        signs = torch.randint(2, images.shape, generator=generator).mul_(2).sub_(1).float()
        draws.append((images, labels, noise, timesteps, signs))
    return Questions(*(torch.cat(parts) for parts in zip(*draws, strict=True)))


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damages:
    """What was measured of each item; L decisions, C candidates, M items; float64 on the CPU."""

    decisions: tuple[str, ...]
    base: Tensor  # (M,) loss of the reference
    loss: Tensor  # (L, C, M) its increase
    noise: Tensor  # (L, C, M) |Q_b(x) W - x W|^2
    signal: Tensor  # (L, M) |x E|^2
    second_order: Tensor  # (L, C, M)
    seconds: dict[str, float]


class Stopwatch:
    """Seconds by name. On CUDA events are recorded, and read once at the end: nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._device.type != "cuda":
            begun = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - begun)
            return
        begin, end = self._event(), self._event()
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    @staticmethod
    def _event() -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        if self._events:
            torch.cuda.synchronize(self._device)
        for name, begin, end in self._events:
            self._add(name, begin.elapsed_time(end) / 1000)
        self._events.clear()
        return dict(self._seconds)


def measure(
    model: DiT,
    schedule: NoiseSchedule,
    questions: Questions,
    config: SensitivityConfig,
    progress: Progress | None = None,
) -> Damages:
    """All measures of all items, batch by batch."""
    like, size = next(model.parameters()), config.batch_size
    candidates = _candidates(model, config)
    watch, parts = Stopwatch(like.device), []
    starts = range(0, len(questions.images), size)
    with frozen(model, config.reference) as layers:
        for index, first in enumerate(starts):
            batch = _Batch(model, schedule, questions.part(first, size, like), layers, candidates, config, watch)
            for block in reversed(range(len(batch.blocks))):
                batch.measure_block(block)
                if progress is not None:
                    done = (index + 1) * len(layers) - block * len(BLOCK_ROLES)
                    progress(done, len(starts) * len(layers))
            parts.append(batch.results)
    names = ("base", "loss", "noise", "signal", "second_order")
    whole = {name: torch.cat([part[name] for part in parts], dim=-1).double().cpu() for name in names}
    return Damages(tuple(layers), **whole, seconds=watch.seconds())


def _candidates(model: DiT, config: SensitivityConfig) -> Candidates:
    """Quantizers of all widths but the reference's: that column is zero by definition."""
    columns = [(column, bits) for column, bits in enumerate(config.candidates) if bits != config.reference]
    quantizers = {name: layer.act_quantizer for name, layer in decision_layers(model).items()}
    return {
        name: [(column, with_bits(quantizer, bits)) for column, bits in columns]
        for name, quantizer in quantizers.items()
        if quantizer is not None  # decision_layers saw to it
    }


class _Batch:
    """One batch in the frozen network, and what becomes of it when one layer has other bits.

    Blocks are visited from the last to the first, as the backward pass goes. Only their inputs are kept; all else of
    a block is computed again when it is visited, so that memory holds the insides of one block at a time.
    """

    def __init__(
        self,
        model: DiT,
        schedule: NoiseSchedule,
        questions: Questions,
        layers: dict[str, FrozenLinear],
        candidates: Candidates,
        config: SensitivityConfig,
        watch: Stopwatch,
    ) -> None:
        self.model, self.layers, self.candidates, self.config, self.watch = model, layers, candidates, config, watch
        self.blocks = list(model.transformer_blocks)
        with torch.no_grad(), watch("reference"):
            noisy = schedule.add_noise(questions.images, questions.noise, questions.timesteps)
            x, self.condition = model.embed(noisy, questions.timesteps, questions.labels)
            self.modulations = [modulations(block, self.condition) for block in self.blocks]
            self.inputs = [x]
            for block, modulation in zip(self.blocks, self.modulations, strict=True):
                self.inputs.append(modulated_block(block, self.inputs[-1], modulation))
            self.channels = questions.noise.shape[1]  # those of a learned variance come after
            self.prediction = self.predicted(self.inputs[-1])
            self.residual = self.prediction - questions.noise
        with torch.enable_grad(), watch("second_order"):
            x = self.inputs.pop().requires_grad_()
            (self.slope,) = torch.autograd.grad(self.predicted(x), x, questions.signs)
        self.results = self._empty_results(len(noisy))

    def _empty_results(self, count: int) -> dict[str, Tensor]:
        shape = (len(self.layers), len(self.config.candidates), count)
        zeros = {name: self.residual.new_zeros(shape) for name in ("loss", "noise", "second_order")}
        base = self.residual.square().flatten(1).mean(1)
        return {**zeros, "base": base, "signal": self.residual.new_zeros(shape[0], count)}

    def predicted(self, x: Tensor) -> Tensor:
        """The last block's tokens (N, T, D) -> predicted noise (N, C, H, W)."""
        output: Tensor = self.model.head(x, self.condition)
        return output[:, : self.channels]

    def increase(self, x: Tensor, first: int) -> Tensor:
        """Tokens (N, T, D) that enter block `first` -> increase of each item's loss (N,).

        (f + d - eps)^2 - (f - eps)^2 = d (d + 2 (f - eps)): the difference of two means would lose digits.
        """
        for block, modulation in zip(self.blocks[first:], self.modulations[first:], strict=True):
            x = modulated_block(block, x, modulation, overwrite=True)
        change = self.predicted(x) - self.prediction
        return (change * (change + 2 * self.residual)).flatten(1).mean(1)

    def measure_block(self, index: int) -> None:
        """Fill the rows of the block's decisions. To be called once for each block, the last one first."""
        x = self.inputs.pop()
        with self.watch("second_order"):
            traces = self._traced(index, x)
        with torch.inference_mode():  # cheaper than without gradients alone
            gate = self.modulations[index][2]
            middle = torch.addcmul(x, gate, traces["proj"].output)
            for role in BLOCK_ROLES:
                self._measure_decision(index, role, traces.pop(role), x, middle)

    def _traced(self, index: int, x: Tensor) -> dict[str, _Trace]:
        """The block's layers in the reference network, and J^T v there; carries J^T v to the block's input."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        layers = {role: self.layers[decision_name(index, role)] for role in BLOCK_ROLES}
        handles = [layer.register_forward_hook(_keep(seen, role)) for role, layer in layers.items()]
        try:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                out = modulated_block(self.blocks[index], x, self.modulations[index])
        finally:
            for handle in handles:
                handle.remove()
        outputs = [seen[role][1] for role in BLOCK_ROLES]
        *slopes, self.slope = torch.autograd.grad(out, [*outputs, x], self.slope)
        return {
            role: _Trace(seen[role][0].detach(), seen[role][1].detach(), slope)
            for role, slope in zip(BLOCK_ROLES, slopes, strict=True)
        }

    def _measure_decision(self, index: int, role: str, trace: _Trace, x: Tensor, middle: Tensor) -> None:
        name = decision_name(index, role)
        layer, row = self.layers[name], list(self.layers).index(name)
        with self.watch("output_error"):
            rotated = layer.rotated(trace.input)
            offset = layer.offset(rotated)
            exact = layer.answer(rotated, offset, None).view_as(trace.output)
            signal = exact if layer.bias is None else exact - layer.bias
            self.results["signal"][row] = inner(signal, signal)
            error = trace.output - exact
            if self.config.reference in self.config.candidates:
                column = self.config.candidates.index(self.config.reference)
                self.results["noise"][row, column] = inner(error, error)
        with self.watch("second_order"):
            already = inner(trace.slope, error)
        for column, quantizer in self.candidates[name]:
            with self.watch("output_error"):
                y = layer.answer(rotated, offset, quantizer).view_as(exact)
                error = y - exact
                self.results["noise"][row, column] = inner(error, error)
            with self.watch("second_order"):
                change = inner(trace.slope, error) - already
                self.results["second_order"][row, column] = change.square() / self.residual[0].numel()
            with self.watch("loss"):
                after = self._after(index, role, y, x, middle)
                self.results["loss"][row, column] = self.increase(after, index + 1)

    def _after(self, index: int, role: str, y: Tensor, x: Tensor, middle: Tensor) -> Tensor:
        """The block's output (N, T, D) when the layer of `role` answers y.

        x (N, T, D) enters the block, `middle` (N, T, D) leaves its attention in the reference network.
        """
        block, (_, _, gate, *of_feed_forward) = self.blocks[index], self.modulations[index]
        if role == "fc2":
            return torch.addcmul(middle, of_feed_forward[-1], y)
        if role == "fc1":
            return torch.addcmul(middle, of_feed_forward[-1], block.ff.net[2](activation(y, overwrite=True)))
        if role == "qkv":
            with self.layers[decision_name(index, role)].answering(y):
                y = block.attn1(x)
        return feed_forward(block, torch.addcmul(x, gate, y), *of_feed_forward, overwrite=True)


@dataclass(frozen=True)
class _Trace:
    """A layer in the reference network."""

    input: Tensor  # (N, T, I)
    output: Tensor  # (N, T, O)
    slope: Tensor  # (N, T, O) J^T v


def _keep(seen: dict[str, tuple[Tensor, Tensor]], role: str) -> Callable[..., None]:
    def hook(_: FrozenLinear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[role] = (inputs[0], output)

    return hook


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(N, T, O), (N, T, O) -> (N,), the inner product of each item."""
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return product


# --- the table ----------------------------------------------------------------------------------------------------


def summary(damages: Damages, config: SensitivityConfig) -> SensitivityTable:
    """Means over items. Standard errors are over images, after the mean over an image's repeats; halves are every
    other image. Timesteps are stratified, so that the standard errors are rather too large."""
    loss, count = _by_image(damages.loss, config.repeats), damages.loss.shape[-1] // config.repeats
    output_error = damages.noise.sum(-1) / damages.signal.sum(-1, keepdim=True).clamp_min(SMALLEST)
    return SensitivityTable(
        decisions=damages.decisions,
        candidates=config.candidates,
        reference=config.reference,
        warm_up_steps=config.warm_up_steps,
        num_images=count,
        base_loss=damages.base.mean().item(),
        loss=_rows(loss.mean(-1)),
        loss_se=_rows(loss.std(-1) / count**0.5),
        loss_halves=(_rows(loss[..., ::2].mean(-1)), _rows(loss[..., 1::2].mean(-1))),
        output_error=_rows(output_error),
        second_order=_rows(damages.second_order.mean(-1)),
        seconds=damages.seconds,
    )


def _by_image(values: Tensor, repeats: int) -> Tensor:
    """(..., R N) -> (..., N)"""
    return values.view(*values.shape[:-1], repeats, -1).mean(-2)


def _rows(values: Tensor) -> Rows:
    return tuple(tuple(row) for row in values.tolist())
