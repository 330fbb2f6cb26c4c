"""Executors: run jobs in several processes, and yield their results as they finish. A result may add further jobs.

    for job, result in executor.run(function, Queue(jobs), follow=..., tick=...): ...

If the function raises an exception, or a worker process dies, the result is a `JobFailure`, and the other jobs go on. The number of threads
is set by the job: for small networks, two workers with one thread have twice the throughput of one worker with two threads.
"""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

from bench.spec.errors import UserError, unknown

EXECUTORS = ("local", "ray")
FORKING = "forkserver" in multiprocessing.get_all_start_methods()
CLOSING = 5.0  # largest number of seconds to wait for the end of killed workers
TICK = 0.5  # seconds between two updates of the progress

Job = Any
Follow = Callable[[Job, Any], Iterable[Job]]
Tick = Callable[[list[Job]], None]


@dataclass(frozen=True)
class JobFailure:
    """The result of a job whose worker process died, or whose function raised an exception."""

    error: str


_BROKEN = JobFailure("the worker process died")


class Queue:
    """Waiting jobs, first in, first out."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._waiting = deque(jobs)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, jobs: Iterable[Job]) -> None:
        """Append jobs."""
        self._waiting.extend(jobs)

    def take(self) -> Job | None:
        """Remove and return the next job; None if there is none at the moment."""
        return self._waiting.popleft() if self._waiting else None


def make(name: str, workers: int | None = None, *, gpus: bool = False, address: str | None = None) -> "Local | Ray":
    """Make an executor.

    Args:
        name: one of `EXECUTORS`.
        workers: number of worker processes; None: the number of cores, or the resources of the Ray cluster.
        gpus: whether each job needs a GPU.
        address: address of the Ray cluster; None: this machine.

    Raises:
        UserError: the name is unknown, Ray is not installed, or its cluster cannot be reached.
    """
    if name == "local":
        return Local(workers or os.cpu_count() or 1)
    if name == "ray":
        return Ray(workers, gpus, address)
    raise unknown("executor", name, EXECUTORS)


def preload() -> None:
    """Start the server process from which local workers are forked. Its imports take seconds; the caller does not wait for them."""
    if FORKING:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["bench.trial.trial", "torchmetrics.functional.classification"])
        forkserver.ensure_running()


class Local:
    """Worker processes on this machine, forked from a server process that has already imported torch and other large packages."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._context = multiprocessing.get_context("forkserver" if FORKING else "spawn")
        self._pool: ProcessPoolExecutor | None = None

    def _start(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, self._context, initializer=_prepare_worker)

    def run(self, function: Callable[[Job], Any], queue: Queue, *, follow: Follow, tick: Tick) -> Iterator[tuple[Job, Any]]:
        """Run jobs, and yield (job, result) as they finish.

        Args:
            function: computes the result of a job; it must be picklable.
            queue: the jobs.
            follow: (job, result) -> further jobs, which are added to the queue.
            tick: called regularly with the running jobs.
        """
        running: dict[Future[Any], Job] = {}
        while queue or running:
            self._pool = self._pool or self._start(self.workers)
            # One more than the workers, so that a worker can start the next job at once.
            while len(running) <= self.workers and (job := queue.take()) is not None:
                running[self._pool.submit(function, job)] = job
            tick(list(running.values())[: self.workers])
            done, _ = wait(running, timeout=TICK, return_when=FIRST_COMPLETED)
            if not running:
                time.sleep(TICK)  # other runs do all remaining jobs
            ended = [(running.pop(f), _outcome(f)) for f in done]
            casualties = [job for job, result in ended if result is _BROKEN]
            if casualties:
                # A dead worker breaks the whole pool, and it is unknown which job killed it: run each running job again, alone.
                casualties += running.values()
                running.clear()
                self._pool = None
                ended = [(job, result) for job, result in ended if result is not _BROKEN]
                ended += [(job, self._alone(function, job)) for job in casualties]
            for job, result in ended:
                queue.add(follow(job, result))
            yield from ended

    def _alone(self, function: Callable[[Job], Any], job: Job) -> Any:
        # Twice, because a worker may also die for a reason outside the job.
        for _ in range(2):
            with self._start(1) as pool:
                result = _outcome(pool.submit(function, job))
            if result is not _BROKEN:
                return result
        return JobFailure("the worker process died twice on this job (killed, or out of memory)")

    def close(self) -> None:
        """Kill the workers. Their current jobs are not recorded, and the next run does them again."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            manager: Any = self._pool._executor_manager_thread
            self._pool.shutdown(wait=False, cancel_futures=True)
            if manager is not None:  # one that is still at work when Python exits ends in a traceback
                manager.join(CLOSING)
            self._pool = None


def _outcome(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        return _BROKEN
    except Exception as error:
        return JobFailure(f"{type(error).__name__}: {error}")


def _prepare_worker() -> None:
    """Let a worker ignore Ctrl-C, and end when its parent process ends, also after SIGKILL."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class Inline:
    """Run jobs one after the other in this process, for debuggers, benchmarks and tests."""

    workers = 1

    def run(self, function: Callable[[Job], Any], queue: Queue, *, follow: Follow, tick: Tick) -> Iterator[tuple[Job, Any]]:
        """See `Local.run`. Exceptions of the function are not caught."""
        while queue:
            job = queue.take()
            if job is None:
                time.sleep(TICK)
                continue
            tick([job])
            result = function(job)
            queue.add(follow(job, result))
            yield job, result


class Ray:
    """Run jobs as tasks on a Ray cluster. All machines need access to the data and to the folder with the networks.

    Args:
        workers: largest number of jobs at a time; None: the number of CPUs or GPUs of the cluster.
        gpus: whether each job needs a GPU.
        address: address of the cluster; None: this machine.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, workers: int | None, gpus: bool, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray needs the package ray: pip install 'razorbench[ray]'") from None
        self._ray = ray
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"cannot reach the Ray cluster at '{address}': {str(error).splitlines()[0]}") from None
        resources = ray.cluster_resources()
        self.workers = workers or int(resources.get("GPU" if gpus else "CPU", 1)) or 1
        self._resources = {"num_gpus": 1} if gpus else {"num_cpus": 1}

    def run(self, function: Callable[[Job], Any], queue: Queue, *, follow: Follow, tick: Tick) -> Iterator[tuple[Job, Any]]:
        """See `Local.run`. Ray itself retries a task whose worker died."""
        task = self._ray.remote(**self._resources)(function)
        running: dict[Any, Job] = {}
        while queue or running:
            while len(running) < self.workers and (job := queue.take()) is not None:
                running[task.remote(job)] = job
            tick(list(running.values()))
            if not running:
                time.sleep(TICK)  # other runs do all remaining jobs
                continue
            done, _ = self._ray.wait(list(running), num_returns=1, timeout=TICK)
            ended = [(running.pop(ref), self._outcome(ref)) for ref in done]
            for job, result in ended:
                queue.add(follow(job, result))
            yield from ended

    def _outcome(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return JobFailure(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")

    def close(self) -> None:
        """Disconnect from the cluster."""
        self._ray.shutdown()
