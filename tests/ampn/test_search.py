"""A search: feasible and distinct proposals, pruning, failures, and going on after a kill as if there had been none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from robuq.ampn.allocate import ALLOCATORS
from robuq.ampn.problem import Bits, Problem
from robuq.ampn.search import BitSearch, Proposal
from robuq.config import BLOCK_ROLES, Budget, ConfigError, Rung, SearchConfig, decision_name

SAMPLERS = ("random", "tpe", "nsga2", "cmaes")
SPACES = ("policy", "block", "layer", "blind")
HALVING = (Rung(steps=0, keep=0.5), Rung(steps=10))


def make_problem(blocks: int = 3, limit: float = 2.0, candidates: tuple[int, ...] = (1, 2, 3, 4)) -> Problem:
    """Seeded sensitivities; a bit more divides each damage by four. Cost: mean bits, unweighted."""
    decisions = tuple(decision_name(block, role) for block in range(blocks) for role in BLOCK_ROLES)
    sensitivity = np.exp(np.random.default_rng(0).normal(size=len(decisions)))
    damage = sensitivity[:, None] * 4.0 ** -np.array(candidates)
    cost = np.outer(np.full(len(decisions), 1 / len(decisions)), candidates)
    return Problem(decisions, candidates, damage, cost, limit, Budget(limit=limit, weights="layers"))


PROBLEM = make_problem()
KNOWN = {name: ALLOCATORS[name](PROBLEM).bits for name in ("uniform", "exact", "paper")}


def loss_of(bits: Bits, steps: int = 0) -> float:
    """What the search should find out: other sensitivities than the problem knows of, lower after training."""
    sensitivity = np.exp(np.random.default_rng(1).normal(size=len(bits)))
    return float((sensitivity * 4.0 ** -np.array(bits)).sum() / (1 + steps) + 0.01 * (sum(bits) % 3))


def open_search(storage: Path | str | None = None, known: dict[str, Bits] | None = None, **config: Any) -> BitSearch:
    config = {"sampler": "random", "space": "block", "evaluations": 12, **config}
    return BitSearch(
        PROBLEM, SearchConfig(**config), storage=storage, study_name="s", known=KNOWN if known is None else known
    )


def evaluate(search: BitSearch, proposal: Proposal) -> None:
    """Climb the rungs that are left."""
    *lower, last = search.config.rungs
    for rung in lower:
        if search.report(proposal.number, rung.steps, loss_of(proposal.bits, rung.steps)) == "pruned":
            return
    search.finish(proposal.number, loss_of(proposal.bits, last.steps))


def proposals(search: BitSearch) -> Iterator[Proposal]:
    while (proposal := search.ask()) is not None:
        yield proposal
        evaluate(search, proposal)


def plain_study(file: Path) -> Any:
    """As optuna's own tools open it."""
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(file))))


# --- every sampler in every space ---------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_feasible_distinct_and_made_by_the_seed(sampler: str, space: str) -> None:
    def asked(seed: int) -> list[Proposal]:
        return list(proposals(open_search(sampler=sampler, space=space, evaluations=20, seed=seed)))

    first, again, other = asked(0), asked(0), asked(1)
    assert first == again
    assert [p.bits for p in first] != [p.bits for p in other]
    assert all(PROBLEM.is_feasible(p.bits) for p in first)
    assert len({p.bits for p in first}) == len(first) == 20
    assert [p.number for p in first] == list(range(20))
    assert [(p.source, p.bits) for p in first[:3]] == list(KNOWN.items())
    assert {p.source for p in first[3:]} <= {sampler, "random"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_cut_off_anywhere_goes_on_as_if_it_had_not_been(sampler: str, tmp_path: Path) -> None:
    rungs = (Rung(steps=0, keep=0.8), Rung(steps=10))
    config: dict[str, Any] = {"sampler": sampler, "space": "layer", "rungs": rungs, "evaluations": 25}
    file = tmp_path / "whole"
    undisturbed = rows_without_time(open_search(file, **config))
    records = file.read_bytes().splitlines(keepends=True)
    for cut in np.random.default_rng(SAMPLERS.index(sampler)).choice(np.arange(8, len(records)), 3, replace=False):
        part = tmp_path / f"cut{cut}"
        half_a_record = records[cut][: len(records[cut]) // 2]
        part.write_bytes(b"".join(records[:cut]) + half_a_record)
        assert rows_without_time(open_search(part, **config)) == undisturbed
        assert content(part) == content(file)


def rows_without_time(search: BitSearch) -> list[dict[str, Any]]:
    list(proposals(search))
    return search.evaluations()


def content(file: Path) -> list[tuple[Any, ...]]:
    """All that a journal's trials hold, but times."""
    return [
        (t.number, t.state, t.values, t.params, t.intermediate_values, t.user_attrs, t.system_attrs)
        for t in plain_study(file).trials
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_opening_it_anew_for_every_step_changes_nothing(sampler: str, tmp_path: Path) -> None:
    """So every number k of evaluations is interrupted after, and every evaluation in flight too."""
    config: dict[str, Any] = {"sampler": sampler, "space": "layer", "evaluations": 20}
    undisturbed = list(proposals(open_search(**config)))
    seen = []
    while (proposal := open_search(tmp_path / "j", **config).ask()) is not None:
        asked_again = (search := open_search(tmp_path / "j", **config)).ask()
        assert asked_again == proposal
        evaluate(search, proposal)
        seen.append(proposal)
    assert seen == undisturbed


# --- duplicates ---------------------------------------------------------------------------------------------------


def small_search(storage: Path | None = None, **config: Any) -> BitSearch:
    """Four decisions of 1 or 2 bits, mean 1.5: few allocations."""
    config = {"sampler": "tpe", "space": "layer", "evaluations": 100, **config}
    problem = make_problem(1, 1.5, (1, 2))
    return BitSearch(problem, SearchConfig(**config), storage=storage, study_name="s", known={})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exhausted_space_ends_the_search_and_duplicates_are_told_what_is_known(sampler: str, tmp_path: Path) -> None:
    asked = list(proposals(search := small_search(tmp_path / "j", sampler=sampler)))
    # Two of the four have a second bit: with more it is dear, with fewer some is left to spend.
    assert sorted(p.bits for p in asked) == sorted(set(permutations((1, 1, 2, 2))))
    assert search.ask() is None
    trials = plain_study(tmp_path / "j").trials
    evaluations = {t.user_attrs["number"]: t for t in trials if "number" in t.user_attrs}
    duplicates = [t for t in trials if "same_as" in t.user_attrs]
    assert len(evaluations) == len(asked)
    assert len(duplicates) >= 100
    for duplicate in duplicates:
        original = evaluations[duplicate.user_attrs["same_as"]]
        assert (duplicate.value, duplicate.state) == (original.value, original.state)
        assert duplicate.user_attrs["bits"] == original.user_attrs["bits"]


@pytest.mark.parametrize("end", ["finished", "pruned", "failed"])
def test_a_duplicate_of_what_is_in_flight_waits_for_its_end(end: str, tmp_path: Path) -> None:
    search = small_search(tmp_path / "j", rungs=HALVING, prune_after=1)
    asked = list(iter(search.ask, None))  # all in flight, until nothing new comes
    running = [t for t in plain_study(tmp_path / "j").trials if t.state.name == "RUNNING"]
    assert len(running) > len(asked)
    end_all(search, asked, end)
    trials = plain_study(tmp_path / "j").trials
    assert not [t for t in trials if not t.state.is_finished()]
    evaluations = {t.user_attrs["number"]: t for t in trials if "number" in t.user_attrs}
    for trial in trials:
        original = evaluations[trial.user_attrs.get("same_as", trial.user_attrs.get("number"))]
        assert (trial.state, trial.values) == (original.state, original.values)
        assert trial.intermediate_values == original.intermediate_values


def end_all(search: BitSearch, asked: list[Proposal], end: str) -> None:
    for proposal in asked:
        if end == "failed":
            search.fail(proposal.number, "out of memory")
        elif end == "finished" or proposal.number == 0:
            search.report(proposal.number, 0, 1.0)
            search.finish(proposal.number, 1.0)
        else:
            assert search.report(proposal.number, 0, 1.0 + proposal.number) == "pruned"


def test_two_names_of_one_allocation_are_one_evaluation() -> None:
    search = open_search(known={"exact": KNOWN["exact"], "greedy": KNOWN["exact"], "uniform": KNOWN["uniform"]})
    asked = list(proposals(search))
    assert [p.source for p in asked[:3]] == ["exact", "uniform", "random"]
    assert search.baselines() == {"exact": 0, "greedy": 0, "uniform": 1}
    assert len(asked) == 12


# --- known allocations --------------------------------------------------------------------------------------------


def test_a_known_allocation_outside_the_space_is_evaluated_as_it_is_and_hidden_from_the_sampler() -> None:
    space_cannot: Bits = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2)
    reachable = KNOWN["uniform"]
    both = open_search(known={"odd": space_cannot, "uniform": reachable}, sampler="tpe")
    odd, uniform = islice(proposals(both), 2)
    assert (odd.bits, odd.params) == (space_cannot, {})
    assert uniform.bits == reachable
    assert set(uniform.params.values()) == {2}
    assert len(list(proposals(both))) == 10
    assert both.evaluations()[0]["objectives"] == [loss_of(space_cannot)]


def test_nsga2_takes_known_allocations_as_parents(tmp_path: Path) -> None:
    list(proposals(open_search(tmp_path / "j", sampler="nsga2", evaluations=20)))
    trials = plain_study(tmp_path / "j").trials
    assert trials[0].user_attrs["source"] == "uniform"
    assert trials[0].system_attrs["NSGAIISampler:generation"] == 0


# --- rungs --------------------------------------------------------------------------------------------------------


def test_pruning_by_hand() -> None:
    """keep 1/2, nothing pruned before the fourth value; three known allocations come first and stay."""
    search = open_search(rungs=HALVING, prune_after=4, evaluations=9)
    numbers = [proposal.number for proposal in iter(search.ask, None)]
    assert numbers == list(range(9))
    cases = [
        (5.0, "go_on"),  # known
        (1.0, "go_on"),  # known
        (2.0, "go_on"),  # known
        (3.0, "pruned"),  # 1 2 [3] 5: two of four lower, 2 < 2 is false
        (2.5, "go_on"),  # 1 2 [2.5] 3 5: 2 < 2.5; what was pruned still counts
        (2.6, "pruned"),  # 1 2 2.5 [2.6] 3 5: 3 < 3 is false
        (0.5, "go_on"),  # the best so far
        (2.0, "go_on"),  # .5 1 2 [2] ...: a tie is not lower, 2 < 4
        (9.0, "pruned"),
    ]
    assert [search.report(number, 0, value) for number, (value, _) in enumerate(cases)] == [v for _, v in cases]
    states = [row["state"] for row in search.evaluations()]
    assert states == ["pruned" if verdict == "pruned" else "running" for _, verdict in cases]
    assert search.evaluations()[3]["values"] == {"0": 3.0}


def test_a_known_allocation_is_never_pruned() -> None:
    search = open_search(rungs=HALVING, prune_after=1)
    asked = list(islice(iter(search.ask, None), 4))
    verdicts = [search.report(proposal.number, 0, 1.0 + proposal.number) for proposal in asked]
    assert verdicts == ["go_on", "go_on", "go_on", "pruned"]


def test_a_rung_that_was_reported_before_a_kill_is_kept_and_not_judged_again(tmp_path: Path) -> None:
    config: dict[str, Any] = {"rungs": HALVING, "prune_after": 1}
    search = open_search(tmp_path / "j", **config)
    asked = list(islice(iter(search.ask, None), 5))
    assert search.report(3, 0, 2.0) == "go_on"
    assert search.report(4, 0, 1.0) == "go_on"
    reopened = open_search(tmp_path / "j", **config)
    again = list(islice(iter(reopened.ask, None), 5))
    assert [p.number for p in again] == [p.number for p in asked]
    assert [p.values for p in again] == [{}, {}, {}, {0: 2.0}, {0: 1.0}]
    assert reopened.report(3, 0, 2.0) == "go_on"
    reopened.finish(3, 1.5)
    assert reopened.evaluations()[3]["values"] == {"0": 2.0, "10": 1.5}


def test_an_unknown_rung_or_number_is_refused() -> None:
    search = open_search(rungs=HALVING)
    search.ask()
    with pytest.raises(ValueError, match="no rung has 5 steps: there are 0, 10"):
        search.report(0, 5, 1.0)
    with pytest.raises(ValueError, match="evaluation 1 was never asked for"):
        search.finish(1, 1.0)
    with pytest.raises(ValueError, match=r"got 2 value\(s\): the objectives are loss"):
        search.finish(0, (1.0, 2.0))
    search.finish(0, 1.0)
    with pytest.raises(ValueError, match="evaluation 0 is finished"):
        search.finish(0, 1.0)


# --- failures -----------------------------------------------------------------------------------------------------


def fail_outright(search: BitSearch, number: int) -> None:
    search.fail(number, "diverged at step 7")


def report_nan(search: BitSearch, number: int) -> None:
    assert search.report(number, 0, float("nan")) == "pruned"


def finish_with_infinity(search: BitSearch, number: int) -> None:
    search.report(number, 0, 1.0)
    search.finish(number, float("inf"))


@pytest.mark.parametrize(
    ("fail", "reason", "values"),
    [
        (fail_outright, "diverged at step 7", {}),
        (report_nan, "the loss is nan after 0 steps", {}),
        (finish_with_infinity, "loss = inf", {"0": 1.0}),
    ],
)
def test_a_failure_is_data_and_is_not_asked_for_again(
    fail: Callable[[BitSearch, int], None], reason: str, values: dict[str, float], tmp_path: Path
) -> None:
    search = open_search(tmp_path / "j", rungs=HALVING)
    first = search.ask()
    assert first is not None
    fail(search, first.number)
    row = search.evaluations()[0]
    assert (row["state"], row["reason"], row["values"], row["objectives"]) == ("failed", reason, values, None)
    rest = list(proposals(open_search(tmp_path / "j", rungs=HALVING)))
    assert [p.number for p in rest] == list(range(1, 12))
    assert first.bits not in {p.bits for p in rest}
    assert 0 not in {row["number"] for row in open_search(tmp_path / "j", rungs=HALVING).history()}


# --- several at a time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_was_in_flight_comes_first_after_a_kill(sampler: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"sampler": sampler, "evaluations": 18}
    search = open_search(tmp_path / "j", **config)
    asked = list(islice(iter(search.ask, None), 6))
    for proposal in (asked[1], asked[4]):
        evaluate(search, proposal)
    asked += list(islice(iter(search.ask, None), 2))
    reopened = open_search(tmp_path / "j", **config)
    again = list(islice(iter(reopened.ask, None), 7))
    assert again[:6] == [asked[n] for n in (0, 2, 3, 5, 6, 7)]
    assert again[6].number == 8
    for proposal in again:
        evaluate(reopened, proposal)
    list(proposals(reopened))
    rows = reopened.evaluations()
    assert [row["number"] for row in rows] == list(range(18))
    assert len({tuple(row["bits"].values()) for row in rows}) == 18
    assert all(trial.state.is_finished() for trial in plain_study(tmp_path / "j").trials)


# --- the study ----------------------------------------------------------------------------------------------------


def test_optuna_reads_the_journal(tmp_path: Path) -> None:
    list(proposals(search := open_search(tmp_path / "j", sampler="tpe")))
    study = plain_study(tmp_path / "j")
    assert study.user_attrs["space"] == "block"
    assert study.user_attrs["budget"] == PROBLEM.budget.model_dump(mode="json")
    assert study.user_attrs["config_digest"] == search.config.digest()
    complete = {t.user_attrs["number"]: t.value for t in study.trials if "number" in t.user_attrs}
    assert complete == {row["number"]: row["objectives"][0] for row in search.evaluations()}
    best = search.best()
    assert best is not None
    assert study.best_value == complete[best] == min(complete.values())


def test_a_database_works_like_a_journal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    config: dict[str, Any] = {"sampler": "nsga2", "evaluations": 18}
    undisturbed = list(proposals(open_search(**config)))
    some = list(islice(proposals(open_search(url, **config)), 8))
    rest = list(proposals(open_search(url, **config)))
    assert some[-1] == rest[0]  # handed out, but not evaluated
    assert some + rest[1:] == undisturbed


def test_more_evaluations_continue_a_study(tmp_path: Path) -> None:
    first = list(proposals(open_search(tmp_path / "j", evaluations=8)))
    more = list(proposals(open_search(tmp_path / "j", evaluations=14, confirm_seeds=(1,))))
    assert first + more == list(proposals(open_search(evaluations=14)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "tpe"}, "was begun with sampler random, now it is tpe: choose another name"),
        ({"seed": 5}, "was begun with seed 0, now it is 5"),
        ({"rungs": HALVING}, "was begun with rungs"),
        ({"known": {}}, "was begun with known"),
        ({"evaluations": 3}, "was begun with 12 evaluations, now it is 3: only more continue it"),
    ],
)
def test_another_search_does_not_continue_a_study(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    open_search(tmp_path / "j")
    with pytest.raises(ConfigError) as error:
        open_search(tmp_path / "j", **change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_sensitivities_or_budgets_do_not_continue_a_study(tmp_path: Path) -> None:
    search = open_search(tmp_path / "j")
    for other, key in ((PROBLEM.with_damage(PROBLEM.damage * 2), "damage and cost"), (make_problem(limit=3), "budget")):
        with pytest.raises(ConfigError, match=f"was begun with {key}"):
            BitSearch(other, search.config, storage=tmp_path / "j", study_name="s", known=KNOWN)


def test_a_study_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "j")))
    study = optuna.create_study(study_name="s", storage=storage)
    study.tell(study.ask(), 1.0)
    with pytest.raises(ConfigError, match="study 's' is not a search for bits: choose another name"):
        open_search(tmp_path / "j")


def test_known_bits_must_be_the_problems(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need 12 out of"):
        open_search(tmp_path / "j", known={"short": (1, 2)})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_are_plain_data(sampler: str) -> None:
    settings = open_search(sampler=sampler).sampler_settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["sampler"] == sampler


def test_history_is_the_best_so_far() -> None:
    search = open_search(evaluations=5)
    values = [4.0, 5.0, 2.0, float("nan"), 2.0]
    for value in values:
        proposal = search.ask()
        assert proposal is not None
        search.finish(proposal.number, value)
    assert [(row["number"], row["best"]) for row in search.history()] == [(0, 4.0), (1, 4.0), (2, 2.0), (4, 2.0)]
    assert search.best() == 2
    assert open_search().best() is None
    assert open_search().history() == []
    assert open_search().front() == []


# --- two objectives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
@pytest.mark.parametrize("space", ["policy", "block"])
def test_two_objectives_search_a_range_of_budgets(sampler: str, space: str) -> None:
    values = {"sampler": sampler, "space": space, "evaluations": 24, "budget_range": [1.5, 3.0]}
    config = SearchConfig.parse({**values, "objectives": ["loss", "average_bits"]})
    search = BitSearch(make_problem_at, config, storage=None, study_name="s", known=KNOWN)
    while (proposal := search.ask()) is not None:
        cost = PROBLEM.cost_of(proposal.bits)
        assert cost <= proposal.params.get("limit", 3.0) * (1 + 1e-9)
        search.finish(proposal.number, (loss_of(proposal.bits), cost))
    points = {row["number"]: row["objectives"] for row in search.evaluations()}
    assert len(points) == 24
    assert max(cost for _, cost in points.values()) > 2.2
    assert min(cost for _, cost in points.values()) < 2
    assert search.front() == [n for n, point in points.items() if not any(dominates(p, point) for p in points.values())]


def make_problem_at(limit: float) -> Problem:
    return make_problem(limit=limit)


def dominates(a: list[float], b: list[float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def test_both_ends_of_the_range_must_be_reachable() -> None:
    config = SearchConfig(objectives=("loss", "average_bits"), budget_range=(0.5, 3.0))
    with pytest.raises(ConfigError, match="cannot be reached"):
        BitSearch(make_problem_at, config, storage=None, study_name="s", known={})
    with pytest.raises(ConfigError, match="two a function of its limit"):
        BitSearch(PROBLEM, config.updated(budget_range=[1.5, 3.0]), storage=None, study_name="s", known={})
