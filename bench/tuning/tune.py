"""Tuning on validation data with Optuna, with the same number of trials for every method.

Training configurations are chosen from a pool per (training, data set, architecture), see `bench.tuning.pools`. A study is the search of
one method on one data set and architecture. It chooses a member of the pool, the method's own hyperparameters and the learning rate of
fine-tuning together. The criterion is the area under the accuracy-sparsity curve of the PRUNED network on validation data, averaged over
the numbers of fine-tuning epochs; not the dense accuracy, because the best weight decay for pruning is not the best one for training.
How trials are divided and what is selected: `bench.tuning.selection`.

A study is stored in the database of the store, under the digest of everything that determines it; each trial is stored when it is
measured. The k-th candidate is drawn by a sampler whose seed depends on the names of suite, data set, architecture and method and on k,
and that knows only the candidates before it. So an interrupted and resumed study gives the same result, and every release draws the
same candidates.
"""

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.networks import plugins
from bench.spec.setting import Setting
from bench.storage.checkpoints import Networks
from bench.trial import heartbeat, trial
from bench.trial.job import Job
from bench.trial.workbench import Workbench
from bench.tuning import selection
from bench.tuning.study import Study
from bench.tuning.trials import Trials, database, opened, packed
from methods import Range, Stage, derive

if TYPE_CHECKING:
    import optuna

LR_SCALE = Range(0.03, 0.5, log=True)  # learning rate of fine-tuning, as a fraction of the training's
STARTUP = 5  # number of random trials before the sampler (TPE) uses results
PATIENCE = 4  # number of trials before one may be stopped early because it is below the median of the others


def search(study: Study) -> Setting:
    """Run the missing trials of a study, and return the selected hyperparameters."""
    for plugin in study.job.environment.plugins:
        plugins.load(plugin)
    trials, done = Trials(study, opened(study)), 0

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
    """The hyperparameters that a complete study selects, or None for an incomplete one. Only reads the store."""
    import optuna

    try:
        existing = optuna.load_study(study_name=study.name, storage=database(study.storage))
    except KeyError:
        return None
    trials = Trials(study, existing)
    return trials.found() if trials.complete() else None


def _screened(study: Study, trials: Trials, k: int) -> "optuna.trial.FrozenTrial":
    """Draw the k-th candidate, given the results of those before it, and measure it on the first seed."""
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
    # The accuracies before it was stopped early; later candidates are compared with them.
    seen = memory.trials[-1].intermediate_values
    return _trial(study, values, outcome, {"candidate": k}, seen)


def _confirmed(study: Study, values: dict[str, Any], seed: int) -> "optuna.trial.FrozenTrial":
    """Measure a candidate on a further seed."""
    return _trial(study, values, _measure(study, values, seed, None), {}, {})


def _trial(
    study: Study, values: dict[str, Any], outcome: "_Outcome", more: dict[str, Any], seen: dict[int, float]
) -> "optuna.trial.FrozenTrial":  # fmt: skip
    import optuna

    given_up = outcome.value is None
    return optuna.trial.create_trial(
        params=values, distributions=_distributions(study), user_attrs=outcome.attributes | more, intermediate_values=seen,
        state=optuna.trial.TrialState.PRUNED if given_up else optuna.trial.TrialState.COMPLETE,
        value=seen[max(seen)] if given_up else outcome.value,  # as Optuna does
    )  # fmt: skip


@dataclass(frozen=True)
class _Outcome:
    """The result of a trial: its value (None if stopped early), and further values to store."""

    value: float | None
    attributes: dict[str, Any]


def _repeated(twin: "optuna.trial.FrozenTrial") -> _Outcome:
    """The result of a candidate that was measured before: no further epochs."""
    return _Outcome(twin.value, {**twin.user_attrs, "epochs": 0, "seconds": 0.0})


def _measure(study: Study, values: dict[str, Any], seed: int, asked: "optuna.Trial | None") -> _Outcome:
    """Measure one candidate on one seed: the area under its accuracy-sparsity curve, mean over the numbers of fine-tuning epochs.

    Failures count as accuracy 0. `asked`: the trial may be stopped early if it is worse than others; None: it is completed.
    """
    member, start = study.member(values), time.perf_counter()
    if member is None:
        return _Outcome(0.0, {"seed": seed, "epochs": 0, "seconds": 0.0, "training": {}, "samples": packed(np.zeros(0))})
    job = study.job_of(values, member, seed)
    if job.stage is Stage.AFTER:
        _train_missing(study.network_job(member, seed))
    bench = Workbench(job)
    weight = selection.weights(job.sparsities)
    lengths = len({point.finetune_epochs for point in job.points})
    value, samples, accuracies = 0.0, np.zeros(len(bench.dataset.validation)), list[float]()

    def outcome(value: float | None) -> _Outcome:
        spent = {"seed": seed, "epochs": bench.heartbeat.epochs, "seconds": time.perf_counter() - start}
        return _Outcome(value, {**spent, "training": member.training, "samples": packed(samples)})

    for point, measurement in trial.stream(job, bench):
        accuracy = measurement.get("accuracy") or 0.0
        accuracies.append(accuracy)
        value += weight[point.sparsity] * accuracy / lengths
        if "hits" in measurement:
            samples += weight[point.sparsity] * measurement["hits"].double().numpy() / lengths
        # Stopping early saves time only if each sparsity trains its own network. The trial counts nevertheless.
        if asked is not None and job.trains_each and len(accuracies) < len(job.points):
            asked.report(sum(accuracies) / len(accuracies), len(accuracies))
            if asked.should_prune():
                return outcome(None)
    return outcome(value)


def _train_missing(job: Job) -> None:
    """Train a dense network if it was not tried before. An error is reported when the network is loaded."""
    networks = Networks(job.environment.cache / "networks")
    if not networks.has(job.network) and not networks.failed(job.network):
        trial.execute(job)


def _distributions(study: Study) -> "dict[str, optuna.distributions.BaseDistribution]":
    from optuna.distributions import CategoricalDistribution

    made: dict[str, Any] = {"training": CategoricalDistribution(tuple(range(study.draws)))}
    made |= {f"criterion.{name}": _distribution(allowed) for name, allowed in study.space.items()}
    if not study.finetunes:
        return made
    own = study.job.finetune_lr_scale  # a suite may set a value outside the range
    scale = dataclasses.replace(LR_SCALE, low=min(LR_SCALE.low, own), high=max(LR_SCALE.high, own))
    return made | {"finetune_lr_scale": _distribution(scale)}


def _distribution(allowed: Range) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if allowed.choices:
        return CategoricalDistribution(allowed.choices)
    if allowed.integer:
        return IntDistribution(int(allowed.low), int(allowed.high), log=allowed.log)
    return FloatDistribution(allowed.low, allowed.high, log=allowed.log)
