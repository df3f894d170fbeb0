"""Every disagreement that the doctor knows, planted alone: found, named, repaired where it can be, and nothing else
changed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_stages import toy

from experiments import cli
from experiments.doctor import Doctor
from experiments.doctor_findings import Finding
from experiments.launch import Job, JobEnd
from experiments.output import Output
from experiments.recording import Recording
from experiments.search_run import JOURNAL
from robuq.config import RunConfig
from robuq.record.audit import tracked_runs
from robuq.record.mlflow import connect, sqlite_uri
from robuq.stages import Stage, StageStore

RUNS = [RunConfig(variant="a", seed=seed) for seed in range(2)]


def finish(store: StageStore, stage: Stage) -> None:
    work = store.open_work(stage)
    (work / "model.bin").write_bytes(b"weights" * 100)
    store.commit(stage, {"metrics": {"held_out_loss": 0.5}, "seconds": 1.0})


def jobs() -> list[Job]:
    parent = toy("full_precision")
    made = []
    for run in RUNS:
        qat = toy("qat", {"full_precision": parent}, number=run.seed)
        made.append(Job(run, (parent, qat, toy("evaluate", {"qat": qat}))))
    return made


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recorded runs that share a stage. MLflow's store takes seconds to make: once for all tests."""
    output = Output(tmp_path_factory.mktemp("doctor") / "healthy")
    with output.sweeping():
        recording = Recording("plan", output, output.tracking_uri())
        recording.open()
        for job in jobs():
            for stage in job.stages:
                if not output.store.is_done(stage):
                    finish(output.store, stage)
            recording(JobEnd(job, None))
        assert recording.send_waiting() == 0
    return output.folder


@pytest.fixture
def folder(template: Path) -> Iterator[Path]:
    """The healthy folder itself, put back afterwards in place: MLflow keeps its store open."""
    kept = template.with_name("kept")
    shutil.copytree(template, kept)
    yield template
    for path in sorted(template.rglob("*"), reverse=True):
        if not (kept / path.relative_to(template)).exists():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(kept, template, dirs_exist_ok=True)
    shutil.rmtree(kept)


def examine(folder: Path) -> list[Finding]:
    return Doctor(Output(folder)).examine()


def state(folder: Path) -> dict[str, Any]:
    """Content and time of change of all that is there."""
    files = sorted(folder.rglob("*"))
    return {str(f.relative_to(folder)): (f.lstat().st_mtime_ns, f.read_bytes() if f.is_file() else None) for f in files}


def qat_folder(folder: Path) -> Path:
    return next(path for path in (folder / "stages" / "qat").iterdir() if path.is_dir())


def record_file(folder: Path) -> Path:
    return min((folder / "runs" / "plan").glob("*.json"))


def run_ids(folder: Path) -> list[str]:
    return [run.run_id for run in tracked_runs(Output(folder).tracking_uri())]


# --- the faults -----------------------------------------------------------------------------------------------


def flip_a_bit(folder: Path) -> None:
    file = qat_folder(folder) / "model.bin"
    content = file.read_bytes()
    file.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])


def truncate_a_file(folder: Path) -> None:
    (qat_folder(folder) / "model.bin").write_bytes(b"weights")


def change_a_metric(folder: Path) -> None:
    file = qat_folder(folder) / "result.json"
    file.write_text(file.read_text().replace("0.5", "0.4"))


def half_a_result(folder: Path) -> None:
    file = qat_folder(folder) / "result.json"
    file.write_text(file.read_text()[:30])


def leave_temporaries(folder: Path) -> None:
    (qat_folder(folder) / "checkpoint-00000001.json").write_text("{}")
    record_file(folder).with_name(".x.json.123").write_text("{")
    (folder / "reproduce-x" / "stages").mkdir(parents=True)


def leave_work(folder: Path) -> None:
    work = folder / "stages" / "qat" / "0123456789abcdef.work"
    work.mkdir()
    (work / "checkpoint-00000001.json").write_text("{}")


def lose_a_stage(folder: Path) -> None:
    qat_folder(folder).rename(folder / "elsewhere")


def forget_to_send(folder: Path) -> None:
    record_file(folder).with_suffix(".sent").unlink()


def half_a_record(folder: Path) -> None:
    record_file(folder).write_text('{"plan": "pl')


def leave_running(folder: Path) -> None:
    connect(Output(folder).tracking_uri()).update_run(run_ids(folder)[0], status="RUNNING")


def track_twice(folder: Path) -> None:
    client = connect(Output(folder).tracking_uri())
    known = client.get_run(run_ids(folder)[0])
    tags = {"robuq.key": known.data.tags["robuq.key"]}
    again = client.create_run(known.info.experiment_id, known.info.start_time + 10**6, tags)
    client.set_terminated(again.info.run_id, "FINISHED")


def lose_a_run(folder: Path) -> None:
    connect(Output(folder).tracking_uri()).delete_run(run_ids(folder)[0])


def lose_a_record(folder: Path) -> None:
    record_file(folder).unlink()


def break_the_store(folder: Path) -> None:
    (folder / "mlflow.db").write_bytes(b"no database" * 1000)


def study(folder: Path) -> Any:
    import optuna

    from robuq.ampn.search import open_storage

    journal = folder / "searches" / "bits" / JOURNAL
    return optuna.create_study(storage=open_storage(journal), study_name="bits", load_if_exists=True)


def leave_a_trial(folder: Path) -> None:
    study(folder).ask()


def cut_the_journal(folder: Path) -> None:
    study(folder).tell(study(folder).ask(), 1.0)
    with (folder / "searches" / "bits" / JOURNAL).open("a") as journal:
        journal.write('{"op_code": 4, "worker_')


REPAIRED = {
    flip_a_bit: {"damaged stage"},
    truncate_a_file: {"damaged stage"},
    change_a_metric: {"damaged stage"},
    half_a_result: {"damaged stage"},
    leave_temporaries: {"temporary file"},
    forget_to_send: {"waiting record"},
    half_a_record: {"damaged record", "run without record"},
    leave_running: {"run left running"},
    track_twice: {"tracked twice"},
    lose_a_run: {"lost record"},
    cut_the_journal: {"half a record"},
}
LISTED = {
    leave_work: {"unfinished stage"},
    lose_a_stage: {"missing input", "record without stages"},
    lose_a_record: {"run without record"},
    break_the_store: {"tracking store"},
    leave_a_trial: {"running trial"},
}
LEFT_AFTER = {"missing input", "record without stages", "run without record"}  # of what was set aside, until a sweep


def test_a_healthy_folder(folder: Path) -> None:
    assert examine(folder) == []


@pytest.mark.parametrize("plant", [*REPAIRED, *LISTED], ids=lambda plant: plant.__name__)
def test_each_fault_is_found_and_looking_changes_nothing(
    folder: Path, plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # a store that is opened might write to the working directory
    plant(folder)
    before = state(folder)
    assert {finding.kind for finding in examine(folder)} == {**REPAIRED, **LISTED}[plant]
    assert state(folder) == before


@pytest.mark.parametrize("plant", list(REPAIRED), ids=lambda plant: plant.__name__)
def test_what_can_be_repaired_is(folder: Path, plant: Callable[[Path], None]) -> None:
    plant(folder)
    doctor = Doctor(Output(folder))
    doctor.repair(doctor.examine())
    assert {finding.kind for finding in doctor.examine()} <= LEFT_AFTER
    runs = [run for run in tracked_runs(Output(folder).tracking_uri()) if run.identity]
    assert [run.status for run in runs] == ["FINISHED"] * 2
    assert len({run.identity for run in runs}) == 2


def test_a_store_that_is_away_may_have_what_waits(folder: Path) -> None:
    """Nothing is said of records that were never sent there: nobody knows."""
    forget_to_send(folder)
    before, away = state(folder), sqlite_uri(folder / "nowhere" / "mlflow.db")
    assert {finding.kind for finding in Doctor(Output(folder), away).examine()} == {"tracking store"}
    assert state(folder) == before
    assert {finding.kind for finding in examine(folder)} == {"waiting record"}


def test_what_was_set_aside_is_kept(folder: Path) -> None:
    flip_a_bit(folder)
    name = qat_folder(folder).name
    doctor = Doctor(Output(folder))
    doctor.repair(doctor.examine())
    aside = folder / "stages" / "quarantine" / "qat" / name
    assert (aside / "model.bin").is_file()
    assert not (folder / "stages" / "qat" / name).exists()


def test_a_folder_at_work_is_looked_at_with_care(folder: Path) -> None:
    leave_work(folder)
    output = Output(folder)
    with output.sweeping():
        assert output.has_driver()
        assert Doctor(output).examine() == []
    assert not output.has_driver()


def test_a_killed_writer_of_the_store_is_no_obstacle(folder: Path) -> None:
    """A hot journal: whoever opens the store finishes what it says, so the original must not be opened."""
    database = folder / "mlflow.db"
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE filler AS SELECT randomblob(100000) FROM tags, tags AS more")
    hot, journal = database.read_bytes(), (folder / "mlflow.db-journal").read_bytes()
    connection.rollback()
    connection.close()
    database.write_bytes(hot)
    (folder / "mlflow.db-journal").write_bytes(journal)
    before = state(folder)
    assert examine(folder) == []
    assert state(folder) == before


# --- the command ----------------------------------------------------------------------------------------------


def robuq(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["robuq", *map(str, words)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capfd.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


def test_the_command(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def doctor(*words: object) -> tuple[int, str, str]:
        return robuq(capfd, monkeypatch, "doctor", "--output", folder, *words)

    code, out, _ = doctor()
    assert (code, out) == (0, "healthy: stages, records, tracking store and studies agree\n")
    leave_temporaries(folder)
    forget_to_send(folder)
    code, out, _ = doctor()
    assert code == 1
    assert "4 disagreements" in out
    code, out, _ = doctor("--json")
    data = json.loads(out)
    assert (code, data["healthy"], len(data["findings"])) == (1, False, 4)
    code, out, _ = doctor("--fix")
    assert code == 0
    assert out.count("repaired: ") == 4
    assert doctor()[0] == 0


def test_no_folder_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = robuq(capfd, monkeypatch, "doctor", "--output", tmp_path / "none")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
