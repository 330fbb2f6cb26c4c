"""Blocks have values of their own instead of the suite's, and methods that train at each sparsity may have fewer sparsities."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench.planning import catalogue
from bench.planning.plan import expanded
from bench.planning.request import Request, of_granularity
from bench.planning.searches import searches
from bench.publishing.board_folder import Board, suite_toml
from bench.publishing.board_rules import incomplete
from bench.publishing.row_rules import Rules
from bench.spec.errors import UserError
from bench.spec.protocol import Settings
from bench.spec.suite import Suite, load_suite
from bench.trial.job import Environment
from tests.bench.suites import narrowed

SUITE = """
name = "x"
description = "d"
blocks = [
    { dataset = "digits", architectures = ["mlp"], epochs = 3, trials = 2, validation = 0.3 },
    { dataset = "digits", architectures = ["lenet5"], train_limit = 100, augment = ["crop"], batch_size = 32 },
    { dataset = "breast_cancer", architectures = ["mlp"] },
]
sparsities = [0.5, 0.8, 0.9]
early_sparsities = [0.8]
finetune_epochs = [0, 1]
seeds = [0, 1]
methods = ["magnitude", "snip", "set"]
epochs = 1
validation = 0.2

[architecture.lenet5]
batch_size = 16
"""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    (tmp_path / "x.toml").write_text(SUITE)
    return load_suite(str(tmp_path / "x.toml"))


def asked(suite: Suite, folder: Path) -> Request:
    return Request(suite, catalogue.select_methods("magnitude,snip,set"), Environment("cpu", None, folder))


def test_an_architecture_comes_before_its_block_and_the_block_before_the_suite(suite: Suite) -> None:
    mlp, lenet, other = suite.protocol("digits", "mlp"), suite.protocol("digits", "lenet5"), suite.protocol("breast_cancer", "mlp")
    assert (mlp.epochs, mlp.validation, mlp.batch_size, mlp.train_limit) == (3, 0.3, 128, None)
    assert (lenet.epochs, lenet.validation, lenet.batch_size, lenet.train_limit, lenet.augment) == (1, 0.2, 16, 100, ("crop",))
    assert (other.epochs, other.validation, other.batch_size, other.augment) == (1, 0.2, 128, ())
    assert (suite.trials_of("digits", "mlp"), suite.trials_of("digits", "lenet5"), suite.tunes) == (2, 0, True)
    assert suite.protocol("mnist", "resnet20").epochs == 1, "a block that the suite does not have"


def test_a_suite_is_read_back_as_it_was_written(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "again.toml").write_text(suite_toml(suite))
    assert load_suite(str(tmp_path / "again.toml")) == suite


def test_what_the_user_gives_also_replaces_the_values_of_blocks(suite: Suite) -> None:
    made = narrowed(suite, epochs=7, trials=0, architectures=["lenet5", "mlp_256"])
    assert [(b.dataset, b.architectures) for b in made.blocks] == [
        ("digits", ("mlp_256",)), ("digits", ("lenet5",)), ("breast_cancer", ("lenet5", "mlp_256")),
    ]  # fmt: skip
    assert {made.protocol(b.dataset, a).epochs for b in made.blocks for a in b.architectures} == {7}
    assert not made.tunes
    assert made.protocol("digits", "lenet5").train_limit == 100, "what was not given stays"
    assert narrowed(suite, datasets=["breast_cancer", "digits"]).blocks == (suite.blocks[2], *suite.blocks[:2])
    assert narrowed(suite, sparsities=[0.8, 0.9]).early_sparsities == (0.8, 0.9), "what the user asks for is for every method"
    moments = {"mean": (0.5,), "std": (0.2,)}
    own = suite.model_copy(update={"architecture": {"lenet5": Settings(**moments)}})
    assert own.protocol("digits", "lenet5").mean == (0.5,)
    assert narrowed(own, mean=(0.1,), std=(0.3,)).protocol("digits", "lenet5").mean == (0.1,)


def test_a_fixed_sparsity_and_finetuning_only_are_also_for_early_methods(suite: Suite) -> None:
    fixed = of_granularity(narrowed(suite, granularity="2:4"))
    assert (fixed.extent(early=True), fixed.extent(early=False)) == (((0.5,), (0,)), ((0.5,), (0, 1)))
    assert Suite.model_validate(fixed.model_dump()) == fixed, "it can be written and read"
    tuned = narrowed(suite, finetune_epochs=[1], sparsities=[0.8])
    assert tuned.extent(early=True) == tuned.extent(early=False) == ((0.8,), (1,))


def test_early_methods_have_their_sparsities_and_no_finetuning(suite: Suite, tmp_path: Path) -> None:
    rows = [row for made in expanded(asked(suite, tmp_path)) for row in made.rows.values()]
    found = {(row.method, row.sparsity, row.finetune_epochs) for row in rows}
    assert {key[1:] for key in found if key[0] in ("snip", "set")} == {(0.8, 0)}
    assert {key[1:] for key in found if key[0] == "magnitude"} == {(s, f) for s in (0.5, 0.8, 0.9) for f in (0, 1)}
    # 3 blocks x 2 seeds: dense 2, magnitude 3 x 2, snip and set 1 each
    assert Counter(row.method for row in rows) == {"dense": 12, "magnitude": 36, "snip": 6, "set": 6}


def test_only_blocks_with_trials_are_tuned(suite: Suite, tmp_path: Path) -> None:
    studies = searches(asked(suite, tmp_path), f"sqlite:///{tmp_path / 'store.db'}")[1]
    assert {study.cell[:2] for study in studies} == {("digits", "mlp")}
    assert {study.rounds.trials for study in studies} == {2}
    points = {study.cell[2]: {(p.sparsity, p.finetune_epochs) for p in study.job.points} for study in studies}
    assert points["snip"] == points["set"] == {(0.8, 0)}


def test_rows_of_early_methods_and_of_untuned_blocks_are_not_missed(suite: Suite, tmp_path: Path) -> None:
    rows = [row for made in expanded(asked(suite, tmp_path)) for row in made.rows.values()]
    tuned = [replace(row, tuning="tuned") for row in rows if row.criterion and (row.dataset, row.architecture) == ("digits", "mlp")]
    assert list(incomplete([*rows, *tuned], suite)) == []
    gone = [row for row in rows if (row.method, row.seed, row.dataset) != ("snip", 1, "breast_cancer")]
    assert [reason for _, reason in incomplete(gone, suite)] == [
        "'snip' has no row for breast_cancer/mlp at sparsity 0.8 with 0 epochs of fine-tuning, seeds 1"
    ]
    assert [key for key, _ in incomplete([*rows, *tuned[:-1]], suite)] == [("set", "tuned", "none")]


def test_a_row_must_have_the_extent_of_its_method_and_the_epochs_of_its_block(suite: Suite, tmp_path: Path) -> None:
    rows = {
        (row.method, row.dataset, row.architecture): replace(row, status="failed", error="e")
        for made in expanded(asked(suite, tmp_path))
        for row in made.rows.values()
    }
    rules = Rules(Board(suite, ()))
    assert [rules.faults(row) for row in rows.values()] == [[] for _ in rows]
    snip = rows["snip", "digits", "mlp"]
    assert rules.faults(replace(snip, sparsity=0.9)) == ["sparsity 0.9 is not one of 0.8"]
    assert "finetune_epochs 1 is not one of 0" in rules.faults(replace(snip, finetune_epochs=1))
    assert rules.faults(replace(snip, epochs=1)) == ["epochs 1, but 'snip' trains 3 in this suite, which has 3"]
    assert rules.faults(replace(snip, architecture="lenet5"))[0].startswith("recipe: augment is [], but the suite has ['crop']")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["lenet5"], train', '["mlp"], train', "blocks: digits/mlp occurs twice"),
        ("early_sparsities = [0.8]", "early_sparsities = [0.7]", "early_sparsities: must be some of `sparsities`"),
        ("early_sparsities = [0.8]", "early_sparsities = []", "early_sparsities: must be some of `sparsities`"),
        ("finetune_epochs = [0, 1]", "finetune_epochs = [1]", "finetune_epochs must contain 0"),
        ("validation = 0.3", "validation = 0.0", "validation: tuning needs validation data"),
        ("epochs = 3", "epochs = 0", "blocks.0.epochs: must be greater than or equal to 1, got 0"),
        ('["crop"]', '["zoom"]', "blocks.1.augment: must be any of 'crop', 'flip' and 'randaugment', got ['zoom']"),
        ("trials = 2", "trails = 2", "unknown key 'blocks.0.trails' (did you mean 'trials'?)"),
        ("\nepochs = 1", "\nepochs = 0", "blocks: with epochs = 0 no network is trained"),
    ],
)
def test_a_wrong_block_is_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert SUITE.count(old) == 1
    (tmp_path / "x.toml").write_text(SUITE.replace(old, new))
    with pytest.raises(UserError) as error:
        load_suite(str(tmp_path / "x.toml"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
