"""SET: sparse training, growing weights at random."""

from dataclasses import dataclass

import torch

from methods.core.interface import Problem, Values
from methods.core.regrowth import SparseStart
from methods.registry.registry import register


@register("set", costly=True)
@dataclass(frozen=True, kw_only=True)
class Set(SparseStart):
    """SET (sparse evolutionary training): as `rigl`, but weights grow at random.

    The start is a random mask with Erdős-Rényi-kernel densities. In each move every layer drops the fraction α_t of its kept weights
    with the smallest |θ|, and grows as many at random (times of the moves and α_t: see `methods.Regrowing`).

    Reference: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
    science", Nature Communications 2018, in the form that Evci et al. 2020 compare with RigL. Departures from Mocanu et al.: the schedule
    of RigL replaces a constant fraction after every epoch; the smallest |θ| are dropped, not the smallest positive and the largest
    negative weights by themselves.
    """

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        """s ~ U[0, 1)."""
        return {n: torch.rand(g.shape, generator=draws, dtype=torch.float64).to(g.device) for n, g in gradients.items()}
