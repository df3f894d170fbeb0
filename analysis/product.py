"""What an artefact of the paper is built from, and what building gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.render import TextTable
from robuq.record.mlflow import fetch_artifact, read_record
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord

Cells = list[dict[str, Any]]  # `row`, `columns`, `keys`


@dataclass(frozen=True)
class Feed:
    """What one artefact is built from: the recorded runs of a plan, a search, or neither (computed artefacts)."""

    name: str  # of the plan or search
    runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    records: Mapping[str, RunRecord] = field(default_factory=dict)  # by key, as `read_runs` gives them
    search: SearchRecord | None = None
    tracking_uri: str = ""

    def open_file(self, location: str) -> Path:
        return fetch_artifact(self.tracking_uri, location)

    def full_record(self, key: str) -> RunRecord:
        return read_record(self.tracking_uri, self.records[key])


@dataclass(frozen=True)
class Product:
    """A table or a figure, the data behind it, and which runs are behind which part of the data."""

    data: pd.DataFrame
    cells: Cells
    caption: str
    table: TextTable | None = None
    figure: Figure | None = None


Builder = Callable[[Feed], Product | None]
