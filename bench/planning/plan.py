"""The jobs of a request: expand its cells into rows, group the rows into jobs, skip rows already stored."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from bench.planning.cells import Cell, PointKeys, cells
from bench.planning.jobs import dense_name, job_of, recipe_of
from bench.planning.request import Request
from bench.spec.errors import UserError
from bench.spec.row import RECALIBRATIONS, Row, changed
from bench.spec.setting import Setting
from bench.storage.checkpoints import Networks
from bench.storage.rows import Store
from bench.trial import architecture
from bench.trial.job import Environment, Job, Point
from bench.trial.provenance import provenance
from methods import Method, Stage

# A stored row can belong to several suites, to default and tuned hyperparameters if they are equal, and a dense row to several
# granularities. So these columns are those of the plan.
NAMED = ("suite", "method", "tuning", "granularity", "match", "hyperparameters")
_named = attrgetter(*NAMED[:-1])


@dataclass(frozen=True)
class Planned:
    """A job, and what its rows share. `unfinished`: the hyperparameters of rows without fine-tuning."""

    job: Job
    shared: Row
    unfinished: str

    def row(self, point: Point) -> Row:
        """The row of a point, without measurements."""
        return changed(
            self.shared, sparsity=point.sparsity, finetune_epochs=point.finetune_epochs, epochs=self.job.training_epochs(point.sparsity),
            hyperparameters=self.shared.hyperparameters if point.finetune_epochs else self.unfinished,
        )  # fmt: skip

    @property
    def rows(self) -> dict[str, Row]:
        """Key -> row without measurements, one per point of the job."""
        return {point.key: self.row(point) for point in self.job.points}


class Expected(Mapping[str, Row]):
    """Key -> row without measurements, in the order of jobs. Each row is made when it is asked for: all of them may need a gigabyte."""

    def __init__(self, jobs: Iterable[Planned]) -> None:
        self._places = {point.key: (planned, point) for planned in jobs for point in planned.job.points}

    def __getitem__(self, key: str) -> Row:
        planned, point = self._places[key]
        return planned.row(point)

    def named(self, key: str) -> tuple[str, ...]:
        """The values of the columns `NAMED` of a row. No row is made."""
        planned, point = self._places[key]
        return (*_named(planned.shared), planned.shared.hyperparameters if point.finetune_epochs else planned.unfinished)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass
class Plan:
    """The rows of a request, in order, and the jobs to compute the missing ones.

    `environment`: device, folders and plug-ins of the jobs. `expected`: key -> row without measurements. `ready`: jobs that can start.
    `blocked`: network key -> jobs that wait for this dense network. `notes`: messages about what cannot be run. `timeout`: the most
    seconds that one job may take; None: no limit.
    """

    environment: Environment
    expected: Mapping[str, Row] = field(default_factory=dict)
    ready: list[Job] = field(default_factory=list)
    blocked: dict[str, list[Job]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    timeout: float | None = None

    @property
    def jobs(self) -> list[Job]:
        """All jobs to do."""
        return [*self.ready, *(job for jobs in self.blocked.values() for job in jobs)]


def plan(request: Request, store: Store) -> Plan:
    """Plan a request: all its rows, and jobs for those that are not stored.

    Args:
        request: what to run.
        store: the stored results.

    Raises:
        UserError: nothing of the request can be run.
    """
    made, jobs = _planned_rows(request)
    _skip_stored(made, jobs, store)
    return made


def plan_rows(request: Request) -> Plan:
    """Plan the rows of a request only, without jobs; raises UserError as `plan` does."""
    return _planned_rows(request)[0]


def _planned_rows(request: Request) -> tuple[Plan, list[Job]]:
    made = Plan(request.environment, timeout=request.suite.timeout)
    every = expanded(request, made.notes)
    made.expected = Expected(every)
    return made, [planned.job for planned in every]


def expanded(request: Request, notes: list[str] | None = None) -> list[Planned]:
    """All jobs of a request with their rows, stored or not; dense networks before the jobs that prune them.

    Args:
        request: what to run.
        notes: a message is added for everything that cannot be run.

    Raises:
        UserError: nothing of the request can be run.
    """
    return [planned for part in by_cell(request, notes) for planned in part]


def by_cell(request: Request, notes: list[str] | None = None) -> Iterator[list[Planned]]:
    """What `expanded` returns, one data set, architecture and seed after the other: all jobs of many rows need much memory."""
    notes = notes if notes is not None else []
    some = False
    for cell in cells(request, request.suite.seeds, notes):
        made = _of_cell(cell)
        some = some or bool(made)
        yield made
    if not some:
        raise UserError("nothing to run: " + "; ".join(notes))


def _of_cell(cell: Cell) -> list[Planned]:
    """All jobs of a cell: dense networks, then each method with its ablations."""
    found: list[Planned] = []
    dense: dict[tuple[str, str], Planned] = {}
    for method in cell.request.methods:
        setting = cell.setting(method)
        if setting is None:
            continue
        trained = method.training, json.dumps(setting.training, sort_keys=True)
        if trained not in dense:
            dense[trained] = _dense(cell, method, setting)
        for ablation in ("none", *cell.request.ablations):
            found.extend(_pruned(cell, method, setting, ablation, dense[trained].job.network))
    return [*dense.values(), *found]


def _dense(cell: Cell, method: Method, setting: Setting) -> Planned:
    """The dense network of a method's training, with the same numbers of fine-tuning epochs."""
    own = Setting(setting.training, finetune_lr_scale=cell.protocol.finetune_lr_scale)
    named = {"method": dense_name(method.training, setting.training), "training": method.training, "criterion": "", "stage": ""}
    network = cell.network(method.training, setting.training)
    keys = PointKeys({"network": network})
    points = tuple(Point(0.0, f, keys.key(f, cell.protocol.finetune_lr_scale)) for f in cell.request.suite.finetune_epochs)
    return planned(cell, named, own, network, points)


def _pruned(cell: Cell, method: Method, setting: Setting, ablation: str, network: str) -> Iterator[Planned]:
    """The jobs of a method in a cell: one for all sparsities, or where each trains its own network, one for those trained together.

    `network`: the key of the dense network of its training.
    """
    suite = cell.request.suite
    named = {
        "method": method.name, "training": method.training, "criterion": method.criterion, "stage": str(method.stage), "ablation": ablation,
    }  # fmt: skip
    decided = {"network": network, **cell.decided(method, setting.criterion or {})}
    if ablation != "none":
        decided["ablation"] = ablation
    stack = cell.request.environment.stack
    if stack > 1:
        decided["stack"] = stack
    sparsities, finetunings = suite.extent(early=method.stage is not Stage.AFTER)
    size = len(sparsities) if method.stage is Stage.AFTER else stack
    keys, one = PointKeys(decided), planned(cell, named, setting, network, ())
    for group in (sparsities[start : start + size] for start in range(0, len(sparsities), size)):
        points = tuple(Point(s, f, keys.key(f, setting.finetune_lr_scale, sparsity=s)) for s in group for f in finetunings)
        yield dataclasses.replace(one, job=dataclasses.replace(one.job, points=points))


def planned(
    cell: Cell, named: dict[str, str], setting: Setting, network: str, points: tuple[Point, ...], split: str = "test"
) -> Planned:  # fmt: skip
    """The job for points of a cell, with its rows.

    Args:
        cell: data set, architecture and seed.
        named: method, training, criterion, stage and, if there is one, ablation.
        setting: all hyperparameters.
        network: key of the dense network.
        points: sparsities and fine-tuning epochs, with the key of each row.
        split: data to measure on, "test" or "validation".
    """
    suite, environment = cell.request.suite, cell.request.environment
    where = provenance(environment.device, environment.threads, environment.stack)
    common: dict[str, Any] = {
        "suite": suite.name, "dataset": cell.dataset, "architecture": cell.architecture, "granularity": suite.granularity,
        "match": suite.match, "tuning": "default" if cell.request.tuned is None else "tuned", "seed": cell.seed,
        "status": "missing", "ablation": "none", "recalibration": RECALIBRATIONS[cell.protocol.recalibrate_batchnorm],
        "calibration_samples": cell.protocol.calibration, "recipe": recipe_of(cell.protocol, named["training"]),
        "initial_weights": architecture.initial_weights(cell.protocol.pretrained, cell.protocol.weights), **named, **where,
    }  # fmt: skip
    one = Row(**common, sparsity=0.0, epochs=cell.protocol.epochs, finetune_epochs=0, hyperparameters=setting.encoded())
    job = job_of(one, cell.protocol, cell.request.environment, network=network, points=points, split=split)
    job = dataclasses.replace(job, fingerprint=cell.common["data"])
    unfinished = dataclasses.replace(setting, finetune_lr_scale=None).encoded()  # only for rows with fine-tuning
    return Planned(job, one, unfinished)


def _skip_stored(made: Plan, jobs: list[Job], store: Store) -> None:
    """Add the jobs to the plan, with only the points that are not stored."""
    have = {key for key, row in store.rows(made.expected) if row.status != "failed"}
    networks = Networks(made.environment.cache / "networks")
    left = [dataclasses.replace(j, points=tuple(p for p in j.points if p.key not in have)) for j in jobs]
    waiting = [j for j in left if j.points and _prunes_dense(j) and not networks.has(j.network)]
    for job in waiting:
        made.blocked.setdefault(job.network, []).append(job)
    for job in left:
        if not job.criterion:
            if job.points or job.network in made.blocked:
                made.ready.append(job)
        elif job.points and not (_prunes_dense(job) and job.network in made.blocked):
            made.ready.append(job)
    # Dense networks first, because other jobs wait for them; then the longest jobs, so that workers finish at about the same time.
    made.ready.sort(key=lambda job: (bool(job.criterion), -job.epochs))


def _prunes_dense(job: Job) -> bool:
    return bool(job.criterion) and not job.trains_each
