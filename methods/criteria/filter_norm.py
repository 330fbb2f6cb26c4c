"""The norm of filters."""

from dataclasses import dataclass
from typing import ClassVar

from methods.core.configurations import Criterion
from methods.core.filters import filters
from methods.core.hyperparameters import Choice
from methods.core.interface import Problem, Scores, Stage
from methods.curvature.precision import widened
from methods.registry.registry import register


@register("filter_norm")
@dataclass(frozen=True, kw_only=True)
class FilterNorm(Criterion):
    """Filter norm: remove the output channels whose filters have the smallest norm.

    s_j = ‖F_j‖_p, F_j the weights of output channel j of a layer, p the `norm`. `magnitude` also counts the weights of the layers
    that read the channel; here only the filter itself counts. Of a channel that several layers produce the norms are added.

    References: Li, Kadav, Durdanovic, Samet, Graf, "Pruning filters for efficient ConvNets", ICLR 2017, section 3.1 (p = 1);
    He et al., "Soft filter pruning for accelerating deep convolutional neural networks", IJCAI 2018 (p = 2).
    """

    stages: ClassVar = (Stage.AFTER, Stage.INIT, Stage.DURING)
    data_free: ClassVar = True

    norm: int = Choice(1, 1, 2, tuned=False, meaning="order p of the norm: sum of absolute values, or Euclidean norm")

    @property
    def granularities(self) -> tuple[str, ...]:
        """Output channels only."""
        return ("channel",)

    def score(self, problem: Problem) -> Scores:
        """‖F_j‖_p of each output channel."""
        found = filters(problem.model, {n: widened(w) for n, w in problem.acting.items()})
        return Scores(rows={n: f.norm(p=self.norm, dim=1) for n, f in found.items()})
