"""Each rule for one row: the line that names the fault, and nothing for rows at the limits of the rule."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import methods
from bench.publishing import row_rules
from bench.publishing.board_folder import Board
from bench.spec.row import Row
from bench.spec.suite import Suite, load_suite
from tests.bench.publishing.test_merge import row

LONG = {"finetune_epochs": 2, "accuracy_before_finetune": 0.6}
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def suite(tiny: Path) -> Suite:
    changes = {"seeds": (0, 1), "finetune_epochs": (0, 2), "trials": 5, "finetune_lr_scale": 0.1}
    return load_suite("tiny.toml").model_copy(update=changes)


def said(made: Row, **parts: Any) -> Row:
    """The row with further or other hyperparameters; None removes a part."""
    told = {**json.loads(made.hyperparameters), **parts}
    return replace(made, hyperparameters=json.dumps({k: v for k, v in told.items() if v is not None}))


def finetuned(made: Row, scale: float = 0.1) -> Row:
    return said(replace(made, **LONG), finetuning={"lr_scale": scale})  # type: ignore[arg-type]


def searched(made: Row, trials: int = 5, tuned: float = 0.8) -> Row:
    tuning = {"trials": trials, "epochs": 30, "validation": {"default": 0.7, "tuned": tuned}}
    return said(replace(made, tuning="tuned"), tuning=tuning)


def without(made: Row, status: str, **more: Any) -> Row:
    """The row without any measurement of its pruned network."""
    own = dict.fromkeys(name for name in row_rules.MEASURED if not name.startswith("dense_"))
    return replace(made, **{**own, "status": status, **more})  # type: ignore[arg-type]


def lacking(made: Row, part: str, name: str) -> Row:
    """The row without one of its hyperparameters."""
    return said(made, **{part: {k: v for k, v in json.loads(made.hyperparameters)[part].items() if k != name}})


SPAM, DENSE = row("spam", 0.5, 1), row("dense", 0.0, 1)
LR = json.loads(SPAM.hyperparameters)["training"] | {"lr": 0.05}
GRADUAL = methods.get("magnitude_gradual").schedule
assert GRADUAL is not None

VALID = {
    "pruned": SPAM,
    "dense": DENSE,
    "dense of another training": row("dense@spam", 0.0, 0),
    "fine-tuned": finetuned(SPAM),
    "dense, fine-tuned": replace(finetuned(DENSE), accuracy_before_finetune=None),
    "no fine-tuning but an accuracy before": replace(SPAM, accuracy_before_finetune=0.6),
    "failed": without(SPAM, "failed", error="out of memory"),
    "unsupported": without(SPAM, "unsupported", error="not this network"),
    "collapsed": replace(SPAM, status="collapsed", layers_collapsed=1),
    "collapsed without a collapsed layer": replace(SPAM, status="collapsed"),
    "everything is kept": replace(SPAM, parameters_kept=1010, flops_kept=2000),
    "as many in the first as in the first five": replace(SPAM, top5=SPAM.accuracy),
    "more in the first five": replace(SPAM, top5=0.99),
    "rounded": replace(SPAM, sparsity_reached=0.5 + 5e-13),
    "tuned": said(searched(SPAM), training=LR),
    "tuned fine-tuning": finetuned(searched(SPAM), 0.9),
    "in the name": row("magnitude(weight_decay=0.003)", 0.9, 0),
    "schedule": said(row("magnitude_gradual", 0.9, 0), schedule=json.loads(json.dumps(GRADUAL.as_dict()))),
}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_row_breaks_no_rule(name: str, suite: Suite) -> None:
    assert row_rules.Rules(Board(suite, ())).faults(VALID[name]) == []


COUNTS = "accuracy, nll, brier, ece, sparsity_reached, kept_weights, parameters_kept, flops_kept, layers_collapsed"
FIT = "hyperparameters: the values of criterion or fine-tuning do not fit to the columns `criterion` and `finetune_epochs`"
FAULTS: list[tuple[Row, list[str]]] = [
    (replace(SPAM, suite="other"), ["suite 'other', this leaderboard has suite 'tiny'"]),
    (replace(SPAM, protocol="1.0"), [f"protocol 1.0, this release has protocol {row_rules.PROTOCOL_VERSION}"]),
    (replace(SPAM, architecture="lenet"), ["the suite does not contain breast_cancer/lenet"]),
    (replace(SPAM, dataset="digits"), ["the suite does not contain digits/mlp"]),
    (replace(SPAM, seed=2), ["seed 2 is not one of 0, 1"]),
    (row("spam", 0.7, 0), ["sparsity 0.7 is not one of 0.5, 0.9"]),
    (row("spam", 0.0, 0), ["sparsity 0.0 is not one of 0.5, 0.9"]),
    (replace(DENSE, sparsity=0.5, kept_weights=500, sparsity_reached=0.5), ["sparsity 0.5 is not one of 0.0"]),
    (said(replace(SPAM, finetune_epochs=1, accuracy_before_finetune=0.5), finetuning={"lr_scale": 0.1}),
     ["finetune_epochs 1 is not one of 0, 2"]),
    (replace(SPAM, match="flops"), ["match 'flops', this leaderboard has 'weights'"]),
    (replace(SPAM, calibration_samples=5), ["calibration_samples '5', this leaderboard has 'None'"]),
    (replace(SPAM, recalibration="batchnorm"), ["recalibration 'batchnorm', this leaderboard has 'none'"]),
    (replace(SPAM, initial_weights="pretrained"), ["initial_weights 'pretrained', this leaderboard has 'random'"]),
    (replace(SPAM, epochs=4), ["epochs 4, but 'spam' trains 3 in this suite, which has 3"]),
    (without(SPAM, "failed", error=""), ["status is 'failed' but the column `error` is empty"]),
    (without(SPAM, "unsupported", error="", nll=0.1),
     ["status is 'unsupported' but the column `error` is empty", "status is 'unsupported' but these columns are not empty: nll"]),
    (without(SPAM, "failed", error="x", accuracy=0.1, kept_weights=5),
     ["status is 'failed' but these columns are not empty: kept_weights, accuracy"]),
    (replace(SPAM, **dict.fromkeys(COUNTS.split(", "))), [f"status is 'ok' but these columns are empty: {COUNTS}"]),  # type: ignore[arg-type]
    (replace(SPAM, train_seconds=None, prunable_weights=None, parameters=None, flops=None, status="collapsed"),
     ["status is 'collapsed' but these columns are empty: train_seconds, prunable_weights, parameters, flops"]),
    (replace(finetuned(SPAM), accuracy_before_finetune=None), ["status is 'ok' but these columns are empty: accuracy_before_finetune"]),
    (replace(SPAM, layers_collapsed=1), ["status is 'ok' but layers_collapsed is 1"]),
    (replace(SPAM, kept_weights=499, sparsity_reached=0.501), ["kept_weights is 499, but sparsity 0.5 requires exactly 500 of 1000"]),
    (replace(SPAM, sparsity_reached=0.5 + 2e-12), [f"sparsity_reached {0.5 + 2e-12!r} is not 1 - kept_weights / prunable_weights"]),
    (replace(SPAM, sparsity_reached=0.5 - 2e-12), [f"sparsity_reached {0.5 - 2e-12!r} is not 1 - kept_weights / prunable_weights"]),
    (replace(SPAM, parameters_kept=1011), ["parameters_kept 1011 is larger than parameters 1010"]),
    (replace(SPAM, flops_kept=2001), ["flops_kept 2001 is larger than flops 2000"]),
    (replace(SPAM, top5=0.5), ["accuracy 0.89 is larger than top5 0.5"]),
    (said(SPAM, criterion=None), [FIT]),
    (said(DENSE, criterion={}), [FIT]),
    (said(SPAM, finetuning={"lr_scale": 0.1}), [FIT]),
    (replace(SPAM, **LONG), [FIT]),  # type: ignore[arg-type]
    (finetuned(SPAM, 0.2), ["hyperparameters: lr_scale 0.2 of fine-tuning, but the suite has 0.1"]),
    (replace(DENSE, method="dense@spam"),
     ["method 'dense@spam' has no criterion; the dense network of this training must be called 'dense'"]),
    (said(DENSE, training=json.loads(DENSE.hyperparameters)["training"] | {"lr": 0.05}),
     ["method 'dense' has no criterion; the dense network of this training must be called 'dense@map(lr=0.05)'"]),
    *((made, ["method 'dense' has no criterion, so that it has no stage, no ablation and no schedule"])
      for made in (replace(DENSE, stage="after"), replace(DENSE, ablation="shuffled"))),
    (replace(SPAM, criterion="random", stage="init"),
     ["criterion 'random', the method 'spam' has 'opd'", "stage 'init', the method 'spam' has 'after'"]),
    (said(SPAM, schedule={"every": 1}), ["hyperparameters: `schedule` is not that of 'spam'"]),
    (replace(SPAM, tuning="tuned"), ["hyperparameters: tuned row without the entry `tuning`"]),
    (searched(SPAM, 4), ["hyperparameters: 4 tuning trials, but the suite has 5"]),
    (searched(SPAM, 3, 0.7), ["hyperparameters: 3 tuning trials, but the suite has 5"]),
    (searched(said(SPAM, training=LR), 4, 0.7), ["hyperparameters: lr of the training differ from the defaults of 'spam'"]),
    (searched(SPAM, 6), ["hyperparameters: 6 tuning trials, but the suite has 5"]),
    (replace(searched(SPAM), tuning="default"), ["hyperparameters: row with default hyperparameters and the entry `tuning`"]),
    (said(SPAM, training=LR), ["hyperparameters: lr of the training differ from the defaults of 'spam'"]),
    (said(SPAM, criterion={}, training={}),
     [f"hyperparameters: {', '.join(sorted(json.loads(SPAM.hyperparameters)[kind]))} of the {kind} differ from the defaults of 'spam'"
      for kind in ("training", "criterion")]),
    (said(SPAM, training=LR | {"lr": -1.0}), ["Spam: lr=-1.0 is not a finite number > 0"]),
    (lacking(SPAM, "training", "lr"), ["hyperparameters: lr of the training differ from the defaults of 'spam'"]),
]  # fmt: skip


def test_a_search_whose_candidates_are_all_the_defaults_measures_fewer(suite: Suite) -> None:
    """Five trials are three candidates on the first seed, then the best and the defaults on a second one: 3 + 1 without another."""
    assert row_rules.Rules(Board(suite, ())).faults(searched(SPAM, 4, 0.7)) == []


@pytest.mark.parametrize(("made", "lines"), FAULTS, ids=[lines[0] for _, lines in FAULTS])
def test_each_rule_names_its_fault_and_no_other(made: Row, lines: list[str], suite: Suite) -> None:
    assert row_rules.Rules(Board(suite, ())).faults(made) == lines


def test_an_unknown_method_may_be_one_of_a_plug_in(suite: Suite) -> None:
    (line,) = row_rules.Rules(Board(suite, ())).faults(replace(SPAM, method="wonder"))
    assert line.startswith("unknown method 'wonder' (did you mean ")
    assert line.endswith(" (a method of your own: --plugin FILE)")


def test_a_row_of_an_older_release_may_lack_hyperparameters_but_not_have_other_values(suite: Suite) -> None:
    board = Board(suite, ())
    assert row_rules.Rules(board, complete=False).faults(lacking(SPAM, "training", "lr")) == []
    assert len(row_rules.Rules(board, complete=False).faults(said(SPAM, training=LR))) == 1


def test_the_count_is_only_that_of_the_sparsity_where_single_weights_are_removed(suite: Suite) -> None:
    made = replace(row("magnitude", 0.5, 0), granularity="channel", kept_weights=480, sparsity_reached=0.52)
    channels = suite.model_copy(update={"granularity": "channel"})
    assert row_rules.Rules(Board(channels, ())).faults(made) == []


@pytest.mark.parametrize(("pretrained", "wanted"), [(True, "pretrained"), (False, "random")])
def test_the_suite_says_where_networks_start(pretrained: bool, wanted: str, suite: Suite) -> None:
    board = Board(suite.model_copy(update={"pretrained": pretrained}), ())
    for start in ("random", "pretrained", DIGEST):
        line = f"initial_weights '{start}', this leaderboard has '{wanted}'"
        assert row_rules.Rules(board).faults(replace(SPAM, initial_weights=start)) == [line] * (start != wanted)


def test_rows_of_one_network_start_from_one_checkpoint(suite: Suite) -> None:
    """That of the first published row of the same network; any checkpoint if there is none."""
    suite = suite.model_copy(update={"weights": "a.safetensors"})
    mine, other = replace(SPAM, initial_weights=DIGEST), replace(SPAM, initial_weights="sha256:" + "b" * 64)
    foreign = (replace(other, dataset="digits"), replace(other, architecture="lenet"))
    assert row_rules.Rules(Board(suite, foreign)).faults(mine) == []
    assert row_rules.Rules(Board(suite, (*foreign, mine, other))).faults(mine) == []
    line = f"initial_weights '{DIGEST}', this leaderboard has '{other.initial_weights}'"
    assert row_rules.Rules(Board(suite, (*foreign, other, mine))).faults(mine) == [line]
    assert row_rules.Rules(Board(suite, ())).faults(replace(SPAM, initial_weights="random")) == [
        "initial_weights 'random', this leaderboard has 'sha256:'"
    ]


def test_settings_are_looked_at_once_and_lists_are_not_shared(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of the same settings: one look; what a caller adds to the faults of one row is not a fault of another."""
    looked: list[Row] = []
    original = row_rules._configured
    monkeypatch.setattr(row_rules, "_configured", lambda row, *rest: (looked.append(row), original(row, *rest))[1])
    rules, other = row_rules.Rules(Board(suite, ())), replace(SPAM, seed=0)
    rules.faults(SPAM).append("twice")
    assert rules.faults(other) == []
    assert looked == [SPAM]
    assert rules.faults(replace(other, epochs=SPAM.epochs + 1)) != []
