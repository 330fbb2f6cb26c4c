"""Run a request: rows with default hyperparameters, then tuning and tuned rows if the suite has trials."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.execution import pipeline
from bench.execution.meter import Show
from bench.execution.pipeline import Pool
from bench.planning.plan import expanded, plan
from bench.planning.request import Found, Request
from bench.planning.searches import searches
from bench.ranking import tuning_gain
from bench.spec.columns import Role
from bench.spec.errors import UserError
from bench.spec.row import Row, columns_of
from bench.storage import results_csv
from bench.storage.checkpoints import Networks
from bench.storage.rows import Store
from bench.tuning import trials, tune
from bench.tuning.study import Study

Watch = Callable[[], AbstractContextManager[Show]]  # opens a display of one stage of a run
Say = Callable[[str], None]


def run(request: Request, store: Store, pool: Pool, watch: Watch, say: Say = lambda _: None, found: Found | None = None) -> list[Row]:
    """All rows of a request; rows that are not in the store are computed.

    Args:
        request: what to run; if its suite has trials, the methods are tuned, too.
        store: the stored rows.
        pool: runs the jobs.
        watch: opens a display for each stage.
        say: receives messages for the user, one line each.
        found: tuned hyperparameters, instead of a search.

    Returns:
        Rows with default hyperparameters, then tuned rows.

    Raises:
        UserError: nothing can be run.
    """
    rows = list(_rows(request, store, pool, watch, say))
    if found is None and request.suite.tunes:
        say(f"tuning: {request.suite.trials_said} trials per method and block (data set and architecture), on validation data")
        with watch() as show:
            studies, failures = pipeline.pools(request, store, pool, show)
        with watch() as show:
            found, more = pipeline.search(studies, store, request.environment.cache, pool, show, request.suite.timeout)
        rows += list(_unfound(rows, failures | more))
    if found:
        rows += _rows(dataclasses.replace(request, tuned=found), store, pool, watch, lambda _: None)
    return rows


def _unfound(rows: list[Row], failures: pipeline.Failures) -> Iterator[Row]:
    """The tuned rows of methods whose search failed: those with default hyperparameters, not measured. They are not stored."""
    empty: dict[str, Any] = dict.fromkeys(columns_of(Role.COUNT, Role.MEASURE, Role.COST))
    for row in rows:
        error = failures.get((row.dataset, row.architecture, row.method))
        if row.criterion and error is not None:
            yield dataclasses.replace(row, **empty | {"tuning": "tuned", "status": "failed", "error": f"its search failed: {error}"})


def _rows(request: Request, store: Store, pool: Pool, watch: Watch, say: Say) -> Iterator[Row]:
    planned = plan(request, store)
    for note in planned.notes:
        say(f"note: {note}")
    with watch() as show:
        pipeline.run(planned, store, pool, show)
    yield from pipeline.collect(planned, store)


def forget(request: Request, store: Store, found: Found | None = None) -> None:
    """Remove everything that is stored of a request: rows, dense networks and searches.

    Args:
        request: what to remove.
        store: the stored rows.
        found: tuned hyperparameters of its tuned rows, instead of those of its own searches.
    """
    networks = Networks(request.environment.cache / "networks")
    studies: list[Study] = []
    if found is None and request.suite.tunes:
        studies = searches(request, store.url)[1]
        found = {study.cell: end for study in studies if (end := tune.found(study)) is not None}
    for one in (request, *([dataclasses.replace(request, tuned=found)] if found else [])):
        every = expanded(one, [])
        store.remove(key for planned in every for key in planned.rows)
        networks.remove({planned.job.network for planned in every})
    trials.remove(store.url, [study.name for study in studies])


def tuned_of(request: Request, path: Path) -> Found:
    """The tuned hyperparameters in a published leaderboard, or in the output of a run.

    Args:
        request: the methods, data sets and architectures that need them.
        path: folder of the leaderboard, the output folder, or a results.csv.

    Raises:
        UserError: there are no results, or none for a method of the request.
    """
    if not results_csv.files_of(path):
        raise UserError(f"--tuned '{path}': it contains neither results/*.csv nor results.csv")
    try:
        found = tuning_gain.chosen(results_csv.read(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--tuned '{path}': {error}") from None
    every = [(b.dataset, a) for b in request.suite.blocks for a in b.architectures]
    tuned = [block for block in every if request.suite.trials_of(*block)] or every
    wanted = [(*block, m.name) for block in tuned for m in request.methods]
    blocks = {cell[:2] for cell in found}  # no rows at all: the architecture does not support the data set
    missing = [cell for cell in wanted if cell not in found and (cell[:2] in blocks or not blocks & {w[:2] for w in wanted})]
    if missing:
        dataset, architecture, method = missing[0]
        raise UserError(f"--tuned '{path}': it has no tuned rows of {method} on {dataset}/{architecture}")
    return {cell: found[cell] for cell in wanted if cell in found}
