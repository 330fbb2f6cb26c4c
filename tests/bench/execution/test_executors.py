"""Jobs on worker processes: order, follow-ups, faults, deaths."""

import os
import signal
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from bench.execution import executors, local
from bench.execution.executors import JobFailure
from bench.spec.errors import UserError
from bench.trial import heartbeat


class Silent(BaseException):
    def __str__(self) -> str:
        raise TypeError


def work(job: tuple[str, Any]) -> Any:
    """What the tests' jobs do, by name; runs in a worker."""
    kind, value = job
    if kind == "double":
        return 2 * value
    if kind == "raise":
        raise ValueError(value)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(value)
    if kind == "announce":  # as a search does, which consists of several jobs
        for _ in range(4):
            assert heartbeat.announce is not None
            heartbeat.announce()
            time.sleep(value)
    if kind == "exit":
        raise SystemExit(value)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "silent":
        raise Silent
    if kind == "odd":
        return lambda: None
    if kind == "die once" and not Path(value).exists():
        Path(value).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


def run(jobs: list[Any], follow: Any = lambda job, result: [], workers: int = 2, limit: float | None = None) -> dict[Any, Any]:
    pool = executors.make("local", workers)
    seen: list[list[Any]] = []
    try:
        return dict(pool.run(work, executors.Queue(jobs), follow=follow, tick=seen.append, limit=limit))
    finally:
        pool.close()
        assert all(len(running) <= workers for running in seen)


def test_every_job_has_its_result() -> None:
    assert run([("double", i) for i in range(9)]) == {("double", i): 2 * i for i in range(9)}


def test_a_result_brings_further_jobs() -> None:
    def follow(job, result):
        return [("double", result)] if result < 100 else []

    assert run([("double", 3)], follow) == {("double", v): 2 * v for v in (3, 6, 12, 24, 48, 96)}


def test_what_raises_is_lost_and_the_others_go_on() -> None:
    assert run([("raise", "no"), ("double", 1)]) == {("raise", "no"): JobFailure("ValueError: no"), ("double", 1): 2}


def test_a_worker_that_dies_takes_nothing_with_it(tmp_path: Path) -> None:
    """The job that kills its worker each time is lost; one that was hit by accident, and all others, are done."""
    jobs = [("double", 1), ("die", 0), ("die once", str(tmp_path / "mark")), *(("double", i) for i in range(2, 6))]
    results = run(jobs)
    assert "died" in results[("die", 0)].error
    assert results[jobs[2]] == "die once"
    assert all(results[("double", i)] == 2 * i for i in range(1, 6))


def test_exit_and_interrupt_in_a_job_are_its_failure() -> None:
    """Both are raised by the code of a method: the signal itself does not reach a worker."""
    jobs = [("exit", 3), ("interrupt", 0), ("silent", 0), ("odd", 0), ("double", 4)]
    found = run(jobs)
    errors = ["SystemExit: 3", "KeyboardInterrupt", "Silent: its message cannot be shown"]
    assert [found[job] for job in jobs[:3]] == [JobFailure(error) for error in errors]
    assert "local object" in found[jobs[3]].error  # cannot be pickled; the words differ between releases of Python
    assert found[jobs[4]] == 8


def test_a_job_that_takes_too_long_is_stopped_and_the_others_go_on() -> None:
    """Also while another worker dies; the seconds of a search count for each of its jobs anew."""
    jobs = [("hang", 1000), ("die", 0), ("announce", 1.2), *(("double", i) for i in range(5))]
    begin = time.monotonic()
    found = run(jobs, limit=3)
    assert found[jobs[0]] == JobFailure("stopped after 3 seconds, the time limit of a job (--timeout)")
    assert "died twice" in found[jobs[1]].error
    assert found[jobs[2]] == "announce"
    assert all(found[job] == 2 * job[1] for job in jobs[3:])
    assert time.monotonic() - begin < 60


@pytest.mark.skipif(not local.FORKING, reason="there is no fork server")
def test_a_killed_server_of_workers_is_started_again() -> None:
    def follow(job: Any, _: Any) -> list[Any]:
        if job == ("double", 1):
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        return [("die", 0), ("double", 2)] if job == ("double", 1) else []

    found = run([("double", 1)], follow)
    assert found[("double", 2)] == 4
    assert "died twice" in found[("die", 0)].error


def test_a_new_worker_that_dies_before_its_first_job_loses_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, killed = local._Worker.begin, []

    def broken(worker: Any, function: Any, job: Any) -> bool:
        if not killed:
            killed.append(job)
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()
        return begin(worker, function, job)

    monkeypatch.setattr(local._Worker, "begin", broken)
    assert run([("double", i) for i in range(4)]) == {("double", i): 2 * i for i in range(4)}
    assert len(killed) == 1


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'ray'"):
        executors.make("rya")
