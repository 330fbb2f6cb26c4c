"""Optimal Brain Damage with diagonal curvature."""

from dataclasses import dataclass
from typing import ClassVar

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice, Int
from methods.core.interface import Problem, Scores, Stage
from methods.core.layer_scaling import ACROSS, SCOPES, rescope
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import KINDS
from methods.curvature.precision import widened
from methods.registry.registry import register


@register("obd")
@dataclass(frozen=True, kw_only=True)
class Obd(Criterion):
    """Optimal Brain Damage: remove the weights whose removal increases the loss least, by a quadratic model with diagonal curvature.

    s_k = ½ h_k w_k² is the predicted increase of the loss if only w_k is removed. `curvature`: "ef": h_k = (1/N) Σ_n (∂ℓ_n/∂w_k)², the
    diagonal of the empirical Fisher, from per-sample gradients; "mc": the same with `draws` labels from the network's own
    predictions, an estimate of "ggn", the Gauss-Newton diagonal.

    Reference: LeCun, Denker, Solla, "Optimal brain damage", NIPS 1989, equation 5. Departures: the paper backpropagates the
    diagonal of the Hessian, here the Fisher is used; weights are removed in a single cut, not in rounds with retraining.
    """

    stages: ClassVar = (Stage.AFTER, Stage.INIT, Stage.DURING)

    curvature: str = Choice("ef", *KINDS, meaning="kind of curvature: empirical Fisher, Monte-Carlo or exact Gauss-Newton")
    draws: int = Int(1, minimum=1, meaning="labels drawn for each sample (curvature=mc)")
    samples: int = Int(4096, minimum=1, meaning="training samples that are read, at most")
    scope: str = Choice("global", *SCOPES, drawn=ACROSS, meaning="how scores of different layers are compared")

    def score(self, problem: Problem) -> Scores:
        """½ h ⊙ w², h averaged over samples."""
        weights = problem.weights
        h = curvature(problem, self.curvature, draws=self.draws, samples=self.samples, names=list(weights)).diagonal
        values = {n: 0.5 * (h[n] / problem.samples) * widened(w.detach()).square() for n, w in weights.items()}
        return Scores(rescope(values, self.scope, problem))
