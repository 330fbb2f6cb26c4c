"""`run --dry-run`: what would run, what is there already, and about how long the rest takes."""

from rich import box
from rich.console import Console
from rich.table import Table

from bench.planning import planning
from bench.planning.planning import Request
from bench.storage.rows import Store
from bench.trial import trial
from bench.trial.job import Job
from bench.tuning.study import Study
from bench.tuning.tune import found


def show(console: Console, request: Request, store: Store, workers: int) -> None:
    """Print the blocks, the rows, the trainings left, and an estimate from a few batches of each block."""
    planned = planning.plan(request, store)
    work: list[Job | Study] = list(planned.jobs)
    if request.suite.trials:
        networks, studies = planning.tuning(request, store.url)
        work += [*networks.jobs, *(study for study in studies if found(study) is None)]
    table = Table("data set", "architecture", "rows", "left", "trainings left", "epochs left", "about", box=box.SIMPLE_HEAD)
    total = 0.0
    for dataset, architecture in dict.fromkeys((r.dataset, r.architecture) for r in planned.expected.values()):
        mine = [w for w in work if (_job(w).dataset, _job(w).architecture) == (dataset, architecture)]
        rows = sum((r.dataset, r.architecture) == (dataset, architecture) for r in planned.expected.values())
        left = sum(len(w.points) for w in mine if isinstance(w, Job))
        trainings = sum(_job(w).trainings * (w.trials if isinstance(w, Study) else 1) for w in mine)
        epochs = sum(w.epochs for w in mine)
        seconds = epochs * trial.seconds_per_epoch(_job(mine[0])) / workers if mine else 0.0
        total += seconds
        table.add_row(dataset, architecture, str(rows), str(left), str(trainings), str(epochs), duration(seconds))
    for note in planned.notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.print(table)
    console.print(f"methods: {', '.join(m.name for m in request.methods)}", highlight=False)
    rows, left = len(planned.expected), sum(len(job.points) for job in planned.jobs)
    console.print(f"{rows} rows: {rows - left} in the store, {left} to compute in {len(planned.jobs)} jobs", highlight=False)
    if request.suite.trials:
        searches = sum(isinstance(w, Study) for w in work)
        console.print(
            f"tuning: {searches} studies of {request.suite.trials} trials are left; the networks that they choose come on top",
            highlight=False,
        )
    if work:
        console.print(f"about {duration(total)} of training on {workers} workers; scoring and measuring come on top", highlight=False)


def _job(work: Job | Study) -> Job:
    return work.job if isinstance(work, Study) else work


def duration(seconds: float) -> str:
    """Seconds in words: "42 s", "3 min 05 s", "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
