"""What pages call the places that they show, and the page that the server sends first."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the extra `dashboard` is not installed")

from dashboards.server import INDEX, ROOT, index_page
from dashboards.settings import Settings


def settings(uri: str, folder: Path | None, *plans: str) -> Settings:
    made_by = {name: f"sweep {name}.yaml --set seeds=0" for name in plans} | {"single": "train VARIANT"}
    place = str(folder) if folder else None
    return Settings(uri, place, "--output results", {name: {} for name in plans}, made_by, {})


def test_places_are_named_without_the_way_there(tmp_path: Path) -> None:
    assert settings(f"sqlite:///{tmp_path}/results/mlflow.db", tmp_path / "results").place == "results"
    assert settings(f"sqlite:///{tmp_path}/elsewhere.db", None).place == "elsewhere.db"
    assert settings("http://user:secret@tracking:5000", None).place.endswith("tracking:5000")
    assert "secret" not in settings("http://user:secret@tracking:5000", None).place


def test_commands_name_files_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = settings(f"sqlite:///{tmp_path}/results/mlflow.db", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert own.path("searches", "study.journal") == "results/searches/study.journal"
    monkeypatch.chdir("/")
    assert own.path("mlflow.db") == str(tmp_path / "results" / "mlflow.db").removeprefix("/")
    monkeypatch.chdir(Path(__file__).parent)
    assert own.path("mlflow.db") == str(tmp_path / "results" / "mlflow.db")


def test_a_watched_plan_comes_first_where_it_is_recorded() -> None:
    own = settings("sqlite:///mlflow.db", None, "new", "digits")
    assert own.default_of(["aaa", "digits"]) == "digits"
    assert own.default_of(["aaa"]) is None


def test_commands_that_make_runs_are_those_that_are_known() -> None:
    """A name is not a file."""
    own = settings("sqlite:///mlflow.db", None, "digits")
    assert own.making("digits", False)[1] == own.filling() == "robuq sweep digits.yaml --set seeds=0 --output results"
    assert own.making("single", False)[1] == "robuq train VARIANT --output results"
    assert own.making("other", False)[1] == "robuq sweep FILE --output results"
    assert own.making("other", True)[1].startswith("robuq search FILE --set search.confirm_seeds=")


def test_the_first_page_says_where_the_root_is() -> None:
    text = index_page(INDEX.read_text(encoding="utf-8"))
    assert text.index(ROOT) < text.index("<script type=")
    assert "<title>RobuQ</title>" in text


def test_another_streamlit_is_named() -> None:
    with pytest.raises(ValueError, match="has no <head>"):
        index_page("<html></html>")
