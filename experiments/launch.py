"""From runs to finished stages: what is missing goes to an executor, in dependency order, as soon as it can.

Launching again does only what is missing; there is no other resume path. Jobs may come in while it runs: a search
asks for the next when it has seen how earlier ones ended.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol

from experiments.attempts import Outcome
from experiments.executors import Executor
from experiments.ready import ReadyStages
from experiments.signals import stopping_at_boundaries
from robuq.config import DataConfig, RunConfig
from robuq.data.fingerprint import data_fingerprint
from robuq.stages import PlainRuns, Stage, StageStore, distinct, stages_of
from robuq.stopping import Stopped, stop_requested
from robuq.storage_fault import StorageFault

MAX_LOSSES = 2  # workers that a stage may lose, or damaged inputs it may find, before it counts as failed
WAIT_SECONDS = 1.0  # between looks at the clock while nothing ends
STOP_SECONDS = 8.0  # for workers to keep what they have, once they are asked to stop

log = logging.getLogger(__name__)

Status = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Job:
    """A run and its stages in dependency order. `data`: its data set's fingerprint."""

    run: RunConfig
    stages: tuple[Stage, ...]
    data: str = ""


@dataclass(frozen=True)
class JobEnd:
    """A job that is over; `failure` is one line, None where it finished."""

    job: Job
    failure: str | None


class Observer(Protocol):
    """Is told what happens, in the driver's thread."""

    def stage_started(self, stage: Stage) -> None: ...

    def stage_ended(self, outcome: Outcome) -> None: ...

    def job_ended(self, end: JobEnd) -> None: ...


# Jobs that come in during a launch, in the driver's thread: given how many could start at once, the next ones. What
# observers were told has happened by then. A launch ends when nothing is left to do and this gives nothing.
MoreJobs = Callable[[int], Sequence[Job]]


def no_more(free: int) -> Sequence[Job]:
    return ()


def jobs_of(runs: Iterable[RunConfig]) -> list[Job]:
    """Raises ConfigError if a data set's files are missing."""
    fingerprints: dict[DataConfig, str] = {}
    known: dict[str, Stage] = {}  # one object for a stage that many runs share
    plain, jobs = PlainRuns(), []
    for run in runs:
        if run.data not in fingerprints:
            fingerprints[run.data] = data_fingerprint(run.data)
        data = fingerprints[run.data]
        stages = tuple(known.setdefault(stage.id, stage) for stage in stages_of(run, data, plain.of(run)))
        jobs.append(Job(run, stages, data))
    return jobs


class Sweep:
    """Which stage is where. Pure bookkeeping: executes and writes nothing."""

    def __init__(self, jobs: Sequence[Job], store: StageStore, seconds: Callable[[Stage], float]) -> None:
        """`seconds`: the estimated duration of a stage."""
        self.jobs: list[Job] = []
        self.stages: dict[str, Stage] = {}
        self.status: dict[str, Status] = {}
        self.counts: Counter[Status] = Counter()  # of stages
        self.seconds: dict[str, float] = {}
        self.started: dict[str, float] = {}  # monotonic seconds, of running stages
        self.took: dict[str, float] = {}  # seconds, of stages that ended in this launch
        self.reasons: dict[str, str] = {}  # of failed stages
        self.repaired: list[str] = []  # finished stages that were found damaged, one line each: they are done anew
        self.halted: str | None = None  # why nothing can go on, one line
        self._store, self._estimate = store, seconds
        self._losses: dict[str, int] = {}
        self._order: dict[str, int] = {}
        self._remaining: dict[str, float] = {}
        self._users: dict[str, list[int]] = {}  # stage -> places in `jobs` of those that use it
        self._children: dict[str, list[str]] = {}  # stage -> stages that it is an input of
        self._left: dict[int, int] = {}  # place of each open job -> how many of its stages are not done
        self._wanted: Counter[str] = Counter()  # stage -> open jobs that use it
        self._ending: Counter[str] = Counter()  # stage -> open jobs that it is the last one of
        self._waiting: dict[str, float] = {}  # wanted stages that wait -> their seconds
        self._waiting_seconds = 0.0  # their sum
        self._ready = ReadyStages()
        self._ended: list[JobEnd] = []
        self.add(jobs)

    def add(self, jobs: Sequence[Job]) -> None:
        """More to do; stages that are known already are shared."""
        for stage in distinct(stage for job in jobs for stage in job.stages):
            if stage.id not in self.stages:
                self._order[stage.id] = len(self._order)
                if problem := self._store.settle(stage):
                    self.repaired.append(f"{stage.id}: {problem}; it was set aside and is made anew")
                    log.warning(self.repaired[-1])
                self.status[stage.id] = "done" if self._store.is_done(stage) else "waiting"
                self.counts[self.status[stage.id]] += 1
                self.seconds[stage.id] = max(self._estimate(stage), 1e-3)
                self.stages[stage.id] = stage
                for parent in stage.inputs.values():
                    self._children.setdefault(parent, []).append(stage.id)
        places = range(len(self.jobs), len(self.jobs) + len(jobs))
        self.jobs += jobs
        for place in places:
            self._open(place)
        self._remaining = self._longest_paths()
        self._close_jobs(places)
        for name in self.stages:
            self._refresh(name)

    @property
    def ready_count(self) -> int:
        """How many stages could start now."""
        return len(self._ready)

    def ready(self, count: int | None = None) -> list[Stage]:
        """The best `count` of the stages that can start now, the best first; without it all of them."""
        names = self._ready.first(len(self._ready) if count is None else count, len(self.started))
        return [self.stages[name] for name in names]

    def start(self, stage: Stage) -> None:
        self._set(stage.id, "running")
        self.started[stage.id] = time.monotonic()

    def settle(self, outcome: Outcome) -> None:
        name = outcome.stage.id
        self.took[name] = time.monotonic() - self.started.pop(name)
        if outcome.status in ("lost", "damaged"):
            self._losses[name] = self._losses.get(name, 0) + 1
            if self._losses[name] <= MAX_LOSSES:
                self._set(name, "waiting")
                self._reopen_inputs(outcome.stage)
                return
            what = "lost its worker" if outcome.status == "lost" else "found its inputs damaged"
            self.reasons[name] = f"{what} {self._losses[name]} times: {outcome.reason}"
        elif outcome.status in ("stopped", "halted"):
            self._set(name, "waiting")
            if outcome.status == "halted":
                self.halted = outcome.reason
            return
        elif outcome.status == "failed":
            self.reasons[name] = outcome.reason
        self._set(name, "done" if outcome.status == "done" else "failed")
        self._close_jobs(self._users[name])

    def ended_jobs(self) -> list[JobEnd]:
        """Jobs that ended since the last call: all stages done, or one failed."""
        ended, self._ended = self._ended, []
        return ended

    def is_over(self) -> bool:
        """Nothing is running, and nothing can start."""
        return not self._left and not self.started

    def seconds_left(self, workers: int) -> float:
        """Estimated; stages under way count with what is left of them. A display's thread may call this."""
        now = time.monotonic()
        under_way = sum(max(0.0, self.seconds[name] - (now - begun)) for name, begun in list(self.started.items()))
        return (max(0.0, self._waiting_seconds) + under_way) / max(workers, 1)

    def _open(self, place: int) -> None:
        stages = self.jobs[place].stages
        self._left[place] = sum(self.status[stage.id] != "done" for stage in stages)
        for stage in stages:
            self._users.setdefault(stage.id, []).append(place)
            self._wanted[stage.id] += 1
        self._ending[stages[-1].id] += 1

    def _close_jobs(self, places: Iterable[int]) -> None:
        """Those of them that are open, and of which every stage is done or one has failed."""
        for place in places:
            if place not in self._left:
                continue
            job = self.jobs[place]
            failed = next((stage for stage in job.stages if self.status[stage.id] == "failed"), None)
            if failed is not None:
                self._ended.append(JobEnd(job, f"{failed.kind} {failed.key}: {self.reasons[failed.id]}"))
            elif not self._left[place]:
                self._ended.append(JobEnd(job, None))
            else:
                continue
            del self._left[place]
            self._ending[job.stages[-1].id] -= 1
            for stage in job.stages:
                self._wanted[stage.id] -= 1
                self._refresh(stage.id)

    def _set(self, name: str, status: Status) -> None:
        """A stage's status, and all that follows from it for what can start."""
        before, self.status[name] = self.status[name], status
        self.counts[before] -= 1
        self.counts[status] += 1
        more_left = (before == "done") - (status == "done")
        if more_left:
            for place in self._users[name]:
                if place in self._left:
                    self._left[place] += more_left
            for child in self._children.get(name, []):
                self._refresh(child)
        self._refresh(name)

    def _refresh(self, name: str) -> None:
        """Whether a stage waits, and whether it could start."""
        waits = self._wanted[name] > 0 and self.status[name] == "waiting"
        self._waiting_seconds -= self._waiting.pop(name, 0.0)
        if waits:
            self._waiting[name] = self.seconds[name]
            self._waiting_seconds += self.seconds[name]
        if waits and self._inputs_done(self.stages[name]):
            self._ready.put(name, self._remaining[name], self._order[name], self._ending[name] > 0)
        else:
            self._ready.discard(name)

    def _reopen_inputs(self, stage: Stage) -> None:
        """Those that were done and are no longer there wait again."""
        for parent in stage.inputs.values():
            known = self.stages.get(parent)
            if known is not None and self.status[parent] == "done" and not self._store.is_done(known):
                self._set(parent, "waiting")
                self._reopen_inputs(known)

    def _inputs_done(self, stage: Stage) -> bool:
        return all(self.status.get(parent, "done") == "done" for parent in stage.inputs.values())

    def _longest_paths(self) -> dict[str, float]:
        """Seconds from a stage's start to the end of the longest chain that begins with it."""
        after = dict.fromkeys(self.stages, 0.0)
        for name, stage in reversed(self.stages.items()):  # a stage comes after its inputs
            for parent in stage.inputs.values():
                if parent in after:
                    after[parent] = max(after[parent], self.seconds[name] + after[name])
        return {name: self.seconds[name] + after[name] for name in self.stages}


def launch(
    sweep: Sweep,
    executor: Executor,
    on_end: Callable[[JobEnd], None],
    observers: Sequence[Observer] = (),
    more: MoreJobs = no_more,
) -> list[JobEnd]:
    """Execute all that is missing; every job's end, in the order of ending.

    `on_end` is called once a job, in one thread beside this one, so that recording never holds up a worker; what it
    raises is raised here.

    Raises:
        Stopped: a signal asked for it; the same launch goes on.
        StorageFault: the disk does not take what is written; once it does, the same launch goes on.
    """
    ends: list[JobEnd] = []
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="record") as recording, stopping_at_boundaries():
        pending: deque[Future[None]] = deque()
        _announce(sweep, observers, ends, pending, recording, on_end)
        while not (stop_requested() or sweep.halted) and (_admit(sweep, executor, more) or not sweep.is_over()):
            if sweep.is_over():  # what came in is in the store already
                _announce(sweep, observers, ends, pending, recording, on_end)
                continue
            _dispatch(sweep, executor, observers)
            for outcome in executor.wait(WAIT_SECONDS):
                sweep.settle(outcome)
                if not sweep.halted:
                    _dispatch(sweep, executor, observers)
                for observer in observers:
                    observer.stage_ended(outcome)
            _announce(sweep, observers, ends, pending, recording, on_end)
            _settle_records(pending)
        while pending and not (stop_requested() or sweep.halted):
            wait([pending[0]], WAIT_SECONDS)
            _settle_records(pending)
        if stop_requested() or sweep.halted:
            _leave(sweep, executor, recording)
    return ends


def _leave(sweep: Sweep, executor: Executor, recording: ThreadPoolExecutor) -> NoReturn:
    """Records that are not begun are made by the next launch."""
    recording.shutdown(wait=False, cancel_futures=True)
    executor.stop(STOP_SECONDS)
    if sweep.halted:
        raise StorageFault(sweep.halted)
    raise Stopped


def _admit(sweep: Sweep, executor: Executor, more: MoreJobs) -> bool:
    """Let jobs in that could start at once; whether any came."""
    room = executor.free() - sweep.ready_count
    jobs = more(max(room, 1 if sweep.is_over() else 0))  # workers that are still starting count as busy
    if jobs:
        sweep.add(jobs)
    return bool(jobs)


def _settle_records(pending: deque[Future[None]]) -> None:
    """Forget those that are made, which is done in their order. Raises what making one raised."""
    while pending and pending[0].done():
        pending.popleft().result()


def _dispatch(sweep: Sweep, executor: Executor, observers: Sequence[Observer]) -> None:
    free = executor.free()
    for stage in sweep.ready(free) if free else []:
        sweep.start(stage)
        executor.submit(stage)
        for observer in observers:
            observer.stage_started(stage)


def _announce(
    sweep: Sweep,
    observers: Sequence[Observer],
    ends: list[JobEnd],
    pending: deque[Future[None]],
    recording: ThreadPoolExecutor,
    on_end: Callable[[JobEnd], None],
) -> None:
    for end in sweep.ended_jobs():
        ends.append(end)
        pending.append(recording.submit(on_end, end))
        for observer in observers:
            observer.job_ended(end)


def missing(jobs: Sequence[Job], store: StageStore) -> Mapping[str, Stage]:
    """Distinct stages that are not done."""
    return {
        stage.id: stage for stage in distinct(stage for job in jobs for stage in job.stages) if not store.is_done(stage)
    }
