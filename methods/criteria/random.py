"""Random pruning, the control for all criteria."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from methods.core.configurations import Criterion
from methods.core.interface import Problem, Scores, Stage
from methods.registry.registry import register


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(Criterion):
    """Random pruning: uniform random scores, the control that every criterion must beat.

    The scores depend on the problem's seed only, not on weights or data.

    Reference: the control of Blalock et al. 2020, "What is the state of neural network pruning?".
    """

    stages: ClassVar = (Stage.AFTER, Stage.INIT, Stage.DURING)
    data_free: ClassVar = True

    def score(self, problem: Problem) -> Scores:
        """s ~ U[0, 1), one draw per weight, in the order of the weights."""
        generator = problem.generator("random")
        return Scores({n: torch.rand(w.shape, generator=generator, dtype=torch.float64).to(w.device) for n, w in problem.weights.items()})
