"""Masks that move during training: weights are dropped, and as many removed weights of the same layer grow again."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice, Float, Int
from methods.core.interface import Problem, Scores, Stage, Values
from methods.core.layer_scaling import rescope
from methods.core.masks import Mask
from methods.core.schedule import Move, Regrowth, Schedule

STARTS = ("erk", "layer")


@dataclass(frozen=True, kw_only=True)
class Regrowing(Criterion):
    """A criterion whose mask moves during training. Every layer keeps its exact number of weights in each move.

    The mask moves after every ΔT = max(2, ⌊`until` · T / `updates`⌋) of the T steps of training, for the last time before step
    `until` · T. At step t, in each layer with n kept weights, ⌊α_t n⌋ of them are dropped, those with the lowest `drop` scores, and
    as many weights grow, those with the highest `grow` scores among the removed ones (those just dropped included):

        α_t = α/2 · (1 + cos(π t / (`until` · T))),    α = `fraction`.

    A move takes the place of the optimiser's step. Grown weights start at zero, with no momentum; a weight that is dropped and grown
    in the same move keeps both. `score` decides the first cut, before the first step, unless `moves` is overridden.
    """

    stages: ClassVar = (Stage.DURING,)
    data_free: ClassVar = True  # `score`, by default

    fraction: float = Float(0.3, 0.1, 0.5, above=0, maximum=1, meaning="α: fraction of each layer that the first move replaces")
    updates: int = Int(10, 5, 100, log=True, minimum=1, meaning="number of moves of the mask, at most")
    until: float = Float(0.75, 0.5, 0.9, above=0, maximum=1, meaning="fraction of the training after which the mask stays")

    @property
    def granularities(self) -> tuple[str, ...]:
        """Single weights only: every layer keeps its exact number."""
        return ("weight",)

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        """When the mask moves.

        Args:
            steps: T, the number of steps of the training.
            target: sparsity to reach.

        Returns:
            Number of finished steps -> what changes then. The default: a cut to the target before the first step, then moves at
            this sparsity.
        """
        return {0: Move(target)} | {t: Move(target, self.share(t, steps)) for t in self.times(steps)}

    def times(self, steps: int) -> range:
        """The steps ΔT, 2 ΔT, ... below `until` · T after which the mask moves."""
        last = self.until * steps
        every = max(2, math.floor(last / self.updates))
        return range(every, math.ceil(last), every)

    def share(self, t: int, steps: int) -> float:
        """α_t, the fraction of each layer that is replaced after step t."""
        return self.fraction / 2.0 * (1.0 + math.cos(math.pi * t / (self.until * steps)))

    def drop(self, problem: Problem) -> Values:
        """Scores of the kept weights in the shapes of the weights; the lowest ones are dropped. The default is |w|."""
        return {n: w.abs() for n, w in problem.acting.items()}

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        """Scores of the removed weights; the highest ones grow.

        Args:
            problem: network and current mask.
            gradients: name -> gradient of the loss of the current batch, of removed weights, too.
            draws: CPU generator of this move.

        Returns:
            Name -> tensor of the weight's shape.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SparseStart(Regrowing):
    """Training from a random sparse network: the first cut is random, and layers keep their densities."""

    start: str = Choice("erk", *STARTS, meaning="densities of the layers: Erdős-Rényi kernel, or the same in each layer")

    def score(self, problem: Problem) -> Scores:
        """Random scores, rescaled to the densities of `start`."""
        draws = problem.generator("random")
        drawn = {n: torch.rand(w.shape, generator=draws, dtype=torch.float64).to(w.device) for n, w in problem.weights.items()}
        return Scores(rescope(drawn, self.start, problem))


@torch.no_grad()
def moved(problem: Problem, criterion: Regrowing, gradients: Values, share: float, step: int) -> Mask:
    """The mask after one move.

    Args:
        problem: network and current mask.
        criterion: scores what is dropped and what grows.
        gradients: see `Regrowing.grow`.
        share: fraction of the kept weights of each layer to replace.
        step: number of finished steps; every step draws anew.

    Returns:
        The mask, with the same number of kept weights in each layer. Equal scores are ranked at random.
    """
    draws = problem.generator("regrowth", str(step))
    stay, grow = criterion.drop(problem), criterion.grow(problem, gradients, draws)
    found = {}
    for name, m in problem.mask.items():
        kept = m.flatten()
        count = math.floor(share * int(kept.sum()))
        left = kept.clone()
        left[_highest(-stay[name], kept, count, draws)] = False
        found[name] = left.clone()
        found[name][_highest(grow[name], ~left, count, draws)] = True
        found[name] = found[name].view(m.shape)
    return found


def _highest(scores: Tensor, among: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Flat indices of the `count` highest scores among some entries; a shuffle before a stable sort breaks ties at random."""
    places = among.nonzero().squeeze(1)
    places = places[torch.randperm(len(places), generator=draws).to(places.device)]
    return places[scores.detach().flatten()[places].argsort(descending=True, stable=True)[:count]]


def check_schedule(criterion: Criterion | type[Criterion], schedule: Schedule | None) -> None:
    """Raise ValueError if a criterion that regrows weights has another schedule than `Regrowth`, or another criterion has this one."""
    regrows = issubclass(criterion if isinstance(criterion, type) else type(criterion), Regrowing)
    if schedule is not None and regrows != isinstance(schedule, Regrowth):
        does = "regrows weights between steps, so its schedule is" if regrows else "does not regrow weights, so its schedule cannot be"
        raise ValueError(f"'{criterion.name}' {does} 'regrowth'")
