"""A search over bit allocations: which space, which sampler, how much is spent on each allocation. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from robuq.addresses import study_fault
from robuq.config.ampn import Allocator
from robuq.config.base import MOST, Config, Seed

SpaceName = Literal["policy", "block", "layer", "blind"]
SamplerName = Literal["tpe", "nsga2", "cmaes", "random"]
Objectives = (
    tuple[Literal["loss"]] | tuple[Literal["loss"], Literal["average_bits"]] | tuple[Literal["loss"], Literal["bops"]]
)


class Rung(Config):
    """One fidelity: the validation loss after so many steps of training, and who goes on from it."""

    # 0: the warmed-up network with these bits, untrained; n: n steps of QAT.
    steps: Annotated[int, Field(ge=0, le=MOST)]
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the allocations seen here that goes on


class SearchConfig(Config):
    """One search. With two objectives the space has one parameter more, the budget's limit."""

    model_config = ConfigDict(hide_input_in_errors=True)  # of pydantic's own text: an address may hold a password

    space: SpaceName = "policy"
    sampler: SamplerName = "tpe"
    # Distinct allocations at the first rung, enqueued ones included.
    evaluations: Annotated[int, Field(ge=1, le=1_000_000)] = 40
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1, max_length=100)] = (Rung(steps=0),)
    prune_after: Annotated[int, Field(ge=1, le=MOST)] = 4  # values at a rung before one can be pruned there
    objectives: Objectives = ("loss",)
    budget_range: tuple[float, float] | None = None  # limits to choose from, in the budget's unit
    enqueue: tuple[Allocator, ...] = ("uniform", "greedy", "exact", "paper")
    seed: Seed = 0
    # None: a journal file in the output folder; else a database, as postgresql://HOST/NAME or sqlite:////FOLDER/FILE.db.
    storage: str | None = None
    # Of the runs that compare the winner with baselines.
    confirm_seeds: Annotated[tuple[Seed, ...], Field(max_length=1000)] = ()

    @field_validator("storage")
    @classmethod
    def _storage_is_a_database(cls, storage: str | None) -> str | None:
        if storage is not None and (fault := study_fault(storage)):
            raise ValueError(fault)
        return storage

    @model_validator(mode="after")
    def _rungs_ascend(self) -> Self:
        steps = [rung.steps for rung in self.rungs]
        if steps != sorted(set(steps)):
            raise ValueError(f"rungs must ascend in steps without repetition, got {steps}")
        if self.rungs[-1].keep != 1:
            raise ValueError(f"nothing comes after the last rung: its keep must be 1, got {self.rungs[-1].keep}")
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        for field in ("enqueue", "confirm_seeds"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field} repeats a value: {list(values)}")
        return self

    @model_validator(mode="after")
    def _two_objectives_have_a_budget_range(self) -> Self:
        two = len(self.objectives) == 2
        if two != (self.budget_range is not None):
            raise ValueError(f"budget_range={self.budget_range} with {len(self.objectives)} objective(s): two need it")
        if self.budget_range is not None and not 0 < self.budget_range[0] < self.budget_range[1]:
            raise ValueError(f"budget_range must be (low, high) with 0 < low < high, got {list(self.budget_range)}")
        if two and len(self.rungs) > 1:
            raise ValueError(f"two objectives cannot be pruned: set one rung, got {len(self.rungs)}")
        if two and self.sampler == "cmaes":
            raise ValueError("sampler='cmaes' has one objective: use tpe, nsga2 or random for two")
        return self
