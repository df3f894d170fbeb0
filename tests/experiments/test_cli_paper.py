"""The verbs of the paper's artefacts, from a sweep on tiny networks to the runs behind a cell."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_in_process import Robuq

from analysis.figures import convergence
from analysis.paper import ARTEFACTS

TINY = (  # two runs of the main plan
    *("preset=nano", "base.pretrain.steps=4", "base.train.steps=2", "base.train.telemetry_every=0"),
    *("grid.variant=baseline,robuq_uniform", "act_bits=2", "include=[]", "seeds=0"),
)
SETTINGS = [word for setting in TINY for word in ("--set", setting)]
VERBS = ("paper", "table", "figure", "provenance")


@pytest.fixture(autouse=True)
def few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each point of a computed figure."""
    monkeypatch.setattr(convergence, "VALUES", convergence.VALUES // 64)


# --- without any run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(robuq: Robuq, verb: str) -> None:
    code, out, _ = robuq(verb, "--help")
    assert code == 0
    assert f"  robuq {verb}" in out


@pytest.mark.parametrize("kind", ["table", "figure"])
def test_without_an_id_they_are_listed(robuq: Robuq, kind: str, tmp_path: Path) -> None:
    code, out, err = robuq(kind, "--output", tmp_path / "none")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [a.id for a in ARTEFACTS.values() if a.kind == kind]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table", "mainn"], "no artefact 'mainn'"),
        (["table", "component"], "no artefact 'component' - did you mean 'components'?"),
        (["figure", "figure3"], "no artefact 'figure3' - did you mean 'figure2'?"),
        (["table", "figure2"], "figure2 is a figure: robuq figure figure2"),
        (["figure", "components"], "components is a table: robuq table components"),
        (["table", "components", "--set", "train.stepz=1"], "did you mean 'steps'?"),
        (["table", "components", "--set", "seeds"], "write NAME=VALUE"),
        (["table", "components", "--tracking-uri", "ftp://user:hunter2@host"], "***@host"),
        (["paper", "components"], "unexpected extra argument"),
        (["paper", "--chek"], "No such option: --chek"),
        (["provenance"], "Missing argument 'FILE'"),
        (["provenance", "gone.md"], "no file gone.md"),
        (["provenance", "pyproject.toml"], "no manifest.json beside pyproject.toml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    robuq: Robuq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    code, out, err = robuq(*words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert [file.name for file in tmp_path.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("words", [["paper"], ["table", "components"], ["figure", "figure2"]])
def test_an_output_that_is_a_file(robuq: Robuq, tmp_path: Path, words: list[str]) -> None:
    (taken := tmp_path / "taken").write_text("mine")
    code, out, err = robuq(*words, "--output", taken)
    assert (code, out) == (2, "")
    assert err.startswith(f"robuq: cannot write to {taken} (")
    assert len(err.splitlines()) == 1
    assert taken.read_text() == "mine"


def test_a_table_that_no_run_feeds_names_the_command(robuq: Robuq, tmp_path: Path) -> None:
    code, out, err = robuq("table", "components", "--output", tmp_path)
    assert code == 0
    assert [Path(line).name for line in out.splitlines()] == ["paper.md", "manifest.json"]
    assert err.splitlines() == [
        line
        for plan in ("paper_components", "paper_components_fashion")
        for line in err.splitlines()
        if line.startswith(f"missing: components: {plan}: 0 of ") and line.endswith(f": robuq sweep {plan}")
    ]
    assert len(err.splitlines()) == 2


# --- the whole path -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Filled by the first of the tests below."""
    return tmp_path_factory.mktemp("paper") / "results"


def test_sweep_then_paper(robuq: Robuq, output: Path) -> None:
    code, _, err = robuq("sweep", "paper_main", "--executor", "local", "--output", output, *SETTINGS)
    assert code == 0, err
    code, out, err = robuq("paper", "--check", "--output", output, *SETTINGS)
    assert code == 0, err
    made = {file.name for file in (output / "paper").iterdir()}
    names = {"main_conditional", "figure2", "samples", "distributions", "curves", "weights", "central_limit", "tokens"}
    assert made >= {f"{name}_digits.csv" for name in names} | {"cost.tex", "paper.md", "check.md", "manifest.json"}
    assert not any("paper_main: " in line for line in err.splitlines())  # nothing of it is missing
    assert any(line.endswith("robuq sweep paper_warm_up") for line in err.splitlines())
    assert f"{output.resolve() / 'paper' / 'check.csv'}" in out
    assert "| other data and metric: no difference |" in out


def test_one_table_has_a_folder_of_its_own(robuq: Robuq, output: Path) -> None:
    code, out, err = robuq("table", "main_conditional", "--output", output, *SETTINGS)
    assert code == 0, err
    files = [Path(line) for line in out.splitlines()]
    assert {file.parent for file in files} == {output.resolve() / "paper" / "main_conditional"}
    assert all(file.is_file() for file in files)
    text = (output / "paper" / "main_conditional" / "main_conditional_digits.md").read_text()
    assert "| RobuQ without AMPN | W1.58A2 |" in text


def test_one_figure(robuq: Robuq, output: Path) -> None:
    code, out, _ = robuq("figure", "kl_by_depth", "--output", output, *SETTINGS)
    assert code == 0
    assert {"kl_by_depth_digits.pdf", "kl_by_depth_digits.png"} <= {Path(line).name for line in out.splitlines()}


def test_provenance_leads_from_a_cell_to_the_run(robuq: Robuq, output: Path) -> None:
    table = output / "paper" / "main_conditional_digits.csv"
    words = ("--row", "robuq_uniform", "--column", "fd_classifier", "--output", output)
    code, out, err = robuq("provenance", table, *words)
    assert (code, err) == (0, "")
    (key,) = set(re.findall(r"fd_classifier\]: (\w+)", out))
    record = json.loads(next((output / "runs" / "paper_main").glob(f"{key}*.json")).read_text())
    assert (record["key"], record["variant"]) == (key, "robuq_uniform")
    assert "  train.steps: 2" in out
    code, out, err = robuq("provenance", table, "--row", "nobody", "--output", output)
    assert (code, out) == (2, "")
    assert "has no cell nobody, any: rows are " in err
    assert len(err.splitlines()) == 1


def test_other_settings_are_other_runs(robuq: Robuq, output: Path) -> None:
    code, out, err = robuq("table", "main_conditional", "--output", output, *SETTINGS, "--set", "train.steps=9")
    assert code == 0
    assert not any("main_conditional_digits" in line for line in out.splitlines())
    assert "main_conditional: paper_main: 0 of 2 runs are recorded: robuq sweep paper_main" in err
