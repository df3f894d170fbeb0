"""A PostgreSQL server of Debian's package in a temporary folder, on the loopback interface, with passwords."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from fault_servers import free_port

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
        for database in ("mlflow", "optuna"):
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, database)

    def uri(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns once it takes connections."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        """At once: connections are cut."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def dump(self, database: str) -> str:
        """All that is in it, as SQL."""
        return self._run("pg_dump", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, database)

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
