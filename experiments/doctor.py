"""What an output folder's stages, records, tracking store and studies disagree about, and what can be done about it.

Looking changes nothing: stores are read from copies. A repair is one of few: remove what is temporary, send records
that wait, end runs of the tracking store that nobody works on, and set aside what is damaged, so that the next sweep
makes it anew. Nothing is deleted that a command could still use.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from experiments.doctor_findings import SAME, Finding, Repair, not_given
from experiments.doctor_studies import StudyCheck
from experiments.output import Output, is_locked
from experiments.search_run import JOURNAL
from robuq.config import ConfigError
from robuq.plain_json import read_json, read_mapping
from robuq.record.audit import TrackedRun, delete_run, end_run, snapshot, tracked_runs
from robuq.record.mlflow import MlflowRecorder, TrackingRefused, TrackingUnavailable, redacted
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord
from robuq.scratch import scratch_folder
from robuq.stages import KINDS, LEFTOVERS, QUARANTINE, StageStore
from robuq.storage_fault import StorageFault


class Doctor:
    """Examines one output folder."""

    def __init__(self, output: Output, tracking_uri: str | None = None, storages: Sequence[str] = ()) -> None:
        """`tracking_uri`: where the records belong, if not in the folder itself. `storages`: databases with studies,
        where their addresses hold more than the searches' records do, such as a password."""
        if not output.folder.is_dir():
            raise ConfigError(f"no folder {output.folder}: --output names the one to look at")
        self._output, self._store = output, output.store
        self._uri, self._storages = tracking_uri or output.tracking_uri(), tuple(storages)
        self._own = self._uri == output.tracking_uri()
        self._recorder: MlflowRecorder | None = None
        self._records: dict[tuple[str, str], RunRecord] = {}
        self._searches: dict[str, SearchRecord] = {}
        self._tracked: list[TrackedRun] = []
        self._away: str | None = None  # why the tracking store cannot be read, one line

    def examine(self) -> list[Finding]:
        """While a command works in the folder, only what is finished: the rest is about to change.

        Raises:
            ConfigError: no search keeps its study in one of the storages.
        """
        self._records, self._searches = {}, {}
        busy = self._output.has_driver()
        self._tracked, self._away = ([], None) if busy else self._look_at_the_store()
        findings = [*self._finished_stages(), *self._run_records(), *self._search_records()]
        studies = StudyCheck(self._output, self._searches, self._storages)
        if busy:
            return findings
        return [*findings, *self._unfinished_stages(), *self._temporaries(), *studies.findings(), *self._tracking()]

    def repair(self, findings: Iterable[Finding], tell: Callable[[Finding], object] = lambda finding: None) -> None:
        """What can be repaired, one by one; `tell` is called after each. Call it with the folder to yourself
        (`Output.sweeping`).

        Raises:
            TrackingUnavailable, TrackingRefused: the store does not take a record.
        """
        for finding in findings:
            if finding.repair is not None:
                finding.repair()
                tell(finding)

    # --- stages -----------------------------------------------------------------------------------------------

    def _finished_stages(self) -> Iterator[Finding]:
        for stage_id in _stage_ids(self._store):
            folder = self._store.folder(stage_id)
            try:
                problem = self._store.damage(stage_id)
            except StorageFault as fault:
                yield not_given(stage_id, fault)
                continue
            if problem is not None:
                yield Finding(
                    "damaged stage",
                    stage_id,
                    problem,
                    "set aside; a sweep makes it anew",
                    partial(self._store.set_aside, stage_id),
                )
                continue
            for leftover in (file for pattern in LEFTOVERS for file in folder.glob(pattern)):
                yield self._temporary(leftover)
            for parent in _inputs(folder):
                if not (self._store.folder(parent) / "result.json").is_file():
                    yield Finding("missing input", stage_id, f"{parent} is gone", "a sweep of its plan makes it anew")

    def _unfinished_stages(self) -> Iterator[Finding]:
        for kind in KINDS:
            for work in sorted((self._store.root / kind).glob("*.work")):
                stage_id = f"{kind}/{work.name.removesuffix('.work')}"
                if is_locked(self._store.lock_file(stage_id)):
                    continue
                for temporary in (*work.glob(".*"), *work.glob("*.partial")):
                    yield self._temporary(temporary)
                if not (work / "failure.json").is_file():  # a failure is a result
                    yield Finding("unfinished stage", stage_id, "nobody works on it", SAME)

    # --- files ------------------------------------------------------------------------------------------------

    def _temporaries(self) -> Iterator[Finding]:
        folder = self._output.folder
        for path in (
            *self._output.temporaries(),
            *folder.glob("reproduce-*"),
            *folder.glob(f"searches/*/{JOURNAL}.lock"),
        ):
            yield self._temporary(path)

    def _temporary(self, path: Path) -> Finding:
        return Finding(
            "temporary file", self._name(path), "left by a killed command", "removed", partial(_remove, path)
        )

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._output.folder))

    def _quarantined(self, file: Path) -> Repair:
        """Records: their sweep makes them anew from the stages."""

        def move() -> None:
            target = self._output.folder / QUARANTINE / self._name(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)

        return move

    # --- records ----------------------------------------------------------------------------------------------

    def _run_records(self) -> Iterator[Finding]:
        for file in sorted((self._output.folder / "runs").glob("*/*.json")):
            try:
                record = RunRecord.parse(read_json(file), str(file))
            except ValueError:
                yield self._unreadable(file)
                continue
            except StorageFault as fault:
                yield not_given(self._name(file), fault)
                continue
            self._records[record.plan, record.key] = record
            if record.status == "finished":
                yield from self._gone_stages(file, record)
            yield from self._waiting(file, partial(self._output.is_unsent, record, self._uri), record)

    def _gone_stages(self, file: Path, record: RunRecord) -> Iterator[Finding]:
        gone = [f"{k}/{key}" for k, key in record.stages.items() if not (self._store.folder(f"{k}/{key}")).is_dir()]
        if gone:
            remedy = "a sweep of its plan makes them anew"
            yield Finding("record without stages", self._name(file), f"{', '.join(gone)} gone", remedy)

    def _search_records(self) -> Iterator[Finding]:
        for file in sorted((self._output.folder / "searches").glob("*/search.json")):
            try:
                record = SearchRecord.parse(read_json(file), str(file))
            except ValueError:
                yield self._unreadable(file)
                continue
            except StorageFault as fault:
                yield not_given(self._name(file), fault)
                continue
            self._searches[record.name] = record
            if record.finished:
                yield from self._waiting(file, partial(self._output.is_search_unsent, record, self._uri), record)

    def _unreadable(self, file: Path) -> Finding:
        remedy = "set aside; the command that made it makes it anew"
        return Finding("damaged record", self._name(file), "it cannot be read", remedy, self._quarantined(file))

    def _waiting(
        self, file: Path, is_unsent: Callable[[], bool], record: RunRecord | SearchRecord
    ) -> Iterator[Finding]:
        try:
            waits = is_unsent()
        except ValueError:
            yield self._unreadable(file.with_suffix(".sent"))
            return
        except StorageFault as fault:
            yield not_given(self._name(file.with_suffix(".sent")), fault)
            return
        if waits and self._away is None:  # one that cannot be read may have it all the same
            what = f"the tracking store {redacted(self._uri)} does not have it as it is"
            yield Finding("waiting record", self._name(file), what, "sent", partial(self._send, record))

    def _send(self, record: RunRecord | SearchRecord) -> None:
        """Make the store agree with the record, whatever was sent before."""
        if self._recorder is None:
            self._recorder = MlflowRecorder(self._uri, self._output.artifact_root(self._uri))
        if isinstance(record, SearchRecord):
            self._output.send_search(record, self._uri, self._recorder)
        else:
            self._output.send(record, self._uri, self._recorder)

    # --- the tracking store -----------------------------------------------------------------------------------

    def _tracking(self) -> Iterator[Finding]:
        if self._own and not self._output.tracking_file.is_file():
            return
        if self._away is not None:
            yield Finding("tracking store", redacted(self._uri), self._away, "look after the server or the file")
            return
        first: dict[tuple[str, ...], TrackedRun] = {}
        for run in self._tracked:
            if run.identity is None:
                continue
            place = (run.experiment, *run.identity)
            if place in first:
                yield self._tracked_twice(run)
                continue
            first[place] = run
            yield from self._left_running(run)
            yield from self._without_record(run)
        yield from self._not_tracked(set(first))

    def _look_at_the_store(self) -> tuple[list[TrackedRun], str | None]:
        """Its runs, and why it cannot be read."""
        if self._own and not self._output.tracking_file.is_file():
            return [], None
        try:
            if not self._own:
                return tracked_runs(self._uri), None
            with scratch_folder("doctor") as folder:
                return tracked_runs(snapshot(self._output.tracking_file, folder)), None
        except (TrackingUnavailable, TrackingRefused, StorageFault) as error:
            return [], str(error)

    def _tracked_twice(self, run: TrackedRun) -> Finding:
        what = f"a second run of {' '.join(run.identity or ())} in experiment {run.experiment}"
        return Finding(
            "tracked twice",
            run.run_id,
            what,
            "deleted in MLflow, which can undo it",
            partial(delete_run, self._uri, run.run_id),
        )

    def _left_running(self, run: TrackedRun) -> Iterator[Finding]:
        if run.status != "RUNNING":
            return
        record, what = self._record_of(run), f"{' '.join(run.identity or ())} of {run.experiment} is RUNNING"
        if record is not None:
            yield Finding("run left running", run.run_id, what, "sent again to its end", partial(self._send, record))
        else:
            remedy = "marked as KILLED; its command makes it anew"
            yield Finding("run left running", run.run_id, what, remedy, partial(end_run, self._uri, run.run_id))

    def _record_of(self, run: TrackedRun) -> RunRecord | SearchRecord | None:
        kind, name, *_ = run.identity or ("", "")
        if kind == "run":
            return self._records.get((run.experiment, name))
        search = self._searches.get(name) if kind in ("search", "evaluation") else None
        return search if search is not None and search.finished else None

    def _without_record(self, run: TrackedRun) -> Iterator[Finding]:
        """Only in the folder's own store: another may be shared with other folders."""
        kind = (run.identity or ("",))[0]
        if self._own and kind in ("run", "search") and self._record_of(run) is None and run.status != "RUNNING":
            what = f"{' '.join(run.identity or ())} of {run.experiment} has no record in the folder"
            yield Finding("run without record", run.run_id, what, "sweep its plan again, or delete the run")

    def _not_tracked(self, known: set[tuple[str, ...]]) -> Iterator[Finding]:
        """Records that were sent, and are no longer there."""
        missing: dict[str, list[RunRecord]] = defaultdict(list)
        for (plan, key), record in self._records.items():
            if (plan, "run", key) not in known and not self._output.is_unsent(record, self._uri):
                missing[plan].append(record)
        for records in missing.values():
            for record in records:
                where = f"runs/{record.plan}/{record.key}.json"
                what = "it was sent, and the tracking store has lost it"
                yield Finding("lost record", where, what, "sent again", partial(self._send, record))


def _stage_ids(store: StageStore) -> Iterator[str]:
    for kind in KINDS:
        for folder in sorted((store.root / kind).glob("[!.]*")):
            if folder.is_dir() and folder.suffix != ".work":
                yield f"{kind}/{folder.name}"


def _inputs(folder: Path) -> list[str]:
    try:
        return [str(parent) for parent in read_mapping(folder / "stage.json")["inputs"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StorageFault):
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
