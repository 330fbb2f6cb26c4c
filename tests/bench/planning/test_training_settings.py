"""Settings of training: which methods and optimizers fit, what a row says, and a run that uses all of them."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import methods
from bench.execution.executors import Inline
from bench.execution.run import run
from bench.planning import catalogue
from bench.planning.jobs import recipe_faults
from bench.planning.plan import expanded
from bench.planning.request import Request
from bench.publishing import merge
from bench.publishing.board_folder import Board
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.suite import Suite, load_suite
from bench.storage import results_csv
from bench.storage.rows import Store
from bench.trial.job import Environment
from methods import Stage
from tests.bench.suites import narrowed

Bench = Callable[..., tuple[int, str, str]]
DEFAULT = {
    "augment": [], "batch_size": 64, "label_smoothing": 0.0, "lr_scale": 1.0, "lr_schedule": "cosine", "mixup": 0.0, "optimizer": "sgd",
    "precision": "full", "weight_decay": "coupled",
}  # fmt: skip


def request_(suite: Suite, names: str, folder: Path) -> Request:
    return Request(suite, catalogue.select_methods(names), Environment("cpu", None, folder / "cache"))


def computed(request: Request, store: Path) -> list[Row]:
    """The rows, computed in this process."""
    return run(request, Store(f"sqlite:///{store}"), Inline(), lambda: nullcontext(lambda _: None))


# --- all@TRAINING


@pytest.mark.parametrize("training", ["decoupled", "spam", "map"])
def test_all_at_a_training_is_every_method_that_takes_one(training: str) -> None:
    chosen = catalogue.select_methods(f"all@{training}")
    every = [methods.get(name) for name in methods.names()]
    wanted = [m for m in every if not m.costly and m.training == "map" and m.stage in (Stage.AFTER, Stage.INIT)]
    assert len(chosen) == len(wanted) > 8
    assert [(m.criterion, m.options, m.stage, m.training) for m in chosen] == [(m.criterion, m.options, m.stage, training) for m in wanted]
    assert not any(m.costly for m in chosen)


def test_all_at_a_training_may_have_options_and_stand_in_a_list() -> None:
    chosen = catalogue.select_methods("dwf, all@spam(prior=layer,frequency=2) ,all@decoupled")
    assert chosen[0].name == "dwf"
    options = [m.training_options for m in chosen if m.training == "spam"]
    assert options == [{"prior": "layer", "frequency": 2}] * len(options)
    assert len(chosen) == 1 + 2 * len(options)


def test_all_at_an_unknown_training_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown training 'decopled' \\(did you mean 'decoupled'\\?\\)"):
        catalogue.select_methods("all@decopled")


# --- what does not fit is refused before anything runs


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ('optimizer = "adamw"', ("--methods", "magnitude"), "magnitude: 'adamw' decouples weight decay, 'map' has it in the loss: use"),
        ('optimizer = "adamw"', ("--methods", "magnitude@decoupled,spam"), "spam: 'adamw' decouples weight decay, 'spam' has it in"),
        ('augment = ["randaugment"]', ("--methods", "magnitude"), "'randaugment' needs images, not tabular data: dataset 'breast_cancer'"),
        ('augment = ["flip"]', ("--methods", "magnitude"), "'flip' needs images, not tabular data: dataset 'breast_cancer'"),
        ('lr_schedule = "steps"', (), "lr_schedule: must be cosine, linear, constant or step, got 'steps'"),
    ],
)
def test_settings_that_do_not_fit_end_in_one_line(tiny: Path, bench: Bench, settings: str, arguments: Any, said: str) -> None:
    (tiny / "own.toml").write_text((tiny / "tiny.toml").read_text() + settings)
    code, out, err = bench("run", "--suite", "own.toml", "--workers", "1", *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(tiny.glob("**/*.safetensors"))


# --- the column `recipe`


def test_rows_state_the_recipe_of_their_architecture_and_training(tiny: Path) -> None:
    suite = narrowed(load_suite("tiny.toml"), architecture={"mlp": {"label_smoothing": 0.1, "lr_schedule": "step", "batch_size": 32}})
    rows = [row for made in expanded(request_(suite, "magnitude,magnitude@decoupled,snip", tiny)) for row in made.rows.values()]
    found = {(row.method, row.recipe) for row in rows}
    coupled = DEFAULT | {"label_smoothing": 0.1, "lr_schedule": "step", "batch_size": 32}
    assert {name: json.loads(text) for name, text in found} == {
        name: coupled | ({"weight_decay": "decoupled"} if name.endswith("decoupled") else {})
        for name in ("dense", "dense@decoupled", "magnitude", "magnitude@decoupled", "snip")
    }
    assert len(found) == 5
    assert all(text == json.dumps(json.loads(text), sort_keys=True) for _, text in found)


def test_a_recipe_that_is_not_the_suites_is_named(tiny: Path) -> None:
    suite = load_suite("tiny.toml")
    row = next(iter(expanded(request_(suite, "magnitude", tiny))[-1].rows.values()))
    assert json.loads(row.recipe) == DEFAULT
    assert recipe_faults(row, suite) == recipe_faults(replace(row, recipe="{}"), suite) == []
    for text, said in (
        (json.dumps(DEFAULT | {"optimizer": "adam"}), ["recipe: optimizer is 'adam', but the suite has 'sgd'"]),
        (json.dumps(DEFAULT | {"more": 1}), ["recipe: more is 1, but the suite has None"]),
        ('{"mixup": 0.0', ["recipe: '{\"mixup\": 0.0' is not a JSON object"]),
        ("[]", ["recipe: '[]' is not a JSON object"]),
    ):
        assert recipe_faults(replace(row, recipe=text), suite) == said
    results_csv.write_rows([replace(row, status="failed", error="e", recipe=json.dumps(DEFAULT | {"mixup": 0.2}))], tiny / "theirs.csv")
    refused = [reason for _, reason in merge.check(tiny / "theirs.csv", Board(suite, ())).refused]
    assert "recipe: mixup is 0.2, but the suite has 0.0" in refused


# --- end to end

EVERYTHING = """
name = "everything"
description = "all settings of training"
blocks = [{ dataset = "digits", architectures = ["mlp"] }]
sparsities = [0.5]
seeds = [0]
epochs = 2
finetune_epochs = [0, 1]
batch_size = 64
train_limit = 300
methods = ["magnitude@decoupled", "random_init@decoupled"]
optimizer = "adamw"
lr_schedule = "step"
label_smoothing = 0.1
mixup = 0.2
augment = ["crop", "randaugment"]
"""


def test_a_suite_with_all_settings_runs_from_the_command_line_and_repeats(tiny: Path, bench: Bench) -> None:
    (tiny / "everything.toml").write_text(EVERYTHING)
    code, _, err = bench("run", "--suite", "everything.toml", "--workers", "1", "--output", "first")
    assert (code, err) == (0, "")
    rows = results_csv.read_rows(tiny / "first" / "results.csv")
    assert [(r.method, r.finetune_epochs, r.error) for r in rows] == [
        (method, epochs, "") for method in ("dense@decoupled", "magnitude@decoupled", "random_init@decoupled") for epochs in (0, 1)
    ]
    suite = load_suite("everything.toml")
    again = computed(request_(suite, ",".join(suite.methods), tiny / "again"), tiny / "again.db")
    assert {r.identity: r.nll for r in again} == {r.identity: r.nll for r in rows}
    said = json.loads(rows[0].recipe)
    assert said == DEFAULT | {
        "augment": ["crop", "randaugment"], "label_smoothing": 0.1, "lr_schedule": "step", "mixup": 0.2,
        "optimizer": "adamw", "weight_decay": "decoupled",
    }  # fmt: skip


def test_settings_reach_training_and_fine_tuning_but_not_scoring(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the training loop is given: soft targets in the steps, labels where methods read data."""
    given: list[tuple[bool, str, str, int, int]] = []
    fit = methods.fit

    def watched(problem: Any, training: Any, recipe: Any, *, batches: Any, previous: Any, **more: Any) -> Any:
        dims = next(iter(batches))[1].ndim, next(iter(problem.batches))[1].ndim
        given.append((previous is not None, recipe.optimizer, recipe.schedule, *dims))
        return fit(problem, training, recipe, batches=batches, previous=previous, **more)

    monkeypatch.setattr(methods, "fit", watched)
    settings = {"optimizer": "adamw", "lr_schedule": "linear", "label_smoothing": 0.1, "mixup": 0.2}
    suite = narrowed(load_suite("tiny.toml"), sparsities=(0.5,), seeds=(0,), epochs=1, **settings)
    request = request_(suite, "opd@decoupled", tiny)
    rows = computed(request, tiny / "store.db")
    assert [row.status for row in rows] == ["ok"] * 4
    assert given == [(fine, "adamw", "linear", 2, 1) for fine in (False, True, True)]
