"""SensitivityTable: what each bit-width of each decision costs in quality, as measured. Free of torch."""

from __future__ import annotations

import json
from math import log10
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from scipy.stats import spearmanr

from robuq.config import BLOCK_ROLES, Config, ConfigError, Measure, decision_name
from robuq.plain_json import read_json

Rows = tuple[tuple[float, ...], ...]  # (L, C): one row a decision, one column a bit-width


def split_decision(decision: str) -> tuple[int, str]:
    """`transformer_blocks.3.fc1` -> (3, "fc1").

    Raises:
        ValueError: not the name of a decision.
    """
    *_, block, role = ("", *decision.split("."))[-3:]
    if not block.isdecimal() or role not in BLOCK_ROLES or decision != decision_name(int(block), role):
        raise ValueError(f"{decision!r} is no decision: they are {decision_name(0, BLOCK_ROLES[0])!r} and the like")
    return int(block), role


class SensitivityTable(Config):
    """L decisions by C candidate bit-widths, each with that one decision changed and all others at `reference` bits.

    loss is the mean increase of the diffusion loss over the reference network's, negative where noise or luck makes
    it so; loss_se its standard error over images, paired; loss_halves the same of either half of the images.
    output_error is noise over signal of the layer's output, a ratio of squares. second_order is the increase of the
    loss that gradients predict.
    """

    decisions: tuple[str, ...]
    candidates: tuple[int, ...]
    reference: int
    warm_up_steps: int
    num_images: int
    base_loss: float  # of the reference network, mean
    loss: Rows
    loss_se: Rows
    loss_halves: tuple[Rows, Rows]
    output_error: Rows
    second_order: Rows
    seconds: dict[str, float] = {}  # per measure

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        for decision in self.decisions:
            split_decision(decision)
        if list(self.candidates) != sorted(set(self.candidates)) or not self.candidates:
            raise ValueError(f"candidates must ascend without repetition, got {list(self.candidates)}")
        shape = (len(self.decisions), len(self.candidates))
        for name in ("loss", "loss_se", "output_error", "second_order"):
            _check_shape(name, getattr(self, name), shape)
        for half in self.loss_halves:
            _check_shape("loss_halves", half, shape)
        return self

    def matrix(self, measure: Measure) -> NDArray[np.float64]:
        """(L, C): the damage that the measure sees."""
        return np.array(getattr(self, measure), dtype=np.float64).reshape(len(self.decisions), len(self.candidates))

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def load(cls, file: Path) -> Self:
        """Raises ConfigError: the file cannot be read or is no sensitivity table."""
        try:
            values = read_json(file)
        except OSError as error:
            raise ConfigError(f"cannot read the sensitivity table {file}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{file} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{file} is no sensitivity table: it must be a mapping")
        return cls.parse(values, str(file))

    def noise(self) -> dict[str, float]:
        """How far the measured loss can be trusted; the reference's own column, exactly zero, is left out.

        split_half_spearman: rank correlation of all entries between the halves of the images.
        split_half_spearman_within: the same among decisions at one bit-width, median over bit-widths.
        median_relative_se: standard error over the increase's size.
        """
        measured = [column for column, bits in enumerate(self.candidates) if bits != self.reference]
        first, second = (np.array(half)[:, measured] for half in self.loss_halves)
        loss, errors = self.matrix("loss")[:, measured], np.array(self.loss_se)[:, measured]
        seen = loss != 0
        within = [_spearman(first[:, k], second[:, k]) for k in range(len(measured))]
        return {
            "split_half_spearman": _spearman(first.ravel(), second.ravel()),
            "split_half_spearman_within": float(np.median(within)) if within else 0.0,
            "median_relative_se": float(np.median(errors[seen] / np.abs(loss[seen]))) if seen.any() else 0.0,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Tidy: one mapping a decision and bit-width, with `block`, `role`, `bits` and every measure."""
        rows = []
        for i, decision in enumerate(self.decisions):
            block, role = split_decision(decision)
            for j, bits in enumerate(self.candidates):
                error = self.output_error[i][j]
                values = {
                    "loss": self.loss[i][j],
                    "loss_se": self.loss_se[i][j],
                    "output_error": error,
                    "sqnr_db": -10 * log10(error) if error > 0 else None,
                    "second_order": self.second_order[i][j],
                }
                rows.append({"block": block, "role": role, "bits": bits, **values})
        return rows


def _check_shape(name: str, rows: Rows, shape: tuple[int, int]) -> None:
    widths = {len(row) for row in rows}
    if len(rows) != shape[0] or not widths <= {shape[1]}:
        got = f"{len(rows)} x {'/'.join(map(str, sorted(widths)))}"
        raise ValueError(f"{name} is {got}, but there are {shape[0]} decisions x {shape[1]} candidates")


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """0 where one side is constant: it ranks nothing."""
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)
