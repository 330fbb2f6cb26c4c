"""Magnitude pruning."""

from dataclasses import dataclass
from typing import ClassVar

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice
from methods.core.interface import Problem, Scores, Stage
from methods.core.layer_scaling import ACROSS, SCOPES, rescope
from methods.registry.registry import register


@register("magnitude")
@dataclass(frozen=True, kw_only=True)
class Magnitude(Criterion):
    """Magnitude pruning: remove the weights with the smallest absolute value.

    s_k = |w_k|. `scope` decides how layers are compared: "global" ranks all weights together; "layer" removes the same fraction of
    each layer, "row" of each output row; "erk" gives layers Erdős-Rényi-kernel densities (Evci et al. 2020); "lamp" ranks by
    w² / Σ_{w'² ≥ w²} w'² (Lee et al. 2021, equation 1). See `methods.core.layer_scaling`.

    References: Han et al. 2015; Gale et al. 2019, "The state of sparsity in deep neural networks".
    """

    stages: ClassVar = (Stage.AFTER, Stage.INIT, Stage.DURING)
    data_free: ClassVar = True

    scope: str = Choice("global", *SCOPES, drawn=ACROSS, meaning="how scores of different layers are compared")

    def score(self, problem: Problem) -> Scores:
        """|w|, or w² for "lamp", rescaled by scope. If a layer computes its weight from a parameter, w is what multiplies."""
        power = 2 if self.scope == "lamp" else 1
        return Scores(rescope({n: w.abs().pow(power) for n, w in problem.acting.items()}, self.scope, problem))
