"""A new SQLite store appears whole or not at all.

MLflow makes a new database's tables in dozens of steps over seconds, and one that was killed meanwhile leaves a file
that it never opens again. So the tables are made in a scratch folder, and the finished file is put in its place.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from robuq.scratch import scratch_folder

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # what file systems without links answer


def make_store(file: Path) -> None:
    """Nothing where `file` is there already, also if another process makes it in the meantime.

    Raises:
        OSError: the folder, or that of temporary files, cannot be written to.
    """
    if file.exists():
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with scratch_folder("store") as folder:
        made = folder / file.name
        SqlAlchemyStore(f"sqlite:///{made}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        file.parent.mkdir(parents=True, exist_ok=True)
        _put(made, file)


def _put(made: Path, file: Path) -> None:
    """By a link, because a rename would replace what another process has begun to fill. Where the file system has no
    links nothing is put, and MLflow makes the tables in place."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with made.open("rb") as source, beside.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        try:
            os.link(beside, file)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
    finally:
        beside.unlink(missing_ok=True)
