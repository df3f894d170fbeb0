"""The commands sensitivity, allocate and search, and what plan, status, report and train have to do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_in_process import Robuq
from toy_search import Interrupted, search_work
from toy_stages import executed

from experiments import cli_runs
from experiments.executors import LocalExecutor
from experiments.output import Output
from robuq.record.mlflow import MlflowRecorder, TrackingUnavailable, connect, read_runs, read_search, sqlite_uri

TINY = """
name: tiny_search
preset: nano
ampn: {budget: {limit: 2.5, weights: layers}}
search:
  space: block
  evaluations: 6
  rungs: [{steps: 0, keep: 0.5}, {steps: 4}]
  confirm_seeds: [1]
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that take no time, whatever executor is asked for."""

    def local(root: Path, device: str = "cpu") -> LocalExecutor:
        root.mkdir(parents=True, exist_ok=True)
        return LocalExecutor(root, device, search_work)

    monkeypatch.setattr("experiments.cli_bits.make_executor", lambda kind, folder, *rest: local(folder.store.root))
    monkeypatch.setattr("experiments.allocation.LocalExecutor", local)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (path := tmp_path / "tiny.yaml").write_text(TINY)
    return path


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["sensitivity", "allocate", "search"])
def test_every_verb_has_an_example(robuq: Robuq, verb: str) -> None:
    code, out, _ = robuq(verb, "--help")
    assert code == 0
    assert f"  robuq {verb}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search"], "Missing argument 'FILE'"),
        (["search", "smok"], "no search 'smok' - did you mean 'smoke'?"),
        (["search", "smoke", "--set", "search.sampler=grid"], "search.sampler: input should be 'tpe'"),
        (["search", "smoke", "--set", "search.evalutions=3"], "did you mean 'evaluations'?"),
        (["search", "smoke", "--set", "ampn.budget.limit=0.5"], "cannot be reached: from 1 to 4 can"),
        (
            ["search", "smoke", "--set", "search.objectives=loss,bops", "--set", "search.budget_range=1,2"],
            "set one rung",
        ),
        (["search", "smoke", "--tracking-uri", "foo://user:secret@host/x"], "foo://***@host/x: foo is none of http, "),
        (["search", "smoke", "--set", "search.storage=study.db"], "search.storage: this is no address of a database"),
        (["search", "smoke", "--set", "search.storage=sqlite://"], "a study in memory goes with the command"),
        (["search", "smoke", "--set", "search.storage=postgresql://u:secret/x"], "storage: postgresql://***: this"),
        (["search", "smoke", "--set", "search.storage=foo://u:secret@host/x"], "search.storage foo://***@host/x: use"),
        (["search", "smoke", "--set", "search.storage=mysql://u:secret@host/x"], "needs the package MySQLdb"),
        (["plan", "searches/smoke", "--set", "search.space=wide"], "search.space: input should be 'policy'"),
        (["allocate", "--preset", "nano", "--budget", "9"], None),
        (["allocate", "--budget", "0.5"], "budget 0.5 mean bits by macs cannot be reached: from 1 to 8 can"),
        (["allocate", "--weights", "cost"], "--weights"),
        (["allocate", "--set", "ampn.budgt.limit=2"], "did you mean 'budget'?"),
        (["sensitivity", "baselin"], "unknown variant 'baselin' - did you mean 'baseline'?"),
        (["sensitivity", "full_precision"], "the precision map leaves those of qkv alone"),
        (["train", "robuq_uniform", "--bits", "/nonexistent.json"], "/nonexistent.json cannot be read"),
        (["report", "searches/smoke"], "nothing is recorded"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_mistakes_are_one_line_and_exit_code_2(
    robuq: Robuq, words: list[str], message: str | None, tmp_path: Path
) -> None:
    code, out, err = robuq(*words, "--output", tmp_path)
    if message is None:  # more than all layers can have is no mistake
        assert code == 0
        return
    assert code == 2
    assert message in err
    assert "secret" not in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


# --- sensitivity and allocation -------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy")
def test_sensitivity_shows_the_table_and_what_it_took(robuq: Robuq, tmp_path: Path) -> None:
    code, out, _ = robuq("sensitivity", "--preset", "nano", "--output", tmp_path)
    lines = out.splitlines()
    assert code == 0
    assert lines[1].split() == ["decision", "1", "bit", "2", "bits", "3", "bits", "4", "bits"]
    assert lines[2].split() == ["0.qkv", "0.75", "0.188", "0.0469", "0.0117"]
    assert any(line.startswith("split_half_spearman:") for line in lines)
    assert lines[-2].endswith(" % of the training that it serves")
    assert Path(lines[-1]).is_file()
    before = executed(tmp_path / "stages")
    data = json.loads(robuq("sensitivity", "--preset", "nano", "--output", tmp_path, "--json")[1])
    assert executed(tmp_path / "stages") == before  # it is kept
    assert len(data["rows"]) == 8 * 4
    assert data["share_of_training"] == pytest.approx(data["seconds"] / data["training_seconds"], rel=1e-3)


@pytest.mark.usefixtures("toy")
def test_allocations_keep_to_the_budget_and_can_be_trained(robuq: Robuq, tmp_path: Path) -> None:
    bits = tmp_path / "bits.json"
    words = ["allocate", "--preset", "nano", "--budget", 2.5, "--weights", "layers", "--output", tmp_path]
    code, out, _ = robuq(*words, "--file", bits)
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[:5]] == ["block", "qkv", "proj", "fc1", "fc2"]
    assert "2.5 of 2.5 mean bits by layers" in out
    assert "exact: proven optimal" in out
    data = json.loads(robuq(*words, "--json")[1])
    assert json.loads(bits.read_text()) == data
    assert sum(data["bits"].values()) / 8 == data["average_bits"]["layers"] == 2.5
    assert data["damage"] < data["uniform"]["damage"]
    greedy = json.loads(robuq(*words, "--allocator", "greedy", "--json")[1])
    assert data["damage"] <= greedy["damage"] <= greedy["uniform"]["damage"]


def test_a_run_takes_its_bits_from_a_file(robuq: Robuq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = {f"transformer_blocks.{block}.{role}": 3 for block in (0, 1) for role in ("qkv", "proj", "fc1", "fc2")}
    (file := tmp_path / "bits.json").write_text(json.dumps({"bits": bits}))
    runs: list[Any] = []

    def launched(name: str, jobs: list[Any], *rest: object) -> None:
        runs.extend(job.run for job in jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_runs, "launched", launched)
    assert robuq("train", "robuq", "--preset", "nano", "--bits", file, "--output", tmp_path)[0] == 130
    assert runs[0].ampn is None
    assert runs[0].allocation.bits == bits


# --- search ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder that the tests below fill one after the other."""
    return tmp_path_factory.mktemp("search")


@pytest.mark.usefixtures("toy")
def test_a_search_from_plan_to_tracking_server(robuq: Robuq, shared: Path, file: Path) -> None:
    plan = json.loads(robuq("plan", file, "--output", shared, "--json")[1])
    assert [(rung["evaluations"], rung["missing"]) for rung in plan["rungs"]] == [(6, 6), (3, 3)]
    assert plan["seconds"] > 0
    assert json.loads(robuq("status", file, "--output", shared, "--json")[1])["state"] == "not begun"

    code, out, err = robuq("search", file, "--output", shared)
    assert (code, err) == (0, "")
    assert "Search of `block` by `tpe` on digits: 6 evaluations" in out
    assert f"study: optuna-dashboard {shared}/searches/tiny_search/study.journal" in out
    assert out.splitlines()[-1] == f"next: robuq report {file} --output {shared}"

    uri = sqlite_uri(shared / "mlflow.db")
    record = read_search(uri, "tiny_search")
    assert record == Output(shared).search("tiny_search")
    assert {run.key for run in read_runs(uri, "tiny_search")} == {k for row in record.confirmed.values() for k in row}


@pytest.mark.usefixtures("toy")
def test_the_same_search_again_sends_and_executes_nothing(robuq: Robuq, shared: Path, file: Path) -> None:
    uri, before = sqlite_uri(shared / "mlflow.db"), executed(shared / "stages")
    runs = [run.to_dictionary() for run in all_runs(uri)]
    assert robuq("search", file, "--output", shared)[0] == 0
    assert executed(shared / "stages") == before
    assert [run.to_dictionary() for run in all_runs(uri)] == runs


def all_runs(uri: str) -> list[Any]:
    client = connect(uri)
    return list(client.search_runs([client.get_experiment_by_name("tiny_search").experiment_id], run_view_type=3))


@pytest.mark.usefixtures("toy")
def test_status_and_plan_know_what_is_done(robuq: Robuq, shared: Path, file: Path) -> None:
    code, out, _ = robuq("status", file, "--output", shared)
    assert code == 0
    assert "tiny_search: finished, 6 of 6 evaluations; confirmation: " in out.splitlines()[-1]
    data = json.loads(robuq("status", file, "--output", shared, "--json")[1])
    assert data["evaluations"][0]["source"] == "uniform"
    assert {run["state"] for run in data["runs"]} == {"finished"}
    out = robuq("plan", file, "--output", shared)[1]
    assert out.splitlines()[-1].startswith("what is missing takes about ")


def elsewhere(shared: Path, name: str) -> list[str]:
    """Another experiment in the store that is there already: a new one takes seconds."""
    return ["--set", f"name={name}", "--tracking-uri", sqlite_uri(shared / "mlflow.db")]


@pytest.mark.usefixtures("toy")
def test_an_interrupted_search_says_how_to_go_on(
    robuq: Robuq, file: Path, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["search", file, *elsewhere(shared, "interrupted"), "--output", tmp_path / "out"]
    root = tmp_path / "out" / "stages"
    root.mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr("experiments.cli_bits.make_executor", lambda *given: Interrupted(root, 14))
        code, _, err = robuq(*words)
    assert (code, err) == (130, "robuq: interrupted; the same command continues where it was\n")
    status = robuq("status", file, "--set", "name=interrupted", "--output", tmp_path / "out", "--json")[1]
    assert json.loads(status)["state"] == "under way"
    assert robuq(*words)[0] == 0


@pytest.mark.usefixtures("toy")
def test_a_record_waits_for_a_server_that_is_away(
    robuq: Robuq, file: Path, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["search", file, *elsewhere(shared, "waiting"), "--output", tmp_path]

    def away(self: MlflowRecorder, record: object) -> str:
        raise TrackingUnavailable("http://host", "down")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowRecorder, "record_search", away)
        code, _, err = robuq(*words)
    assert code == 0
    assert err == (
        "records wait on the disk: tracking server http://host is not available (down); the same command sends them\n"
    )
    record = Output(tmp_path).search("waiting")
    assert record is not None
    assert robuq(*words)[2] == ""
    assert read_search(sqlite_uri(shared / "mlflow.db"), "waiting") == record


@pytest.mark.slow
def test_a_search_on_real_networks(robuq: Robuq, tmp_path: Path, shared: Path) -> None:
    """The packaged smoke search, shorter, in this process."""
    short = ["--set", "search.evaluations=4", "--set", "search.confirm_seeds=[]", "--set", "pretrain.steps=3"]
    words = ["search", "smoke", *short, *elsewhere(shared, "real"), "--output", tmp_path, "--executor", "local"]
    code, _, err = robuq(*words)
    assert (code, err) == (0, "")
    record = Output(tmp_path).search("real")
    assert record is not None
    assert len(record.evaluations) == 4
    assert record.winner is not None
    assert all(0 < value < 5 for evaluation in record.evaluations for value in evaluation.values.values())
