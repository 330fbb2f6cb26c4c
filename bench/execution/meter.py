"""Estimate the progress of a run, in seconds of training and of measurements, from the durations of finished jobs."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.trial import heartbeat
from bench.trial.job import Job
from bench.tuning.study import Study


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    `done`: number of finished jobs. `jobs`: number of all jobs. `share`: finished fraction of the work, in [0, 1]. `running`: labels of the
    running jobs. `failed`: number of failed rows.
    """

    done: int
    jobs: int
    share: float
    running: tuple[str, ...]
    failed: int


Show = Callable[[Progress], None]


def points_of(work: Job | Study) -> int:
    """The number of measurements of a job or study."""
    return len(work.job.points) * work.rounds.trials if isinstance(work, Study) else len(work.points)


def _block(work: Job | Study) -> tuple[str, str]:
    job = work.job if isinstance(work, Study) else work
    return job.dataset, job.architecture


def _method(work: Job | Study) -> tuple[str, str, str]:
    job = work.job if isinstance(work, Study) else work
    return (*_block(work), job.method)


@dataclass
class Speed:
    """Estimated durations in seconds.

    `epoch`: (data set, architecture) -> seconds per training epoch. `point`: (data set, architecture, method) -> seconds per measurement. A
    missing value is replaced by the mean of the others. Before any job has finished, a measurement counts as long as an epoch.
    """

    epoch: dict[tuple[str, str], float] = field(default_factory=dict)
    point: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def learn(self, work: Job | Study, seconds: float) -> None:
        """Learn from a finished job: the seconds per epoch if it does not prune, otherwise the seconds per measurement.

        Args:
            work: the job or study.
            seconds: its duration.
        """
        job = work.job if isinstance(work, Study) else work
        points = points_of(work)
        if not job.criterion and work.epochs:
            self.epoch[_block(work)] = seconds / work.epochs
        elif points:
            self.point[_method(work)] = max(0.0, seconds - self.per_epoch(work) * work.epochs) / points

    def per_epoch(self, work: Job | Study) -> float:
        """Seconds per training epoch."""
        return self.epoch.get(_block(work), _mean(self.epoch.values(), 1.0))

    def seconds(self, work: Job | Study, epochs: int | None = None, points: int | None = None) -> float:
        """The expected duration of a job or study, in seconds.

        Args:
            work: the job or study.
            epochs: number of training epochs; None: all.
            points: number of measurements; None: all.
        """
        job = work.job if isinstance(work, Study) else work
        epochs, points = work.epochs if epochs is None else epochs, points_of(work) if points is None else points
        each = self.point.get(_method(work), _mean(self.point.values(), self.per_epoch(work))) if job.criterion else 0.0
        return epochs * self.per_epoch(work) + points * each


def _mean(values: Iterable[float], default: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else default


class Meter:
    """Counts finished jobs, and shows the progress.

    Args:
        work: all jobs or studies.
        folder: the folder to which workers write their progress.
        show: receives the progress.
        speed: durations known before the run.
    """

    def __init__(self, work: Sequence[Job | Study], folder: Path, show: Show, speed: Speed | None = None) -> None:
        self.work, self.folder, self.show, self.speed = list(work), folder, show, speed or Speed()
        self.finished: list[Job | Study] = []
        self.started: dict[int, float] = {}
        self.failed = 0

    def tick(self, running: Sequence[Job | Study]) -> None:
        """Show the progress. `running`: the jobs that workers do now."""
        now = time.monotonic()
        for work in running:
            self.started.setdefault(id(work), now)
        done = sum(map(self.speed.seconds, self.finished))
        epochs, points = heartbeat.running(self.folder)
        if running:  # their progress is only known in total
            whole = [self.speed.seconds(work) for work in running]
            share = sum(self.speed.seconds(w, epochs, points) for w in running) / len(running)
            done += min(share, 0.99 * sum(whole))
        total = max(sum(map(self.speed.seconds, self.work)), 1e-9)
        labels = tuple(work.label for work in running)
        self.show(Progress(len(self.finished), len(self.work), min(1.0, done / total), labels, self.failed))

    def finish(self, work: Job | Study, failed: int) -> None:
        """Count a finished job. Its duration is learnt unless rows failed or another run did the job.

        Args:
            work: the job or study.
            failed: its number of failed rows.
        """
        start = self.started.pop(id(work), None)
        if start is not None and not failed:
            self.speed.learn(work, time.monotonic() - start)
        self.finished.append(work)
        self.failed += failed
