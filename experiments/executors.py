"""Who executes stages: this process, or a pool of warm Ray actors. The only file that imports ray.

An executor is given a stage when it has a free worker, and says later how it ended. Stages lie in a folder that
the driver and all workers see; nothing else passes between them.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from robuq.config import ConfigError
from robuq.stages import InputDamaged, Stage, StageStore
from robuq.stopping import Stopped, ask_also

StageFunction = Callable[[Stage, Path, str], Mapping[str, Any]]  # (stage, store's root, device) -> result

START_ATTEMPTS = 3  # of a worker that dies before it has done anything
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Without this, Ray listens on every interface of the machine. It is read when ray is first imported.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    `lost`: its worker died, nothing is known, try again. `damaged`: one of its inputs was, and has been set aside:
    make that anew, then try again. `stopped`: by request; a later launch goes on.
    """

    stage: Stage
    status: Literal["done", "failed", "lost", "damaged", "stopped"]
    reason: str = ""  # one line


class Executor(Protocol):
    def free(self) -> int:
        """Workers that wait for a stage."""
        ...

    def submit(self, stage: Stage) -> None:
        """Hand a stage to a free worker."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Stages that ended; empty after `seconds`, or as soon as another worker has become free."""
        ...

    def stop(self, seconds: float) -> None:
        """Ask all workers to keep what they have and stop, and wait until they did, but not for longer."""
        ...

    def close(self) -> None:
        """End all workers; what they were doing can be continued by a later launch."""
        ...


def run_stage(stage: Stage, root: Path, device: str) -> Mapping[str, Any]:
    """The stage function of real runs: one thread, numpy's included, so that every executor gives the same bits."""
    import torch
    from threadpoolctl import threadpool_limits

    from robuq import pipeline

    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        result: Mapping[str, Any] = pipeline.run_stage(stage, StageStore(root), device)
    return result


def check_device(device: str) -> None:
    """Raises ConfigError: PyTorch sees no such device on this machine. Every machine has a CPU."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not index.isdecimal()):
        raise ConfigError(f"unknown device {device!r}: cpu, cuda, or a certain GPU such as cuda:1")
    if kind == "cuda":
        import torch  # takes seconds

        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            raise ConfigError(
                f"no device {device!r}: PyTorch sees {count} GPUs on this machine; --device cpu needs none"
            )


def _warm_up(function: StageFunction) -> None:
    """Import what the first stage would otherwise wait for."""
    if function is run_stage:
        importlib.import_module("robuq.pipeline")


class _Caught(AbstractContextManager["_Caught"]):
    """Keeps the exception of its block: on a worker a failure is data. Interrupts and exits pass."""

    error: Exception | Stopped | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error if isinstance(error, (Exception, Stopped)) else None
        return self.error is not None


def attempt(function: StageFunction, stage: Stage, root: Path, device: str) -> Outcome:
    """Run a stage; the outcome is never lost. A failure that was not foreseen leaves its traceback in failure.json."""
    with _Caught() as caught:
        function(stage, root, device)
    if caught.error is None:
        return Outcome(stage, "done")
    if isinstance(caught.error, Stopped):
        return Outcome(stage, "stopped")
    if isinstance(caught.error, InputDamaged):
        return Outcome(stage, "damaged", str(caught.error))
    store, reason = StageStore(root), one_line(caught.error)
    if store.work_folder(stage).is_dir() and store.failure(stage) is None:
        store.fail(stage, reason, "".join(traceback.format_exception(caught.error)))
    return Outcome(stage, "failed", reason)


def one_line(error: BaseException) -> str:
    """`ValueError: what it says`; our own failures speak for themselves."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text.removeprefix("robuq.pipeline.StageFailed: ")


class LocalExecutor:
    """In this process, one stage after the other."""

    def __init__(self, root: Path, device: str = "cpu", function: StageFunction = run_stage) -> None:
        self._root, self._device, self._function = root, device, function
        self._next: Stage | None = None

    def free(self) -> int:
        return 0 if self._next else 1

    def submit(self, stage: Stage) -> None:
        if self._next is not None:
            raise RuntimeError("the local executor has one worker, and it has a stage already")
        self._next = stage

    def wait(self, seconds: float) -> list[Outcome]:
        if self._next is None:
            return []
        stage, self._next = self._next, None
        return [attempt(self._function, stage, self._root, self._device)]

    def stop(self, seconds: float) -> None:
        """Nothing runs outside `wait`."""

    def close(self) -> None:
        self._next = None


class OnDemandExecutor:
    """An executor that is made when the first stage is to be executed: no cluster for nothing."""

    def __init__(self, make: Callable[[], Executor], workers: int) -> None:
        """`workers`: how many the executor will have."""
        self._make, self._workers = make, workers
        self._executor: Executor | None = None
        self._queue: list[Stage] = []
        self._given = 0

    def free(self) -> int:
        return self._workers - self._given

    def submit(self, stage: Stage) -> None:
        self._queue.append(stage)
        self._given += 1

    def wait(self, seconds: float) -> list[Outcome]:
        if not self._given:
            return []
        if self._executor is None:
            self._executor = self._make()
        for _ in range(min(self._executor.free(), len(self._queue))):
            self._executor.submit(self._queue.pop(0))
        outcomes = self._executor.wait(seconds)
        self._given -= len(outcomes)
        return outcomes

    def stop(self, seconds: float) -> None:
        if self._executor is not None:
            self._executor.stop(seconds)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()
        self._executor, self._queue, self._given = None, [], 0


class _Worker:
    """What lives in a Ray actor: imports done once, stages one after the other."""

    def __init__(self, function: StageFunction) -> None:
        _warm_up(function)
        self._function = function

    def process_id(self) -> int:
        return os.getpid()

    def attempt(self, stage: Stage, root: Path, device: str) -> Outcome:
        ask_also(_ray().get_runtime_context().is_canceled)
        return attempt(self._function, stage, root, device)


class RayExecutor:
    """Warm Ray actors, one stage at a time each; a dead one is replaced and its stage reported as lost."""

    def __init__(
        self,
        root: Path,
        device: str = "cpu",
        workers: int = 2,
        address: str | None = None,
        cpus: float = 1,
        gpus: float = 0,
        function: StageFunction = run_stage,
    ) -> None:
        """`address`: of a running cluster that sees `root`; None starts one here. `cpus`, `gpus`: of each worker.

        Returns at once; workers become free one by one.

        Raises:
            ConfigError: no cluster at the address, or no node that could hold a worker.
        """
        self._root, self._device, self._function = root, device, function
        self._owns_ray = start_ray(address, workers, cpus, gpus)
        self._actor_class = _ray().remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._starting: dict[Any, Any] = {}  # future of its process id -> actor
        self._idle: list[Any] = []
        self._working: dict[Any, tuple[Stage, Any]] = {}  # future of the outcome -> stage, actor
        self._process_ids: dict[Any, int] = {}
        self._failed_starts = 0
        for _ in range(workers):
            self._start_worker()

    def free(self) -> int:
        return len(self._idle)

    def submit(self, stage: Stage) -> None:
        actor = self._idle.pop()
        self._working[actor.attempt.remote(stage, self._root, self._device)] = (stage, actor)

    def wait(self, seconds: float) -> list[Outcome]:
        futures = [*self._working, *self._starting]
        if not futures:
            return []
        ended, _ = _ray().wait(futures, num_returns=1, timeout=seconds)
        more, _ = _ray().wait(futures, num_returns=len(futures), timeout=0) if ended else ([], [])
        return [outcome for future in more for outcome in self._settle(future)]

    def process_ids(self) -> list[int]:
        """Of the workers that are busy, in the order of their stages' submission."""
        return [self._process_ids[actor] for _, actor in self._working.values()]

    def stop(self, seconds: float) -> None:
        for future in self._working:
            _ray().cancel(future)
        after = [actor.process_id.remote() for _, actor in self._working.values()]  # each waits behind its stage
        if after:
            _ray().wait(after, num_returns=len(after), timeout=seconds)

    def close(self) -> None:
        for actor in [*self._idle, *self._starting.values(), *(actor for _, actor in self._working.values())]:
            _ray().kill(actor)
        self._idle, self._starting, self._working = [], {}, {}
        if self._owns_ray:
            _ray().shutdown()

    def _start_worker(self) -> None:
        actor = self._actor_class.remote(self._function)
        self._starting[actor.process_id.remote()] = actor

    def _settle(self, future: Any) -> list[Outcome]:
        if future in self._starting:
            self._settle_start(future)
            return []
        stage, actor = self._working.pop(future)
        try:
            outcome: Outcome = _ray().get(future)
        except _worker_errors() as error:
            _ray().kill(actor)
            self._process_ids.pop(actor, None)
            self._start_worker()
            return [Outcome(stage, "lost", _first_line(error))]
        self._idle.append(actor)
        return [outcome]

    def _settle_start(self, future: Any) -> None:
        actor = self._starting.pop(future)
        try:
            self._process_ids[actor] = _ray().get(future)
        except _worker_errors() as error:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                raise RuntimeError(f"workers do not start: {error}") from error
            self._start_worker()
        else:
            self._idle.append(actor)


def start_ray(address: str | None, workers: int, cpus: float, gpus: float) -> bool:
    """Connect to a cluster, or start one on the loopback interface; whether this call did so.

    Raises:
        ConfigError: as RayExecutor's.
    """
    for name, value in {**QUIET, **({} if address else LOOPBACK_ONLY)}.items():
        os.environ.setdefault(name, value)
    ray = _ray()
    if ray.is_initialized():
        return False
    settings = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": ONE_THREAD}}
    if address is None:
        here = {"num_cpus": max(1, math.ceil(workers * cpus)), "num_gpus": math.ceil(workers * gpus) if gpus else None}
        with _own_sigterm():
            ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", **here, **settings)
        return True
    try:
        _check_that_someone_listens(address)
        with _own_sigterm():
            ray.init(address=address, **settings)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {_first_line(error)}") from None
    _check_room(cpus, gpus)
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and leaves by SystemExit: give it back to the handler it had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise Stopped from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_that_someone_listens(address: str) -> None:
    """Ray itself tries for minutes before it gives up."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _check_room(cpus: float, gpus: float) -> None:
    nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise ConfigError(f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for one run: ask for less")


def _ray() -> Any:
    """Imported late: it takes a second, and only sweeps need it."""
    import ray

    return ray


def _worker_errors() -> tuple[type[BaseException], ...]:
    """What ray.get raises if the worker, its node or its memory is gone."""
    from ray import exceptions

    names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
    return tuple(getattr(exceptions, name) for name in names)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
