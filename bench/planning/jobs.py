"""The job that measures a row. `run`, `verify`, `export` and tuning all use it."""

from bench.planning.cells import hyperparameters_of
from bench.spec.row import DENSE, Row
from bench.spec.setting import decoded
from bench.spec.suite import Protocol
from bench.trial import architecture
from bench.trial.job import Environment, Job, Point
from methods import Stage, make


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
