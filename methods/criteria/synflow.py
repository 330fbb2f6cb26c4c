"""SynFlow: synaptic flow, without data."""

from dataclasses import dataclass
from typing import ClassVar

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Int
from methods.core.interface import Problem, Scores, Stage
from methods.core.schedule import exponential
from methods.registry.registry import register
from methods.structure.path_flow import flow, undefined


@register("synflow")
@dataclass(frozen=True, kw_only=True)
class Synflow(Criterion):
    """SynFlow: remove the weights with the least synaptic flow, in many rounds and without data.

    s_k = |∂R/∂w_k · w_k| with R = 1ᵀ (∏_l |W_l|) 1: the sum over all paths through w_k of the products of the |weights| on them.

    R is the sum of the network's outputs with absolute parameters, zero biases and inputs of ones; only the shape of the inputs is
    needed. In `n_rounds` rounds the density shrinks by the same factor, and scores are computed anew with the mask applied; in a
    single round whole layers would be removed. Scores are computed in double precision and divided by R, which does not change
    the ranking: the scores of a layer that every path passes sum to 1.

    Batch norm is a factor |γ|/√(σ² + ε) per channel, what it does to differences of its inputs, so R is as independent of the scale
    of earlier weights as the network. At initialisation the factor is 1, also for γ = 0 (see `methods.structure.flow_modes.Flow`).
    Max pooling stays. Networks whose outputs are not sums over paths (normalisation other than batch norm, attention, gates) and
    activations that are not linear for positive numbers are not supported.

    Reference: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", NeurIPS 2020, section 6 and algorithm 1. Departures: biases are zero and the shifts of batch norm are omitted; the
    released code uses their absolute values.
    """

    stages: ClassVar = (Stage.INIT, Stage.AFTER, Stage.DURING)
    data_free: ClassVar = True

    n_rounds: int = Int(100, minimum=1, meaning="rounds of scoring and cutting")

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        """Densities ρ^(k/n), see `methods.core.schedule.exponential`."""
        return exponential(present, target, self.n_rounds)

    def unsupported(self, problem: Problem) -> str | None:
        """The reason why R is not defined. Raises ValueError if the shape of the inputs is unknown."""
        return undefined(problem.model, problem.input_shape)

    def score(self, problem: Problem) -> Scores:
        """|∂R/∂w ⊙ w| / R, from one forward and one backward pass of a single input."""
        return Scores(flow(problem.model, {n: w.detach() for n, w in problem.weights.items()}, problem.input_shape))
