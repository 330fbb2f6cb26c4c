"""The Gaussian prior N(0, 1/d) over the weights, with precision d."""

import torch
from torch import Tensor, nn


def uniform_prior(model: nn.Module, precision: float) -> dict[str, Tensor]:
    """The same prior precision for every trainable parameter: name -> scalar tensor, float32 for half-precision parameters."""
    return {
        n: torch.tensor(precision, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
        for n, p in model.named_parameters()
        if p.requires_grad
    }
