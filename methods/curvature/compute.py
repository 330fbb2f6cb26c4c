"""Curvature of the training loss, diagonal or Kronecker-factored, in one pass over the data.

With J_n the Jacobian of the outputs f(x_n) with respect to the parameters, every curvature here is Σ_n J_nᵀ V_n V_nᵀ J_n, and
the columns of V_n are what is propagated backward:

    "ef"    empirical Fisher        one column, ∂ℓ(f(x_n), y_n)/∂f
    "mc"    Monte-Carlo GGN         `draws` columns, ∂ℓ(f(x_n), ỹ)/∂f / √draws with ỹ ~ softmax(f(x_n))
    "ggn"   generalised Gauss-Newton  classes - 1 columns, V Vᵀ = diag(p) - p pᵀ, p = softmax(f(x_n))

For `half_squared_error`, V Vᵀ = 1 instead: "mc" draws standard normal columns, "ggn" takes one for each output.

For cross-entropy the generalised Gauss-Newton matrix equals the Fisher of the model's own predictions (Martens 2020, JMLR
21:146, section 9), so "mc" is an unbiased estimate of "ggn". "ef" uses the labels instead: it vanishes where the training
data are fitted, and is no substitute for the GGN after training. The square of a mini-batch's mean gradient is none of these,
so every sample's gradient is taken on its own.

Samples' gradients come from the layers' inputs and output gradients (`methods.capture`). What that gives is compared, for the
first two samples of the data, with autograd, sample by sample; parameters used in a way that `methods.capture` does not know,
or where the two differ, are taken through `torch.func.vmap` instead: slower, and right.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.core.interface import Problem, Values
from methods.curvature.accumulators import DiagonalSum, Sum, kronecker_sums, squares
from methods.curvature.accumulators import samples as gradients_of
from methods.curvature.blocks import Block
from methods.curvature.layer_calls import Capture, Use
from methods.curvature.loss_factors import KINDS, columns_of, half_squared_error

STRUCTURES = ("diagonal", "kronecker")
SHARING = ("expand", "reduce")
CHUNK = 64  # samples whose gradients vmap holds at once, at most
PASS = 128  # samples of one pass where gradients are wanted one by one, at most
FORMED = 1 << 27  # numbers of gradients formed at once, or those of one sample where they are more
TOGETHER = 10  # columns whose output gradients are held at once
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Curvature:
    """`blocks`: parameter name -> curvature, summed over the N training samples. `loss`: Σ_n ℓ(f(x_n), y_n) in nats."""

    blocks: dict[str, Block]
    loss: float

    @property
    def diagonal(self) -> Values:
        """Name -> diagonal of the curvature, of the parameter's shape."""
        return {n: block.diagonal() for n, block in self.blocks.items()}


def curvature(
    problem: Problem,
    kind: str,
    *,
    structure: str = "diagonal",
    draws: int = 1,
    sharing: str = "expand",
    positions: int | None = None,
    samples: int | None = None,
    names: list[str] | None = None,
    purpose: str = "curvature",
) -> Curvature:
    """Curvature at the present weights, summed over the N training samples.

    `kind`: "ef", "mc" (with `draws` samples of the labels) or "ggn". `structure`: "diagonal", or "kronecker": B ⊗ A for the
    weights of Linear and Conv layers (for each group), a full block for their biases, diagonals for all others. `sharing`:
    how positions that share a weight enter the factors (Eschenhagen et al. 2023, "KFAC for modern neural network
    architectures"): "expand" (A = mean over samples and positions of a aᵀ, B = sum of g gᵀ) or "reduce" (a averaged, g
    summed over positions first). `positions`: "expand" takes A over about so many positions of each sample, drawn anew for each
    batch, since A is the mean of very many; over all where None. `samples`: use about so many (whole batches, in the order of
    `problem.batches`) and scale the sum up to N; all where None. `names`: the parameters wanted, all trainable ones where None.

    The model should be in eval mode: batch statistics would couple the samples. Raises ValueError for an unknown kind, where
    "mc" or "ggn" meets a loss other than cross-entropy and `half_squared_error`, and where there are no batches.
    """
    for value, known in ((kind, KINDS), (structure, STRUCTURES), (sharing, SHARING)):
        if value not in known:
            raise ValueError(f"curvature '{value}' is not one of {', '.join(known)}")
    if kind != "ef" and problem.loss not in (F.cross_entropy, half_squared_error):
        raise ValueError(f"curvature '{kind}' takes labels from the model: it needs the cross-entropy loss, or half_squared_error")
    model = problem.model
    parameters = dict(model.named_parameters())
    wanted = names if names is not None else [n for n, p in parameters.items() if p.requires_grad]
    shapes: Values = {n: parameters[n] for n in wanted}
    generator = problem.generator(purpose)
    totals: dict[str, Sum] = {}
    captured: list[str] | None = None
    loss, seen = 0.0, 0
    with _frozen(model):
        for x, y in _first(problem, samples):
            if captured is None:
                captured = _trusted(model, x, shapes)
                totals = {n: DiagonalSum(p) for n, p in shapes.items()}
            f, capture = _forward(model, x, {n: shapes[n] for n in captured})
            uses = capture.uses
            outputs = f.detach()
            loss += float(problem.loss(outputs, y)) * len(y)
            columns = columns_of(kind, problem.loss, outputs, y, draws, generator)
            if seen == 0 and structure == "kronecker":
                totals |= kronecker_sums(uses, shapes, sharing, positions, problem.generator(purpose, "positions"))
            for k in range(0, len(columns), TOGETHER):
                capture.backward(f, columns[k : k + TOGETHER], keep=k + TOGETHER < len(columns))
                for name, own in _by_name(uses).items():
                    totals[name].add(name, own, first=k == 0)
                for use in uses:
                    use.gradients.clear()
            rest = {n: p for n, p in shapes.items() if n not in captured}
            if rest:
                _add_by_vmap(model, x, columns, rest, totals)
            seen += len(y)
    if captured is None:
        raise ValueError("there are no batches to take the curvature on")
    scale = problem.samples / seen
    return Curvature({n: total.block(scale) for n, total in totals.items()}, loss * scale)


def sample_gradients(
    problem: Problem, names: list[str], *, samples: int | None = None, mini_batch: int = 1
) -> Iterator[tuple[str, Tensor]]:
    """Gradients of the loss at the present weights, sample by sample: (name, (n, *shape)), each name in turn for n samples.

    No more than FORMED numbers are formed at once, which decides n. `samples`: the first so many training samples, all where
    None. `mini_batch` m: the gradients of the mean loss of m consecutive samples instead, whatever the loader's batches; what is
    left over at the end is not used, unless it is all there is. Every name is yielded with the same number of gradients in
    all, zeros where the loss does not depend on it.

    The model should be in eval mode. Raises ValueError where there are no batches.
    """
    parameters = dict(problem.model.named_parameters())
    wanted: Values = {n: parameters[n] for n in names}
    return _one_by_one(problem, wanted, samples) if mini_batch == 1 else _by_mini_batch(problem, wanted, samples, mini_batch)


def _one_by_one(problem: Problem, wanted: Values, samples: int | None) -> Iterator[tuple[str, Tensor]]:
    model, captured = problem.model, None
    size = max(1, min(PASS, FORMED // max(p.numel() for p in wanted.values())))
    for x, y in _regrouped(problem, size, samples):
        with _frozen(model):
            if captured is None:
                captured = _trusted(model, x, wanted)
            f, capture = _forward(model, x, {n: wanted[n] for n in captured})
            columns = columns_of("ef", problem.loss, f.detach(), y, 1, problem.generator())
            capture.backward(f, columns, keep=False)
        uses = _by_name(capture.uses)
        for name in captured:
            yield name, next(gradients_of(name, uses[name])) if name in uses else y.new_zeros(len(y), *wanted[name].shape, dtype=f.dtype)
        rest = {n: p for n, p in wanted.items() if n not in captured}
        for part in _by_vmap(model, x, columns[0], rest) if rest else ():
            yield from part.items()


def _by_mini_batch(problem: Problem, wanted: Values, samples: int | None, size: int) -> Iterator[tuple[str, Tensor]]:
    together = max(1, FORMED // sum(p.numel() for p in wanted.values()))
    held: list[tuple[Tensor, ...]] = []
    for k, (x, y) in enumerate(_regrouped(problem, size, samples)):
        if k and len(y) < size:
            break
        with _frozen(problem.model), torch.enable_grad():
            for p in wanted.values():
                p.requires_grad_(True)
            loss = problem.loss(problem.model(x), y)
            held.append(torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True))
        if len(held) == together:
            yield from zip(wanted, map(torch.stack, zip(*held, strict=True)), strict=True)
            held = []
    if held:
        yield from zip(wanted, map(torch.stack, zip(*held, strict=True)), strict=True)


# --- passes ----------------------------------------------------------------------------------------------------------


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside, and attention takes the path that has one for its inputs."""
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


def _forward(model: nn.Module, x: Tensor, wanted: Values) -> tuple[Tensor, Capture]:
    with torch.enable_grad(), Capture({id(p): n for n, p in wanted.items()}, len(x)) as capture:
        return model(x), capture


def _by_name(uses: list[Use]) -> dict[str, list[Use]]:
    """Name -> its uses that gradients have reached."""
    found: dict[str, list[Use]] = {}
    for use in uses:
        for name in (use.weight, use.bias):
            if name and use.gradients:
                found.setdefault(name, []).append(use)
    return found


def _trusted(model: nn.Module, x: Tensor, wanted: Values) -> list[str]:
    """The parameters whose captured per-sample gradients agree with autograd's on the first samples, for one random cotangent.

    On two of them, so that samples which do not lie along the first dimension show. Where both are zero, a
    parameter counts as captured if a gradient was, or if the outputs do not depend on it: another sample may well reach it.
    """
    generator = torch.Generator().manual_seed(0)
    x = x[:2] if len(x) > 1 else torch.cat([x, x])
    f, capture = _forward(model, x, wanted)
    v = torch.randn(f.shape, generator=generator).to(f)
    try:
        capture.backward(f, [v], keep=False)
    except (RuntimeError, NotImplementedError):  # a kernel without a backward pass, chosen because no weight requires a gradient
        return []
    ours: Values = {n: torch.zeros_like(p) for n, p in wanted.items()}
    found = _by_name(capture.uses)
    for name, own in found.items():
        ours[name] = squares(name, own)
    used = set(found)
    reference = {n: torch.zeros_like(p) for n, p in wanted.items()}
    for p in wanted.values():
        p.requires_grad_(True)
    with torch.enable_grad():
        for n in range(len(x)):
            f = model(x[n : n + 1])
            gradients = torch.autograd.grad(f, list(wanted.values()), v[n : n + 1].view_as(f), allow_unused=True)
            for name, g in zip(wanted, gradients, strict=True):
                if g is not None:
                    used.add(name)
                    reference[name] += g.detach().square()
    for p in wanted.values():
        p.requires_grad_(False)
    largest = {n: float(h.max()) for n, h in reference.items()}
    rounding = (4 * torch.finfo(f.dtype).eps) ** 2 * max(largest.values(), default=0.0)  # a bias before a norm has no other gradient
    agree = [n for n, h in reference.items() if float((h - ours[n]).abs().max()) <= TOLERANCE * largest[n] + rounding]
    return [n for n in agree if n in found or n not in used]


def _add_by_vmap(model: nn.Module, x: Tensor, columns: list[Tensor], rest: Values, totals: dict[str, Sum]) -> None:
    for v in columns:
        for part in _by_vmap(model, x, v, rest):
            for name, g in part.items():
                totals[name].add_squares(g.square().sum(0))


def _by_vmap(model: nn.Module, x: Tensor, v: Tensor, rest: Values) -> Iterator[Values]:
    """Name -> the gradients Jᵀv of some samples, (n, *shape), until all samples are through."""
    places = _places(model)
    values = {n: p.detach() for n, p in model.named_parameters()}

    def projected(weights: Values, x: Tensor, v: Tensor) -> Tensor:
        given = {**values, **weights}
        f = functional_call(model, {place: given[n] for place, n in places.items()}, (x.unsqueeze(0),), tie_weights=False)
        total: Tensor = (f * v.unsqueeze(0)).sum()
        return total

    gradients = vmap(grad(projected), in_dims=(None, 0, 0))
    own = {n: values[n] for n in rest}
    size = max(1, min(CHUNK, FORMED // sum(p.numel() for p in rest.values())))
    for x_part, v_part in zip(x.split(size), v.split(size), strict=True):
        with _frozen(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # fused attention has no batching rule
            found = gradients(own, x_part, v_part)
        yield {n: g.detach() for n, g in found.items()}


def _places(model: nn.Module) -> dict[str, str]:
    """Where each parameter stands -> its name, each module once: torch's own tying loses a module that has two names."""
    name_of = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{path}.{key}".lstrip("."): name_of[id(p)]
        for path, module in model.named_modules()
        for key, p in module.named_parameters(recurse=False, remove_duplicate=False)
    }


def _first(problem: Problem, samples: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches of the training data, on the model's device, until so many samples are reached."""
    seen = 0
    for x, y in problem.batches:
        if samples is not None and seen >= samples:
            return
        yield x.to(problem.device), y.to(problem.device)
        seen += len(y)


def _regrouped(problem: Problem, size: int, samples: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first samples of the training data, `size` at a time whatever the loader's batches, fewer only at the end."""
    seen = 0
    rest: tuple[Tensor, Tensor] | None = None
    for x, y in _first(problem, samples):
        if samples is not None:
            x, y = x[: samples - seen], y[: samples - seen]
        seen += len(y)
        if rest is not None:
            x, y = torch.cat([rest[0], x]), torch.cat([rest[1], y])
        whole = len(y) - len(y) % size
        for k in range(0, whole, size):
            yield x[k : k + size], y[k : k + size]
        rest = x[whole:], y[whole:]
    if rest is None:
        raise ValueError("there are no batches to take gradients on")
    if len(rest[1]):
        yield rest
