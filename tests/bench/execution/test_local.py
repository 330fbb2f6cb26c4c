"""Workers of this machine: what is repeated and when, what time counts, and what happens where no server can fork."""

import os
import signal
import time
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from bench.execution import local
from bench.execution.executors import JobFailure, Queue
from bench.spec.errors import UserError
from tests.bench.execution.test_executors import work


def own_pid(job: int) -> int:
    """The process that does the job."""
    return os.getpid()


def count(job: tuple[Path, float]) -> int:
    """Add a line to a file, and wait."""
    with job[0].open("a") as file:
        file.write(".")
    time.sleep(job[1])
    return 1


class Hollow:
    """Pickles well, and raises an exception when it is unpickled."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return fail, (self.error,)


def fail(error: type[Exception]) -> None:
    raise error("hollow")


def hollow_or_name(kind: type) -> Any:
    """What cannot be unpickled for an exception, and the name of another class."""
    return Hollow(kind) if issubclass(kind, Exception) else kind.__name__


def results(pool: local.Local, jobs: Any, function: Any = work, **options: Any) -> list[tuple[Any, Any]]:
    """Everything that is yielded, so that a job that is yielded twice is seen."""
    options = {"follow": lambda job, result: [], "tick": lambda running: None} | options
    return list(pool.run(function, jobs if isinstance(jobs, Queue) else Queue(jobs), **options))


# --- what is done again


def test_a_job_is_repeated_alone_and_once() -> None:
    queue = Queue(["a", "b"])
    waiting = local._Waiting(queue)
    assert (waiting.take(0), waiting.repeats("a")) == ("a", False)
    assert (waiting.take(1), waiting.take(1)) == ("b", None), "not while another job runs"
    assert waiting
    assert waiting.take(0) == "a"
    queue.add(["c", "d"])
    assert waiting.take(1) is None, "nothing starts while it runs"
    assert waiting.repeats("a")
    assert [waiting.take(running) for running in (0, 1, 2)] == ["c", "d", None]
    assert not waiting


def test_what_waits_comes_before_what_is_repeated() -> None:
    waiting = local._Waiting(Queue(["a", "b"]))
    assert (waiting.take(0), waiting.repeats("a")) == ("a", False)
    assert [waiting.take(0), waiting.take(0), waiting.take(0)] == ["b", "a", None]


def test_workers_are_used_again(pool: local.Local) -> None:
    found = results(pool, list(range(8)), own_pid)
    assert len({pid for _, pid in found}) <= 2


def test_a_job_that_was_done_before_its_worker_died_has_its_result(pool: local.Local, tmp_path: Path) -> None:
    worker, job = local._Worker(pool._context), (tmp_path / "runs", 0.0)
    try:
        assert worker.begin(count, job)
        assert worker._pipe.poll(20)
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
        assert worker.look(0.0, None) == (True, 1)
        assert worker.job is None
    finally:
        worker.kill()


def test_a_job_that_was_taken_early_is_the_next_one() -> None:
    queue = Queue(["a", "b"])
    waiting = local._Waiting(queue)
    waiting.look_ahead()
    waiting.look_ahead()
    assert len(queue) == 1
    assert [waiting.take(0), waiting.take(1)] == ["a", "b"]
    queue.add(["c"])
    waiting.look_ahead()
    assert (len(queue), bool(waiting)) == (0, True)


def test_after_a_job_that_was_repeated_all_workers_work_again(pool: local.Local, tmp_path: Path) -> None:
    first, others, seen = ("die once", str(tmp_path / "mark")), [("hang", 0.1), ("hang", 0.11)], list[int]()
    results(pool, [first], follow=lambda job, result: others if job == first else [], tick=lambda running: seen.append(len(running)))
    assert max(seen) == 2


def test_a_worker_that_died_while_idle_is_replaced(pool: local.Local, tmp_path: Path) -> None:
    """Its next job is done once: it had not begun."""
    job = (tmp_path / "runs", 0.0)
    assert results(pool, [("double", 1)]) == [(("double", 1), 2)]
    (idle,) = pool._all
    os.kill(idle.process.pid, signal.SIGKILL)
    idle.process.join()
    assert results(pool, [job], count) == [(job, 1)]
    assert job[0].read_text() == "."
    assert idle not in pool._all


@pytest.mark.parametrize("error", [ValueError, EOFError, OSError])
def test_a_result_that_cannot_be_unpickled_is_lost_and_the_others_go_on(pool: local.Local, error: type[Exception]) -> None:
    """Whatever the exception: the worker did not die, and the job is not repeated."""
    found = dict(results(pool, [error, int, str], hollow_or_name))
    assert found == {error: JobFailure(f"{error.__name__}: hollow"), int: "int", str: "str"}
    assert len(pool._all) <= 2


def test_the_next_job_runs_while_the_caller_stores_a_result(tmp_path: Path) -> None:
    pool, jobs = local.Local(1), [(tmp_path / name, 0.0) for name in "ab"]
    try:
        found = pool.run(count, Queue(jobs), follow=lambda job, result: [], tick=lambda running: None)
        assert next(found) == (jobs[0], 1)
        deadline = time.monotonic() + 20
        while not jobs[1][0].exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert jobs[1][0].exists()
        assert list(found) == [(jobs[1], 1)]
    finally:
        pool.close()


# --- time


def test_jobs_that_other_runs_hold_are_waited_for(pool: local.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held(Queue):
        refused = 0

        def take(self) -> Any:
            self.refused += 1
            return super().take() if self.refused > 6 else None

    monkeypatch.setattr(local, "TICK", 0.05)
    seen: list[list[Any]] = []
    begin = time.monotonic()
    assert results(pool, Held([("double", 1)]), tick=seen.append) == [(("double", 1), 2)]
    assert time.monotonic() - begin > 0.05
    assert [] in seen


def test_a_job_alone_is_stopped_too_and_progress_is_shown_meanwhile(pool: local.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TICK", 0.1)
    job, seen, begin = ("hang", 1000), list[list[Any]](), time.monotonic()
    ((_, result),) = results(pool, [job], tick=seen.append, limit=0.6)
    assert result == JobFailure("stopped after 0.6 seconds, the time limit of a job (--timeout)")
    assert 0.6 < time.monotonic() - begin < 5
    assert seen.count([job]) >= 3


def test_the_limit_is_that_of_each_job(pool: local.Local) -> None:
    """And not of all that a worker does: each of these takes a third of it."""
    jobs = [("hang", 0.3 + k / 1000) for k in range(8)]
    assert {result for _, result in results(pool, jobs, limit=1.0)} == {"hang"}


def test_seconds_in_which_the_run_was_suspended_do_not_count(pool: local.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that took longer than `STEP` counts as `STEP`."""
    monkeypatch.setattr(local, "STEP", 0.01)
    assert results(pool, [("hang", 1.2)], limit=0.3) == [(("hang", 1.2), "hang")]


# --- the server that forks workers, and where there is none


@pytest.mark.parametrize("error", [BlockingIOError("no more processes"), EOFError()])
def test_it_is_said_where_no_worker_can_be_started(error: Exception, pool: local.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EOFError as it is would look like Ctrl-C on the command line."""
    tries = []

    def broken(context: Any) -> Any:
        tries.append(context)
        assert len(tries) < 50
        time.sleep(0.02)
        raise error

    monkeypatch.setattr(local, "TICK", 0.01)
    monkeypatch.setattr(local, "STARTING", 0.1)
    monkeypatch.setattr(local, "_Worker", broken)
    with pytest.raises(UserError, match=f"worker processes cannot be started .{type(error).__name__}"):
        results(pool, [("double", 1)])
    assert 1 < len(tries) < 50


def test_workers_are_started_also_where_nothing_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FORKING", False)
    monkeypatch.setattr(local, "_ensure_server", lambda: pytest.fail("there is no server"))
    local.preload()
    pool = local.Local(1)
    try:
        assert results(pool, [("double", 4)]) == [(("double", 4), 8)]
        assert type(pool._all[0].process).__name__ == "SpawnProcess"
    finally:
        pool.close()


@pytest.mark.skipif(not local.FORKING, reason="there is no fork server")
def test_what_the_server_imports_early_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says nothing of a module that it cannot import."""
    started = []
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", [])  # type: ignore[attr-defined]
    monkeypatch.setattr(local, "_ensure_server", lambda: started.append(list(forkserver._forkserver._preload_modules)))  # type: ignore[attr-defined]
    local.preload()
    ((first, *more),) = started
    assert first == "bench.trial.trial"
    for name in (first, *more):  # found without an import of torch
        package, *inner = name.split(".")
        spec = find_spec(package)
        assert spec is not None
        path = Path(spec.submodule_search_locations[0], *inner)  # type: ignore[index]
        assert path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.skipif(not local.FORKING, reason="there is no fork server")
def test_the_server_is_killed_at_the_end(pool: local.Local) -> None:
    results(pool, [("double", 1)])
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    local.stop_server()
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it stays for `multiprocessing` to find
    assert ended is not None
    assert ended.si_status == signal.SIGKILL
    assert results(pool, [("double", 2)]) == [(("double", 2), 4)]


def test_without_a_server_nothing_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver._forkserver, "_forkserver_pid", None)  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail(f"kills {pid}"))
    local.stop_server()


@pytest.mark.skipif(not local.FORKING, reason="there is no fork server")
def test_ctrl_c_is_blocked_only_while_the_server_starts() -> None:
    local._ensure_server()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        local._ensure_server()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
