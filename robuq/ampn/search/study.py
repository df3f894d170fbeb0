"""Where a study is kept, and what is read and written there: a journal file, a database, or memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from robuq.addresses import address_fault
from robuq.config import ConfigError
from robuq.messages import redacted
from robuq.scratch import scratch_folder
from robuq.storage_fault import StorageFault, is_locked_out, reading

CONNECT_SECONDS = 10  # for a database server to take a connection
LOCK_SECONDS = 5  # after which a journal's lock is taken for a killed process's; an entry takes milliseconds
STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def open_storage(storage: Path | str | None) -> Any:
    """A journal file, a database by its address, or memory.

    Raises:
        ConfigError: the address is none, or the database's driver is not installed.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, str):
        return _open_database(storage)
    storage.parent.mkdir(parents=True, exist_ok=True)
    drop_half_a_record(storage)
    lock = JournalFileSymlinkLock(str(storage), grace_period=LOCK_SECONDS)
    return JournalStorage(JournalFileBackend(str(storage), lock_obj=lock))


def check_storage(storage: str | None) -> None:
    """Could a study be kept there? Nothing is connected to, or written.

    Raises:
        ConfigError: the URL is none, or the database's driver is not installed.
    """
    if storage is not None:
        with _url_errors(storage):
            create_engine(storage).dispose()


def reach_storage(storage: str | None) -> None:
    """Open a database before work is done that it should keep.

    Raises:
        ConfigError, or errors that `study_errors` turns into a StorageFault: it cannot be opened.
    """
    if storage is not None:
        open_storage(storage).engine.dispose()


def _open_database(url: str, to_read: bool = False) -> Any:
    """A connection that was cut, as by a server that was started anew, is made anew. `to_read`: nothing else.

    Raises:
        ConfigError: the URL is none, or the database's driver is not installed.
    """
    with _url_errors(url):
        settings = {"pool_pre_ping": True, "connect_args": _connection(url, to_read)}
        return RDBStorage(url, settings, skip_compatibility_check=to_read, skip_table_creation=to_read)


@contextmanager
def _url_errors(url: str) -> Iterator[None]:
    if fault := address_fault(url):
        raise ConfigError(f"search.storage {fault}")
    try:
        yield
    except ImportError as error:
        needs = error.__cause__ or error.__context__ or error
        package = getattr(needs, "name", None) or "of its driver"
        raise ConfigError(f"search.storage {redacted(url)} needs the package {package}: install it") from None
    except ArgumentError:
        raise ConfigError(f"search.storage {redacted(url)}: use postgresql://HOST/NAME, or none") from None


def _connection(url: str, to_read: bool) -> dict[str, Any]:
    """What the address leaves open."""
    parts = make_url(url)
    if parts.get_backend_name() != "postgresql":
        return {}
    own = {
        "connect_timeout": CONNECT_SECONDS,
        **({"options": "-c default_transaction_read_only=on"} if to_read else {}),
    }
    return {name: value for name, value in own.items() if name not in parts.query}


@contextmanager
def study_errors(storage: str | None) -> Iterator[None]:
    """Inside, errors of a study's database become one line, without their text: it may quote the URL's password.

    Raises:
        StorageFault: the database cannot be used now; the same search goes on once it can.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        place = redacted(storage or "")
        why = "another program has locked it" if is_locked_out(error) else type(error.__cause__ or error).__name__
        raise StorageFault(f"the study's database {place} is not available ({why}): look after it") from None


def drop_half_a_record(file: Path) -> None:
    """What a crash cut short at the end of a journal: whatever is appended to it makes the journal unreadable."""
    if not file.exists() or not ends_in_half_a_record(file):
        return
    with file.open("rb+") as journal:
        content = journal.read()
        journal.truncate(content.rfind(b"\n") + 1)


def ends_in_half_a_record(file: Path) -> bool:
    """Raises StorageFault: the disk does not give the file."""
    with reading(file):
        content = file.read_bytes()
    return bool(content) and not content.endswith(b"\n")


def journal_states(file: Path) -> dict[str, list[str]]:
    """{study: state of each trial} of a journal, which is only read: running, finished, pruned, failed.

    Raises:
        ValueError: a record in it cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with scratch_folder("journal") as folder:
        copy = folder / file.name
        shutil.copyfile(file, copy)
        drop_half_a_record(copy)
        try:
            store = JournalStorage(JournalFileBackend(str(copy)))
            studies = store.get_all_studies()
            return {
                study.study_name: [
                    STATES.get(trial.state, "waiting") for trial in store.get_all_trials(study._study_id)
                ]
                for study in studies
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: a record cannot be read ({type(error).__name__})") from None


def database_states(url: str, name: str) -> list[str] | None:
    """State of each trial of a study in a database, which is only read; None where there is no such study.

    Raises:
        ConfigError: the URL is none, or the database's driver is not installed.
        StorageFault: the database cannot be used now, or has no studies.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with study_errors(url):
        store = _open_database(url, to_read=True)
        try:
            trials = store.get_all_trials(store.get_study_id_from_name(name), deepcopy=False)
        except KeyError:
            return None
        finally:
            store.remove_session()
            store.engine.dispose()
    return [STATES.get(trial.state, "waiting") for trial in trials]


def open_study(store: Any, name: str, objectives: int) -> Any:
    return optuna.create_study(
        storage=store,
        study_name=name,
        sampler=RandomSampler(seed=0),
        directions=["minimize"] * objectives,
        load_if_exists=True,
    )


def trial_id(store: Any, study: str, trial: Any) -> int:
    study_id = store.get_study_id_from_name(study)
    return int(store.get_trial_id_from_study_id_trial_number(study_id, trial.number))


def end_like(store: Any, study: Any, trial: Any, like: Any) -> None:
    """End a running trial with the values and the state of another."""
    for steps, value in like.intermediate_values.items():
        store.set_trial_intermediate_value(trial_id(store, study.study_name, trial), steps, value)
    study.tell(trial.number, like.values if like.state == TrialState.COMPLETE else None, like.state)
