"""Estimate the progress of a run, in seconds of training and of measurements, from the durations of finished jobs."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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


Kind = tuple[str, str, str]  # data set, architecture, and the method, or "" for dense networks


def kind_of(work: Job | Study) -> Kind:
    """What decides the speed of a job or study."""
    job = work.job if isinstance(work, Study) else work
    return job.dataset, job.architecture, job.method if job.criterion else ""


@dataclass
class Speed:
    """Estimated durations in seconds.

    `epoch`: (data set, architecture) -> seconds per training epoch. `point`: kind -> seconds per measurement. A missing value is replaced
    by the mean of the others. Before any job has finished, a measurement counts as long as an epoch.
    """

    epoch: dict[tuple[str, str], float] = field(default_factory=dict)
    point: dict[Kind, float] = field(default_factory=dict)

    def learn(self, kind: Kind, size: "Size", seconds: float) -> None:
        """Learn from a finished job: the seconds per epoch if it does not prune, otherwise the seconds per measurement.

        Args:
            kind: of the job or study.
            size: its epochs and measurements.
            seconds: its duration.
        """
        if not kind[2] and size.epochs:
            self.epoch[kind[:2]] = seconds / size.epochs
        elif size.points:
            self.point[kind] = max(0.0, seconds - self._per_epoch(kind) * size.epochs) / size.points

    def seconds(self, kind: Kind, size: "Size") -> float:
        """The expected duration of so many epochs and measurements of one kind."""
        epoch = self._per_epoch(kind)
        each = self.point.get(kind, _mean(self.point.values(), epoch)) if kind[2] else 0.0
        return size.epochs * epoch + size.points * each

    def _per_epoch(self, kind: Kind) -> float:
        return self.epoch.get(kind[:2], _mean(self.epoch.values(), 1.0))


class Size(NamedTuple):
    """An amount of work: training epochs and measurements."""

    epochs: int
    points: int

    def plus(self, other: "Size") -> "Size":
        """Both together."""
        return Size(self.epochs + other.epochs, self.points + other.points)


def size_of(work: Job | Study) -> Size:
    """The size of a job or study."""
    return Size(work.epochs, points_of(work))


def _mean(values: Iterable[float], default: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else default


class Meter:
    """Counts finished jobs, and shows the progress.

    Args:
        work: all jobs or studies.
        folder: the folder to which workers write their progress.
        show: receives the progress.
    """

    def __init__(self, work: Sequence[Job | Study], folder: Path, show: Show) -> None:
        self.folder, self.show, self.speed = folder, show, Speed()
        self.jobs, self.done, self.failed = len(work), 0, 0
        self.all: dict[Kind, Size] = {}  # summed by kind: there are many jobs, and few kinds
        self.finished: dict[Kind, Size] = {}
        self.started: dict[int, float] = {}
        for one in work:
            self._add(self.all, one)

    @staticmethod
    def _add(sums: dict[Kind, Size], work: Job | Study) -> None:
        kind = kind_of(work)
        sums[kind] = sums.get(kind, Size(0, 0)).plus(size_of(work))

    def _seconds(self, sums: dict[Kind, Size]) -> float:
        return sum(self.speed.seconds(kind, size) for kind, size in sums.items())

    def tick(self, running: Sequence[Job | Study]) -> None:
        """Show the progress. `running`: the jobs that workers do now."""
        now = time.monotonic()
        for work in running:
            self.started.setdefault(id(work), now)
        done = self._seconds(self.finished)
        if running:  # their progress is only known in total
            sizes, part = [(kind_of(work), size_of(work)) for work in running], Size(*heartbeat.running(self.folder))
            share = sum(self.speed.seconds(kind, part) for kind, _ in sizes) / len(sizes)
            done += min(share, 0.99 * sum(self.speed.seconds(kind, size) for kind, size in sizes))
        total = max(self._seconds(self.all), 1e-9)
        labels = tuple(work.label for work in running)
        self.show(Progress(self.done, self.jobs, min(1.0, done / total), labels, self.failed))

    def finish(self, work: Job | Study, failed: int) -> None:
        """Count a finished job. Its duration is learnt unless rows failed or another run did the job.

        Args:
            work: the job or study.
            failed: its number of failed rows.
        """
        start = self.started.pop(id(work), None)
        if start is not None and not failed:
            self.speed.learn(kind_of(work), size_of(work), time.monotonic() - start)
        self._add(self.finished, work)
        self.done, self.failed = self.done + 1, self.failed + failed
