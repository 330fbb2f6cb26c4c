"""The contract every method keeps: `check(name_or_class)` runs it over ours and over any user's.

Each check answers in one line what was broken. It looks at behaviour only, on small networks made for it: a convolutional
one with batch norm, an MLP, and an MLP whose weights are all equal, where only the tie rule decides.
"""

import copy
import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from methods.checking.fixtures import Batches, Breach, ConvNet, mlp, problem_of, tied
from methods.checking.fixtures import Skip as _Skip
from methods.checking.fixtures import require as _require
from methods.checking.fixtures import same as _same
from methods.checking.granularity_clauses import GRANULARITY, SPARSITIES
from methods.core.cutting import Pruner, cut, evaluating, faults, kept_weights, mask_holds
from methods.core.hyperparameters import ranges
from methods.core.interface import Configuration, Criterion, Granularity, Posterior, Problem, Scores, Stage, Training, count_masked
from methods.core.schedule import Gradual
from methods.core.training_loop import Recipe, fit
from methods.registry.registry import KINDS, get, lookup, names


@dataclass(frozen=True)
class Finding:
    """One clause of the contract over one entry: `error` is '' where it holds, `skipped` says why it was not asked."""

    entry: str
    clause: str
    error: str = ""
    skipped: str = ""


def check(entry: str | type[Configuration]) -> list[Finding]:
    """Run the contract over one registered name, or a class; a finding a clause.

    A name may stand in several kinds, and all are checked; that of a method beyond them stands for its criterion. Raises
    ValueError for an unknown name.
    """
    if isinstance(entry, str):
        return [finding for cls in entries(entry) for finding in check(cls)]
    clauses: dict[str, Callable[[Any], None]]
    if issubclass(entry, Criterion):
        clauses = _DECLARED | _CRITERION
    elif issubclass(entry, Training):
        clauses = _DECLARED | _TRAINING
    elif issubclass(entry, Granularity):
        clauses = _DECLARED | GRANULARITY
    else:
        raise TypeError(f"{entry!r} is neither a Criterion nor a Training nor a Granularity")
    return [_ask(entry, clause, question) for clause, question in clauses.items()]


def entries(name: str) -> list[type[Configuration]]:
    """The registered classes that a name stands for: of each kind that has it, or the criterion of a named method."""
    return [lookup(kind, name) for kind in KINDS if name in names(kind)] or [lookup("criteria", get(name).criterion)]


def _ask(entry: type[Configuration], clause: str, question: Callable[[Any], None]) -> Finding:
    name = entry.name or entry.__name__
    try:
        question(entry)
    except _Skip as reason:
        return Finding(name, clause, skipped=str(reason))
    except Breach as breach:
        return Finding(name, clause, error=str(breach))
    except Exception as error:  # a user's code may raise anything: that is a finding, not our crash
        return Finding(name, clause, error=f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Finding(name, clause)


# --- asking -----------------------------------------------------------------------------------------------------------


def _supported(criterion: Criterion) -> list[Problem]:
    problems = [p for p in map(problem_of, (ConvNet, mlp, tied)) if criterion.unsupported(p) is None]
    _require(problems, "supports neither a small convolutional network nor an MLP")
    return problems


def _raw_score(problem: Problem, criterion: Criterion) -> Scores:
    with evaluating(problem.model):
        return criterion.score(problem)


# --- clauses for every kind ------------------------------------------------------------------------------------------


def _declares(entry: type[Configuration]) -> None:
    own = vars(entry).get("__dataclass_params__")  # not what a base class has
    _require(own is not None and own.frozen, "is not @dataclass(frozen=True, kw_only=True)")
    for field in dataclasses.fields(entry):
        _require("range" in field.metadata, f"field '{field.name}' is not declared by Float, Int or Choice")
        allowed, value = ranges(entry)[field.name], field.default
        _require(value in allowed, f"default {field.name}={value!r} is not {allowed}")
        wanted = allowed.searched
        _require(not allowed.tuned or value in wanted, f"default {field.name}={value!r} is outside its search range: {wanted}")
    _require(entry() == entry(), "two instances with the same hyperparameters are not equal")


def _documents(entry: type[Configuration]) -> None:
    inherited = entry.__doc__ is None or entry.__doc__.startswith(f"{entry.__name__}(")
    _require(not inherited, "has no docstring: say the formula, the reference and every departure from it")


# --- clauses for a criterion -----------------------------------------------------------------------------------------


def _stages(entry: type[Criterion]) -> None:
    _require(entry.stages and all(isinstance(s, Stage) for s in entry.stages), "stages must be a non-empty tuple of Stage values")


def _scores_are_sound(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        scores = _raw_score(problem, entry())
        _require(isinstance(scores, Scores), f"score returned {type(scores).__name__}, not Scores")
        _require(not faults(problem, scores), faults(problem, scores))


def _model_untouched(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        model = problem.model
        model.eval()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = copy.deepcopy(model.state_dict())
        flags = [(p.requires_grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        hooks = _hooks(model)
        entry().score(problem)
        _require(_same(before, model.state_dict()), "score changed the model's parameters or buffers")
        _require(all(not m.training for m in model.modules()), "score left the model in train mode")
        for (wanted, grad), p in zip(flags, model.parameters(), strict=True):
            _require(p.requires_grad == wanted, "score changed requires_grad of a parameter")
            _require(p.grad is not None and torch.equal(p.grad, grad), "score changed the .grad of a parameter")
        _require(_hooks(model) == hooks, "score left hooks on the model")


def _hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, table)) for m in model.modules() for table in tables)


def _random_state_untouched(entry: type[Criterion]) -> None:
    problem = _supported(entry())[0]
    before = _global_random()
    _raw_score(problem, entry())
    for library, state in _global_random().items():
        _require(state == before[library], f"score draws from {library}'s global random state: use problem.generator")


def _global_random() -> dict[str, object]:
    _, keys, *rest = np.random.get_state()
    numpy_state = np.asarray(keys).tobytes(), *rest
    return {"torch": torch.get_rng_state().numpy().tobytes(), "python": random.getstate(), "numpy": numpy_state}


def _same_seed_same_scores(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        first, second = _raw_score(problem, entry()).values, _raw_score(problem, entry()).values
        _require(_same(first, second), "the same seed gave different scores")


def _nested_is_true(entry: type[Criterion]) -> None:
    if not entry().nested:
        raise _Skip("declares nested = False")
    for problem in _supported(entry()):
        dense = _raw_score(problem, entry()).values
        for target in SPARSITIES[1:]:
            _require(_same(dense, _raw_score(replace(problem, target=target), entry()).values),
                     "declares nested = True, but the scores depend on the target")  # fmt: skip


def _rounds_lead_to_the_target(entry: type[Criterion]) -> None:
    for start, target in ((0.0, 0.0), (0.0, 0.9), (0.5, 0.5), (0.5, 0.99)):
        rounds = entry().rounds(start, target)
        _require(rounds and rounds[-1] == target, f"the rounds from {start} to {target} end at {rounds[-1] if rounds else 'nothing'}")
        _require(list(rounds) == sorted(rounds) and rounds[0] >= start, f"the rounds from {start} to {target} do not rise: {rounds}")


def _counts_are_exact(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        for sparsity in SPARSITIES:
            again = replace(problem, model=copy.deepcopy(problem.model))
            mask = cut(again, entry(), _weight(), sparsity)
            kept, total = kept_weights(mask)
            _require(kept == total - count_masked(sparsity, total), f"at sparsity {sparsity} kept {kept} of {total} weights")


def _counts_are_exact_while_training(entry: type[Criterion]) -> None:
    if Stage.DURING not in entry.stages:
        raise _Skip("is not applied while training")
    for problem in _supported(entry()):
        for persistent in (True, False):
            again = replace(problem, model=copy.deepcopy(problem.model))
            schedule = Gradual(begin=0.0, end=0.8, persistent=persistent)
            fit(again, lookup("trainings", "map")(), Recipe(epochs=4), pruner=Pruner(entry(), _weight(), schedule, 0.9))  # type: ignore[arg-type]
            kept, total = kept_weights(again.mask)
            _require(kept == total - count_masked(0.9, total), f"at sparsity 0.9 kept {kept} of {total} weights")
            _require(mask_holds(again.model, again.mask), "masked weights are not zero after training")


def _weight() -> Granularity:
    return lookup("granularities", "weight")()  # type: ignore[return-value]


def _data_free_is_true(entry: type[Criterion]) -> None:
    if not entry.data_free:
        raise _Skip("reads training batches")
    for problem in _supported(entry()):
        _raw_score(replace(problem, batches=Batches(allowed=False)), entry())


_DECLARED: dict[str, Callable[[Any], None]] = {
    "hyperparameters declared, defaults inside their ranges": _declares,
    "documented": _documents,
}
_CRITERION: dict[str, Callable[[Any], None]] = {
    "stages declared": _stages,
    "scores finite, of the right names and shapes": _scores_are_sound,
    "model, gradients and hooks untouched": _model_untouched,
    "global random state untouched": _random_state_untouched,
    "same seed, same scores": _same_seed_same_scores,
    "nested true to its word": _nested_is_true,
    "rounds lead to the target": _rounds_lead_to_the_target,
    "exact counts, also with total ties": _counts_are_exact,
    "exact counts, cut while training": _counts_are_exact_while_training,
    "data-free true to its word": _data_free_is_true,
}


# --- clauses for a training ------------------------------------------------------------------------------------------


def _fitted(entry: type[Training], *, epochs: int = 6, cut_half: bool = False) -> tuple[Problem, Posterior]:
    problem = problem_of(trained=False)
    if cut_half:
        problem.mask = cut(problem, lookup("criteria", "magnitude")(), _weight(), 0.5)  # type: ignore[arg-type]
    return problem, fit(problem, entry(), Recipe(epochs=epochs))


def _loss(problem: Problem) -> float:
    with torch.no_grad(), evaluating(problem.model):
        return sum(float(problem.loss(problem.model(x), y)) for x, y in problem.batches)


def _learns(entry: type[Training]) -> None:
    before = _loss(problem_of(trained=False))
    after = _loss(_fitted(entry)[0])
    _require(after < before, f"the training loss did not fall: {before:.4g} before, {after:.4g} after")


def _names_kept(entry: type[Training]) -> None:
    fresh, (problem, _) = problem_of(trained=False), _fitted(entry)
    wanted = {n: p.shape for n, p in fresh.model.state_dict().items()}
    _require({n: p.shape for n, p in problem.model.state_dict().items()} == wanted, "parameter names or shapes differ after training")


def _masks_hold(entry: type[Training]) -> None:
    problem, posterior = _fitted(entry, cut_half=True)
    _require(mask_holds(problem.model, problem.mask), "masked weights are not zero after training")
    fit(problem, entry(), Recipe(epochs=2, optimizer="adam"), previous=posterior)
    _require(mask_holds(problem.model, problem.mask), "masked weights are not zero after fine-tuning")


def _training_repeats(entry: type[Training]) -> None:
    (first, a), (second, b) = _fitted(entry), _fitted(entry)
    _require(_same(first.model.state_dict(), second.model.state_dict()), "the same seed gave different weights")
    _require(_same(a.prior, b.prior) and _same(a.curvature, b.curvature), "the same seed gave different posteriors")


def _posterior_is_sound(entry: type[Training]) -> None:
    problem, posterior = _fitted(entry)
    _require(isinstance(posterior, Posterior), f"finish returned {type(posterior).__name__}, not Posterior")
    shapes = {n: p.shape for n, p in problem.model.named_parameters()}
    for name, value in [*posterior.prior.items(), *posterior.curvature.items()]:
        _require(name in shapes, f"the posterior names '{name}', which is no parameter")
        _require(bool(value.isfinite().all() and (value >= 0).all()), f"the posterior of '{name}' is negative or not finite")
        _require(value.dim() == 0 or value.shape == shapes[name], f"the posterior of '{name}' has shape {tuple(value.shape)}")


def _penalty_is_sound(entry: type[Training]) -> None:
    problem, posterior = _fitted(entry)
    value = entry().penalty(dict(problem.model.named_parameters()), posterior)
    if value is None:
        raise _Skip("adds nothing beside its Gaussian prior")
    _require(value.dim() == 0 and bool(value.isfinite() and value >= 0), "penalty is not a finite, non-negative scalar")


_TRAINING: dict[str, Callable[[Any], None]] = {
    "training loss falls": _learns,
    "parameter names and shapes kept": _names_kept,
    "masks hold through training and fine-tuning": _masks_hold,
    "same seed, same network": _training_repeats,
    "posterior finite, non-negative, of the right names": _posterior_is_sound,
    "penalty finite and non-negative": _penalty_is_sound,
}
