"""What lies where under `--output DIR`, and the records that wait there for the tracking server.

DIR/stages/<kind>/<key>/          results, one folder a stage (robuq.stages)
DIR/runs/<plan>/<key>.json        one RunRecord a run
DIR/runs/<plan>/<key>.sent        which tracking servers have that record
DIR/searches/<name>/search.json    the SearchRecord of a search, also while it is under way; beside it search.sent
DIR/searches/<name>/study.journal  its Optuna study, unless its file names a database
DIR/mlflow.db, DIR/artifacts/     the tracking store, unless --tracking-uri names another; the artefacts also where
                                  that is a database
DIR/reports/<plan>/               tables and figures of a plan; DIR/paper/ those of the paper
DIR/samples/<key>.png             what `robuq sample` drew
DIR/quarantine/                   damaged records, set aside; damaged stages are under stages/quarantine/
DIR/sweep.lock                    held by the one command that writes; it names itself there
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experiments.fence import take_fence
from experiments.places import check_places, check_places_of, of_another_kind
from experiments.run_choices import run_names, told_apart
from robuq.config import ConfigError
from robuq.config.base import canonical_json
from robuq.messages import redacted
from robuq.plain_json import read_json, read_mapping
from robuq.record.mlflow import DATABASES
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord
from robuq.scratch import remove_abandoned
from robuq.stages import StageStore, write_json
from robuq.storage_fault import storage_fault

Record = TypeVar("Record", RunRecord, SearchRecord)
LEAST_ROOM = 4096  # bytes, without which nothing is begun


class Recorder(Protocol):
    """Where records go: a tracking server."""

    def record(self, record: RunRecord) -> Any: ...

    def record_search(self, record: SearchRecord) -> Any: ...


class Output:
    """The folder that a command writes to."""

    def __init__(self, folder: Path) -> None:
        """Makes nothing. Raises ConfigError: there is something that is no output folder."""
        self.folder = _resolved(folder)
        check_places(self.folder)
        self.store = StageStore(self.folder / "stages")

    @property
    def tracking_file(self) -> Path:
        return self.folder / "mlflow.db"

    def tracking_uri(self) -> str:
        return f"sqlite:///{self.tracking_file}"

    def artifact_root(self, uri: str) -> Path | None:
        """Where the artefacts of records go that are sent to `uri`; None leaves it to the server, or to the folder of
        an SQLite file. A database has no place for them, and MLflow would take the working directory."""
        here = uri == self.tracking_uri() or uri.startswith(DATABASES)
        return self.folder / "artifacts" if here else None

    def report_folder(self, plan: str) -> Path:
        return self.folder / "reports" / plan

    def check_plan(self, plan: str) -> None:
        """Raises ConfigError: what the plan, or the search, leaves would have no folder here."""
        check_places_of(self.folder, plan)

    def ensure_writable(self) -> None:
        """Make the folder if it is missing.

        Raises:
            ConfigError: there is no such folder, and there cannot be.
            StorageFault: it can be, or is there, but the disk does not take what is written.
        """
        try:
            with self.writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder) as file:
                    file.write(bytes(LEAST_ROOM))
        except OSError as error:
            raise ConfigError(f"cannot write to {self.folder} ({error.strerror}): choose another --output") from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """
        Raises:
            StorageFault: inside, the disk did not take what was written to the folder.
            ConfigError: inside, a file of the folder was found to be a folder, or the other way round.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:
            if mistake := of_another_kind(error, self.folder):
                raise mistake from None
            fault = storage_fault(error, self.folder)
            if fault is None:
                raise
            raise fault from None

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """One driver at a time writes records.

        Raises:
            ConfigError: another command holds the folder, or there cannot be such a folder.
            StorageFault: at the beginning or later, the disk does not take what is written to the folder.
        """
        self.ensure_writable()
        with self.writing(), self._lock_file.open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another robuq command{self._driver()} is writing to {self.folder}: wait, or use --output"
                ) from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
            take_fence(self.store.root)
            for file in self.temporaries():
                file.unlink(missing_ok=True)
            remove_abandoned()
            yield

    @property
    def _lock_file(self) -> Path:
        return self.folder / "sweep.lock"

    def _driver(self) -> str:
        """Who holds the folder, as far as the lock's holder has said so by now."""
        who = self._lock_file.read_text(errors="replace")
        return f" ({who})" if who else ""

    def temporaries(self) -> list[Path]:
        """Half-written records, and a half-copied tracking store, that killed commands left."""
        records = (file for folder in ("runs", "searches") for file in (self.folder / folder).glob("*/.*"))
        return sorted([*records, *self.folder.glob(f".{self.tracking_file.name}.*")])

    def has_driver(self) -> bool:
        """Whether a command holds the folder now. Changes nothing."""
        return is_locked(self._lock_file)

    def _file(self, plan: str, key: str) -> Path:
        return self.folder / "runs" / plan / f"{key}.json"

    def save(self, record: RunRecord) -> None:
        """Atomic; a record that is there already is replaced."""
        file = self._file(record.plan, record.key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record.model_dump(mode="json"))

    def has_record(self, plan: str, key: str) -> bool:
        return self._file(plan, key).is_file()

    def record(self, plan: str, key: str) -> RunRecord | None:
        file = self._file(plan, key)
        return _read(file, RunRecord) if file.is_file() else None

    def records(self, plan: str = "*") -> list[RunRecord]:
        return [_read(file, RunRecord) for file in sorted((self.folder / "runs").glob(f"{plan}/*.json"))]

    def find(self, wanted: str) -> RunRecord:
        """By key, a unique beginning of it, `variant/seed` or `variant/label/seed`.

        Raises:
            ConfigError: no run, or several.
        """
        records = self.records()
        found = [
            record
            for record in records
            if wanted in run_names(record) or (len(wanted) >= 2 and record.key.startswith(wanted))
        ]
        if not found:
            raise ConfigError(f"no run {wanted!r} in {self.folder}{_known(records)}")
        count = len({record.key for record in found})
        if count > 1:
            raise ConfigError(f"{wanted!r} fits {count} runs: {told_apart(found)}: give a key")
        return found[-1]

    def unsent(self, plan: str, uri: str, sure: Collection[str] = ()) -> list[RunRecord]:
        """Records that the server at `uri` does not have as they are now; `sure`: keys of some that it has."""
        files = sorted((self.folder / "runs" / plan).glob("*.json"))
        keys = [file.stem for file in files if file.stem not in sure]
        unsure = (self.record(plan, key) for key in keys if self.sent_record(plan, key, uri) is None)
        return [record for record in unsure if record is not None and self.is_unsent(record, uri)]

    def sent_record(self, plan: str, key: str, uri: str) -> dict[str, Any] | None:
        """What the record on the disk says, as plain data, if it is beyond doubt that the server at `uri` has it so.

        Neither checked nor made a RunRecord, which takes several times as long: ten thousand are asked for when a
        sweep is continued.
        """
        file = self._file(plan, key)
        try:
            record, sent = read_mapping(file), read_mapping(file.with_suffix(".sent"))
        except (OSError, ValueError):
            return None  # whoever needs it says what is wrong
        return record if sent.get(_server(uri)) == _text_digest(canonical_json(record)) else None

    def is_unsent(self, record: RunRecord, uri: str) -> bool:
        return self._sent(record).get(_server(uri)) != _digest(record)

    def send(self, record: RunRecord, uri: str, recorder: Recorder) -> None:
        recorder.record(record)
        write_json(self._sent_file(record), {**self._sent(record), _server(uri): _digest(record)})

    def forget_sent(self, uri: str) -> None:
        """The server at `uri` has lost what it had: every record is unsent again."""
        for file in (*(self.folder / "runs").glob("*/*.sent"), *(self.folder / "searches").glob("*/*.sent")):
            try:
                sent = read_mapping(file)
            except ValueError:
                sent = {}  # nothing is known: everything is sent again
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
        return _read(file, SearchRecord) if file.is_file() else None

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
        try:
            return read_mapping(file) if file.is_file() else {}
        except (OSError, ValueError):
            raise _unreadable(file) from None


def _resolved(folder: Path) -> Path:
    """Raises ConfigError: no folder can have this name."""
    try:
        resolved = folder.resolve()
        resolved.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise ConfigError(f"cannot use {str(folder)!r:.100} ({reason}): choose another --output") from None
    return resolved


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


def _read(file: Path, kind: type[Record]) -> Record:
    try:
        return kind.parse(read_json(file), str(file))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _unreadable(file) from None


def _unreadable(file: Path) -> ConfigError:
    return ConfigError(f"{file} cannot be read: `robuq doctor --fix` sets it aside, a sweep makes it anew")


def _digest(record: RunRecord | SearchRecord) -> str:
    return _text_digest(record.to_json())


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _server(uri: str) -> str:
    """What is written down of a URI: its hash, without the password it may hold, which a hash could be searched for."""
    return hashlib.sha256(redacted(uri).encode()).hexdigest()[:16]


def _known(records: list[RunRecord]) -> str:
    names = sorted({run_names(record)[-1] for record in records})
    return f": there are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ": it has none yet"
