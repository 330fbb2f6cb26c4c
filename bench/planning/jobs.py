"""The job that measures a row. `run`, `verify`, `export` and tuning all use it."""

import json
from pathlib import Path

from bench.planning.cells import hyperparameters_of
from bench.spec import strict_json
from bench.spec.protocol import Protocol
from bench.spec.row import DENSE, Row
from bench.spec.setting import decoded
from bench.spec.suite import Suite
from bench.trial import architecture
from bench.trial.job import Environment, Job, Point
from methods import Stage, make, names


def job_of(
    row: Row, protocol: Protocol, environment: Environment, *, network: str, points: tuple[Point, ...], split: str = "test"
) -> Job:  # fmt: skip
    """The job that computes a row, from the configuration and hyperparameters in the row.

    Args:
        row: the row; its measurements are ignored.
        protocol: the protocol for its architecture.
        environment: device, folders and plug-ins of the job.
        network: key of its dense network.
        points: sparsities and fine-tuning epochs to measure, with the key of each result.
        split: data to measure on, "test" or "validation".

    Raises:
        ValueError: the row does not contain its hyperparameters.
    """
    return Job(
        method=row.method, dataset=row.dataset, architecture=row.architecture, protocol=protocol, seed=row.seed, training=row.training,
        criterion=row.criterion, stage=Stage(row.stage) if row.stage else None, setting=decoded(row.hyperparameters),
        granularity=row.granularity, match=row.match, ablation=row.ablation, network=network, points=points, environment=environment,
        split=split, sources=architecture.sources(row.dataset, row.architecture, environment.plugins),
        initial_weights=row.initial_weights,
    )  # fmt: skip


def planned_epochs(row: Row, protocol: Protocol) -> int:
    """The column `epochs` of a row: all training epochs of its job at its sparsity, without fine-tuning.

    Args:
        row: the row; its measurements and its column `epochs` are ignored.
        protocol: the protocol for its architecture.

    Raises:
        ValueError: the row does not contain its hyperparameters, or its schedule does not fit to the epochs of the protocol.
    """
    nowhere = Environment("cpu", None, Path())
    return job_of(row, protocol, nowhere, network="", points=()).training_epochs(row.sparsity)


def dense_name(training: str, hyperparameters: dict[str, object]) -> str:
    """The method name in the rows of a dense network.

    Args:
        training: name of the training.
        hyperparameters: all its hyperparameters.

    Returns:
        `dense` for the default training `map`, otherwise `dense@training(values other than the default)`.
    """
    plain = hyperparameters_of(make("trainings", training, {}))
    options = ",".join(f"{k}={v}" for k, v in hyperparameters.items() if v != plain[k])
    variant = f"{training}({options})" if options else training
    return DENSE if variant == "map" else f"{DENSE}@{variant}"


def recipe_of(protocol: Protocol, training: str) -> str:
    """The column `recipe`: the settings of training that all methods share, as JSON with sorted keys.

    Args:
        protocol: the protocol for an architecture.
        training: name of the training, which decides whether weight decay is coupled (in the loss) or decoupled.
    """
    decoupled = make("trainings", training, {}).decoupled_decay is not None
    shared = ("optimizer", "lr_schedule", "batch_size", "lr_scale", "augment", "label_smoothing", "mixup", "precision")
    said = {name: getattr(protocol, name) for name in shared}
    return json.dumps({**said, "weight_decay": "decoupled" if decoupled else "coupled"}, sort_keys=True)


def recipe_faults(row: Row, suite: Suite) -> list[str]:
    """How the column `recipe` of a row differs from the settings of its suite; nothing for rows of older releases, which have none.

    Args:
        row: the row.
        suite: the suite that it belongs to.
    """
    if row.recipe == "{}":
        return []
    try:
        said = strict_json.loads_object(row.recipe)
    except ValueError:
        return [f"recipe: {row.recipe!r} is not a JSON object"]
    if row.training not in names("trainings"):
        return []  # reported with the name of the method
    own = json.loads(recipe_of(suite.protocol(row.dataset, row.architecture), row.training))
    wrong = [name for name in sorted(said.keys() | own.keys()) if said.get(name) != own.get(name)]
    return [f"recipe: {name} is {said.get(name)!r}, but the suite has {own.get(name)!r}" for name in wrong]
