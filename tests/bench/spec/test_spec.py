"""Suites are validated, rows have the contract's columns, digests know content from layout."""

from pathlib import Path

import pytest

from bench import data
from bench.data import augmentation
from bench.spec import protocol
from bench.spec.digest import digest
from bench.spec.errors import UserError
from bench.spec.protocol import Block, Settings
from bench.spec.row import COLUMNS, DECLARED, Row
from bench.spec.suite import Suite, load_suite, suites
from methods.core import recipe

CONTRACT = (
    "suite, dataset, architecture, granularity, match, method, criterion, training, stage, tuning, ablation, sparsity, seed, "
    "epochs, finetune_epochs, status, sparsity_reached, prunable_weights, kept_weights, parameters, parameters_kept, flops, "
    "flops_kept, accuracy, top5, nll, brier, ece, accuracy_before_finetune, dense_accuracy, dense_nll, layers_collapsed, "
    "effective_sparsity, score_seconds, train_seconds, latency_ms, dense_latency_ms, peak_memory_mb, hyperparameters, protocol, "
    "version, commit, torch, device, error, environment, schema"
)


def test_columns_are_the_contract() -> None:
    """Those of schema 2, in this order; later ones may stand between them."""
    assert ", ".join(name for name in COLUMNS if DECLARED[name].since <= 2) == CONTRACT


@pytest.mark.parametrize("name", suites())
def test_packaged_suites_are_valid_and_named_as_their_file(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.description
    for block in suite.blocks:
        for architecture in block.architectures:
            assert suite.protocol(block.dataset, architecture).epochs == (block.epochs or suite.epochs)


def test_an_architecture_overrides_its_suite() -> None:
    suite = load_suite("digits")
    assert suite.protocol("digits", "mlp").lr_scale == suite.lr_scale == 1
    assert suite.protocol("digits", "lenet5").lr_scale == 0.5
    assert suite.protocol("digits", "lenet5").batch_size != suite.batch_size
    assert suite.protocol("digits", "vit_micro_patch4").batch_size == suite.batch_size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('sparsites = [0.5]\nname = "x"', "unknown key 'sparsites' (did you mean 'sparsities'?)"),
        ("sparsities = [1.0]", "sparsities.0: must be less than 1, got 1.0"),
        ("sparsities = [-0.1]", "greater than or equal to 0"),
        ('augment = ["rotate"]', "augment: must be any of 'crop', 'flip' and 'randaugment', got ['rotate']"),
        ('lr_schedule = "cosin"', "lr_schedule: must be cosine, linear, constant or step, got 'cosin'"),
        ("label_smoothing = 1.0", "label_smoothing: must be less than 1, got 1.0"),
        ("mixup = -0.1", "mixup: must be greater than or equal to 0, got -0.1"),
        ("mixup = inf", "mixup: must be a finite number, got inf"),
        ("[architecture.mlp]\nlabel_smoothing = -1", "architecture.mlp.label_smoothing: must be greater than or equal to 0, got -1"),
        ("epochs = -1", "epochs: must be greater than or equal to 0, got -1"),
        ("epochs = 2\ncalibration = 64", "calibration: limits what methods read of a trained network: it needs epochs = 0"),
        ("validation = 0\ntrials = 3", "validation: tuning needs validation data"),
        ("mean = [0.5]", "mean: mean and std must both be given, with one number for each channel"),
        ("mean = [0.5]\nstd = [0.2, 0.3]", "mean: mean and std must both be given"),
        ("[architecture.mlp]\nmean = [0.5]\nstd = [0.0]", "std: must be greater than 0"),
        ("blocks = []", "blocks"),
        (
            "[architecture.mlp]\noptimiser = 'sgd'",
            "unknown key 'architecture.mlp.optimiser' (did you mean 'optimizer'?); allowed: batch_size, ",
        ),
        ('optimizer = "lion"', "optimizer: must be sgd, adam or adamw, got 'lion'"),
        ('blocks = [{ dataset = "digits" }]', "the key 'blocks.0.architectures' is missing: Names of networks"),
        ("tuning_seed = 0", "tuning_seed: tuning uses seed 0, which is one of `seeds`; tuning and evaluation must not share seeds"),
        ("epochs = ", "is not TOML"),
    ],
)
def test_a_wrong_suite_is_one_line(tmp_path: Path, change: str, said: str) -> None:
    base = {
        "name": '"x"', "description": '"d"', "blocks": '[{ dataset = "digits", architectures = ["mlp"] }]',
        "sparsities": "[0.5]", "seeds": "[0]", "epochs": "1",
    }  # fmt: skip
    lines = [f"{k} = {v}" for k, v in base.items() if not any(line.startswith(f"{k} =") for line in change.splitlines())]
    file = tmp_path / "x.toml"
    file.write_text("\n".join([*lines, change]) if change.startswith("[") else "\n".join([change, *lines]))
    with pytest.raises(UserError) as error:
        load_suite(str(file))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", [Suite, Block, Settings])
def test_every_key_of_a_suite_is_described(model: type[Suite | Block | Settings]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown suite 'digit' \\(did you mean 'digits'\\?\\)"):
        load_suite("digit")
    with pytest.raises(UserError, match="cannot read suite file 'nowhere\\.toml'"):
        load_suite("nowhere.toml")


def test_lists_are_sorted_and_distinct() -> None:
    data = load_suite("digits").model_dump() | {"seeds": [2, 0, 2], "sparsities": [0.9, 0.5, 0.9]}
    suite = Suite.model_validate(data)
    assert suite.seeds == (0, 2)
    assert suite.sparsities == (0.5, 0.9)


def test_digest_depends_on_content_only() -> None:
    assert digest({"a": 1, "b": [0.1]}) == digest({"b": [0.1], "a": 1})
    assert len({digest(x) for x in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": [1]})}) == 4


def test_a_row_is_one_row_by_the_contract_key() -> None:
    text = dict.fromkeys(("suite", "criterion", "training", "stage", "status"), "")
    row = Row(
        dataset="d", architecture="a", granularity="weight", match="weights", method="m", tuning="default", ablation="none",
        sparsity=0.5, seed=1, epochs=2, finetune_epochs=3, **text,
    )  # fmt: skip
    assert row.identity == ("m", "default", "none", "weights", "weight", "d", "a", 0.5, 1, 2, 3, "none")


def test_the_names_in_suites_are_those_of_the_training_loop() -> None:
    """Suites are read without torch, so they have their own lists."""
    lists = {
        protocol.OPTIMIZERS: recipe.OPTIMIZERS,
        protocol.LR_SCHEDULES: recipe.LR_SCHEDULES,
        protocol.PRECISIONS: recipe.PRECISIONS,
    }
    for pattern, known in lists.items():
        assert pattern == f"^({'|'.join(known)})$"
    assert (*data.AUGMENTATIONS, augmentation.RANDAUGMENT) == protocol.AUGMENTATIONS


def test_one_architecture_may_have_its_own_recipe(tmp_path: Path) -> None:
    own = """
name = "x"
description = "d"
blocks = [{ dataset = "digits", architectures = ["mlp", "lenet5"] }]
sparsities = [0.5]
seeds = [0]
epochs = 1
label_smoothing = 0.1
mixup = 0.4
lr_schedule = "step"

[architecture.mlp]
label_smoothing = 0.0
mixup = 0
lr_schedule = "linear"
"""
    (tmp_path / "x.toml").write_text(own)
    found = load_suite(str(tmp_path / "x.toml"))
    values = {name: (p.label_smoothing, p.mixup, p.lr_schedule) for name in ("mlp", "lenet5") if (p := found.protocol("digits", name))}
    assert values == {"mlp": (0.0, 0.0, "linear"), "lenet5": (0.1, 0.4, "step")}
