"""Names that come out of files lead nowhere but into the folder they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.output import Output
from experiments.plan import build_plan, single_run
from experiments.search_file import build_search
from robuq.config import ConfigError, ModelConfig
from robuq.models import build_dit, load_dit, save_dit
from robuq.models.dit_files import WEIGHTS
from robuq.record.artifact_files import write_artifact_files
from robuq.record.run_record import RunRecord

OUTSIDE = ("../x", "/tmp/x", "a/../../x", "..", ".", "", "a\\x", "..\\x", "x\x00", "a\nb")
RECORD: dict[str, Any] = {
    "plan": "p",
    "key": "k",
    "variant": "v",
    "label": "l",
    "act_bits": None,
    "seed": 0,
    "pretrain_seed": 0,
    "status": "finished",
    "protocol": "x",
    "dataset": "digits",
    "config": {},
    "stages": {"qat": "0123"},
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["plan", "key", "stages", "artifacts"])
def test_records_name_files_and_folders_of_their_own(field: str, name: str) -> None:
    changed = {"stages": {"qat": name}, "artifacts": {name: "/etc/hostname"}}.get(field, name)
    with pytest.raises(ConfigError, match=r"leads elsewhere|not shown"):
        RunRecord.parse({**RECORD, field: changed})


def test_artefacts_may_lie_deeper(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("content")
    record = RunRecord.parse({**RECORD, "artifacts": {"report/a.txt": str(tmp_path / "source")}})
    (tmp_path / "files").mkdir()
    write_artifact_files(record, tmp_path / "files")
    assert (tmp_path / "files" / "report" / "a.txt").read_text() == "content"


@pytest.mark.parametrize("name", [*OUTSIDE, "a/b", "-a", "é", "a" * 65])
def test_plans_and_searches_have_names_that_are_folders(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        build_plan({"name": name, "preset": "nano", "base": {"variant": "minmax"}})
    with pytest.raises(ConfigError, match="name"):
        build_search({"name": name, "preset": "nano", "search": {}})


@pytest.mark.parametrize("name", ["../stolen.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "x.bin", 3])
def test_an_index_of_weights_names_files_beside_it(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "model"
    save_dit(build_dit(ModelConfig(width=8, num_layers=1, num_heads=1), 0), folder)
    whole = folder / f"{WEIGHTS}.safetensors"
    for place in (tmp_path / "stolen.safetensors", folder / "x.bin"):
        place.write_bytes(whole.read_bytes())
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="index"):
        load_dit(folder)


def test_a_record_on_the_disk_cannot_lead_a_command_elsewhere(tmp_path: Path) -> None:
    """`robuq sample` loads the network that a record names."""
    run = single_run("minmax", 2, "nano", 0, {})
    record = {**RECORD, "config": run.model_dump(mode="json"), "stages": {"qat": "../../../elsewhere"}}
    (tmp_path / "runs" / "p").mkdir(parents=True)
    (tmp_path / "runs" / "p" / "k.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="leads elsewhere"):
        Output(tmp_path).find("v/0")
