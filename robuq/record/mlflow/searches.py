"""A search into a tracking server: one run found by its tag `robuq.search`, and one under it for each evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robuq.record.layout import FAILURE, TEXT_LIMIT, milliseconds
from robuq.record.mlflow.client import BATCH, SOURCE, digest_of, find_run, points_of, search_runs
from robuq.record.search_layout import (
    BEST,
    EVALUATION,
    EVALUATION_STATUS,
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
from robuq.scratch import scratch_folder
from robuq.storage_fault import naming

PARENT = "mlflow.parentRunId"  # the tag by which the user interface nests runs


def send_search(client: Any, experiment: str, record: SearchRecord) -> str:
    """The search's run id, after its runs on the server agree with the record; only what has changed is sent."""
    digest = digest_of(record)
    parent = find_run(client, experiment, SEARCH, record.name)
    status = "FINISHED" if record.finished else "RUNNING"
    if parent is not None and parent.data.tags.get("robuq.record") == digest and parent.info.status == status:
        return str(parent.info.run_id)
    points = points_of(client, parent)
    if parent is not None and _search_contradicts(parent.data.params, points, record):
        client.delete_run(parent.info.run_id)
        parent, points = None, {}
    if parent is None:
        tags = {SEARCH: record.name, **SOURCE}
        parent = client.create_run(experiment, milliseconds(record.started), tags, run_name="search")
    run_id = str(parent.info.run_id)
    _send_evaluations(client, experiment, run_id, record)
    _send_search(client, run_id, record, points)
    client.set_tag(run_id, "robuq.record", digest)
    if status == "FINISHED":
        client.set_terminated(run_id, status, end_time=milliseconds(record.finished))
    else:
        client.update_run(run_id, status=status)
    return run_id


def _send_search(client: Any, run_id: str, record: SearchRecord, points: Mapping[tuple[str, int], float]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    with scratch_folder("search") as folder:
        with naming(folder):
            write_search_files(record, folder)
        client.log_artifacts(run_id, str(folder))
    params = [Param(*item) for item in search_params(record).items()]
    tags = [RunTag(*item) for item in search_tags(record).items()]
    end = milliseconds(record.finished) or 0
    best = [Metric(BEST, value, end, step) for step, value in best_so_far(record) if (BEST, step) not in points]
    client.log_batch(run_id, params=params, tags=tags)
    for first in range(0, len(best), BATCH):
        client.log_batch(run_id, metrics=best[first : first + BATCH])


def _send_evaluations(client: Any, experiment: str, parent: str, record: SearchRecord) -> None:
    """One run each, kept as it is if it says the same; its digest is written last."""
    known = {
        run.data.tags[EVALUATION]: run
        for run in search_runs(client, experiment, f"tags.`{SEARCH}.of` = '{record.name}'")
    }
    for evaluation in record.evaluations:
        run, digest = known.pop(str(evaluation.number), None), digest_of(evaluation)
        if run is not None and run.data.tags.get("robuq.record") != digest:
            client.delete_run(run.info.run_id)
            run = None
        if run is None:
            _send_evaluation(client, experiment, parent, record, evaluation, digest)
        elif run.data.tags.get(PARENT) != parent:
            client.set_tag(run.info.run_id, PARENT, parent)
    for run in known.values():
        client.delete_run(run.info.run_id)


def _send_evaluation(
    client: Any, experiment: str, parent: str, record: SearchRecord, evaluation: Evaluation, digest: str
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    tags = {f"{SEARCH}.of": record.name, EVALUATION: str(evaluation.number), PARENT: parent, **SOURCE}
    name, start = evaluation_name(evaluation), milliseconds(record.started)
    run_id = str(client.create_run(experiment, start, tags, run_name=name).info.run_id)
    end = milliseconds(record.started + evaluation.seconds) or 0
    metrics = [Metric(key, value, end, 0) for key, value in evaluation_metrics(evaluation).items()]
    params = [Param(*item) for item in evaluation_params(evaluation).items()]
    more = {FAILURE: evaluation.failure} if evaluation.failure else {}
    more |= {"robuq.state": evaluation.state, "robuq.record": digest}
    client.set_terminated(run_id, EVALUATION_STATUS[evaluation.state], end_time=end)
    client.log_batch(
        run_id,
        metrics=metrics,
        params=params,
        tags=[RunTag(key, value[:TEXT_LIMIT]) for key, value in more.items()],
    )


def _search_contradicts(
    params: Mapping[str, str], points: Mapping[tuple[str, int], float], record: SearchRecord
) -> bool:
    """Does the record have another value for a parameter or a point, or no longer a point, that the run has?"""
    best = {(BEST, step): value for step, value in best_so_far(record)}
    return any(params.get(name, text) != text for name, text in search_params(record).items()) or any(
        best.get(point) != value for point, value in points.items()
    )
