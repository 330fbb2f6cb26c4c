"""The estimate of `run --dry-run`: its arithmetic, on a clock that only the timed steps move."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pytest

import methods
from bench.spec.setting import Setting
from bench.spec.suite import load_suite
from bench.trial.calibration import Calibration, calibrate
from bench.trial.job import Environment, Job, Point
from bench.trial.workbench import Workbench
from methods import Schedule, Stage

PER_FIT, PER_BATCH, SCORE, CUT, SMALLER, MEASURE = 4.0, 0.5, 7.0, 2.0, 0.25, 3.0  # seconds


def job_of(tmp_path: Path, criterion: str = "magnitude", stage: Stage = Stage.AFTER, schedule: Schedule | None = None, **more: Any) -> Job:
    """Two sparsities, each without fine-tuning and with two epochs of it."""
    points = tuple(Point(s, epochs, f"{s}/{epochs}") for s in (0.5, 0.75) for epochs in (0, 2))
    setting = Setting({"lr": 0.1, "weight_decay": 1e-3}, {}, None if schedule is None else schedule.as_dict())
    protocol = dataclasses.replace(load_suite("digits").protocol("digits", "mlp"), epochs=5, batch_size=16)
    job = Job(
        method="m", dataset="breast_cancer", architecture="mlp", protocol=protocol, seed=0, training="map", criterion=criterion,
        stage=stage, setting=setting, granularity="weight", network="x", points=points, environment=Environment("cpu", None, tmp_path),
    )  # fmt: skip
    return dataclasses.replace(job, **more)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The timed steps in order. Each moves the clock by its seconds, the first training by 100 more; nothing else does."""
    clock, done = [0.0], list[str]()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def moves(owner: Any, name: str, seconds: float) -> None:
        real = getattr(owner, name)

        def step(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            clock[0] += seconds
            done.append(name)
            return result

        monkeypatch.setattr(owner, name, step)

    def fit(problem: Any, training: Any, recipe: Any, *, batches: Any, **named: Any) -> methods.Posterior:
        assert recipe.epochs == 1
        clock[0] += PER_FIT + PER_BATCH * len(batches) + (0.0 if "fit" in done else 100.0)
        done.append("fit")
        return methods.Posterior({}, 1)

    monkeypatch.setattr(methods, "fit", fit)
    moves(methods, "score", SCORE)
    moves(methods, "cut", CUT)
    moves(Workbench, "smaller", SMALLER)
    moves(Workbench, "measure", MEASURE)
    return done


def epoch_of(job: Job) -> float:
    samples = len(Workbench(job).dataset.train)
    return PER_FIT + PER_BATCH * math.ceil(samples / job.protocol.batch_size)


def test_seconds_add_up_epochs_scoring_cuts_and_measurements(tmp_path: Path) -> None:
    timed = Calibration(epoch=1000.0, score=100.0, cut=10.0, measure=1.0)
    pruned_after = job_of(tmp_path)
    assert timed.seconds(pruned_after) == 4 * 1000 + 100 + 2 * 10 + 4, "the dense network is another job"
    assert timed.seconds(job_of(tmp_path, stage=Stage.INIT)) == (2 * 5 + 4) * 1000 + 100 + 2 * 10 + 4
    assert timed.seconds(job_of(tmp_path, schedule=methods.Iterative(rounds=3))) == 4 * 1000 + 100 + 4 * 10 + 4, "a cut for each length"


def test_an_epoch_is_extrapolated_from_batches_without_the_first_training(tmp_path: Path, calls: list[str]) -> None:
    job = job_of(tmp_path)
    assert epoch_of(job) > PER_FIT + 10 * PER_BATCH, "more batches than are timed"
    assert calibrate(job).epoch == pytest.approx(epoch_of(job))
    assert calls.count("fit") == 3


@pytest.mark.parametrize("batch_size", [10_000, 300, 150])
def test_an_epoch_of_few_batches_is_timed_whole(tmp_path: Path, calls: list[str], batch_size: int) -> None:
    job = job_of(tmp_path)
    job = dataclasses.replace(job, protocol=dataclasses.replace(job.protocol, batch_size=batch_size))
    assert calibrate(job).epoch == pytest.approx(epoch_of(job))


def test_faster_training_on_more_batches_is_not_a_negative_time(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PER_BATCH", -0.25)
    assert calibrate(job_of(tmp_path)).epoch == pytest.approx(PER_FIT - 2 * 0.25)


def test_scoring_counts_once_after_training_and_at_each_cut_otherwise(tmp_path: Path, calls: list[str]) -> None:
    once = calibrate(job_of(tmp_path))
    assert (once.score, once.cut, once.measure) == (SCORE, CUT + SMALLER, MEASURE)
    assert calls == ["fit"] * 3 + ["measure", "score", "cut", "smaller"]
    each = calibrate(job_of(tmp_path, stage=Stage.INIT))
    assert (each.score, each.cut) == (0.0, CUT + SMALLER)


def test_a_schedule_multiplies_its_cuts(tmp_path: Path, calls: list[str]) -> None:
    gradual = methods.Gradual(begin=0.2, end=0.8, every=1)  # of 5 epochs: cuts after epochs 1, 2, 3 and 4
    assert calibrate(job_of(tmp_path, stage=Stage.DURING, schedule=gradual)).cut == 4 * CUT + SMALLER
    assert calibrate(job_of(tmp_path, schedule=methods.Iterative(rounds=3))).cut == 3 * CUT + SMALLER
    rewinding = methods.Rewinding(rate=0.5, to=0.0)  # two rounds of half the weights reach the sparsity 0.75
    assert calibrate(job_of(tmp_path, stage=Stage.DURING, schedule=rewinding)).cut == 2 * CUT + SMALLER


def test_a_dense_network_is_trained_and_measured_only(tmp_path: Path, calls: list[str]) -> None:
    timed = calibrate(job_of(tmp_path, criterion="", stage=None, points=(Point(0.0, 0, "dense"),)))
    assert (timed.score, timed.cut, timed.measure) == (0.0, 0.0, MEASURE)
    assert "cut" not in calls


def test_what_is_not_supported_takes_no_time(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods.lookup("criteria", "magnitude"), "unsupported", lambda self, problem: "no")
    assert calibrate(job_of(tmp_path)) == Calibration(0.0)
    assert calls == []


def test_the_test_split_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.data import Dataset

    def closed(self: Dataset) -> None:
        raise AssertionError("the test split was read")

    monkeypatch.setattr(Dataset, "test", property(closed))
    assert calibrate(job_of(tmp_path)).measure > 0
