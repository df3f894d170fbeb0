"""The command: exit codes, one line for every mistake, and the whole path from plan to report on tiny networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_in_process import Robuq
from PIL import Image

from experiments import cli
from robuq.record.mlflow import MlflowRecorder, TrackingUnavailable, connect, read_runs, sqlite_uri
from robuq.variants import VARIANTS

TINY = "name: tiny\npreset: nano\ngrid: {variant: [full_precision, baseline]}\nseeds: [0]\npretrain_seeds: [0]\n"


# --- without running anything ---------------------------------------------------------------------------------


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['robuq', '--help']; import experiments.cli as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pandas', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in ("plan", "sweep", "status", "train", "evaluate", "sample", "reproduce", "report", "variants"):
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize("verb", ["plan", "sweep", "status", "train", "evaluate", "sample", "reproduce", "report"])
def test_every_verb_has_an_example(robuq: Robuq, verb: str) -> None:
    code, out, _ = robuq(verb, "--help")
    assert code == 0
    assert f"  robuq {verb} " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swep"], "No such command 'swep'. Did you mean 'sweep'?"),
        (["plan"], "Missing argument 'FILE'"),
        (["plan", "smokee"], "no plan 'smokee' - did you mean 'smoke'?"),
        (["plan", "smoke", "--sett", "a=1"], "No such option: --sett"),
        (["plan", "smoke", "--set", "train.stepz=1"], "did you mean 'steps'?"),
        (["plan", "smoke", "--set", "seeds"], "write NAME=VALUE"),
        (["plan", "smoke", "--workers", "0"], "--workers"),
        (["sweep", "smoke", "--executor", "slurm"], "--executor"),
        (["train", "robuq_unform"], "unknown variant 'robuq_unform' - did you mean 'robuq_uniform'?"),
        (["train", "baseline", "--act-bits", "9"], "--act-bits"),
        (["evaluate", "zz", "--output", "/nonexistent"], "no run 'zz'"),
        (["reproduce", "zz", "--output", "/nonexistent"], "no run 'zz'"),
        (["sample", "zz", "--output", "/nonexistent"], "no run 'zz'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(robuq: Robuq, words: list[str], message: str) -> None:
    code, out, err = robuq(*words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["robuq", "variants"])
    monkeypatch.setattr("robuq.variants.VARIANTS", None)
    with pytest.raises(AttributeError, match="items"):
        cli.main()


def test_an_interrupt_is_exit_code_130_and_says_how_to_go_on(robuq: Robuq, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.plan.load_plan", interrupt)
    code, _, err = robuq("plan", "smoke")
    assert code == 130
    assert err == "robuq: interrupted; the same command continues where it was\n"


def test_variants_lists_every_recipe_with_what_it_does(robuq: Robuq) -> None:
    code, out, _ = robuq("variants")
    assert code == 0
    rows = dict(line.split(None, 1) for line in out.splitlines())
    assert set(rows) == set(VARIANTS)
    assert rows["robuq_uniform"] == "RobuQ with one activation width everywhere (without AMPN)."


def test_plan_shows_what_is_shared(robuq: Robuq, tmp_path: Path) -> None:
    code, out, _ = robuq("plan", "digits_components", "--set", "seeds=0,1", "--json", "--output", tmp_path)
    data = json.loads(out)
    assert code == 0
    assert len(data["runs"]) == 42  # (5 variants x 3 widths + 2 at one width + 4 without a width) x 2 seeds
    assert data["stages"]["qat"] == {"distinct": 42, "of": 42, "missing": 42}
    assert data["stages"]["full_precision"] == {"distinct": 2, "of": 42, "missing": 2}  # one for each seed
    assert data["stages"]["features"] == {"distinct": 1, "of": 42, "missing": 1}
    assert data["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_plan_for_people_ends_with_the_time(robuq: Robuq, tmp_path: Path) -> None:
    code, out, _ = robuq("plan", "smoke", "--output", tmp_path)
    assert code == 0
    assert "robuq_uniform" in out
    assert out.splitlines()[-1].startswith("8 runs; what is missing takes about ")


# --- the whole path -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plan file, and an output folder that the tests below fill one after the other."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY)
    return folder / "tiny.yaml", folder / "results"


def stage_states(output: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in (output / "stages").glob("*/*/result.json")}


def test_sweep_runs_everything_once(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    plan, output = tiny
    code, out, err = robuq("sweep", plan, "--executor", "local", "--output", output)
    assert code == 0, err
    assert "2 of 2 runs finished" in out
    before = stage_states(output)
    assert len(before) == 1 + 1 + 2 + 2  # features, pre-training, and two runs' own stages
    code, out, _ = robuq("sweep", plan, "--output", output)
    assert code == 0
    assert stage_states(output) == before


def test_status_knows_what_is_finished(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    plan, output = tiny
    code, out, _ = robuq("status", plan, "--output", output, "--set", "seeds=0,1", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["counts"] == {"finished": 2, "waiting": 2}
    assert [run["recorded"] for run in data["runs"]] == [True, True, False, False]
    assert "4 runs: 2 finished, 2 waiting" in robuq("status", plan, "--output", output, "--set", "seeds=0,1")[1]


@pytest.mark.slow
def test_a_seed_added_on_ray_is_reproduced_bit_for_bit_without_it(
    robuq: Robuq, tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 lets the tests of other processes starve its worker
    plan, output = tiny
    before = stage_states(output)
    code, out, err = robuq("sweep", plan, "--output", output, "--set", "seeds=0,1", "--workers", 1)
    assert code == 0, err
    after = stage_states(output)
    assert {file: time for file, time in after.items() if file in before} == before
    assert len(after) == len(before) + 4
    code, out, err = robuq("reproduce", "baseline/1", "--output", output)
    assert code == 0, out + err
    assert "are equal" in out
    assert stage_states(output) == after
    assert list(output.glob("reproduce-*")) == []


def test_reproduce_shows_what_differs(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    _, output = tiny
    (file,) = (f for f in (output / "runs").glob("tiny/*.json") if _is(f, "full_precision", 0))
    record = json.loads(file.read_text())
    right = record["metrics"]["held_out_loss"]
    file.write_text(json.dumps({**record, "metrics": {**record["metrics"], "held_out_loss": np.nextafter(right, 9)}}))
    code, out, _ = robuq("reproduce", record["key"][:10], "--output", output)
    file.write_text(json.dumps(record))
    assert code == 1
    assert out.splitlines()[-1] == f"held_out_loss: recorded {np.nextafter(right, 9)!s}, now {right!r}"


def _is(file: Path, variant: str, seed: int) -> bool:
    record: dict[str, Any] = json.loads(file.read_text())
    return (record["variant"], record["seed"]) == (variant, seed)


def test_evaluate_judges_anew_without_training(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    _, output = tiny
    before = stage_states(output)
    code, out, _ = robuq("evaluate", "baseline/0", "--output", output, "--json")
    assert code == 0
    assert stage_states(output) == before
    recorded = json.loads(out)
    code, out, _ = robuq("evaluate", "baseline/0", "--output", output, "--set", "evaluation.loss.seed=1", "--json")
    new = [Path(file).parent.parent.name for file in stage_states(output).keys() - before.keys()]
    assert new == ["evaluate"]
    assert json.loads(out)["held_out_loss"] != recorded["held_out_loss"]
    code, _, err = robuq("evaluate", "baseline/0", "--output", output, "--set", "train.steps=3")
    assert code == 2
    assert "evaluate changes evaluation.* only" in err


def test_sample_writes_a_picture_and_equal_seeds_equal_noise(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    _, output = tiny
    pictures = []
    for run, seed in (("baseline/0", 3), ("baseline/0", 3), ("baseline/0", 4)):
        code, out, _ = robuq("sample", run, "--output", output, "--num-images", 7, "--columns", 4, "--seed", seed)
        assert code == 0
        with Image.open(out.strip()) as picture:
            pictures.append(np.asarray(picture))
    zoom = 6  # 8-pixel images are shown at 48
    assert pictures[0].shape == (zoom * (2 * 9 + 1), zoom * (4 * 9 + 1))
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_report_lists_its_files(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    plan, output = tiny
    code, out, err = robuq("report", plan, "--output", output)
    assert code == 0, err
    files = [Path(line) for line in out.splitlines()]
    assert files[0] == output.resolve() / "reports" / "tiny" / "report.md"
    assert all(file.is_file() for file in files)
    assert "baseline" in files[0].read_text()


def report_runs(output: Path) -> list[Any]:
    client = connect(sqlite_uri(output / "mlflow.db"))
    experiment = client.get_experiment_by_name("tiny").experiment_id
    return list(client.search_runs([experiment], "tags.`robuq.report` = 'tiny'"))


def test_a_report_is_kept_once_beside_the_runs_it_is_of(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    plan, output = tiny
    uri = sqlite_uri(output / "mlflow.db")
    recorded = read_runs(uri, "tiny")
    for _ in range(2):
        code, out, err = robuq("report", plan, "--output", output)
        assert (code, err) == (0, "")
    (run,) = report_runs(output)
    kept = {file.path for file in connect(uri).list_artifacts(run.info.run_id, "report")}
    assert kept == {f"report/{Path(line).name}" for line in out.splitlines()}
    assert read_runs(uri, "tiny") == recorded


def test_a_report_that_the_server_cannot_keep_lies_on_the_disk(
    robuq: Robuq, tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes away between reading the runs and sending the report."""
    plan, output = tiny
    before = [run.to_dictionary() for run in report_runs(output)]

    def away(*given: object) -> None:
        raise TrackingUnavailable("http://user:hunter2@host", "gone")

    monkeypatch.setattr(MlflowRecorder, "attach_report", away)
    code, out, err = robuq("report", plan, "--output", output)
    assert code == 0
    assert Path(out.splitlines()[0]).name == "report.md"
    assert err.startswith("the report lies on the disk only: tracking server http://***@host is not available (gone)")
    assert len(err.splitlines()) == 1
    assert [run.to_dictionary() for run in report_runs(output)] == before


def test_report_of_what_was_never_run_is_one_line(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    plan, output = tiny
    code, _, err = robuq("report", plan, "--output", output, "--set", "train.steps=5")
    assert code == 2
    assert "none of the plan's 2 runs is recorded" in err


def test_train_prints_metrics_and_a_key_that_works(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    _, output = tiny
    code, out, err = robuq("train", "minmax", "--preset", "nano", "--set", "train.steps=2", "--output", output)
    assert code == 0, err
    key = out.splitlines()[-1].removeprefix("run ")
    assert any(line.startswith("held_out_loss ") for line in out.splitlines())
    assert robuq("evaluate", key, "--output", output)[0] == 0


def test_a_failed_run_is_exit_code_1_with_its_reason(robuq: Robuq, tiny: tuple[Path, Path]) -> None:
    plan, output = tiny
    words = ["--set", "train.lr=1", "--set", "train.clip_norm=1e30", "--set", "grid.variant=minmax"]
    code, out, err = robuq("sweep", plan, "--executor", "local", "--output", output, *words, "--set", "data.limit=3")
    assert code == 1
    assert "0 of 1 runs finished" in out
    assert err.splitlines()[-1].startswith("failed: minmax W1.58A2 seed 0: ")
    data = json.loads(robuq("status", plan, "--output", output, *words, "--set", "data.limit=3", "--json")[1])
    assert data["counts"] == {"failed": 1}
    assert data["runs"][0]["failure"]
