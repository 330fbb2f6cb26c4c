"""The Gaussian prior N(0, 1/d) over the weights, with precision d."""

import torch
from torch import Tensor, nn

from methods.core.interface import Posterior, Problem


def uniform_prior(model: nn.Module, precision: float) -> dict[str, Tensor]:
    """The same prior precision for every trainable parameter: name -> scalar tensor, float32 for half-precision parameters."""
    return {
        n: torch.tensor(precision, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
        for n, p in model.named_parameters()
        if p.requires_grad
    }


def decayed(problem: Problem, weight_decay: float) -> Posterior:
    """The posterior of the L2 penalty ½ · weight_decay · ‖θ‖² of the mean loss: the prior d = weight_decay · N, without curvature."""
    return Posterior(uniform_prior(problem.model, weight_decay * problem.samples), problem.samples)
