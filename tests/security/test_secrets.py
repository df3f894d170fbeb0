"""A password in a tracking URI or in a study's address is written nowhere: real commands, and all that they leave."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from streamlit.testing.v1 import AppTest

from dashboards.app import PAGES
from experiments import cli, cli_dashboard
from experiments.cli_options import command_line
from robuq.config import ConfigError, SearchConfig
from robuq.messages import HIDDEN, MAX_LINE, one_line, redacted, without_secrets

SECRET = "hunter2swordfish"
AWAY = f"http://someone:{SECRET}@127.0.0.1:9/x?token={SECRET}#{SECRET}"
PLAN = """
name: secretly
preset: nano
base: {train.steps: 2, train.warmup_steps: 0, pretrain.steps: 2, pretrain.warmup_steps: 0, data.limit: 64,
       evaluation.distributions: false, evaluation.sample.num_images: 0}
grid: {variant: [minmax]}
"""
SEARCH = """
name: secret_search
preset: nano
base: {act_bits: 2, train.steps: 2, train.warmup_steps: 0, pretrain.steps: 2, pretrain.warmup_steps: 0, data.limit: 64,
       evaluation.sample.num_images: 0, evaluation.distributions: false}
ampn: {budget: {limit: 2.5, weights: layers}, sensitivity: {warm_up_steps: 0, num_images: 4, candidates: [2, 3]}}
search: {space: block, evaluations: 2, enqueue: [uniform], rungs: [{steps: 0}]}
"""


def kept_in(folder: Path) -> list[str]:
    """Files that hold the secret, packed ones included: nothing that is written here is packed but arrays."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


class Commands:
    """In this process, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "plan.yaml").write_text(PLAN)
        (folder / "search.yaml").write_text(SEARCH)

    def __call__(self, *words: str) -> tuple[int, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["robuq", *words, "--output", "out"])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
                cli.main()
        said = out.getvalue() + err.getvalue()
        assert SECRET not in said, said
        return int(ended.value.code or 0), said


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("secrets"))


@pytest.mark.slow
def test_a_server_with_a_password_that_is_away(commands: Commands) -> None:
    code, said = commands("sweep", "plan.yaml", "--executor", "local", "--tracking-uri", AWAY)
    assert code == 0
    assert "http://***@127.0.0.1:9/x" in said
    for words in (["report", "plan.yaml"], ["paper"], ["table", "components"]):
        code, said = commands(*words, "--tracking-uri", AWAY)
        assert (code, len(said.splitlines())) == (2, 1)
    assert commands("doctor", "--json", "--tracking-uri", AWAY)[0] == 1
    assert kept_in(commands.folder) == []


@pytest.mark.slow
def test_stores_with_a_token_that_are_there(commands: Commands) -> None:
    """SQLite takes an address with a query, and leaves alone what of it it does not know."""
    out, sqlite = commands.folder / "out", f"?uri=true&token={SECRET}"
    tracking = f"sqlite:///file:{commands.folder}/tracked.db{sqlite}"
    storage = f"search.storage=sqlite:///file:{commands.folder}/study.db{sqlite}"
    code, said = commands("sweep", "plan.yaml", "--executor", "local", "--tracking-uri", tracking)
    assert code == 0
    assert "wait" not in said
    code, said = commands("search", "search.yaml", "--executor", "local", "--set", storage, "--tracking-uri", tracking)
    assert code == 0, said
    assert "study: optuna-dashboard sqlite:///" in said
    assert "next: robuq report" in said
    for words in (["plan", "search.yaml", "--json"], ["status", "search.yaml", "--json"]):
        assert commands(*words, "--set", storage)[0] == 0
    assert commands("report", "plan.yaml", "--html", "--tracking-uri", tracking)[0] == 0
    assert commands("report", "search.yaml", "--set", storage, "--tracking-uri", tracking)[0] == 0
    assert commands("paper", "--tracking-uri", tracking)[0] == 0
    for words in ([], ["--storage", storage.removeprefix("search.storage=")]):
        assert commands("doctor", "--json", "--tracking-uri", tracking, *words)[0] == 0
    assert (out / "searches" / "secret_search" / "search.json").is_file()
    with sqlite3.connect(commands.folder / "tracked.db") as store:
        assert store.execute("select count(*) from runs").fetchone()[0] >= 2
    assert kept_in(commands.folder) == []


MALFORMED = (f"postgresql://someone:{SECRET}/x", f"postgresql://u:p@{SECRET}:port/x", f"http://u:{SECRET}/x", SECRET)


@pytest.mark.parametrize("address", MALFORMED)
def test_a_malformed_address_is_one_line_before_anything_is_done(commands: Commands, address: str) -> None:
    """And without the secret: `Commands` looks."""
    for verb in (["sweep", "plan.yaml"], ["train", "minmax"], ["report", "plan.yaml"], ["doctor"], ["paper"]):
        code, said = commands(*verb, "--tracking-uri", address)
        assert (code, len(said.splitlines())) == (2, 1)
        assert said.startswith("robuq: --tracking-uri: ")
    for verb in ("search", "plan", "status"):
        code, said = commands(verb, "search.yaml", "--set", f"search.storage={address}")
        assert (code, len(said.splitlines())) == (2, 1)
        assert said.startswith("robuq: search.yaml: search.storage: ")
    code, said = commands("doctor", "--storage", address)
    assert (code, len(said.splitlines())) == (2, 1)


@pytest.mark.slow
def test_a_study_whose_database_is_away_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    storage = f"search.storage=postgresql://someone:{SECRET}@127.0.0.1:9/x"
    code, said = Commands(tmp_path)("search", "search.yaml", "--executor", "local", "--set", storage)
    assert (code, len(said.splitlines())) == (1, 1)
    assert said.startswith("robuq: the study's database postgresql://***@127.0.0.1:9/x is not available (")
    assert not list((tmp_path / "out").rglob("result.json"))


def test_a_bug_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(f"could not open {AWAY}")
    except RuntimeError as error:
        cli._show_bug(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert SECRET not in said
    assert "RuntimeError: could not open http://***@127.0.0.1:9/x" in said


def test_errors_in_process_do_not_quote_addresses() -> None:
    for changes in ({"storage": {"url": AWAY}}, {"sampler": AWAY}, {"seed": AWAY}, {"rungs": AWAY}):
        with pytest.raises(ConfigError) as caught:
            SearchConfig.parse(changes)
        assert SECRET not in str(caught.value)
    with pytest.raises(ValidationError) as raised:  # pydantic's own
        SearchConfig(storage=MALFORMED[0])
    assert SECRET not in str(raised.value)


def test_the_next_command_does_not_repeat_a_setting_with_a_password() -> None:
    said = command_line("report", "smoke", Path("out"), [f"search.storage=postgresql://a:{SECRET}@h/d"], None)
    assert said == "robuq report smoke --output out --set 'search.storage=postgresql://***@h/d'"


def test_what_the_pages_are_told_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one file that holds the address, while the pages are up: nobody else can read it, and it goes with them."""
    seen: list[tuple[int, int, Path]] = []

    class Server:
        def __init__(self, words: list[str], env: dict[str, str]) -> None:
            file = Path(env[cli_dashboard.VARIABLE])
            assert SECRET in file.read_text()
            assert SECRET not in " ".join(words)
            seen.append((stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode), file))

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """It has ended."""

        def wait(self) -> int:
            return 0

        def kill(self) -> None:
            """It has ended."""

    monkeypatch.setattr(cli_dashboard.subprocess, "Popen", Server)
    cli_dashboard.dashboard(output=tmp_path, plan=None, settings=None, port=8501, tracking_uri=AWAY)
    ((file_mode, folder_mode, file),) = seen
    assert (file_mode, folder_mode) == (0o600, 0o700)
    assert not file.exists()
    assert kept_in(tmp_path) == []


def script(path: str) -> None:
    from dashboards.app import run_page

    run_page(path)


def test_pages_of_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = cli_dashboard.dashboard_data(tmp_path, [], AWAY)
    (tmp_path / "settings.json").write_text(json.dumps(told))
    monkeypatch.setenv(cli_dashboard.VARIABLE, str(tmp_path / "settings.json"))
    shown = ""
    for path in PAGES:
        app = AppTest.from_function(script, kwargs={"path": path}, default_timeout=120).run()
        assert not app.exception
        shown += "".join(str(element.proto) for block in (app.main, app.sidebar) for element in block if element.proto)
    assert "http://***@127.0.0.1:9/x" in shown
    assert SECRET not in shown


# --- redaction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (AWAY, "http://***@127.0.0.1:9/x"),
        (f"postgresql+psycopg2://u:{SECRET}@db:5432/runs", "postgresql+psycopg2://***@db:5432/runs"),
        (
            f"postgresql://u:a/{SECRET}@db/runs",
            "postgresql://***@db/runs",
        ),  # an unescaped slash, hash, question mark, at
        (f"http://u:a#{SECRET}@h/x", "http://***@h/x"),
        (f"http://u:a?{SECRET}@h/x", "http://***@h/x"),
        (f"http://u:{SECRET}@{SECRET}@h/x", "http://***@h/x"),
        (f"https://{SECRET}@h/x", "https://***@h/x"),
        (f"u:{SECRET}@h/x", "***@h/x"),
        (f"http://h/x?token={SECRET}", "http://h/x"),
        (f"http://h/x?user=a@b&token={SECRET}", "http://h/x"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("/home/a@b/mlruns", "/home/a@b/mlruns"),
        (f"http://{SECRET}@h/x?user=a@b", "http://***@h/x"),
        (f"postgresql://user:{SECRET}/mlflow", "postgresql://***"),  # no host and port: a user and a password?
        (f"postgresql://user:a/{SECRET}/mlflow", "postgresql://***"),
        (f"postgresql://u:p@{SECRET}:port/x", "postgresql://***"),
        (f"http:///user:{SECRET}@h", "http://***@h"),
        (f"http:///user:{SECRET}", "http://***"),
        ("http://h:65536", "http://***"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://[::1", "http://***"),
        ("", ""),
    ],
)
def test_addresses(address: str, shown: str) -> None:
    assert redacted(address) == shown
    for text in (f"opening '{address}': failed", f"{address}: failed", f"(at {address}).", f"[{address}]"):
        assert SECRET not in without_secrets(text)


def test_addresses_without_a_secret_stay_as_they_are_in_a_sentence() -> None:
    text = "http://h:80: away (http://h:80/x), [http://h:80], http://[::1]:80, see sqlite:////a/b.db; or http://h."
    assert without_secrets(text) == text


@given(st.text(st.characters(exclude_characters="@", exclude_categories=["C", "Z"]), min_size=4), st.text(max_size=20))
def test_no_password_is_shown_whatever_is_in_it(password: str, before: str) -> None:
    secret = f"\u4e00{password}\u4e00"
    assert secret not in redacted(f"postgresql://user:{secret}@host/name")


@given(st.text() | st.text(st.sampled_from("ab1:/@?#[].,)` ")).map("x http://{}".format))
def test_one_line_is_one_line_and_stays_as_it_is(text: str) -> None:
    line = one_line(text)
    assert len(line) <= MAX_LINE
    assert line.isprintable()
    assert one_line(line) == line


def test_nothing_is_logged_of_a_store_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    from robuq.record.mlflow import MlflowRecorder, TrackingRefused, TrackingUnavailable, experiment_names

    with caplog.at_level(logging.DEBUG):
        for uri in (AWAY, f"nonsense://u:{SECRET}@h/x"):
            with pytest.raises((TrackingUnavailable, TrackingRefused)) as caught:
                experiment_names(MlflowRecorder(uri).tracking_uri)
            assert SECRET not in str(caught.value)
            assert HIDDEN in str(caught.value)
    assert not [record for record in caplog.records if SECRET in record.getMessage()]
