"""A PostgreSQL server of Debian's package in a temporary folder, on the loopback interface, with passwords."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_commands import PATIENCE
from fault_servers import free_port
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from experiments.signals import descendants, kill

USER, PASSWORD = "robuq", "hunter2-of-postgres"
SETTINGS = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "40"}


def find_binaries() -> Path | None:
    """Of the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return found[-1] if found else None


def unprivileged_user() -> str | None:
    """PostgreSQL does not run as root. None: the user that runs this, or nobody that could."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None) if os.geteuid() == 0 else None


class PostgresServer:
    """Two empty databases, `mlflow` and `optuna`."""

    def __init__(self, binaries: Path) -> None:
        self._binaries, self._user, self.port = binaries, unprivileged_user(), free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="robuq-postgresql-"))
        (secret := self.folder / "password").write_text(PASSWORD)
        if self._user:
            for path in (self.folder, secret):
                shutil.chown(path, self._user)
        data = ["-D", str(self.folder / "data")]
        self._run("initdb", *data, "-U", USER, "--pwfile", str(secret), "-A", "scram-sha-256", "-E", "UTF8", "-N")
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.writelines(f"{name} = '{value}'\n" for name, value in {**SETTINGS, "port": self.port}.items())
        self.start()
        self._server = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER]
        for database in ("mlflow", "optuna"):
            self._run("createdb", *self._server, database)

    def uri(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def copy(self, database: str, name: str) -> str:
        """The URI of a copy of a database. Whoever is connected to the original is cut off."""
        cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        self._run("psql", *self._server, "-c", cut, "postgres")
        self._run("createdb", *self._server, "-T", database, name)
        return self.uri(name)

    def start(self) -> None:
        """Returns once it takes connections."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        """At once: connections are cut."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """Every process of it, by SIGKILL: as a machine that dies. Returns once all are gone."""
        note = self.folder / "data" / "postmaster.pid"
        postmaster = int(note.read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)  # it would end the others more gently, or start new ones
        processes = [*descendants(postmaster), postmaster]
        for process in processes:
            kill(process)
        for _ in range(PATIENCE):
            if not any(map(_lives, processes)):
                note.unlink()  # where nobody collects what has ended, its id still counts as a running server's
                return
            select.select([], [], [], 0.01)
        raise AssertionError("the server's processes do not end")

    @contextmanager
    def locked(self, uri: str, table: str) -> Iterator[Connection]:
        """Whoever writes to the table waits, in the middle of its transaction; all can read it."""
        engine = create_engine(uri, poolclass=NullPool)
        with engine.connect() as holder, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
            holder.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
            try:
                yield watcher
            finally:  # the server is gone, and both connections with it
                holder.invalidate()
                watcher.invalidate()

    def kill_while_written_to(self, watcher: Connection) -> None:
        """Wait until somebody waits for the lock, and kill the server."""
        for _ in range(PATIENCE):
            if watcher.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one():
                self.kill()
                return
            select.select([], [], [], 0.01)
        raise AssertionError("nobody writes to the table")

    def dump(self, database: str) -> str:
        """All that is in it, as SQL."""
        lines = self._run("pg_dump", *self._server, database).splitlines()
        return "\n".join(line for line in lines if not line.startswith(("\\restrict ", "\\unrestrict ")))  # by chance

    def remove(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *words: str) -> str:
        command = [str(self._binaries / program), *words]
        if self._user:
            command = ["runuser", "-u", self._user, "--", *command]
        answer = self.folder / "answer"  # a file: the server would keep a pipe open
        with answer.open("w") as out, (self.folder / "said").open("a") as said:
            own = {"PGPASSWORD": PASSWORD, "LC_ALL": "C"}
            subprocess.run(command, check=True, cwd=self.folder, stdout=out, stderr=said, env={**os.environ, **own})
        return answer.read_text()


def _lives(process: int) -> bool:
    """What has ended may still wait for its parent."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
