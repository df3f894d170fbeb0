"""RunRecord: everything that is kept of one run, as plain data. Free of torch and of mlflow."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from robuq.config.base import Config
from robuq.messages import shown_as_written


def one_name(text: str) -> str:
    """Of a file or folder directly in another. Raises ValueError: it leads elsewhere."""
    if text in ("", ".", "..") or "/" in text or "\\" in text:
        raise ValueError(f"{text!r:.60} is no name of a file: it leads elsewhere")
    return shown_as_written(text)


def path_inside(text: str) -> str:
    """Of a file somewhere in a folder. Raises ValueError: it leads out of it."""
    path = PurePath(text)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in text:
        raise ValueError(f"{text!r:.60} is no path inside a folder: it leads elsewhere")
    return shown_as_written(text)


Name = Annotated[str, AfterValidator(one_name)]
PathInside = Annotated[str, AfterValidator(path_inside)]


class RunRecord(Config):
    """A finished or failed run, ready to be sent to a tracking server and read back.

    `history` holds one mapping a logged training step: `step` and numbers. `layers` holds one mapping a
    telemetry measurement: `step`, `layer`, and numbers. `artifacts` maps a file name to where it lies.
    """

    plan: Name
    key: Name  # of the run configuration
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
    stages: dict[Name, Name]  # kind -> key
    allocation: dict[str, int] = {}  # the bits that AMPN found: decision -> bits
    seconds: dict[str, float] = {}  # stage kind -> time it took when it ran
    metrics: dict[str, float] = {}
    history: list[dict[str, float]] = []
    layers: list[dict[str, Any]] = []
    artifacts: dict[PathInside, str] = {}
    git: dict[str, str] = {}  # commit, dirty
    versions: dict[str, str] = {}
    started: float = 0.0  # UNIX seconds
    finished: float = 0.0
