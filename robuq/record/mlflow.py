"""The tracking server: records in, records out. The only file that imports mlflow, and only when it is used.

One experiment per plan and one run per record key, found again by its tag `robuq.key`. What a table needs lies in
the run's tags, parameters and final metrics, so that ten thousand runs are read by one search; everything else is
an artefact. The plan's report is a run of its own, found again by its tag `robuq.report`. A search is a run found by
its tag `robuq.search`, with one run under it for each evaluation. One process, the driver of a sweep or a search,
writes records.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from robuq.config import Config
from robuq.record.artifact_files import read_lines, write_artifact_files
from robuq.record.layout import (
    FAILURE,
    REPORT,
    TEXT_LIMIT,
    config_of,
    metric_rows,
    metrics_of,
    milliseconds,
    params_of,
    plan_note,
    report_note,
    run_name,
    seconds_of,
    tags_of,
)
from robuq.record.run_record import RunRecord
from robuq.record.search_layout import (
    BEST,
    EVALUATION,
    EVALUATION_STATUS,
    RECORD_FILE,
    SEARCH,
    best_so_far,
    evaluation_metrics,
    evaluation_name,
    evaluation_params,
    search_params,
    search_tags,
    write_search_files,
)
from robuq.record.search_record import Evaluation, SearchRecord

BATCH = 1000  # metrics, parameters and tags in one request: MLflow's limit
PAGE = 5000  # runs in one search request
SOURCE = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "robuq"}  # tags of every run
STATUS = {"finished": "FINISHED", "failed": "FAILED"}
PARENT = "mlflow.parentRunId"  # the tag by which the user interface nests runs
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # error codes that trying again does not cure


class TrackingUnavailable(RuntimeError):
    """The tracking server cannot be used now. The record is not lost: keep it and send it again later."""

    def __init__(self, tracking_uri: str, reason: str) -> None:
        super().__init__(f"tracking server {redacted(tracking_uri)} is not available ({reason})")


class TrackingRefused(ValueError):
    """The tracking server understands but refuses what is asked, or cannot be used as it is named: no later attempt
    will do better."""


def redacted(uri: str) -> str:
    """The URI without user, password, query and fragment."""
    parts = urlsplit(uri)
    host = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else parts.path


def sqlite_uri(file: Path) -> str:
    """The tracking URI of an SQLite file; absolute, because a relative one follows the working directory."""
    return f"sqlite:///{file.resolve()}"


class MlflowRecorder:
    """Sends records to one tracking server.

    `artifact_root`: where artefacts go; None leaves it to the server, or to a folder beside an SQLite file.
    A new SQLite store is initialised here, which only one process may do.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path | None = None) -> None:
        self.tracking_uri = tracking_uri
        self.artifact_root = artifact_root or _folder_beside(tracking_uri)
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
            run = _find(self._client, experiment, "robuq.key", record.key)
            if run is not None and _is_complete(run, record, digest):
                return str(run.info.run_id)
            points = self._points(run)
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
            run = _find(self._client, experiment, "robuq.report", plan)
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
            experiment, digest = self._experiment(record.name), digest_of(record)
            parent = _find(self._client, experiment, SEARCH, record.name)
            status = "FINISHED" if record.finished else "RUNNING"
            if parent is not None and parent.data.tags.get("robuq.record") == digest and parent.info.status == status:
                return str(parent.info.run_id)
            points = self._points(parent)
            if parent is not None and _search_contradicts(parent.data.params, points, record):
                self._client.delete_run(parent.info.run_id)
                parent, points = None, {}
            if parent is None:
                tags = {SEARCH: record.name, **SOURCE}
                parent = self._client.create_run(experiment, milliseconds(record.started), tags, run_name="search")
            run_id = str(parent.info.run_id)
            self._send_evaluations(experiment, run_id, record)
            self._send_search(run_id, record, points)
            self._client.set_tag(run_id, "robuq.record", digest)
            if status == "FINISHED":
                self._client.set_terminated(run_id, status, end_time=milliseconds(record.finished))
            else:
                self._client.update_run(run_id, status=status)
            return run_id

    def _send_search(self, run_id: str, record: SearchRecord, points: Mapping[tuple[str, int], float]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        with tempfile.TemporaryDirectory(prefix="robuq-search-") as folder:
            write_search_files(record, Path(folder))
            self._client.log_artifacts(run_id, folder)
        params = [Param(*item) for item in search_params(record).items()]
        tags = [RunTag(*item) for item in search_tags(record).items()]
        end = milliseconds(record.finished) or 0
        best = [Metric(BEST, value, end, step) for step, value in best_so_far(record) if (BEST, step) not in points]
        self._client.log_batch(run_id, params=params, tags=tags)
        for first in range(0, len(best), BATCH):
            self._client.log_batch(run_id, metrics=best[first : first + BATCH])

    def _send_evaluations(self, experiment: str, parent: str, record: SearchRecord) -> None:
        """One run each, kept as it is if it says the same; its digest is written last."""
        known = {
            run.data.tags[EVALUATION]: run
            for run in _search(self._client, experiment, f"tags.`{SEARCH}.of` = '{record.name}'")
        }
        for evaluation in record.evaluations:
            run, digest = known.pop(str(evaluation.number), None), digest_of(evaluation)
            if run is not None and run.data.tags.get("robuq.record") != digest:
                self._client.delete_run(run.info.run_id)
                run = None
            if run is None:
                self._send_evaluation(experiment, parent, record, evaluation, digest)
            elif run.data.tags.get(PARENT) != parent:
                self._client.set_tag(run.info.run_id, PARENT, parent)
        for run in known.values():
            self._client.delete_run(run.info.run_id)

    def _send_evaluation(
        self, experiment: str, parent: str, record: SearchRecord, evaluation: Evaluation, digest: str
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        tags = {f"{SEARCH}.of": record.name, EVALUATION: str(evaluation.number), PARENT: parent, **SOURCE}
        name, start = evaluation_name(evaluation), milliseconds(record.started)
        run_id = str(self._client.create_run(experiment, start, tags, run_name=name).info.run_id)
        end = milliseconds(record.started + evaluation.seconds) or 0
        metrics = [Metric(key, value, end, 0) for key, value in evaluation_metrics(evaluation).items()]
        params = [Param(*item) for item in evaluation_params(evaluation).items()]
        more = {FAILURE: evaluation.failure} if evaluation.failure else {}
        more |= {"robuq.state": evaluation.state, "robuq.record": digest}
        self._client.set_terminated(run_id, EVALUATION_STATUS[evaluation.state], end_time=end)
        self._client.log_batch(
            run_id,
            metrics=metrics,
            params=params,
            tags=[RunTag(key, value[:TEXT_LIMIT]) for key, value in more.items()],
        )

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

    def _points(self, run: Any) -> dict[tuple[str, int], float]:
        """{(metric, step): value} of what the run has."""
        names = run.data.metrics if run is not None else {}
        return {
            (point.key, point.step): point.value
            for name in names
            for point in self._client.get_metric_history(run.info.run_id, name)
        }

    def _send(self, run: Any, record: RunRecord, points: Mapping[tuple[str, int], float], digest: str) -> None:
        """Only points that the run lacks: MLflow would keep both. The digest goes after the last of them."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = run.info.run_id
        with tempfile.TemporaryDirectory(prefix="robuq-record-") as folder:
            names = write_artifact_files(record, Path(folder))
            self._client.log_artifacts(run_id, folder)
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


def digest_of(value: Config) -> str:
    """16 hex digits: equal values only have equal ones."""
    return value.digest()[:16]


def _search_contradicts(
    params: Mapping[str, str], points: Mapping[tuple[str, int], float], record: SearchRecord
) -> bool:
    """Does the record have another value for a parameter or a point, or no longer a point, that the run has?"""
    best = {(BEST, step): value for step, value in best_so_far(record)}
    return any(params.get(name, text) != text for name, text in search_params(record).items()) or any(
        best.get(point) != value for point, value in points.items()
    )


def _is_complete(run: Any, record: RunRecord, digest: str) -> bool:
    """Was this very record sent to its end?"""
    return bool(run.data.tags.get("robuq.record") == digest and run.info.status == STATUS[record.status])


def _contradicts(params: Mapping[str, str], points: Mapping[tuple[str, int], float], record: RunRecord) -> bool:
    """Does the record have another value for a parameter or a point that a run already has?"""
    values = {(name, step): value for name, value, _, step in metric_rows(record)}
    return any(params.get(name, text) != text for name, text in params_of(record).items()) or any(
        points.get(point, value) != value for point, value in values.items()
    )


# --- reading --------------------------------------------------------------------------------------------------


def read_runs(tracking_uri: str, experiment: str) -> list[RunRecord]:
    """Every run that keeps a record, oldest first, from searches alone: neither the report nor runs of other makers.

    `config` holds only the settings that are parameters, `history` and `layers` are empty, and `artifacts` maps
    file names to locations for `fetch_artifact`; `read_record` gives all of one run.

    Raises:
        ValueError: no such experiment.
        TrackingUnavailable: the server does not answer.
    """
    with errors_of(tracking_uri):
        client = connect(tracking_uri)
        found = _experiment_id(client, tracking_uri, experiment)
        with _collector_paused():
            return [_light_record(run) for run in _search(client, found) if "robuq.identity" in run.data.tags]


def _experiment_id(client: Any, tracking_uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        names = sorted({e.name for e in client.search_experiments(max_results=100)} - {"Default"})  # MLflow's own
        known = f"there are {', '.join(names)}" if names else "it has none yet"
        raise ValueError(f"no experiment {name!r} on {redacted(tracking_uri)}: {known}")
    return str(found.experiment_id)


def experiment_names(tracking_uri: str) -> list[str]:
    """Of all plans and searches that the server has, sorted.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    with errors_of(tracking_uri):
        client, token = connect(tracking_uri), None
        names: list[str] = []
        while True:
            page = client.search_experiments(max_results=BATCH, page_token=token)
            names += [found.name for found in page]
            token = page.token
            if not token:
                return sorted(set(names) - {"Default"})  # MLflow's own


def read_record(tracking_uri: str, light: RunRecord) -> RunRecord:
    """All of a record that `read_runs` gave, from record.json; `artifacts` keep their locations."""
    text = fetch_artifact(tracking_uri, light.artifacts["record.json"]).read_text()
    return RunRecord.parse(json.loads(text)).updated(artifacts=light.artifacts)


def read_search(tracking_uri: str, name: str) -> SearchRecord:
    """The search of an experiment, whole, from search.json.

    Raises:
        ValueError: no such experiment, or it holds no search.
        TrackingUnavailable: the server does not answer.
        FileNotFoundError: its artefact is gone.
    """
    with errors_of(tracking_uri):
        client = connect(tracking_uri)
        run = _find(client, _experiment_id(client, tracking_uri, name), SEARCH, name)
        if run is None:
            raise ValueError(f"experiment {name!r} on {redacted(tracking_uri)} holds no search")
        location = f"{run.info.artifact_uri}/{RECORD_FILE}"
    return SearchRecord.parse(json.loads(fetch_artifact(tracking_uri, location).read_text()), RECORD_FILE)


def read_history(tracking_uri: str, location: str) -> list[dict[str, Any]]:
    """The rows of a history.jsonl or layers.jsonl artefact."""
    return read_lines(fetch_artifact(tracking_uri, location))


def fetch_artifact(tracking_uri: str, location: str) -> Path:
    """A local file for a location from `RunRecord.artifacts`; downloaded only if it is not on this machine.

    Raises:
        FileNotFoundError: a local artefact that is gone.
    """
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        file = Path(unquote(parts.path))
        if not file.is_file():
            raise FileNotFoundError(f"artefact {file} is gone: restore it, or send the records to a new tracking store")
        return file
    with errors_of(tracking_uri):
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=location, tracking_uri=tracking_uri))


def _light_record(run: Any) -> RunRecord:
    tags, metrics = run.data.tags, run.data.metrics
    root = run.info.artifact_uri
    return RunRecord(
        **json.loads(tags["robuq.identity"]),
        status=tags["robuq.status"],
        failure=tags.get(FAILURE),
        config=config_of(run.data.params),
        stages=json.loads(tags["robuq.stages"]),
        seconds=seconds_of(metrics),
        metrics=metrics_of(metrics),
        artifacts={name: f"{root}/{name}" for name in json.loads(tags["robuq.files"])},
        git={key: tags[name] for key in ("commit", "dirty") if (name := f"mlflow.source.git.{key}") in tags},
        versions=json.loads(tags["robuq.versions"]),
        started=(run.info.start_time or 0) / 1000,
        finished=(run.info.end_time or 0) / 1000,
    )


# --- the client -----------------------------------------------------------------------------------------------


def connect(tracking_uri: str) -> Any:
    """An MlflowClient that gives up soon, keeps its start-up messages to itself and reports to nobody.

    Raises:
        TrackingUnavailable: the store cannot be opened.
        TrackingRefused: the URI names no store that can be used.
    """
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default, 7 with growing pauses, takes minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    with errors_of(tracking_uri), _quiet("mlflow.store.db.utils"):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri)


@contextmanager
def errors_of(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's errors into ours. Their text is dropped: it quotes the URI with its password."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise TrackingRefused(f"{redacted(tracking_uri)} refused the request: {error.error_code}") from None
        raise TrackingUnavailable(tracking_uri, str(error.error_code)) from None
    except ModuleNotFoundError as error:  # of a database's driver
        raise TrackingRefused(f"{redacted(tracking_uri)} needs the package {error.name}: install it") from None
    except (SQLAlchemyError, OSError) as error:  # OSError: connections, and the disk that artefacts go to
        raise TrackingUnavailable(tracking_uri, type(error).__name__) from None


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Only errors from this logger: a new store announces each of its tables, a lost one each attempt."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's garbage collector: thousands of runs are millions of objects with hardly a cycle among them,
    which it would visit again and again. Reference counts free what is no longer used all the same."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _search(client: Any, experiment: str, condition: str = "") -> Iterator[Any]:
    """Runs that are not deleted, oldest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment], condition, max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _find(client: Any, experiment: str, tag: str, value: str) -> Any:
    return next(_search(client, experiment, f"tags.`{tag}` = '{value}'"), None)


def _folder_beside(tracking_uri: str) -> Path | None:
    """`artifacts` beside an SQLite file; MLflow's own choice would be the working directory."""
    if not tracking_uri.startswith("sqlite:"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"
