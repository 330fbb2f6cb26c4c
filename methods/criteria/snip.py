"""SNIP: connection sensitivity."""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch

from methods.core.configurations import Criterion
from methods.core.differentiation import Repairs, differentiable
from methods.core.hyperparameters import Choice, Int
from methods.core.interface import Problem, Scores, Stage
from methods.core.schedule import exponential
from methods.core.scoring_modes import MODES, scored_in
from methods.curvature.precision import full_precision
from methods.curvature.sample_mean import SampleMean
from methods.registry.registry import register


@register("snip")
@dataclass(frozen=True, kw_only=True)
class Snip(Criterion):
    """SNIP: remove the weights that affect the loss least (connection sensitivity).

    s_k = |∂L/∂c_k| at c = 1 = |g_k w_k|, where c multiplies the weights and g = ∂L/∂w.

    L is the mean loss over the first `n_batches` batches together: the absolute value is taken of the aggregated gradient, not of
    the gradient of each batch. The paper's normalisation by Σ_k s_k does not change the ranking and is omitted.

    `mode`: batch norm uses its running statistics ("eval", at initialisation 0 and 1: no normalisation) or those of the batch
    ("train"; the running ones do not change). Dropout is off. A norm whose γ are all zero, as at the end of residual branches of many
    networks at initialisation, is scored with γ = 1: otherwise all scores in its branch are zero (as `synflow` does).

    `n_rounds` > 1 is Iterative SNIP: the density shrinks by the same factor in each round, and s is computed anew with the mask
    applied. Masked weights stay masked, the variant without regrowth (de Jorge, Sanyal, Behl, Torr, Rogez, Dokania, "Progressive
    skeletonization: trimming more fat from a network at initialization", ICLR 2021; FORCE is the other variant). All rounds read the
    same batches.

    Reference: Lee, Ajanthan, Torr, "SNIP: single-shot network pruning based on connection sensitivity", ICLR 2019,
    equations 3-6; its code scores with running statistics. Departure: norms with γ = 0 are scored with γ = 1.
    """

    stages: ClassVar = (Stage.INIT, Stage.AFTER, Stage.DURING)

    n_batches: int = Int(1, 1, 10, minimum=1, meaning="training batches that are read")
    n_rounds: int = Int(1, minimum=1, meaning="rounds of scoring and cutting; above 1: Iterative SNIP")
    mode: str = Choice("eval", *MODES, tuned=False, meaning="statistics of batch norm while scoring: running ones, or those of the batch")

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        """`n_rounds` rounds, see `methods.core.schedule.exponential`."""
        return exponential(present, target, self.n_rounds)

    def score(self, problem: Problem) -> Scores:
        """|g ⊙ w|, from one forward and backward pass per batch.

        Raises:
            ValueError: if there are no batches, or the loss is not a mean over samples.
        """
        with full_precision(problem) as wide, differentiable(wide.model), scored_in(wide.model, self.mode), Repairs():
            weights, mean = wide.weights, SampleMean(wide.loss)
            total = {n: torch.zeros_like(w) for n, w in weights.items()}
            samples = 0
            for x, y in islice(wide.read(), self.n_batches):
                gradients = torch.autograd.grad(mean(wide.model(x), y), list(weights.values()), materialize_grads=True)
                for name, g in zip(weights, gradients, strict=True):
                    total[name] += g * len(y)
                samples += len(y)
            if not samples:
                raise ValueError("snip needs training data: there are no batches")
            return Scores({n: (g / samples * weights[n].detach()).abs() for n, g in total.items()})
