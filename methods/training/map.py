"""Standard training with an L2 penalty."""

from dataclasses import dataclass

from methods.core.configurations import Training
from methods.core.hyperparameters import Float
from methods.core.interface import Posterior, Problem
from methods.posterior.prior import decayed
from methods.registry.registry import register


@register("map")
@dataclass(frozen=True, kw_only=True)
class Map(Training):
    """Standard training with an L2 penalty (maximum a posteriori under a fixed Gaussian prior).

    Minimises the mean loss + ½ · weight_decay · ‖θ‖² over all trainable parameters. The penalty is part of the loss, not decoupled, so
    this is `spam` with its prior fixed at d = weight_decay · N. The posterior is this prior, without curvature.
    """

    weight_decay: float = Float(1e-3, 1e-5, 2e-2, log=True, minimum=0, meaning="coefficient of the L2 penalty: ½ · weight_decay · ‖θ‖²")

    def prepare(self, problem: Problem) -> Posterior:
        """The prior d = weight_decay · N, N the number of training samples."""
        return decayed(problem, self.weight_decay)
