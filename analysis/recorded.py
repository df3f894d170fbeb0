"""What a tracking store and an output folder hold, for whoever looks while both still grow: names, records, and cheap
fingerprints that change when the records do. A store that is not there yet holds nothing."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.load import runs_frame
from robuq.ampn.table import SensitivityTable
from robuq.config import ConfigError
from robuq.record.mlflow import (
    NO_RUNS,
    KnownRuns,
    TrackingRefused,
    TrackingUnavailable,
    experiment_names,
    fetch_artifact,
    read_changed,
    read_history,
    read_record,
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

    def fingerprint(self) -> str:
        """Changes with every change of the store; a server, which has no files to look at, is asked again every half
        minute."""
        file = self._file()
        if file is None:
            return str(int(time.time() / SERVER_SECONDS))
        return f"{_stamp(file)} {_stamp(file.with_name(f'{file.name}-wal'))} {_changes(file)}"

    def search_fingerprint(self, name: str) -> str:
        """Changes with every change of that search's record."""
        return self.fingerprint() if self.folder is None else _stamp(self.search_file(name))

    def search_file(self, name: str) -> Path:
        """Of the output folder, also while the search is under way."""
        if self.folder is None:
            raise ValueError(f"{self.name} is no output folder: its searches are in the store alone")
        return self.folder / "searches" / name / "search.json"


def _stamp(file: Path) -> str:
    try:
        state = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return f"{state.st_mtime_ns}.{state.st_size}"


def _changes(file: Path) -> str:
    """SQLite's own count of changes, in bytes 24 to 27: two changes may come at one time of the clock."""
    try:
        with file.open("rb") as stream:
            return stream.read(28)[24:].hex()
    except (FileNotFoundError, NotADirectoryError):
        return ""


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


class PlanRuns:
    """The runs of a plan, for whoever looks again and again: read when the store has changed, as far as they have."""

    def __init__(self, source: Source, plan: str) -> None:
        self._source, self._plan = source, plan
        self._known, self._store = NO_RUNS, ""
        self._lock = threading.Lock()  # who comes while another reads, waits, and need not read

    @property
    def is_read(self) -> bool:
        """Whether `records` has nothing to read."""
        return self._store == self._source.fingerprint()

    def records(self) -> KnownRuns:
        """The same object as long as nothing of the plan has changed.

        Raises:
            StoreAway: the store cannot be read now.
        """
        with self._lock:
            store = self._source.fingerprint()  # before reading: what comes meanwhile is found the next time
            if store != self._store:
                self._known = self._read()
                self._store = store
            return self._known

    def _read(self) -> KnownRuns:
        if not self._source.is_there:
            return NO_RUNS
        with reading(self._source):
            return read_changed(self._source.uri, self._plan, self._known)


def frame_of(records: Iterable[RunRecord]) -> pd.DataFrame:
    """As `analysis.load` has them; no rows for what has only a search."""
    return runs_frame(list(records))


def counts_data(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a plan: plan, finished, failed. `runs`: by plan, as `frame_of` has them."""
    rows = []
    for plan, own in runs.items():
        failed = int((own["status"] == "failed").sum())
        rows.append({"plan": plan, "finished": len(own) - failed, "failed": failed})
    return pd.DataFrame(rows, columns=["plan", "finished", "failed"])


def whole_record(source: Source, light: RunRecord) -> RunRecord:
    with reading(source):
        return read_record(source.uri, light)


def config_of(source: Source, light: RunRecord) -> dict[str, Any] | None:
    """The run's resolved configuration; None: its file is gone."""
    if "config.json" not in light.artifacts:
        return None
    with reading(source):
        try:
            file = fetch_artifact(source.uri, light.artifacts["config.json"])
        except FileNotFoundError:
            return None
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError):
            raise StoreAway(f"the configuration of run {light.key} is damaged: restore {file}") from None


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
            file = source.search_file(name)
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
