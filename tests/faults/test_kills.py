"""Kills at random moments: of the program, of its workers, of the server that forks them. The same command continues, and no row is lost
or doubled: the rows are those of a run that nothing disturbed, for any number of workers.

`tox -e faults` repeats this more often.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import bench
from tests.faults.programs import COSTS, finished, members, program, start

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
RUN = (
    "run", "--methods", "magnitude,snip,obd", "--datasets", "breast_cancer,digits", "--architectures", "mlp", "--seeds", "0,1",
    "--sparsities", "0.5,0.9", "--epochs", "3", "--finetune-epochs", "0,1", "--trials", "2", "--output", "out",
)  # fmt: skip
LONG = 25


def found(folder: Path) -> Any:
    """The rows without what depends on the clock."""
    table = bench.read(folder / "out" / "results.csv").drop(columns=[*COSTS, "match_reached"])
    table["hyperparameters"] = table["hyperparameters"].str.replace(r'"seconds": [0-9.e-]+', "", regex=True)
    return table


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The rows of a run with one worker, and its duration in seconds."""
    folder, begin = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    code, out, err = program(folder, *RUN, "--workers", "1")
    assert code == 0, out + err
    return found(folder), time.monotonic() - begin


@pytest.mark.parametrize("workers", [pytest.param("2", marks=pytest.mark.slow), "4"])
def test_any_number_of_workers_gives_the_same_rows(tmp_path: Path, undisturbed: Any, workers: str) -> None:
    assert program(tmp_path, *RUN, "--workers", workers)[0] == 0
    assert found(tmp_path).equals(undisturbed[0])


@pytest.mark.parametrize("kills", [2, pytest.param(LONG, marks=pytest.mark.slow)])
def test_the_program_is_killed_and_continues(tmp_path: Path, undisturbed: Any, kills: int) -> None:
    draw = random.Random(kills)
    expected, seconds = undisturbed
    for k in range(kills):
        process = start(tmp_path, *RUN, "--workers", "2")
        time.sleep(draw.uniform(0.2, seconds) if kills == LONG else seconds * (0.35 + 0.3 * k))
        if process.poll() is None:
            process.send_signal(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        finished(process)
        for _ in range(100):  # its workers notice that it has ended
            if not members(process.pid):
                break
            time.sleep(0.1)
        assert not members(process.pid)
    code, out, err = program(tmp_path, *RUN, "--workers", "2")
    assert code == 0, out + err
    assert found(tmp_path).equals(expected)


@pytest.mark.parametrize("kills", [3, pytest.param(LONG, marks=pytest.mark.slow)])
def test_workers_and_their_server_are_killed_and_the_run_goes_on(tmp_path: Path, undisturbed: Any, kills: int) -> None:
    """A job whose worker was killed twice has failed; the next run does it."""
    draw = random.Random(kills)
    process = start(tmp_path, *RUN, "--workers", "2")
    left = kills
    while process.poll() is None and left:
        time.sleep(draw.uniform(0.2, undisturbed[1] / kills))
        forked = [pid for pid, command in members(process.pid).items() if pid != process.pid and "forkserver" in command]
        if forked:
            os.kill(draw.choice(forked), signal.SIGKILL)
            left -= 1
    code, _, err = finished(process)
    assert code in (0, 1), err
    assert "Traceback" not in err
    if code == 1:
        assert program(tmp_path, *RUN, "--workers", "2")[0] == 0
    assert found(tmp_path).equals(undisturbed[0])
