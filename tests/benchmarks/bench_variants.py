"""Time of one training step of each variant over that of the full-precision model, in one run.

    python tests/benchmarks/bench_variants.py            # writes tests/benchmarks/variants_step.md

A step is forward, loss, backward, clipping and AdamW. The variants take turns, so that a machine whose speed
drifts slows all of them alike; the ratio is the median over the rounds of (variant / full precision). Times are the
process's own (with one thread: the wall's on an idle machine), so that other processes' turns do not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from robuq.config import DiffusionConfig, ModelConfig, PrecisionMap, model_preset, resolve_specs
from robuq.diffusion import NoiseSchedule, noise_prediction_loss
from robuq.models import build_dit
from robuq.quant.surgery import needs_calibration, quantize_, quantized_linears
from robuq.variants import variant

NAMES = [
    "full_precision",
    "ternary_only",
    "minmax",
    "minmax_rotation",
    "baseline",
    "robuq_uniform",
    "robuq_uniform, block linears only",
    "bitnet_v2",
    "quest",
    "lsq",
]
CASES = {"digits": 64, "fashion": 32}  # preset: batch size


def precision_map(name: str, bits: int) -> PrecisionMap:
    """A variant; with `block linears only`, attention's products and adaLN stay in full precision."""
    variant_name, _, rest = name.partition(", ")
    precision = variant(variant_name, bits)
    return precision.updated(attention=None, adaln=None) if rest else precision


def training_step(config: ModelConfig, name: str, bits: int, batch_size: int) -> Callable[[], None]:
    """A function that makes one optimizer update of a freshly built variant."""
    model = build_dit(config, seed=0)
    quantize_(model, resolve_specs(precision_map(name, bits), config.num_layers), seed=0)
    if needs_calibration(model):
        for layer in quantized_linears(model).values():
            if layer.act_quantizer is not None:
                layer.act_quantizer.calibrate_(torch.randn(256, layer.in_features))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    schedule = NoiseSchedule(DiffusionConfig())
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, config.in_channels, config.image_size, config.image_size)
    images, noise = torch.rand(size, generator=generator) * 2 - 1, torch.randn(size, generator=generator)
    labels = torch.randint(config.num_classes, (batch_size,), generator=generator)
    timesteps = torch.randint(schedule.num_timesteps, (batch_size,), generator=generator)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        noise_prediction_loss(model, schedule, images, labels, noise, timesteps).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def measure(config: ModelConfig, batch_size: int, bits: int, rounds: int, names: list[str]) -> dict[str, list[float]]:
    """{name: milliseconds a step, one entry a round}."""
    steps = {name: training_step(config, name, bits, batch_size) for name in names}
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(4):
                step()
            times[name].append((time.process_time() - start) * 250)
    return times


def table(times: dict[str, list[float]]) -> list[str]:
    reference = times["full_precision"]
    lines = ["| variant | ms a step | over full precision | interquartile range |", "|---|---|---|---|"]
    for name, own in times.items():
        ratios = sorted(a / b for a, b in zip(own, reference, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        middle = statistics.median(ratios)
        lines.append(f"| {name} | {statistics.median(own):.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--presets", nargs="*", default=list(CASES))
    parser.add_argument("--variants", nargs="*", default=NAMES)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_name("variants_step.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Training step of each variant over full precision",
        "",
        "`python tests/benchmarks/bench_variants.py`",
        "",
    ]
    lines.append(
        f"torch {torch.__version__}, CPU, one thread (its own time), {options.bits}-bit activations,"
        f" {options.rounds} rounds."
    )
    for preset in options.presets:
        config = model_preset(preset)
        size = f"{config.num_layers} layers, width {config.width}, {config.num_tokens} tokens, batch {CASES[preset]}"
        lines += ["", f"## {preset}: {size}", ""]
        lines += table(measure(config, CASES[preset], options.bits, options.rounds, options.variants))
        print("\n".join(lines[-len(options.variants) - 3 :]), flush=True)
    options.report.write_text("\n".join(lines) + "\n")
    print(f"written: {options.report}")


if __name__ == "__main__":
    main()
