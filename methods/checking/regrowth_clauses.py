"""The checks of a criterion that regrows weights: when its masks move, and what it drops and grows."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from methods.checking.fixtures import problem_of, require, same, weight
from methods.core.cutting import cut, faults
from methods.core.interface import Problem, Scores, Values
from methods.core.modes import evaluating
from methods.core.regrowth import Regrowing
from methods.registry.registry import make

TIMES = ((1, 0.5), (40, 0.9), (1000, 0.0), (1000, 0.99))  # (steps, target)


def _moves_reach_the_target(entry: type[Regrowing]) -> None:
    for steps, target in TIMES:
        found = entry().moves(steps, target)
        asked = f"moves({steps}, {target})"
        sparsities = [move.sparsity for move in found.values()]
        require(found and sparsities[-1] == target, f"{asked} must end at {target}; it returned {sparsities[-1:]}")
        require(sparsities == sorted(sparsities), f"the sparsities of {asked} must not fall")
        require(list(found) == sorted(found) and min(found) >= 0 and max(found) <= steps,
                f"{asked} must have rising steps from 0 to {steps}")  # fmt: skip
        require(all(0.0 <= move.share <= 1.0 for move in found.values()), f"the shares of {asked} must be fractions")


def _sparse() -> tuple[Problem, Values]:
    """A trained network of sparsity 0.5, and gradients of its weights."""
    problem = problem_of()
    problem.mask = cut(problem, make("criteria", "magnitude", {}), weight(), 0.5)
    x, y = next(iter(problem.batches))
    with evaluating(problem.model), torch.enable_grad():
        gradients = torch.autograd.grad(problem.loss(problem.model(x), y), list(problem.weights.values()))
    return problem, dict(zip(problem.weights, gradients, strict=True))


def _scores(entry: type[Regrowing], problem: Problem, gradients: Values) -> tuple[Values, Values]:
    draws = torch.Generator().manual_seed(0)
    return entry().drop(problem), entry().grow(problem, gradients, draws)


def _drop_and_grow_are_sound(entry: type[Regrowing]) -> None:
    problem, gradients = _sparse()
    before, state = copy.deepcopy(problem.model.state_dict()), torch.get_rng_state()
    found = _scores(entry, problem, gradients)
    require(same(before, problem.model.state_dict()), "drop and grow must not change the model")
    require(torch.equal(state, torch.get_rng_state()), "drop and grow must draw from the given generator, not from torch's global one")
    for name, values in zip(("drop", "grow"), found, strict=True):
        said = faults(problem, Scores(values))
        require(not said, f"{name} {said}")
    again = _scores(entry, problem, gradients)
    require(all(same(a, b) for a, b in zip(found, again, strict=True)), "drop and grow must give the same scores for the same draws")


REGROWING: dict[str, Callable[[Any], None]] = {
    "moves reach the target in rising steps": _moves_reach_the_target,
    "drop and grow give finite scores of the weights, and change nothing": _drop_and_grow_are_sound,
}
