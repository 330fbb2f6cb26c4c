"""Rules for one row of a leaderboard: what follows from its suite, from the name of its method and from its network.

`merge` applies them to every contributed row, `verify` to every published row. Nothing is trained.
"""

import json
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import methods
from bench.planning.cells import hyperparameters_of
from bench.planning.jobs import dense_name, planned_epochs, recipe_faults
from bench.publishing.board_folder import Board
from bench.publishing.row_comparison import MEASURED
from bench.spec.row import PROTOCOL_VERSION, RECALIBRATIONS, Row
from bench.spec.setting import Setting, decoded
from bench.spec.suite import Suite
from bench.tuning import selection
from methods import Stage

SHAPE = ("prunable_weights", "parameters", "flops")  # of the network: equal in all rows of a block
FILLED = (  # in every row with a measurement
    "accuracy", "nll", "brier", "ece", "sparsity_reached", "kept_weights", "parameters_kept", "flops_kept", "layers_collapsed",
    "train_seconds", *SHAPE,
)  # fmt: skip


_settings = attrgetter(  # all that `_configured`, `recipe_faults` and `_planned` look at
    "method", "criterion", "training", "stage", "ablation", "tuning", "hyperparameters", "finetune_epochs", "recipe", "dataset",
    "architecture", "sparsity", "epochs",
)  # fmt: skip


class Rules:
    """The rules for the rows of a leaderboard. Settings that many rows have in common, e.g. those of all seeds, are looked at once.

    Args:
        board: the leaderboard that the rows belong to, or are to belong to.
        complete: whether a row must contain every hyperparameter. Rows of older releases lack those added later, which then have their
            default.
    """

    def __init__(self, board: Board, *, complete: bool = True) -> None:
        self._board, self._complete = board, complete
        self._wrong: dict[Any, list[str]] = {}  # settings -> the rules that they break
        self._epochs: dict[Any, list[str]] = {}

    def faults(self, row: Row) -> list[str]:
        """The rules that a row breaks, a line each."""
        suite, settings = self._board.suite, _settings(row)
        if settings not in self._wrong:
            self._wrong[settings] = [*_configured(row, suite, self._complete), *recipe_faults(row, suite)]
        found = [*_of_suite(row, self._board), *_exact(row), *self._wrong[settings]]
        if found:
            return found
        if settings not in self._epochs:
            self._epochs[settings] = [*_planned(row, suite)]
        return [*self._epochs[settings]]


def _planned(row: Row, suite: Suite) -> Iterator[str]:
    """Epochs other than those that the job of the row trains."""
    protocol = suite.protocol(row.dataset, row.architecture)
    wanted = planned_epochs(row, protocol)
    if row.epochs != wanted:
        yield f"epochs {row.epochs}, but '{row.method}' trains {wanted} in this suite, which has {protocol.epochs}"


def _of_suite(row: Row, board: Board) -> Iterator[str]:
    """Values of a row that are not in the suite, or a different protocol."""
    suite = board.suite
    if row.suite != suite.name:
        yield f"suite '{row.suite}', this leaderboard has suite '{suite.name}'"
    if row.protocol != PROTOCOL_VERSION:
        yield f"protocol {row.protocol}, this release has protocol {PROTOCOL_VERSION}"
    yield from outside(row, suite)
    said = {
        "granularity": suite.granularity, "match": suite.match, "calibration_samples": suite.calibration,
        "recalibration": RECALIBRATIONS[suite.recalibrate_batchnorm],
    }  # fmt: skip
    for name, own in said.items():
        if getattr(row, name) != own:
            yield f"{name} '{getattr(row, name)}', this leaderboard has '{own}'"
    there = board.first_of_block.get((row.dataset, row.architecture), row)
    started = _start(suite, row, there)
    if not row.initial_weights.startswith(started):
        yield f"initial_weights '{row.initial_weights}', this leaderboard has '{started}'"


def outside(row: Row, suite: Suite) -> Iterator[str]:
    """Block, sparsity, seed and fine-tuning epochs of a row that its suite does not have, in words."""
    if row.architecture not in {a for b in suite.blocks if b.dataset == row.dataset for a in b.architectures}:
        yield f"the suite does not contain {row.dataset}/{row.architecture}"
    sparsities, finetunings = suite.extent(early=row.stage not in ("", Stage.AFTER))
    if row.sparsity not in (sparsities if row.criterion else (0.0,)):
        yield f"sparsity {row.sparsity!r} is not one of {', '.join(map(str, sparsities if row.criterion else (0.0,)))}"
    if row.seed not in suite.seeds:
        yield f"seed {row.seed} is not one of {', '.join(map(str, suite.seeds))}"
    if row.finetune_epochs not in finetunings:
        yield f"finetune_epochs {row.finetune_epochs} is not one of {', '.join(map(str, finetunings))}"


def _start(suite: Suite, row: Row, published: Row) -> str:
    """How the column `initial_weights` must begin; the whole column if a row of the same network is published."""
    protocol = suite.protocol(row.dataset, row.architecture)
    if protocol.weights is None:
        return "pretrained" if protocol.pretrained else "random"
    return published.initial_weights if published.initial_weights.startswith("sha256:") else "sha256:"


def _exact(row: Row) -> Iterator[str]:
    """Impossible measurements: counts, sparsity, and columns that do not fit to the status."""
    if row.status in ("failed", "unsupported"):
        if not row.error:
            yield f"status is '{row.status}' but the column `error` is empty"
        measured = [name for name in MEASURED if getattr(row, name) is not None and not name.startswith("dense_")]
        if measured:
            yield f"status is '{row.status}' but these columns are not empty: {', '.join(measured)}"
        return
    needed = [name for name in FILLED if getattr(row, name) is None]
    needed += ["accuracy_before_finetune"] * bool(row.criterion and row.finetune_epochs and row.accuracy_before_finetune is None)
    if needed:
        yield f"status is '{row.status}' but these columns are empty: {', '.join(needed)}"
        return
    assert row.prunable_weights is not None
    assert row.kept_weights is not None
    assert row.sparsity_reached is not None
    if row.status == "ok" and row.layers_collapsed:
        yield f"status is 'ok' but layers_collapsed is {row.layers_collapsed}"
    if row.granularity == "weight":
        wanted = row.prunable_weights - methods.count_masked(row.sparsity, row.prunable_weights)
        if row.kept_weights != wanted:
            yield (f"kept_weights is {row.kept_weights}, but sparsity {row.sparsity!r} requires exactly {wanted} of {row.prunable_weights}")
    if abs(row.sparsity_reached - (1 - row.kept_weights / row.prunable_weights)) > 1e-12:
        yield f"sparsity_reached {row.sparsity_reached!r} is not 1 - kept_weights / prunable_weights"
    for part, whole in (("parameters_kept", "parameters"), ("flops_kept", "flops"), ("accuracy", "top5")):
        a, b = getattr(row, part), getattr(row, whole)
        if a is not None and b is not None and a > b:
            yield f"{part} {a} is larger than {whole} {b}"


def _configured(row: Row, suite: Suite, complete: bool) -> Iterator[str]:
    """Differences between the name of the method and the row's criterion, training, stage, schedule and hyperparameters."""
    try:
        said = decoded(row.hyperparameters)
    except ValueError as error:
        yield f"hyperparameters: {error}"
        return
    scale = said.finetune_lr_scale
    if (said.criterion is None) != (not row.criterion) or (scale is None) != (not row.finetune_epochs):
        yield "hyperparameters: the values of criterion or fine-tuning do not fit to the columns `criterion` and `finetune_epochs`"
        return
    if scale is not None and scale != suite.finetune_lr_scale and row.tuning == "default":
        yield f"hyperparameters: lr_scale {scale!r} of fine-tuning, but the suite has {suite.finetune_lr_scale!r}"
    try:
        yield from _dense(row, said) if not row.criterion else _named(row, said, suite, complete)
    except (ValueError, TypeError) as error:
        yield str(error) + " (a method of your own: --plugin FILE)" * isinstance(error, methods.UnknownName)


def _searched(said: Setting, suite: Suite, trials: int) -> Iterator[str]:
    """A missing search, or one with another number of trials than the suite's; fewer are measured where few candidates differ."""
    if said.search is None:
        yield "hyperparameters: tuned row without the entry `tuning`"
        return
    plan = selection.rounds(trials, len(suite.seeds_of_tuning))
    least = plan.least + plan.further * (said.search.accuracy != said.search.default_accuracy)
    if said.search.trials not in range(least, trials + 1, plan.further or 1):
        yield f"hyperparameters: {said.search.trials} tuning trials, but the suite has {trials}"


def _dense(row: Row, said: Setting) -> Iterator[str]:
    """A wrong method name of a dense network."""
    name = dense_name(row.training, hyperparameters_of(methods.make("trainings", row.training, said.training)))
    if row.method != name:
        yield f"method '{row.method}' has no criterion; the dense network of this training must be called '{name}'"
    if row.stage or row.ablation != "none" or said.schedule is not None:
        yield f"method '{row.method}' has no criterion, so that it has no stage, no ablation and no schedule"


def _named(row: Row, said: Setting, suite: Suite, complete: bool) -> Iterator[str]:
    """Differences between a pruned row and the registered method of this name."""
    method = methods.get(row.method)
    named = {"method": method.name, "criterion": method.criterion, "training": method.training, "stage": str(method.stage)}
    wrong = [f"{n} '{getattr(row, n)}', the method '{row.method}' has '{v}'" for n, v in named.items() if getattr(row, n) != v]
    yield from wrong
    if wrong:
        return
    schedule = None if method.schedule is None else json.loads(json.dumps(method.schedule.as_dict()))
    if said.schedule != schedule:
        yield f"hyperparameters: `schedule` is not that of '{row.method}'"
    given: dict[str, dict[str, Any]] = {"training": said.training, "criterion": said.criterion or {}}
    made = {
        "training": method.make_training(**given["training"]),
        "criterion": method.make_criterion(**given["criterion"]),
    }  # raises for values outside their ranges, or that differ from those in the name
    if row.tuning == "tuned":
        trials = suite.trials_of(row.dataset, row.architecture)
        yield from _searched(said, suite, trials)
        if said.search is None or said.search.trials >= trials or said.search.accuracy != said.search.default_accuracy:
            return  # otherwise only the defaults were measured on further seeds, and must be the result
    elif said.search is not None:
        yield "hyperparameters: row with default hyperparameters and the entry `tuning`"
    defaults = {"training": method.make_training(), "criterion": method.make_criterion()}
    for kind, configuration in made.items():
        values = hyperparameters_of(defaults[kind])
        own = hyperparameters_of(configuration)
        changed = sorted(k for k, v in own.items() if v != values[k] or (complete and k not in given[kind]))
        if changed:
            yield f"hyperparameters: {', '.join(changed)} of the {kind} differ from the defaults of '{row.method}'"
