"""Time a training step of our DiT against a plain DiT and unmodified diffusers; write dit_step.md.

A step is forward, backward and fused AdamW on the noise-prediction error, one thread, float32. The three models take
turns within each repetition, so that a busy machine slows all alike; ratios are of the medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from plain_dit import PlainDiT
from torch import Tensor, nn

from robuq.config import ModelConfig, model_preset
from robuq.models import build_dit, diffusers_state

BATCHES = {"digits": 64, "fashion": 32}
Step = Callable[[], float]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def make_models(config: ModelConfig) -> dict[str, tuple[nn.Module, Callable[..., Tensor]]]:
    """{name: (model, its forward)}, ours and the plain one with equally many parameters."""
    ours = build_dit(config, seed=0)
    plain = PlainDiT(config, ours.pos_embed.pos_embed.clone())
    original = DiTTransformer2DModel(**ours.config)
    original.load_state_dict(diffusers_state(ours))
    if parameters(ours) != parameters(plain):
        raise ValueError(f"unequal sizes: ours has {parameters(ours)} parameters, the plain DiT {parameters(plain)}")
    return {
        "plain": (plain, plain),
        "ours": (ours, ours),
        "diffusers": (original, lambda x, t, y: original(x, t, y, return_dict=False)[0]),
    }


def make_step(model: nn.Module, forward: Callable[..., Tensor], config: ModelConfig, batch: int) -> Step:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # no zeros from the initialisation: all products are real
        nn.init.normal_(parameter, std=0.05, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, config.in_channels, config.image_size, config.image_size, generator=generator)
    timesteps = torch.randint(1000, (batch,), generator=generator)
    labels = torch.randint(config.num_classes + 1, (batch,), generator=generator)

    def step() -> float:
        start = time.perf_counter()
        F.mse_loss(forward(images, timesteps, labels), images).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return step


def measure(preset: str, repetitions: int, warm_up: int = 10) -> dict[str, list[float]]:
    """{name: seconds of each step}"""
    config = model_preset(preset)
    models = make_models(config)
    steps = {name: make_step(*pair, config, BATCHES[preset]) for name, pair in models.items()}
    for step in steps.values():
        for _ in range(warm_up):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions):
        names = list(steps)
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            times[name].append(steps[name]())
    return times


def rows(preset: str, times: dict[str, list[float]]) -> list[str]:
    base = statistics.median(times["plain"])
    lines = []
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        cells = (f"{middle * 1e3:.2f}", f"{low * 1e3:.2f}-{high * 1e3:.2f}", f"{middle / base:.3f}")
        lines.append(f"| {preset} | {BATCHES[preset]} | {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=sorted(BATCHES), default=sorted(BATCHES))
    parser.add_argument("--repetitions", type=int, default=200, help="steps of each model")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("dit_step.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for preset in arguments.presets:
        lines += rows(preset, measure(preset, arguments.repetitions))
        print("\n".join(lines[-3:]), flush=True)
    head = f"""# A training step of our DiT

Forward, backward and fused AdamW in float32 on one thread; medians and quartiles of {arguments.repetitions} steps
of each model, which took turns. *plain*: `plain_dit.py`, the same sizes in plain torch. *diffusers*: unmodified
`DiTTransformer2DModel`. Over plain: the ratio of the medians, below 1 is faster.

torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}. Again with
`OMP_NUM_THREADS=1 python tests/benchmarks/bench_dit_step.py --repetitions {arguments.repetitions}`.

| preset | batch | model | ms per step | quartiles, ms | over plain |
|---|---|---|---|---|---|
"""
    arguments.output.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
