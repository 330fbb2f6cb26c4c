"""The columns of V_n, where V_n V_nᵀ is the curvature of a sample's loss with respect to the outputs: see `methods.curvature.compute`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.core.interface import Loss

KINDS = ("ef", "mc", "ggn")


def half_squared_error(f: Tensor, y: Tensor) -> Tensor:
    """½‖f - y‖², averaged over a batch: -log N(y; f, 1) up to a constant.

    `F.mse_loss` also averages over the outputs, which does not correspond to a likelihood, so it is not accepted in its place.

    Args:
        f: outputs (samples, outputs).
        y: targets of the same shape.

    Returns:
        A scalar tensor.

    Raises:
        ValueError: if the shapes differ.
    """
    if f.shape != y.shape:
        raise ValueError(f"outputs and targets must have the same shape, not {tuple(f.shape)} and {tuple(y.shape)}")
    return 0.5 * F.mse_loss(f, y, reduction="sum") / len(y)


def columns_of(kind: str, loss: Loss, f: Tensor, y: Tensor, draws: int, generator: torch.Generator) -> list[Tensor]:
    """The columns of V, each with the shape (samples, classes) of the outputs `f`. `kind`: see `methods.curvature.compute`."""
    if kind == "ef":
        leaf = f.clone().requires_grad_()
        with torch.enable_grad():
            return [torch.autograd.grad(loss(leaf, y) * len(y), leaf)[0]]
    if loss is half_squared_error:
        if kind == "mc":
            return list(torch.randn(draws, *f.shape, generator=generator, dtype=torch.float64).to(f) / draws**0.5)
        return list(torch.eye(f.shape[1]).to(f).unsqueeze(1).expand(-1, *f.shape))
    p = f.double().softmax(1)
    if kind == "mc":
        labels = sample_labels(p, draws, generator)
        one_hot = F.one_hot(labels, p.shape[1])
        return [((p - one_hot[:, k]) / draws**0.5).to(f.dtype) for k in range(draws)]
    return list(softmax_factor(p).to(f.dtype).unbind(2))


def softmax_factor(p: Tensor) -> Tensor:
    """The lower Cholesky factor L (n, classes, classes - 1), with L Lᵀ = diag(p) - p pᵀ, in closed form.

    With q_c = Σ_{j>c} p_j: L_cc = √(p_c q_c / q_{c-1}), L_ic = -p_i √(p_c / (q_{c-1} q_c)) below (Tanabe and Sagae 1992).
    """
    classes = p.shape[1]
    tail = p.flip(1).cumsum(1).flip(1)  # q_{c-1}
    before, after = tail[:, :-1], tail[:, 1:]
    tiny = torch.finfo(p.dtype).tiny
    root = (p[:, :-1] / before.clamp_min(tiny)).sqrt()
    below = -p.unsqueeze(2) * (root / after.clamp_min(tiny).sqrt()).unsqueeze(1)
    diagonal = torch.diag_embed(root * after.sqrt())
    lower = torch.ones(classes, classes - 1, dtype=torch.bool, device=p.device).tril(-1)
    return torch.where(lower, below, 0.0) + F.pad(diagonal, (0, 0, 0, 1))


def sample_labels(p: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw labels (n, draws) from probabilities p (n, classes), by inverting the distribution function of each row."""
    u = torch.rand(len(p), draws, generator=generator, dtype=torch.float64).to(p.device)
    return torch.searchsorted(p.cumsum(1).contiguous(), u).clamp_(max=p.shape[1] - 1)
