"""Frechet distance and precision/recall on 10,000 x 2,048 features, one thread, against peers in the same run.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/bench_metrics.py
Writes metrics.md beside this file. A report, not a test.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from robuq.metrics.frechet import frechet_distance, moments
from robuq.metrics.precision_recall import precision_recall

NUM_IMAGES, WIDTH, ROUNDS, CHUNK, K = 10_000, 2048, 3, 500, 3


class Flat(torch.nn.Module):
    """Features are the pixels."""

    num_features = WIDTH

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def peer_frechet(real: Tensor, fake: Tensor) -> float:
    """torchmetrics: both sets of features streamed in, then its distance."""
    metric = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(WIDTH, 1, 1))
    for features, is_real in ((real, True), (fake, False)):
        for part in torch.split(features, CHUNK):
            metric.update(part[:, :, None, None], real=is_real)
    return float(metric.compute())


def our_frechet(real: Tensor, fake: Tensor) -> float:
    return frechet_distance(*moments(real), *moments(fake))


def peer_precision_recall(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """The common implementation: whole distance matrices, one after the other."""
    radii = [torch.cdist(x, x).kthvalue(K + 1, dim=1).values for x in (real, fake)]
    across = torch.cdist(fake, real)
    precision = (across <= radii[0]).any(dim=1).float().mean()
    recall = (across <= radii[1][:, None]).any(dim=0).float().mean()
    return float(precision), float(recall)


def our_precision_recall(real: Tensor, fake: Tensor) -> tuple[float, float]:
    return precision_recall(real, fake, K)


def interleaved(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[list[float], list[float]]:
    """CPU seconds of each round, which other processes disturb least; the two take turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for function, times in zip((ours, peer), seconds, strict=True):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
    return seconds


def row(name: str, peer_name: str, ours: list[float], peer: list[float], agreement: str) -> str:
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    medians = f"{statistics.median(ours):.1f} | {statistics.median(peer):.1f}"
    return f"| {name} | {peer_name} | {medians} | {ratio:.2f} | {agreement} |"


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    real = (torch.randn(NUM_IMAGES, WIDTH, generator=generator) @ mixing).relu()
    fake = (torch.randn(NUM_IMAGES, WIDTH, generator=generator) @ mixing * 1.1).relu()
    frechet = interleaved(lambda: our_frechet(real, fake), lambda: peer_frechet(real, fake))
    distances = f"{our_frechet(real, fake):.4f} / {peer_frechet(real, fake):.4f}"
    neighbours = interleaved(lambda: our_precision_recall(real, fake), lambda: peer_precision_recall(real, fake))
    pairs = " / ".join(
        f"{p:.4f}, {r:.4f}" for p, r in (our_precision_recall(real, fake), peer_precision_recall(real, fake))
    )
    lines = [
        f"# Metrics on {NUM_IMAGES:,} x {WIDTH:,} features",
        "",
        f"One thread, {ROUNDS} interleaved rounds; medians in CPU seconds, median of the rounds' ratios.",
        f"torch {torch.__version__}, torchmetrics {torchmetrics.__version__}, {platform.machine()}.",
        "Moments are included. Written by `tests/benchmarks/bench_metrics.py`.",
        "",
        "| metric | peer | ours, s | peer, s | ours / peer | value, ours / peer |",
        "|-|-|-|-|-|-|",
        row("Frechet distance", "torchmetrics", *frechet, distances),
        row(f"precision, recall (k = {K})", "whole distance matrices", *neighbours, pairs),
    ]
    Path(__file__).with_name("metrics.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
