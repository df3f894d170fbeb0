"""Addresses of people: what is let through, what is refused, and that no complaint shows a secret."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from robuq.addresses import address_fault, study_fault, tracking_fault
from robuq.messages import redacted

SECRET = "hunter2"
GOOD = [
    "http://127.0.0.1:5000",
    "https://someone:p%40ss@tracking.example/x?token=a@b#c",
    "http://[::1]:5000",
    "postgresql://user:a/b?c@db:5432/runs",  # which SQLAlchemy takes
    "postgresql+psycopg://user@db/runs?host=/var/run",
    "postgresql:///runs",
    "mysql+pymysql://user:p%40ss@db_1/runs",
    "sqlite:////home/a@b/my runs/mlflow.db",
    "sqlite:///file:/home/x/study.db?uri=true&token=x",
]
BAD = [
    "",
    "mlruns",
    "/home/x/study.db",
    "../../study",
    f"someone:{SECRET}@host/x",
    f"someone:{SECRET}/x",
    f"http://someone:{SECRET}/mlflow",
    f"http://someone:{SECRET}",
    f"http:///someone:{SECRET}@host",
    f"http://someone:{SECRET}@",
    f"postgresql://someone:{SECRET}/mlflow",
    f"postgresql://someone:{SECRET}@h:port/x",
    f"postgresql://someone:a@{SECRET}@h/x",
    f"postgresql://someone:a {SECRET}@h/x",
    f"postgresql://someone:'{SECRET}'@h/x",
    f"postgresql://h#x:{SECRET}/db",
    f"postgresql://u?x@h:{SECRET}/db",
    "postgresql://:",
    "http://h:65536",
    "http://[::1",
    "http://",
    "http://a\u2100b",  # a letter that stands for a/c, which urllib refuses
    "sqlite://x.db",
    f"sqlite://someone:{SECRET}@/x.db",
    "sqlite://",
    "sqlite:///",
    "sqlite:///:memory:",
    "sqlite:///file::memory:?uri=true",
    "sqlite:///file:/x?mode=memory&uri=true",
]


@pytest.mark.parametrize("uri", GOOD)
def test_what_is_well_formed(uri: str) -> None:
    assert tracking_fault(uri) is None
    assert study_fault(uri) is None or uri.startswith("http")


@pytest.mark.parametrize("fault", [tracking_fault, study_fault])
@pytest.mark.parametrize("uri", BAD)
def test_what_is_not(uri: str, fault: Callable[[str], str | None]) -> None:
    why = fault(uri)
    assert why
    assert SECRET not in why
    assert "\n" not in why


def test_what_one_takes_and_the_other_does_not() -> None:
    assert tracking_fault("sqlite:///study.db") is None
    assert "a relative file would be another in another folder" in str(study_fault("sqlite:///study.db"))
    assert "a relative file" in str(study_fault("sqlite+pysqlite:///file:study.db?uri=true"))
    assert "a study is kept in a database" in str(study_fault("http://127.0.0.1:5000"))
    assert "file is none of http, " in str(tracking_fault("file:///home/x/mlruns"))


@given(
    st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "sqlite"]),
    st.text(st.sampled_from("ab1:/@?#[].,)(=&~ '*%é９"), max_size=16),
)
def test_no_library_has_anything_to_say_of_what_is_let_through(scheme: str, rest: str) -> None:
    uri = f"{scheme}://{rest}"
    if address_fault(uri) is None:
        if scheme.startswith("http"):
            assert urlsplit(uri).hostname
            assert urlsplit(uri).port != ""
        else:
            assert make_url(uri).drivername == scheme
    assert redacted(redacted(uri)) == redacted(uri)
