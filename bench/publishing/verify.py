"""`verify`: compute published rows again and compare, and check the files derived from them.

A row contains its hyperparameters and seed, and the folder contains the suite, so neither tuning nor the store is needed. Each dense
network is trained once, in a temporary folder, for all rows of the sample that need it.
"""

import dataclasses
import random
import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
from bench.execution import pipeline
from bench.execution.environment import environment_of
from bench.execution.meter import Show
from bench.planning import catalogue
from bench.planning.jobs import job_of, recipe_faults
from bench.planning.plan import Plan
from bench.planning.trained import protocol_of
from bench.publishing import board_check, board_folder, row_comparison
from bench.publishing.board_folder import Board
from bench.publishing.noise import Noise
from bench.publishing.plots import curves
from bench.publishing.row_comparison import Shift, Verdict
from bench.publishing.trust import refuse_foreign_code, refuse_foreign_data
from bench.spec.choices import Resources
from bench.spec.columns import Role
from bench.spec.digest import digest
from bench.spec.errors import UserError, unknown
from bench.spec.row import DENSE, PROTOCOL_VERSION, Row, columns_of
from bench.spec.setting import Setting, decoded
from bench.storage.rows import Store
from bench.trial import architecture, loading
from bench.trial.job import Environment, Job, Point
from bench.trial.provenance import provenance

SAMPLE = 3


@dataclass(frozen=True)
class Sample:
    """Published rows drawn for a comparison; without those that break a rule.

    `folder`, `board`: the leaderboard. `faults`: rules that it breaks, see `bench.publishing.board_check`. `notes`: why some rows cannot be
    bit-identical on this machine, and some plots not be compared. `environment`: device, folders and plug-ins for computing them again.
    """

    folder: Path
    board: Board
    rows: tuple[Row, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    environment: Environment


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    `pairs`: (published row, computed row). `verdicts`: one per pair. `shifts`: tests of all rows together. `near`: number of differing
    rows that differ less than another seed would. `faults`: rules that the leaderboard breaks, see `bench.publishing.board_check`.
    `stale`: file that differs from what `publish` writes -> reason.
    """

    pairs: list[row_comparison.Pair]
    verdicts: list[Verdict]
    shifts: list[Shift]
    near: int
    faults: tuple[str, ...]
    stale: dict[str, str]

    @property
    def differing(self) -> int:
        """The number of rows that differ."""
        return sum(bool(verdict.differences) for verdict in self.verdicts)

    @property
    def agrees(self) -> bool:
        """Whether the leaderboard breaks no rule, and rows and derived files agree with what is published."""
        return not (self.differing or self.faults or self.stale or any(shift.significant for shift in self.shifts))


def draw(
    folder: Path, resources: Resources, *, methods: str | None = None, size: int = SAMPLE, seed: int = 0,
    among: Collection[Row] | None = None,
) -> Sample:  # fmt: skip
    """Draw rows of a leaderboard without replacement, in the order of its files.

    Args:
        folder: folder of the leaderboard.
        resources: where to compute.
        methods: comma-separated names of methods to draw from; None: all.
        size: number of rows.
        seed: seed of the draw.
        among: rows of the leaderboard to draw from; None: all. If it is empty, only the rules and the derived files are checked.

    Raises:
        UserError: there are no rows, a method is unknown, rows have another protocol, or a network or data set is code or files that
            were not given by --plugin and --data-root.
    """
    environment = environment_of(resources)
    catalogue.load_plugins(environment.plugins)
    board = board_folder.read(folder)
    refuse_foreign_code(board, environment.plugins)
    refuse_foreign_data(board, environment.data_root)
    named = None if methods is None else _named(board, methods)
    of = board if among is None else dataclasses.replace(board, rows=tuple(among))
    rows = _drawn(of, named, size, seed) if among is None or among else []
    faults = board_check.faults(board, environment, named)
    rows = [row for row in rows if row not in faults.rows]
    notes = tuple(dict.fromkeys(filter(None, (_caveat(row, environment) for row in rows))))
    drawn = board_folder.uncompared(folder)
    notes += (f"plots were drawn by {', '.join(drawn)}, here is {curves.RELEASE}: they are not compared",) * bool(drawn)
    return Sample(folder, board, tuple(rows), faults.lines, notes, environment)


def recompute(sample: Sample, pool: pipeline.Pool, show: Show, tolerance: float | None = None) -> Verification:
    """Compute the rows of a sample again, in a temporary folder, and compare.

    Args:
        sample: the rows.
        pool: runs the jobs.
        show: receives the progress.
        tolerance: largest allowed difference of accuracies, a fraction, instead of the statistical tests; None: use the tests.
    """
    with tempfile.TemporaryDirectory(prefix="razorbench-") as scratch:
        environment, board = dataclasses.replace(sample.environment, cache=Path(scratch)), sample.board
        computed = _compute(sample.rows, board, environment, pool, show)
        pairs, noise = list(zip(sample.rows, computed, strict=True)), Noise(board.rows)
        verdicts = row_comparison.compare(pairs, noise, tolerance)
        verdicts = [_with_more(*pair, verdict, board, environment) for pair, verdict in zip(pairs, verdicts, strict=True)]
    wrong = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.differences]
    here = [pair for pair in wrong if row_comparison.must_be_equal(*pair)] if tolerance is None else []
    return Verification(
        pairs, verdicts,
        shifts=row_comparison.shifts(pairs, noise) if tolerance is None else [],
        near=sum(not row_comparison.judge(*pair, noise).differences for pair in here),
        faults=sample.faults,
        stale=_stale(sample),
    )  # fmt: skip


def _stale(sample: Sample) -> dict[str, str]:
    """The files that are not as `publish` writes them. Rows that break rules may have no derived files."""
    try:
        return board_folder.stale(sample.folder, sample.board)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if not sample.faults:
            raise
        return {"index.html": f"cannot be derived from these rows: {' '.join(str(error).split())}"}


def _with_more(row: Row, got: Row, verdict: Verdict, board: Board, environment: Environment) -> Verdict:
    """Add a recipe that is not the suite's, and published accuracies that are not a whole number of test samples, to the differences."""
    verdict = dataclasses.replace(verdict, differences=[*verdict.differences, *recipe_faults(row, board.suite)])
    suspects = [name for name in (*row_comparison.ACCURACIES, "top5") if row_comparison.unequal(row, got, (name,))]
    if not suspects:
        return verdict
    samples = loading.load_card(row.dataset, protocol_of(board.suite, row.dataset, row.architecture), environment).test
    counts = {name: getattr(row, name) * samples for name in suspects}
    broken = [f"{name}: {getattr(row, name)!r} is not a multiple of 1/{samples} ({samples} test samples)"
              for name, count in counts.items() if abs(count - round(count)) > 1e-6]  # fmt: skip
    return dataclasses.replace(verdict, differences=[*verdict.differences, *broken])


def _named(board: Board, methods: str) -> frozenset[str]:
    """The names in a comma-separated list, as the leaderboard writes them. UserError for an unknown method."""
    there = {row.method for row in board.rows}
    return frozenset(_spelled(name.strip(), there) for name in re.split(r",(?![^()]*\))", methods) if name.strip())


def _drawn(board: Board, methods: frozenset[str] | None, size: int, seed: int) -> list[Row]:
    """Rows drawn without replacement, in the order of the files."""
    rows = [row for row in board.rows if methods is None or row.method in methods]
    if not rows:
        raise UserError("there are no rows to verify")
    others = {row.protocol for row in rows} - {PROTOCOL_VERSION}
    if others:
        found = ", ".join(sorted(others))
        raise UserError(f"rows of protocol {found}, this release has protocol {PROTOCOL_VERSION}; use the release in column `version`")
    chosen = random.Random(seed).sample(range(len(rows)), min(size, len(rows)))
    return [rows[k] for k in sorted(chosen)]


def _spelled(name: str, there: set[str]) -> str:
    """The name of a method as the leaderboard writes it. UserError if it has no such method."""
    if name in there:
        return name
    try:
        spelled = methods.get(name).name
    except ValueError:
        spelled = name
    if spelled not in there:
        raise unknown("method of this leaderboard", name, sorted(there))
    return spelled


def _caveat(row: Row, environment: Environment) -> str:
    """Why a row may not be bit-identical on this machine; '' if there is no known reason."""
    here = provenance(environment.device, environment.threads)
    names = [name for name in row_comparison.WHERE if name in here and getattr(row, name) != here[name]]
    differ = [f"{name} {getattr(row, name) or '?'} (published) and {here[name]} (here)" for name in names if name != "environment"]
    differ += ["other packages or number of threads, or networks trained as one (`--stack`)"] * ("environment" in names)
    return f"different environment: {'; '.join(differ)}. Numbers may differ as much as between seeds." if differ else ""


def _compute(rows: Sequence[Row], board: Board, environment: Environment, pool: pipeline.Pool, show: Show) -> list[Row]:
    """The same rows, computed on this machine."""
    expected: dict[str, Row] = {}
    plan = Plan(environment, expected, timeout=board.suite.timeout)
    dense: dict[str, Job] = {}
    references: list[str] = []
    keys = [f"row {k}" for k in range(len(rows))]
    for key, row in zip(keys, rows, strict=True):
        job = _job(row, board, environment, key)
        reference = _reference(row, job, key)
        references.append(reference.points[0].key)
        expected |= {name: _blank(row, environment) for name in (key, references[-1])}
        known = dense.get(job.network)
        dense[job.network] = dataclasses.replace(reference, points=(*(known.points if known else ()), *reference.points))
        if job.criterion:
            plan.blocked.setdefault(job.network, []).append(job)
    plan.ready = list(dense.values())
    store = Store(f"sqlite:///{environment.cache / 'store.db'}")
    pipeline.run(plan, store, pool, show)
    found = store.get(plan.expected)
    joined = []
    for key, reference_key in zip(keys, references, strict=True):
        reference_row = found[reference_key]
        row = dataclasses.replace(found[key], dense_accuracy=reference_row.accuracy, dense_nll=reference_row.nll)
        joined.append(row)
    return joined


def _blank(row: Row, environment: Environment) -> Row:
    """The row without measurements, with the environment of this machine."""
    empty: dict[str, Any] = dict.fromkeys((*row_comparison.MEASURED, *columns_of(Role.COST)))
    where = dict.fromkeys(row_comparison.WHERE, "") | provenance(environment.device, environment.threads)
    return dataclasses.replace(row, **empty, error="", status="missing", **where)


def _job(row: Row, board: Board, environment: Environment, key: str) -> Job:
    """The job that computes a row. UserError if the row does not contain what is needed."""
    protocol = protocol_of(board.suite, row.dataset, row.architecture)
    try:
        network = digest([row.dataset, row.architecture, row.seed, row.training, decoded(row.hyperparameters).training])
        points = (Point(row.sparsity, row.finetune_epochs, key),)
        job = job_of(row, protocol, environment, network=network, points=points)
        methods.make("trainings", job.training, job.setting.training)
        if job.criterion:
            methods.make("criteria", job.criterion, job.setting.criterion or {})
        methods.get_granularity(row.granularity)
        architecture.check_source(job)  # the checkpoint, if there is one
        _ = job.schedule
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} (a method of your own: --plugin FILE)" if isinstance(error, methods.UnknownName) else str(error)
        raise UserError(f"{label(row)} cannot be computed: {reason}") from None
    return job


def _reference(row: Row, job: Job, key: str) -> Job:
    """The job of a row's dense network with the same fine-tuning; for a dense row, its own job."""
    if not job.criterion:
        return job
    return dataclasses.replace(
        job, method=DENSE, criterion="", stage=None, setting=Setting(job.setting.training), ablation="none",
        points=(Point(0.0, row.finetune_epochs, f"dense of {key}"),),
    )  # fmt: skip


def label(row: Row) -> str:
    """A short description of a row, for messages."""
    which = [row.tuning] * (row.tuning != "default") + [row.ablation] * (row.ablation != "none")
    name = " ".join([row.method, *which])
    return f"{name} · {row.dataset}/{row.architecture} · sparsity {row.sparsity:g} · seed {row.seed} · fine-tuned {row.finetune_epochs}"
