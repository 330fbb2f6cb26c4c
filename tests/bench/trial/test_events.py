"""`--log`: the event files, read back by TensorBoard; results and keys that they do not change."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from bench.execution import pipeline, resources
from bench.execution.executors import Inline
from bench.execution.run import run
from bench.planning import catalogue
from bench.planning.plan import expanded
from bench.planning.request import Request
from bench.spec.choices import Resources
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.setting import Setting
from bench.spec.suite import load_suite
from bench.storage import results_csv
from bench.storage.rows import Store
from bench.trial import events
from bench.trial.job import Environment
from tests.bench.suites import narrowed

Bench = Callable[..., tuple[int, str, str]]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of a run folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def computed(request: Request, store: Path) -> list[Row]:
    """The rows, computed in this process."""
    return run(request, Store(f"sqlite:///{store}"), Inline(), lambda: nullcontext(lambda _: None))


def test_a_run_writes_every_training_and_every_measurement_from_its_workers(tiny: Path, bench: Bench) -> None:
    pytest.importorskip("tensorboard")
    command = ("run", "--suite", "tiny.toml", "--seeds", "0", "--methods", "magnitude,spam,snip", "--workers", "2")
    assert bench(*command, "--log", "events", "--output", "logged")[0] == 0
    cell = tiny / "events" / "breast_cancer" / "mlp"
    found = {str(f.parent.relative_to(cell)) for f in cell.rglob("events.out.*")}
    fine = {f"{m}/seed-0/sparsity-{s}-finetuning-1" for m in ("magnitude", "spam", "snip") for s in ("0.5", "0.9")}
    trained = {"dense/seed-0/training", "dense@spam/seed-0/training", *(f"snip/seed-0/sparsity-{s}-training" for s in ("0.5", "0.9"))}
    dense = {f"{m}/seed-0/finetuning-1" for m in ("dense", "dense@spam")}
    measured = {
        f"{m}/seed-0/measurements{fine}" for m in ("dense", "dense@spam", "magnitude", "spam", "snip") for fine in ("", "-finetuning-1")
    }
    assert found == fine | trained | dense | measured
    training = scalars(cell / "dense/seed-0/training")
    assert set(training) == {"training/loss", "training/learning rate", "training/sparsity"}
    assert [step for step, _ in training["training/loss"]] == [1, 2, 3]
    assert training["training/loss"][-1][1] < training["training/loss"][0][1]
    spam = scalars(cell / "dense@spam/seed-0/training")
    assert [step for step, _ in spam["training/evidence"]] == [1, 2, 3]
    assert scalars(cell / "magnitude/seed-0/sparsity-0.9-finetuning-1")["training/sparsity"] == [(1, pytest.approx(0.9, abs=1e-3))]
    rows = {(r.method, r.finetune_epochs, r.sparsity): r for r in results_csv.read_rows(tiny / "logged" / "results.csv")}
    for method, sparsities in (("magnitude", (0.5, 0.9)), ("dense@spam", (0.0,))):
        values = scalars(cell / method / "seed-0/measurements")
        for column in ("accuracy", "nll", "ece"):
            wanted = [(round(1000 * s), pytest.approx(getattr(rows[method, 0, s], column))) for s in sparsities]
            assert values[f"test/{column}"] == wanted
    # Neither results nor keys: a second run without the option takes everything from the store, a run in another store has the same rows.
    _, out, _ = bench(*command, "--dry-run")
    assert "16 rows: 16 in the store, 0 to compute" in out
    suite = narrowed(load_suite("tiny.toml"), seeds=(0,))
    plain = computed(
        Request(suite, catalogue.select_methods("magnitude,spam,snip"), Environment("cpu", None, tiny / "plain")), tiny / "plain.db"
    )
    assert {r.identity: r.nll for r in plain} == {r.identity: r.nll for r in rows.values()}


def test_a_run_again_replaces_the_events_of_a_training(tiny: Path) -> None:
    pytest.importorskip("tensorboard")
    for epochs in (4, 2):
        suite = narrowed(load_suite("tiny.toml"), seeds=(0,), sparsities=(0.5,), finetune_epochs=(0,), epochs=epochs)
        place = Environment("cpu", None, tiny / "cache", log=tiny / "events")
        computed(Request(suite, catalogue.select_methods("magnitude"), place), tiny / f"{epochs}.db")
    loss = scalars(tiny / "events/breast_cancer/mlp/dense/seed-0/training")["training/loss"]
    assert [step for step, _ in loss] == [1, 2]


def test_folders_are_readable_and_differ_where_networks_do(tiny: Path) -> None:
    place = Environment("cpu", None, tiny / "cache", log=tiny / "events")
    request = Request(load_suite("tiny.toml"), catalogue.select_methods("magnitude,opd@spam(prior=layer)"), place, ("shuffle",))
    jobs = [made.job for made in expanded(request)]
    names = [str(events._folder(job).relative_to(tiny / "events" / "breast_cancer" / "mlp")) for job in jobs]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} == {
        "dense", "dense@spam(prior=layer)", "magnitude", "magnitude_shuffle", "spam_layer", "spam_layer_shuffle",
    }  # fmt: skip
    job = next(job for job in jobs if job.method == "magnitude")
    tuned = replace(job, setting=replace(job.setting, training={**job.setting.training, "lr": 0.05}, finetune_lr_scale=0.3))
    assert events._folder(tuned).parent.name == "magnitude(lr=0.05,finetune_lr_scale=0.3)"
    assert events._folder(replace(job, split="validation")).is_relative_to(tiny / "events" / "tuning")
    odd = replace(job, dataset="folder:/a b/../c", setting=Setting(job.setting.training, job.setting.criterion))
    assert events._folder(odd).relative_to(tiny / "events").parts[0] == "folder_a_b_.._c"


def test_the_folder_of_events_is_in_no_key_and_no_lease(tiny: Path) -> None:
    made = []
    for log in (None, tiny / "events"):
        request = Request(load_suite("tiny.toml"), catalogue.select_methods("magnitude"), Environment("cpu", None, tiny / "cache", log=log))
        made.append([(list(p.rows), p.job.network, pipeline._lease(p.job)) for p in expanded(request)])
    assert json.dumps(made[0]) == json.dumps(made[1])


# --- what is refused


def test_a_missing_package_is_said_before_anything_runs(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: None)
    code, out, err = bench("run", "--suite", "tiny.toml", "--log", "events")
    assert (code, out) == (2, "")
    assert err == "error: --log needs TensorBoard, which is not installed: pip install 'razorbench[tensorboard]'\n"
    assert not (tiny / "events").exists()


def test_a_file_in_place_of_the_folder_is_refused(tiny: Path) -> None:
    pytest.importorskip("tensorboard")
    (tiny / "taken").write_text("")
    with pytest.raises(UserError, match=r"--log 'taken/events': '.*taken' is not a directory"):
        resources.check(Resources(log=Path("taken/events")))
    resources.check(Resources(log=Path("new/events")))
    assert not (tiny / "new").exists()


def test_without_the_option_tensorboard_is_not_imported(tiny: Path) -> None:
    job = expanded(Request(load_suite("tiny.toml"), catalogue.select_methods("magnitude"), Environment("cpu", None, tiny / "cache")))[0].job
    before = set(sys.modules)
    with events.Events(job).training(None) as callbacks:  # type: ignore[arg-type]
        assert callbacks == []
    assert not [name for name in set(sys.modules) - before if "tensorboard" in name]
