"""Losses that curvature knows, and the columns of V_n, where V_n V_nᵀ is the curvature of a sample's loss in the outputs.

The outputs of a sample may have several positions t (pixels, tokens): outputs (n, classes, d1, ...), targets (n, d1, ...). The loss
of a sample is then the mean over its T positions that are not ignored, zero if all are:

    ℓ_n = (1/T) Σ_t ℓ_nt,   ∂²ℓ_n/∂f_nt² = (1/T) (diag(p_nt) - p_nt p_ntᵀ),   and zero between positions.

"mc" draws the labels of the positions independently: v_nt = (p_nt - e_ỹ)/√T, so that E[v vᵀ] is this Hessian. Label smoothing and
probabilities as targets leave the Hessian unchanged.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.core.interface import Loss

KINDS = ("ef", "mc", "ggn")
MAX_COLUMNS = 4096  # backward passes of "ggn" for one batch, at most


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


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """The cross-entropy loss and its options, see `torch.nn.functional.cross_entropy`."""

    weight: Tensor | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0

    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        """The mean over samples of ℓ_n, see the module."""
        options = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
        kept = self.kept(f, y)
        if kept is None:
            return F.cross_entropy(f, y, **options)  # type: ignore[arg-type]
        each = F.cross_entropy(f, y, reduction="none", **options)  # type: ignore[arg-type]
        return (each * kept).sum() / len(y)

    def kept(self, f: Tensor, y: Tensor) -> Tensor | None:
        """1/T at positions that are not ignored, 0 elsewhere: (n, d1, ...). None if no position is ignored."""
        if y.is_floating_point() or not bool((ignored := y == self.ignore_index).any()):
            return None
        kept = (~ignored).to(f.dtype).reshape(len(y), -1)
        return (kept / kept.sum(1, keepdim=True).clamp_min(1.0)).view(y.shape)


def cross_entropy_of(loss: Loss) -> CrossEntropy | None:
    """The options of `F.cross_entropy`, `nn.CrossEntropyLoss(...)` or a `functools.partial` of the first; None for any other loss."""
    if isinstance(loss, CrossEntropy):
        return loss
    if loss is F.cross_entropy:
        return CrossEntropy()
    if type(loss) is nn.CrossEntropyLoss:
        return CrossEntropy(loss.weight, loss.ignore_index, loss.reduction, loss.label_smoothing)
    if isinstance(loss, functools.partial) and loss.func is F.cross_entropy and not loss.args:
        known = loss.keywords.keys() <= set(CrossEntropy.__dataclass_fields__)
        return CrossEntropy(**loss.keywords) if known else None
    return None


def columns_of(kind: str, loss: Loss, f: Tensor, y: Tensor, draws: int, generator: torch.Generator) -> "list[Tensor] | PositionColumns":
    """The columns of V, each in the shape of the outputs `f`. `kind`: see `methods.curvature.compute`; `loss`: a mean over samples.

    Raises:
        ValueError: for targets that are probabilities and do not sum to one, or too many columns ("mc" and "ggn").
    """
    if kind == "ef":
        leaf = f.clone().requires_grad_()
        with torch.enable_grad():
            return [torch.autograd.grad(loss(leaf, y) * len(y), leaf)[0]]
    if loss is half_squared_error:
        if kind == "mc":
            return list(torch.randn(draws, *f.shape, generator=generator, dtype=torch.float64).to(f) / draws**0.5)
        _refuse_many(f[0].numel())
        return list(torch.eye(f[0].numel()).to(f).view(-1, 1, *f.shape[1:]).expand(-1, *f.shape))
    likelihood = cross_entropy_of(loss)
    assert likelihood is not None
    if y.is_floating_point() and float((y.sum(1, dtype=torch.float64) - 1.0).abs().max()) > 1e-2:
        raise ValueError(f"curvature='{kind}' needs targets that sum to one over the classes; for any other targets use curvature='ef'")
    p = f.double().softmax(1).movedim(1, -1)  # (n, d1, ..., classes)
    rows = p.reshape(-1, p.shape[-1])
    share = _shares(likelihood, f, y)
    if kind == "mc":
        one_hot = F.one_hot(sample_labels(rows, draws, generator), p.shape[-1])
        drawn = [((rows - one_hot[:, k]) / draws**0.5).view(p.shape).movedim(-1, 1) for k in range(draws)]
        return [(v if share is None else v * share.sqrt()).to(f.dtype) for v in drawn]
    factor = softmax_factor(rows)
    if f.dim() == 2 and share is None:
        return list(factor.to(f.dtype).unbind(2))
    return PositionColumns(factor.view(*p.shape, -1).movedim(-2, 1), share, f)


def _shares(likelihood: CrossEntropy, f: Tensor, y: Tensor) -> Tensor | None:
    """1/T at the positions of each sample that are not ignored, zero elsewhere: (n, 1, d1, ...). None if this is 1 everywhere."""
    kept = likelihood.kept(f.double(), y)
    if kept is not None:
        return kept.unsqueeze(1)
    return None if f.dim() == 2 else f.new_full((1, 1), 1.0 / f[0, 0].numel(), dtype=torch.float64).view(1, 1, *[1] * (f.dim() - 2))


def _refuse_many(count: int) -> None:
    if count > MAX_COLUMNS:
        raise ValueError(f"curvature='ggn' needs {count} backward passes for these outputs, more than {MAX_COLUMNS}: use curvature='mc'")


class PositionColumns:
    """The columns of "ggn" where outputs have positions: a column for each position and column of its factor, zero elsewhere.

    Args:
        factor: (n, classes, d1, ..., classes - 1).
        share: 1/T of each position; None for 1.
        f: the outputs.
    """

    def __init__(self, factor: Tensor, share: Tensor | None, f: Tensor) -> None:
        self.shape, self.dtype = f.shape, f.dtype
        values = factor if share is None else factor * share.sqrt().unsqueeze(-1)
        self.values = values.reshape(*f.shape[:2], -1, factor.shape[-1])  # (n, classes, positions, classes - 1)
        _refuse_many(len(self))

    def __len__(self) -> int:
        return self.values.shape[2] * self.values.shape[3]

    def __iter__(self) -> Iterator[Tensor]:
        for position in range(self.values.shape[2]):
            for column in self.values[:, :, position].unbind(2):
                v = torch.zeros_like(self.values[..., 0])
                v[:, :, position] = column
                yield v.view(self.shape).to(self.dtype)


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
