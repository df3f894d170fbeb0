"""Output folders and files to write that are not what a command needs: one line, exit code 2, and nothing was done."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_in_process import Complaint, Robuq

from experiments.allocation import check_bits_file
from experiments.cli_launch import say_what_is_away
from experiments.one_run import check_picture, write_png
from experiments.output import Output
from experiments.plan import single_run
from robuq.config import ConfigError
from robuq.record.mlflow import sqlite_uri
from robuq.stages import write_json

REMEDY = "move it away, or choose another --output"
SWEEP = ("sweep", "smoke", "--executor", "local")
VERBS = [  # that read, and that write
    ("plan", "smoke"),
    SWEEP,
    ("status", "smoke"),
    ("report", "smoke"),
    ("train", "baseline", "--preset", "nano"),
    ("evaluate", "baseline/0"),
    ("sample", "baseline/0"),
    ("reproduce", "baseline/0"),
    ("sensitivity", "--preset", "nano"),
    ("allocate", "--preset", "nano"),
    ("search", "smoke", "--executor", "local"),
    ("status", "searches/smoke"),
    ("doctor",),
    ("paper",),
    ("figure", "figure2"),
    ("provenance", "file.csv"),
]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_command_says_what_is_in_the_way(complaint: Complaint, tmp_path: Path, words: tuple[str, ...]) -> None:
    (taken := tmp_path / "taken").write_text("mine")
    (odd := tmp_path / "odd").mkdir()
    (odd / "runs").write_text("mine")
    before = files_of(tmp_path)
    for folder in (taken, taken / "below"):
        said = f"cannot write to {folder} ({taken} is no folder): choose another --output"
        assert complaint(*words, "--output", folder) == said
    assert complaint(*words, "--output", odd) == f"cannot use {odd / 'runs'} (it is no folder): {REMEDY}"
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "part", ["stages", "stages/qat", "stages/quarantine", "searches", "artifacts", "reports", "paper", "samples"]
)
def test_files_where_folders_are_needed(tmp_path: Path, part: str) -> None:
    (tmp_path / part).parent.mkdir(exist_ok=True)
    (tmp_path / part).write_text("mine")
    with pytest.raises(ConfigError, match=f"cannot use {tmp_path / part} .it is no folder.: {REMEDY}"):
        Output(tmp_path)


@pytest.mark.parametrize("part", ["sweep.lock", "mlflow.db", "stages/.workers.lock"])
def test_folders_where_files_are_needed(tmp_path: Path, part: str) -> None:
    (tmp_path / part).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"cannot use {tmp_path / part} .it is no file.: {REMEDY}"):
        Output(tmp_path)


def test_links_to_what_is_needed_are_fine(tmp_path: Path) -> None:
    for name in ("stages", "runs"):
        (tmp_path / f"real_{name}").mkdir()
        (tmp_path / name).symlink_to(tmp_path / f"real_{name}")
    Output(tmp_path)
    (tmp_path / "real_runs").rmdir()  # as a disk that is not mounted
    with pytest.raises(ConfigError, match=r"runs \(it is no folder\)"):
        Output(tmp_path)


def test_a_plan_whose_records_would_have_no_folder_is_not_begun(complaint: Complaint, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smoke").write_text("mine")
    assert (
        complaint(*SWEEP, "--output", tmp_path)
        == f"cannot use {tmp_path / 'runs' / 'smoke'} (it is no folder): {REMEDY}"
    )
    assert files_of(tmp_path) == [tmp_path / "runs", tmp_path / "runs" / "smoke"]


def test_what_is_found_in_the_way_later_is_one_line_too(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    (taken := output.folder / "runs" / "p" / "a.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"cannot use {taken} .Is a directory.: {REMEDY}"), output.sweeping():
        write_json(taken, {})
    with pytest.raises(FileExistsError), output.sweeping():  # not of the folder: a bug
        tmp_path.mkdir()


# --- tracking stores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("report", "smoke"), ("report", "searches/smoke"), ("paper",)], ids=" ".join)
def test_commands_that_read_make_no_store(complaint: Complaint, results: Path, words: tuple[str, ...]) -> None:
    before, uri = files_of(results), sqlite_uri(results / "nowhere" / "x.db")
    said = complaint(*words, "--output", results, "--tracking-uri", uri)
    assert f"{uri} is not available (there is no such file: the commands that record make it)" in said
    assert files_of(results) == before


def test_the_doctor_says_of_a_store_that_is_not_there_only_that(robuq: Robuq, results: Path) -> None:
    before, uri = files_of(results), sqlite_uri(results / "nowhere" / "x.db")
    code, out, _ = robuq("doctor", "--output", results, "--tracking-uri", uri)
    assert (code, len(out.splitlines())) == (1, 2)
    assert out.startswith(f"tracking store: {uri}: ")
    assert out.endswith("1 disagreements\n")
    assert files_of(results) == before


def test_a_store_that_is_a_folder_is_refused_before_anything_is_trained(complaint: Complaint, tmp_path: Path) -> None:
    said = complaint(*SWEEP, "--output", tmp_path / "out", "--tracking-uri", sqlite_uri(tmp_path))
    assert said.startswith(f"--tracking-uri {sqlite_uri(tmp_path)} is a folder, where an SQLite file is needed; use ")
    assert list(tmp_path.glob("out/stages/[!.]*")) == []


def test_a_store_that_is_away_is_said_before_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    say_what_is_away("tracking server x is not available (OSError)")
    say_what_is_away(None)
    assert capfd.readouterr().err == "records will wait on the disk: tracking server x is not available (OSError)\n"


# --- files that --file names ----------------------------------------------------------------------------------


def test_the_file_of_bits_is_looked_at_before_anything_is_trained(complaint: Complaint, tmp_path: Path) -> None:
    (other := tmp_path / "package.json").write_text('{"name": "mine"}')
    for file, why in {
        other / "below.json": "cannot write {file} (Not a directory): choose another --file",
        tmp_path: "cannot write {file} (it is a folder): choose another --file",
        Path("/proc/bits.json"): "cannot write {file} (No such file or directory): choose another --file",
        other: "{file} is there, and is not a file of bits: move it away, or choose another --file",
    }.items():
        said = complaint("allocate", "--preset", "nano", "--file", file, "--output", tmp_path / "out")
        assert said == why.format(file=file)
    assert files_of(tmp_path) == [other]
    assert other.read_text() == '{"name": "mine"}'


def test_the_picture_is_looked_at_before_it_is_drawn(complaint: Complaint, results: Path) -> None:
    """The network is gone, which would be said next."""
    (bits := results / "bits.json").write_text('{"bits": {}}')
    said = complaint("sample", "baseline/0", "--output", results, "--file", bits)
    assert said == f"{bits} is there, and is not a PNG: move it away, or choose another --file"
    said = complaint("sample", "baseline/0", "--output", results, "--file", bits / "x.png")
    assert said == f"cannot write {bits / 'x.png'} (Not a directory): choose another --file"
    (results / "samples").mkdir()
    key = single_run("baseline", 2, "nano", 0, {}).key()
    (results / "samples" / f"{key}.png").mkdir()
    assert "(it is a folder): choose another --file" in complaint("sample", "baseline/0", "--output", results)


def test_what_the_command_itself_wrote_is_replaced(tmp_path: Path) -> None:
    import torch

    (bits := tmp_path / "bits.json").write_text('{"bits": {"transformer_blocks.0.qkv": 2}}')
    check_bits_file(bits)
    check_bits_file(tmp_path / "new" / "bits.json")
    write_png(torch.zeros(2, 1, 8, 8), tmp_path / "x.png", 2)
    check_picture(tmp_path / "x.png")
    (tmp_path / "empty.png").touch()
    check_picture(tmp_path / "empty.png")
    assert files_of(tmp_path) == [tmp_path / name for name in ("bits.json", "empty.png", "x.png")]
