"""PostgreSQL as tracking store and as the study's database, over real connections: killed, continued, away, and silent
about its password."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from fault_commands import Ended, Fault, FaultCommands, Tally, Undisturbed
from postgresql_server import PASSWORD, PostgresServer

from experiments.doctor import Doctor
from experiments.output import Output
from robuq.ampn.search import STATES, open_storage
from robuq.config import ConfigError
from robuq.messages import redacted


def secrets_in(folder: Path, ended: list[Ended]) -> list[str]:
    """Where the password stands: in a file, or in what a command said."""
    files = [file for file in folder.rglob("*") if file.is_file() and PASSWORD.encode() in file.read_bytes()]
    return [f"the password is in {file}" for file in files] + [
        f"the password was said: {line}" for each in ended for line in each.text.splitlines() if PASSWORD in line
    ]


def trial_states(uri: str, name: str) -> list[str]:
    study = optuna.load_study(storage=uri, study_name=name)
    states = [STATES.get(trial.state, "waiting") for trial in study.get_trials(deepcopy=False)]
    study._storage.remove_session()
    return states


@pytest.mark.slow
def test_sweeps_and_searches_on_postgresql(
    commands: FaultCommands, undisturbed: Undisturbed, postgres: PostgresServer, tmp_path: Path, tally: Tally
) -> None:
    tracking, study = postgres.uri("mlflow"), postgres.uri("optuna")
    of = {"sweep": tmp_path / "sweep", "search": tmp_path / "search"}
    words = {
        "sweep": commands.words("sweep", of["sweep"], "--tracking-uri", tracking),
        "search": commands.words(
            "search", of["search"], "--tracking-uri", tracking, "--set", f"search.storage={study}"
        ),
    }
    said = [commands(*words["sweep"], fault=Fault("robuq-record", 1, "kill", tmp_path, "shutil.rmtree"))]
    said += [commands(*words["search"], fault=Fault("search.json", 5, "kill", tmp_path))]
    assert [ended.code for ended in said] == [-9, -9]

    looks = commands("doctor", "--output", of["search"], "--tracking-uri", tracking, "--storage", study)
    assert (
        looks.problems(1, "run left running: ") == []
    )  # the sweep's, and nothing of the study: no trial was under way
    assert not {"running trial", "unreachable study", "lost study"} & {
        line.partition(":")[0] for line in looks.text.splitlines()
    }
    blind = commands("doctor", "--output", of["search"], "--tracking-uri", tracking)
    assert blind.problems(1, f"study not looked at: searches/faulty_search: it is in {redacted(study)}, ") == []
    said += [looks, blind]

    postgres.stop()
    waits = "2 records wait on the disk: tracking server postgresql://***@127.0.0.1:"
    lost = f"robuq: the study's database {redacted(study)} is not available ("
    away = [commands(*words["sweep"]), commands(*words["search"])]
    assert tally("PostgreSQL away", away[0].problems(0, waits)) == []
    assert tally("PostgreSQL away", away[1].problems(1, lost)) == []
    looks = commands("doctor", "--output", of["search"], "--tracking-uri", tracking, "--storage", study)
    assert looks.problems(1, "tracking store: ", f"unreachable study: searches/faulty_search: {lost[7:]}") == []
    said.append(looks)
    postgres.start()

    again = {verb: commands(*words[verb]) for verb in words}
    for verb, folder in of.items():
        where = ["--storage", study] if verb == "search" else []
        ended = commands("doctor", "--output", folder, "--tracking-uri", tracking, *where)
        problems = (
            again[verb].problems(0)
            + ended.problems(0)
            + contents_of(undisturbed, verb, folder, tracking, study if verb == "search" else None)
        )
        assert tally("PostgreSQL, a kill between", problems) == []
        said.append(ended)
    states = trial_states(study, "faulty_search")
    assert states.count("finished") + states.count("pruned") == len(states)
    assert secrets_in(tmp_path, [*said, *away, *again.values()]) == []
    assert [name for name in ("mlflow", "optuna") if PASSWORD in postgres.dump(name)] == []
    assert not list(Path.cwd().glob("mlruns"))


def test_the_doctor_only_reads_a_study(postgres: PostgresServer, tmp_path: Path) -> None:
    """A trial that nobody works on; a database without Optuna's tables, which stays without."""
    study, empty = postgres.copy("template0", "looked_at"), postgres.copy("template0", "empty")
    (tmp_path / "searches" / "left").mkdir(parents=True)  # killed before it had a record
    optuna.create_study(storage=open_storage(study), study_name="left").ask()
    before = {name: postgres.dump(name) for name in ("looked_at", "empty")}
    found = Doctor(Output(tmp_path), storages=[study, empty]).examine()
    assert sorted(each.kind for each in found) == ["running trial", "unreachable study"]
    assert {name: postgres.dump(name) for name in before} == before
    assert PASSWORD not in str(found)


def contents_of(undisturbed: Undisturbed, verb: str, folder: Path, uri: str, study: str | None) -> list[str]:
    """Both share a tracking server here: what the other left there is not asked for."""
    plan = {"sweep": "faulty", "search": "faulty_search"}[verb]
    return undisturbed.differences(verb, folder, uri, plan, study)


def test_a_wrong_password_is_one_line_without_it(
    postgres: PostgresServer, tmp_path: Path, commands: FaultCommands
) -> None:
    wrong = postgres.uri("mlflow").replace(PASSWORD, "wrong-hunter2")
    ended = commands(*commands.words("search", tmp_path, "--set", f"search.storage={wrong}"))
    assert ended.problems(1, f"robuq: the study's database {redacted(wrong)} is not available (") == []
    assert "wrong-hunter2" not in ended.text


def test_a_url_that_is_none_is_a_mistake_of_the_user() -> None:
    for url in ("nosuch://user:hunter2@host/x", "postgresql+nosuch://user:hunter2@host/x"):
        with pytest.raises(ConfigError, match=r"search\.storage .*://\*\*\*@host/x") as caught:
            open_storage(url)
        assert "hunter2" not in str(caught.value)
