"""`verify`: published rows computed anew from what they say of themselves, and derived files rebuilt from the rows.

A row has its hyperparameters and seed, the folder its suite: no tuning is repeated and no store is read. Dense networks are trained
in a folder that is thrown away, each once for all rows of the sample that need it.
"""

import dataclasses
import json
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import methods
from bench.cli import report
from bench.execution import executors, pipeline
from bench.planning import catalogue
from bench.planning.planning import Plan
from bench.publishing import board_folder, row_comparison
from bench.publishing.board_folder import Board
from bench.publishing.noise import Noise
from bench.publishing.row_comparison import Shift, Verdict
from bench.spec.columns import Role
from bench.spec.digest import digest
from bench.spec.errors import UserError, unknown
from bench.spec.row import DENSE, PROTOCOL_VERSION, Row, columns_of
from bench.storage.rows import Store
from bench.trial import workbench
from bench.trial.job import Configured, Job, Place, Point
from bench.trial.provenance import provenance
from methods import Schedule, Stage

SAMPLE = 3


def verify(
    folder: Path, *, sample: int | None, methods: str | None, seed: int, tolerance: float | None, workers: int | None, device: str,
    data_root: Path | None, plugins: tuple[str, ...],
) -> bool:  # fmt: skip
    """Print the verdict on a sample of rows and on derived files; whether all is as published. See `bench.cli.verify`."""
    console = report.make_console()
    with tempfile.TemporaryDirectory(prefix="razorbench-") as scratch:
        place = dataclasses.replace(report.make_place(device, data_root, plugins), cache=Path(scratch))
        catalogue.load_plugins(plugins)
        board = board_folder.read(folder)
        chosen = _sample(board, methods, SAMPLE if sample is None else sample, seed)
        how = f"{len(chosen)} of {len(board.rows)} rows, drawn with seed {seed}"
        console.print(f"{folder}: computing {how}" + (f" (--sample {SAMPLE} by default)" if sample is None else ""), highlight=False)
        for note in dict.fromkeys(filter(None, (_caveat(row, place) for row in chosen))):
            console.print(f"note: {note}", style="yellow", highlight=False)
        pool = executors.make("local", report.worker_count(workers, place.device))
        try:
            with report.Display(console, len(chosen), pool.workers) as display:
                computed = _compute(chosen, board, place, pool, display.show)
        finally:
            pool.close()
        pairs = list(zip(chosen, computed, strict=True))
        verdicts = row_comparison.compare(pairs, Noise(board.rows), tolerance)
        verdicts = [_with_whole_samples(*pair, verdict, board, place) for pair, verdict in zip(pairs, verdicts, strict=True)]
    wrong = _print_rows(console, pairs, verdicts, Noise(board.rows) if tolerance is None else None)
    return not (_print_stale(console, folder, board) or wrong)


def _with_whole_samples(row: Row, got: Row, verdict: Verdict, board: Board, place: Place) -> Verdict:
    """The verdict with accuracies that no number of the test samples gives; what repeats itself is not looked at."""
    suspects = [name for name in (*row_comparison.ACCURACIES, "top5") if row_comparison.unequal(row, got, (name,))]
    if not suspects:
        return verdict
    data = workbench.load_data(row.dataset, board.suite.protocol(row.architecture), dataclasses.replace(place, device="cpu"))
    samples = len(data.held_out)
    counts = {name: getattr(row, name) * samples for name in suspects}
    broken = [f"{name}: {getattr(row, name)!r} is not a whole number of the {samples} test samples"
              for name, count in counts.items() if abs(count - round(count)) > 1e-6]  # fmt: skip
    return dataclasses.replace(verdict, differences=[*verdict.differences, *broken])


def _print_rows(console: Console, pairs: list[row_comparison.Pair], verdicts: list[Verdict], noise: Noise | None) -> bool:
    """A line for each row, for what differs in it, and for the sample as a whole; whether anything differs.

    `noise`: of the board; None where a tolerance has decided.
    """
    for (row, got), verdict in zip(pairs, verdicts, strict=True):
        _print_verdict(console, row, got, verdict)
    shifts = row_comparison.shifts(pairs, noise) if noise else []
    for shift in shifts:
        _print_shift(console, shift)
    wrong = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.differences]
    near = (
        sum(row_comparison.same_environment(*pair) and not row_comparison.judge(*pair, noise).differences for pair in wrong) if noise else 0
    )
    if near:
        hint = (
            f"{near} of them differ no more than another seed of the same cell does: perhaps the processor is another one under this name"
        )
        console.print(hint, highlight=False, soft_wrap=True)
    shifted = any(shift.significant for shift in shifts)
    end = f"{len(wrong)} of {len(pairs)} rows differ" if wrong else f"all {len(pairs)} rows are as published"
    console.print(end + ("; all rows together are shifted" if shifted else ""), highlight=False)
    return bool(wrong) or shifted


def _print_verdict(console: Console, row: Row, got: Row, verdict: Verdict) -> None:
    """A line for the row, and one for each difference."""
    equal = not row_comparison.unequal(row, got)
    word = "DIFFERS" if verdict.differences else "equal" if equal else "agrees"
    reasons = [*verdict.differences, *([got.error] if got.error and got.error != row.error else [])]
    allowed = "" if equal or verdict.differences else f"; {verdict.allowed}"
    lines = [
        f"{word:<8} {_label(row)}: accuracy {_percent(row)} published, {_percent(got)} computed{allowed}",
        *(f"{'':9}{r}" for r in reasons),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _print_shift(console: Console, shift: Shift) -> None:
    """A line for a test of the whole sample."""
    word = "DIFFERS" if shift.significant else "agrees"
    size = f"{abs(shift.mean):.2f} deviations {'above' if shift.mean > 0 else 'below'} the published"
    said = f"on average computed {shift.column} lies {size}" if shift.mean else f"on average computed {shift.column} is as published"
    networks = f"{shift.networks} independent network{'s' * (shift.networks != 1)}"
    console.print(f"{word:<8} all rows together: {said} ({networks}, p = {shift.p:.2g})", highlight=False, soft_wrap=True)


def _print_stale(console: Console, folder: Path, board: Board) -> bool:
    """Say which derived files are not what the rows give; whether there are any. Of a folder without them nothing is asked."""
    if not (folder / "datapackage.json").is_file():
        return False
    stale = board_folder.stale(folder, board)
    for name, reason in stale.items():
        console.print(f"STALE    {folder / name} {reason}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(stale)} derived files are stale" if stale else "the derived files follow from the rows", highlight=False)
    return bool(stale)


def _sample(board: Board, methods: str | None, size: int, seed: int) -> list[Row]:
    """Rows drawn without replacement, in the order of the files. UserError for a method that is not there."""
    rows = list(board.rows)
    if methods is not None:
        there = {row.method for row in rows}
        names = [_spelled(name.strip(), there) for name in re.split(r",(?![^()]*\))", methods) if name.strip()]
        rows = [row for row in rows if row.method in names]
    if not rows:
        raise UserError("there are no rows to verify")
    others = {row.protocol for row in rows} - {PROTOCOL_VERSION}
    if others:
        raise UserError(f"rows of protocol {', '.join(sorted(others))}: this is protocol {PROTOCOL_VERSION}; take the release they name")
    chosen = random.Random(seed).sample(range(len(rows)), min(size, len(rows)))
    return [rows[k] for k in sorted(chosen)]


def _spelled(name: str, there: set[str]) -> str:
    """A method of the leaderboard as it is spelled there; UserError where there is none of that name."""
    if name in there:
        return name
    try:
        spelled = methods.get(name).name
    except ValueError:
        spelled = name
    if spelled not in there:
        raise unknown("method of this leaderboard", name, sorted(there))
    return spelled


def _caveat(row: Row, place: Place) -> str:
    """What keeps a row from being repeated bit for bit here; '' where nothing is known to."""
    here = provenance(place.device, place.threads)
    names = [name for name in row_comparison.WHERE if name in here and getattr(row, name) != here[name]]
    differ = [f"{name} {getattr(row, name) or '?'} there, {here[name]} here" for name in names if name != "environment"]
    differ += ["other packages or threads"] * ("environment" in names)
    return f"{'; '.join(differ)}: numbers may differ by what their cells show over seeds" if differ else ""


def _compute(rows: Sequence[Row], board: Board, place: Place, pool: pipeline.Pool, show: pipeline.Show) -> list[Row]:
    """The same rows, measured here."""
    plan = Plan(place)
    dense: dict[str, Job] = {}
    references: list[str] = []
    keys = [f"row {k}" for k in range(len(rows))]
    for key, row in zip(keys, rows, strict=True):
        job = _job(row, board, place, key)
        reference = _reference(row, board, job, key)
        references.append(reference.points[0].key)
        plan.expected |= {name: _blank(row, place) for name in (key, references[-1])}
        known = dense.get(job.network)
        dense[job.network] = dataclasses.replace(reference, points=(*(known.points if known else ()), *reference.points))
        if job.criterion is not None:
            plan.blocked.setdefault(job.network, []).append(job)
    plan.ready = list(dense.values())
    store = Store(f"sqlite:///{place.cache / 'store.db'}")
    pipeline.run(plan, store, pool, show)
    found = store.get(plan.expected)
    joined = []
    for key, reference_key in zip(keys, references, strict=True):
        reference_row = found[reference_key]
        row = dataclasses.replace(found[key], dense_accuracy=reference_row.accuracy, dense_nll=reference_row.nll)
        joined.append(row)
    return joined


def _blank(row: Row, place: Place) -> Row:
    """The row without what is measured, and with where it is measured now."""
    empty: dict[str, Any] = dict.fromkeys((*row_comparison.MEASURED, *columns_of(Role.COST)))
    where = dict.fromkeys(row_comparison.WHERE, "") | provenance(place.device, place.threads)
    return dataclasses.replace(row, **empty, error="", status="missing", **where)


def _job(row: Row, board: Board, place: Place, key: str) -> Job:
    """The job that measures a row. UserError where the row does not say how it was made."""
    try:
        said = json.loads(row.hyperparameters)
        training = Configured(row.training, said["training"])
        criterion = Configured(row.criterion, said["criterion"]) if row.criterion else None
        schedule = _schedule(said["schedule"]) if "schedule" in said else None
        methods.make("trainings", training.name, training.hyperparameters)
        if criterion is not None:
            methods.make("criteria", criterion.name, criterion.hyperparameters)
        methods.get_granularity(row.granularity)
        stage = Stage(row.stage) if row.stage else None
    except (ValueError, KeyError, TypeError) as error:
        what = f"no {error} in its hyperparameters" if isinstance(error, KeyError) else str(error)
        what += " (a method of your own: --plugin FILE)" * isinstance(error, methods.UnknownName)
        raise UserError(f"{_label(row)} cannot be computed: {what}") from None
    protocol = board.suite.protocol(row.architecture)
    if "finetuning" in said:
        protocol = dataclasses.replace(protocol, finetune_lr_scale=said["finetuning"]["lr_scale"])
    network = digest([row.dataset, row.architecture, row.seed, training.name, training.hyperparameters])
    return Job(
        method=row.method, dataset=row.dataset, architecture=row.architecture, protocol=protocol, seed=row.seed, training=training,
        criterion=criterion, stage=stage, granularity=row.granularity, match=row.match, network=network, schedule=schedule,
        ablation=row.ablation, points=(Point(row.sparsity, row.finetune_epochs, key),), place=place,
    )  # fmt: skip


def _reference(row: Row, board: Board, job: Job, key: str) -> Job:
    """The job of a row's own dense network, fine-tuned as the suite says: for a dense row, the row's own job."""
    if job.criterion is None:
        return job
    return dataclasses.replace(
        job, method=DENSE, criterion=None, stage=None, schedule=None, ablation="none", protocol=board.suite.protocol(row.architecture),
        points=(Point(0.0, row.finetune_epochs, f"dense of {key}"),),
    )  # fmt: skip


def _schedule(said: dict[str, Any]) -> Schedule:
    """The schedule that a row has recorded; KeyError or TypeError where there is no such."""
    fields = dict(said)
    made: Schedule = {cls.kind: cls for cls in Schedule.__subclasses__()}[fields.pop("kind")](**fields)
    return made


def _label(row: Row) -> str:
    which = [row.tuning] * (row.tuning != "default") + [row.ablation] * (row.ablation != "none")
    name = " ".join([row.method, *which])
    return f"{name} · {row.dataset}/{row.architecture} · sparsity {row.sparsity:g} · seed {row.seed} · fine-tuned {row.finetune_epochs}"


def _percent(row: Row) -> str:
    return row.status if row.accuracy is None else f"{row.accuracy:.2%}"
