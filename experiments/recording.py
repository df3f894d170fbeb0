"""What the driver does when a run ends: build its record, keep it on the disk, send it to the tracking server."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from experiments.launch import Job, JobEnd
from experiments.output import Output, Recorder
from robuq.config import ConfigError
from robuq.record.collect import collect_run
from robuq.record.mlflow import MlflowRecorder, TrackingRefused, TrackingUnavailable
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord

LOOK_AGAIN = 60.0  # seconds between looks for a server that is away, while there is other work


class Recording:
    """Call it with each run's end. Records that the server does not take now wait in the output folder, and are offered
    again: once in a while, at the end, and by the next command."""

    def __init__(self, plan: str, output: Output, uri: str) -> None:
        self.problem: str | None = None  # why records wait, one line
        self._plan, self._output, self._uri = plan, output, uri
        self._own = uri == output.tracking_uri()
        self._recorder: Recorder | None = None  # none before `open`, and while the server is away
        self._recorded: set[str] = set()  # keys of runs that were found to be recorded as they are
        self._again_at = float("inf")  # monotonic seconds: when to look for a server that is away

    def __call__(self, end: JobEnd) -> None:
        """
        Raises:
            StorageFault: the output folder can no longer be written to.
        """
        if end.failure is None and self._is_recorded(end.job):
            self._recorded.add(end.job.run.key())
            return
        record = self._up_to_date(end)
        if record is None:
            record = collect_run(self._plan, end.job.run, end.job.stages, end.job.data, self._output.store, end.failure)
            self._output.save(record)
        self._send(record)

    def open(self) -> None:
        """Connect, which initialises a new SQLite store; a server that is away is a problem kept for later.

        Raises:
            ConfigError: the URI names nothing that can be used.
            StorageFault: the store belongs into the output folder, which can no longer be written to.
        """
        if self._own and not self._output.tracking_file.exists():
            self._output.forget_sent(self._uri)  # somebody removed it
        try:
            self._recorder = MlflowRecorder(self._uri, self._output.artifact_root(self._uri))
            self.problem = None
        except TrackingUnavailable as error:
            self._lose(error)
        except TrackingRefused as error:
            raise ConfigError(f"--tracking-uri {error}; use http://HOST:5000 or sqlite:////FOLDER/FILE.db") from None

    def send_waiting(self) -> int:
        """Send what earlier attempts could not; how many records still wait."""
        waiting = self._output.unsent(self._plan, self._uri, self._recorded)
        if waiting:
            self._again_at = 0.0
        for record in waiting:
            self._send(record)
        return len(self._output.unsent(self._plan, self._uri, self._recorded)) if waiting else 0

    def send_search(self, record: SearchRecord) -> bool:
        """Whether the server has it as it is now."""
        if self._output.is_search_unsent(record, self._uri):
            self._again_at = 0.0
            self._offer(f"search {record.name}", partial(self._output.send_search, record, self._uri))
        return not self._output.is_search_unsent(record, self._uri)

    def _is_recorded(self, job: Job) -> bool:
        """Whether the server has what the disk has, and both say how the job ended."""
        record = self._output.sent_record(self._plan, job.run.key(), self._uri)
        return record is not None and _says(record["status"], record["stages"], record["variant"], job)

    def _up_to_date(self, end: JobEnd) -> RunRecord | None:
        """The record on the disk if it says the same; git state and versions are those of when the run ended."""
        known = self._output.record(self._plan, end.job.run.key())
        return known if known is not None and end.failure is None and _is_of(known, end.job) else None

    def _send(self, record: RunRecord) -> None:
        if self._output.is_unsent(record, self._uri):
            self._offer(f"run {record.key}", partial(self._output.send, record, self._uri))

    def _offer(self, what: str, send: Callable[[Recorder], None]) -> None:
        if self._recorder is None and time.monotonic() >= self._again_at:
            self.open()
        if self._recorder is None:
            return
        try:
            send(self._recorder)
        except TrackingUnavailable as error:
            self._lose(error)
        except TrackingRefused as error:  # this record, perhaps not the next
            self.problem = f"{what}: {error}"

    def _lose(self, error: TrackingUnavailable) -> None:
        """
        Raises:
            StorageFault: it is the output folder's own store, and the disk that everything else is written to.
        """
        self._recorder, self.problem = None, str(error)
        self._again_at = time.monotonic() + LOOK_AGAIN
        if self._own and error.fault is not None:
            raise error.fault


def _is_of(record: RunRecord, job: Job) -> bool:
    return _says(record.status, record.stages, record.variant, job)


def _says(status: str, stages: dict[str, str], variant: str, job: Job) -> bool:
    own = {stage.kind: stage.key for stage in job.stages}
    return status == "finished" and stages == own and variant == job.run.variant
