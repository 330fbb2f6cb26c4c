"""From a suite to rows: expand the cells, find what the store already has, do the rest, hand back every row.

Each step is known by the digest of all that decides its result: data, splits, protocol, hyperparameters, seed, the source of
the method's files, versions of torch and timm, kind of device. So a killed run continues, a repeated run costs nothing, and an
edited plug-in is computed anew. Failed rows are kept to be shown, and tried again by the next run.
"""

import dataclasses
import functools
import importlib.metadata
import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import methods
from bench import architectures, data, executor, progress, trial
from bench.job import Configured, Job, Place, Point
from bench.spec import DENSE, PROTOCOL_VERSION, Protocol, Row, Suite, UserError, digest, first_fault, unknown
from bench.store import Networks, Store
from methods import Method, Stage

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Request:
    """What to run: a suite (already narrowed by the command line), the methods, their controls, the granularity, and where."""

    suite: Suite
    methods: tuple[Method, ...]
    place: Place
    granularity: str = "weight"
    match: str = "weights"
    ablations: tuple[str, ...] = ()


@dataclass
class Plan:
    """The rows a request is for, in order, and the jobs that are left to do.

    `place`: where its jobs find things.
    `expected`: key -> row without measurements. `ready`: jobs that can start; `blocked`: network key -> jobs that wait for
    that dense network. `notes`: what the request named but nothing can be run for.
    """

    place: Place
    expected: dict[str, Row] = field(default_factory=dict)
    ready: list[Job] = field(default_factory=list)
    blocked: dict[str, list[Job]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        """All jobs left."""
        return [*self.ready, *(job for jobs in self.blocked.values() for job in jobs)]


def narrow(suite: Suite, *, datasets: Iterable[str] = (), architectures_: Iterable[str] = (), **changes: Any) -> Suite:
    """The suite with what the command line changes: data sets, architectures, and any other field by name (None = unchanged).

    Data sets or architectures given replace the suite's and are crossed with the others; a data set that is new to the suite
    gets all its architectures. Raises UserError for unknown names and for values the suite would refuse.
    """
    datasets, chosen = list(dict.fromkeys(datasets)), list(dict.fromkeys(architectures_))
    own = {b.dataset: b.architectures for b in suite.blocks}
    every = list(dict.fromkeys(a for b in suite.blocks for a in b.architectures))
    for name in datasets:
        data.describe(name)
    for name in chosen:
        architectures.describe(name)
    blocks = [{"dataset": d, "architectures": chosen or own.get(d, every)} for d in datasets or own]
    try:
        return Suite.model_validate(suite.model_dump() | {"blocks": blocks} | {k: v for k, v in changes.items() if v is not None})
    except ValidationError as error:
        raise UserError(first_fault(error, Suite)) from None


def plan(request: Request, store: Store) -> Plan:
    """Expand the request and subtract what the store has. Loads each data set once, for its fingerprint."""
    suite, made = request.suite, Plan(request.place)
    jobs: list[Job] = []
    for dataset, architecture in ((b.dataset, a) for b in suite.blocks for a in b.architectures):
        protocol = suite.protocol(architecture)
        loaded = trial.load_data(dataset, protocol, dataclasses.replace(request.place, device="cpu"))
        if not architectures.accepts(architecture, loaded.input_shape):
            shape = "x".join(map(str, loaded.input_shape))
            made.notes.append(f"{architecture} does not take {dataset} (inputs of shape {shape}): left out")
            continue
        for seed in suite.seeds:
            common = _common(request, protocol, loaded.fingerprint, architecture, seed)
            cell = {"dataset": dataset, "architecture": architecture, "protocol": protocol, "seed": seed}
            dense = {job.network: job for job in (_dense_job(request, cell, common, m) for m in reversed(request.methods))}
            jobs.extend(reversed(dense.values()))
            for method in request.methods:
                for ablation in ("none", *request.ablations):
                    jobs.extend(_method_jobs(request, cell, common, method, ablation))
    if not jobs:
        raise UserError("nothing to run: " + "; ".join(made.notes))
    for job in jobs:
        made.expected |= {point.key: _blank(request, job, point) for point in job.points}
    _subtract(made, jobs, store)
    return made


def _common(request: Request, protocol: Protocol, fingerprint: str, architecture: str, seed: int) -> dict[str, Any]:
    """What decides every result of a block and seed, whatever the method."""
    return {
        "protocol": dataclasses.asdict(protocol),
        "version": PROTOCOL_VERSION,
        "data": fingerprint,
        "architecture": architecture,
        "seed": seed,
        "torch": torch.__version__,
        "timm": importlib.metadata.version("timm"),
        "device": torch.device(request.place.device).type,
    }


def _network(common: dict[str, Any], training: Configured) -> str:
    """The key of the dense network of one training configuration, block and seed."""
    source = methods.source_hash(methods.lookup("trainings", training.name))
    return digest({**common, "training": training.name, "hyperparameters": training.hyperparameters, "source": source})


def _dense_job(request: Request, cell: dict[str, Any], common: dict[str, Any], method: Method) -> Job:
    training = Configured(method.training, hyperparameters_of(method.make_training()))
    network = _network(common, training)
    options = ",".join(f"{k}={v}" for k, v in method.training_options.items())
    variant = f"{method.training}({options})" if options else method.training
    return Job(
        method=DENSE if variant == "map" else f"{DENSE}@{variant}", training=training, criterion=None, stage=None,
        granularity=request.granularity, network=network, place=request.place, **cell,
        points=tuple(
            Point(0.0, f, digest({"network": network, "finetune_epochs": f})) for f in request.suite.finetune_epochs
        ),
    )  # fmt: skip


def _method_jobs(request: Request, cell: dict[str, Any], common: dict[str, Any], method: Method, ablation: str) -> list[Job]:
    """The jobs of one method on one block and seed: one for all sparsities, or one for each where each is trained apart."""
    training = Configured(method.training, hyperparameters_of(method.make_training()))
    criterion = Configured(method.criterion, hyperparameters_of(method.make_criterion()))
    network = _network(common, training)
    classes = methods.lookup("criteria", criterion.name), methods.lookup("granularities", request.granularity)
    decided = {
        "network": network, "stage": method.stage, "granularity": request.granularity, "criterion": criterion.name,
        "hyperparameters": criterion.hyperparameters, "sources": [methods.source_hash(cls) for cls in classes],
    }  # fmt: skip
    if method.schedule is not None:
        decided["schedule"] = method.schedule.as_dict()
    if ablation != "none":
        decided["ablation"] = ablation
    sparsities = request.suite.sparsities
    return [
        Job(
            method=method.name, training=training, criterion=criterion, stage=method.stage, granularity=request.granularity,
            network=network, place=request.place, schedule=method.schedule, ablation=ablation, **cell,
            points=tuple(
                Point(s, f, digest({**decided, "sparsity": s, "finetune_epochs": f}))
                for s in group
                for f in request.suite.finetune_epochs
            ),
        )
        for group in ([sparsities] if method.stage is Stage.AFTER else [(s,) for s in sparsities])
    ]  # fmt: skip


def hyperparameters_of(configuration: methods.Configuration) -> dict[str, Any]:
    """All hyperparameters with their values, the defaults too: what a row records."""
    return {name: getattr(configuration, name) for name in methods.ranges(configuration)}


def _blank(request: Request, job: Job, point: Point) -> Row:
    """The row of one point before anything is measured: its cell, configuration and provenance."""
    hyperparameters = {"training": job.training.hyperparameters}
    if job.criterion is not None:
        hyperparameters["criterion"] = job.criterion.hyperparameters
    if job.schedule is not None:
        hyperparameters["schedule"] = job.schedule.as_dict()
    return Row(
        suite=request.suite.name, dataset=job.dataset, architecture=job.architecture, granularity=job.granularity,
        match=request.match, method=job.method, criterion=job.criterion.name if job.criterion else "",
        training=job.training.name, stage=job.stage or "", tuning="default", ablation=job.ablation, sparsity=point.sparsity,
        seed=job.seed, epochs=job.training_epochs(point.sparsity), finetune_epochs=point.finetune_epochs, status="missing",
        hyperparameters=json.dumps(hyperparameters, sort_keys=True), **provenance(job.place.device),
    )  # fmt: skip


@functools.cache
def provenance(device: str) -> dict[str, Any]:
    """Versions, commit and device of this run."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else ""
    return {
        "version": importlib.metadata.version("razorbench"),
        "commit": _commit(),
        "torch": torch.__version__,
        "device": f"{kind}: {name}" if name else kind,
    }


def _commit() -> str:
    """The commit of this source tree, '' where it is no checkout; a '+' marks changes not committed."""
    here = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed.stdout.strip() else "")


def _subtract(made: Plan, jobs: list[Job], store: Store) -> None:
    """Leave the jobs whose rows are not in the store, each with its missing points only."""
    have = {key for key, row in store.get(made.expected).items() if row.status != "failed"}
    networks = Networks(made.place.cache / "networks")
    left = [dataclasses.replace(j, points=tuple(p for p in j.points if p.key not in have)) for j in jobs]
    waiting = [j for j in left if j.points and _prunes_dense(j) and not networks.has(j.network)]
    for job in waiting:
        made.blocked.setdefault(job.network, []).append(job)
    for job in left:
        if job.criterion is None:
            if job.points or job.network in made.blocked:
                made.ready.append(job)
        elif job.points and not (_prunes_dense(job) and job.network in made.blocked):
            made.ready.append(job)
    # Dense networks first, for others wait for them; then the longest, so that none is left running alone at the end.
    made.ready.sort(key=lambda job: (job.criterion is not None, -job.epochs))


def _prunes_dense(job: Job) -> bool:
    return job.criterion is not None and not job.trains_each


@dataclass(frozen=True)
class Progress:
    """What a caller may show: jobs done and in all, training epochs done and in all, labels of what is running, failures so far."""

    done: int
    jobs: int
    epochs_done: int
    epochs: int
    running: tuple[str, ...]
    failed: int


def run(
    made: Plan, store: Store, pool: executor.Local | executor.Inline | executor.Ray, show: Callable[[Progress], None] = lambda _: None
) -> None:
    """Do the jobs of a plan; every finished job's rows are in the store before the next is looked at."""
    jobs = made.jobs
    epochs, done, epochs_done, failed = sum(job.epochs for job in jobs), 0, 0, 0

    marks = made.place.cache / "progress"
    progress.forget(marks)

    def tick(running: list[Job]) -> None:
        show(Progress(done, len(jobs), epochs_done + progress.epochs_running(marks), epochs, tuple(job.label for job in running), failed))

    def finish(job: Job, result: Any) -> None:
        nonlocal done, epochs_done, failed
        rows = _rows(made, job, result)
        store.put(rows)
        done, epochs_done = done + 1, epochs_done + job.epochs
        failed += sum(row.status == "failed" for row in rows.values())

    def follow(job: Job, result: Any) -> list[Job]:
        """What waited for a dense network can start, or has failed with it."""
        waiting = made.blocked.pop(job.network, []) if job.criterion is None else []
        error = _why_failed(result)
        if not error:
            return waiting
        for other in waiting:
            finish(other, executor.Lost(f"its dense network failed: {error}"))
        return []

    for job, result in pool.run(trial.execute, made.ready, follow=follow, tick=tick):
        finish(job, result)
    tick([])


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

    Rows are shared between suites; the suite's name is that of the plan.
    """
    found = store.get(made.expected)
    rows = [dataclasses.replace(found[key], suite=blank.suite, method=blank.method) for key, blank in made.expected.items() if key in found]
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


def check_granularity(name: str) -> None:
    """UserError where no granularity of that name is registered."""
    if name not in methods.names("granularities"):
        raise unknown("granularity", name, methods.names("granularities"))
