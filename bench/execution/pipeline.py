"""From a plan to rows: do the jobs, write what they measure, hand back every row; tuning on the way where it is asked for.

Failed rows are kept to be shown, and tried again by the next run.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.execution import executors
from bench.execution.meter import Meter, Show
from bench.planning import searches
from bench.planning.plan import Plan
from bench.planning.request import Found, Request
from bench.spec.digest import digest
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.setting import Setting, decoded
from bench.storage.checkpoints import Networks
from bench.storage.rows import Leases, Store
from bench.trial import heartbeat, trial
from bench.trial.job import Job
from bench.tuning import tune
from bench.tuning.study import Study

Identity = tuple[Any, ...]
Pool = executors.Local | executors.Inline | executors.Ray


def run(made: Plan, store: Store, pool: Pool, show: Show = lambda _: None) -> None:
    """Do the jobs of a plan; every finished job's rows are in the store before the next is looked at.

    Any number of runs may do this at once on one store and cache: each job is done by one of them, the others take up its results.
    """
    networks = Networks(made.environment.cache / "networks")
    with store.leases() as leases, heartbeat.shown(made.environment.cache) as folder:
        meter = Meter(made.jobs, folder, show)

        def finish(job: Job, result: Any) -> None:
            rows = _rows(made, job, result)
            store.put(rows)
            leases.give(_lease(job))
            meter.finish(job, sum(row.status == "failed" for row in rows.values()))

        def left(job: Job) -> Job | None:
            """What is still to be done of a job; None for nothing. Others may have done some of it since it was planned."""
            done = store.done(point.key for point in job.points)
            points = tuple(point for point in job.points if point.key not in done)
            needed = not job.criterion and not networks.has(job.network)
            return dataclasses.replace(job, points=points) if points or needed else None

        def follow(job: Job, result: Any) -> list[Job]:
            """What waited for a dense network can start, or has failed with it."""
            waiting = made.blocked.pop(job.network, []) if not job.criterion else []
            if networks.has(job.network):
                return waiting
            why = result.error if isinstance(result, executors.JobFailure) else networks.failed(job.network)
            for other in waiting:
                finish(other, executors.JobFailure(f"its dense network failed: {why}"))
            return []

        queue = _Shared(made.ready, leases, folder, left, lambda job: follow(job, None), meter)
        for job, result in pool.run(trial.execute, queue, follow=follow, tick=meter.tick):
            finish(job, result)
        meter.tick([])


def pools(request: Request, store: Store, pool: Pool, show: Show = lambda _: None) -> list[Study]:
    """The studies of a request, the pools they choose from trained. UserError where a worker died on a network."""
    tried: set[str] = set()
    while True:
        networks, studies = searches.searches(request, store.url)
        left = {job.network for job in networks.ready}
        if not left:
            return studies
        if left & tried:
            job = next(job for job in networks.ready if job.network in tried)
            raise UserError(f"training {job.label} broke: the worker process died; what was finished is kept")
        tried |= left
        run(networks, store, pool, show)


def search(
    studies: list[Study], store: Store, cache: Path, pool: Pool, show: Show = lambda _: None
) -> Found:  # fmt: skip
    """Do what is left of the studies; (data set, architecture, method) -> what was found. UserError where a search broke."""
    left = [study for study in studies if tune.found(study) is None]
    left.sort(key=lambda study: -study.epochs)  # so that no long one is left running alone at the end
    with store.leases() as leases, heartbeat.shown(cache) as folder:
        meter = Meter(left, folder, show)
        queue = _Shared(left, leases, folder, lambda study: None if tune.found(study) else study, lambda study: [], meter)
        for study, result in pool.run(tune.search, queue, follow=lambda study, result: [], tick=meter.tick):
            leases.give(_lease(study))
            if isinstance(result, executors.JobFailure):
                raise UserError(f"{study.label} broke: {result.error}; what was finished is kept")
            meter.finish(study, 0)
        meter.tick([])
    return {study.cell: found for study in studies if (found := tune.found(study)) is not None}


def searched(request: Request, store: Store) -> tuple[Found, int]:
    """What the finished searches of a request have found, as `search` has it, and how many are not finished. Runs nothing."""
    studies = searches.searches(request, store.url)[1]
    found = {study.cell: end for study in studies if (end := tune.found(study)) is not None}
    return found, len(studies) - len(found)


def _lease(work: Job | Study) -> str:
    """Under which name a piece of work is leased: the same for jobs that do the same thing up to other points."""
    if isinstance(work, Study):
        return digest(["study", work.key])
    if not work.criterion:
        return digest(["network", work.network])
    bare = dataclasses.replace(work, points=(), environment=dataclasses.replace(work.environment, progress=None))
    return digest(["job", repr(bare), work.sparsities if work.trains_each else []])


class _Shared(executors.Queue):
    """Work that other runs may be doing too: what they hold goes to the back, until they have done it or are dead.

    `left`: what is still to be done of a piece, None for nothing. `done`: the jobs that such a one makes possible.
    """

    def __init__(
        self, work: Sequence[Job | Study], leases: Leases, folder: Path, left: Callable[[Any], Any], done: Callable[[Any], list[Any]],
        meter: Meter,
    ) -> None:  # fmt: skip
        super().__init__(work)
        self._leases, self._folder, self._left, self._done, self._meter = leases, folder, left, done, meter

    def take(self) -> Any:
        """The next piece that no other run is doing; None where they do all there is."""
        for _ in range(len(self)):
            work: Any = super().take()
            if not self._leases.take(_lease(work)):
                self.add([work])
                continue
            remaining = self._left(work)  # looked at under the lease, so that nobody finishes it meanwhile
            if remaining is not None:
                return _shown(remaining, self._folder)
            self._leases.give(_lease(work))
            self._meter.finish(work, 0)
            self.add(self._done(work))
        return None


def _shown(work: Any, folder: Path) -> Any:
    """The same piece of work, its progress shown in this run's folder."""
    if isinstance(work, Study):
        return dataclasses.replace(work, jobs=tuple(_shown(job, folder) for job in work.jobs))
    return dataclasses.replace(work, environment=dataclasses.replace(work.environment, progress=folder))


def _rows(made: Plan, job: Job, result: Any) -> dict[str, Row]:
    """The job's rows by key; a job that was lost has failed at all its points."""
    if isinstance(result, executors.JobFailure):
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
    training = Setting(decoded(row.hyperparameters).training).encoded()
    return row.training, training, row.dataset, row.architecture, row.seed, row.finetune_epochs
