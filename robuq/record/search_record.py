"""SearchRecord: all that is kept of one search for activation bits, as plain data. Free of torch and of mlflow."""

from __future__ import annotations

from typing import Any, Literal

from robuq.config.base import Config
from robuq.record.run_record import Name


class Evaluation(Config):
    """One allocation that the search evaluated.

    `values` maps a rung, by its training steps as text ("0", "60", ...), to the validation loss that it gave.
    """

    number: int  # order of asking, from 0
    source: str  # the allocator's name for allocations that were enqueued, else the sampler's
    bits: dict[str, int]  # by decision
    cost: float  # in the unit of the budget
    average_bits: dict[str, float]  # layers, macs, elements
    bops: float  # 10^9 bit operations, in the sense of the budget
    predicted: float  # additive damage by the table's measure
    values: dict[str, float] = {}
    state: Literal["finished", "pruned", "failed"]
    failure: str | None = None  # one line
    seconds: float = 0.0  # of its stages when they ran
    params: dict[str, float] = {}  # of the search space; none for an allocation that was enqueued as it is


class RankCorrelation(Config):
    """Spearman's coefficient between two rungs, over the evaluations that reached both; None below 3 of them or where
    one rung's values are all equal."""

    low: int  # training steps
    high: int
    spearman: float | None
    n: int


class Predictor(Config):
    """How well the additive damage by one measure of one sensitivity table orders the last rung: Spearman's
    coefficient over the evaluations that reached it."""

    warm_up_steps: int
    reference: int  # bits
    measure: str
    spearman: float | None
    n: int
    searched: bool = False  # the one that the search itself used
    predicted: dict[str, float] = {}  # evaluation number -> damage, of the evaluations that reached the last rung


class SearchRecord(Config):
    """A search from its sensitivity table to the runs that confirm its winner, ready to be sent and read back."""

    name: Name
    description: str = ""
    dataset: str
    variant: str
    seed: int
    config: dict[str, Any]  # the resolved RunConfig, with its `ampn`
    search: dict[str, Any]  # SearchConfig
    budget: dict[str, Any]
    sampler_settings: dict[str, Any] = {}
    evaluations: list[Evaluation] = []
    winner: int | None = None  # number: the best at the last rung by validation loss, at ties the first
    equal_to: list[str] = []  # baselines whose allocation the winner's is
    front: list[int] = []  # numbers of the Pareto front, with two objectives
    rank_correlations: list[RankCorrelation] = []
    sensitivity: dict[str, Any] = {}  # SensitivityTable
    predictors: list[Predictor] = []
    baselines: dict[str, dict[str, int]] = {}  # allocator -> bits by decision
    confirmed: dict[str, list[Name]] = {}  # row of the confirmation -> keys of its runs
    seconds: dict[str, float] = {}  # sensitivity, evaluations, training (of the evaluations), confirmation
    git: dict[str, str] = {}
    versions: dict[str, str] = {}
    started: float = 0.0  # UNIX seconds
    finished: float = 0.0
