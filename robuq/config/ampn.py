"""AMPN: activation bits of each layer under an average budget. Free of torch.

A decision is one role of one block (`decision_name`); its candidates are bit-widths. A sensitivity says what each
candidate costs in quality, a budget what all decisions together may cost, an allocator or a search chooses.
Source: RobuQ, AMPN.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from robuq.config.base import MAX_BATCH, MOST, Config, Seed
from robuq.config.quant import Bits

Weighting = Literal["layers", "macs", "elements", "bops"]
Allocator = Literal["uniform", "greedy", "exact", "paper"]
Measure = Literal["loss", "output_error", "second_order"]


class SensitivityConfig(Config):
    """How the sensitivity of each decision to each bit-width is measured, one decision at a time."""

    candidates: Annotated[tuple[Bits, ...], Field(min_length=1)] = (1, 2, 3, 4, 5, 6, 7, 8)
    reference: Bits = 8  # bits of all other decisions meanwhile: high, or the budget's width
    # Updates of quantization-aware training before it, at the precision map's own width; 0: none, straight after
    # the surgery (the paper's ablation 2c).
    warm_up_steps: Annotated[int, Field(ge=0, le=MOST)] = 100
    # Validation images, evenly chosen; training images if there are none.
    num_images: Annotated[int, Field(ge=2, le=MOST)] = 96
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 1  # noise draws per image
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 96
    seed: Seed = 0  # of noise and timesteps

    @model_validator(mode="after")
    def _candidates_ascend(self) -> Self:
        if list(self.candidates) != sorted(set(self.candidates)):
            raise ValueError(f"candidates must ascend without repetition, got {list(self.candidates)}")
        return self


class Budget(Config):
    """What all decisions together may cost.

    layers, macs, elements: `limit` is the mean activation bits, weighted by decision, by multiply-accumulates or by
    entering activation elements. bops: `limit` is 10^9 bit operations of one forward pass of one image, of the block
    linears, or of the whole network with `count_fixed` (attention, adaLN, embeddings, low-rank branches too).
    """

    limit: Annotated[float, Field(gt=0, le=1e15)]
    weights: Weighting = "macs"
    count_fixed: bool = False

    @model_validator(mode="after")
    def _only_bops_count_fixed_roles(self) -> Self:
        if self.count_fixed and self.weights != "bops":
            raise ValueError(f"count_fixed with weights={self.weights!r}: only bops can count what is fixed")
        return self


class AmpnConfig(Config):
    """Bits by AMPN in place of one width: warm-up, sensitivity, allocation, then training as for every other run.

    Paper: training goes on from the warmed-up network. We: it starts from the full-precision network for its full
    length, because then every row of a table is trained alike, and only the bits differ.
    """

    budget: Budget
    allocator: Allocator = "exact"
    measure: Measure = "loss"
    sensitivity: SensitivityConfig = SensitivityConfig()
