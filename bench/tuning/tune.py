"""Tuning on validation data, with the same number of trials for every method: the optuna door.

Training configurations come from a pool for each (training, data set, architecture), see `bench.pools`. Every method has a study:
jointly, a member of the pool, its own hyperparameters and the learning rate of fine-tuning, by the area under the PRUNED validation
accuracy over the suite's sparsities, averaged over fine-tuning lengths. The dense accuracy must not decide: the weight decay that
prunes best is not the one that trains best. How trials are spent, and which candidate is believed: `bench.selection`.

A study lives in the store's database under the digest of all that decides it, a trial of it once it is measured. The k-th candidate
is drawn by a sampler seeded by the names of suite, block and method and by k, and learns from the k before it alone: so a study that
was killed and resumed is the one that was not, and draws are the same on every release.
"""

import base64
import contextlib
import dataclasses
import functools
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import methods
from bench.spec.setting import Search, Setting
from bench.storage.checkpoints import Networks
from bench.storage.rows import insistent
from bench.trial import heartbeat, trial
from bench.trial.job import Job
from bench.trial.workbench import Workbench
from bench.tuning import selection
from bench.tuning.selection import Measured
from bench.tuning.study import Study
from methods import Range, Stage, derive

if TYPE_CHECKING:
    import optuna

LR_SCALE = Range(0.03, 0.5, log=True)  # of fine-tuning's learning rate, as a factor of the training's
STARTUP = 5  # trials drawn at random before TPE learns from them
PATIENCE = 4  # trials before one may be given up for lagging behind the median of the others


def search(study: Study) -> Setting:
    """Do what is left of a study."""
    for plugin in study.job.environment.plugins:
        methods.load_plugin(plugin)
    trials, done = _Trials(study, _open(study)), 0

    def next_one() -> None:
        nonlocal done
        done += 1
        heartbeat.carried = (done * study.job.epochs, done * len(study.job.points))

    heartbeat.carried = (0, 0)
    for k in range(study.rounds.screened):
        if trials.candidate(k) is None:
            trials.add(_screened(study, trials, k))
        next_one()
    for seed in range(1, study.rounds.further + 1):
        for values in trials.confirmed():
            if trials.measured(values, seed) is None:
                trials.add(_confirmed(study, values, seed))
            next_one()
    heartbeat.carried = (0, 0)
    return trials.found()


def found(study: Study) -> Setting | None:
    """What a study with all its trials has chosen; None for an unfinished one. Leaves the store as it is."""
    import optuna

    try:
        opened = optuna.load_study(study_name=study.name, storage=_database(study.storage))
    except KeyError:
        return None
    trials = _Trials(study, opened)
    return trials.found() if trials.complete() else None


def forget(study: Study) -> None:
    """Remove the trials of a study from the store."""
    import optuna

    with contextlib.suppress(KeyError):
        optuna.delete_study(study_name=study.name, storage=_database(study.storage))


class _Trials:
    """The trials of a study that are in the store. Where two runs have measured the same one, the first counts."""

    def __init__(self, study: Study, opened: "optuna.Study") -> None:
        self._study, self._opened = study, opened
        self._all = opened.get_trials(deepcopy=False)

    def add(self, done: "optuna.trial.FrozenTrial") -> None:
        """Keep one more."""
        import optuna

        insistent(lambda: self._opened.add_trial(done), optuna.exceptions.StorageInternalError)
        self._all = self._opened.get_trials(deepcopy=False)

    def candidate(self, k: int) -> "optuna.trial.FrozenTrial | None":
        """The trial of the k-th candidate on the first seed."""
        return next((t for t in self._all if t.user_attrs.get("candidate") == k), None)

    def screening(self, count: int) -> "list[optuna.trial.FrozenTrial]":
        """Those of the first so many candidates that are there, in order."""
        return [t for k in range(count) if (t := self.candidate(k)) is not None]

    def measured(self, values: dict[str, Any], seed: int) -> "optuna.trial.FrozenTrial | None":
        """The trial of a candidate on a seed, if it was brought to its end."""
        return next((t for t in self._all if _is_whole(t) and t.params == values and t.user_attrs["seed"] == seed), None)

    def finalists(self) -> list[dict[str, Any]]:
        """The best candidates beside the defaults, in order.

        A trial that was given up has been measured in part only: it cannot win.
        """
        plan, defaults = self._study.rounds, self._study.defaults()
        whole = [t for t in self.screening(plan.screened) if _is_whole(t) and t.params != defaults]
        ranked = [t.params for t in sorted(whole, key=lambda t: -float(t.value or 0.0))]
        return [values for k, values in enumerate(ranked) if values not in ranked[:k]][: plan.finalists or 1]

    def confirmed(self) -> list[dict[str, Any]]:
        """The candidates that are measured on further seeds, where there are any."""
        return [self._study.defaults(), *self.finalists()]

    def complete(self) -> bool:
        """Whether there is nothing left to measure."""
        plan = self._study.rounds
        if len(self.screening(plan.screened)) < plan.screened:
            return False
        return all(self.measured(values, seed) for values in self.confirmed() for seed in range(1, plan.further + 1))

    def found(self) -> Setting:
        """What a complete study chooses: the defaults, unless a finalist is believed to be better."""
        study, plan = self._study, self._study.rounds
        values = study.defaults()
        best = defaults = self._sequence(values)
        most = 0.0
        for candidate in self.finalists():
            sequence = self._sequence(candidate)
            gain = selection.gain(sequence, defaults)
            if gain.believed and gain.mean > most:
                values, best, most = candidate, sequence, gain.mean
        further = [self.measured(v, seed) for v in self.confirmed() for seed in range(1, plan.further + 1)]
        spent = [*self.screening(plan.screened), *(t for t in further if t is not None)]
        winner = self.measured(values, 0)
        assert winner is not None
        epochs = sum(int(t.user_attrs["epochs"]) for t in spent)
        chosen = study.setting(values, winner.user_attrs["training"])
        return dataclasses.replace(chosen, search=Search(len(spent), epochs, _mean(defaults), _mean(best)))

    def _sequence(self, values: dict[str, Any]) -> list[Measured]:
        """A candidate's measurements, that of the first seed first."""
        found = [self.measured(values, seed) for seed in range(self._study.rounds.further + 1)]
        return [Measured(float(t.value or 0.0), _unpacked(t.user_attrs["samples"])) for t in found if t is not None]


def _is_whole(trial: "optuna.trial.FrozenTrial") -> bool:
    import optuna

    return trial.state == optuna.trial.TrialState.COMPLETE


def _mean(sequence: list[Measured]) -> float:
    """Over the further seeds where there are any, as `selection.gain` takes it."""
    used = sequence[1:] or sequence
    return sum(m.value for m in used) / len(used)


def _screened(study: Study, trials: _Trials, k: int) -> "optuna.trial.FrozenTrial":
    """The k-th candidate, drawn in the knowledge of those before it, and measured on the first seed."""
    import optuna

    memory = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=derive(study.seed, "trial", str(k)) % 2**31, n_startup_trials=STARTUP),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=PATIENCE),
    )
    memory.add_trials(trials.screening(k))
    if k == 0:
        memory.enqueue_trial(study.defaults())
    asked = memory.ask(_distributions(study))
    values = study.candidate(asked.params)
    twin = trials.measured(values, 0)
    outcome = _repeated(twin) if twin is not None else _measure(study, values, 0, asked)
    # Where it was given up: how far it had come, which the next ones are compared with.
    seen = memory.trials[-1].intermediate_values
    return _trial(study, values, outcome, {"candidate": k}, seen)


def _confirmed(study: Study, values: dict[str, Any], seed: int) -> "optuna.trial.FrozenTrial":
    """A candidate measured on a further seed."""
    return _trial(study, values, _measure(study, values, seed, None), {}, {})


def _trial(
    study: Study, values: dict[str, Any], outcome: "_Outcome", more: dict[str, Any], seen: dict[int, float]
) -> "optuna.trial.FrozenTrial":  # fmt: skip
    import optuna

    given_up = outcome.value is None
    return optuna.trial.create_trial(
        params=values, distributions=_distributions(study), user_attrs=outcome.attributes | more, intermediate_values=seen,
        state=optuna.trial.TrialState.PRUNED if given_up else optuna.trial.TrialState.COMPLETE,
        value=seen[max(seen)] if given_up else outcome.value,  # as Optuna itself keeps it
    )  # fmt: skip


@dataclass(frozen=True)
class _Outcome:
    """What a trial has given: its value, None where it was given up, and what is kept beside it."""

    value: float | None
    attributes: dict[str, Any]


def _repeated(twin: "optuna.trial.FrozenTrial") -> _Outcome:
    """What was measured already is not measured again, and costs nothing."""
    return _Outcome(twin.value, {**twin.user_attrs, "epochs": 0, "seconds": 0.0})


def _measure(study: Study, values: dict[str, Any], seed: int, asked: "optuna.Trial | None") -> _Outcome:
    """One candidate on one seed: the mean over fine-tuning lengths of the area under its accuracy; what fails counts as 0.

    `asked`: may be given up for lagging behind others; where None it is brought to its end.
    """
    member, start = study.member(values), time.perf_counter()
    if member is None:
        return _Outcome(0.0, {"seed": seed, "epochs": 0, "seconds": 0.0, "training": {}, "samples": _packed(np.zeros(0))})
    job = study.job_of(values, member, seed)
    if job.stage is Stage.AFTER:
        _train_missing(study.network_job(member, seed))
    bench = Workbench(job)
    weight = selection.weights(job.sparsities)
    lengths = len({point.finetune_epochs for point in job.points})
    value, samples, accuracies = 0.0, np.zeros(len(bench.dataset.validation)), list[float]()

    def outcome(value: float | None) -> _Outcome:
        spent = {"seed": seed, "epochs": bench.heartbeat.epochs, "seconds": time.perf_counter() - start}
        return _Outcome(value, {**spent, "training": member.training, "samples": _packed(samples)})

    for point, measurement in trial.stream(job, bench):
        accuracy = measurement.get("accuracy") or 0.0
        accuracies.append(accuracy)
        value += weight[point.sparsity] * accuracy / lengths
        if "hits" in measurement:
            samples += weight[point.sparsity] * measurement["hits"].double().numpy() / lengths
        # Only what trains a network for every sparsity saves time by stopping early; the trial is spent all the same.
        if asked is not None and job.trains_each and len(accuracies) < len(job.points):
            asked.report(sum(accuracies) / len(accuracies), len(accuracies))
            if asked.should_prune():
                return outcome(None)
    return outcome(value)


def _train_missing(job: Job) -> None:
    """Train a dense network where nobody has tried; that it cannot be trained is said where it is looked for."""
    networks = Networks(job.environment.cache / "networks")
    if not networks.has(job.network) and not networks.failed(job.network):
        trial.execute(job)


def _packed(samples: np.ndarray) -> str:
    """What each sample adds, in 255ths: for its variance that is fine enough."""
    return base64.b64encode(zlib.compress(np.round(255 * samples).astype(np.uint8).tobytes())).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8) / 255


@functools.cache
def _database(url: str) -> "optuna.storages.RDBStorage":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Two workers that write to one SQLite file wait for each other.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return insistent(lambda: optuna.storages.RDBStorage(url, engine_kwargs=options), optuna.exceptions.StorageInternalError)


def _open(study: Study) -> "optuna.Study":
    import optuna

    storage = _database(study.storage)
    return insistent(
        lambda: optuna.create_study(study_name=study.name, storage=storage, direction="maximize", load_if_exists=True),
        optuna.exceptions.StorageInternalError,
    )


def _distributions(study: Study) -> "dict[str, optuna.distributions.BaseDistribution]":
    from optuna.distributions import CategoricalDistribution

    made: dict[str, Any] = {"training": CategoricalDistribution(tuple(range(study.draws)))}
    made |= {f"criterion.{name}": _distribution(allowed) for name, allowed in study.space.items()}
    if not study.finetunes:
        return made
    own = study.job.finetune_lr_scale  # which a suite may set beyond the range
    scale = dataclasses.replace(LR_SCALE, low=min(LR_SCALE.low, own), high=max(LR_SCALE.high, own))
    return made | {"finetune_lr_scale": _distribution(scale)}


def _distribution(allowed: Range) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if allowed.choices:
        return CategoricalDistribution(allowed.choices)
    if allowed.integer:
        return IntDistribution(int(allowed.low), int(allowed.high), log=allowed.log)
    return FloatDistribution(allowed.low, allowed.high, log=allowed.log)
