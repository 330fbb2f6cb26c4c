"""Random pruning, the control for all criteria."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice
from methods.core.interface import Problem, Scores, Stage
from methods.core.layer_scaling import rescope
from methods.registry.registry import register


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(Criterion):
    """Random pruning: uniform random scores, the control that every criterion must beat.

    The scores depend on the problem's seed only, not on weights or data. `scope` decides the densities of the layers: "global" draws
    from all weights together, "layer" keeps the same fraction of each layer, "erk" gives layers Erdős-Rényi-kernel densities (Evci et
    al. 2020). See `methods.core.layer_scaling`.

    Reference: the control of Blalock et al. 2020, "What is the state of neural network pruning?".
    """

    stages: ClassVar = (Stage.AFTER, Stage.INIT, Stage.DURING)
    data_free: ClassVar = True

    scope: str = Choice("global", "global", "layer", "erk", tuned=False, meaning="densities of the layers")

    def score(self, problem: Problem) -> Scores:
        """s ~ U[0, 1), one draw per weight, in the order of the weights; rescaled by scope."""
        generator = problem.generator("random")
        drawn = {n: torch.rand(w.shape, generator=generator, dtype=torch.float64).to(w.device) for n, w in problem.weights.items()}
        return Scores(rescope(drawn, self.scope, problem))
