"""What the doctor finds in the searches' Optuna studies, in journals and in databases. They are only read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from experiments.doctor_findings import SAME, Finding, not_given
from experiments.output import Output
from experiments.search_run import JOURNAL
from robuq.addresses import address_fault
from robuq.ampn.search import database_states, drop_half_a_record, ends_in_half_a_record, journal_states
from robuq.config import ConfigError
from robuq.messages import HIDDEN
from robuq.record.audit import snapshot
from robuq.record.mlflow import redacted
from robuq.record.search_record import SearchRecord
from robuq.scratch import scratch_folder
from robuq.storage_fault import StorageFault

SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?:file:)?(?P<file>.+)")
GONE, LOST = "lost study", "restore it: the same search would begin anew"


class StudyCheck:
    """Of one output folder."""

    def __init__(self, output: Output, searches: Mapping[str, SearchRecord], storages: Sequence[str]) -> None:
        """`searches`: their records, by name, which say where a study is, but neither user nor password; `storages`:
        addresses with these.

        Raises:
            ConfigError: no search keeps its study in one of the storages, or one is no address.
        """
        for uri in storages:
            if fault := address_fault(uri):
                raise ConfigError(f"--storage {fault}")
        self._folder, self._searches = output.folder / "searches", searches
        self._storages = {redacted(uri): uri for uri in storages}
        places = {name: record.search.get("storage") for name, record in searches.items()}
        self._recorded = {name: place for name, place in places.items() if isinstance(place, str)}
        known = sorted(set(self._recorded.values()))
        unknown = sorted(self._storages.keys() - set(known))
        if unknown and not self._unrecorded():
            where = f"they are in {', '.join(known)}" if known else "it has none in a database"
            raise ConfigError(f"--storage {unknown[0]}: no search in {output.folder} keeps its study there, {where}")

    def findings(self) -> Iterator[Finding]:
        for journal in sorted(self._folder.glob(f"*/{JOURNAL}")):
            yield from _or_not_given(f"searches/{journal.parent.name}/{JOURNAL}", partial(_of_journal, journal))
        for name, place in self._recorded.items():
            yield from _of_database(name, place, self._storages.get(place, place))
        for name in self._unrecorded():
            for place, uri in self._storages.items():
                yield from (found for found in _of_database(name, place, uri) if found.kind != GONE)

    def _unrecorded(self) -> list[str]:
        """Searches that were killed before they left a record or a journal: their studies may be in a database."""
        begun = sorted(folder for folder in self._folder.glob("*") if folder.is_dir())
        return [f.name for f in begun if f.name not in self._searches and not (f / JOURNAL).exists()]


def _of_database(name: str, place: str, uri: str) -> Iterator[Finding]:
    """`place`: the address as it may be shown."""
    where = f"searches/{name}"
    if HIDDEN in uri:
        what = f"it is in {place}, whose user or password is written down nowhere"
        yield Finding("study not looked at", where, what, "give the address: --storage URI")
        return
    try:
        states = _states(uri, name)
    except (StorageFault, ConfigError) as error:
        yield Finding("unreachable study", where, str(error), "look after the database")
        return
    if states is None:
        yield Finding(GONE, where, f"there is no study {name} in {place}", LOST)
    else:
        yield from _running(where, name, states)


def _states(uri: str, name: str) -> list[str] | None:
    """Of a study's trials; None where there is no such study.

    Raises:
        StorageFault, ConfigError: as `database_states`.
    """
    in_file = SQLITE.fullmatch(uri)
    if in_file is None:
        return database_states(uri, name)
    file = Path(in_file["file"].partition("?")[0])
    if not file.is_file():
        return None
    with scratch_folder("doctor") as folder:
        return database_states(snapshot(file, folder), name)


def _or_not_given(where: str, look: Callable[[str], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look(where)
    except StorageFault as fault:
        yield not_given(where, fault)


def _of_journal(journal: Path, where: str) -> Iterator[Finding]:
    if ends_in_half_a_record(journal):
        cut = partial(drop_half_a_record, journal)
        yield Finding("half a record", where, "a killed search was writing", "cut off", cut)
    try:
        states = journal_states(journal)
    except ValueError as error:
        yield Finding("damaged study", where, str(error), "restore it, or move it away to search anew")
        return
    for study, trials in states.items():
        yield from _running(where, study, trials)


def _running(where: str, study: str, trials: Sequence[str]) -> Iterator[Finding]:
    if running := trials.count("running") + trials.count("waiting"):
        yield Finding("running trial", where, f"{running} of {study} without a command", SAME)
