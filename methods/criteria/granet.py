"""GraNet: gradual pruning with regrowth."""

from dataclasses import dataclass

import torch

from methods.core.hyperparameters import Float
from methods.core.interface import Problem, Scores, Values
from methods.core.regrowth import Regrowing
from methods.core.schedule import Move
from methods.registry.registry import register


@register("granet", costly=True)
@dataclass(frozen=True, kw_only=True)
class GraNet(Regrowing):
    """GraNet: prune gradually by magnitude, and after each cut replace small weights by removed ones with large gradients.

    At the times t of the moves (see `methods.Regrowing`) the network is cut to the sparsity

        s(t) = s_f + (s_i - s_f) (1 - t/t_f)³,    s_f the target, s_i = `initial`, t_f = `until` · T,

    by |θ| over all layers together. Then every layer drops the fraction α_t of its kept weights with the smallest |θ|, and grows as many
    with the largest |∂L/∂θ|, L the loss of the current batch. The last move, at t_f, cuts to s_f and replaces nothing.

    Reference: Liu et al., "Sparse training via boosting pruning plasticity with neuroregeneration", NeurIPS 2021, section 4; s_i = 0 is
    its dense-to-sparse form. Departures: cuts begin with the first step; the number of moves is given, not the steps between them;
    α_t falls to zero at t_f; with s_i > 0 the start is cut by |θ| at initialisation instead of at random.
    """

    fraction: float = Float(0.5, 0.1, 0.5, above=0, maximum=1, meaning="α: fraction of each layer that the first move replaces")
    initial: float = Float(0.0, minimum=0, maximum=0.99, meaning="sparsity before the first step")

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        """Cuts on the cubic schedule, each with a regrowth; the last one reaches the target."""
        end = max(1, round(self.until * steps))
        start = min(self.initial, target)
        found = {0: Move(start)} if start else {}
        for t in self.times(steps):
            if t < end:
                found[t] = Move(min(target, target + (start - target) * (1.0 - t / end) ** 3), self.share(t, steps))
        return found | {end: Move(target)}

    def score(self, problem: Problem) -> Scores:
        """|θ|."""
        return Scores({n: w.abs() for n, w in problem.acting.items()})

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        """|∂L/∂θ|."""
        return {n: g.abs() for n, g in gradients.items()}
