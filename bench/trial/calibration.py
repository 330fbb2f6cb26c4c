"""How long a job will take, from a few batches of training and one pruned network."""

import copy
import dataclasses
import time
from dataclasses import dataclass
from itertools import islice

import methods
from bench import data
from bench.trial.job import Job
from bench.trial.network import Network
from bench.trial.trial import threads
from bench.trial.workbench import Workbench
from methods import Recipe

FEW, MORE = 2, 10  # batches


@dataclass(frozen=True)
class Calibration:
    """Seconds of one epoch of a job's training, of scoring once for all sparsities, of one cut, and of one measurement."""

    epoch: float
    score: float = 0.0
    cut: float = 0.0
    measure: float = 0.0

    def seconds(self, job: Job) -> float:
        """The expected seconds of a job of this method on this block."""
        return job.epochs * self.epoch + self.score + len(job.sparsities) * self.cut + len(job.points) * self.measure


def calibrate(job: Job) -> Calibration:
    """Time the parts of a job on its own data and network; nothing is stored.

    An epoch is extrapolated from a few batches; the work after each epoch (SpaM's update of the prior) is timed as a whole.
    """
    with threads(job.environment.threads):
        return _calibrate(job)


def _calibrate(job: Job) -> Calibration:
    bench = Workbench(dataclasses.replace(job, split="validation"))
    every = data.Batches(bench.dataset.train, job.protocol.batch_size, augment=job.protocol.augment)
    some = list(islice(iter(every), MORE))
    recipe = Recipe(epochs=1, optimizer=job.protocol.optimizer, lr_scale=1e-6)  # no step may lead it astray
    problem, times = bench.untrained().problem, []
    posterior = None
    for batches in (some[:1], some[:FEW], some):  # the first one warms up
        start = time.perf_counter()
        posterior = methods.fit(bench.problem(copy.deepcopy(problem.model)), bench.training, recipe, batches=batches)
        times.append(time.perf_counter() - start)
    batch = max(0.0, times[2] - times[1]) / max(1, len(some) - FEW) if len(some) > FEW else times[2] / len(some)
    epoch = max(batch * len(every), times[2] * len(every) / len(some) if len(some) <= FEW else 0.0) + max(0.0, times[1] - FEW * batch)
    start = time.perf_counter()
    bench.measure(Network(problem))
    measure = time.perf_counter() - start
    if not job.criterion or not job.points:
        return Calibration(epoch, measure=measure)
    criterion = methods.make("criteria", job.criterion, job.setting.criterion or {})
    problem = dataclasses.replace(problem, posterior=posterior)
    if criterion.unsupported(problem) or bench.granularity.unsupported(problem):
        return Calibration(0.0)
    scores, scoring = None, 0.0
    if methods.scored_once(criterion):
        start = time.perf_counter()
        scores = methods.score(problem, criterion)
        scoring = time.perf_counter() - start
    start = time.perf_counter()
    mask = methods.cut(problem, criterion, bench.granularity, max(job.sparsities), scores, bench.cost)
    bench.smaller(Network(dataclasses.replace(problem, mask=mask, target=max(job.sparsities))))
    cuts = len(job.schedule.laps(job.protocol.epochs, 0.0, max(job.sparsities))) if job.schedule is not None else 1
    return Calibration(epoch, scoring, (time.perf_counter() - start) * max(1, cuts), measure)
