"""Tracking servers that go away, and a real HTTP server between a client and one of them that fails on request."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from fault_commands import PATIENCE

Behaviour = Literal["forward", "error", "hang", "lose the answer"]
KEPT_HEADERS = ("content-type", "content-length", "content-disposition")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` in a folder, on the loopback interface: can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once it answers."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        store += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words, *store],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        for _ in range(PATIENCE):
            if self._answers():
                return
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def stop(self) -> None:
        """At once, with all its processes: as a machine that dies."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class Proxy:
    """Passes requests on; from the n-th after `fail` on it behaves otherwise."""

    def __init__(self, port: int) -> None:
        self.port, self.seen, self.left = port, 0, threading.Event()
        self._behaviour: Behaviour = "forward"
        self._nth, self._only = 0, False
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                proxy.handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                """To nobody."""

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def behave(self, behaviour: Behaviour, nth: int = 1, only: bool = False) -> None:
        """From the n-th request on, or `only` with that one."""
        self.seen, self._behaviour, self._nth, self._only = 0, behaviour, nth, only

    def close(self) -> None:
        self.left.set()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.seen += 1
        due = self.seen == self._nth if self._only else self.seen >= self._nth
        behaviour = self._behaviour if due else "forward"
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        if behaviour == "hang":
            self.left.wait()
            request.close_connection = True
        elif behaviour == "error":
            self._answer(request, 500, [("content-type", "text/plain")], b"an internal error of user:hunter2@host")
        else:
            self._pass_on(request, body, lose=behaviour == "lose the answer")

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes, lose: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"content-type": request.headers.get("content-type") or "application/json"}
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if lose:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() in KEPT_HEADERS]
        self._answer(request, answer.status, kept, content)

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes
    ) -> None:
        request.send_response(status)
        for name, value in headers:
            if name.lower() != "content-length":
                request.send_header(name, value)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
