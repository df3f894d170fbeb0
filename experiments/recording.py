"""What the driver does when a run ends: build its record, keep it on the disk, send it to the tracking server."""

from __future__ import annotations

from experiments.launch import Job, JobEnd
from experiments.output import Output, Recorder
from robuq.config import ConfigError
from robuq.record.collect import collect_run
from robuq.record.mlflow import MlflowRecorder, TrackingRefused, TrackingUnavailable
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord


class Recording:
    """Call it with each run's end. Records that the server does not take now wait in the output folder."""

    def __init__(self, plan: str, output: Output, uri: str) -> None:
        self.problem: str | None = None  # why records wait, one line
        self._plan, self._output, self._uri = plan, output, uri
        self._recorder: Recorder | None = None  # none before `open`, and from when the server is found to be away

    def __call__(self, end: JobEnd) -> None:
        record = self._up_to_date(end)
        if record is None:
            record = collect_run(self._plan, end.job.run, end.job.stages, end.job.data, self._output.store, end.failure)
            self._output.save(record)
        self._send(record)

    def open(self) -> None:
        """Connect, which initialises a new SQLite store; a server that is away is a problem kept for later.

        Raises:
            ConfigError: the URI names nothing that can be used.
        """
        own = self._uri == self._output.tracking_uri()
        if own and not self._output.tracking_file.exists():
            self._output.forget_sent(self._uri)  # somebody removed it
        try:
            folder = self._output.folder / "artifacts" if own else None
            self._recorder = MlflowRecorder(self._uri, folder)
        except TrackingUnavailable as error:
            self.problem = str(error)
        except TrackingRefused as error:
            raise ConfigError(f"--tracking-uri {error}; use http://HOST:PORT or sqlite:////FOLDER/FILE.db") from None

    def send_waiting(self) -> int:
        """Send what earlier attempts could not; how many records still wait."""
        for record in self._output.unsent(self._plan, self._uri):
            self._send(record)
        return len(self._output.unsent(self._plan, self._uri))

    def send_search(self, record: SearchRecord) -> bool:
        """Whether the server has it as it is now."""
        if self._recorder is not None and self._output.is_search_unsent(record, self._uri):
            try:
                self._output.send_search(record, self._uri, self._recorder)
            except TrackingUnavailable as error:
                self.problem, self._recorder = str(error), None
            except TrackingRefused as error:
                self.problem = f"search {record.name}: {error}"
        return not self._output.is_search_unsent(record, self._uri)

    def _up_to_date(self, end: JobEnd) -> RunRecord | None:
        """The record on the disk if it says the same; git state and versions are those of when the run ended."""
        known = self._output.record(self._plan, end.job.run.key())
        return known if known is not None and end.failure is None and _is_of(known, end.job) else None

    def _send(self, record: RunRecord) -> None:
        if self._recorder is None or not self._output.is_unsent(record, self._uri):
            return
        try:
            self._output.send(record, self._uri, self._recorder)
        except TrackingUnavailable as error:
            self.problem, self._recorder = str(error), None
        except TrackingRefused as error:  # this record, perhaps not the next
            self.problem = f"run {record.key}: {error}"


def _is_of(record: RunRecord, job: Job) -> bool:
    stages = {stage.kind: stage.key for stage in job.stages}
    return record.status == "finished" and record.stages == stages and record.variant == job.run.variant
