"""Studies in databases, as the doctor sees them: where the searches' records say that they are, and only read."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest

from experiments import cli
from experiments.doctor import Doctor
from experiments.doctor_findings import Finding
from experiments.output import Output
from experiments.search_run import JOURNAL
from robuq.ampn.search import open_storage
from robuq.config import ConfigError
from robuq.messages import redacted
from robuq.record.search_record import SearchRecord

SECRET = "hunter2"


def folder_with(output: Path, storage: str | None, name: str = "bits") -> Path:
    """A folder with a search that is under way, and whose study is there."""
    known = {"dataset": "digits", "variant": "robuq", "seed": 0, "config": {}, "budget": {}}
    search = {"rungs": [{"steps": 2}], "storage": None if storage is None else redacted(storage)}
    Output(output).save_search(SearchRecord.parse({"name": name, **known, "search": search, "started": 1e9}))
    return output


def begin_study(storage: str, name: str = "bits", trials: int = 1) -> optuna.Study:
    """With so many trials, all of which run."""
    study = optuna.create_study(storage=open_storage(storage), study_name=name, load_if_exists=True)
    for _ in range(trials):
        study.ask()
    return study


def examine(folder: Path, *storages: str) -> list[Finding]:
    return Doctor(Output(folder), storages=storages).examine()


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def test_trials_that_nobody_works_on_are_found_and_nothing_is_changed(tmp_path: Path, storage: str) -> None:
    study = begin_study(storage, trials=3)
    study.tell(0, 1.0)
    folder, before = folder_with(tmp_path / "out", storage), (tmp_path / "study.db").read_bytes()
    (found,) = examine(folder)
    assert (found.kind, found.where, found.repair) == ("running trial", "searches/bits", None)
    assert found.what == "2 of bits without a command"
    assert (tmp_path / "study.db").read_bytes() == before
    study.tell(1, 1.0)
    study.tell(2, state=optuna.trial.TrialState.FAIL)
    assert examine(folder) == []


@pytest.mark.parametrize(
    "form", ["sqlite:///{}", "sqlite+pysqlite:///{}", "sqlite:///file:{}?uri=true&token=" + SECRET]
)
def test_every_form_of_a_files_address(tmp_path: Path, form: str) -> None:
    storage = form.format(tmp_path / "study.db")
    begin_study(storage)
    assert [found.kind for found in examine(folder_with(tmp_path / "out", storage))] == ["running trial"]


def test_a_study_that_is_gone(tmp_path: Path, storage: str) -> None:
    folder = folder_with(tmp_path / "out", storage)
    assert [found.kind for found in examine(folder)] == ["lost study"]
    assert not (tmp_path / "study.db").exists()
    begin_study(storage, name="another")
    (found,) = examine(folder)
    assert (found.kind, found.what) == ("lost study", f"there is no study bits in {storage}")


def test_a_file_that_is_no_database(tmp_path: Path, storage: str) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    (found,) = examine(folder_with(tmp_path / "out", storage))
    assert found.kind == "unreachable study"
    (tmp_path / "study.db").write_bytes(b"")  # of another program, or of none
    (found,) = examine(tmp_path / "out")
    assert found.kind == "unreachable study"
    assert (tmp_path / "study.db").read_bytes() == b""


def test_an_address_with_a_password_has_to_be_given(tmp_path: Path) -> None:
    storage = f"postgresql://someone:{SECRET}@127.0.0.1:1/bits"
    folder = folder_with(tmp_path / "out", storage)
    (found,) = examine(folder)
    assert found.kind == "study not looked at"
    assert "--storage" in found.remedy
    (found,) = examine(folder, storage)
    assert found.kind == "unreachable study"
    assert "postgresql://***@127.0.0.1:1/bits" in found.what
    assert SECRET not in str(found)


def test_an_address_that_no_search_has_is_a_mistake(tmp_path: Path, storage: str) -> None:
    folder = folder_with(tmp_path / "out", storage)
    wrong = f"postgresql://someone:{SECRET}@elsewhere/bits"
    with pytest.raises(ConfigError, match=r"--storage postgresql://\*\*\*@elsewhere/bits: no search in .* they are in"):
        examine(folder, wrong)
    with pytest.raises(ConfigError, match="it has none in a database"):
        examine(folder_with(tmp_path / "other", None), wrong)


def test_an_address_in_a_record_that_is_none(tmp_path: Path) -> None:
    """Brought along, or of a version that took it: SQLAlchemy would quote it in a traceback."""
    folder = folder_with(tmp_path / "out", None)
    file = folder / "searches" / "bits" / "search.json"
    file.write_text(file.read_text().replace('"storage": null', f'"storage": "postgresql://u:{SECRET}/x"'))
    (found,) = examine(folder)
    assert (found.kind, SECRET in found.what) == ("unreachable study", False)
    with pytest.raises(ConfigError, match=r"--storage postgresql://\*\*\*: this is not"):
        examine(folder, f"postgresql://u:{SECRET}/x")


def test_a_search_that_was_killed_before_it_had_a_record(tmp_path: Path, storage: str) -> None:
    begin_study(storage)
    (tmp_path / "out" / "searches" / "bits").mkdir(parents=True)
    assert examine(tmp_path / "out") == []
    assert [found.kind for found in examine(tmp_path / "out", storage)] == ["running trial"]


def test_journals_as_before(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "out", None)
    optuna.create_study(storage=open_storage(folder / "searches" / "bits" / JOURNAL), study_name="bits").ask()
    (found,) = examine(folder)
    assert (found.kind, found.where) == ("running trial", f"searches/bits/{JOURNAL}")


def test_the_command(
    tmp_path: Path, storage: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def doctor(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robuq", "doctor", "--output", str(tmp_path / "out"), *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    study = begin_study(storage)
    folder_with(tmp_path / "out", storage)
    code, out, _ = doctor("--storage", storage)
    assert code == 1
    assert "running trial: searches/bits: 1 of bits without a command" in out
    code, out, err = doctor("--storage", "mysql://u:pw@h/x")
    assert (code, out) == (2, "")
    assert err.startswith("robuq: --storage mysql://***@h/x: no search in ")
    assert len(err.splitlines()) == 1
    study.tell(0, 1.0)
    assert doctor()[:2] == (0, "healthy: stages, records, tracking store and studies agree\n")
