"""Tuning on validation data, with the same number of trials for every method: the optuna door.

Two steps. Training configurations come from a pool for each (training, data set, architecture), drawn once and the same for all
methods that train so; each is trained once, on the tuning seed. Then every method has a study: jointly, a member of the pool, its
own hyperparameters and the learning rate of fine-tuning, by the mean PRUNED validation accuracy over the suite's
sparsities and fine-tuning lengths. The dense accuracy must not decide: the weight decay that prunes best is not the one that trains best.

The first trial of a study is the declared defaults. A study lives in the store's database under the digest of all that decides
it. Its k-th trial is drawn by a sampler seeded with k, so that a study that was killed and resumed is the one that was not.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.quasirandom import SobolEngine

import methods
from bench import progress, trial
from bench.job import Configured, Job
from methods import Range, Training, derive, ranges

if TYPE_CHECKING:
    import optuna

LR_SCALE = Range(0.01, 1.0, log=True)  # of fine-tuning's learning rate, as a factor of the training's
STARTUP = 5  # trials drawn at random before TPE learns from them
PATIENCE = 4  # trials before one may be given up for lagging behind the median of the others


@dataclass(frozen=True)
class Member:
    """One of the pool: hyperparameters of a training, and the key of the network trained with them on the tuning seed."""

    training: Configured
    network: str


@dataclass(frozen=True)
class Chosen:
    """What a study has found: values by name, and the learning rate of fine-tuning, None where nothing is fine-tuned."""

    training: dict[str, Any]
    criterion: dict[str, Any]
    finetune_lr_scale: float | None


@dataclass(frozen=True)
class Found:
    """The end of a study: its best trial, the value of the defaults and of the best, and what the search has cost."""

    chosen: Chosen
    default_accuracy: float
    accuracy: float
    trials: int
    epochs: int
    seconds: float

    @property
    def summary(self) -> dict[str, Any]:
        """What a row says of its tuning: nothing that differs between two runs of it."""
        return {"trials": self.trials, "epochs": self.epochs, "validation": {"default": self.default_accuracy, "tuned": self.accuracy}}


@dataclass(frozen=True, kw_only=True)
class Study:
    """The search of one method on one data set and architecture: plain values, so that any worker can do it.

    `job`: the method at its defaults on the tuning seed, measured on validation data at all sparsities and fine-tuning lengths.
    `space`: the criterion's hyperparameters that may be chosen. `seed` decides the draws. `plugins` are the job's.
    """

    key: str
    storage: str
    trials: int
    seed: int
    pool: tuple[Member, ...]
    job: Job
    space: dict[str, Range]

    @property
    def label(self) -> str:
        """What a person reads while it runs."""
        return f"tuning {self.job.method} · {self.job.dataset}/{self.job.architecture}"

    @property
    def name(self) -> str:
        """Under which Optuna keeps it."""
        return f"{self.job.method}-{self.job.dataset}-{self.job.architecture}-{self.key[:16]}"

    @property
    def cell(self) -> tuple[str, str, str]:
        """Its data set, architecture and method."""
        return self.job.dataset, self.job.architecture, self.job.method

    @property
    def epochs(self) -> int:
        """Training epochs in it at most."""
        return self.trials * self.job.epochs

    @property
    def finetunes(self) -> bool:
        """Whether there is a learning rate of fine-tuning to choose."""
        return any(point.finetune_epochs for point in self.job.points)

    def defaults(self) -> dict[str, Any]:
        """The first trial."""
        assert self.job.criterion is not None
        own = {f"criterion.{name}": self.job.criterion.hyperparameters[name] for name in self.space}
        scale = {"finetune_lr_scale": self.job.protocol.finetune_lr_scale} if self.finetunes else {}
        return {"training": 0, **own, **scale}

    def chosen(self, values: dict[str, Any]) -> Chosen:
        """The hyperparameters that a trial's values mean."""
        assert self.job.criterion is not None
        own = {name.removeprefix("criterion."): value for name, value in values.items() if name.startswith("criterion.")}
        training = self.pool[values["training"]].training.hyperparameters
        return Chosen(training, {**self.job.criterion.hyperparameters, **own}, values.get("finetune_lr_scale"))

    def job_of(self, values: dict[str, Any]) -> Job:
        """The job that measures a trial."""
        member, chosen, job = self.pool[values["training"]], self.chosen(values), self.job
        assert job.criterion is not None
        scale = chosen.finetune_lr_scale
        protocol = job.protocol if scale is None else dataclasses.replace(job.protocol, finetune_lr_scale=scale)
        criterion = Configured(job.criterion.name, chosen.criterion)
        return dataclasses.replace(job, training=member.training, network=member.network, criterion=criterion, protocol=protocol)


def tunable(cls: type[methods.Configuration], fixed: dict[str, Any]) -> dict[str, Range]:
    """The hyperparameters a search may choose: those not fixed by the method's name, and not methods of their own."""
    return {name: allowed for name, allowed in ranges(cls).items() if allowed.tuned and name not in fixed}


def pool(training: Training, fixed: dict[str, Any], size: int, seed: int) -> list[dict[str, Any]]:
    """`size` configurations of a training: its defaults, and points of a Sobol sequence in its ranges, scrambled by the seed."""
    defaults = {name: getattr(training, name) for name in ranges(training)}
    free = tunable(type(training), fixed)
    if not free or size == 1:
        return [defaults]
    draws = SobolEngine(len(free), scramble=True, seed=derive(seed, "pool", training.name) % 2**31).draw(size - 1).tolist()
    return [defaults, *({**defaults, **{n: r.at(u) for (n, r), u in zip(free.items(), row, strict=True)}} for row in draws)]


def search(study: Study) -> Found:
    """Do what is left of a study. Trials that a killed run left open are given up, and drawn again with the same seed."""
    import optuna

    for plugin in study.job.place.plugins:
        methods.load_plugin(plugin)
    opened = _open(study)
    progress.carried = 0
    for stale in opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        opened.tell(stale.number, state=optuna.trial.TrialState.FAIL)
    while (k := len(_finished(opened))) < study.trials:
        opened.sampler = optuna.samplers.TPESampler(seed=derive(study.seed, "trial", str(k)) % 2**31, n_startup_trials=STARTUP)
        if k == 0 and not opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
            opened.enqueue_trial(study.defaults())
        _run(study, opened, opened.ask(_distributions(study)))
        progress.carried += study.job.epochs
    progress.carried = 0
    return _found(study, opened)


def found(study: Study) -> Found | None:
    """The end of a study that has all its trials; None for one that has not. Leaves the store as it is."""
    import optuna

    try:
        opened = optuna.load_study(study_name=study.name, storage=_database(study.storage))
    except KeyError:
        return None
    return _found(study, opened) if len(_finished(opened)) >= study.trials else None


def _run(study: Study, opened: "optuna.Study", asked: "optuna.Trial") -> None:
    """Measure one trial: mean accuracy over its points, a failed one counting as 0; what was measured before is not measured again."""
    import optuna

    twin = next((t for t in _finished(opened) if t.params == asked.params and t.state == optuna.trial.TrialState.COMPLETE), None)
    if twin is not None:
        opened.tell(asked, twin.value)
        return
    job, start = study.job_of(asked.params), time.perf_counter()
    asked.set_user_attr("epochs", job.epochs)
    accuracies: list[float] = []
    for accuracies in _accuracies(job):
        # Only what trains a network for every sparsity saves time by stopping early; the trial is spent all the same.
        if job.trains_each and len(accuracies) < len(job.points):
            asked.report(sum(accuracies) / len(accuracies), len(accuracies))
            if asked.should_prune():
                asked.set_user_attr("seconds", time.perf_counter() - start)
                opened.tell(asked, state=optuna.trial.TrialState.PRUNED)
                return
    asked.set_user_attr("seconds", time.perf_counter() - start)
    opened.tell(asked, sum(accuracies) / len(accuracies))


def _accuracies(job: Job) -> Iterator[list[float]]:
    """The accuracies measured so far, after each point."""
    measured: list[float] = []
    for _, measurement in trial.stream(job):
        measured.append(measurement.get("accuracy") or 0.0)
        yield measured


@functools.cache
def _database(url: str) -> "optuna.storages.RDBStorage":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Two workers that write to one SQLite file wait for each other.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _open(study: Study) -> "optuna.Study":
    import optuna

    return optuna.create_study(
        study_name=study.name,
        storage=_database(study.storage),
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=PATIENCE),
    )


def _finished(opened: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    import optuna

    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return opened.get_trials(deepcopy=False, states=done)


def _found(study: Study, opened: "optuna.Study") -> Found:
    """From the first trials that the study asks for: a study may have more, from a request for more."""
    done = _finished(opened)[: study.trials]
    complete = [t for t in done if t.value is not None]
    best = max(complete, key=lambda t: float(t.value or 0.0))  # the first of equals: the defaults, where nothing beats them
    spent = [int(t.user_attrs.get("epochs", 0)) for t in done], [float(t.user_attrs.get("seconds", 0.0)) for t in done]
    return Found(
        study.chosen(best.params), float(complete[0].value or 0.0), float(best.value or 0.0), len(done), sum(spent[0]), sum(spent[1])
    )


def _distributions(study: Study) -> "dict[str, optuna.distributions.BaseDistribution]":
    from optuna.distributions import CategoricalDistribution

    made: dict[str, Any] = {"training": CategoricalDistribution(tuple(range(len(study.pool))))}
    made |= {f"criterion.{name}": _distribution(allowed) for name, allowed in study.space.items()}
    return made | ({"finetune_lr_scale": _distribution(LR_SCALE)} if study.finetunes else {})


def _distribution(allowed: Range) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if allowed.choices:
        return CategoricalDistribution(allowed.choices)
    if allowed.integer:
        return IntDistribution(int(allowed.low), int(allowed.high), log=allowed.log)
    return FloatDistribution(allowed.low, allowed.high, log=allowed.log)
