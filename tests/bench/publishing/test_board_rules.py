"""Rules for all rows together: each contradiction is found at its rows only, and each missing row of a suite."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.publishing.board_rules import contradictions, incomplete, key_of, label_of, missing_controls
from bench.spec.protocol import Block, Settings
from bench.spec.row import Row
from bench.spec.suite import Suite, load_suite
from tests.bench.publishing.test_merge import cells

Change = Callable[[Row], Row | None]


@pytest.fixture
def suite(tiny: Path) -> Suite:
    return load_suite("tiny.toml").model_copy(update={"seeds": (0, 1, 2), "finetune_epochs": (0,)})


def board(*methods: str) -> list[Row]:
    """Rows without contradictions: `top5` and `dense_training_flops` are filled too."""
    made = [row for method in (methods or ("dense", "magnitude", "random")) for row in cells(method)]
    flops = {"training_flops": 100, "dense_training_flops": 100, "top5": 0.95}
    return [replace(row, **flops) for row in made]  # type: ignore[arg-type]


def at(method: str, change: dict[str, Any], sparsity: float = 0.5, seed: int = 1) -> Change:
    return lambda row: replace(row, **change) if (row.method, row.sparsity, row.seed) == (method, sparsity, seed) else row


def found(rows: list[Row], published: list[Row] | tuple[()] = ()) -> list[tuple[str, float, int, str]]:
    return [(row.method, row.sparsity, row.seed, reason) for row, reason in contradictions(rows, published)]


def test_rows_that_fit_together_contradict_nothing() -> None:
    rows = board("dense", "dense@spam", "magnitude", "spam")
    assert found(rows) == []
    assert found(rows[9:], rows[:9]) == []


def setting(row: Row, **training: Any) -> str:
    told = json.loads(row.hyperparameters)
    return json.dumps(told | {"training": told["training"] | training}, sort_keys=True)


ONE = board("random")[1]  # of sparsity 0.5, seed 1
SETTINGS = "hyperparameters differ from those of the other seeds and sparsities"
FAULTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"prunable_weights": 999}, ["prunable_weights is 999, but this network has 1000"]),
    ({"parameters": 1011}, ["parameters is 1011, but this network has 1010"]),
    ({"flops": 2001, "status": "collapsed"}, ["flops is 2001, but this network has 2000"]),
    ({"flops": 2001, "status": "failed"}, []),
    ({"top5": None}, ["top5 is empty, but other rows of this network have it"]),
    ({"nll": None, "status": "failed"}, []),
    ({"nll": None}, ["nll is empty, but other rows of this network have it"]),
    ({"hyperparameters": setting(ONE, lr=0.05)}, [SETTINGS, "the row of its dense network is missing (training 'map', seed 1)"]),
    ({"dense_accuracy": 0.5}, ["dense_accuracy: not the value of the row of its dense network"]),
    ({"dense_nll": 0.5, "dense_training_flops": 99}, ["dense_nll, dense_training_flops: not the value of the row of its dense network"]),
    ({"dense_accuracy": 0.5, "status": "failed"}, []),
    ({"dense_accuracy": 0.5, "status": "collapsed"}, ["dense_accuracy: not the value of the row of its dense network"]),
    ({"dense_accuracy": 0.5, "torch": "2.14.1"}, []),
    ({"recalibration": "batchnorm"}, ["the row of its dense network is missing (training 'map', seed 1)"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reasons"), FAULTS, ids=[str(change)[:60] for change, _ in FAULTS])
def test_each_contradiction_is_found_at_its_row(change: dict[str, Any], reasons: list[str]) -> None:
    rows = [at("random", change)(row) for row in board()]
    assert found(rows) == [("random", 0.5, 1, reason) for reason in reasons]  # type: ignore[arg-type]


def test_a_failed_dense_network_has_no_values_to_compare() -> None:
    rows = [at("dense", {"status": "failed", "accuracy": 0.1}, 0.0)(row) for row in board()]
    assert found(rows) == []
    rows = [at("dense", {"status": "collapsed", "accuracy": 0.1}, 0.0)(row) for row in board()]
    reason = "dense_accuracy: not the value of the row of its dense network"
    assert found(rows) == [(method, s, 1, reason) for method in ("magnitude", "random") for s in (0.5, 0.9)]


def test_dense_rows_need_no_values_of_themselves() -> None:
    rows = [replace(row, dense_accuracy=None, dense_nll=0.1) if row.method == "dense" else row for row in board()]
    assert found(rows) == []


def test_a_row_twice_is_said_of_the_second() -> None:
    rows = board()
    twice = replace(rows[4], nll=0.7)
    assert found([*rows, twice]) == [
        (twice.method, twice.sparsity, twice.seed, "the same row (method, data set, sparsity, seed, ...) occurs twice")
    ]
    assert [row.nll for row, _ in contradictions([*rows, twice])] == [0.7]
    assert [row.nll for row, _ in contradictions([twice], rows)] == [0.7]


def test_published_rows_are_right_however_few() -> None:
    """Two rows are published, and six others have another network and other hyperparameters."""
    rows = [replace(row, flops=2001, hyperparameters=setting(row, lr=0.05)) for row in board("magnitude")]
    dense = board("dense")
    mine = [row for row in board("magnitude") if row.seed == 2]
    for others in (rows, [row for row in rows if row.seed != 2]):
        reasons = [
            (s, seed, reason) for m, s, seed, reason in found([row for row in others if row.seed != 2], [*dense, *mine]) if m == "magnitude"
        ]
        wrong = [(s, seed) for s in (0.5, 0.9) for seed in (0, 1)]
        assert sorted((s, seed) for s, seed, reason in reasons if reason == "flops is 2001, but this network has 2000") == wrong
        assert sorted((s, seed) for s, seed, reason in reasons if reason == SETTINGS) == wrong
    failed = [replace(row, status="failed") for row in [*dense, *mine]]
    said = [reason for _, _, _, reason in found(rows[:4], failed)]
    assert not [reason for reason in said if reason.startswith("flops")], "a failed row says nothing about the network"


@pytest.mark.parametrize("status", ["ok", "collapsed"])
def test_one_published_row_outweighs_many_others(status: str) -> None:
    one = replace(board("magnitude")[0], status=status)
    others = [replace(row, flops=2001) for row in board("dense", "random")]
    assert {r.method for r, reason in contradictions(others, [one]) if reason == "flops is 2001, but this network has 2000"} == {
        "dense",
        "random",
    }


@pytest.mark.parametrize("place", [0, 1, 14])
def test_without_published_rows_most_rows_are_right_and_not_the_first(place: int) -> None:
    rows = board()
    rows[place] = replace(rows[place], flops=2001)
    assert [(row, reason) for row, reason in contradictions(rows)] == [(rows[place], "flops is 2001, but this network has 2000")]


def test_the_order_of_hyperparameters_is_not_a_difference() -> None:
    rows = board("dense", "magnitude")
    told = json.loads(rows[0].hyperparameters)
    rows[0] = replace(rows[0], hyperparameters=json.dumps({"training": dict(reversed(told["training"].items()))}))
    assert len(told["training"]) > 1
    assert found(rows) == []


def test_a_column_of_a_later_release_may_be_empty_in_the_rows_of_one_method() -> None:
    """`worst_class_accuracy` came with schema 3: the rows of a method of before lack it, but not some of them only."""
    late = [replace(row, worst_class_accuracy=None if row.method == "random" else 0.5) for row in board()]
    assert found(late) == []
    reason = "worst_class_accuracy is empty, but other rows of this network have it"
    some = [at("magnitude", {"worst_class_accuracy": None})(row) for row in late]
    assert found(some) == [("magnitude", 0.5, 1, reason)]  # type: ignore[arg-type]
    tuned = [replace(row, tuning="tuned", worst_class_accuracy=0.5) for row in board("random")]
    ablated = [replace(row, ablation="shuffled", worst_class_accuracy=0.5) for row in board("random")]
    assert found([*late, *tuned, *ablated]) == []
    early = [replace(row, brier=None) if row.method == "random" else row for row in board()]
    assert {(m, said) for m, _, _, said in found(early)} == {("random", "brier is empty, but other rows of this network have it")}


def test_fine_tuned_and_dense_rows_may_lack_what_others_have() -> None:
    rows = board()
    rows += [replace(row, finetune_epochs=2, accuracy_before_finetune=0.5 if row.criterion else None) for row in rows]
    assert found(rows) == []
    other = [replace(row, dataset="digits", brier=None) for row in rows]
    assert found([*rows, *other]) == []


def test_settings_may_differ_between_methods_blocks_and_fine_tuning() -> None:
    rows = board("dense", "magnitude")
    tuned = [replace(row, tuning="tuned", hyperparameters=setting(row, lr=0.05)) for row in rows]
    tuned = [replace(row, method="dense@map(lr=0.05)", tuning="default") if row.method == "dense" else row for row in tuned]
    longer = [replace(row, finetune_epochs=2, hyperparameters=setting(row, lr=0.1)) for row in rows]
    assert found([*rows, *tuned, *longer, *(replace(row, dataset="digits", hyperparameters=setting(row, lr=0.3)) for row in rows)]) == []
    search = {"tuning": {"trials": 5, "epochs": 1, "validation": {"default": 0.5, "tuned": 0.6}}}
    other = [
        replace(row, hyperparameters=json.dumps(json.loads(row.hyperparameters) | search)) if row == tuned[4] else row for row in tuned
    ]
    assert [reason for *_, reason in found([*rows, *other])] == [SETTINGS]
    scale = {"finetuning": {"lr_scale": 0.2}}
    scaled = [replace(row, hyperparameters=json.dumps(json.loads(row.hyperparameters) | scale)) if row == rows[4] else row for row in rows]
    assert found(scaled) == [], "the fine-tuning may differ: only rows with it have it"


def test_nothing_is_missing_of_a_whole_board(suite: Suite) -> None:
    assert list(incomplete(board(), suite)) == []


WHERE = "for breast_cancer/mlp at sparsity"


@pytest.mark.parametrize(
    ("lost", "lines"),
    [
        (lambda r: r.method == "random" and r.seed == 1 and r.sparsity == 0.9,
         [f"'random' has no row {WHERE} 0.9 with 0 epochs of fine-tuning, seeds 1"]),
        (lambda r: r.method == "random" and r.seed != 1, [f"'random' has no row {WHERE} 0.5 with 0 epochs of fine-tuning, seeds 0, 2"]),
        (lambda r: r.sparsity == 0.5 and r.seed == 2,
         [f"'{m}' has no row {WHERE} 0.5 with 0 epochs of fine-tuning, seeds 2" for m in ("magnitude", "random")]),
        (lambda r: r.method == "dense" and r.seed == 0, [f"'dense' has no row {WHERE} 0 with 0 epochs of fine-tuning, seeds 0"]),
        (lambda r: r.method == "dense", []),
    ],
)  # fmt: skip
def test_the_first_missing_cell_of_each_method_is_named(lost: Callable[[Row], bool], lines: list[str], suite: Suite) -> None:
    said = list(incomplete([row for row in board() if not lost(row)], suite))
    assert [line for _, line in said] == lines
    assert all(key[1:] == ("default", "none") for key, _ in said)


def test_missing_seeds_are_in_order(suite: Suite) -> None:
    wider = suite.model_copy(update={"seeds": (0, 1, 2, 8, 40, 9)})
    assert next(line for _, line in incomplete(board("magnitude"), wider)).endswith(", seeds 8, 9, 40")


def test_blocks_without_rows_are_not_required_and_dense_only_where_it_is(suite: Suite) -> None:
    blocks = (*suite.blocks, Block(dataset="digits", architectures=("mlp",)), Block(dataset="wine", architectures=("mlp",)))
    suite = suite.model_copy(update={"blocks": blocks})
    digits = [replace(row, dataset="digits") for row in board("magnitude")]
    assert [line for _, line in incomplete([*board(), *digits], suite)] == [
        "'random' has no row for digits/mlp at sparsity 0.5 with 0 epochs of fine-tuning, seeds 0, 1, 2"
    ]


def test_every_number_of_fine_tuning_epochs_is_required(suite: Suite) -> None:
    suite = suite.model_copy(update={"finetune_epochs": (0, 3)})
    tuned = [replace(row, finetune_epochs=3) for row in board("magnitude")]
    assert [line for _, line in incomplete([*board("dense", "magnitude"), *tuned], suite)] == [
        f"'dense' has no row {WHERE} 0 with 3 epochs of fine-tuning, seeds 0, 1, 2"
    ]


def test_a_method_that_is_pruned_in_some_rows_is_a_pruned_method(suite: Suite) -> None:
    """Its rows of sparsity 0 without a criterion do not make it a dense network."""
    odd = [replace(row, criterion="") if row.sparsity == 0.9 else row for row in board("random") if row.sparsity == 0.9 or row.seed != 0]
    assert [line for _, line in incomplete([*board("dense", "magnitude"), *odd], suite)] == [
        f"'random' has no row {WHERE} 0.5 with 0 epochs of fine-tuning, seeds 0"
    ]


def test_names_say_tuning_and_ablation() -> None:
    row = board("random")[0]
    assert key_of(row) == ("random", "default", "none")
    assert label_of(("random", "default", "none")) == "random"
    assert label_of(("random", "tuned", "none")) == "random tuned"
    assert label_of(key_of(replace(row, tuning="tuned", ablation="shuffled"))) == "random tuned shuffled"


def test_controls_by_stage_and_optimizer(suite: Suite) -> None:
    plain = ["random", "magnitude", "magnitude_layer"]
    assert missing_controls(suite, []) == plain
    assert missing_controls(suite, [("random", "after"), ("spam", "after")]) == plain[1:]
    assert missing_controls(suite, [("snip", "init"), ("magnitude", "after")]) == ["random", "magnitude_layer", "random_init"]
    assert missing_controls(suite, [("random_init", "init"), *((name, "after") for name in plain)]) == []
    adamw = suite.model_copy(update={"optimizer": "adamw"})
    blocks = (Block(dataset="breast_cancer", architectures=("mlp", "own")),)
    mixed = adamw.model_copy(update={"blocks": blocks, "architecture": {"own": Settings(optimizer="sgd")}})
    assert missing_controls(mixed, []) == [f"{name}@decoupled" for name in plain]
    assert missing_controls(adamw, [("random", "after")]) == [f"{name}@decoupled" for name in plain]
    assert missing_controls(adamw, [(f"{name}@decoupled", "after") for name in plain]) == []
