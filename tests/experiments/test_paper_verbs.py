from __future__ import annotations

from pathlib import Path

import pytest
from command_in_process import finished_record

from analysis.figures import convergence
from experiments.output import Output
from experiments.paper import artefact_lines, check_paper, missing_lines, provenance_of, recorded, write_paper
from experiments.plan import load_plan
from robuq.config import ConfigError
from robuq.record.mlflow import MlflowRecorder

SMALL = ["seeds=0", "act_bits=2"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """A store with two rows of paper_unconditional, at the settings of `SMALL`, and one run of other settings."""
    output = Output(tmp_path_factory.mktemp("out"))
    recorder = MlflowRecorder(output.tracking_uri(), output.folder / "artifacts")
    wanted = [
        run for run in load_plan("paper_unconditional", SMALL).runs if run.variant in ("baseline", "robuq_uniform")
    ]
    other = load_plan("paper_unconditional", [*SMALL, "train.steps=50"]).runs[0]
    for place, run in enumerate([*wanted, other]):
        record = finished_record(run, "paper_unconditional", metrics={"held_out_loss": 0.1 + 0.01 * place})
        output.save(record)
        recorder.record(record)
    return output


def test_runs_of_other_settings_are_left_out(output: Output) -> None:
    found = recorded(output, output.tracking_uri(), ["main_unconditional"], SMALL)
    assert {record.variant for record in found.plans["paper_unconditional"]} == {"baseline", "robuq_uniform"}
    assert found.planned["paper_unconditional"] == 4
    assert found.plans["paper_unconditional_fashion"] == []


def test_write_check_and_provenance(output: Output, tmp_path: Path) -> None:
    built = write_paper(output, output.tracking_uri(), ["main_unconditional", "cost"], SMALL, tmp_path)
    assert set(built.products) == {"main_unconditional_digits", "cost"}
    lines = missing_lines(built)
    assert lines[0] == (
        "in part: main_unconditional: paper_unconditional: 2 of 4 runs are recorded: robuq sweep paper_unconditional"
    )
    text, files = check_paper(built, tmp_path)
    assert "same network" in text
    assert [file.name for file in files] == ["check.md", "check.csv"]
    shown = provenance_of(tmp_path / "main_unconditional_digits.md", output, "baseline")
    assert any("model.num_classes: 0" in line for line in shown)


def test_nothing_recorded_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "VALUES", convergence.VALUES // 64)  # of each point of a computed figure
    output = Output(tmp_path / "new")
    built = write_paper(output, output.tracking_uri())
    assert set(built.products) == {"cost", "central_limit"}
    assert not output.tracking_file.exists()


def test_mistakes_are_one_line(output: Output, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no artefact 'figure3' - did you mean 'figure2'\?"):
        write_paper(output, output.tracking_uri(), ["figure3"])
    with pytest.raises(ConfigError, match="no file"):
        provenance_of(tmp_path / "gone.md", output)


def test_every_artefact_is_listed() -> None:
    assert any(line.startswith("figure2") for line in artefact_lines())
