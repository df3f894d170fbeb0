"""The tracking server: records in, records out. The only package that imports mlflow, and only when it is used.

One experiment per plan and one run per record key, found again by its tag `robuq.key`. What a table needs lies in
the run's tags, parameters and final metrics, so that ten thousand runs are read by one search (of an SQLite file by
one look at its tables, without mlflow); everything else is an artefact. The plan's report is a run of its own, found
again by its tag `robuq.report`. A search is a run found by its tag `robuq.search`, with one run under it for each
evaluation.
"""

from robuq.messages import redacted
from robuq.record.mlflow.client import (
    DATABASES,
    PAGE,
    TrackingRefused,
    TrackingUnavailable,
    connect,
    errors_of,
    sqlite_uri,
)
from robuq.record.mlflow.reader import (
    NO_RUNS,
    KnownRuns,
    experiment_names,
    fetch_artifact,
    read_changed,
    read_history,
    read_record,
    read_runs,
    read_search,
)
from robuq.record.mlflow.recorder import MlflowRecorder
from robuq.record.mlflow.store_file import connect_existing

__all__ = [
    "DATABASES",
    "NO_RUNS",
    "PAGE",
    "KnownRuns",
    "MlflowRecorder",
    "TrackingRefused",
    "TrackingUnavailable",
    "connect",
    "connect_existing",
    "errors_of",
    "experiment_names",
    "fetch_artifact",
    "read_changed",
    "read_history",
    "read_record",
    "read_runs",
    "read_search",
    "redacted",
    "sqlite_uri",
]
