"""One job from the outside: what it measures at each point, which seconds belong to it, and what a failure touches."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import methods
from bench.spec.errors import UserError
from bench.spec.setting import Setting
from bench.spec.suite import load_suite
from bench.storage.checkpoints import Networks
from bench.trial import trial
from bench.trial.job import Environment, Job, Point
from bench.trial.network import Network
from bench.trial.results import Result, Results, isolated
from bench.trial.workbench import Workbench
from methods import Iterative, Schedule, Stage

SPARSITIES, LENGTHS, EPOCHS = (0.5, 0.75), (0, 2, 3), 5
SCORE, CUT = 64.0, 32.0  # seconds; an epoch takes one second


def job_of(
    cache: Path, criterion: str = "magnitude", stage: Stage | None = Stage.AFTER, schedule: Schedule | None = None, **more: Any
) -> Job:
    points = tuple(Point(s, epochs, f"{s}/{epochs}") for s in SPARSITIES for epochs in LENGTHS)
    setting = Setting({"lr": 0.1, "weight_decay": 1e-3}, {}, None if schedule is None else schedule.as_dict())
    job = Job(
        method="m", dataset="breast_cancer", architecture="mlp", seed=0, training="map", criterion=criterion, stage=stage,
        protocol=dataclasses.replace(load_suite("digits").protocol("digits", "mlp"), epochs=EPOCHS), setting=setting, granularity="weight",
        network="x", points=points, environment=Environment("cpu", None, cache),
    )  # fmt: skip
    return dataclasses.replace(job, **more)


def dense_of(job: Job) -> Job:
    return dataclasses.replace(job, criterion="", stage=None, points=tuple(Point(0.0, n, f"dense/{n}") for n in LENGTHS))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only trainings, scorings and cuts move."""
    now, fit, score, cut = [0.0], methods.fit, methods.score, methods.cut
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def after(seconds: float, result: Any) -> Any:
        now[0] += seconds
        return result

    def trained(problem: Any, training: Any, recipe: Any, **named: Any) -> Any:
        now[0] += recipe.epochs
        return fit(problem, training, recipe, **named)

    monkeypatch.setattr(methods, "fit", trained)
    monkeypatch.setattr(methods, "score", lambda *a: after(SCORE, score(*a)))
    monkeypatch.setattr(methods, "cut", lambda *a: after(CUT, cut(*a)))


@pytest.mark.parametrize(
    ("more", "trained", "scored"),
    [
        ({}, EPOCHS, SCORE + CUT),
        ({"stage": Stage.INIT}, EPOCHS, CUT),
        ({"stage": Stage.DURING, "schedule": methods.Gradual()}, EPOCHS, None),
        ({"schedule": Iterative()}, EPOCHS, None),
        ({"ablation": "shuffle"}, EPOCHS, SCORE + CUT),
        ({"ablation": "reinit"}, 2 * EPOCHS, SCORE + CUT),
        ({"stage": Stage.INIT, "ablation": "shuffle"}, EPOCHS, CUT),
        ({"stage": Stage.DURING, "schedule": methods.Gradual(), "ablation": "reinit"}, 2 * EPOCHS, None),
    ],
)
def test_a_row_has_the_seconds_of_its_own_network_only(
    tmp_path: Path, clock: None, more: dict[str, Any], trained: float, scored: float | None
) -> None:
    """The dense network or the own training, and the row's own fine-tuning: nothing of another sparsity or length."""
    job = job_of(tmp_path, **more)
    found = trial.execute(dense_of(job))
    assert {key: (m["train_seconds"], m["score_seconds"]) for key, m in found.items()} == {
        f"dense/{n}": (EPOCHS + n, None) for n in LENGTHS
    }
    found = trial.execute(job)
    assert {m["status"] for m in found.values()} == {"ok"}
    expected = {f"{s}/{n}": (trained + n, scored) for s in SPARSITIES for n in LENGTHS}
    assert {key: (m["train_seconds"], m["score_seconds"]) for key, m in found.items()} == expected


def test_a_control_of_iterative_pruning_is_fine_tuned_too(tmp_path: Path, clock: None) -> None:
    job = job_of(tmp_path, schedule=Iterative(), ablation="shuffle")
    trial.execute(dense_of(job))
    found = trial.execute(job)
    # The dense network, the fine-tuning that gives the mask, and the control's own.
    assert {key: m["train_seconds"] for key, m in found.items()} == {f"{s}/{n}": EPOCHS + 2 * n for s in SPARSITIES for n in LENGTHS}


def test_a_fine_tuning_that_fails_leaves_no_seconds_behind(tmp_path: Path, clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path)
    trial.execute(dense_of(job))
    fit = methods.fit

    def diverges(problem: Any, training: Any, recipe: Any, **named: Any) -> Any:
        state = fit(problem, training, recipe, **named)
        if recipe.epochs == 2 and problem.target == 0.5:
            raise FloatingPointError("nan")
        return state

    monkeypatch.setattr(methods, "fit", diverges)
    found = trial.execute(job)
    assert {key for key, m in found.items() if m["status"] == "failed"} == {"0.5/2"}
    assert {key: m["train_seconds"] for key, m in found.items() if m["status"] == "ok"} == {
        f"{s}/{n}": EPOCHS + n for s in SPARSITIES for n in LENGTHS if (s, n) != (0.5, 2)
    }


def test_a_step_leaves_the_network_it_was_given_as_a_value(tmp_path: Path) -> None:
    """A later step adds to what it returns; `copied` has weights of its own."""
    bench = Workbench(job_of(tmp_path))
    start = bench.untrained()
    trained = bench.train(start)
    assert (start.train_seconds, start.problem.posterior) == (0.0, None)
    assert trained.train_seconds > 0
    assert trained.problem.posterior is not None
    before = {name: w.detach().clone() for name, w in trained.problem.weights.items()}
    cut = bench.smaller(bench.cut(trained.copied(), methods.make("criteria", "magnitude", {}), 0.5))
    assert (trained.kept_by_cut, trained.problem.target) == (None, 0.0)
    assert (cut.kept_by_cut, cut.problem.target) == (methods.kept_weights(cut.problem.mask)[0], 0.5)
    assert all(torch.equal(before[name], w) for name, w in trained.problem.weights.items())
    tuned = bench.finetune(cut.copied(), 1)
    assert tuned.problem.posterior is trained.problem.posterior
    with pytest.raises(dataclasses.FrozenInstanceError):
        cut.kept_by_cut = 0  # type: ignore[misc]


def test_a_stream_that_is_stopped_trains_no_further_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = tmp_path / "progress"
    progress.mkdir()
    job = job_of(tmp_path, stage=Stage.INIT, environment=Environment("cpu", None, tmp_path, progress=progress, threads=2))
    bench = Workbench(job)
    running = trial.stream(job, bench)
    point, measurement = next(running)
    assert (point.sparsity, point.finetune_epochs, measurement["status"]) == (0.5, 0, "ok")
    assert (bench.heartbeat.epochs, bench.heartbeat.points, torch.get_num_threads()) == (EPOCHS, 1, 2)
    assert len(list(progress.iterdir())) == 1
    running.close()
    assert (bench.heartbeat.epochs, bench.heartbeat.points, torch.get_num_threads()) == (EPOCHS, 1, 1)
    assert not list(progress.iterdir())


def test_a_pruned_network_is_the_one_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path, stage=Stage.INIT, points=(Point(0.75, 2, "p"),))
    measured, measure = list[Network](), Workbench.measure
    monkeypatch.setattr(Workbench, "measure", lambda self, network: measured.append(network) or measure(self, network))
    found = trial.pruned_network(job)
    assert len(measured) == 2, "before and after fine-tuning"
    assert found.model is measured[1].problem.model
    assert found.whole_mask is None
    assert found.measurement["kept_weights"] == methods.kept_weights(found.mask)[0] == round(0.25 * found.measurement["prunable_weights"])
    assert methods.kept_weights(methods.full_mask(found.whole))[0] == found.measurement["prunable_weights"]


def test_there_is_no_pruned_network_of_a_method_that_fails_or_declines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path, points=(Point(0.5, 0, "p"),))
    networks = Networks(job.environment.cache / "networks")
    networks.fail(job.network, "the training loss is nan")
    with pytest.raises(UserError, match="m · breast_cancer/mlp · seed 0: RuntimeError: its dense network failed: the training loss is nan"):
        trial.pruned_network(job)
    networks.clear()
    monkeypatch.setattr(methods.lookup("criteria", "magnitude"), "unsupported", lambda self, problem: "no thanks")
    with pytest.raises(UserError, match="m · breast_cancer/mlp · seed 0: no thanks"):
        trial.pruned_network(job)


@pytest.mark.parametrize("training", ["map", "spam"])
def test_a_dense_network_that_is_not_stored_is_trained_to_the_same_bit(tmp_path: Path, training: str) -> None:
    job = dataclasses.replace(job_of(tmp_path), training=training)
    trial.execute(dense_of(job))
    networks = Networks(job.environment.cache / "networks")
    state, posterior, _ = networks.load(job.network)

    def numbers() -> dict[str, dict[str, object]]:
        found = trial.execute(job)
        return {key: {n: v for n, v in row.items() if not n.endswith(("seconds", "_ms"))} for key, row in found.items()}

    wanted = numbers()
    assert all("accuracy" in row for row in wanted.values())
    networks.clear()
    assert numbers() == wanted
    again, other, _ = networks.load(job.network)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert all(torch.equal(other.prior[name], tensor) for name, tensor in posterior.prior.items())


@pytest.mark.parametrize("schedule", [None, Iterative()])
def test_a_point_has_the_same_numbers_alone_as_after_others(tmp_path: Path, schedule: Schedule | None) -> None:
    """No branch trains or cuts the weights of another."""
    job = job_of(tmp_path, schedule=schedule)
    trial.execute(dense_of(job))
    together = trial.execute(job)
    for point in job.points[2:]:
        alone = trial.execute(dataclasses.replace(job, points=(point,)))[point.key]
        assert (alone["nll"], alone["kept_weights"]) == (together[point.key]["nll"], together[point.key]["kept_weights"]), point


def test_an_exception_is_the_failure_of_the_points_without_a_result() -> None:
    first, second = Point(0.5, 0, "first"), Point(0.5, 1, "second")

    def work() -> Results:
        yield Result(first, {"status": "ok"})
        raise ValueError("two\nlines")

    found = [(r.point, r.measurement) for r in isolated([first, second], work)]
    assert found == [(first, {"status": "ok"}), (second, {"status": "failed", "error": "ValueError: two lines"})]


def test_criteria_know_the_granularity_of_their_job(tmp_path: Path) -> None:
    problem = Workbench(job_of(tmp_path, granularity="2:4")).untrained().problem
    assert problem.granularity is not None
    assert (problem.granularity.name, problem.granularity.fixed_sparsity) == ("2:4", 0.5)
