"""Records into a tracking server, run by run. One process, the driver of a sweep or a search, writes records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robuq.record.artifact_files import write_artifact_files
from robuq.record.layout import (
    FAILURE,
    REPORT,
    metric_rows,
    milliseconds,
    params_of,
    plan_note,
    report_note,
    run_name,
    tags_of,
)
from robuq.record.mlflow.client import (
    BATCH,
    SOURCE,
    SQLITE,
    connect,
    digest_of,
    errors_of,
    find_run,
    place_of,
    points_of,
    sqlite_file,
)
from robuq.record.mlflow.new_store import make_store
from robuq.record.mlflow.searches import send_search
from robuq.record.mlflow.store_file import check_opens
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord
from robuq.scratch import scratch_folder
from robuq.storage_fault import naming

STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class MlflowRecorder:
    """Sends records to one tracking server.

    `artifact_root`: where artefacts go; None leaves it to the server, or to a folder beside an SQLite file.
    A new SQLite store is initialised here, which only one process may do.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path | None = None) -> None:
        self.tracking_uri = tracking_uri
        self.artifact_root = artifact_root or _folder_beside(tracking_uri)
        with errors_of(tracking_uri):
            if (file := sqlite_file(tracking_uri)) is not None:
                make_store(file)
        check_opens(tracking_uri)
        self._client = connect(tracking_uri)
        self._experiments: dict[str, str] = {}  # plan -> experiment id

    def record(self, record: RunRecord) -> str:
        """Make the server's run agree with the record; its run id. Sending a record twice changes nothing.

        A run that the record continues (it failed, and was launched again) is continued. One whose numbers it
        contradicts is deleted, which MLflow can undo, and made anew.

        Raises:
            TrackingUnavailable: the server does not answer or fails; what was sent so far is completed next time.
            TrackingRefused: the server does not take this record.
        """
        with errors_of(self.tracking_uri):
            experiment = self._experiment(record.plan)
            digest = digest_of(record)
            run = find_run(self._client, experiment, "robuq.key", record.key)
            if run is not None and _is_complete(run, record, digest):
                return str(run.info.run_id)
            points = points_of(self._client, run)
            if run is not None and _contradicts(run.data.params, points, record):
                self._client.delete_run(run.info.run_id)
                run, points = None, {}
            run = run or self._create(experiment, record)
            self._send(run, record, points, digest)
            return str(run.info.run_id)

    def attach_report(self, plan: str, files: Sequence[Path]) -> str:
        """Keep a plan's report in its experiment, in one run with neither a record nor numbers; its run id.

        A report made again replaces the files of the one before. If it has no longer all of them, its run is
        deleted, which MLflow can undo, and made anew, because artefacts cannot be taken away.

        Raises:
            TrackingUnavailable: the server does not answer or fails.
            TrackingRefused: the server does not take the report.
        """
        with errors_of(self.tracking_uri):
            experiment, names = self._experiment(plan), sorted(file.name for file in files)
            run = find_run(self._client, experiment, "robuq.report", plan)
            if run is not None and not set(json.loads(run.data.tags.get("robuq.files", "[]"))) <= set(names):
                self._client.delete_run(run.info.run_id)
                run = None
            run = run or self._client.create_run(experiment, tags={"robuq.report": plan, **SOURCE}, run_name=REPORT)
            run_id = str(run.info.run_id)
            self._client.update_run(run_id, status="RUNNING")  # one that is cut off does not look finished
            self._client.set_tag(run_id, "robuq.files", json.dumps(names))
            self._client.set_tag(run_id, "mlflow.note.content", report_note(plan, experiment, run_id))
            for file in files:
                self._client.log_artifact(run_id, str(file), REPORT)
            self._client.set_terminated(run_id, "FINISHED")
            return run_id

    def record_search(self, record: SearchRecord) -> str:
        """Make the server's run of the search, and those of its evaluations under it, agree with the record; the
        search's run id. Sending a record twice changes nothing, and only evaluations that are new or have changed are
        sent. What it contradicts is deleted, which MLflow can undo, and made anew.

        Raises:
            TrackingUnavailable: the server does not answer or fails; what was sent so far is completed next time.
            TrackingRefused: the server does not take this record.
        """
        with errors_of(self.tracking_uri):
            return send_search(self._client, self._experiment(record.name), record)

    def _experiment(self, plan: str) -> str:
        if plan not in self._experiments:
            found = self._client.get_experiment_by_name(plan)
            if found is None:
                location = (self.artifact_root / plan).resolve().as_uri() if self.artifact_root else None
                tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": plan_note(plan)}
                self._experiments[plan] = self._client.create_experiment(plan, location, tags)
            else:
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(found.experiment_id)
                self._experiments[plan] = found.experiment_id
        return self._experiments[plan]

    def _create(self, experiment: str, record: RunRecord) -> Any:
        tags = {"robuq.key": record.key, **SOURCE}
        start = milliseconds(record.started)
        return self._client.create_run(experiment, start, tags, run_name=run_name(record))

    def _send(self, run: Any, record: RunRecord, points: Mapping[tuple[str, int], float], digest: str) -> None:
        """Only points that the run lacks: MLflow would keep both. The digest goes after the last of them."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = run.info.run_id
        with scratch_folder("record") as folder:
            with naming(folder):
                names = write_artifact_files(record, folder)
            self._client.log_artifacts(run_id, str(folder))
        params = [Param(*item) for item in params_of(record).items()]
        tags = [RunTag(*item) for item in tags_of(record, names).items()]
        metrics = [Metric(*row) for row in metric_rows(record) if (row[0], row[3]) not in points]
        room = BATCH - len(params) - len(tags)
        self._client.log_batch(run_id, params=params, tags=tags, metrics=metrics[:room])
        for first in range(room, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + BATCH])
        if FAILURE in run.data.tags and not record.failure:
            self._client.delete_tag(run_id, FAILURE)
        self._client.set_tag(run_id, "robuq.record", digest)
        self._client.set_terminated(run_id, STATUS[record.status], end_time=milliseconds(record.finished))


def _is_complete(run: Any, record: RunRecord, digest: str) -> bool:
    """Was this very record sent to its end?"""
    return bool(run.data.tags.get("robuq.record") == digest and run.info.status == STATUS[record.status])


def _contradicts(params: Mapping[str, str], points: Mapping[tuple[str, int], float], record: RunRecord) -> bool:
    """Does the record have another value for a parameter or a point that a run already has?"""
    values = {(name, step): value for name, value, _, step in metric_rows(record)}
    return any(params.get(name, text) != text for name, text in params_of(record).items()) or any(
        points.get(point, value) != value for point, value in values.items()
    )


def _folder_beside(tracking_uri: str) -> Path | None:
    """`artifacts` beside an SQLite file; MLflow's own choice would be the working directory."""
    return place_of(tracking_uri) / "artifacts" if tracking_uri.startswith(SQLITE) else None
