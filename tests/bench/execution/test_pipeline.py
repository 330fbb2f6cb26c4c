"""Plans: what is expanded, what is shared, what is skipped; and the protocol's promises on real jobs in this process."""

import copy
import dataclasses
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import methods
from bench import data
from bench.execution import executors, pipeline
from bench.execution.executors import Inline
from bench.planning import catalogue
from bench.planning.plan import plan
from bench.planning.request import Request
from bench.ranking import leaderboard as bench_leaderboard
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.suite import Suite, load_suite
from bench.storage.checkpoints import Networks
from bench.storage.rows import Store
from bench.trial import trial, workbench
from bench.trial.job import Environment
from bench.trial.network import Network
from bench.trial.workbench import Workbench
from tests.bench.suites import narrowed


@pytest.fixture
def suite(tiny: Path) -> Suite:
    return load_suite("tiny.toml")


def request_(suite: Suite, names: str, tmp: Path, ablations: tuple[str, ...] = (), **changes: Any) -> Request:
    place = Environment("cpu", None, tmp / "cache")
    return Request(narrowed(suite, **changes), catalogue.select_methods(names), place, ablations=ablations)


def go(request: Request, store: Store) -> list[Row]:
    made = plan(request, store)
    pipeline.run(made, store, Inline())
    return pipeline.collect(made, store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/store.db")


def test_rows_are_the_product_of_the_axes(suite: Suite, tmp_path: Path, store: Store) -> None:
    made = plan(request_(suite, "magnitude,random,snip,spam", tmp_path), store)
    pruned = 4 * 2 * 2 * 2  # methods, sparsities, seeds, fine-tuning lengths
    dense = 2 * 2 * 2  # trainings, seeds, lengths
    assert len(made.expected) == pruned + dense
    assert len({row.identity for row in made.expected.values()}) == pruned + dense
    assert {row.method for row in made.expected.values() if not row.criterion} == {"dense", "dense@spam"}


def test_dense_networks_are_trained_once_and_shared(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three methods after training under `map`: one dense training of E epochs for each seed, no more."""
    calls: list[tuple[int, bool]] = []
    fit = methods.fit

    def counted(problem: Any, training: Any, recipe: Any, **k: Any) -> Any:
        calls.append((recipe.epochs, k.get("previous") is None))
        return fit(problem, training, recipe, **k)

    monkeypatch.setattr(methods, "fit", counted)
    go(request_(suite, "magnitude,random,obd", tmp_path), store)
    assert calls.count((suite.epochs, True)) == len(suite.seeds)
    assert calls.count((1, False)) == len(suite.seeds) * (1 + 3 * len(suite.sparsities)), "the dense reference is fine-tuned too"


def test_nested_criteria_are_scored_once_for_all_sparsities(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    score = methods.score
    monkeypatch.setattr(methods, "score", lambda p, c: scored.append(c.name) or score(p, c))
    go(request_(suite, "obd", tmp_path), store)
    assert scored == ["obd"] * len(suite.seeds)


def test_a_criterion_of_several_steps_is_scored_in_each_for_each_sparsity(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[float] = []
    real = methods.lookup("criteria", "woodfisher").score
    monkeypatch.setattr(methods.lookup("criteria", "woodfisher"), "score", lambda c, p: targets.append(p.target) or real(c, p))
    rows = go(request_(suite, "magnitude,woodfisher,woodfisher(steps=2)", tmp_path), store)
    once, steps = [0.0], [0.9 * 7 / 8, 0.9, 0.5 * 7 / 8, 0.5]
    assert sorted(targets) == pytest.approx(sorted((once + steps) * len(suite.seeds)))
    found = {row.method: row for row in rows if row.sparsity == 0.5 and row.seed == 0 and row.finetune_epochs == 0}
    assert {"magnitude", "woodfisher", "woodfisher(steps=2)"} <= found.keys()


def test_a_second_run_does_nothing_and_an_extension_only_what_is_new(suite: Suite, tmp_path: Path, store: Store) -> None:
    first = go(request_(suite, "magnitude", tmp_path), store)
    assert plan(request_(suite, "magnitude", tmp_path), store).jobs == []
    wider = plan(request_(suite, "magnitude", tmp_path, sparsities=[0.5, 0.9, 0.99]), store)
    assert {p.sparsity for job in wider.jobs for p in job.points} == {0.99}
    assert all(job.criterion for job in wider.jobs), "the dense networks are there"
    assert go(request_(suite, "magnitude", tmp_path), store) == first


def test_a_lost_network_is_trained_again_when_needed(suite: Suite, tmp_path: Path, store: Store) -> None:
    go(request_(suite, "magnitude", tmp_path), store)
    for file in (tmp_path / "cache" / "networks").iterdir():
        file.unlink()
    made = plan(request_(suite, "magnitude,random", tmp_path), store)
    assert sum(not job.criterion for job in made.ready) == len(suite.seeds)
    rows = go(request_(suite, "magnitude,random", tmp_path), store)
    assert {row.status for row in rows} <= {"ok", "collapsed"}


def test_masks_are_exact_and_dense_accuracy_is_its_own(suite: Suite, tmp_path: Path, store: Store) -> None:
    rows = go(request_(suite, "magnitude,snip,magnitude@spam", tmp_path), store)
    dense = {(r.training, r.seed, r.finetune_epochs): r for r in rows if not r.criterion}
    for row in rows:
        assert row.prunable_weights is not None
        assert row.kept_weights == row.prunable_weights - round(row.sparsity * row.prunable_weights)
        assert row.sparsity_reached is not None
        assert row.effective_sparsity is not None
        assert row.sparsity_reached - 1e-12 <= row.effective_sparsity <= (1.0 if row.criterion else 1e-12)
        assert row.dense_accuracy == dense[row.training, row.seed, row.finetune_epochs].accuracy
        assert (row.accuracy_before_finetune is not None) == (row.finetune_epochs > 0)
        assert row.finetune_epochs == 0 or row.criterion == "" or row.train_seconds is not None
    assert {r.stage for r in rows} == {"", "init", "after"}


def test_methods_while_training_train_a_network_for_every_sparsity(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the initial network and on the batches that the dense one has, and without waiting for that."""
    started: dict[int, list[tuple[Any, Any]]] = {}
    fit = methods.fit

    def watched(problem: Any, training: Any, recipe: Any, *, batches: Any, previous: Any, pruner: Any, callbacks: Any) -> Any:
        if previous is None:
            first = next(iter(data.Batches(batches.split, batches.batch_size, seed=batches.seed, shuffle=True)))[0]
            started.setdefault(problem.seed, []).append((copy.deepcopy(problem.model.state_dict()), first))
        return fit(problem, training, recipe, batches=batches, previous=previous, pruner=pruner, callbacks=callbacks)

    monkeypatch.setattr(methods, "fit", watched)
    asked = request_(suite, "magnitude_gradual,spam_online,magnitude_gradual@spam", tmp_path)
    made = plan(asked, store)
    apart = [job for job in made.jobs if job.criterion]
    assert not made.blocked
    assert len(apart) == 3 * len(suite.sparsities) * len(suite.seeds)
    assert {job.epochs for job in apart} == {suite.epochs + 1}
    assert "magnitude_gradual 0.5 · breast_cancer/mlp · seed 0" in {job.label for job in apart}
    rows = go(asked, store)
    for networks in started.values():
        assert len(networks) == 2 + 3 * len(suite.sparsities), "two dense ones"
        for state, first in networks:
            assert all(torch.equal(v, networks[0][0][n]) for n, v in state.items())
            assert torch.equal(first, networks[0][1])
    dense = {(r.training, r.seed, r.finetune_epochs): r for r in rows if not r.criterion}
    for row in (r for r in rows if r.criterion):
        assert (row.stage, row.error) == ("during", "")
        assert row.prunable_weights is not None
        assert row.kept_weights == row.prunable_weights - round(row.sparsity * row.prunable_weights)
        assert row.dense_accuracy == dense[row.training, row.seed, row.finetune_epochs].accuracy
        assert (row.accuracy_before_finetune is not None) == (row.finetune_epochs > 0)
        assert row.score_seconds is None, "it is a part of the training's seconds"
        schedule = methods.get(row.method).schedule
        assert schedule is not None
        assert json.loads(row.hyperparameters)["schedule"] == schedule.as_dict()
    assert plan(asked, store).jobs == []


def test_rewinding_says_how_long_it_trained_and_iterative_pruning_divides_what_there_is(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    monkeypatch.setattr("methods.core.training_run.TrainingRun._epoch", counting(methods.core.training_run.TrainingRun._epoch, trained))
    rows = go(request_(suite, "imp,magnitude_iterative", tmp_path, seeds=[0]), store)
    epochs = {s: methods.Rewinding().epochs(suite.epochs, s) for s in suite.sparsities}
    assert epochs == {0.5: 3 + 4 * 3, 0.9: 3 + 11 * 3}, "a rewind to the start: 10 % of three epochs is none"
    assert len(trained) == 3 + 1 + sum(epochs.values()) + 2 + 2, "dense and fine-tuned; imp and fine-tuned; iterative"
    for row in (r for r in rows if r.criterion):
        assert (row.status, row.error) == ("ok", "")
        assert row.epochs == (epochs[row.sparsity] if row.method == "imp" else suite.epochs)
        assert row.dense_accuracy is not None
    board = bench_leaderboard.leaderboard(rows).set_index(["track", "method"])["rank"]
    assert pd.isna(board["one-shot while training", "imp"])
    assert pd.isna(board["fine-tuned 1 epochs", "imp"])
    assert board["fine-tuned 1 epochs", "magnitude_iterative"] == 1


def counting(function: Any, calls: list[int]) -> Any:
    """The function, with the first argument of each call (after self) appended to `calls`."""

    def counted(self: Any, first: int, *rest: Any) -> Any:
        calls.append(first)
        return function(self, first, *rest)

    return counted


@pytest.mark.parametrize("method", ["magnitude", "snip", "magnitude_gradual", "magnitude_iterative"])
def test_ablations_keep_what_they_say_and_change_the_rest(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Measured networks: the same share of each layer; shuffled masks are others, new weights are not those of the method."""
    seen: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = []
    measure = Workbench.measure

    def watched(self: Workbench, network: Network) -> Any:
        if self.job.criterion:
            weights = {n: w.detach().clone() for n, w in network.problem.weights.items()}
            seen.append((self.job.ablation, self.job.seed, network.problem.mask, weights))
        return measure(self, network)

    monkeypatch.setattr(Workbench, "measure", watched)
    asked = request_(suite, method, tmp_path, ablations=("shuffle", "reinit"), sparsities=[0.9], finetune_epochs=[0], seeds=[0])
    rows = [r for r in go(asked, store) if r.criterion]
    assert [(r.ablation, r.status, r.error) for r in rows] == [("none", "ok", ""), ("shuffle", "ok", ""), ("reinit", "ok", "")]
    found = {ablation: (mask, weights) for ablation, _, mask, weights in seen}
    mask, weights = found["none"]
    for ablation in ("shuffle", "reinit"):
        other, moved = found[ablation]
        assert {n: int(m.sum()) for n, m in other.items()} == {n: int(m.sum()) for n, m in mask.items()}
        assert all(torch.equal(other[n], mask[n]) for n in mask) == (ablation == "reinit")
        assert not all(torch.equal(moved[n], weights[n]) for n in mask)
        assert all(not moved[n][~other[n]].any() for n in mask)
    retrained = {"magnitude": (3, 6), "magnitude_iterative": (3, 6), "snip": (3, 3), "magnitude_gradual": (6, 6)}[method]
    assert [r.epochs for r in rows] == [3, *retrained]
    assert plan(asked, store).jobs == []


def test_the_schedule_decides_the_key(suite: Suite, tmp_path: Path, store: Store) -> None:
    asked = request_(suite, "magnitude_gradual,magnitude", tmp_path)
    changed = dataclasses.replace(asked.methods[0], schedule=methods.Gradual(every=2))
    one, two, plain = (
        {key for key, row in plan(dataclasses.replace(asked, methods=(m,)), store).expected.items() if row.criterion}
        for m in (asked.methods[0], changed, asked.methods[1])
    )
    assert len(one) == len(two) == len(plain) == 8
    assert len(one | two | plain) == 24


def test_seeds_pair_the_methods_and_differ_from_each_other(suite: Suite, tmp_path: Path, store: Store) -> None:
    """Rule 5: what a seed means does not depend on which other methods run."""
    alone = go(request_(suite, "random", tmp_path / "a"), Store(f"sqlite:///{tmp_path}/a.db"))
    together = go(request_(suite, "magnitude,snip,spam,random", tmp_path / "b"), store)
    metric = lambda rows: {r.identity: (r.accuracy, r.nll, r.dense_nll) for r in rows if r.method == "random"}  # noqa: E731
    assert metric(alone) == metric(together)
    nll = [r.nll for r in alone if r.method == "dense" and r.finetune_epochs == 0]
    assert len(set(nll)) == len(nll)


def test_test_data_are_read_for_measuring_only(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 3: training, scoring and cutting go through with a test split that raises; measuring does not."""
    read: list[str] = []

    def sealed(self: data.Dataset) -> data.Split:
        import inspect

        read.append(inspect.stack()[1].function)
        return self.held_out

    monkeypatch.setattr(data.Dataset, "test", property(sealed))
    go(request_(suite, "magnitude,snip,obd,spam,spam_online", tmp_path), store)
    assert set(read) == {"measure"}

    def closed(self: data.Dataset) -> data.Split:
        raise AssertionError("the test split was read")

    monkeypatch.setattr(data.Dataset, "test", property(closed))
    monkeypatch.setattr(Workbench, "measure", lambda self, network: {"status": "ok", "accuracy": 0.5})
    rows = go(request_(suite, "magnitude,snip,obd,spam,spam_online", tmp_path / "again"), Store("sqlite://"))
    assert {row.status for row in rows} == {"ok"}


def test_a_failing_method_is_rows_with_its_error_and_is_tried_again(
    suite: Suite, tmp_path: Path, store: Store, clean_registry: None
) -> None:
    @methods.register("moody")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Moody(methods.Criterion):
        """Fails."""

        def score(self, problem: methods.Problem) -> methods.Scores:
            raise RuntimeError("not\ntoday")

    rows = go(request_(suite, "moody,magnitude", tmp_path), store)
    mine = [r for r in rows if r.method == "moody"]
    assert len(mine) == 8
    assert {(r.status, r.error, r.accuracy) for r in mine} == {("failed", "RuntimeError: not today", None)}
    assert {r.status for r in rows if r.method == "magnitude"} <= {"ok", "collapsed"}
    again = plan(request_(suite, "moody,magnitude", tmp_path), store)
    assert {job.method for job in again.jobs} == {"moody"}


def test_a_network_that_fails_to_train_fails_what_waits_for_it(suite: Suite, tmp_path: Path, store: Store, clean_registry: None) -> None:
    @methods.register("diverges")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Diverges(methods.lookup("trainings", "map")):  # type: ignore[misc]
        """Diverges."""

        def penalty(self, parameters: Any, state: methods.Posterior) -> torch.Tensor:
            return torch.tensor(float("nan"))

    rows = go(request_(suite, "magnitude@diverges", tmp_path), store)
    assert {r.status for r in rows} == {"failed"}
    assert all("loss is nan" in r.error for r in rows), "the reason is the training's, also for what was to be pruned"


def failures(rows: list[Row], method: str) -> dict[tuple[float, int], str]:
    """(sparsity, fine-tuning length) -> error of the method's points that failed."""
    return {(r.sparsity, r.finetune_epochs): r.error for r in rows if r.method == method and r.status == "failed"}


THREE = {"sparsities": [0.5, 0.8, 0.9], "seeds": [0], "finetune_epochs": [0, 1, 2]}


def test_compensation_that_fails_at_one_sparsity_fails_there_only(suite: Suite, tmp_path: Path, store: Store, clean_registry: None) -> None:
    @methods.register("brittle")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Brittle(methods.lookup("criteria", "magnitude")):  # type: ignore[misc]
        """Breaks at 0.8."""

        def compensate(self, problem: methods.Problem, mask: methods.Mask, state: Any) -> None:
            if problem.target == 0.8:
                raise ArithmeticError("singular")

    rows = go(request_(suite, "brittle", tmp_path, **THREE), store)
    assert failures(rows, "brittle") == {(0.8, f): "ArithmeticError: singular" for f in (0, 1, 2)}
    assert sum(r.status == "ok" for r in rows if r.method == "brittle") == 6


@pytest.mark.parametrize("method", ["magnitude", "snip", "magnitude_gradual", "magnitude_iterative"])
def test_fine_tuning_that_diverges_is_one_point(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Neither the one-shot row of that sparsity, nor another length, nor a higher sparsity has anything to do with it."""
    fit = methods.fit

    def diverges(problem: Any, training: Any, recipe: Any, **named: Any) -> Any:
        if named["previous"] is not None and recipe.epochs == 1 and problem.target == 0.8:
            raise FloatingPointError("the training loss is nan")
        return fit(problem, training, recipe, **named)

    monkeypatch.setattr(methods, "fit", diverges)
    rows = go(request_(suite, method, tmp_path, **THREE), store)
    assert failures(rows, method) == {(0.8, 1): "FloatingPointError: the training loss is nan"}
    plain = go(request_(suite, method, tmp_path, **{**THREE, "finetune_epochs": [0, 2]}), Store(f"sqlite:///{tmp_path}/plain.db"))
    numbers = lambda found: {r.identity: (r.nll, r.accuracy) for r in found if r.criterion and r.finetune_epochs != 1}  # noqa: E731
    assert numbers(rows) == numbers(plain)


def test_a_network_that_cannot_be_measured_before_fine_tuning_may_be_after(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality = workbench.metrics.quality
    calls: list[int] = []

    def once(logits: torch.Tensor, targets: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) in (3, 4):  # after the dense network and its fine-tuning: the cut network as it is, once for each point
            raise FloatingPointError("the network's outputs are not finite")
        return quality(logits, targets)

    monkeypatch.setattr(workbench.metrics, "quality", once)
    rows = [r for r in go(request_(suite, "magnitude", tmp_path, seeds=[0], sparsities=[0.5]), store) if r.criterion]
    assert {r.finetune_epochs: r.status for r in rows} == {0: "failed", 1: "ok"}
    assert [r.accuracy_before_finetune for r in rows if r.finetune_epochs] == [None]


def test_what_prunes_a_dense_network_goes_on_where_only_its_fine_tuning_failed(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = methods.fit

    def diverges(problem: Any, training: Any, recipe: Any, **named: Any) -> Any:
        if named["previous"] is not None and not problem.target:
            raise FloatingPointError("the training loss is nan")
        return fit(problem, training, recipe, **named)

    monkeypatch.setattr(methods, "fit", diverges)
    rows = go(request_(suite, "magnitude", tmp_path, seeds=[0], finetune_epochs=[1]), store)
    assert {(r.method, r.status) for r in rows} == {("dense", "failed"), ("magnitude", "ok")}


def test_a_dense_network_at_chance_is_said(suite: Suite, tmp_path: Path, store: Store) -> None:
    """A learning rate that teaches nothing: neither the dense row nor what was pruned from it is `ok`."""
    rows = go(request_(suite, "magnitude(lr=0.01)", tmp_path, seeds=[0], epochs=1, lr_scale=1e-6, finetune_epochs=[0]), store)
    assert {r.status for r in rows} == {"collapsed"}


# --- several runs at once


def test_two_runs_at_once_do_each_piece_once(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drivers, in threads, on one store and cache; the second asks for more sparsities, so their requests overlap."""
    done: list[tuple[Any, ...]] = []

    def made_up(job: Any) -> Any:
        time.sleep(0.01)
        done.extend((job.method, job.seed, p.sparsity, p.finetune_epochs) for p in job.points)
        if not job.criterion:
            Networks(job.environment.cache / "networks").save(job.network, {}, methods.Posterior({}, 1), {})
        return {p.key: {"status": "ok", "accuracy": p.sparsity} for p in job.points}

    monkeypatch.setattr(trial, "execute", made_up)
    monkeypatch.setattr(executors, "TICK", 0.02)
    names = "magnitude,random,snip,opd"
    asked = [request_(suite, names, tmp_path), request_(suite, names, tmp_path, sparsities=[0.5, 0.8, 0.9])]
    plans = [plan(request, store) for request in asked]  # both see an empty store
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda plan: pipeline.run(plan, Store(store.url), Inline()), plans))
    first, second = (pipeline.collect(plan, store) for plan in plans)
    assert len(done) == len(set(done)) == len(second) == len(plans[1].expected), "nothing was done twice"
    assert len(first) == len(plans[0].expected)
    assert not list((tmp_path / "cache" / "progress").iterdir()), "and nothing is left of either's progress"


def test_two_processes_end_with_the_same_rows(tiny: Path) -> None:
    """As a user has it: the same command in two terminals, tuned, on one store and cache."""
    command = [
        sys.executable,
        "-m",
        "bench",
        "run",
        "--suite",
        "tiny.toml",
        "--methods",
        "magnitude,snip",
        "--trials",
        "4",
        "--workers",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    runs = [
        subprocess.Popen([*command, "--output", name], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    for run in runs:
        _, err = run.communicate(timeout=300)
        assert (run.returncode, err) == (0, "")
    assert Path("a/results.csv").read_bytes() == Path("b/results.csv").read_bytes()
    assert Path("a/tuned.csv").read_bytes() == Path("b/tuned.csv").read_bytes()
    with sqlite3.connect(".bench/store.db") as database:
        assert dict(database.execute("select study_id, count(*) from trials group by study_id")) == {1: 4, 2: 4}
        assert database.execute("select count(*) from leases").fetchone() == (0,)


def test_a_run_takes_over_from_one_that_died(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its leases lie there, nobody renews them, and its process is no more."""
    monkeypatch.setattr(executors, "TICK", 0.02)
    asked = request_(suite, "magnitude", tmp_path, seeds=[0])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    planned = plan(asked, store)
    with sqlite3.connect(tmp_path / "store.db") as database:
        owner = f"{socket.gethostname()}/{dead.pid}/x"
        leases = [(pipeline._lease(job), owner, time.time() + 1000) for job in planned.jobs]
        database.executemany("insert into leases values (?, ?, ?)", leases)
    assert {r.status for r in go(asked, store)} == {"ok"}


def test_provenance_is_the_workers(suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of who planned: on a cluster the two are different machines."""
    asked = request_(suite, "magnitude", tmp_path, seeds=[0], sparsities=[0.9])
    made = plan(asked, store)
    where = {"version": "9", "commit": "abc", "torch": "2.99", "device": "cpu: other", "environment": '{"threads": 1}'}
    monkeypatch.setattr(trial, "provenance", lambda device, threads, stack: where)
    pipeline.run(made, store, Inline())
    for row in pipeline.collect(made, store):
        assert {name: getattr(row, name) for name in where} == where


def test_declared_unsupported_is_a_row_with_the_reason(suite: Suite, tmp_path: Path, store: Store, clean_registry: None) -> None:
    @methods.register("picky")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Picky(methods.lookup("criteria", "magnitude")):  # type: ignore[misc]
        """Picky."""

        def unsupported(self, problem: methods.Problem) -> str | None:
            return "it has linear layers"

    rows = [r for r in go(request_(suite, "picky", tmp_path), store) if r.method == "picky"]
    assert {(r.status, r.error) for r in rows} == {("unsupported", "it has linear layers")}


def test_what_decides_a_result_decides_its_key(suite: Suite, tmp_path: Path, store: Store) -> None:
    keys = lambda **changes: set(plan(request_(suite, "magnitude", tmp_path, **changes), store).expected)  # noqa: E731
    base = keys()
    assert keys() == base
    assert not keys(epochs=4) & base
    assert not keys(seeds=[5]) & base
    assert keys(sparsities=[0.5]) < base
    assert not keys(batch_size=32) & base
    assert keys(name="renamed") == base, "suites share what they have in common"


def test_costly_methods_must_be_named(clean_registry: None) -> None:
    @methods.register("slow_one", costly=True)
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Slow(methods.Criterion):
        """Slow."""

    assert "slow_one" not in {m.name for m in catalogue.select_methods("all")}
    assert {m.name for m in catalogue.select_methods("all")} == {n for n in methods.names() if not methods.get(n).costly}
    assert [m.name for m in catalogue.select_methods("slow_one, slow_one,opd@spam")] == ["slow_one", "spam"]


def test_options_in_brackets_are_one_method_each() -> None:
    chosen = catalogue.select_methods("magnitude, magnitude(weight_decay=0.005),spam(prior=layer,structure=kronecker)")
    assert [m.name for m in chosen] == ["magnitude", "magnitude(weight_decay=0.005)", "spam_kfac_layer"]
    assert chosen[1].training_options == {"weight_decay": 0.005}


def test_options_train_networks_of_their_own_beside_their_dense_reference(suite: Suite, tmp_path: Path, store: Store) -> None:
    rows = go(request_(suite, "magnitude,magnitude(weight_decay=0.05)", tmp_path), store)
    assert {r.method for r in rows} == {"dense", "magnitude", "dense@map(weight_decay=0.05)", "magnitude(weight_decay=0.05)"}
    decays = {r.method: json.loads(r.hyperparameters)["training"]["weight_decay"] for r in rows}
    assert decays["magnitude"] == decays["dense"] != decays["magnitude(weight_decay=0.05)"] == 0.05


def test_the_factors_of_a_kronecker_posterior_come_through_the_store(suite: Suite, tmp_path: Path, store: Store) -> None:
    """The eigenbasis form needs them, and scores otherwise than the exact form."""
    forms = "spam_kfac,spam_kfac(form=eigenbasis)"
    rows = [r for r in go(request_(suite, forms, tmp_path), store) if r.criterion]
    assert {r.status for r in rows} <= {"ok", "collapsed"}
    quality = {m: [r.nll for r in rows if r.method == m] for m in forms.split(",")}
    assert quality["spam_kfac"] != quality["spam_kfac(form=eigenbasis)"]


def test_narrowing_crosses_and_validates(suite: Suite) -> None:
    digits = load_suite("digits")
    pairs = lambda s: [(b.dataset, a) for b in s.blocks for a in b.architectures]  # noqa: E731
    assert pairs(narrowed(digits, datasets=["breast_cancer"])) == [("breast_cancer", "mlp")]
    assert pairs(narrowed(digits, architectures=["resnet18"])) == [("digits", "resnet18"), ("breast_cancer", "resnet18")]
    assert [a for _, a in pairs(narrowed(digits, datasets=["mnist"]))] == ["mlp", "lenet5", "vit_micro_patch4"]
    for wrong in ({"datasets": ["digit"]}, {"architectures": ["lenet"]}, {"sparsities": [1.0]}, {"epochs": -1}):
        with pytest.raises(UserError):
            narrowed(digits, **wrong)


def test_a_pair_that_does_not_fit_is_noted_and_nothing_left_is_an_error(tmp_path: Path, store: Store) -> None:
    digits = load_suite("digits")
    made = plan(request_(digits, "magnitude", tmp_path, architectures=["lenet5"], seeds=[0]), store)
    assert made.notes == ["lenet5 does not support breast_cancer (inputs of shape 30); skipped"]
    with pytest.raises(UserError, match="nothing to run"):
        plan(request_(digits, "magnitude", tmp_path, datasets=["breast_cancer"], architectures=["lenet5"]), store)


def test_a_pretrained_suite_starts_from_weights_and_reinit_from_none(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    create = workbench.build.create

    def known(name: str, shape: tuple[int, ...], classes: int, pretrained: bool = False) -> torch.nn.Module:
        asked.append(pretrained)
        model = create(name, shape, classes)
        if pretrained:
            with torch.no_grad():
                next(model.parameters()).fill_(0.25)
        return model

    monkeypatch.setattr(workbench.build, "create", known)
    request = request_(suite, "magnitude", tmp_path, ablations=("reinit",), pretrained=True, seeds=[0], finetune_epochs=[0])
    made = plan(request, store)
    assert asked.count(True) == 1, "what cannot be had is said while planning"
    bench = Workbench(made.ready[0])
    assert (next(bench.initial().parameters()) == 0.25).all()
    assert not (next(bench.initial("new initial weights").parameters()) == 0.25).any()
    pipeline.run(made, store, Inline())
    assert all(row.status == "ok" for row in pipeline.collect(made, store))
    plain = plan(request_(suite, "magnitude", tmp_path, seeds=[0], finetune_epochs=[0]), store)
    assert not plain.expected.keys() & made.expected.keys()


def test_a_classic_network_has_no_pretrained_weights(suite: Suite, tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError, match=r"'mlp' has no pretrained weights"):
        plan(request_(suite, "magnitude", tmp_path, pretrained=True), store)


@pytest.mark.parametrize("method", ["magnitude", "snip"])
def test_a_mask_that_fine_tuning_has_moved_is_a_failed_row(
    suite: Suite, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Protocol, rule 2: the count is checked after every fine-tuning too, though the weights outside the moved mask are zero."""
    fit = methods.fit

    def moving(problem: Any, *rest: Any, **named: Any) -> Any:
        state = fit(problem, *rest, **named)
        if named.get("previous") is not None and problem.target:
            name = next(iter(problem.mask))
            problem.mask[name][problem.mask[name].nonzero(as_tuple=True)[0][0]] = False
            methods.apply_mask(problem.model, problem.mask)
        return state

    monkeypatch.setattr(methods, "fit", moving)
    rows = [r for r in go(request_(suite, method, tmp_path, seeds=[0], sparsities=[0.5], finetune_epochs=[0, 1]), store) if r.criterion]
    assert {(r.finetune_epochs, r.status) for r in rows} == {(0, "ok"), (1, "failed")}
    assert "the cut kept" in next(r.error for r in rows if r.finetune_epochs)
