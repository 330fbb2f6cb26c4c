"""Passes through a network that give the gradients of single samples.

They come from the inputs and output gradients of the layers (`methods.curvature.capture`). For the first two samples of the data
they are compared with autograd, sample by sample. Parameters that are used in an unknown way, or for which the two differ, are
computed by `torch.func.vmap` instead, which is slower; and where vmap fails (recurrent layers, checkpoints), by one backward pass
of autograd for each sample, which is slowest and takes any network.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.core.differentiation import Repairs
from methods.core.interface import Problem, Values
from methods.curvature.accumulators import Sum, squares
from methods.curvature.capture import Capture
from methods.curvature.layer_calls import Use
from methods.curvature.sample_mean import check_outputs

CHUNK = 64  # samples whose gradients vmap computes at once, at most
FORMED = 1 << 27  # numbers in the gradients that exist at once, at most, unless one sample has more
TOLERANCE = 1e-3  # relative difference between captured gradients and those of autograd


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Context in which no parameter requires a gradient, and attention uses an implementation that has one for its inputs."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    fast = torch.backends.mha.get_fastpath_enabled()
    for p, _ in flags:
        p.requires_grad_(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for p, flag in flags:
            p.requires_grad_(flag)


def forward(model: nn.Module, x: Tensor, wanted: Values) -> tuple[Tensor, Capture]:
    """The outputs of the model, and the captured calls with the parameters `wanted` (name -> parameter)."""
    with torch.enable_grad(), Capture({id(p): n for n, p in wanted.items()}, len(x)) as capture:
        f = model(x)
    check_outputs(f, x)
    return f, capture


def by_name(uses: list[Use]) -> dict[str, list[Use]]:
    """Name -> its calls that have received gradients."""
    found: dict[str, list[Use]] = {}
    for use in uses:
        for name in (use.weight, use.bias):
            if name and use.gradients:
                found.setdefault(name, []).append(use)
    return found


def trusted(model: nn.Module, x: Tensor, wanted: Values) -> list[str]:
    """The names of the parameters whose captured gradients agree with those of autograd on two samples, for one random cotangent.

    Two samples are used to detect networks whose samples do not lie along the first dimension. If both gradients are zero, a
    parameter is accepted if a gradient was captured or the outputs do not depend on it: another sample may have a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    x = x[:2] if len(x) > 1 else torch.cat([x, x])
    f, capture = forward(model, x, wanted)
    v = torch.randn(f.shape, generator=generator).to(f)
    ours = _captured_squares(capture, f, v)
    used = set(ours)
    reference = {n: torch.zeros_like(p) for n, p in wanted.items()}
    for n in range(len(x)):
        for name, g in single(model, x[n : n + 1], v[n : n + 1], wanted).items():
            used.add(name)
            reference[name] += g.square()
    largest = {n: float(h.max()) for n, h in reference.items()}
    rounding = (4 * torch.finfo(f.dtype).eps) ** 2 * max(largest.values(), default=0.0)  # before a norm: only rounding error
    return [
        n
        for n, h in reference.items()
        if (n in ours or n not in used) and float((h - ours.get(n, 0.0)).abs().max()) <= TOLERANCE * largest[n] + rounding
    ]


def _captured_squares(capture: Capture, f: Tensor, v: Tensor) -> Values:
    """Name -> Σ_n g², from the captured calls; without the parameters for which they fail."""
    try:
        capture.backward(f, [v], keep=False)
    except (RuntimeError, NotImplementedError):  # a kernel without a backward pass, chosen as no weight requires a gradient
        return {}
    found = {}
    for name, own in by_name(capture.uses).items():
        try:
            found[name] = squares(name, own)
        except RuntimeError:  # the network has overwritten the input of the call
            continue
    return found


def single(model: nn.Module, x: Tensor, v: Tensor, wanted: Values) -> Values:
    """Name -> gradient Jᵀv of one sample by plain autograd, for the parameters that the outputs depend on. x: (1, ...).

    Raises ValueError if torch cannot differentiate the network.
    """
    for p in wanted.values():
        p.requires_grad_(True)
    try:
        with torch.enable_grad(), Repairs():
            f = model(x)
        found = _gradients(f, list(wanted.values()), v) if f.requires_grad else ()
    finally:
        for p in wanted.values():
            p.requires_grad_(False)
    return {n: g.detach() for n, g in zip(wanted, found, strict=bool(found)) if g is not None}


def _gradients(f: Tensor, parameters: list[Tensor], v: Tensor) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(f, parameters, v.view_as(f), allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"torch cannot differentiate this network: {str(error).splitlines()[0]}") from error


def add_directly(model: nn.Module, x: Tensor, columns: Iterable[Tensor], rest: Values, totals: dict[str, Sum]) -> None:
    """Add the squared gradients Jᵀv of the parameters `rest`, for each column v."""
    for v in columns:
        for part in directly(model, x, v, rest):
            for name, g in part.items():
                totals[name].add_squares(g.square().sum(0))


def directly(model: nn.Module, x: Tensor, v: Tensor, rest: Values) -> Iterator[Values]:
    """For some samples at a time: name -> gradients Jᵀv (n, *shape), by vmap or, where it fails, sample by sample."""
    size = max(1, min(CHUNK, FORMED // sum(p.numel() for p in rest.values())))
    for x_part, v_part in zip(x.split(size), v.split(size), strict=True):
        try:
            found = by_vmap(model, x_part, v_part, rest)
        except Exception:  # whatever vmap does not support; an error of the network itself comes again below
            found = _by_autograd(model, x_part, v_part, rest)
        yield found


def by_vmap(model: nn.Module, x: Tensor, v: Tensor, rest: Values) -> Values:
    """Name -> gradients Jᵀv (n, *shape), by `torch.func.vmap`."""
    places = _places(model)
    values = {n: p.detach() for n, p in model.named_parameters()}

    def projected(weights: Values, x: Tensor, v: Tensor) -> Tensor:
        given = {**values, **weights}
        f = functional_call(model, {place: given[n] for place, n in places.items()}, (x.unsqueeze(0),), tie_weights=False)
        total: Tensor = (f * v.unsqueeze(0)).sum()
        return total

    with frozen(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), warnings.catch_warnings():
        # vmap does not support fused attention; loops inside vmap are slow, and nothing can be done about it
        warnings.filterwarnings("ignore", "There is a performance drop")
        found = vmap(grad(projected), in_dims=(None, 0, 0))({n: values[n] for n in rest}, x, v)
    return {n: g.detach() for n, g in found.items()}


def _by_autograd(model: nn.Module, x: Tensor, v: Tensor, rest: Values) -> Values:
    """Name -> gradients Jᵀv (n, *shape), one sample after the other."""
    with frozen(model):
        rows = [single(model, x[n : n + 1], v[n : n + 1], rest) for n in range(len(x))]
    return {n: torch.stack([row[n] if n in row else torch.zeros_like(p) for row in rows]) for n, p in rest.items()}


def _places(model: nn.Module) -> dict[str, str]:
    """Path of each parameter in the modules -> its name; torch's own handling of ties fails for a module with two names."""
    name_of = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{path}.{key}".lstrip("."): name_of[id(p)]
        for path, module in model.named_modules()
        for key, p in module.named_parameters(recurse=False, remove_duplicate=False)
    }


def first_batches(problem: Problem, samples: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches of the training data on the model's device, until `samples` samples are reached."""
    seen = 0
    for x, y in problem.batches:
        if samples is not None and seen >= samples:
            return
        yield x.to(problem.device), y.to(problem.device)
        seen += len(y)
