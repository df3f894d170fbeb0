"""What a tracking store and an output folder hold, for whoever looks while both still grow: names, records, and cheap
fingerprints that change when the records do. A store that is not there yet holds nothing."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.load import runs_frame
from robuq.ampn.table import SensitivityTable
from robuq.config import ConfigError
from robuq.record.mlflow import (
    TrackingRefused,
    TrackingUnavailable,
    experiment_names,
    fetch_artifact,
    read_history,
    read_record,
    read_runs,
    read_search,
    redacted,
)
from robuq.record.run_record import RunRecord
from robuq.record.search_layout import summary_lines
from robuq.record.search_record import SearchRecord

SQLITE = "sqlite:///"
SERVER_SECONDS = 30  # how long what a server said is believed


class StoreAway(RuntimeError):
    """The store or one of its files cannot be read now; the message is one line for people."""


@dataclass(frozen=True)
class Source:
    """Where records are: a tracking URI, and the output folder whose own store that is (None: another's)."""

    uri: str
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Without a password."""
        return redacted(self.uri)

    @property
    def is_there(self) -> bool:
        """False for an SQLite file that nobody has made yet: opening it would make it."""
        file = self._file()
        return file is None or file.is_file()

    def _file(self) -> Path | None:
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    def fingerprint(self, plan: str = "") -> str:
        """Changes when a record of the plan comes or changes (without a plan: of any plan); a server, which has no
        files to look at, is asked again every half minute."""
        file = self._file()
        if file is None:
            return str(int(time.time() / SERVER_SECONDS))
        own = [self.folder / "runs" / plan, self.folder / "searches" / plan / "search.json"] if self.folder else []
        if plan and any(path.exists() for path in own):
            return _stamp(own)
        return _stamp([file, file.with_name(f"{file.name}-wal")])


def _stamp(files: list[Path]) -> str:
    stamps = []
    for file in files:
        try:
            state = file.stat()
        except FileNotFoundError:
            continue
        stamps.append(f"{state.st_mtime_ns}.{state.st_size}")
    return " ".join(stamps)


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns everything that a store or file that goes away, or is damaged, raises into `StoreAway`."""
    try:
        yield
    except (TrackingUnavailable, TrackingRefused, FileNotFoundError, ConfigError) as error:
        raise StoreAway(" ".join(str(error).split())) from None
    except OSError as error:
        raise StoreAway(f"{source.name} cannot be read ({error.strerror or type(error).__name__})") from None


def plan_names(source: Source) -> list[str]:
    """Of plans and searches with records, sorted."""
    if not source.is_there:
        return []
    with reading(source):
        return experiment_names(source.uri)


def plan_records(source: Source, plan: str) -> list[RunRecord]:
    """Light ones, as `read_runs` gives them."""
    if not source.is_there:
        return []
    with reading(source):
        return read_runs(source.uri, plan)


def frame_of(records: Sequence[RunRecord]) -> pd.DataFrame:
    """As `analysis.load` has them; no rows for what has only a search."""
    return runs_frame(records)


def whole_record(source: Source, light: RunRecord) -> RunRecord:
    with reading(source):
        return read_record(source.uri, light)


def open_file(source: Source, location: str) -> Path:
    """A local file of an artefact's location."""
    with reading(source):
        return fetch_artifact(source.uri, location)


def opener(source: Source) -> Callable[[str], Path]:
    return functools.partial(open_file, source)


def history_reader(source: Source) -> Callable[[str], list[dict[str, Any]]]:
    def read(location: str) -> list[dict[str, Any]]:
        with reading(source):
            return read_history(source.uri, location)

    return read


# --- searches -----------------------------------------------------------------------------------------------------


def search_names(source: Source) -> list[str]:
    """Those of the output folder, also while they are under way; of a server, the names that might be searches."""
    if source.folder is None:
        return plan_names(source)
    return sorted(file.parent.name for file in source.folder.glob("searches/*/search.json"))


def search_record(source: Source, name: str) -> SearchRecord | None:
    """None: there is no search of that name."""
    with reading(source):
        if source.folder is not None:
            file = source.folder / "searches" / name / "search.json"
            return SearchRecord.parse(json.loads(file.read_text()), file.name) if file.is_file() else None
        try:
            return read_search(source.uri, name)
        except TrackingRefused:
            raise
        except ValueError:  # an experiment without a search
            return None


def summary_of(record: SearchRecord) -> list[str]:
    """What came out so far, a line each."""
    return summary_lines(record)


def tracking_page(source: Source) -> str:
    """The address of a tracking server's own pages; empty for a file."""
    return source.name if source.uri.startswith(("http://", "https://")) and "@" not in source.uri else ""


# --- sensitivities ------------------------------------------------------------------------------------------------


def sensitivity_of_search(record: SearchRecord) -> SensitivityTable:
    return SensitivityTable.parse(record.sensitivity, "sensitivity")


def sensitivity_of_run(source: Source, record: RunRecord) -> SensitivityTable:
    """From the run's artefact `sensitivity.json`."""
    with reading(source):
        return SensitivityTable.load(fetch_artifact(source.uri, record.artifacts["sensitivity.json"]))
