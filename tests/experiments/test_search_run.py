"""A whole search on stages that take no time: what it records, going on after a kill, failures, confirmation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_search import Interrupted, search_work
from toy_stages import executed

from experiments.executors import Executor, LocalExecutor, OnDemandExecutor
from experiments.output import Output
from experiments.recording import Recording
from experiments.search_file import build_search
from experiments.search_run import SearchEnd, SearchRun
from robuq.config import ConfigError
from robuq.record.search_record import SearchRecord
from robuq.stages import Stage, StageStore

FILE: dict[str, Any] = {
    "name": "toy",
    "preset": "nano",
    "ampn": {"budget": {"limit": 2.5, "weights": "layers"}},
    "search": {
        "space": "layer",
        "sampler": "tpe",
        "evaluations": 10,
        "rungs": [{"steps": 0, "keep": 0.5}, {"steps": 4}],
    },
}


class Records(Recording):
    """Keeps records on the disk alone."""

    def open(self) -> None:
        self._away = "not opened"


def run(output: Output, changes: Mapping[str, Any] | None = None, pool: Executor | None = None) -> SearchEnd:
    search = build_search({**FILE, **(changes or {})})
    output.store.root.mkdir(parents=True, exist_ok=True)
    recording = Records(search.name, output, output.tracking_uri())
    pool = pool or LocalExecutor(output.store.root, "cpu", search_work)
    return SearchRun(search, output, pool, 1, recording, Console(quiet=True))()


def search_of(**changes: Any) -> dict[str, Any]:
    return {"search": {**FILE["search"], **changes}}


def timeless(record: SearchRecord | None) -> dict[str, Any]:
    assert record is not None
    return record.model_dump(mode="json", exclude={"started", "finished"})


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchRecord, list[str]]:
    """A search from start to end, and the stages that it executed."""
    folder = Output(tmp_path_factory.mktemp("undisturbed"))
    record = run(folder, search_of(confirm_seeds=[1])).record
    assert record is not None
    return record, executed(folder.store.root)


def test_what_is_recorded(undisturbed: tuple[SearchRecord, list[str]]) -> None:
    record, stages = undisturbed
    assert [evaluation.number for evaluation in record.evaluations] == list(range(10))
    assert {e.state for e in record.evaluations} == {"finished", "pruned"}
    assert record.evaluations[0].source == "uniform"
    assert len({tuple(e.bits.values()) for e in record.evaluations}) == 10
    for evaluation in record.evaluations:
        assert evaluation.cost <= 2.5
        assert evaluation.cost == pytest.approx(evaluation.average_bits["layers"])
        assert ("4" in evaluation.values) == (evaluation.state == "finished")
        assert evaluation.values["0"] - 0.1 == pytest.approx(evaluation.predicted)  # the toy's first rung is the table
        assert evaluation.seconds == pytest.approx(0.25 * (3 if evaluation.state == "finished" else 1))
    finished = [e for e in record.evaluations if e.state == "finished"]
    best = min(finished, key=lambda e: e.values["4"])
    assert record.winner == best.number
    assert len(stages) == len(set(stages))
    assert record.finished >= record.started > 0
    assert set(record.baselines) == {"uniform", "greedy", "exact", "paper"}


def test_rungs_and_predictors_are_ranked_over_what_reached_both(undisturbed: tuple[SearchRecord, list[str]]) -> None:
    record, _ = undisturbed
    finished = [e for e in record.evaluations if "4" in e.values]
    (pair,) = record.rank_correlations
    assert (pair.low, pair.high, pair.n) == (0, 4, len(finished))
    by_measure = {predictor.measure: predictor for predictor in record.predictors}
    assert by_measure["loss"].searched
    assert by_measure["loss"].spearman == pytest.approx(pair.spearman)  # because the first rung is the table's damage
    assert not by_measure["output_error"].searched


def test_the_confirmation_trains_each_allocation_once(undisturbed: tuple[SearchRecord, list[str]]) -> None:
    record, stages = undisturbed
    assert list(record.confirmed) == ["uniform", "greedy", "exact", "search"]
    keys = {key for row in record.confirmed.values() for key in row}
    allocations = {tuple(bits.values()) for name, bits in record.baselines.items() if name != "paper"}
    winner = next(e for e in record.evaluations if e.number == record.winner)
    assert len(keys) == len(allocations | {tuple(winner.bits.values())})
    assert sum(stage.startswith("evaluate/") for stage in stages) == len(keys)


def test_again_changes_nothing(output: Output) -> None:
    first = run(output, search_of(confirm_seeds=[1])).record
    before, file = executed(output.store.root), output.search_folder("toy") / "search.json"
    text = file.read_text()
    again = run(output, search_of(confirm_seeds=[1])).record
    assert again == first
    assert executed(output.store.root) == before
    assert file.read_text() == text


@pytest.mark.parametrize("before_report", [False, True])
@pytest.mark.parametrize("stages", [4, 12, 24])
def test_after_a_kill_it_goes_on_as_if_nothing_had_happened(
    output: Output, undisturbed: tuple[SearchRecord, list[str]], stages: int, before_report: bool
) -> None:
    pool = Interrupted(output.store.root, stages, before_report)
    with pytest.raises(KeyboardInterrupt):
        run(output, search_of(confirm_seeds=[1]), pool)
    record = run(output, search_of(confirm_seeds=[1])).record
    assert timeless(record) == timeless(undisturbed[0])
    assert sorted(executed(output.store.root)) == sorted(undisturbed[1])  # none twice


def test_more_evaluations_continue_the_same_search(output: Output) -> None:
    first = run(output, search_of(evaluations=6)).record
    more = run(output, search_of(evaluations=9)).record
    assert first is not None
    assert more is not None
    assert more.evaluations[:6] == first.evaluations
    assert len(more.evaluations) == 9
    assert more.started == first.started


def test_another_budget_under_the_same_name_is_refused(output: Output) -> None:
    run(output)
    with pytest.raises(ConfigError, match="toy"):
        run(output, {"ampn": {"budget": {"limit": 3, "weights": "layers"}}})


class Diverged(RuntimeError):
    """As a stage fails whose training diverges."""


def failing(reason: Callable[[Stage, StageStore], Exception | None]) -> Any:
    def work(stage: Stage, root: Path, device: str) -> Mapping[str, Any]:
        store = StageStore(root)
        if stage.kind == "probe" and (error := reason(stage, store)):
            store.open_work(stage)
            if isinstance(error, Diverged):
                store.fail(stage, "diverged", str(error))
            raise error
        return search_work(stage, root, device)

    return work


def bits_of(stage: Stage) -> list[int]:
    allocation = stage.config["allocation"]
    return list(allocation["bits"].values()) if allocation else []


def test_an_allocation_that_diverges_is_recorded_as_failed_and_the_search_goes_on(output: Output) -> None:
    def diverges(stage: Stage, store: StageStore) -> Exception | None:
        return Diverged("diverged: loss is nan") if bits_of(stage) == [2] * 8 else None

    end = run(output, pool=LocalExecutor(output.store.root, "cpu", failing(diverges)))
    assert end.record is not None
    assert end.record.evaluations[0].state == "failed"
    assert end.record.evaluations[0].failure is not None
    assert "diverged" in end.record.evaluations[0].failure
    assert len(end.record.evaluations) == 10
    assert end.failures == []


def test_what_says_nothing_of_an_allocation_is_tried_again_by_the_next_command(
    output: Output, undisturbed: tuple[SearchRecord, list[str]]
) -> None:
    def full(stage: Stage, store: StageStore) -> Exception | None:
        return OSError("no space left on device")

    end = run(output, search_of(confirm_seeds=[1]), LocalExecutor(output.store.root, "cpu", failing(full)))
    assert len(end.failures) == 3  # and no more were begun
    assert "no space left" in str(end.failures[0].failure)
    assert end.record is not None
    assert (end.record.evaluations, end.record.finished) == ([], 0.0)
    assert timeless(run(output, search_of(confirm_seeds=[1])).record) == timeless(undisturbed[0])


def test_a_sensitivity_that_fails_ends_the_search(output: Output) -> None:
    def work(stage: Stage, root: Path, device: str) -> Mapping[str, Any]:
        if stage.kind == "sensitivity":
            raise OSError("no data")
        return search_work(stage, root, device)

    end = run(output, pool=LocalExecutor(output.store.root, "cpu", work))
    assert end.record is None
    assert [end.job.run.variant for end in end.failures] == ["robuq"]


def test_a_winner_that_is_a_baseline_is_said_to_be_one_and_trained_once(output: Output) -> None:
    """Two evaluations: uniform, and nothing that beats it before the search ends."""
    end = run(output, search_of(evaluations=1, confirm_seeds=[1, 2]))
    assert end.record is not None
    assert end.record.equal_to == ["uniform"]
    assert end.record.confirmed["search"] == end.record.confirmed["uniform"]
    (record,) = [r for r in output.records("toy") if r.key == end.record.confirmed["search"][0]]
    assert record.variant == "uniform"


def test_the_longer_row_has_the_steps_that_the_search_took(output: Output) -> None:
    end = run(output, {**search_of(confirm_seeds=[1]), "confirm_longer": True})
    assert end.record is not None
    trained = 4 * sum("4" in e.values for e in end.record.evaluations)
    record = output.record("toy", end.record.confirmed["exact_longer"][0])
    assert record is not None
    assert record.variant == "exact_longer"
    assert record.config["train"]["steps"] == 6 + trained


def test_further_sensitivities_are_measured_and_ranked(output: Output) -> None:
    end = run(output, {"predictors": [{"warm_up_steps": 0}, {"reference": 8}]})
    assert end.record is not None
    tables = [(p.warm_up_steps, p.reference) for p in end.record.predictors if p.measure == "loss"]
    assert tables == [(2, 2), (0, 2), (2, 8)]
    assert sum(predictor.searched for predictor in end.record.predictors) == 1


def test_two_objectives_have_a_front_and_a_winner_within_the_budget(output: Output) -> None:
    settings = {"objectives": ["loss", "average_bits"], "budget_range": [1.5, 3.5], "rungs": [{"steps": 4}]}
    record = run(output, search_of(**settings, sampler="nsga2", evaluations=12)).record
    assert record is not None
    assert record.winner is not None
    assert record.evaluations[record.winner].cost <= 2.5
    assert max(e.cost for e in record.evaluations) > 2.5
    points = {e.number: (e.values["4"], e.average_bits["layers"]) for e in record.evaluations}
    dominated = {
        number
        for number, own in points.items()
        if any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in points.values())
    }
    assert set(record.front) == set(points) - dominated


def test_the_record_is_on_the_disk_while_the_search_is_under_way(output: Output) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(output, pool=Interrupted(output.store.root, 12))
    record = output.search("toy")
    assert record is not None
    assert 0 < len(record.evaluations) < 10
    assert record.finished == 0.0
    assert json.loads((output.search_folder("toy") / "search.json").read_text())["name"] == "toy"


def test_no_workers_are_started_for_nothing(output: Output) -> None:
    made: list[Executor] = []

    def make() -> Executor:
        made.append(LocalExecutor(output.store.root, "cpu", search_work))
        return made[-1]

    run(output, pool=OnDemandExecutor(make, 1))
    assert len(made) == 1
    run(output, pool=OnDemandExecutor(make, 1))
    assert len(made) == 1
