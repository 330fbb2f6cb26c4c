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

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.blocks import Block, Diagonal, Kronecker
from methods.capture import Capture, Product, Use
from methods.interface import Problem, Values

KINDS = ("ef", "mc", "ggn")
STRUCTURES = ("diagonal", "kronecker")
SHARING = ("expand", "reduce")
CHUNK = 64  # samples whose gradients vmap holds at once
TOGETHER = 10  # columns whose output gradients are held at once
MAX_SIDE = 8192  # a Kronecker factor larger than this is not formed: its parameter gets a diagonal block
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
    totals: dict[str, _Sum] = {}
    captured: list[str] | None = None
    loss, seen = 0.0, 0
    with _frozen(model):
        for x, y in _first(problem, samples):
            if captured is None:
                captured = _trusted(model, x[:2] if len(x) > 1 else torch.cat([x, x]), shapes)
                totals = {n: _DiagonalSum(p) for n, p in shapes.items()}
            f, capture = _forward(model, x, {n: shapes[n] for n in captured})
            uses = capture.uses
            outputs = f.detach()
            loss += float(problem.loss(outputs, y)) * len(y)
            columns = _columns(kind, problem, outputs, y, draws, generator)
            if seen == 0 and structure == "kronecker":
                totals |= _kronecker_sums(uses, shapes, sharing, positions, problem.generator(purpose, "positions"))
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


# --- what is propagated backward -------------------------------------------------------------------------------------


def half_squared_error(f: Tensor, y: Tensor) -> Tensor:
    """½‖f - y‖², the mean over a batch: -log N(y; f, 1) up to a constant. f, y: (samples, outputs).

    `F.mse_loss` is the mean over the outputs too, which says no likelihood's noise: it is refused where one is needed.
    """
    if f.shape != y.shape:
        raise ValueError(f"outputs {tuple(f.shape)} and targets {tuple(y.shape)} differ in shape")
    return 0.5 * F.mse_loss(f, y, reduction="sum") / len(y)


def _columns(kind: str, problem: Problem, f: Tensor, y: Tensor, draws: int, generator: torch.Generator) -> list[Tensor]:
    """The columns of V, each of the outputs' shape (samples, classes)."""
    if kind == "ef":
        leaf = f.clone().requires_grad_()
        with torch.enable_grad():
            return [torch.autograd.grad(problem.loss(leaf, y) * len(y), leaf)[0]]
    if problem.loss is half_squared_error:
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
    """L (n, classes, classes - 1) with L Lᵀ = diag(p) - p pᵀ, its lower Cholesky factor in closed form.

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
    """(n, draws) labels drawn from each row of probabilities (n, classes), by inverting its distribution function."""
    u = torch.rand(len(p), draws, generator=generator, dtype=torch.float64).to(p.device)
    return torch.searchsorted(p.cumsum(1).contiguous(), u).clamp_(max=p.shape[1] - 1)


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
    """The parameters whose captured per-sample gradients agree with autograd's on these samples, for one random cotangent.

    Those of two samples at least, so that samples which do not lie along the first dimension show. Where both are zero, a
    parameter counts as captured if a gradient was, or if the outputs do not depend on it: another sample may well reach it.
    """
    generator = torch.Generator().manual_seed(0)
    f, capture = _forward(model, x, wanted)
    v = torch.randn(f.shape, generator=generator).to(f)
    try:
        capture.backward(f, [v], keep=False)
    except (RuntimeError, NotImplementedError):  # a kernel without a backward pass, chosen because no weight requires a gradient
        return []
    ours: Values = {n: torch.zeros_like(p) for n, p in wanted.items()}
    found = _by_name(capture.uses)
    for name, own in found.items():
        ours[name] = _squares(name, own)
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


def _squares(name: str, uses: list[Use]) -> Tensor:
    """Σ_n (gradient of sample n)²; a parameter used several times has the sum of its uses as gradient."""
    if len(uses) == 1:
        return uses[0].squares(name)
    return torch.stack([g.square_().sum(0) for g in _samples(name, uses)]).sum(0)


def _samples(name: str, uses: list[Use]) -> Iterator[Tensor]:
    """For each backward pass, the gradient of each sample, summed over the uses: (batch, *shape)."""
    for gradients in zip(*(use.gradients for use in uses), strict=True):
        yield torch.stack([use.samples(name, g) for use, g in zip(uses, gradients, strict=True)]).sum(0)


def _add_by_vmap(model: nn.Module, x: Tensor, columns: list[Tensor], rest: Values, totals: dict[str, "_Sum"]) -> None:
    places = _places(model)
    values = {n: p.detach() for n, p in model.named_parameters()}

    def projected(weights: Values, x: Tensor, v: Tensor) -> Tensor:
        given = {**values, **weights}
        f = functional_call(model, {place: given[n] for place, n in places.items()}, (x.unsqueeze(0),), tie_weights=False)
        total: Tensor = (f * v.unsqueeze(0)).sum()
        return total

    gradients = vmap(grad(projected), in_dims=(None, 0, 0))
    own = {n: values[n] for n in rest}
    for v in columns:
        for x_part, v_part in zip(x.split(CHUNK), v.split(CHUNK), strict=True):
            with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # fused attention has no batching rule
                for name, g in gradients(own, x_part, v_part).items():
                    totals[name].add_squares(g.detach().square().sum(0))


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


# --- sums over batches -----------------------------------------------------------------------------------------------


class _Sum:
    """What one parameter's curvature is summed up in."""

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        """Add one batch and column; `first`: the first column of the batch."""
        raise NotImplementedError

    def add_squares(self, squares: Tensor) -> None:
        """Add a sum of squared gradients of samples."""
        raise NotImplementedError

    def block(self, scale: float) -> Block:
        """The curvature summed so far, times `scale`."""
        raise NotImplementedError


class _DiagonalSum(_Sum):
    def __init__(self, p: Tensor) -> None:
        self.total = torch.zeros_like(p, requires_grad=False)

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        self.total += _squares(name, uses)

    def add_squares(self, squares: Tensor) -> None:
        self.total += squares

    def block(self, scale: float) -> Block:
        return Diagonal(self.total * scale)


class _KroneckerSum(_Sum):
    """B = Σ g gᵀ over samples, positions and columns; A = the mean of a aᵀ over samples and positions."""

    def __init__(self, p: Tensor, columns: Tensor, sharing: str, positions: int | None, generator: torch.Generator) -> None:
        self.p, self.columns, self.reduce = p, columns, sharing == "reduce"
        self.positions, self.generator = positions, generator
        self.inner: Tensor | float = 0.0
        self.outer: Tensor | float = 0.0
        self.count = 0

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        for use in uses:
            assert isinstance(use, Product)
            if first:
                self._add_inputs(use)
            for gradient in use.gradients:
                g = use.outputs(gradient)
                self.outer = self.outer + _second_moment(g.sum(2, keepdim=True) if self.reduce else g)

    def _add_inputs(self, use: Product) -> None:
        shared = math.prod(use.grid)
        drawn = use.draw(self.positions, self.generator) if self.positions and not self.reduce else None
        for part in use.parts(0) if drawn is None else [slice(None)]:
            a = use.inputs(part, drawn)
            a = a.mean(2, keepdim=True) if self.reduce else a
            stands_for = 1 if self.reduce else shared / a.shape[2]  # positions drawn weigh as much as all of them
            self.inner = self.inner + _second_moment(a) * stands_for
            self.count += a.shape[0] * (1 if self.reduce else shared)

    def block(self, scale: float) -> Block:
        if not isinstance(self.outer, Tensor) or not isinstance(self.inner, Tensor):  # the outputs do not depend on it
            return Diagonal(torch.zeros_like(self.p, requires_grad=False))
        return Kronecker(self.outer * scale, self._arranged(self.inner / self.count), self.p.shape)

    def _arranged(self, inner: Tensor) -> Tensor:
        """A with rows and columns in the order of the flattened weight."""
        rows = self.columns.to(inner.device)
        return inner[:, rows][:, :, rows]


class _FullSum(_Sum):
    """Σ g gᵀ over samples and columns, g the gradient of a sample by a bias: exact, over all groups."""

    def __init__(self, p: Tensor) -> None:
        self.total = p.new_zeros(1, len(p), len(p), requires_grad=False)

    def add(self, name: str, uses: list[Use], first: bool) -> None:
        for g in _samples(name, uses):
            self.total += g.mT @ g

    def block(self, scale: float) -> Block:
        return Kronecker(self.total * scale, torch.ones_like(self.total[:, :1, :1]), self.total.shape[1:2])


def _second_moment(a: Tensor) -> Tensor:
    """Σ_{n,t} a aᵀ of each group: (n, G, T, d) -> (G, d, d)."""
    flat = a.transpose(0, 1).flatten(1, 2)
    return flat.mT @ flat


def _kronecker_sums(
    uses: list[Use], parameters: Values, sharing: str, positions: int | None, generator: torch.Generator
) -> dict[str, _Sum]:
    """Sums for the parameters that have factors: used as a product's weight only, or as its bias only, and not too large."""
    found: dict[str, _Sum] = {}
    for name, p in parameters.items():
        own = [use for use in uses if name in (use.weight, use.bias)]
        if not own or not all(isinstance(use, Product) for use in own):
            continue
        first = own[0]
        assert isinstance(first, Product)
        if all(use.bias == name for use in own):
            if len(p) <= MAX_SIDE:
                found[name] = _FullSum(p)
        elif all(use.weight == name for use in own) and max(p.shape[0] // first.groups, p.shape[1:].numel()) <= MAX_SIDE:
            found[name] = _KroneckerSum(p, first.columns, sharing, positions, generator)
    return found
