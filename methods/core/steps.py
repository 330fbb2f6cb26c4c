"""What the training loop does to gradients, weights and the optimiser's memory in a step."""

import torch
from torch import Tensor, nn

from methods.core.masks import Mask, stored


def check_finite(losses: list[Tensor], named: dict[str, nn.Parameter], when: str) -> None:
    """Raise FloatingPointError if a loss of an epoch, or a weight after it, is not finite. Read once per epoch, as reading waits."""
    values = torch.stack(losses)
    if not bool(values.isfinite().all()):
        first = int((~values.isfinite()).nonzero()[0])
        raise FloatingPointError(f"the training loss is {float(values[first])} in {when}, batch {first + 1}")
    with torch.no_grad():
        largest = torch.stack([n.float() for n in torch._foreach_norm(list(named.values()), float("inf"))])
    if not bool(largest.isfinite().all()):
        name = list(named)[int((~largest.isfinite()).nonzero()[0])]
        raise FloatingPointError(f"'{name}' is no longer finite after a step in {when}, although the losses are: its gradient is not")


@torch.no_grad()
def decay_gradients(decayed: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Add the gradient d θ T / N of the Gaussian prior, as if ½ Σ d θ² T / N were in the loss: one call for all parameters."""
    reached = [(p, c) for p, c in decayed if p.grad is not None]
    if reached:
        gradients: list[Tensor] = [p.grad for p, _ in reached]  # type: ignore[misc]
        torch._foreach_addcmul_(gradients, [p for p, _ in reached], [c for _, c in reached])


@torch.no_grad()
def shrink(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Decoupled weight decay, θ ← θ - lr λ θ, of the parameters that the next step changes."""
    for group in optimizer.param_groups:
        reached = [p for p in group["params"] if p.grad is not None]
        if reached:
            torch._foreach_mul_(reached, 1.0 - group["lr"] * decay)


def masked_parameters(model: nn.Module, mask: Mask) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters of weights that are partly masked, each with its mask as a tensor of 0 and 1."""
    return [(p, m.to(p.dtype)) for n, m in mask.items() if not bool(m.all()) for p in stored(model, n, m.shape)]


def mask_gradients(masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Zero the gradients of masked weights. They start at zero and get no momentum, so they stay at zero."""
    for p, m in masked:
        if p.grad is not None:
            p.grad.mul_(m)


@torch.no_grad()
def mask_weights(masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    for p, m in masked:
        p.mul_(m)


def mask_memory(optimizer: torch.optim.Optimizer, masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Clear the momentum and second moment of weights that were just cut; either would move them at the next step."""
    for p, m in masked:
        for value in optimizer.state.get(p, {}).values():
            if isinstance(value, Tensor) and value.shape == p.shape:
                value.mul_(m)
