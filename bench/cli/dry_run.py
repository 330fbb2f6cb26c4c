"""`run --dry-run`: what would run, what is stored already, and about how long the rest takes."""

import dataclasses
from collections import Counter
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from bench.cli.tables import say
from bench.execution.display import Display, duration
from bench.execution.executors import Executor, JobFailure, Queue
from bench.execution.meter import Progress
from bench.planning.plan import plan
from bench.planning.request import Found, Request
from bench.planning.searches import searches
from bench.storage.rows import Store
from bench.trial.calibration import Calibration, calibrate
from bench.trial.job import Job
from bench.tuning.study import Study
from bench.tuning.tune import found

Kind = tuple[str, str, str, str]


def show(console: Console, request: Request, store: Store, pool: Executor, chosen: Found | None = None) -> None:
    """Print the blocks, the rows, the trainings left, and an estimate of the time, from timing a part of each kind of job.

    `chosen`: tuned hyperparameters from elsewhere; nothing is searched then.
    """
    planned = plan(request, store)
    work, expected = list[Job | Study](planned.jobs), dict(planned.expected)
    if chosen is not None:
        tuned = plan(dataclasses.replace(request, tuned=chosen), store)
        expected |= tuned.expected
        work += tuned.jobs
    elif request.suite.tunes:
        networks, studies = searches(request, store.url)
        work += [*networks.jobs, *(study for study in studies if found(study) is None)]
    if work:
        console.print("timing a part of each kind of job ...", style="dim", highlight=False)
    timed = _calibrations(work, pool, lambda line: say(console, line))
    table = Table("data set", "architecture", "rows", "left", "trainings left", "epochs left", "about", box=box.SIMPLE_HEAD)
    total = 0.0
    blocks = Counter((row.dataset, row.architecture) for row in expected.values())
    for (dataset, architecture), rows in blocks.items():
        mine = [w for w in work if (_job(w).dataset, _job(w).architecture) == (dataset, architecture)]
        left = sum(len(w.points) for w in mine if isinstance(w, Job))
        trainings = sum(_job(w).trainings * (w.rounds.trials if isinstance(w, Study) else 1) for w in mine)
        seconds = sum(_seconds(w, timed) for w in mine) / pool.workers
        total += seconds
        table.add_row(
            dataset, architecture, str(rows), str(left), str(trainings), str(sum(w.epochs for w in mine)), duration(seconds)
        )  # fmt: skip
    for note in planned.notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.print(table)
    console.print(f"methods: {', '.join(m.name for m in request.methods)}", highlight=False)
    jobs = [w for w in work if isinstance(w, Job) and w.points]
    rows, left = len(expected), sum(len(job.points) for job in jobs)
    console.print(f"{rows} rows: {rows - left} in the store, {left} to compute in {len(jobs)} jobs", highlight=False)
    if request.suite.tunes and chosen is None:
        count = sum(isinstance(w, Study) for w in work)
        told = f"Tuning: {count} searches x {request.suite.trials_said} trials remain."
        console.print(f"{told} The rows of what they choose are not in the estimate.", highlight=False)
    if work:
        on = f"{pool.workers} worker{'s' * (pool.workers != 1)}"
        console.print(f"About {duration(total)} on {on}: training, scoring, pruning and evaluation.", highlight=False)


def _calibrations(work: list[Job | Study], pool: Executor, tell: Callable[[str], None]) -> dict[Kind, Calibration]:
    """The timing of one job of each kind: each method on each block, by the workers that would do the work.

    `tell` receives a line for each job that cannot be timed; it counts as 0 seconds.
    """
    one: dict[Kind, Job] = {}
    for w in work:
        one.setdefault(_kind(w), _job(w))
    timed: dict[Kind, Calibration] = {}
    with Display() as display:
        for job, result in pool.run(calibrate, Queue(one.values()), follow=lambda job, result: [], tick=lambda _: None):
            if isinstance(result, JobFailure):
                tell(f"warning: {job.label} cannot be timed and is not in the estimate: {result.error}")
            timed[_kind(job)] = Calibration(0.0) if isinstance(result, JobFailure) else result
            display(Progress(len(timed), len(one), len(timed) / len(one), (), 0))
    return timed


def _seconds(work: Job | Study, timed: dict[Kind, Calibration]) -> float:
    each = timed[_kind(work)].seconds(_job(work))
    return each * work.rounds.trials if isinstance(work, Study) else each


def _kind(work: Job | Study) -> Kind:
    job = _job(work)
    return job.dataset, job.architecture, job.method, job.ablation


def _job(work: Job | Study) -> Job:
    return work.job if isinstance(work, Study) else work
