"""From a request to jobs: expand the cells, name each result by the digest of all that decides it, subtract what the store has.

What decides: data, splits, protocol, hyperparameters, seed, the network's tensors, the code that a job executes and that of the method's
files, versions of packages, kind of device, threads. So a killed run continues, a repeated run costs nothing, and edited code is
computed anew.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError

import methods
from bench import data
from bench.networks import build
from bench.spec.digest import digest
from bench.spec.errors import UserError, unknown
from bench.spec.row import DENSE, MATCHES, PROTOCOL_VERSION, Row
from bench.spec.suite import Protocol, Suite, first_fault
from bench.storage.checkpoints import Networks
from bench.storage.rows import Store
from bench.trial import trial, workbench
from bench.trial.job import Configured, Job, Place, Point
from bench.trial.provenance import provenance, versions
from bench.tuning import pools, tune
from bench.tuning.pools import Member
from bench.tuning.study import Chosen, Found, Study
from methods import Method, Stage


@dataclass(frozen=True)
class Request:
    """What to run: a suite (already narrowed by the command line), the methods, their controls, and where.

    `tuned`: (data set, architecture, method) -> what tuning has found; with it, the rows are those of the tuned methods.
    """

    suite: Suite
    methods: tuple[Method, ...]
    place: Place
    ablations: tuple[str, ...] = ()
    tuned: dict[tuple[str, str, str], Found] | None = None


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
        build.describe(name)
    blocks = [{"dataset": d, "architectures": chosen or own.get(d, every)} for d in datasets or own]
    try:
        return Suite.model_validate(suite.model_dump() | {"blocks": blocks} | {k: v for k, v in changes.items() if v is not None})
    except ValidationError as error:
        raise UserError(first_fault(error, Suite)) from None


def plan(request: Request, store: Store) -> Plan:
    """Expand the request and subtract what the store has. Loads each data set once, for its fingerprint."""
    made = Plan(request.place)
    every = jobs(request, made.notes)
    for job in every:
        made.expected |= {point.key: blank(request, job, point) for point in job.points}
    _subtract(made, every, store)
    return made


def jobs(request: Request, notes: list[str] | None = None) -> list[Job]:
    """All jobs of a request, dense networks before what prunes them, whatever the store has.

    `notes`: takes in what nothing can be run for. UserError where that is everything.
    """
    notes = notes if notes is not None else []
    made = [job for cell in _cells(request, request.suite.seeds, notes) for job in _jobs_of(cell)]
    if not made:
        raise UserError("nothing to run: " + "; ".join(notes))
    return made


@dataclass(frozen=True)
class _Cell:
    """A block and seed of a request. `common`: what decides every result in it, whatever the method."""

    request: Request
    dataset: str
    architecture: str
    protocol: Protocol
    seed: int
    common: dict[str, Any]

    def network(self, training: Configured) -> str:
        """The key of the dense network of one training configuration."""
        source = methods.source_hash(trial, methods.lookup("trainings", training.name))
        return digest({**self.common, "training": training.name, "hyperparameters": training.hyperparameters, "source": source})

    def chosen(self, method: Method) -> Chosen | None:
        """What tuning has found for a method here: the defaults where this request is not of tuned methods."""
        if self.request.tuned is None:
            return Chosen({}, {}, None)
        found = self.request.tuned.get((self.dataset, self.architecture, method.name))
        return found.chosen if found else None

    def job(self, training: Configured, **own: Any) -> Job:
        """A job of this cell."""
        request = self.request
        return Job(
            dataset=self.dataset, architecture=self.architecture, seed=self.seed, training=training, network=self.network(training),
            granularity=request.suite.granularity, match=request.suite.match, place=request.place, **{"protocol": self.protocol, **own},
        )  # fmt: skip


def _cells(request: Request, seeds: Iterable[int], notes: list[str]) -> Iterator[_Cell]:
    """Every block and seed; blocks that cannot be are said in the notes."""
    for dataset, architecture in ((b.dataset, a) for b in request.suite.blocks for a in b.architectures):
        protocol = request.suite.protocol(architecture)
        loaded = workbench.load_data(dataset, protocol, dataclasses.replace(request.place, device="cpu"))
        if not build.accepts(architecture, loaded.input_shape):
            shape = "x".join(map(str, loaded.input_shape))
            notes.append(f"{architecture} does not take {dataset} (inputs of shape {shape}): left out")
            continue
        if protocol.pretrained:  # weights that cannot be had are said before anything runs
            build.create(architecture, loaded.input_shape, loaded.classes, pretrained=True)
        common = _common(request, protocol, loaded.fingerprint, architecture)
        common["tensors"] = workbench.tensors(architecture, loaded.input_shape, loaded.classes)
        for seed in seeds:
            yield _Cell(request, dataset, architecture, protocol, seed, {**common, "seed": seed})


def _common(request: Request, protocol: Protocol, fingerprint: str, architecture: str) -> dict[str, Any]:
    decides = dataclasses.asdict(protocol)
    del decides["finetune_lr_scale"]  # no part of a dense network: see `_finetuning`
    return {
        "protocol": decides,
        "version": PROTOCOL_VERSION,
        "data": fingerprint,
        "architecture": architecture,
        "torch": torch.__version__,
        "packages": versions(),
        "device": torch.device(request.place.device).type,
        "threads": request.place.threads,
    }


def _jobs_of(cell: _Cell) -> list[Job]:
    """All jobs of one block and seed: dense networks, then each method with its controls."""
    jobs: list[Job] = []
    dense: dict[str, Job] = {}
    for method in cell.request.methods:
        chosen = cell.chosen(method)
        if chosen is None:
            continue
        job = _dense_job(cell, method, chosen)
        dense.setdefault(job.network, job)
        for ablation in ("none", *cell.request.ablations):
            jobs.extend(_method_jobs(cell, method, chosen, ablation))
    return [*dense.values(), *jobs]


def _dense_job(cell: _Cell, method: Method, chosen: Chosen) -> Job:
    training = Configured(method.training, hyperparameters_of(method.make_training(**chosen.training)))
    return cell.job(
        training, method=dense_name(training.name, training.hyperparameters), criterion=None, stage=None,
        points=tuple(
            Point(0.0, f, digest({"network": cell.network(training), **_finetuning(cell.protocol, f)}))
            for f in cell.request.suite.finetune_epochs
        ),
    )  # fmt: skip


def dense_name(training: str, hyperparameters: dict[str, Any]) -> str:
    """What the rows of a dense network are called: `dense`, or `dense@training(what is not at its default)`."""
    plain = hyperparameters_of(methods.make("trainings", training, {}))
    options = ",".join(f"{k}={v}" for k, v in hyperparameters.items() if v != plain[k])
    variant = f"{training}({options})" if options else training
    return DENSE if variant == "map" else f"{DENSE}@{variant}"


def _finetuning(protocol: Protocol, epochs: int) -> dict[str, Any]:
    """What decides the fine-tuning of a network."""
    return {"finetune_epochs": epochs, "finetune_lr_scale": protocol.finetune_lr_scale if epochs else None}


def _method_jobs(cell: _Cell, method: Method, chosen: Chosen, ablation: str) -> list[Job]:
    """The jobs of one method on one block and seed: one for all sparsities, or one for each where each is trained apart."""
    request, protocol = cell.request, cell.protocol
    training = Configured(method.training, hyperparameters_of(method.make_training(**chosen.training)))
    criterion = Configured(method.criterion, hyperparameters_of(method.make_criterion(**chosen.criterion)))
    if chosen.finetune_lr_scale is not None:
        protocol = dataclasses.replace(protocol, finetune_lr_scale=chosen.finetune_lr_scale)
    decided = {"network": cell.network(training), **_decided(cell, method, criterion)}
    if ablation != "none":
        decided["ablation"] = ablation
    sparsities = request.suite.sparsities
    return [
        cell.job(
            training, protocol=protocol, method=method.name, criterion=criterion, stage=method.stage, schedule=method.schedule,
            ablation=ablation,
            points=tuple(
                Point(s, f, digest({**decided, "sparsity": s, **_finetuning(protocol, f)}))
                for s in group
                for f in request.suite.finetune_epochs
            ),
        )
        for group in ([sparsities] if method.stage is Stage.AFTER else [(s,) for s in sparsities])
    ]  # fmt: skip


def _decided(cell: _Cell, method: Method, criterion: Configured) -> dict[str, Any]:
    """What decides a method's results beside its dense network."""
    suite = cell.request.suite
    classes = methods.lookup("criteria", criterion.name), type(methods.get_granularity(suite.granularity))
    decided = {
        "method": method.name, "stage": method.stage, "granularity": suite.granularity, "match": suite.match, "criterion": criterion.name,
        "hyperparameters": criterion.hyperparameters, "source": methods.source_hash(trial, *classes),
    }  # fmt: skip
    return decided | ({"schedule": method.schedule.as_dict()} if method.schedule is not None else {})


def tuning(request: Request, storage: str) -> tuple[Plan, list[Study]]:
    """The pool networks to train on the first tuning seed, and the study of each method on each block. `storage`: where studies live.

    Members of a pool are chosen by what their networks are worth: once those of the plan are trained, ask again. With nothing left
    to train the studies are final.
    """
    made, studies = Plan(request.place), []
    networks = Networks(request.place.cache / "networks")
    trainings: dict[str, Job] = {}
    cells = list(_cells(request, request.suite.seeds_of_tuning, made.notes))
    for block in zip(*(cells[k :: request.suite.tuning_seeds] for k in range(request.suite.tuning_seeds)), strict=True):
        for method in request.methods:
            members = _pool(block, method, networks)
            for member in members:
                if not networks.has(member.networks[0]) and not networks.failed(member.networks[0]):
                    trainings[member.networks[0]] = block[0].job(
                        member.training, method=f"{DENSE}@{method.training}", criterion=None, stage=None, points=()
                    )  # fmt: skip
            studies.append(_study(block, method, members, storage))
    made.ready = list(trainings.values())
    return made, studies


def _pool(block: Sequence[_Cell], method: Method, networks: Networks) -> tuple[Member, ...]:
    """The training configurations that a method may choose from on a block: a cell for each tuning seed."""
    suite = block[0].request.suite

    def accuracy(hyperparameters: dict[str, Any]) -> float | None:
        key = block[0].network(Configured(method.training, hyperparameters))
        facts = networks.facts(key)
        return -1.0 if networks.failed(key) else None if facts is None else float(facts["validation_accuracy"])

    draws = pools.drawn(method.make_training(), dict(method.training_options), suite.tuning_seed)
    members = []
    for k, hyperparameters in pools.choose(draws, suite.pool, accuracy):
        training = Configured(method.training, hyperparameters)
        members.append(Member(k, training, tuple(cell.network(training) for cell in block)))
    return tuple(members)


def _study(block: Sequence[_Cell], method: Method, members: tuple[Member, ...], storage: str) -> Study:
    """Its key says what decides it before anything is trained: which members a pool has follows from that."""
    suite, first = block[0].request.suite, members[0].training
    criterion = Configured(method.criterion, hyperparameters_of(method.make_criterion()))
    space = pools.tunable(methods.lookup("criteria", method.criterion), dict(method.options))
    points = tuple(Point(s, f, f"{s}/{f}") for s in suite.sparsities for f in suite.finetune_epochs)
    jobs = tuple(
        cell.job(
            first, method=method.name, criterion=criterion, stage=method.stage, schedule=method.schedule, points=points, split="validation"
        )
        for cell in block
    )
    cell = block[0]
    drawn_by = "/".join([suite.name, cell.dataset, cell.architecture, method.name])
    ranges = pools.tunable(type(method.make_training()), dict(method.training_options))
    decided = {
        **_decided(cell, method, criterion), "networks": members[0].networks, "pool": suite.pool,
        "ranges": {n: str(r) for n, r in ranges.items()},
        "space": {n: str(r) for n, r in space.items()}, "points": [p.key for p in points],
        "finetune_lr_scale": cell.protocol.finetune_lr_scale, "drawn_by": drawn_by, "search": methods.source_hash(tune, pools),
        "optuna": importlib.metadata.version("optuna"),
    }  # fmt: skip
    return Study(
        key=digest(decided), storage=storage, trials=suite.trials, seed=methods.derive(0, drawn_by), pool=members,
        draws=pools.MOST * suite.pool, jobs=jobs, space=space,
    )  # fmt: skip


def hyperparameters_of(configuration: methods.Configuration) -> dict[str, Any]:
    """All hyperparameters with their values, the defaults too: what a row records."""
    return {name: getattr(configuration, name) for name in methods.ranges(configuration)}


def blank(request: Request, job: Job, point: Point) -> Row:
    """The row of one point before anything is measured: its cell, configuration and provenance."""
    hyperparameters = {"training": job.training.hyperparameters}
    if job.criterion is not None:
        hyperparameters["criterion"] = job.criterion.hyperparameters
    if job.schedule is not None:
        hyperparameters["schedule"] = job.schedule.as_dict()
    if point.finetune_epochs:
        hyperparameters["finetuning"] = {"lr_scale": job.protocol.finetune_lr_scale}
    found = (request.tuned or {}).get((job.dataset, job.architecture, job.method))
    if found is not None:
        hyperparameters["tuning"] = found.summary
    return Row(
        suite=request.suite.name, dataset=job.dataset, architecture=job.architecture, granularity=job.granularity,
        match=request.suite.match, method=job.method, criterion=job.criterion.name if job.criterion else "",
        training=job.training.name, stage=job.stage or "", tuning="default" if request.tuned is None else "tuned",
        ablation=job.ablation, sparsity=point.sparsity,
        seed=job.seed, epochs=job.training_epochs(point.sparsity), finetune_epochs=point.finetune_epochs, status="missing",
        hyperparameters=json.dumps(hyperparameters, sort_keys=True), **provenance(job.place.device, job.place.threads),
    )  # fmt: skip


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


def what_is_removed(suite: Suite, ablations: Iterable[str] = (), sparsities: Iterable[float] | None = None) -> Suite:
    """The suite at the one sparsity that its granularity has, where it has only one; otherwise as it is.

    UserError where there is no such granularity, or its match, the controls or the `sparsities` asked for do not go with it.
    """
    try:
        found = methods.get_granularity(suite.granularity)
    except ValueError as error:
        raise UserError(str(error)) from None
    if suite.match not in MATCHES:
        raise unknown("--match", suite.match, MATCHES)
    if suite.match != "weights" and not found.compacts:
        raise UserError(f"--match {suite.match} needs networks that become smaller: --granularity channel, not '{suite.granularity}'")
    only = found.fixed_sparsity
    if "shuffle" in ablations and (found.compacts or only is not None):
        raise UserError(f"--ablate shuffle permutes single weights: it goes with --granularity weight, not '{suite.granularity}'")
    if only is None:
        return suite
    if sparsities is not None and list(sparsities) != [only]:
        raise UserError(f"--sparsities does not apply: granularity '{suite.granularity}' has the sparsity {only:g}")
    return suite.model_copy(update={"sparsities": (only,)})
