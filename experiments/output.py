"""What lies where under `--output DIR`, and the records that wait there for the tracking server.

DIR/stages/<kind>/<key>/          results, one folder a stage (robuq.stages)
DIR/runs/<plan>/<key>.json        one RunRecord a run
DIR/runs/<plan>/<key>.sent        which tracking servers have that record
DIR/searches/<name>/search.json    the SearchRecord of a search, also while it is under way; beside it search.sent
DIR/searches/<name>/study.journal  its Optuna study, unless its file names a database
DIR/mlflow.db, DIR/artifacts/     the tracking store, unless --tracking-uri names another
DIR/reports/<plan>/               tables and figures
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from robuq.config import ConfigError
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord
from robuq.stages import StageStore, write_json


class Recorder(Protocol):
    """Where records go: a tracking server."""

    def record(self, record: RunRecord) -> Any: ...

    def record_search(self, record: SearchRecord) -> Any: ...


class Output:
    """The folder that a command writes to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.store = StageStore(self.folder / "stages")

    @property
    def tracking_file(self) -> Path:
        return self.folder / "mlflow.db"

    def tracking_uri(self) -> str:
        return f"sqlite:///{self.tracking_file}"

    def report_folder(self, plan: str) -> Path:
        return self.folder / "reports" / plan

    def ensure_writable(self) -> None:
        """Make the folder if it is missing.

        Raises:
            ConfigError: nothing can be written to it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ConfigError(f"cannot write to {self.folder} ({error.strerror}): choose another --output") from None

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """One driver at a time writes records.

        Raises:
            ConfigError: another command holds the folder, or nothing can be written to it.
        """
        self.ensure_writable()
        with (self.folder / "sweep.lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another robuq command is writing to {self.folder}: wait, or use --output") from None
            for file in self.temporaries():
                file.unlink(missing_ok=True)
            yield

    def temporaries(self) -> list[Path]:
        """Half-written records that killed commands left."""
        return sorted(file for folder in ("runs", "searches") for file in (self.folder / folder).glob("*/.*"))

    def has_driver(self) -> bool:
        """Whether a command holds the folder now. Changes nothing."""
        return is_locked(self.folder / "sweep.lock")

    def _file(self, plan: str, key: str) -> Path:
        return self.folder / "runs" / plan / f"{key}.json"

    def save(self, record: RunRecord) -> None:
        """Atomic; a record that is there already is replaced."""
        file = self._file(record.plan, record.key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record.model_dump(mode="json"))

    def record(self, plan: str, key: str) -> RunRecord | None:
        file = self._file(plan, key)
        return _read(file) if file.is_file() else None

    def records(self, plan: str = "*") -> list[RunRecord]:
        return [_read(file) for file in sorted((self.folder / "runs").glob(f"{plan}/*.json"))]

    def find(self, wanted: str) -> RunRecord:
        """By key, a unique beginning of it, `variant/seed` or `variant/label/seed`.

        Raises:
            ConfigError: no run, or several.
        """
        found: dict[str, RunRecord] = {}
        for record in self.records():
            if wanted in run_names(record) or (len(wanted) >= 2 and record.key.startswith(wanted)):
                found[record.key] = record
        if not found:
            raise ConfigError(f"no run {wanted!r} in {self.folder}{_known(self.records())}")
        if len(found) > 1:
            which = ", ".join(f"{key} ({run_names(record)[-1]})" for key, record in list(found.items())[:4])
            raise ConfigError(f"{wanted!r} fits {len(found)} runs: {which}{', ...' if len(found) > 4 else ''}")
        return next(iter(found.values()))

    def unsent(self, plan: str, uri: str) -> list[RunRecord]:
        """Records that the server at `uri` does not have as they are now."""
        return [record for record in self.records(plan) if self.is_unsent(record, uri)]

    def is_unsent(self, record: RunRecord, uri: str) -> bool:
        return self._sent(record).get(_server(uri)) != _digest(record)

    def send(self, record: RunRecord, uri: str, recorder: Recorder) -> None:
        recorder.record(record)
        write_json(self._sent_file(record), {**self._sent(record), _server(uri): _digest(record)})

    def forget_sent(self, uri: str) -> None:
        """The server at `uri` has lost what it had: every record is unsent again."""
        for file in (*(self.folder / "runs").glob("*/*.sent"), *(self.folder / "searches").glob("*/*.sent")):
            sent = json.loads(file.read_text())
            write_json(file, {server: digest for server, digest in sent.items() if server != _server(uri)})

    # --- searches ---------------------------------------------------------------------------------------------

    def search_folder(self, name: str) -> Path:
        return self.folder / "searches" / name

    def save_search(self, record: SearchRecord) -> None:
        """Atomic."""
        folder = self.search_folder(record.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "search.json", record.model_dump(mode="json"))

    def search(self, name: str) -> SearchRecord | None:
        file = self.search_folder(name) / "search.json"
        return SearchRecord.parse(json.loads(file.read_text()), str(file)) if file.is_file() else None

    def is_search_unsent(self, record: SearchRecord, uri: str) -> bool:
        return self._sent(record).get(_server(uri)) != _digest(record)

    def send_search(self, record: SearchRecord, uri: str, recorder: Recorder) -> None:
        recorder.record_search(record)
        write_json(self._sent_file(record), {**self._sent(record), _server(uri): _digest(record)})

    # --- what a server has ------------------------------------------------------------------------------------

    def _sent_file(self, record: RunRecord | SearchRecord) -> Path:
        if isinstance(record, SearchRecord):
            return self.search_folder(record.name) / "search.sent"
        return self._file(record.plan, record.key).with_suffix(".sent")

    def _sent(self, record: RunRecord | SearchRecord) -> dict[str, str]:
        file = self._sent_file(record)
        sent: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
        return sent


def is_locked(file: Path) -> bool:
    """Whether a process holds this lock. Changes nothing."""
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def run_names(record: RunRecord) -> tuple[str, str]:
    return f"{record.variant}/{record.seed}", f"{record.variant}/{record.label}/{record.seed}"


def _read(file: Path) -> RunRecord:
    try:
        return RunRecord.parse(json.loads(file.read_text()), str(file))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} cannot be read: `robuq doctor --fix` sets it aside, a sweep makes it anew") from None


def _digest(record: RunRecord | SearchRecord) -> str:
    return hashlib.sha256(record.to_json().encode()).hexdigest()[:16]


def _server(uri: str) -> str:
    """A URI may hold a password: what is written down is its hash."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def _known(records: list[RunRecord]) -> str:
    names = sorted({run_names(record)[-1] for record in records})
    return f": there are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ": it has none yet"
