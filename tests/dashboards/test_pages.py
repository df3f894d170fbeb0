"""Every page on really recorded runs, on nothing, on failures and on a store that goes away: no exception, the numbers
of the records, a link that brings the same view back, and files to take away."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from analysis.load import load_runs
from dashboards.app import PAGES
from robuq.record.mlflow import sqlite_uri

SECONDS = 60
FILLED_BY = dict.fromkeys(PAGES, "sweep smoke") | {"search": "search smoke"}


def script(path: str) -> None:
    from dashboards.app import run_page

    run_page(path)


def opened(path: str, **link: str) -> AppTest:
    app = AppTest.from_function(script, kwargs={"path": path}, default_timeout=SECONDS)
    for name, value in link.items():
        app.query_params[name] = value
    return app.run()


def words(app: AppTest) -> str:
    shown: list[Any] = [*app.markdown, *app.info, *app.code, *app.error, *app.warning, *app.caption]
    return "\n".join(str(one.value) for one in shown)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_shows_recorded_runs(path: str, recorded: Path, plans: Path, tell: Any) -> None:
    tell(recorded, plans / "tiny.yaml")
    app = opened(path, plan="tiny")
    assert not app.exception
    assert not app.error
    assert not app.warning
    assert app.title[0].value.lower() == path
    assert app.get("download_button")


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_store_names_the_command_that_fills_it(path: str, tmp_path: Path, tell: Any) -> None:
    tell(tmp_path / "nothing")
    app = opened(path)
    assert not app.exception
    assert any(f"robuq {FILLED_BY[path]} --output {tmp_path / 'nothing'}" in one.value for one in app.code)
    assert not (tmp_path / "nothing").exists()  # looking makes nothing


@pytest.mark.parametrize("path", ["sweep", "leaderboard", "ablation"])
def test_an_empty_store_names_the_command_of_the_watched_plan(
    path: str, plans: Path, tmp_path: Path, tell: Any
) -> None:
    """With the file that it is in, and with what was changed."""
    tell(tmp_path / "nothing", plans / "tiny.yaml", settings=["train.steps=9"])
    command = f"robuq sweep {plans / 'tiny.yaml'} --set train.steps=9 --output {tmp_path / 'nothing'}"
    assert command in [one.value for one in opened(path).code]


def test_a_search_without_confirmation_names_what_fills_the_pages_of_runs(recorded: Path, tell: Any) -> None:
    tell(recorded)
    for path in ("leaderboard", "ablation"):
        assert [one.value for one in opened(path, plan="smoke_search").code] == [
            f"robuq search FILE --set search.confirm_seeds=0,1,2 --output {recorded}"
        ]


def test_a_search_without_evaluations_names_its_file(recorded: Path, tmp_path: Path, tell: Any) -> None:
    """And says nothing of results."""
    folder = Path(shutil.copytree(recorded, tmp_path / "copy"))
    file = folder / "searches" / "smoke_search" / "search.json"
    whole = json.loads(file.read_text())
    none: dict[str, Any] = {"evaluations": [], "winner": None, "rank_correlations": [], "finished": 0.0}
    file.write_text(json.dumps({**whole, **none}))
    tell(folder)
    app = opened("search")
    assert not app.exception
    assert [one.value for one in app.code] == [f"robuq search FILE --output {folder}"]
    assert "()" not in words(app)
    assert "No evaluation reached" not in words(app)


@pytest.mark.parametrize("path", PAGES)
def test_a_store_that_goes_away_is_a_message(path: str, recorded: Path, tmp_path: Path, tell: Any) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    tell(folder)
    app = opened(path)
    assert not app.exception
    shutil.rmtree(folder)
    app.run()
    assert not app.exception
    assert "robuq" in words(app)


@pytest.mark.parametrize("path", [path for path in PAGES if path != "search"])
def test_a_damaged_store_is_a_message(path: str, tmp_path: Path, tell: Any) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    tell(tmp_path)
    app = opened(path)
    assert not app.exception
    assert any("cannot be read now" in one.value for one in app.error)


@pytest.mark.parametrize("path", PAGES)
def test_failed_runs_alone(path: str, recorded: Path, plans: Path, tell: Any) -> None:
    tell(recorded, plans / "broken.yaml")
    app = opened(path, plan="broken")
    assert not app.exception
    if path == "sweep":
        assert "minmax W1.58A2 seed 0 failed in" in words(app)
        assert [metric.value for metric in app.metric][:4] == ["0", "1", "0", "0"]
    if path == "leaderboard":
        assert "No run of this plan is finished" in words(app)
        failure = load_runs(sqlite_uri(recorded / "mlflow.db"), "broken")["failure"].iloc[0]
        assert app.dataframe[0].value["failure"].to_list() == [failure]


def test_the_leaderboard_has_the_records_means(recorded: Path, tell: Any) -> None:
    tell(recorded)
    table = opened("leaderboard", plan="tiny").dataframe[0].value
    runs = load_runs(sqlite_uri(recorded / "mlflow.db"), "tiny")
    means = runs.groupby("variant")["held_out_loss"].mean()
    shown = [float(text.partition(" ")[0]) for text in table["Held-out loss ↓"]]
    assert shown == [round(value, 4) for value in sorted(means)]
    assert set(table["n"]) == {"2"}


def test_a_long_plan_is_named_before_its_runs_are_found(recorded: Path, plans: Path, tell: Any) -> None:
    tell(recorded, plans / "tiny.yaml", with_runs=False)
    app = opened("sweep")
    assert not app.exception
    assert app.title[0].value == "Sweep"
    assert any("Two seeds of two variants." in one.value for one in app.caption)
    assert any("runs are being found" in one.value for one in app.info)
    assert opened("leaderboard").selectbox(key="plan").value == "tiny"  # which is watched
    tell(recorded, plans / "tiny.yaml")
    app.run()
    assert not app.info
    assert [metric.value for metric in app.metric][:4] == ["4", "0", "0", "0"]


def test_many_failures_are_counted(recorded: Path, plans: Path, tmp_path: Path, tell: Any) -> None:
    """Spelt out are ten; the table has all."""
    folder = tmp_path / "failures"
    tell(folder, plans / "tiny.yaml")
    file = Path(os.environ["ROBUQ_DASHBOARD"])
    told = json.loads(file.read_text())
    run = told["plans"]["tiny"]["runs"][0]
    own = [{**run, "seed": seed, "stages": {"qat": {"key": f"{seed:016x}"}}} for seed in range(25)]
    file.write_text(json.dumps({**told, "plans": {"tiny": {"description": "", "runs": own}}}))
    for one in own:
        work = folder / "stages" / "qat" / f"{one['stages']['qat']['key']}.work"
        work.mkdir(parents=True)
        (work / "failure.json").write_text(json.dumps({"reason": "diverged", "error": "at step 3"}))
    app = opened("sweep")
    assert [one.value.partition(" failed in qat: ")[2] for one in app.error[:10]] == ["diverged: at step 3"] * 10
    assert [one.value for one in app.error[10:]] == ["and 15 more runs failed"]
    assert len(app.dataframe[0].value) == 25


def test_pickers_promise_no_numbers_that_other_filters_change(recorded: Path, tell: Any) -> None:
    tell(recorded)
    app = opened("leaderboard", plan="tiny")
    protocols = load_runs(sqlite_uri(recorded / "mlflow.db"), "tiny")["protocol"].unique()
    assert app.selectbox(key="protocol").options == list(protocols)


def test_a_link_brings_the_view_back(recorded: Path, tell: Any) -> None:
    tell(recorded)
    app = opened("distributions", plan="tiny")
    app.selectbox(key="layer").select("1.fc2").run()
    app.selectbox(key="grid").select("lloyd_max").run()
    app.selectbox(key="bits").select("3").run()
    link = {name: value if isinstance(value, str) else value[0] for name, value in app.query_params.items()}
    assert link["layer"] == "1.fc2"
    again = opened("distributions", **link)
    assert again.subheader[0].value == app.subheader[0].value
    pd.testing.assert_frame_equal(again.dataframe[0].value, app.dataframe[0].value)
    assert again.dataframe[0].value["levels"].to_list() == [8, 8]


def test_a_link_to_what_is_gone_shows_what_there_is(recorded: Path, tell: Any) -> None:
    tell(recorded)
    app = opened("ablation", plan="no_such_plan", a="nobody", metric="nothing")
    assert not app.exception
    assert "no_such_plan" not in app.query_params["plan"]


def test_the_search_page_names_the_other_pages(recorded: Path, tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the working directory, and with a link to Optuna's where that runs."""
    tell(recorded)
    monkeypatch.chdir(recorded.parent)
    monkeypatch.setattr("analysis.study_page._studies", lambda port: [{"study_name": "smoke_search", "study_id": 7}])
    app = opened("search")
    assert [one.value for one in app.code] == [
        f"optuna-dashboard {recorded.name}/searches/smoke_search/study.journal",
        f"mlflow ui --backend-store-uri sqlite:///{recorded.name}/mlflow.db",
    ]
    links = [one.proto.url for one in app.get("link_button")]
    assert links == ["http://127.0.0.1:8080/dashboard/studies/7"]


def test_the_budget_slider_solves_anew(recorded: Path, tell: Any) -> None:
    tell(recorded)
    app = opened("bits")
    few, many = (app.slider[0].set_value(limit).run().dataframe[0].value for limit in (1.5, 3.5))
    assert (few["cost"] <= 1.5 + 1e-9).all()
    assert (many["cost"] <= 3.5 + 1e-9).all()
    exact = {
        name: table.set_index("allocator").loc["Exact", "damage"] for name, table in (("few", few), ("many", many))
    }
    uniform = few.set_index("allocator").loc["Uniform", "damage"]
    assert exact["many"] <= exact["few"] <= uniform


def test_bit_operations_have_a_picture(recorded: Path, tell: Any) -> None:
    """Whose letters the font has: that it lacks one is a warning, and here an error."""
    tell(recorded)
    app = opened("bits", weights="bops", of="tiny: robuq W1.58A2 seed 0")
    assert not app.exception
    assert app.slider[0].label == "10⁹ bit operations"


def names_of_downloads(app: AppTest) -> set[str]:
    return {button.proto.label for button in app.get("download_button")}


def test_results_are_also_latex_and_pictures_are_png(recorded: Path, tell: Any) -> None:
    tell(recorded)
    assert {"leaderboard.csv", "leaderboard.tex"} <= names_of_downloads(opened("leaderboard", plan="tiny"))
    assert {"differences.tex", "pairs.png"} <= names_of_downloads(opened("ablation", plan="tiny"))
    assert {"budget_summary.tex", "budget_curve.png"} <= names_of_downloads(opened("bits"))
    assert {"grid_errors.tex"} <= names_of_downloads(opened("distributions", plan="tiny", grid="mid_rise"))
    runs = load_runs(sqlite_uri(recorded / "mlflow.db"), "tiny")
    a, b = (key[:8] for key in runs[runs["seed"] == 0].sort_values("variant")["key"])
    assert names_of_downloads(opened("samples", plan="tiny")) == {
        *("samples.csv", "samples.png", f"difference_{a}_{b}.png"),
        *(f"samples_{key}.{form}" for key in (a, b) for form in ("png", "npz")),
    }


def test_a_sweep_under_way(recorded: Path, plans: Path, tmp_path: Path, tell: Any) -> None:
    """As a worker that trains leaves it: a working folder with its progress."""
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    done = sorted((folder / "stages" / "evaluate").iterdir())
    for place in [one for one in done if one.is_dir()]:
        shutil.rmtree(place)
    tell(folder, plans / "tiny.yaml")
    plan = json.loads(Path(os.environ["ROBUQ_DASHBOARD"]).read_text())["plans"]["tiny"]
    work = folder / "stages" / "evaluate" / f"{plan['runs'][0]['stages']['evaluate']['key']}.work"
    work.mkdir()
    (work / "progress.json").write_text(json.dumps({"step": 30, "steps": 40, "steps_per_second": 2.0, "loss": None}))
    app = opened("sweep")
    assert not app.exception
    assert [metric.value for metric in app.metric][:4] == ["0", "0", "1", "3"]
    row = app.dataframe[0].value.iloc[0]
    assert (row["state"], row["stage"], row["progress"], row["left"]) == ("started", "evaluate", 0.75, "5 s")
