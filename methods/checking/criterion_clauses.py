"""The checks of a criterion: what it returns, and that it leaves the model and all random states unchanged."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from methods.checking.fixtures import Batches, ConvNet, Skip, mlp, problem_of, require, same, tied, weight
from methods.checking.granularity_clauses import SPARSITIES
from methods.core.configurations import Criterion
from methods.core.cutting import Pruner, cut, faults
from methods.core.interface import Problem, Scores, Stage, count_masked
from methods.core.masks import Mask, kept_weights, mask_holds
from methods.core.modes import evaluating
from methods.core.recipe import Recipe
from methods.core.regrowth import Regrowing
from methods.core.schedule import Gradual, Regrowth, Schedule
from methods.core.training_loop import fit
from methods.registry.registry import lookup


def _supported(criterion: Criterion) -> list[Problem]:
    problems = [p for p in map(problem_of, (ConvNet, mlp, tied)) if criterion.unsupported(p) is None]
    require(problems, "must support a small convolutional network or an MLP")
    return problems


def _raw_score(problem: Problem, criterion: Criterion) -> Scores:
    with evaluating(problem.model):
        return criterion.score(problem)


def _stages(entry: type[Criterion]) -> None:
    require(entry.stages and all(isinstance(s, Stage) for s in entry.stages), "stages must be a non-empty tuple of Stage values")


def _scores_are_sound(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        scores = _raw_score(problem, entry())
        require(isinstance(scores, Scores), f"score must return Scores, not {type(scores).__name__}")
        require(not faults(problem, scores), faults(problem, scores))


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
        require(same(before, model.state_dict()), "score must not change the model's parameters or buffers")
        require(all(not m.training for m in model.modules()), "score must leave the model in eval mode")
        for (wanted, grad), p in zip(flags, model.parameters(), strict=True):
            require(p.requires_grad == wanted, "score must not change requires_grad of a parameter")
            require(p.grad is not None and torch.equal(p.grad, grad), "score must not change the .grad of a parameter")
        require(_hooks(model) == hooks, "score must remove its hooks from the model")


def _hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, table)) for m in model.modules() for table in tables)


def _random_state_untouched(entry: type[Criterion]) -> None:
    problem = _supported(entry())[0]
    before = _global_random()
    _raw_score(problem, entry())
    for library, state in _global_random().items():
        require(state == before[library], f"score must draw from problem.generator, not from {library}'s global random state")


def _global_random() -> dict[str, object]:
    _, keys, *rest = np.random.get_state()
    numpy_state = np.asarray(keys).tobytes(), *rest
    return {"torch": torch.get_rng_state().numpy().tobytes(), "python": random.getstate(), "numpy": numpy_state}


def _same_seed_same_scores(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        first, second = _raw_score(problem, entry()).values, _raw_score(problem, entry()).values
        require(same(first, second), "score must return the same scores for the same seed")


def _nested_is_true(entry: type[Criterion]) -> None:
    if not entry().nested:
        raise Skip("nested = False")
    for problem in _supported(entry()):
        dense = _raw_score(problem, entry()).values
        for target in SPARSITIES[1:]:
            require(same(dense, _raw_score(replace(problem, target=target), entry()).values),
                     "nested must be False: the scores depend on the target")  # fmt: skip


def _rounds_lead_to_the_target(entry: type[Criterion]) -> None:
    for start, target in ((0.0, 0.0), (0.0, 0.9), (0.5, 0.5), (0.5, 0.99)):
        rounds = entry().rounds(start, target)
        require(rounds and rounds[-1] == target, f"rounds({start}, {target}) must end at {target}; it returned {rounds}")
        require(list(rounds) == sorted(rounds) and rounds[0] >= start, f"rounds({start}, {target}) must rise; it returned {rounds}")


def _counts_are_exact(entry: type[Criterion]) -> None:
    for problem in _supported(entry()):
        for sparsity in SPARSITIES:
            again = replace(problem, model=copy.deepcopy(problem.model))
            _require_count(cut(again, entry(), weight(), sparsity), sparsity)


def _counts_are_exact_during_training(entry: type[Criterion]) -> None:
    if Stage.DURING not in entry.stages:
        raise Skip("is not applied during training")
    for problem in _supported(entry()):
        gradual = [Gradual(begin=0.0, end=0.8, persistent=persistent) for persistent in (True, False)]
        schedules: list[Schedule] = [Regrowth()] if issubclass(entry, Regrowing) else [*gradual]
        for schedule in schedules:
            again = replace(problem, model=copy.deepcopy(problem.model))
            fit(again, lookup("trainings", "map")(), Recipe(epochs=4), pruner=Pruner(entry(), weight(), schedule, 0.9))  # type: ignore[arg-type]
            _require_count(again.mask, 0.9)
            require(mask_holds(again.model, again.mask), "masked weights must be zero after training")


def _require_count(mask: Mask, sparsity: float) -> None:
    kept, total = kept_weights(mask)
    wanted = total - count_masked(sparsity, total)
    require(kept == wanted, f"the mask of sparsity {sparsity} must keep {wanted} of {total} weights, not {kept}")


def _data_free_is_true(entry: type[Criterion]) -> None:
    if not entry.data_free:
        raise Skip("reads training batches")
    for problem in _supported(entry()):
        _raw_score(replace(problem, batches=Batches(allowed=False)), entry())


CRITERION: dict[str, Callable[[Any], None]] = {
    "stages are declared": _stages,
    "scores are finite and have the names and shapes of the weights": _scores_are_sound,
    "score leaves model, gradients and hooks unchanged": _model_untouched,
    "score leaves the global random state unchanged": _random_state_untouched,
    "the same seed gives the same scores": _same_seed_same_scores,
    "nested = True: scores do not depend on the target": _nested_is_true,
    "rounds rise to the target": _rounds_lead_to_the_target,
    "masks have exact counts, also if all scores are equal": _counts_are_exact,
    "masks have exact counts after pruning during training": _counts_are_exact_during_training,
    "data_free = True: score reads no batches": _data_free_is_true,
}
