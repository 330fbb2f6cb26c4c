"""From a row to the job that measures it: the one way, for `run`, `verify`, `export` and tuning."""

from bench.planning.cells import hyperparameters_of
from bench.spec.row import DENSE, Row
from bench.spec.setting import decoded
from bench.spec.suite import Protocol
from bench.trial.job import Environment, Job, Point
from methods import Stage, make


def job_of(
    row: Row, protocol: Protocol, environment: Environment, *, network: str, points: tuple[Point, ...], split: str = "test"
) -> Job:  # fmt: skip
    """The job that makes a row, from what the row says of itself.

    Args:
        row: its configuration and hyperparameters; measurements are not looked at.
        protocol: of its architecture.
        environment: what the job runs with.
        network: the key of its dense network.
        points: where to measure, with the key of each.
        split: the data to measure on, "test" or "validation".

    Raises:
        ValueError: the row does not say how it was made.
    """
    return Job(
        method=row.method, dataset=row.dataset, architecture=row.architecture, protocol=protocol, seed=row.seed, training=row.training,
        criterion=row.criterion, stage=Stage(row.stage) if row.stage else None, setting=decoded(row.hyperparameters),
        granularity=row.granularity, match=row.match, ablation=row.ablation, network=network, points=points, environment=environment,
        split=split,
    )  # fmt: skip


def dense_name(training: str, hyperparameters: dict[str, object]) -> str:
    """The method name of a dense network's rows: `dense`, or `dense@training(what is not at its default)`."""
    plain = hyperparameters_of(make("trainings", training, {}))
    options = ",".join(f"{k}={v}" for k, v in hyperparameters.items() if v != plain[k])
    variant = f"{training}({options})" if options else training
    return DENSE if variant == "map" else f"{DENSE}@{variant}"
