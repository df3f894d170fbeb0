"""One run: a variant on a data set with one seed, from pre-training to evaluation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from robuq.config.base import Config
from robuq.config.data import DataConfig
from robuq.config.evaluation import EvalConfig
from robuq.config.model import ModelConfig
from robuq.config.quant import BitAllocation, PrecisionMap, display_label, resolve_specs
from robuq.config.train import CalibrationConfig, DiffusionConfig, TrainConfig

Seed = Annotated[int, Field(ge=0)]


class RunConfig(Config):
    """`variant` is a name for people and tables; what happens is in the other fields."""

    variant: str
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pretrain: TrainConfig = TrainConfig(steps=2000, lr=2e-3, checkpoint_every=500)
    precision: PrecisionMap = PrecisionMap()
    allocation: BitAllocation | None = None
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
        try:
            self.evaluation.sample.check_fits(self.diffusion.num_timesteps, self.model.in_channels)
        except ValueError as error:
            raise ValueError(f"evaluation.sample.{error}") from None
        return self

    @property
    def label(self) -> str:
        """`W1.58A2`, for display."""
        return display_label(self.precision, self.allocation)

    def key(self) -> str:
        """Identity of the run: everything but the display name, 16 hex digits."""
        return self.updated(variant="").digest()[:16]
