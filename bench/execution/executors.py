"""Work on many processes: jobs that may bring further jobs, results as they come.

    for job, result in executor.run(function, Queue(jobs), follow=..., tick=...): ...

What the function raises, and a worker that dies, is handed out as a `JobFailure`: one job never takes the others with it. With how
many threads a job computes is said by the job: on small networks two workers of one thread have twice the throughput of one of two.
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
TICK = 0.5  # seconds between two looks at what is running

Job = Any
Follow = Callable[[Job, Any], Iterable[Job]]
Tick = Callable[[list[Job]], None]


@dataclass(frozen=True)
class JobFailure:
    """A job without a result: its worker died, or something outside the method broke."""

    error: str


_BROKEN = JobFailure("the worker process died")


class Queue:
    """Jobs that wait, in order. `take` is asked for the next one; None where there is none at this moment."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._waiting = deque(jobs)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, jobs: Iterable[Job]) -> None:
        """More jobs, behind the others."""
        self._waiting.extend(jobs)

    def take(self) -> Job | None:
        """The next job to do."""
        return self._waiting.popleft() if self._waiting else None


def make(name: str, workers: int | None = None, *, gpus: bool = False, address: str | None = None) -> "Local | Ray":
    """The executor of that name; as many workers as cores where None. UserError for an unknown name, or without Ray."""
    if name == "local":
        return Local(workers or os.cpu_count() or 1)
    if name == "ray":
        return Ray(workers, gpus, address)
    raise unknown("executor", name, EXECUTORS)


def preload() -> None:
    """Let the server that local workers are forked from begin its seconds of imports, while the caller goes on."""
    if FORKING:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["bench.trial.trial", "torchmetrics.functional.classification"])
        forkserver.ensure_running()


class Local:
    """Processes on this machine, forked from one server that has imported the heavy packages once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._context = multiprocessing.get_context("forkserver" if FORKING else "spawn")
        self._pool: ProcessPoolExecutor | None = None

    def _start(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, self._context, initializer=_prepare_worker)

    def run(self, function: Callable[[Job], Any], queue: Queue, *, follow: Follow, tick: Tick) -> Iterator[tuple[Job, Any]]:
        """Yield (job, result) as they end. `follow` names the jobs a result makes possible, `tick` is told what is running."""
        running: dict[Future[Any], Job] = {}
        while queue or running:
            self._pool = self._pool or self._start(self.workers)
            # One more than can run, so that no worker waits for us.
            while len(running) <= self.workers and (job := queue.take()) is not None:
                running[self._pool.submit(function, job)] = job
            tick(list(running.values())[: self.workers])
            done, _ = wait(running, timeout=TICK, return_when=FIRST_COMPLETED)
            if not running:
                time.sleep(TICK)  # all that is left is done elsewhere
            ended = [(running.pop(f), _outcome(f)) for f in done]
            casualties = [job for job, result in ended if result is _BROKEN]
            if casualties:
                # A death breaks the whole pool. Who died is not said, so each that was in flight is run again by itself.
                casualties += running.values()
                running.clear()
                self._pool = None
                ended = [(job, result) for job, result in ended if result is not _BROKEN]
                ended += [(job, self._alone(function, job)) for job in casualties]
            for job, result in ended:
                queue.add(follow(job, result))
            yield from ended

    def _alone(self, function: Callable[[Job], Any], job: Job) -> Any:
        # Twice: in the shared pool it may have been hit by another's death before it began.
        for _ in range(2):
            with self._start(1) as pool:
                result = _outcome(pool.submit(function, job))
            if result is not _BROKEN:
                return result
        return JobFailure("the worker process died twice on this job (killed, or out of memory)")

    def close(self) -> None:
        """End the workers at once; what they were doing is not recorded and will be done again."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _outcome(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        return _BROKEN
    except Exception as error:
        return JobFailure(f"{type(error).__name__}: {error}")


def _prepare_worker() -> None:
    """No Ctrl-C of its own, and no life after the parent's death (also by SIGKILL)."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class Inline:
    """Jobs one after the other in this process: for debuggers, benchmarks and tests."""

    workers = 1

    def run(self, function: Callable[[Job], Any], queue: Queue, *, follow: Follow, tick: Tick) -> Iterator[tuple[Job, Any]]:
        """See `Local.run`; what the function raises is raised."""
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
    """Tasks on a Ray cluster; the store's folder of networks and the data must be on storage that all its machines share."""

    def __init__(self, workers: int | None, gpus: bool, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray needs the package ray: pip install 'razorbench[ray]'") from None
        self._ray = ray
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"cannot reach a Ray cluster at '{address}': {str(error).splitlines()[0]}") from None
        resources = ray.cluster_resources()
        self.workers = workers or int(resources.get("GPU" if gpus else "CPU", 1)) or 1
        self._resources = {"num_gpus": 1} if gpus else {"num_cpus": 1}

    def run(self, function: Callable[[Job], Any], queue: Queue, *, follow: Follow, tick: Tick) -> Iterator[tuple[Job, Any]]:
        """See `Local.run`; Ray itself runs a task again whose worker died."""
        task = self._ray.remote(**self._resources)(function)
        running: dict[Any, Job] = {}
        while queue or running:
            while len(running) < self.workers and (job := queue.take()) is not None:
                running[task.remote(job)] = job
            tick(list(running.values()))
            if not running:
                time.sleep(TICK)  # all that is left is done elsewhere
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
        """Leave the cluster."""
        self._ray.shutdown()
