"""Run the jobs of a plan or the studies of tuning, store their results, and collect rows.

Failed rows are stored, so that they are shown; the next run tries them again.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from bench.execution import executors
from bench.execution.meter import Meter, Show
from bench.planning import searches
from bench.planning.plan import NAMED, Expected, Plan
from bench.planning.request import Found, Request
from bench.spec.digest import digest
from bench.spec.row import Row, changed
from bench.spec.setting import Setting, decoded
from bench.storage.checkpoints import Networks
from bench.storage.rows import Leases, Store
from bench.trial import heartbeat, trial
from bench.trial.job import Job
from bench.tuning import tune
from bench.tuning.study import Study

Identity = tuple[Any, ...]
COPIED = ("dense_accuracy", "dense_nll")  # from the row of the dense network
_named, _copied = attrgetter(*NAMED), attrgetter(*COPIED)
_trained = attrgetter("training", "dataset", "architecture", "seed", "finetune_epochs")
Pool = executors.Executor
Failures = dict[tuple[str, str, str], str]  # (data set, architecture, method) -> why its search failed


def run(made: Plan, store: Store, pool: Pool, show: Show = lambda _: None) -> dict[str, str]:
    """Run the jobs of a plan. The rows of a finished job are stored at once.

    Several runs may use the same store and cache at the same time: each job is done by one of them, and the others use its results.

    Args:
        made: the plan.
        store: receives the rows.
        pool: runs the jobs.
        show: receives the progress.

    Returns:
        Key of each dense network whose worker died or was stopped -> the error.
    """
    lost: dict[str, str] = {}
    networks = Networks(made.environment.cache / "networks")
    with store.leases() as leases, heartbeat.shown(made.environment.cache) as folder:
        meter = Meter(made.jobs, folder, show)

        def finish(job: Job, result: Any) -> None:
            rows = _rows(made, job, result)
            store.put(rows)
            leases.give(_lease(job))
            meter.finish(job, sum(row.status == "failed" for row in rows.values()))

        def follow(job: Job, result: Any) -> list[Job]:
            """The jobs that waited for this dense network. If its training failed, they fail as well."""
            waiting = made.blocked.pop(job.network, []) if not job.criterion else []
            if networks.has(job.network):
                return waiting
            why = result.error if isinstance(result, executors.JobFailure) else networks.failed(job.network)
            if not why:  # it could not be written: each of them trains it
                return waiting
            for other in waiting:
                finish(other, executors.JobFailure(f"its dense network failed: {why}"))
            return []

        queue = _Shared(made.ready, leases, folder, lambda job: _left(job, store, networks), lambda job: follow(job, None), meter)
        for job, result in pool.run(trial.execute, queue, follow=follow, tick=meter.tick, limit=made.timeout):
            finish(job, result)
            if isinstance(result, executors.JobFailure) and not job.criterion:
                lost[job.network] = result.error
        meter.tick([])
    return lost


def _left(job: Job, store: Store, networks: Networks) -> Job | None:
    """The part of a job that other runs have not done since it was planned; None if nothing is left."""
    done = store.done(point.key for point in job.points)
    points = tuple(point for point in job.points if point.key not in done)
    needed = not job.criterion and not networks.has(job.network)
    return dataclasses.replace(job, points=points) if points or needed else None


def pools(request: Request, store: Store, pool: Pool, show: Show = lambda _: None) -> tuple[list[Study], Failures]:
    """Train the networks of all pools.

    Args:
        request: what to tune.
        store: the store, which also contains the studies.
        pool: runs the jobs.
        show: receives the progress.

    Returns:
        The final studies; and why a search cannot be run, where training stopped without a result, e.g. because its process died. The
        next run tries that again, so that a search never depends on it.
    """
    lost: dict[str, str] = {}
    while True:
        networks, studies = searches.searches(request, store.url)
        networks.ready = [job for job in networks.ready if job.network not in lost]
        if not networks.ready:
            break
        errors = run(networks, store, pool, show)
        there = Networks(request.environment.cache / "networks")
        tried = {job.network for job in networks.ready if not there.has(job.network) and not there.failed(job.network)}
        lost |= {key: errors.get(key, "its network could not be stored") for key in tried}
    without = {study.cell: error for study in studies for m in study.pool if (error := lost.get(m.networks[0])) is not None}
    failures = {cell: f"a network of its pool could not be trained: {error}" for cell, error in without.items()}
    return [study for study in studies if study.cell not in failures], failures


def search(
    studies: list[Study], store: Store, cache: Path, pool: Pool, show: Show = lambda _: None, limit: float | None = None
) -> tuple[Found, Failures]:  # fmt: skip
    """Complete the studies. One that fails does not stop the others.

    Args:
        studies: the searches.
        store: divides the work between runs.
        cache: the cache folder, for the progress of workers.
        pool: runs the searches.
        show: receives the progress.
        limit: the most seconds that one trial may take; None: no limit.

    Returns:
        (data set, architecture, method) -> tuned hyperparameters; and for those whose search failed, why.
    """
    failures: Failures = {}
    left = [study for study in studies if tune.found(study) is None]
    left.sort(key=lambda study: -study.epochs)  # longest first, so that workers finish at about the same time
    with store.leases() as leases, heartbeat.shown(cache) as folder:
        meter = Meter(left, folder, show)
        queue = _Shared(left, leases, folder, lambda study: None if tune.found(study) else study, lambda study: [], meter)
        for study, result in pool.run(tune.search, queue, follow=lambda study, result: [], tick=meter.tick, limit=limit):
            leases.give(_lease(study))
            if isinstance(result, executors.JobFailure):
                failures[study.cell] = result.error
            meter.finish(study, 0)
        meter.tick([])
    return {study.cell: found for study in studies if (found := tune.found(study)) is not None}, failures


def searched(request: Request, store: Store) -> tuple[Found, int]:
    """The results of the complete searches of a request. Nothing is run.

    Args:
        request: what was tuned.
        store: the store with the studies.

    Returns:
        (tuned hyperparameters as `search` returns them, number of incomplete searches).
    """
    studies = searches.searches(request, store.url)[1]
    found = {study.cell: end for study in studies if (end := tune.found(study)) is not None}
    return found, len(studies) - len(found)


def _lease(work: Job | Study) -> str:
    """The name of the lease of a job or study. Jobs that differ only in their points have the same lease."""
    if isinstance(work, Study):
        return digest(["study", work.key])
    if not work.criterion:
        return digest(["network", work.network])
    bare = dataclasses.replace(work, points=(), environment=dataclasses.replace(work.environment, progress=None, log=None))
    return digest(["job", repr(bare), work.sparsities if work.trains_each else []])


class _Shared(executors.Queue):
    """Jobs or studies that are shared with other runs: those that another run is doing go to the end of the queue.

    `left`: returns the part that is left to do, None for nothing. `done`: returns the jobs that may start if nothing was left to do.
    """

    def __init__(
        self, work: Sequence[Job | Study], leases: Leases, folder: Path, left: Callable[[Any], Any], done: Callable[[Any], list[Any]],
        meter: Meter,
    ) -> None:  # fmt: skip
        super().__init__(work)
        self._leases, self._folder, self._left, self._done, self._meter = leases, folder, left, done, meter

    def take(self) -> Any:
        """The next job that no other run is doing, or None."""
        for _ in range(len(self)):
            work: Any = super().take()
            if not self._leases.take(_lease(work)):
                self.add([work])
                continue
            remaining = self._left(work)  # checked while holding the lease, so that no other run can finish it meanwhile
            if remaining is not None:
                return _shown(remaining, self._folder)
            self._leases.give(_lease(work))
            self._meter.finish(work, 0)
            self.add(self._done(work))
        return None


def _shown(work: Any, folder: Path) -> Any:
    """The same job or study, with the folder for its progress."""
    if isinstance(work, Study):
        return dataclasses.replace(work, jobs=tuple(_shown(job, folder) for job in work.jobs))
    return dataclasses.replace(work, environment=dataclasses.replace(work.environment, progress=folder))


def _rows(made: Plan, job: Job, result: Any) -> dict[str, Row]:
    """The rows of a job by key; if it failed, all its rows failed."""
    if isinstance(result, executors.JobFailure):
        result = {point.key: {"status": "failed", "error": result.error} for point in job.points}
    return {key: dataclasses.replace(made.expected[key], **measurement) for key, measurement in result.items()}


def collect(made: Plan, store: Store) -> list[Row]:
    """The stored rows of a plan, in the order of the plan, with the accuracy of their own dense networks.

    The columns `bench.planning.plan.NAMED` are set to those of the plan.

    Args:
        made: the plan, from `bench.planning.plan`.
        store: the stored rows.
    """
    assert isinstance(made.expected, Expected)
    return collect_expected(made.expected, store)


def collect_expected(expected: Expected, store: Store) -> list[Row]:
    """As `collect`, for some rows of a plan and those of their dense networks."""
    rows = [_with(row, NAMED, _named(row), expected.named(key)) for key, row in store.rows(expected)]
    dense = {_dense_of(r): r for r in rows if not r.criterion}
    for k, row in enumerate(rows):
        reference = dense.get(_dense_of(row))
        if reference is not None and reference.accuracy is not None:
            rows[k] = _with(row, COPIED, _copied(row), (reference.accuracy, reference.nll))
    return rows


def _with(row: Row, names: tuple[str, ...], values: tuple[Any, ...], wanted: tuple[Any, ...]) -> Row:
    """The row with the wanted values in some columns: the same object if it has them already, as most rows do."""
    return row if values == wanted else changed(row, **dict(zip(names, wanted, strict=True)))


def _dense_of(row: Row) -> Identity:
    return _training_of(row.hyperparameters), _trained(row)


@functools.lru_cache(maxsize=10_000)
def _training_of(hyperparameters: str) -> str:
    return Setting(decoded(hyperparameters).training).encoded()
