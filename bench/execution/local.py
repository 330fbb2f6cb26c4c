"""Worker processes on this machine. Each has its own pipe, so that one that dies or takes too long concerns its own job only.

The workers are forked from a server process that has already imported torch and other large packages. The number of threads is set by the
job: for small networks, two workers with one thread have twice the throughput of one worker with two threads.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

from bench.execution.executors import TICK, Follow, Function, Job, JobFailure, Queue, Tick, attempt, too_long
from bench.spec.errors import UserError, described
from bench.trial import heartbeat

FORKING = "forkserver" in multiprocessing.get_all_start_methods()
STARTING = 60.0  # seconds in which a worker must start: whatever kills the server may do so several times while it imports
CLOSING = 2.0  # largest number of seconds to wait for the end of killed workers
STEP = 10 * TICK  # most seconds of one wait that count for the limit: the machine may sleep, or the run be suspended by Ctrl-Z
_BEGUN = "begun"  # message of a worker: a piece of its work begins, and the limit counts from here
_DIED = JobFailure("the worker process died")


def preload() -> None:
    """Start the server process from which local workers are forked. Its imports take seconds; the caller does not wait for them."""
    if FORKING:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["bench.trial.trial", "torchmetrics.functional.classification"])
        _ensure_server()


def _ensure_server() -> None:
    """Start the server process unless it runs. Ctrl-C does not reach it nor its workers; it is killed when this process ends."""
    _open_standard_streams()
    resource_tracker.ensure_running()  # first, because it unblocks the signal again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server inherits it: no traceback while it imports
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    atexit.unregister(stop_server)
    atexit.register(stop_server)


def _open_standard_streams() -> None:
    """Open the null device for standard streams that the caller closed; otherwise pipes to the server would get their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for stream in range(3):
        os.set_inheritable(stream, True)


def stop_server() -> None:
    """Kill the server process. Left alone it would import to its end before it notices that this process has ended."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # type: ignore[attr-defined]
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


class Local:
    """Runs jobs in worker processes on this machine; see `bench.execution.executors.Executor`."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._context = multiprocessing.get_context("forkserver" if FORKING else "spawn")
        self._all: list[_Worker] = []

    def run(
        self, function: Function, queue: Queue, *, follow: Follow, tick: Tick, limit: float | None = None
    ) -> Iterator[tuple[Job, Any]]:  # fmt: skip
        """See `Executor.run`. A job whose worker died is done once more, when nothing else runs: memory may have run out."""
        waiting = _Waiting(queue)
        while waiting or self._running():
            self._fill(function, waiting)
            tick(self._running())
            ended = []
            for worker, job, result in self._ended(limit):
                if result is not _DIED:
                    ended.append((job, result))
                elif waiting.repeats(job):
                    ended.append((job, JobFailure(f"the worker process died twice on this job ({worker.why})")))
            for job, result in ended:
                queue.add(follow(job, result))
            self._fill(function, waiting)  # before the caller stores the results, so that no worker waits for it
            yield from ended

    def _fill(self, function: Function, waiting: "_Waiting") -> None:
        """Give jobs to workers that have none."""
        while (running := len(self._running())) < self.workers and (job := waiting.take(running)) is not None:
            self._start(function, job)
        waiting.look_ahead()

    def _running(self) -> list[Job]:
        return [worker.job for worker in self._all if worker.job is not None]

    def _start(self, function: Function, job: Job) -> None:
        """Give a job to an idle worker, or to a new one."""
        for worker in [w for w in self._all if w.job is None]:
            if worker.begin(function, job):
                return
            self._drop(worker)  # it died since its last job
        self._all.append(self._new())
        self._all[-1].begin(function, job)

    def _new(self) -> "_Worker":
        """A new worker. The server may just have been killed: it is started again, and asked again."""
        until = time.monotonic() + STARTING
        while True:
            if FORKING:
                _ensure_server()
            try:
                return _Worker(self._context)
            except (EOFError, OSError) as error:
                if time.monotonic() > until:  # an EOFError would end the program as Ctrl-C does
                    raise UserError(f"worker processes cannot be started ({described(error)}): perhaps memory is full") from error
            time.sleep(TICK)

    def _ended(self, limit: float | None) -> "list[tuple[_Worker, Job, Any]]":
        """Wait a moment, and return the jobs that have ended meanwhile, with their workers and results."""
        busy = [worker for worker in self._all if worker.job is not None]
        if not busy:
            time.sleep(TICK)  # other runs do all remaining jobs
            return []
        start = time.monotonic()
        connection.wait([handle for worker in busy for handle in worker.handles], timeout=TICK)
        passed, ended = min(time.monotonic() - start, STEP), []
        for worker in busy:
            job, (over, result) = worker.job, worker.look(passed, limit)
            if over:
                ended.append((worker, job, result))
            if not worker.alive:
                self._drop(worker)
        return ended

    def _drop(self, worker: "_Worker") -> None:
        worker.kill()
        self._all.remove(worker)

    def close(self) -> None:
        """See `Executor.close`."""
        for worker in self._all:
            worker.kill()
        until = time.monotonic() + CLOSING
        for worker in self._all:
            worker.process.join(max(0.0, until - time.monotonic()))
        self._all.clear()


class _Waiting:
    """The jobs that wait: those of a queue, of which one is taken early, and those to do again alone."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._ahead: Job | None = None
        self._again: deque[Job] = deque()
        self._alone: Job | None = None

    def __bool__(self) -> bool:
        return bool(self._queue or self._ahead is not None or self._again)

    def take(self, running: int) -> Job | None:
        """The next job to start while so many run; None if none can start now."""
        if running and self._alone is not None:
            return None
        self._alone = None
        job, self._ahead = self._ahead, None
        job = self._queue.take() if job is None else job
        if job is None and self._again and not running:
            job = self._alone = self._again.popleft()
        return job

    def look_ahead(self) -> None:
        """Take one job early, because taking one may wait for a database."""
        if self._ahead is None and self._alone is None:
            self._ahead = self._queue.take()

    def repeats(self, job: Job) -> bool:
        """Whether the job whose worker died was already done again; otherwise it will be."""
        if job is self._alone:
            return True
        self._again.append(job)
        return False


class _Worker:
    """A worker process with its current job; None if it is idle. `alive`: whether it can take further jobs."""

    def __init__(self, context: Any) -> None:
        self._pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,))
        self.process.start()
        other.close()
        self.job: Job | None = None
        self.alive, self.why, self._spent = True, "", 0.0

    @property
    def handles(self) -> list[Any]:
        """What becomes ready when there is news."""
        return [self._pipe, self.process.sentinel]

    def begin(self, function: Function, job: Job) -> bool:
        """Start a job; False if the process is dead. Then the job still counts as this worker's, and `look` finds that it has died."""
        self.job, self._spent = job, 0.0
        try:
            self._pipe.send((function, job))
        except OSError:
            return False
        return True

    def look(self, passed: float, limit: float | None) -> tuple[bool, Any]:
        """(Whether the job has ended, its result), after `passed` further seconds."""
        self._spent += passed
        over, result = False, None
        try:
            while not over and self._pipe.poll():
                message = _loaded(self._pipe.recv_bytes())
                over = message != _BEGUN
                result, self._spent = (message[0] if over else None), 0.0
            if not over and connection.wait([self.process.sentinel], timeout=0):
                raise EOFError
        except (EOFError, OSError):
            self.process.join(1)
            over, result, self.alive, self.why = True, _DIED, False, _cause(self.process.exitcode)
        if not over and limit is not None and self._spent > limit:
            over, result, self.alive = True, too_long(limit), False
        if over:
            self.job = None
        return over, result

    def kill(self) -> None:
        """Kill the process, also where the server that forked it has died and cannot be asked."""
        with contextlib.suppress(OSError, TypeError):
            os.kill(self.process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no SIGKILL, and ends it at once
        self._pipe.close()


def _loaded(message: bytes) -> Any:
    """The message of a worker; in place of a result that cannot be unpickled, a failure."""
    try:
        return pickle.loads(message)
    except Exception as error:
        return (JobFailure(described(error)),)


def _cause(code: int | None) -> str:
    """Why a process died, from its exit code."""
    if code is None:
        return "it closed its pipe"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}; perhaps out of memory" if name == "SIGKILL" else name


def _serve(pipe: connection.Connection) -> None:
    """Do jobs until the other end of the pipe is closed; runs in the worker."""
    _prepare()
    heartbeat.announce = lambda: pipe.send(_BEGUN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, job = pipe.recv()
            result = attempt(function, job)
            try:
                pipe.send((result,))
            except Exception as error:  # a result that cannot be pickled
                pipe.send((JobFailure(described(error)),))


def _prepare() -> None:
    """Let a worker ignore Ctrl-C, print to standard error only, and end when its parent process ends, also after SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(2, 1)  # what methods print must not get into a table that is written to a file
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
