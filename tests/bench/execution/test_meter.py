"""Progress: pruning and measuring count, and the time left follows from what has ended."""

from pathlib import Path

import pytest

from bench.execution import meter
from bench.execution.display import duration, text
from bench.execution.meter import Meter, Progress
from bench.spec.setting import Setting
from bench.spec.suite import load_suite
from bench.trial.heartbeat import Heartbeat
from bench.trial.job import Environment, Job, Point
from methods import Stage


def job(method: str, points: int, criterion: str = "magnitude", seed: int = 0) -> Job:
    return Job(
        method=method, dataset="d", architecture="a", protocol=load_suite("digits").protocol("digits", "mlp"), seed=seed, training="map",
        criterion=criterion, stage=Stage.AFTER if criterion else None, setting=Setting({}, {}), granularity="weight", network=str(seed),
        points=tuple(Point(0.5 + k / 100, 0, f"{method}{seed}{k}") for k in range(points)), environment=Environment("cpu", None, Path(".")),
    )  # fmt: skip


def test_slow_points_are_most_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense network takes 14 seconds, 1 an epoch; each of ten points of pruning 20: the share is by seconds, not by epochs."""
    now, seen = [0.0], list[Progress]()
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    dense, slow, other = job("dense", 1, ""), job("slow", 10), job("slow", 10, seed=1)
    counter = Meter([dense, slow, other], tmp_path, seen.append)
    for work, seconds in ((dense, 14.0), (slow, 200.0)):
        counter.tick([work])
        now[0] += seconds
        counter.finish(work, 0)
    counter.tick([])
    assert seen[-1].share == pytest.approx(214 / 414)
    beat = Heartbeat(tmp_path)
    for _ in range(5):
        beat._written = -1e9  # each is written
        beat.measured()
    counter.tick([other])
    assert seen[-1].share == pytest.approx((214 + 100) / 414)
    assert (seen[-1].done, seen[-1].jobs, seen[-1].running) == (2, 3, (other.label,))


def test_what_is_done_is_never_all_before_the_end(tmp_path: Path) -> None:
    seen = list[Progress]()
    work = [job("one", 2)]
    counter = Meter(work, tmp_path, seen.append)
    beat = Heartbeat(tmp_path)
    beat.points = 1000
    beat._written = -1e9
    beat.measured()
    counter.tick(work)
    assert seen[-1].share < 1
    counter.finish(work[0], 1)
    counter.tick([])
    assert (seen[-1].share, seen[-1].failed) == (1.0, 1)


def test_a_line_says_share_time_and_failures() -> None:
    line = text(Progress(3, 12, 0.25, (), 2), elapsed=30.0)
    assert " 25% · 3/12 jobs · 30 s elapsed · about 1 min 30 s left · 2 rows failed" in line
    assert line.count("█") == 6
    assert "estimating" in text(Progress(0, 12, 0.0, (), 0), elapsed=1.0)
    assert [duration(s) for s in (42, 185, 7800)] == ["42 s", "3 min 05 s", "2 h 10 min"]
