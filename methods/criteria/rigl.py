"""RigL: sparse training, growing weights by their gradients."""

from dataclasses import dataclass

import torch

from methods.core.interface import Problem, Values
from methods.core.regrowth import SparseStart
from methods.registry.registry import register


@register("rigl", costly=True)
@dataclass(frozen=True, kw_only=True)
class Rigl(SparseStart):
    """RigL: train a random sparse network; now and then drop its smallest weights and grow those with the largest gradients.

    The start is a random mask with Erdős-Rényi-kernel densities. In each move every layer drops the fraction α_t of its kept weights
    with the smallest |θ|, and grows as many with the largest |∂L/∂θ|, L the loss of the current batch (times of the moves and α_t: see
    `methods.Regrowing`).

    Reference: Evci, Gale, Menick, Castro, Elsen, "Rigging the lottery: making all tickets winners", ICML 2020, section 3 and algorithm
    1. Departures: the number of moves is given, not the steps between them (ΔT = 100 there), so that short trainings have as many;
    with `start` = layer the first layer is sparse too.
    """

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        """|∂L/∂θ|."""
        return {n: g.abs() for n, g in gradients.items()}
