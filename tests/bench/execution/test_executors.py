"""Jobs on worker processes: order, follow-ups, faults, deaths."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bench.execution import executors
from bench.execution.executors import JobFailure
from bench.spec.errors import UserError


def work(job: tuple[str, Any]) -> Any:
    """What the tests' jobs do, by name; runs in a worker."""
    kind, value = job
    if kind == "double":
        return 2 * value
    if kind == "raise":
        raise ValueError(value)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "die once" and not Path(value).exists():
        Path(value).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


def run(jobs: list[Any], follow: Any = lambda job, result: [], workers: int = 2) -> dict[Any, Any]:
    pool = executors.make("local", workers)
    seen: list[list[Any]] = []
    try:
        return dict(pool.run(work, executors.Queue(jobs), follow=follow, tick=seen.append))
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


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'ray'"):
        executors.make("rya")
