"""The link to Optuna's own dashboard, against that dashboard."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest

from analysis.study_page import study_page

wsgi = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed").wsgi


class Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on the terminal of the tests."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    storage = optuna.storages.InMemoryStorage()
    for name in ("first", "digits_bits"):
        optuna.create_study(storage=storage, study_name=name)
    server = make_server("127.0.0.1", 0, wsgi(storage), handler_class=Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_study_that_is_shown_has_its_address(port: int) -> None:
    assert study_page("digits_bits", port) == f"http://127.0.0.1:{port}/dashboard/studies/1"


def test_another_study_has_none(port: int) -> None:
    assert study_page("fashion_bits", port) == ""


def test_without_a_dashboard_there_is_none(port: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.study_page.PORT", free_port())
        assert study_page("digits_bits") == ""


def test_another_server_is_not_taken_for_one() -> None:
    def other(environment: object, start: object) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/html")])  # type: ignore[operator]
        return [b"<p>no dashboard</p>"]

    with make_server("127.0.0.1", 0, other, handler_class=Silent) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert study_page("digits_bits", server.server_port) == ""
        thread.join()


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
