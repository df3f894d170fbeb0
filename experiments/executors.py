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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from experiments.attempts import Outcome, StageFunction, attempt, one_line, run_stage
from experiments.fence import Fenced, LeaveRequest, behind_fence, fence_of
from robuq.config import ConfigError
from robuq.scratch import ScratchFolder
from robuq.stages import Stage
from robuq.stopping import Stopped, ask_also

START_ATTEMPTS = 3  # of workers that die before they have done anything, one after the other
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Without this, Ray listens on every interface of the machine. It is read when ray is first imported.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
ELSEWHERE = "192.0.2.1"  # of the net for documentation; nothing is sent there
HERE = "local"  # Ray's own word for no cluster: without it, one that is found on this machine would be taken
FOUND = "auto"  # and for one that is found
LONGEST_TEMPORARY = 43  # characters: sockets have names of up to 107, and Ray adds 64
LAST_PORT = 65535


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


def check_device_name(device: str) -> None:
    """Raises ConfigError: no machine has such a device."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not index.isdecimal()):
        raise ConfigError(f"unknown device {device!r}: cpu, cuda, or a certain GPU such as cuda:1")


def check_device(device: str) -> None:
    """Raises ConfigError: PyTorch sees no such device on this machine. Every machine has a CPU."""
    check_device_name(device)
    kind, _, index = device.partition(":")
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

    def __init__(self, function: StageFunction, folder: Path) -> None:
        """`folder`: the command's working folder, which paths in its configuration begin at."""
        if folder.is_dir():
            os.chdir(folder)
        _warm_up(function)
        self._function = function

    def process_id(self) -> int:
        return os.getpid()

    def attempt(self, stage: Stage, root: Path, device: str, token: str) -> Outcome:
        """`token`: of the fence of the command that wants it."""
        cancelled, leave = _ray().get_runtime_context().is_canceled, LeaveRequest(root)
        ask_also(lambda: cancelled() or leave())
        try:
            with behind_fence(root, token):
                return attempt(self._function, stage, root, device)
        except Fenced as error:
            return Outcome(stage, "lost", str(error))


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
        """`address`: of a running cluster that sees `root`; None starts one here, which ends with this process even
        where that is killed. `cpus`, `gpus`: of each worker.

        Returns at once; workers become free one by one.

        Raises:
            ConfigError: no cluster at the address, or no node that could hold a worker. Later: workers do not start.
        """
        self._root, self._device, self._function = root, device, function
        self._token = fence_of(root)
        self._session = start_ray(address, workers, cpus, gpus)
        self._actor_class = _ray().remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._starting: dict[Any, Any] = {}  # future of its process id -> actor
        self._idle: list[Any] = []
        self._working: dict[Any, tuple[Stage, Any]] = {}  # future of the outcome -> stage, actor
        self._failed_starts = 0
        for _ in range(workers):
            self._start_worker()

    def free(self) -> int:
        return len(self._idle)

    def submit(self, stage: Stage) -> None:
        actor = self._idle.pop()
        self._working[actor.attempt.remote(stage, self._root, self._device, self._token)] = (stage, actor)

    def wait(self, seconds: float) -> list[Outcome]:
        futures = [*self._working, *self._starting]
        if not futures:
            return []
        ended, _ = _ray().wait(futures, num_returns=1, timeout=seconds)
        more, _ = _ray().wait(futures, num_returns=len(futures), timeout=0) if ended else ([], [])
        return [outcome for future in more for outcome in self._settle(future)]

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
        if self._session is not None:
            self._session.close()
        self._session = None

    def _start_worker(self) -> None:
        actor = self._actor_class.remote(self._function, Path.cwd())
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
            self._start_worker()
            return [Outcome(stage, "lost", _first_line(error))]
        self._idle.append(actor)
        return [outcome]

    def _settle_start(self, future: Any) -> None:
        actor = self._starting.pop(future)
        try:
            _ray().get(future)
        except _worker_errors() as error:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                raise ConfigError(f"workers do not start: {one_line(error)}") from None
            self._start_worker()
        else:
            self._failed_starts = 0
            self._idle.append(actor)


class RaySession:
    """This process's connection to Ray."""

    def __init__(self, scratch: ScratchFolder | None = None) -> None:
        """`scratch`: where the Ray that was started here keeps its sockets and logs."""
        self._scratch = scratch

    def close(self) -> None:
        _ray().shutdown()
        if self._scratch is not None:
            self._scratch.close()


def start_ray(address: str | None, workers: int, cpus: float, gpus: float) -> RaySession | None:
    """Connect to a cluster, or start one on the loopback interface; None where there is a connection already.

    Raises:
        ConfigError: as RayExecutor's.
    """
    here = address in (None, HERE)
    loopback = here or _listens_on_loopback_only(str(address))
    for name, value in {**QUIET, **(LOOPBACK_ONLY if loopback else {})}.items():
        os.environ.setdefault(name, value)
    if _ray().is_initialized():
        return None
    return _start_here(workers, cpus, gpus) if here else _connect(str(address), cpus, gpus)


def _start_here(workers: int, cpus: float, gpus: float) -> RaySession:
    size = {"num_cpus": max(1, math.ceil(workers * cpus)), "num_gpus": math.ceil(workers * gpus) if gpus else None}
    with ExitStack() as undo:
        scratch = ScratchFolder("ray")
        undo.callback(scratch.close)
        place = {"_temp_dir": str(scratch.path)} if len(str(scratch.path)) <= LONGEST_TEMPORARY else {}
        with _own_sigterm():
            _ray().init(HERE, include_dashboard=False, _node_ip_address="127.0.0.1", **place, **size, **_settings())
        undo.pop_all()
    return RaySession(scratch)


def check_address_form(address: str) -> None:
    """Raises ConfigError: Ray has no such addresses."""
    scheme, mark, place = address.partition("://")
    if address not in (HERE, FOUND) and not (scheme and mark and place) and not _host_and_port(address)[0]:
        raise ConfigError(f"no Ray address {address!r}: HOST:PORT, ray://HOST:10001, {FOUND} or {HERE}")


def check_address(address: str) -> None:
    """Without Ray. Raises ConfigError: nobody listens there."""
    check_address_form(address)
    try:
        _check_that_someone_listens(address)
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"no Ray cluster at {address!r}: {_first_line(error)}")


def _connect(address: str, cpus: float, gpus: float) -> RaySession:
    try:
        _check_that_someone_listens(address)
        with _own_sigterm():
            _ray().init(address=address, **_settings())
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None
    _check_room(cpus, gpus)
    return RaySession()


def _settings() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": ONE_THREAD}}


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
    host, port = _host_and_port(address)
    if host:
        socket.create_connection((host, port), timeout=5).close()


def _listens_on_loopback_only(address: str) -> bool:
    """Ray takes a loopback address for the machine's own, at which such a cluster is not to be reached."""
    host, port = _host_and_port(address)
    if host not in ("localhost", "127.0.0.1", "::1"):
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((ELSEWHERE, 9))  # sends nothing
            own = probe.getsockname()[0]
        socket.create_connection((own, port), timeout=5).close()
    except OSError:
        return True
    return False


def _host_and_port(address: str) -> tuple[str, int]:
    """Both empty where the address has another form, such as a URL."""
    host, _, port = address.rpartition(":")
    fits = host and "/" not in host and port.isdecimal() and int(port) <= LAST_PORT
    return (host.strip("[]"), int(port)) if fits else ("", 0)


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

    crashes = ("RayActorError", "WorkerCrashedError", "OutOfMemoryError")
    of_nodes = ("NodeDiedError", "ObjectLostError", "RuntimeEnvSetupError")
    return tuple(getattr(exceptions, name) for name in crashes + of_nodes)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
