"""The bookkeeping of a sweep against its definitions: what can start, in which order, what is left and what has ended,
over random plans and random ends of stages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from toy_stages import toy

from experiments.attempts import Outcome
from experiments.launch import Job, JobEnd, Sweep
from experiments.ready import ReadyStages
from robuq.config import RunConfig
from robuq.stages import Stage, StageStore, write_json

ENDS: tuple[Literal["done", "failed", "lost", "stopped"], ...] = ("done", "failed", "lost", "stopped")
RATES = (0.8, 0.08, 0.07, 0.05)


def random_jobs(rng: np.random.Generator, count: int) -> list[Job]:
    """Chains of three or four stages that share their beginnings; some runs need the same last stage."""
    roots = [toy("full_precision", number=n) for n in range(3)]
    features = toy("features", number=0)
    jobs = []
    for _ in range(count):
        root = roots[int(rng.integers(len(roots)))]
        qat = toy("qat", {"full_precision": root}, number=int(rng.integers(max(2, count // 2))))
        short = rng.random() < 0.2
        judged = {"qat": qat} if short else {"qat": qat, "features": features}
        last = toy("evaluate", judged, number=int(rng.integers(2)))
        chain = (root, qat, last) if short else (features, root, qat, last)
        jobs.append(Job(RunConfig(variant=f"run {len(jobs)}"), chain))
    return jobs


def seconds(stage: Stage) -> float:
    longer = float(stage.config["number"] % 3)
    return {"full_precision": 5.0, "features": 1.0, "qat": 2.0 + longer, "evaluate": 0.5}[stage.kind]


def open_jobs(sweep: Sweep, ended: list[JobEnd]) -> list[Job]:
    over = {end.job.run.variant for end in ended}
    return [job for job in sweep.jobs if job.run.variant not in over]


def paths(sweep: Sweep) -> dict[str, float]:
    """Seconds of the longest chain that begins with each stage."""

    def longest(name: str) -> float:
        after = [longest(other.id) for other in sweep.stages.values() if name in other.inputs.values()]
        return sweep.seconds[name] + max(after, default=0.0)

    return {name: longest(name) for name in sweep.stages}


def by_definition(sweep: Sweep, ended: list[JobEnd], path: dict[str, float]) -> list[str]:
    """Ids of what can start, the best first."""
    jobs = open_jobs(sweep, ended)
    useful = {stage.id for job in jobs for stage in job.stages}
    ready = [
        name
        for name, stage in sweep.stages.items()
        if name in useful
        and sweep.status[name] == "waiting"
        and all(sweep.status.get(parent, "done") == "done" for parent in stage.inputs.values())
    ]
    order = list(sweep.stages)
    ready.sort(key=lambda name: (-path[name], order.index(name)))
    last = {job.stages[-1].id for job in jobs}
    ending = [name for name in ready if name in last]
    plenty = len(ready) - len(ending) > 2 * len(sweep.started) + 2
    return ending + [name for name in ready if name not in last] if plenty else ready


def check(sweep: Sweep, ended: list[JobEnd], path: dict[str, float]) -> None:
    expected = by_definition(sweep, ended, path)
    assert [stage.id for stage in sweep.ready()] == expected
    assert [stage.id for stage in sweep.ready(2)] == expected[:2]
    assert sweep.ready_count == len(expected)
    assert {status: n for status, n in sweep.counts.items() if n} == {
        status: list(sweep.status.values()).count(status) for status in set(sweep.status.values())
    }
    useful = {stage.id for job in open_jobs(sweep, ended) for stage in job.stages}
    waiting = sum(sweep.seconds[name] for name in useful if sweep.status[name] == "waiting")
    at_work = sum(sweep.seconds[name] for name in sweep.started)
    assert waiting - 1e-6 <= sweep.seconds_left(1) <= waiting + at_work + 1e-6
    assert sweep.is_over() == (not open_jobs(sweep, ended) and not sweep.started)


def just_ended(sweep: Sweep) -> list[JobEnd]:
    ended = sweep.ended_jobs()
    for end in ended:
        failed = [stage for stage in end.job.stages if sweep.status[stage.id] == "failed"]
        if end.failure is None:
            assert all(sweep.status[stage.id] == "done" for stage in end.job.stages)
        else:
            assert end.failure.startswith(f"{failed[0].kind} {failed[0].key}: ")
    return ended


@pytest.mark.parametrize("seed", range(12))
def test_random_sweeps_agree_with_the_definitions(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    jobs = random_jobs(rng, 30)
    sweep = Sweep(jobs[:20], StageStore(tmp_path), seconds)
    ended: list[JobEnd] = []
    for late in (jobs[20:], []):
        path = paths(sweep)
        while not sweep.is_over():
            for stage in sweep.ready(int(rng.integers(1, 4)))[: 3 - len(sweep.started)]:
                sweep.start(stage)
            check(sweep, ended, path)
            name = list(sweep.started)[int(rng.integers(len(sweep.started)))]
            sweep.settle(Outcome(sweep.stages[name], ENDS[int(rng.choice(len(ENDS), p=RATES))], "why"))
            ended += just_ended(sweep)
            check(sweep, ended, path)
        sweep.add(late)
        ended += just_ended(sweep)
        check(sweep, ended, paths(sweep))
    assert sorted(end.job.run.variant for end in ended) == sorted(job.run.variant for job in jobs)


def test_an_input_that_is_gone_is_made_again_before_what_needs_it(tmp_path: Path) -> None:
    store, root = StageStore(tmp_path), toy("full_precision", number=1)
    qat, other = (toy("qat", {"full_precision": root}, number=n) for n in (1, 2))
    write_json(store.open_work(root) / "result.json", {"value": 1})
    store.commit(root, {"value": 1})
    jobs = [Job(RunConfig(variant=str(n)), (root, stage)) for n, stage in enumerate((qat, other))]
    sweep = Sweep(jobs, store, lambda stage: 1.0)
    assert [stage.id for stage in sweep.ready()] == [qat.id, other.id]
    sweep.start(qat)
    (store.folder(root.id) / "result.json").unlink()
    sweep.settle(Outcome(qat, "damaged", "its input is gone"))
    assert [stage.id for stage in sweep.ready()] == [root.id]
    assert sweep.counts["done"] == 0
    sweep.start(root)
    sweep.settle(Outcome(root, "done"))
    assert [stage.id for stage in sweep.ready()] == [qat.id, other.id]


def test_the_order_of_ready_stages_while_they_come_and_go() -> None:
    rng, ready = np.random.default_rng(0), ReadyStages()
    known: dict[str, tuple[float, int, bool]] = {}
    for number in range(400):
        if rng.random() < 0.35 and known:
            name = list(known)[int(rng.integers(len(known)))]
            ready.discard(name)
            known.pop(name)
        else:
            name, place = f"s{rng.integers(60)}", (float(rng.integers(5)), number, bool(rng.integers(2)))
            ready.put(name, *place)
            known[name] = place
        best = sorted(known, key=lambda name: (-known[name][0], known[name][1]))
        ending = [name for name in best if known[name][2]]
        others = [name for name in best if not known[name][2]]
        for under_way in (0, 3, 50):
            plenty = len(others) > 2 * under_way + 2
            assert ready.first(len(known), under_way) == (ending + others if plenty else best)
        assert len(ready) == len(known)
