"""What a person gets wrong: each mistake is one line that says what to do, exit code 2, and nothing was done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from command_in_process import Complaint

from experiments import cli
from experiments.cli_options import command_line
from experiments.executors import check_device
from robuq.config import ConfigError

NO_GPU = f"cuda:{torch.cuda.device_count()}"  # one more than there are


def test_without_arguments_it_shows_its_help(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["robuq"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert "\n    robuq sweep smoke " in out


# --- folders and files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "smoke", "--executor", "local"],
        ["sweep", "smoke"],
        ["train", "baseline", "--preset", "nano"],
    ],
)
def test_an_output_that_is_a_file(complaint: Complaint, tmp_path: Path, words: list[str]) -> None:
    (taken := tmp_path / "taken").write_text("mine")
    assert complaint(*words, "--output", taken).startswith(f"cannot write to {taken} (")
    assert complaint(*words, "--output", taken / "below").startswith(f"cannot write to {taken / 'below'} (")
    assert taken.read_text() == "mine"


def test_a_report_of_nothing_makes_nothing(complaint: Complaint, tmp_path: Path) -> None:
    said = complaint("report", "smoke", "--output", tmp_path / "none")
    assert said == f"nothing is recorded in {tmp_path / 'none'} yet: robuq sweep smoke"
    assert not (tmp_path / "none").exists()


def test_a_plan_that_is_no_text(complaint: Complaint, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\x00")
    assert complaint("plan", tmp_path / "plan.yaml").startswith("plan.yaml: cannot be read")


@pytest.mark.parametrize("verb", ["plan", "sweep", "status"])
def test_fashion_mnist_that_is_not_there(complaint: Complaint, tmp_path: Path, verb: str) -> None:
    said = complaint(verb, "fashion_components", "--set", f"data.path={tmp_path}", "--output", tmp_path / "out")
    assert f"in {tmp_path}: run `apt-get install dataset-fashion-mnist`, or set data.path" in said


# --- devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["banana", "cuda:", "cuda:x", "cuda:-1", "cpu:one", "cuda:0:0", ""])
def test_devices_that_do_not_exist(device: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown device .*: cpu, cuda, or a certain GPU such as cuda:1"):
        check_device(device)


def test_devices_that_are_there() -> None:
    check_device("cpu")
    for index in range(torch.cuda.device_count()):
        check_device(f"cuda:{index}")


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "smoke", "--executor", "local"],
        ["sweep", "smoke"],
        ["train", "baseline", "--preset", "nano"],
        ["evaluate", "baseline/0", "--set", "evaluation.sample.steps=4"],
        ["sample", "baseline/0"],
    ],
)
def test_a_gpu_that_is_not_there(complaint: Complaint, results: Path, words: list[str]) -> None:
    said = complaint(*words, "--device", NO_GPU, "--output", results)
    assert said.startswith(f"no device {NO_GPU!r}: PyTorch sees {torch.cuda.device_count()} GPUs")
    assert not list((results / "stages").glob("*/*"))


# --- single runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["act_bits=3,4", "seeds=0,1", "train.lr=1e-3,2e-3"])
def test_train_makes_one_run(complaint: Complaint, tmp_path: Path, setting: str) -> None:
    said = complaint("train", "minmax", "--preset", "nano", "--set", setting, "--output", tmp_path / "out")
    assert said == "these settings make 2 runs, not one: give one value each, or write a plan"
    assert not (tmp_path / "out").exists()


def test_more_sampler_steps_than_there_are(complaint: Complaint, results: Path) -> None:
    assert complaint("sample", "baseline/0", "--steps", 5000, "--output", results).startswith("steps=5000: at most")


def test_a_network_that_is_gone(complaint: Complaint, results: Path) -> None:
    said = complaint("sample", "baseline/0", "--output", results)
    assert said.endswith(f"is not in {results}: sweep or train again")


def test_an_ambiguous_run_names_the_choices(complaint: Complaint, results: Path) -> None:
    file = next(results.glob("runs/p/*.json"))
    other = json.loads(file.read_text()) | {"key": "f" * 16, "label": "W1.58A4"}
    file.with_name(f"{'f' * 16}.json").write_text(json.dumps(other))
    said = complaint("evaluate", "baseline/0", "--output", results)
    assert said.startswith("'baseline/0' fits 2 runs: ")
    assert "baseline/W1.58A4/0" in said


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    from experiments.one_run import write_png

    with pytest.raises(ConfigError, match=r"cannot write .* choose another --file"):
        write_png(torch.zeros(2, 1, 8, 8), tmp_path, 2)  # a folder


def test_the_next_command_reports_the_same_runs_and_keeps_secrets() -> None:
    settings = ["seeds=0,1,2", "name=two words"]
    said = command_line("report", "smoke", Path("out"), settings, "http://user:secret@host")
    assert said == "robuq report smoke --output out --set seeds=0,1,2 --set 'name=two words' --tracking-uri URI"
