"""Executors: run jobs in several processes, and yield their results as they finish. A result may add further jobs.

    for job, result in executor.run(function, Queue(jobs), follow=..., tick=..., limit=...): ...

If the function raises an exception, its process dies, or a job takes longer than the time limit, the result is a `JobFailure`, and the
other jobs go on. `bench.execution.local` has the processes on this machine, `bench.execution.cluster` those of a Ray cluster.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.spec.errors import described, unknown

EXECUTORS = ("local", "ray")
TICK = 0.5  # seconds between two updates of the progress

Job = Any
Function = Callable[[Job], Any]
Follow = Callable[[Job, Any], Iterable[Job]]
Tick = Callable[[list[Job]], None]


@dataclass(frozen=True)
class JobFailure:
    """The result of a job whose function raised an exception, whose process died, or that took too long."""

    error: str


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


class Executor(Protocol):
    """What runs jobs. `workers`: the largest number of jobs at a time."""

    workers: int

    def run(
        self, function: Function, queue: Queue, *, follow: Follow, tick: Tick, limit: float | None = None
    ) -> Iterator[tuple[Job, Any]]:  # fmt: skip
        """Run jobs, and yield (job, result) as they finish.

        Args:
            function: computes the result of a job; it must be picklable.
            queue: the jobs.
            follow: (job, result) -> further jobs, which are added to the queue.
            tick: called regularly with the running jobs.
            limit: the most seconds that a job may take; a longer one is stopped. None: no limit.
        """
        ...

    def close(self) -> None:
        """Stop everything that still runs. These jobs are not recorded, and the next run does them again."""
        ...


def make(
    name: str, workers: int | None = None, *, gpus: bool = False, address: str | None = None, cache: Path = Path(),
    files: Sequence[Path] = (),
) -> Executor:  # fmt: skip
    """Make an executor.

    Args:
        name: one of `EXECUTORS`.
        workers: number of worker processes; None: the number of cores, or the resources of the Ray cluster.
        gpus: whether each job needs a GPU.
        address: address of the Ray cluster; None: this machine.
        cache: the cache folder.
        files: further files and folders that every worker must see.

    Raises:
        UserError: the name is unknown, Ray is not installed, or its cluster cannot be used.
    """
    if name == "local":
        from bench.execution.local import Local

        return Local(workers or os.cpu_count() or 1)
    if name == "ray":
        from bench.execution.cluster import Ray

        return Ray(workers, gpus, address, cache, files)
    raise unknown("executor", name, EXECUTORS)


def too_long(limit: float) -> JobFailure:
    """The result of a job that was stopped at the time limit, in seconds."""
    return JobFailure(f"stopped after {limit:g} seconds, the time limit of a job (--timeout)")


def attempt(function: Function, job: Job) -> Any:
    """The function's result, or a `JobFailure` for any exception, `SystemExit` and `KeyboardInterrupt` included.

    It runs in a worker, where both are raised by the code of a method and never by the user.
    """
    try:
        return function(job)
    except BaseException as error:
        return JobFailure(described(error))


class Inline:
    """Run jobs one after the other in this process, for debuggers, benchmarks and tests. Exceptions are not caught; no job is stopped."""

    workers = 1

    def run(
        self, function: Function, queue: Queue, *, follow: Follow, tick: Tick, limit: float | None = None
    ) -> Iterator[tuple[Job, Any]]:  # fmt: skip
        """See `Executor.run`."""
        while queue:
            job = queue.take()
            if job is None:
                time.sleep(TICK)
                continue
            tick([job])
            result = function(job)
            queue.add(follow(job, result))
            yield job, result

    def close(self) -> None:
        """Nothing to stop."""
