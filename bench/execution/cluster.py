"""Jobs as tasks on a Ray cluster. The code of this project goes along; packages, data and the cache folder must be on every machine.

The cache folder holds the trained networks, which one machine writes and another reads, so it must be shared, as the data, the plug-ins
and a store that is a file. Before the first job one task on each machine looks for them, so that what is missing is said at once.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.execution.executors import TICK, Follow, Function, Job, JobFailure, Queue, Tick, attempt, too_long
from bench.spec.errors import UserError, shortened
from bench.trial import heartbeat, provenance

PATIENCE = 60.0  # seconds to connect, and for the first task on each machine
TRIES = 3  # a task is lost with its machine; the cluster may lose several
STEP = 10 * TICK  # most seconds of one wait that count for the limit, see `bench.execution.local`
_LOST = object()


@dataclass
class _Task:
    """A job on the cluster: the file that it touches when a piece of its work begins, the seconds since then, and the number of tries."""

    job: Job
    begun: Path
    seen: int = 0
    spent: float = 0.0
    tries: int = 1

    def overdue(self, passed: float, limit: float | None) -> bool:
        """Whether it has taken too long, `passed` seconds later. A task that waits for a machine takes no time."""
        with contextlib.suppress(OSError):
            at = self.begun.stat().st_mtime_ns
            self.spent, self.seen = (self.spent + passed if at == self.seen else 0.0), at
        return limit is not None and self.spent > limit


class Ray:
    """Runs jobs on a Ray cluster; see `bench.execution.executors.Executor`.

    Args:
        workers: largest number of jobs at a time; None: the number of CPUs or GPUs of the cluster.
        gpus: whether each job needs a GPU.
        address: address of the cluster; None: this machine.
        cache: the cache folder.
        files: further files and folders that every machine must see.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be used; the message says why.
    """

    def __init__(self, workers: int | None, gpus: bool, address: str | None, cache: Path, files: Sequence[Path] = ()) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray needs the package ray: pip install 'razorbench[ray]'") from None
        self._ray = ray
        _check_reachable(address)
        self._connect(address)
        self._folder = cache / "progress" / f"ray-{secrets.token_hex(4)}"
        self._folder.mkdir(parents=True)
        try:
            self._probe(gpus, [self._folder, *files])
        except BaseException:
            self.close()
            raise
        resources = ray.cluster_resources()
        self.workers = workers or int(resources.get("GPU" if gpus else "CPU", 1)) or 1
        self._resources = {"num_gpus": 1} if gpus else {"num_cpus": 1}

    def _connect(self, address: str | None) -> None:
        """Connect to the cluster; in a thread, because Ray may wait for minutes, and takes over SIGTERM in the main thread."""
        logging.getLogger("ray").setLevel(logging.ERROR)  # it says that it does not handle SIGTERM, which `bench.cli` does
        root, outcome = Path(__file__).resolve().parents[2], list[str]()
        shipped = {
            "py_modules": [str(root / name) for name in ("bench", "methods")],
            "env_vars": {provenance.SHIPPED: provenance.shipped()},
        }

        def connect() -> None:
            try:
                self._ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, configure_logging=False, runtime_env=shipped)
                outcome.append("")
            except Exception as error:
                outcome.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        why = outcome[0] if outcome else f"no answer within {PATIENCE:g} seconds"
        if why:
            raise UserError(f"cannot reach the Ray cluster at '{address or 'this machine'}': {why}")

    def _probe(self, gpus: bool, needed: Sequence[Path]) -> None:
        """Let every machine look for what the jobs need. UserError names the machine and what it lacks."""
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        resource = "GPU" if gpus else "CPU"
        nodes = {n["NodeID"]: n["NodeManagerHostname"] for n in self._ray.nodes() if n["Alive"] and n["Resources"].get(resource)}
        if not nodes:
            raise UserError(f"no machine of the Ray cluster has a {resource}")
        task = self._ray.remote(num_cpus=0, max_retries=0)(missing)
        asked = {
            task.options(scheduling_strategy=strategy(node_id=node, soft=False)).remote(list(map(str, needed)), gpus): name
            for node, name in nodes.items()
        }
        done, late = self._ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
        if late:
            raise UserError(f"the Ray worker on {asked[late[0]]} does not answer within {PATIENCE:g} seconds")
        for ref in done:
            try:
                lacking = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                lacking = _last_line(error)
            if lacking:
                raise UserError(f"the Ray worker on {asked[ref]} cannot do the jobs: {lacking}")

    def run(
        self, function: Function, queue: Queue, *, follow: Follow, tick: Tick, limit: float | None = None
    ) -> Iterator[tuple[Job, Any]]:  # fmt: skip
        """See `Executor.run`. A job that is lost with its worker or machine is done again, at most three times in all."""
        remote = self._ray.remote(max_retries=0, **self._resources)(_do)
        running: dict[Any, _Task] = {}
        again: deque[_Task] = deque()
        while queue or again or running:
            while len(running) < self.workers and (task := again.popleft() if again else self._next(queue)) is not None:
                running[remote.remote(function, task.job, str(task.begun), os.getcwd())] = task
            tick([task.job for task in running.values()])
            if not running:
                time.sleep(TICK)  # other runs do all remaining jobs
                continue
            ended = []
            for task, result in self._ended(running, limit):
                if result is not _LOST:
                    ended.append((task.job, result))
                elif task.tries < TRIES:
                    again.append(replace(task, tries=task.tries + 1, seen=0, spent=0.0))
                else:
                    ended.append((task.job, JobFailure(f"the worker or its machine died {TRIES} times on this job")))
            for job, result in ended:
                queue.add(follow(job, result))
            yield from ended

    def _next(self, queue: Queue) -> _Task | None:
        job = queue.take()
        return None if job is None else _Task(job, self._folder / secrets.token_hex(8))

    def _ended(self, running: dict[Any, _Task], limit: float | None) -> list[tuple[_Task, Any]]:
        """Wait a moment, and remove the tasks that have ended; each with its result, `_LOST` if its worker or machine died."""
        start = time.monotonic()
        done, _ = self._ray.wait(list(running), num_returns=1, timeout=TICK)
        passed = min(time.monotonic() - start, STEP)
        late = [ref for ref, task in running.items() if ref not in done and task.overdue(passed, limit)]
        for ref in late:
            self._ray.cancel(ref, force=True)
        return [*((running.pop(ref), self._outcome(ref)) for ref in done), *((running.pop(ref), too_long(limit or 0.0)) for ref in late)]

    def _outcome(self, ref: Any) -> Any:
        """The result of a task; `_LOST` if its worker or machine died."""
        lost = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except (lost.WorkerCrashedError, lost.NodeDiedError, lost.OutOfMemoryError, lost.ObjectLostError):
            return _LOST
        except lost.RayError as error:
            return JobFailure(_last_line(error))

    def close(self) -> None:
        """See `Executor.close`. The cluster stops the tasks of a program that has disconnected."""
        thread = threading.Thread(target=self._ray.shutdown, daemon=True)
        thread.start()
        thread.join(3)
        for file in self._folder.glob("*"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return shortened(f"{type(error).__name__}: {lines[-1]}")


def _check_reachable(address: str | None) -> None:
    """Raise UserError if nothing listens at an address of the form [ray://]host:port. Ray itself would try for minutes, silently."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise UserError(f"cannot reach the Ray cluster at '{address}': {reason}") from None


def missing(needed: list[str], gpus: bool) -> str:
    """What this machine lacks for jobs, in words; '' if it lacks nothing. Runs on the cluster.

    Args:
        needed: files and folders that it must see.
        gpus: whether the jobs need a GPU.
    """
    try:
        import torch

        import bench.trial.trial  # noqa: F401 (whether it can be imported)
    except ImportError as error:
        return f"{error}; install razorbench's packages there"
    here, wanted = torch.__version__, provenance.shipped_torch()
    if wanted and here.partition("+")[0] != wanted.partition("+")[0]:
        return f"it has torch {here}, this machine has {wanted}: rows would be stored under the wrong version"
    lacking = next((path for path in needed if not Path(path).exists()), None)
    if lacking is not None:
        return f"it does not see '{lacking}'; all machines must share the cache folder (.bench), data, plug-ins and a store that is a file"
    if gpus and not torch.cuda.is_available():
        return "torch finds no GPU there"
    return ""


def _do(function: Function, job: Job, begun: str, folder: str) -> Any:
    """Do a job on the cluster, in the folder in which the run was started if it is there."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    heartbeat.announce = Path(begun).touch
    Path(begun).touch()
    return attempt(function, job)
