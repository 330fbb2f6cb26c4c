"""The Gaussian prior as a penalty: ½ Σ d_k θ_k² · T / N beside the mean loss, one code for every training that has one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from methods.interface import Posterior


class _HalfWeightedSquares(torch.autograd.Function):
    """Σ_i ½ Σ (c_i ⊙ θ_i²), with gradient c_i ⊙ θ_i: the products of the forward pass are the gradient, so they are kept."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        half = len(tensors) // 2
        weights, coefficients = list(tensors[:half]), list(tensors[half:])
        products = torch._foreach_mul(weights, coefficients)  # torch's foreach functions: one call for all tensors
        ctx.save_for_backward(*products)
        return 0.5 * torch.stack([square.sum() for square in torch._foreach_mul(products, weights)]).sum()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # products were taken without a graph: refuse a second derivative
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        products = ctx.saved_tensors
        return (*torch._foreach_mul(products, g), *(None for _ in products))


def gaussian_penalty(parameters: Mapping[str, nn.Parameter], posterior: Posterior) -> Tensor:
    """½ Σ_k d_k θ_k² · T / N over the parameters the prior covers: a scalar, differentiable in the weights."""
    covered = [(p, posterior.decay[n]) for n, p in parameters.items() if n in posterior.decay]
    if not covered:
        return torch.zeros(())
    return _HalfWeightedSquares.apply(*(p for p, _ in covered), *(c for _, c in covered))  # type: ignore[no-any-return, no-untyped-call]


def uniform_prior(model: nn.Module, precision: float) -> dict[str, Tensor]:
    """The same prior precision for every trainable parameter: name -> scalar tensor."""
    return {n: torch.tensor(precision, dtype=p.dtype, device=p.device) for n, p in model.named_parameters() if p.requires_grad}
