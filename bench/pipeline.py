"""From a plan to rows: do the jobs, write what they measure, hand back every row; tuning on the way where it is asked for.

Failed rows are kept to be shown, and tried again by the next run.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import executor, planning, progress, trial, tune
from bench.job import Job
from bench.planning import Plan, Request
from bench.spec import Row, UserError
from bench.store import Store
from bench.tune import Found, Study

Identity = tuple[Any, ...]
Pool = executor.Local | executor.Inline | executor.Ray
Show = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """What a caller may show: jobs done and in all, training epochs done and in all, labels of what is running, failures so far."""

    done: int
    jobs: int
    epochs_done: int
    epochs: int
    running: tuple[str, ...]
    failed: int


def run(made: Plan, store: Store, pool: Pool, show: Show = lambda _: None) -> None:
    """Do the jobs of a plan; every finished job's rows are in the store before the next is looked at."""
    meter = _Meter(made.jobs, made.place.cache / "progress", show)

    def finish(job: Job, result: Any) -> None:
        rows = _rows(made, job, result)
        store.put(rows)
        meter.finish(job, sum(row.status == "failed" for row in rows.values()))

    def follow(job: Job, result: Any) -> list[Job]:
        """What waited for a dense network can start, or has failed with it."""
        waiting = made.blocked.pop(job.network, []) if job.criterion is None else []
        error = _why_failed(result)
        if not error:
            return waiting
        for other in waiting:
            finish(other, executor.Lost(f"its dense network failed: {error}"))
        return []

    for job, result in pool.run(trial.execute, made.ready, follow=follow, tick=meter.tick):
        finish(job, result)
    meter.tick([])


def search(studies: list[Study], cache: Path, pool: Pool, show: Show = lambda _: None) -> dict[tuple[str, str, str], Found]:
    """Do what is left of the studies; (data set, architecture, method) -> what was found. UserError where a search broke."""
    done = {study.key: tune.found(study) for study in studies}
    left = [study for study in studies if done[study.key] is None]
    left.sort(key=lambda study: -study.epochs)  # so that no long one is left running alone at the end
    meter = _Meter(left, cache / "progress", show)
    for study, result in pool.run(tune.search, left, follow=lambda study, result: [], tick=meter.tick):
        if isinstance(result, executor.Lost):
            raise UserError(f"{study.label} broke: {result.error}; what was finished is kept")
        done[study.key] = result
        meter.finish(study, 0)
    meter.tick([])
    return {s.cell: found for s in studies if (found := done[s.key]) is not None}


def searched(request: Request, store: Store) -> tuple[dict[tuple[str, str, str], Found], int]:
    """What the finished searches of a request have found, as `search` has it, and how many are not finished. Runs nothing."""
    studies = planning.tuning(request, store.url)[1]
    found = {study.cell: end for study in studies if (end := tune.found(study)) is not None}
    return found, len(studies) - len(found)


class _Meter:
    """Counts what is done and shows it. `marks`: the folder where workers leave how far they are."""

    def __init__(self, jobs: Sequence[Job | Study], marks: Path, show: Show) -> None:
        self.jobs, self.epochs, self.marks, self.show = len(jobs), sum(job.epochs for job in jobs), marks, show
        self.done, self.epochs_done, self.failed = 0, 0, 0
        progress.forget(marks)

    def tick(self, running: Sequence[Job | Study]) -> None:
        """Show how far it is."""
        epochs = self.epochs_done + progress.epochs_running(self.marks)
        self.show(Progress(self.done, self.jobs, epochs, self.epochs, tuple(job.label for job in running), self.failed))

    def finish(self, job: Job | Study, failed: int) -> None:
        """One job is over, with so many failed rows."""
        self.done, self.epochs_done, self.failed = self.done + 1, self.epochs_done + job.epochs, self.failed + failed


def _why_failed(result: Any) -> str:
    """The error of a job that failed at every point, or was lost; '' for others."""
    if isinstance(result, executor.Lost):
        return result.error
    if result and all(measurement["status"] == "failed" for measurement in result.values()):
        return str(next(iter(result.values()))["error"])
    return ""


def _rows(made: Plan, job: Job, result: Any) -> dict[str, Row]:
    """The job's rows by key; a job that was lost has failed at all its points."""
    if isinstance(result, executor.Lost):
        result = {point.key: {"status": "failed", "error": result.error} for point in job.points}
    return {key: dataclasses.replace(made.expected[key], **measurement) for key, measurement in result.items()}


def collect(made: Plan, store: Store) -> list[Row]:
    """Every row there is of a plan, in the plan's order, each with the accuracy of its own dense network beside it.

    Rows are shared between suites, between defaults and what tuning chose, and dense ones between granularities: these names are
    those of the plan.
    """
    found = store.get(made.expected)
    named = ("suite", "method", "tuning", "granularity", "match", "hyperparameters")
    rows = [
        dataclasses.replace(found[key], **{name: getattr(blank, name) for name in named})
        for key, blank in made.expected.items()
        if key in found
    ]
    dense = {_dense_of(r): r for r in rows if not r.criterion}
    joined = []
    for row in rows:
        reference = dense.get(_dense_of(row))
        if reference is not None and reference.accuracy is not None:
            row = dataclasses.replace(row, dense_accuracy=reference.accuracy, dense_nll=reference.nll)
        joined.append(row)
    return joined


def _dense_of(row: Row) -> Identity:
    training = json.dumps(json.loads(row.hyperparameters)["training"], sort_keys=True)
    return row.training, training, row.dataset, row.architecture, row.seed, row.finetune_epochs
