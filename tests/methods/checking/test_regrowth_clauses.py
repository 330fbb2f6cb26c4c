"""Deliberately wrong criteria that regrow weights: each is caught by the clause that names its fault."""

from dataclasses import dataclass

import pytest
import torch

import methods
from methods import Move, Problem, Regrowing, Scores, Values

configuration = dataclass(frozen=True, kw_only=True)

MOVES = "moves reach the target in rising steps"
SOUND = "drop and grow give finite scores of the weights, and change nothing"


@configuration
class Honest(Regrowing):
    """Grows what has a large gradient."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: w.detach().abs() for n, w in problem.weights.items()})

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        return {n: g.abs() for n, g in gradients.items()}


@configuration
class StopsShort(Honest):
    """Never reaches the target."""

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        return {0: Move(target / 2)}


@configuration
class GoesBack(Honest):
    """Its sparsity falls."""

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        return {0: Move(0.995), 1: Move(target)}


@configuration
class TooLate(Honest):
    """Its last move comes after the training."""

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        return {steps + 1: Move(target)}


@configuration
class DropsTwice(Honest):
    """Replaces more than all weights."""

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        return {0: Move(target), 1: Move(target, 1.5)}


@configuration
class Flat(Honest):
    """Its scores have no shape."""

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        return {n: g.abs().flatten() for n, g in gradients.items()}


@configuration
class DropsNothingOfOne(Honest):
    """Leaves a weight out."""

    def drop(self, problem: Problem) -> Values:
        return dict(list(super().drop(problem).items())[1:])


@configuration
class DrawsElsewhere(Honest):
    """Draws from torch's global generator."""

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        return {n: torch.rand(g.shape) for n, g in gradients.items()}


@configuration
class Writes(Honest):
    """Changes the model."""

    def drop(self, problem: Problem) -> Values:
        with torch.no_grad():
            for w in problem.weights.values():
                w.mul_(2.0)
        return super().drop(problem)


def broken(entry: type[Regrowing]) -> dict[str, str]:
    return {f.clause: f.error for f in methods.check(entry) if f.error}


def test_an_honest_one_passes() -> None:
    assert broken(Honest) == {}
    assert {MOVES, SOUND} <= {f.clause for f in methods.check(Honest)}


@pytest.mark.parametrize(
    ("wrong", "clause", "message"),
    [
        (StopsShort, MOVES, "moves(1, 0.5) must end at 0.5; it returned [0.25]"),
        (GoesBack, MOVES, "must not fall"),
        (TooLate, MOVES, "must have rising steps from 0 to 1"),
        (DropsTwice, MOVES, "must be fractions"),
        (Flat, SOUND, "grow must give 'conv1.weight' scores of shape (4, 3, 3, 3), not (108,)"),
        (DropsNothingOfOne, SOUND, "drop must score exactly the prunable weights; missing or extra: conv1.weight"),
        (DrawsElsewhere, SOUND, "must draw from the given generator"),
        (Writes, SOUND, "drop and grow must not change the model"),
    ],
)
def test_every_fault_is_caught(wrong: type[Regrowing], clause: str, message: str) -> None:
    assert message in broken(wrong)[clause]
