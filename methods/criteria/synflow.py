"""SynFlow: keep the synaptic flow, without data."""

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
    """s_k = |∂R/∂w_k · w_k|, R = 1ᵀ (∏_l |W_l|) 1: the sum over all paths through w_k of the products of the |weights| on them.

    R is the sum of the network's outputs with absolute parameters, zero biases and inputs of ones; no data, only their shape. In
    `n_rounds` rounds densities shrink by an equal factor, and scores are taken anew with the mask applied: in one round, layers
    with many weights starve first, and the network collapses. Double precision, and divided by R, which no ranking notices: the
    scores of a layer that every path passes sum to 1.

    Batch norm is a factor |γ|/√(σ² + ε) for each channel: what it does to differences of its inputs, so that R forgets the scale
    of weights before it as the network does. At initialisation that is 1, for zero γ too (see `methods.paths.Flow`). Max pooling
    stays. R is no sum over paths where a network does more than multiply and add positive numbers, or with an activation that
    bends on them: `unsupported` says so, by the outputs' not scaling with the inputs.

    Reference: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", NeurIPS 2020, section 6 and algorithm 1. Departures: biases are zero and batch norm's shifts left out, where the
    released code keeps their absolute values.
    """

    stages: ClassVar = (Stage.INIT, Stage.AFTER, Stage.DURING)
    data_free: ClassVar = True

    n_rounds: int = Int(100, minimum=1, meaning="rounds of scoring and cutting")

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        """ρ^(k/n) as densities: see `methods.schedule.exponential`."""
        return exponential(present, target, self.n_rounds)

    def unsupported(self, problem: Problem) -> str | None:
        """What makes R undefined. Raises ValueError where the shape of the inputs cannot be known: there are no batches."""
        return undefined(problem.model, problem.input_shape)

    def score(self, problem: Problem) -> Scores:
        """|∂R/∂w ⊙ w| / R, by one forward and one backward pass of a single input."""
        return Scores(flow(problem.model, {n: w.detach() for n, w in problem.weights.items()}, problem.input_shape))
