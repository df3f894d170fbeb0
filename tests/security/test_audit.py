"""The audit against a database of the test's own: clean, not clean, and away."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit import ACCEPTED, LOCK

SCRIPT = Path(__file__).with_name("audit.py")
VULNERABLE = {
    "id": "PYSEC-0000-1",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "summary": "It breaks.",
    "affected": [
        {
            "package": {"name": "brokenpackage", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
            "versions": ["1.0"],
        }
    ],
}


class Database(http.server.BaseHTTPRequestHandler):
    """OSV's protocol, as far as it is asked."""

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["package"]["name"] == "brokenpackage"
        answer = json.dumps({"vulns": [VULNERABLE]} if known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def audit(folder: Path, packages: str, url: str) -> tuple[int, str]:
    (folder / "requirements.lock").write_text(packages)
    words = [sys.executable, str(SCRIPT), "--requirements", str(folder / "requirements.lock"), "--osv-url", url]
    environment = {"PATH": "", "HOME": str(folder), "no_proxy": "127.0.0.1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_nothing_known(tmp_path: Path, database: str) -> None:
    code, said = audit(tmp_path, "goodpackage==1.0\n", database)
    assert (code, said) == (0, "audit: 1 packages, 0 known vulnerabilities\n")


def test_something_known(tmp_path: Path, database: str) -> None:
    code, said = audit(tmp_path, "goodpackage==1.0\nbrokenpackage==1.0\n", database)
    lines = ["brokenpackage 1.0: PYSEC-0000-1, fixed in 2.0", "audit: 2 packages, 1 known vulnerabilities"]
    assert (code, said.splitlines()) == (1, lines)


def test_a_database_that_is_away(tmp_path: Path) -> None:
    code, said = audit(tmp_path, "goodpackage==1.0\n", "http://127.0.0.1:9/v1/query")
    assert code == 0
    assert said.startswith("audit skipped: http://127.0.0.1:9/v1/query cannot be reached (")
    assert len(said.splitlines()) == 1


def test_requirements_that_cannot_be_audited(tmp_path: Path, database: str) -> None:
    code, said = audit(tmp_path, "not pinned at all >=\n", database)
    assert code == 2
    assert "audit failed" in said


def test_everything_is_pinned_and_every_exception_has_a_reason() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if "==" not in line] == []
    assert all(ACCEPTED.values())
