"""How long a job will take, estimated from a few batches of training, one cut and one measurement."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import methods
from bench import data
from bench.trial.job import Job
from bench.trial.network import Network
from bench.trial.trial import threads
from bench.trial.workbench import Workbench
from methods import Stage

T = TypeVar("T")
FEW, MORE = 2, 10  # numbers of batches; the difference of their times is that of MORE - FEW batches
LR_SCALE = 1e-6  # so that no network diverges while it is timed


@dataclass(frozen=True)
class Calibration:
    """The seconds of each part of a job.

    Attributes:
        epoch: one epoch of training.
        score: the scoring that serves all sparsities; 0 if the criterion scores at each cut.
        cut: all that one network needs to reach its sparsity, apart from its training.
        measure: the measurement of one network.
    """

    epoch: float = 0.0
    score: float = 0.0
    cut: float = 0.0
    measure: float = 0.0

    def seconds(self, job: Job) -> float:
        """The expected seconds of a job of the same method, data set and architecture."""
        # A schedule that cuts while fine-tuning starts again for every length of fine-tuning.
        cuts = job.points if job.schedule is not None and job.stage is Stage.AFTER else job.sparsities
        return job.epochs * self.epoch + self.score + len(cuts) * self.cut + len(job.points) * self.measure


def calibrate(job: Job) -> Calibration:
    """Time the parts of a job on its own data set and architecture. Nothing is stored, and the test split is not read.

    The time of an epoch is extrapolated linearly from a few batches. What a training does once per epoch or once per training
    counts in every epoch. A job that the method does not support takes no time.

    Args:
        job: the job; its highest sparsity is the one that is timed.

    Returns:
        The seconds of its parts.
    """
    with threads(job.environment.threads):
        bench = Workbench(job)
        criterion = methods.make("criteria", job.criterion, job.setting.criterion or {}) if job.criterion else None
        problem = bench.untrained().problem
        if criterion is not None and (criterion.unsupported(problem) or bench.granularity.unsupported(problem)):
            return Calibration()
        epoch, network = _epoch(bench)
        validating = Workbench(dataclasses.replace(job, split="validation"))
        measure, _ = _timed(bench, lambda: validating.measure(validating.recalibrated(network)))
        if criterion is None or not job.points:
            return Calibration(epoch, measure=measure)
        score, cut = _score_and_cut(bench, criterion, network)
        return Calibration(epoch, score, cut, measure)


def _epoch(bench: Workbench) -> tuple[float, Network]:
    """The seconds of one epoch, and a network that was trained on a few batches.

    With t(b) the seconds of a training on b batches, m = MORE and f = FEW, one batch takes (t(m) - t(f)) / (m - f), and an epoch
    of n batches takes n batches and what t(f) is longer than f of them.
    """
    every = data.training_batches(bench.dataset, bench.job.protocol, seed=0)
    some = list(islice(iter(every), MORE))
    recipe = dataclasses.replace(bench.job.recipe(1), lr_scale=LR_SCALE)

    def trained(count: int) -> tuple[float, Network]:
        network = bench.untrained()
        fit = lambda: methods.fit(network.problem, bench.training, recipe, batches=some[:count])  # noqa: E731
        seconds, posterior = _timed(bench, fit)
        return seconds, network.with_problem(posterior=posterior)

    trained(1)  # a warm-up: the first call is slower
    few, _ = trained(FEW)
    more, network = trained(MORE)
    if len(some) <= FEW:  # that was a whole epoch
        return more, network
    batch = max(0.0, more - few) / (len(some) - FEW)
    return len(every) * batch + max(0.0, few - FEW * batch), network


def _score_and_cut(bench: Workbench, criterion: methods.Criterion, network: Network) -> tuple[float, float]:
    """The seconds of scoring for all sparsities, and of what one network needs to reach the highest sparsity."""
    job, sparsity = bench.job, max(bench.job.sparsities)
    scores: methods.Scores | None = None
    score, cuts = 0.0, 1
    if job.stage is Stage.AFTER and job.schedule is None:
        score, (scores, network) = _timed(bench, lambda: bench.scored(network, criterion))
    seconds, cut = _timed(bench, lambda: bench.cut(network, criterion, sparsity, scores))
    smaller, _ = _timed(bench, lambda: bench.smaller(cut))
    if job.schedule is not None:
        cuts = sum(len(lap.cuts) for lap in job.schedule.laps(job.protocol.epochs, 0.0, sparsity))
    return score, cuts * seconds + smaller


def _timed(bench: Workbench, work: Callable[[], T]) -> tuple[float, T]:
    """The seconds that some work takes on the device of a job, and its result."""
    start = time.perf_counter()
    result = work()
    return bench.seconds_since(start), result
