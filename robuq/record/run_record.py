"""RunRecord: everything that is kept of one run, as plain data. Free of torch and of mlflow."""

from __future__ import annotations

from typing import Any, Literal

from robuq.config.base import Config


class RunRecord(Config):
    """A finished or failed run, ready to be sent to a tracking server and read back.

    `history` holds one mapping a logged training step: `step` and numbers. `layers` holds one mapping a
    telemetry measurement: `step`, `layer`, and numbers. `artifacts` maps a file name to where it lies.
    """

    plan: str
    key: str  # of the run configuration
    variant: str
    label: str  # W1.58A2
    act_bits: float | None  # mean over the block linears, AMPN's as its budget weights it; None: not quantized
    seed: int
    pretrain_seed: int
    status: Literal["finished", "failed"]
    failure: str | None = None
    protocol: str
    dataset: str
    config: dict[str, Any]  # the resolved RunConfig
    stages: dict[str, str]  # kind -> key
    allocation: dict[str, int] = {}  # the bits that AMPN found: decision -> bits
    seconds: dict[str, float] = {}  # stage kind -> time it took when it ran
    metrics: dict[str, float] = {}
    history: list[dict[str, float]] = []
    layers: list[dict[str, Any]] = []
    artifacts: dict[str, str] = {}
    git: dict[str, str] = {}  # commit, dirty
    versions: dict[str, str] = {}
    started: float = 0.0  # UNIX seconds
    finished: float = 0.0
