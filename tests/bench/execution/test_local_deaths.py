"""The end of workers of this machine: what is said of a death, which signals reach them, and which files they may lose."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.execution import local
from bench.execution.executors import JobFailure
from tests.bench.execution.test_local import results


def end(how: Any) -> None:
    """End the worker by a signal or with an exit code."""
    if isinstance(how, signal.Signals):
        os.kill(os.getpid(), how)
    os._exit(how)


def leave_a_child(seconds: float) -> None:
    """End with exit code 3 and leave a process that holds what this one had open."""
    if os.fork() == 0:
        time.sleep(seconds)
    os._exit(3)


def close_all(seconds: float) -> None:
    """Close all files but the standard streams, and live on."""
    os.closerange(3, 256)
    time.sleep(seconds)


def interrupt(name: str) -> str:
    """Get what Ctrl-C sends to all processes of a terminal."""
    os.kill(os.getpid(), signal.SIGINT)
    return name


def prints(name: str) -> str:
    """Print as a careless method does."""
    print("noise")
    return name


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGKILL, "SIGKILL; perhaps out of memory"), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGTERM, "SIGTERM"),
        (0, "exit code 0"), (1, "exit code 1"), (3, "exit code 3"),
    ],
)  # fmt: skip
def test_the_cause_of_a_death_is_said(pool: local.Local, how: int, said: str) -> None:
    ((_, result),) = results(pool, [how], end)
    assert result == JobFailure(f"the worker process died twice on this job ({said})")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts a process that outlives its parent")
def test_a_death_is_noticed_though_a_child_of_the_worker_lives_on(pool: local.Local) -> None:
    begin = time.monotonic()
    assert results(pool, [12.0], leave_a_child) == [(12.0, JobFailure("the worker process died twice on this job (exit code 3)"))]
    assert time.monotonic() - begin < 10


def test_a_worker_that_closes_its_pipe_counts_as_dead(pool: local.Local) -> None:
    assert results(pool, [30.0], close_all) == [(30.0, JobFailure("the worker process died twice on this job (it closed its pipe)"))]


def test_ctrl_c_does_not_reach_a_worker(pool: local.Local) -> None:
    assert results(pool, ["alive"], interrupt) == [("alive", "alive")]


@pytest.mark.skipif(not local.FORKING, reason="there is no fork server")
def test_a_worker_ends_by_sigterm_also_where_this_process_ignores_it(pool: local.Local) -> None:
    """The server and its workers would inherit it."""
    local.stop_server()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        ((_, result),) = results(pool, [signal.SIGTERM], end)
    finally:
        signal.signal(signal.SIGTERM, before)
        local.stop_server()
    assert result == JobFailure("the worker process died twice on this job (SIGTERM)")


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_workers_work_where_standard_streams_are_closed(tmp_path: Path, closed: str) -> None:
    """Another file then has the number of the stream. What jobs print is never in the standard output."""
    code = """
import pathlib, sys
from tests.bench.execution.test_local import local, results
from tests.bench.execution.test_local_deaths import prints
pool = local.Local(1)
pathlib.Path(sys.argv[1]).write_text(str(results(pool, ["x", "y"], prints)))
pool.close()
"""
    arguments = ["bash", "-c", f'"$0" -c "$1" "$2" {closed}', sys.executable, code, str(tmp_path / "out")]
    done = subprocess.run(arguments, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "out").read_text() == "[('x', 'x'), ('y', 'y')]"
    assert ("noise" in done.stderr) == ("2>&-" not in closed)


def test_a_worker_ends_orderly_when_nothing_can_reach_it(pool: local.Local) -> None:
    results(pool, [("double", 1)])
    (worker,) = pool._all
    worker._pipe.close()
    worker.process.join(20)
    assert worker.process.exitcode == 0


def test_closing_ends_all_workers_and_twice_is_as_once(pool: local.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    results(pool, [("double", k) for k in range(6)] + [("hang", 0.1), ("hang", 0.11)])
    workers = list(pool._all)
    assert len(workers) == 2
    begin = time.monotonic()
    pool.close()
    assert [worker.process.exitcode for worker in workers] == [-signal.SIGKILL] * 2
    assert time.monotonic() - begin < local.CLOSING

    def kill(pid: int, number: int) -> None:
        raise AssertionError("the number may be that of another process by now")

    monkeypatch.setattr(os, "kill", kill)
    pool.close()
