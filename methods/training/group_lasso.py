"""Group lasso on filters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.configurations import Training
from methods.core.filters import as_filters, with_filters
from methods.core.hyperparameters import Float
from methods.core.interface import Posterior, Problem
from methods.posterior.prior import decayed
from methods.posterior.unfinished import Unfinished
from methods.registry.registry import register


@register("group_lasso")
@dataclass(frozen=True, kw_only=True)
class GroupLasso(Training):
    """Group lasso: train with a penalty on the Euclidean norm of each filter, which makes whole filters zero.

    Minimises the mean loss + λ Σ_g √|g| ‖w_g‖₂ + ½ · weight_decay · ‖θ‖², λ = `lam`. A group g holds the |g| weights of one output
    channel of a Linear or convolutional layer, all prunable layers together. The gradient is λ √|g| w_g / ‖w_g‖₂, and 0 for w_g = 0.
    Criterion `filter_norm(norm=2)` then removes the smallest groups. Fine-tuning has no group penalty. The posterior is the prior of
    `map`, without curvature.

    Reference: Wen, Wu, Wang, Chen, Li, "Learning structured sparsity in deep neural networks", NIPS 2016, equation 2 and the
    filter-wise term of equation 3; Yuan and Lin 2006 for the factor √|g|. Departures: the paper has no factor √|g|, and penalises
    channels, shapes of filters or depth too; here Linear layers are included, and so is the last layer, whose outputs stay. Plain
    gradient steps, without a proximal step, bring groups close to zero and not exactly to it; `lam` is ours.
    """

    lam: float = Float(3e-4, 1e-5, 1e-2, log=True, minimum=0, meaning="strength λ of the penalty on the norms of filters")
    weight_decay: float = Float(1e-3, 1e-5, 2e-2, log=True, minimum=0, meaning="coefficient of the L2 penalty: ½ · weight_decay · ‖θ‖²")

    def prepare(self, problem: Problem) -> Posterior:
        """The prior d = weight_decay · N, N the number of training samples; prunable weights get the group penalty."""
        names = {n: transposed for n, transposed in with_filters(problem.model).items() if n in problem.weights}
        return Unfinished(decayed(problem, self.weight_decay).prior, problem.samples, penalised=names)

    def penalty(self, parameters: Mapping[str, nn.Parameter], state: Posterior) -> Tensor | None:
        """λ Σ_g √|g| ‖w_g‖₂; None while fine-tuning."""
        penalised = state.penalised.items() if isinstance(state, Unfinished) else ()
        groups = [as_filters(parameters[n], transposed) for n, transposed in penalised if n in parameters]
        norms = [math.sqrt(g.shape[1]) * torch.linalg.vector_norm(g, dim=1).sum() for g in groups]
        return self.lam * torch.stack(norms).sum() if norms else None

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """The prior, as with `map`."""
        return decayed(problem, self.weight_decay)
