"""A tracking server that goes away, fails, hangs, or loses its answers: records wait, are sent later, none twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_commands import PATIENCE, Fault, FaultCommands, Tally, Undisturbed
from fault_servers import MlflowServer, Proxy, proxied

from experiments.doctor import Doctor
from experiments.output import Output
from experiments.recording import Recording
from robuq.record.audit import tracked_runs
from robuq.record.mlflow import MlflowRecorder, TrackingUnavailable, connect
from robuq.record.run_record import RunRecord
from robuq.record.search_record import Evaluation, SearchRecord

SECRET = "hunter2"
SAID = {"error": "MLflow's server answers 500", "hang": "MLflow's server hangs"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    started = MlflowServer(tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[Proxy]:
    with proxied(server.port) as between:
        yield between


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


def record(plan: str, seed: int = 0) -> RunRecord:
    values = {"variant": "minmax", "label": "W1.58A2", "act_bits": 2.0, "seed": seed, "pretrain_seed": 0}
    rest = {"status": "finished", "protocol": "x", "dataset": "digits", "config": {}, "stages": {}}
    history = [{"step": step, "loss": 1.0 / step} for step in range(1, 4)]
    numbers = {"metrics": {"held_out_loss": 0.1}, "history": history, "started": 1e9, "finished": 1e9 + 9}
    return RunRecord(**{"plan": plan, "key": f"{seed:016x}", **values, **rest, **numbers})


def search_record(name: str) -> SearchRecord:
    price: dict[str, Any] = {"cost": 2.0, "average_bits": {"layers": 2.0}, "bops": 1.0, "predicted": 0.1}
    evaluations = [
        Evaluation(
            number=n,
            source="tpe",
            bits={"transformer_blocks.0.qkv": 2},
            values={"2": 0.5 - n / 10},
            state="finished",
            **price,
        )
        for n in range(2)
    ]
    known: dict[str, Any] = {"dataset": "digits", "variant": "robuq", "seed": 0, "config": {}, "budget": {}}
    search = {"rungs": [{"steps": 2}], "objectives": ["loss"]}
    return SearchRecord(
        name=name, **known, search=search, evaluations=evaluations, winner=1, started=1e9, finished=1e9 + 9
    )


def tracked_once(uri: str, plan: str, count: int) -> list[str]:
    """Problems: not `count` runs, one not FINISHED, one that is there twice, a point that was sent twice."""
    runs = [run for run in tracked_runs(uri) if run.experiment == plan]
    problems = [f"{run.identity} is {run.status}" for run in runs if run.status != "FINISHED"]
    problems += [f"{identity} is there {n} times" for identity, n in Counter(r.identity for r in runs).items() if n > 1]
    problems += [f"{len(runs)} runs, not {count}"] if len(runs) != count else []
    client = connect(uri)
    for run in runs:
        for name in client.get_run(run.run_id).data.metrics:
            steps = [point.step for point in client.get_metric_history(run.run_id, name)]
            problems += [f"{name}: steps {steps}"] if len(steps) != len(set(steps)) else []
    return problems


# --- a server that goes away during a sweep -------------------------------------------------------------------


def wait_until_held(folder: Path) -> None:
    for _ in range(PATIENCE):
        if (folder / "held").exists():
            return
        time.sleep(0.01)
    raise AssertionError("the command does not come to where it is held")


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while(
    commands: FaultCommands, undisturbed: Undisturbed, server: MlflowServer, tmp_path: Path, tally: Tally
) -> None:
    """Away when the sweep begins, and back before it ends; then away when another ends, and back for the next."""
    output, more = tmp_path / "out", ["--tracking-uri", server.uri]
    held = Fault("/runs/", 4, "hold", tmp_path)
    server.stop()
    process = commands.start(*commands.words("sweep", output, *more), fault=held)
    wait_until_held(tmp_path)
    server.start()
    (tmp_path / "go").touch()
    ended = commands.wait(process)
    problems = ended.problems(0) + undisturbed.differences("sweep", output, server.uri)
    assert tally("MLflow's server away at first", problems) == []

    seeds = ["--set", "seeds=0,1,2"]
    for file in (tmp_path / "held", tmp_path / "go"):
        file.unlink()
    process = commands.start(*commands.words("sweep", output, *more, *seeds), fault=held)
    wait_until_held(tmp_path)
    server.stop()
    (tmp_path / "go").touch()
    ended = commands.wait(process)
    waits = f"1 records wait on the disk: tracking server {server.uri} is not available ("
    problems = ended.problems(0, waits, "; the next sweep sends them")
    server.start()
    problems += commands(*commands.words("sweep", output, *more, *seeds)).problems(0)
    problems += tracked_once(server.uri, "faulty", 3) + [
        str(found) for found in Doctor(Output(output), server.uri).examine()
    ]
    assert tally("MLflow's server away at the end", problems) == []


# --- a server that fails, hangs, or loses its answers ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["error", "hang"])
def test_a_server_that_fails_at_any_request(
    server: MlflowServer, proxy: Proxy, tally: Tally, behaviour: Any, tmp_path: Path
) -> None:
    """From some request on, while a record is sent, and until the record is sent again."""
    output, plan = Output(tmp_path), f"plan-{behaviour}"
    for seed, nth in enumerate((1, 3, 6, 9)):
        output.save(record(plan, seed))
        proxy.behave(behaviour, nth)
        recording = Recording(plan, output, proxy.uri)
        recording.open()
        problems = [] if recording.send_waiting() == 1 else ["it counts as sent"]
        problem = recording.problem or "nothing is said"
        problems += [problem] if SECRET in problem or "is not available (" not in problem else []
        proxy.behave("forward")
        problems += [] if recording.send_waiting() == 0 else [f"it waits: {recording.problem}"]
        assert tally(SAID[behaviour], problems + tracked_once(server.uri, plan, seed + 1)) == []


@pytest.mark.slow
def test_answers_that_get_lost_make_nothing_twice(server: MlflowServer, proxy: Proxy, tally: Tally) -> None:
    """The server has done what it was asked, and the client does not know: at each request in turn."""
    recorder, seed, lost = MlflowRecorder(proxy.uri), 0, True
    while lost:
        proxy.behave("lose the answer", seed + 1, only=True)
        lost = not sent(recorder, record("lost", seed))
        if lost:
            proxy.behave("forward")
            recorder.record(record("lost", seed))
            assert tally("MLflow's answer lost", tracked_once(server.uri, "lost", seed + 1)) == []
            seed += 1
    assert seed >= 8


def sent(recorder: MlflowRecorder, given: RunRecord | SearchRecord) -> bool:
    try:
        recorder.record(given) if isinstance(given, RunRecord) else recorder.record_search(given)
    except TrackingUnavailable:
        return False
    return True


@pytest.mark.slow
def test_lost_answers_to_a_search(server: MlflowServer, proxy: Proxy, tally: Tally) -> None:
    recorder, nth, lost = MlflowRecorder(proxy.uri), 1, True
    while lost:
        name = f"search-{nth}"
        proxy.behave("lose the answer", nth, only=True)
        lost = not sent(recorder, search_record(name))
        proxy.behave("forward")
        recorder.record_search(search_record(name))
        assert tally("MLflow's answer lost", tracked_once(server.uri, name, 3)) == []
        nth += 3
    assert nth > 10
