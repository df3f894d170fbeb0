"""One run: a variant on a data set with one seed, from pre-training to evaluation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from robuq.config.ampn import AmpnConfig
from robuq.config.base import Config, Seed
from robuq.config.data import DataConfig
from robuq.config.evaluation import EvalConfig
from robuq.config.model import ModelConfig
from robuq.config.quant import BLOCK_ROLES, BitAllocation, PrecisionMap, display_label, resolve_specs
from robuq.config.train import CalibrationConfig, DiffusionConfig, TrainConfig
from robuq.messages import shown_as_written

MAX_NAME = 1000  # characters


class RunConfig(Config):
    """`variant` is a name for people and tables; what happens is in the other fields."""

    variant: Annotated[str, Field(max_length=MAX_NAME), AfterValidator(shown_as_written)]
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pretrain: TrainConfig = TrainConfig(steps=2000, lr=2e-3, checkpoint_every=500)
    precision: PrecisionMap = PrecisionMap()
    allocation: BitAllocation | None = None
    ampn: AmpnConfig | None = None  # finds the allocation on the way
    calibration: CalibrationConfig = CalibrationConfig()
    train: TrainConfig = TrainConfig()  # quantization-aware training, from the pre-trained network
    evaluation: EvalConfig = EvalConfig()
    seed: Seed = 0  # of quantization-aware training, signs included
    pretrain_seed: Seed = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data.image_size != self.model.image_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} differs from model.image_size {self.model.image_size}"
            )
        resolve_specs(self.precision, self.model.num_layers, self.allocation)
        self._check_ampn()
        try:
            self.evaluation.sample.check_fits(self.diffusion.num_timesteps, self.model.in_channels)
        except ValueError as error:
            raise ValueError(f"evaluation.sample.{error}") from None
        return self

    def _check_ampn(self) -> None:
        if self.ampn is None:
            return
        if self.allocation is not None:
            raise ValueError("allocation and ampn both choose the bits: set one of them")
        roles = [role for role in BLOCK_ROLES if (spec := getattr(self.precision, role)) is None or spec.act is None]
        if roles:
            raise ValueError(f"ampn chooses activation bits, but the precision map leaves those of {roles[0]} alone")
        steps, warm = self.ampn.sensitivity.warm_up_steps, self.train.warmup_steps
        if 0 < steps <= warm:
            raise ValueError(f"ampn.sensitivity.warm_up_steps {steps} must be 0 or above train.warmup_steps {warm}")

    @property
    def label(self) -> str:
        """`W1.58A2`, for display."""
        return display_label(self.precision, self.allocation, self.average_bits)

    @property
    def average_bits(self) -> float | None:
        """The mean activation bits that AMPN keeps to, where its budget is one."""
        if self.ampn is None or self.ampn.budget.weights == "bops":
            return None
        return self.ampn.budget.limit

    def key(self) -> str:
        """Identity of the run: everything but the display name, 16 hex digits."""
        return self.model_copy(update={"variant": ""}).digest()[:16]

    def with_seeds(self, seed: int, pretrain_seed: int) -> Self:
        """The same run with other (valid) seeds; all else is shared, not copied."""
        return self.model_copy(update={"seed": seed, "pretrain_seed": pretrain_seed})
