"""Do one job in a worker process: train a dense network, or prune by one method, and measure at every point.

This module does not know the store of rows: it takes a job and returns measurements. See `bench.trial.stages` for the steps of
each kind of method and `bench.trial.workbench` for the steps themselves.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bench.spec.errors import UserError, described
from bench.storage.checkpoints import Networks
from bench.trial import heartbeat, stages
from bench.trial.device import repeatable
from bench.trial.job import Job, Point
from bench.trial.network import Measurement
from bench.trial.provenance import provenance
from bench.trial.results import Results, isolated
from bench.trial.workbench import Workbench
from methods import Mask


def execute(job: Job) -> dict[str, Measurement]:
    """Do a job.

    Args:
        job: a job without points only trains a dense network for other jobs; its failure is recorded in the store of networks.

    Returns:
        Key of each point -> its measurement, with status "failed" if the point raised an exception.
    """
    return {point.key: measurement for point, measurement in stream(job)}


def stream(job: Job, bench: Workbench | None = None) -> Iterator[tuple[Point, Measurement]]:
    """Do a job as `execute` does, and yield each point as soon as it is measured. The caller may stop before the end.

    Args:
        job: the job.
        bench: the workbench of this job; None makes a new one.

    Yields:
        The point and its measurement.
    """
    for result in _results(job, bench):
        yield result.point, result.measurement


@dataclass(frozen=True)
class PrunedNetwork:
    """A pruned network for export.

    Attributes:
        model: the network that was measured; smaller than `whole` if channels were removed.
        mask: name -> bool mask of the weights of `model`.
        whole_mask: the mask of `whole`, if `model` is smaller; otherwise None.
        whole: the dense network with its initial weights.
        measurement: the columns of its row.
    """

    model: nn.Module
    mask: Mask
    whole_mask: Mask | None
    whole: nn.Module
    measurement: Measurement


def pruned_network(job: Job) -> PrunedNetwork:
    """Do a job that has one point and return its network.

    Raises:
        UserError: the method does not support the network, or it failed.
    """
    with threads(job.environment.threads):
        bench = Workbench(job)
        (result,) = _results(job, bench)
        if result.network is None:
            raise UserError(f"{job.label}: {result.measurement['error']}")
        problem = result.network.problem
        return PrunedNetwork(problem.model, problem.mask, result.network.whole_mask, bench.initial(), result.measurement)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the body with this number of torch threads, which decides how sums are rounded; the caller's number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _results(job: Job, bench: Workbench | None) -> Results:
    """The results of a job, each measurement with its provenance."""
    if heartbeat.announce is not None:
        heartbeat.announce()
    columns = provenance(job.environment.device, job.environment.threads, job.environment.stack)

    def work() -> Results:
        try:
            yield from stages.results(bench or Workbench(job))
        except (Exception, SystemExit) as error:
            networks = Networks(job.environment.cache / "networks")
            if not job.criterion and not networks.has(job.network):
                networks.fail(job.network, described(error))
            raise

    with threads(job.environment.threads), repeatable(torch.device(job.environment.device)):
        for result in isolated(job.points, work):
            yield result._replace(measurement=result.measurement | columns)
