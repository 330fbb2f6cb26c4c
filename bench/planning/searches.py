"""The searches of a request, and the networks of their pools."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import methods
from bench.planning.cells import Cell, cells, hyperparameters_of
from bench.planning.plan import Plan, planned
from bench.planning.request import Request
from bench.spec.digest import digest
from bench.spec.row import DENSE
from bench.spec.setting import Setting
from bench.storage.checkpoints import Networks
from bench.trial.job import Job, Point
from bench.tuning import pools, tune
from bench.tuning.pools import Member
from bench.tuning.study import Study
from methods import Method, Stage


def searches(request: Request, storage: str) -> tuple[Plan, list[Study]]:
    """The pool networks to train on the first tuning seed, and the study of each method on each data set and architecture.

    The members of a pool depend on the dense accuracy of their networks. After training the networks of the plan, call this function
    again; when the plan is empty, the studies are final.

    Args:
        request: what to tune; `request.tuned` is ignored.
        storage: URL of the database with the studies.
    """
    made, studies = Plan(request.environment, timeout=request.suite.timeout), []
    networks = Networks(request.environment.cache / "networks")
    trainings: dict[str, Job] = {}
    every = list(cells(request, request.suite.seeds_of_tuning, made.notes))
    for block in zip(*(every[k :: request.suite.tuning_seeds] for k in range(request.suite.tuning_seeds)), strict=True):
        if not request.suite.trials_of(block[0].dataset, block[0].architecture):
            continue
        for method in request.methods:
            members = _pool(block, method, networks)
            for member in members:
                key = member.networks[0]
                if not networks.has(key) and not networks.failed(key):
                    trainings[key] = _dense_job(block[0], method, member)
            studies.append(_study(block, method, members, storage))
    made.ready = list(trainings.values())
    return made, studies


def _dense_job(cell: Cell, method: Method, member: Member) -> Job:
    """The job that trains the network of a pool member; it has no points to measure."""
    named = {"method": f"{DENSE}@{method.training}", "training": method.training, "criterion": "", "stage": ""}
    return planned(cell, named, Setting(member.training), member.networks[0], ()).job


def _pool(block: Sequence[Cell], method: Method, networks: Networks) -> tuple[Member, ...]:
    """The training configurations that a method may choose from. `block`: the cells of a data set and architecture, one per tuning seed."""
    suite = block[0].request.suite

    def accuracy(hyperparameters: dict[str, Any]) -> float | None:
        key = block[0].network(method.training, hyperparameters)
        facts = networks.facts(key)
        return -1.0 if networks.failed(key) else None if facts is None else float(facts["validation_accuracy"])

    draws = pools.drawn(method.make_training(), dict(method.training_options), suite.tuning_seed)
    return tuple(
        Member(k, hyperparameters, tuple(cell.network(method.training, hyperparameters) for cell in block))
        for k, hyperparameters in pools.choose(draws, suite.pool, accuracy)
    )


def _study(block: Sequence[Cell], method: Method, members: tuple[Member, ...], storage: str) -> Study:
    """The study of a method. Its key contains what is known before training; the members of the pool follow from it."""
    cell, suite = block[0], block[0].request.suite
    criterion = hyperparameters_of(method.make_criterion())
    space = pools.tunable(methods.lookup("criteria", method.criterion), dict(method.options))
    sparsities, finetunings = suite.extent(early=method.stage is not Stage.AFTER)
    points = tuple(Point(s, f, f"{s}/{f}") for s in sparsities for f in finetunings)
    drawn_by = "/".join([suite.name, cell.dataset, cell.architecture, method.name])
    ranges = pools.tunable(type(method.make_training()), dict(method.training_options))
    decided = {
        **cell.decided(method, criterion), "networks": members[0].networks, "pool": suite.pool,
        "ranges": {n: str(r) for n, r in ranges.items()},
        "space": {n: str(r) for n, r in space.items()}, "points": [p.key for p in points],
        "finetune_lr_scale": cell.protocol.finetune_lr_scale, "drawn_by": drawn_by, "search": methods.source_hash(tune, pools),
        "optuna": importlib.metadata.version("optuna"),
    }  # fmt: skip
    if cell.request.environment.stack > 1:
        decided["stack"] = cell.request.environment.stack
    return Study(
        key=digest(decided), storage=storage, trials=suite.trials_of(cell.dataset, cell.architecture), seed=methods.derive(0, drawn_by),
        pool=members, draws=pools.MOST * suite.pool, jobs=_jobs(block, method, members[0], criterion, points), space=space,
    )  # fmt: skip


def _jobs(
    block: Sequence[Cell], method: Method, first: Member, criterion: dict[str, Any], points: tuple[Point, ...]
) -> tuple[Job, ...]:  # fmt: skip
    """The method with default hyperparameters, measured on validation data: one job per tuning seed."""
    named = {"method": method.name, "training": method.training, "criterion": method.criterion, "stage": str(method.stage)}
    schedule = None if method.schedule is None else method.schedule.as_dict()
    setting = Setting(first.training, criterion, schedule, block[0].protocol.finetune_lr_scale)
    return tuple(
        planned(cell, named, setting, network, points, split="validation").job for cell, network in zip(block, first.networks, strict=True)
    )
