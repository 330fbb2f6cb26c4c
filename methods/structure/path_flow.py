"""A network as the sum of its paths from inputs to outputs.

Set biases to zero, neutralise norms, take absolute values of the parameters and inputs of ones. If all units pass positive numbers
on unchanged, the outputs of the network sum to R, the sum over all paths of the products of the |weights| on them. From R follow the
share that flows through a weight (`flow`, for the criterion `synflow`) and whether a weight is on any path (`effective_sparsity`).
The latter depends on no values, so it is defined for any activation.

Modes watch the calls of torch functions, as in `methods.curvature.capture`; the network is not copied or changed.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from methods.core.masks import Mask
from methods.core.modes import evaluating
from methods.core.prunable import prunable
from methods.structure.flow_modes import LARGE, SMALL, Connections, Flow, near

SCALES = 1.0, 2.0**-480, 2.0**480, 2.0**-960, 2.0**960
LIMIT = 2.0**1000
_known: WeakKeyDictionary[nn.Module, dict[Any, str | None]] = WeakKeyDictionary()


# --- networks without paths ------------------------------------------------------------------------------------------


def undefined(model: nn.Module, input_shape: tuple[int, ...], view: type[Flow] = Flow) -> str | None:
    """The reason why a network is not a sum over paths, in one line; None if it is one.

    This is tested, on random positive inputs with random positive weights: f(c·x) = c·f(x) for c > 0, for all functions other than
    layers with weights and for the whole network; for a linear view also f(x + y) = f(x) + f(y). The result depends on the
    architecture only and is stored. Layer and group norm, attention, gates, class tokens and position embeddings are not
    supported; with `Flow` neither are activations that are not linear for positive numbers.

    Args:
        model: the network.
        input_shape: shape of one input, without the batch dimension.
        view: `Flow` or `Connections`.
    """
    known: dict[Any, str | None] = _known.setdefault(model, {})
    asked = (view, tuple(input_shape), *map(type, model.modules()))
    if asked not in known:
        known[asked] = _probed(model, input_shape, view)
    return known[asked]


def _probed(model: nn.Module, input_shape: tuple[int, ...], view: type[Flow]) -> str | None:
    parameters = prunable(model)
    if not parameters:
        return "it has no layer with weights"
    device = next(iter(parameters.values())).device
    generator = torch.Generator().manual_seed(0)
    x, y = _random(torch.Size((2, *input_shape)), device, generator)
    inputs = torch.stack([x, y, x + y] if view.linear else [SMALL * x, LARGE * x]).requires_grad_()
    # Divided by the fan-in, so that outputs are about as large as inputs.
    weights = {id(p): _random(p.shape, device, generator) * (p.shape[0] / p.numel()) for p in parameters.values()}
    seen = view(weights, probe=True)
    try:
        with evaluating(model), torch.enable_grad(), seen:
            f = model(inputs)
    except Exception as error:  # networks raise all kinds of exceptions; they have no paths then
        return f"it cannot be run on real numbers with other weights ({' '.join(str(error).split())[:120]})"
    if not isinstance(f, Tensor):
        return f"it returns a {type(f).__name__}, not a tensor"
    f = f.detach()
    if seen.breaks:
        return f"its outputs are not sums over paths of weights: it contains {', '.join([*dict.fromkeys(seen.breaks)][:5])}"
    if seen.fault:
        return seen.fault
    holds = near(f[0] + f[1], f[2]) if view.linear else near(f[0] / SMALL, f[1] / LARGE)
    if not holds:
        return "its outputs are not sums over paths of weights"
    return None if f.any() else "no path leads from its inputs to its outputs"


def _random(shape: torch.Size, device: torch.device, generator: torch.Generator) -> Tensor:
    """Positive numbers of mean 1 that vary strongly, so that different ones are the largest."""
    return (4.0 * torch.rand(shape, generator=generator) ** 3).to(device)


# --- what is read off --------------------------------------------------------------------------------------------------


def flow(model: nn.Module, weights: Mapping[str, Tensor], input_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The share of R that flows through each weight: |w ∂R/∂w| / R.

    In a very deep network R may overflow or vanish. A factor on the inputs is a factor on R and cancels in the share, so powers of
    two are tried. (Rescaling single layers would change the ranking if some paths bypass them.)

    Args:
        model: a network for which `undefined` is None.
        weights: name -> value to use; other prunable weights are used as they are.
        input_shape: shape of one input, without the batch dimension.

    Returns:
        Name -> share, in double precision; zeros if R = 0.

    Raises:
        ValueError: if R cannot be represented in double precision.
    """
    parameters = prunable(model)
    leaves = {n: weights.get(n, p).detach().double().abs().requires_grad_() for n, p in parameters.items()}
    ones = torch.ones(1, *input_shape, dtype=torch.float64, device=next(iter(leaves.values())).device)
    with evaluating(model, parameters), torch.enable_grad():
        for scale in SCALES:
            with Flow({id(p): leaves[n] for n, p in parameters.items()}):
                total = model(scale * ones).sum()
            if 1 / LIMIT < total < LIMIT:
                break
        else:
            if total != 0:
                raise ValueError("the sum over the paths of the network cannot be represented in double precision")
            return {n: torch.zeros_like(leaves[n]) for n in weights}
    scored = [leaves[n] for n in weights]
    gradients = torch.autograd.grad(total, scored, 1 / total.detach(), materialize_grads=True)
    return {n: g * leaves[n].detach() for n, g in zip(weights, gradients, strict=True)}


def effective_sparsity(model: nn.Module, mask: Mask, input_shape: tuple[int, ...]) -> float | None:
    """The fraction of the prunable weights that are masked or on no path of kept weights from an input to an output.

    Activations and norms of single channels do not matter. Constants are not inputs: a unit that only its bias reaches is on no path,
    and neither is a weight of a convolution that only meets padding (most weights of 3x3 kernels on maps of one pixel).

    Args:
        model: the network; it is not changed.
        mask: name -> bool tensor; prunable weights that it does not name are kept and not counted.
        input_shape: shape of one input, without the batch dimension.

    Returns:
        A fraction in [0, 1]; None if paths are not defined, see `undefined`.
    """
    if undefined(model, input_shape, Connections) is not None:
        return None
    parameters = prunable(model)
    leaves = {
        n: mask.get(n, torch.ones_like(p, dtype=torch.bool)).to(p.device, torch.float64).requires_grad_() for n, p in parameters.items()
    }
    device = next(iter(leaves.values())).device
    with evaluating(model, parameters), torch.enable_grad(), Connections({id(p): leaves[n] for n, p in parameters.items()}, reach=True):
        total = model(torch.ones(1, *input_shape, dtype=torch.float64, device=device)).sum()
    counted = [leaves[n] for n in mask]
    gradients = torch.autograd.grad(total, counted, materialize_grads=True)
    live = sum(int((m * g > 0).sum()) for m, g in zip(counted, gradients, strict=True))
    return 1.0 - live / sum(m.numel() for m in counted)
