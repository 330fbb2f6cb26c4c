"""Laplace approximation for every kind of layer and every structure of the prior."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from laplace import BaseLaplace, KronLaplace
from laplace.utils import Kron
from torch import Tensor

from methods.curvature.blocks import Block, Diagonal, Kronecker, Precisions, Separable
from methods.laplace.backend import Backend
from methods.posterior.units import Units


class Factors(Kron):  # type: ignore[misc]
    """Sums of factors over batches.

    Each parameter in turn has one entry [B] (a full block), one entry [h] (a diagonal), or G entries [B_g, A_g]. The weight of a
    grouped convolution, flattened row by row, is the concatenation of its groups. Without entries the sum is zero.
    """

    def __init__(self, kfacs: list[list[Tensor]], shapes: Sequence[torch.Size]) -> None:
        super().__init__(kfacs)
        self.shapes = shapes

    def __add__(self, other: Kron) -> "Factors":
        if not self.kfacs:
            return Factors(other.kfacs, self.shapes)
        ours, theirs = ([[f.shape for f in entry] for entry in kron.kfacs] for kron in (self, other))
        if ours != theirs:  # they would broadcast
            raise ValueError("the factors of two batches must have the same shapes")
        return Factors(super().__add__(other).kfacs, self.shapes)

    def decompose(self, damping: bool = False) -> list[Block]:
        """The curvature of each parameter; eigenvectors are computed when they are needed."""
        left = iter(self.kfacs)
        return [self._block(left, shape) for shape in self.shapes]

    @staticmethod
    def _block(left: Any, shape: torch.Size) -> Block:
        own = [next(left)]
        while sum(prod(map(len, entry)) for entry in own) < shape.numel():
            own.append(next(left))
        first = own[0][0]
        if len(own[0]) == 2:
            outer, inner = (torch.stack(side) for side in zip(*own, strict=True))
            return Kronecker(outer, inner, shape)
        return Diagonal(first.view(shape)) if first.dim() == 1 else Kronecker(first.unsqueeze(0), first.new_ones(1, 1, 1), shape)


class BlockLaplace(KronLaplace):  # type: ignore[misc]
    """`KronLaplace` for every kind of layer and every structure of the prior; also `Laplace(..., hessian_structure="block")`.

    The curvature comes from `Backend` (Kronecker factors of other backends work too): B ⊗ A for weights, per group of a
    convolution; a full block for biases; diagonals for all other parameters. The length of `prior_precision` decides its structure
    (if lengths coincide, the first of these):

        1           one d
        n_layers    one per parameter tensor
        n_params    one per parameter: projected on the eigenbasis
        n_units     unit-wise, d_ij = u_i v_j: for each weight u of its outputs, then v of its inputs (for each group in turn), shared
                    by the kernel; one per entry of all other tensors. Exact up to `methods.curvature.blocks.MAX_EXACT`

    With f = 1/(σ² T), P = f (H + d/f), hence log(det P / det D) = log(det(H + d/f) / det(d/f)). The marginal likelihood is
    differentiable with respect to every prior and to sigma_noise, so `optimize_prior_precision(init_prior_prec=
    torch.ones(la.n_units))` works. P, hence the predictive, is differentiable with respect to all but unit-wise priors. Samples:
    `methods.curvature.blocks.Precision.root`.

    Raises:
        ValueError: for `damping`; for a prior precision of another length, when it is used.
    """

    _key = ("all", "block")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"backend": Backend, **kwargs})
        if self.damping:
            raise ValueError("BlockLaplace has no damping: the prior is added to the curvature")

    def _init_H(self) -> None:
        self.H = Factors([], [p.shape for p in self.params])

    def _curv_closure(self, X: Tensor, y: Tensor, N: int) -> tuple[Tensor, Kron]:
        take = self.backend.entries if isinstance(self.backend, Backend) else super()._curv_closure
        found: tuple[Tensor, Kron] = take(X, y, N)
        return found

    def fit(self, train_loader: Any, override: bool = True, progress_bar: bool = False) -> None:
        """See `KronLaplace.fit`."""
        super().fit(train_loader, override, progress_bar)
        self._priors()

    @BaseLaplace.prior_precision.setter  # type: ignore[untyped-decorator]
    def prior_precision(self, prior_precision: float | Tensor) -> None:
        """See the class."""
        d = torch.as_tensor(prior_precision, device=self._device, dtype=self._dtype)
        if d.dim() > 1:
            raise ValueError(f"the prior precision must be a number or a vector, not a tensor of {d.dim()} dimensions")
        self._prior_precision = d.reshape(-1)

    @property
    def n_units(self) -> int:
        """The length of a unit-wise prior; raises AttributeError before `fit`."""
        return sum(map(sum, self._units()))

    def _units(self) -> list[tuple[int, int]]:
        """The numbers of (output, input) units of each parameter."""
        self._check_H_init()
        views = [Units(p.shape, b).view if p.dim() in (2, 4) else (1, p.numel(), 0, 1) for p, b in zip(self.params, self.H, strict=True)]
        return [(groups * rows, groups * columns) for groups, rows, columns, _ in views]

    def _priors(self) -> list[Tensor | Separable]:
        """The prior of each parameter, in the format of `methods.curvature.blocks`."""
        d, shapes = self.prior_precision, [p.shape for p in self.params]
        if len(d) in (1, self.n_layers):
            return list(d.expand(self.n_layers))
        if len(d) == self.n_params:
            return [part.view(shape) for part, shape in zip(d.split([s.numel() for s in shapes]), shapes, strict=True)]
        if len(d) != self.n_units:
            lengths = f"1, {self.n_layers}, {self.n_params} or {self.n_units}"
            raise ValueError(f"prior_precision must have length {lengths} (one, or one per layer, parameter or unit), not {len(d)}")
        parts = d.log().split([n for pair in self._units() for n in pair])
        return [self._unit_prior(*pair) for pair in zip(self.H, shapes, parts[::2], parts[1::2], strict=True)]

    @staticmethod
    def _unit_prior(block: Block, shape: torch.Size, r: Tensor, c: Tensor) -> Tensor | Separable:
        if len(shape) in (2, 4):
            layout = Units(shape, block)
            return Separable(r.view(layout.groups, -1, 1), layout.over_kernel(c.view(layout.groups, 1, -1)))
        return Separable(r.view(1, -1, 1), r.new_zeros(1, 1, 1)) if len(shape) == 1 else r.exp().view(shape)

    @property
    def prior_precision_diag(self) -> Tensor:
        """d of each parameter, flat."""
        pairs = zip(self._priors(), self.params, strict=True)
        return torch.cat([(d.dense(p.shape) if isinstance(d, Separable) else d.expand(p.shape)).flatten() for d, p in pairs])

    def _scaled(self) -> list[tuple[Block, Tensor | Separable]]:
        """(H, d/f) of each parameter."""
        self._check_H_init()
        f = self._H_factor
        priors = [Separable(d.rows - f.log(), d.columns) if isinstance(d, Separable) else d / f for d in self._priors()]
        return list(zip(self.H, priors, strict=True))

    @property
    def posterior_precision(self) -> Precisions:
        """P = f (H + d/f)."""
        found = [block.precision(d) for block, d in self._scaled()]
        return Precisions([replace(p, values=p.values * self._H_factor) for p in found])

    @property
    def log_det_ratio(self) -> Tensor:
        """log det P - Σ log d, in double precision."""
        return torch.stack([block.evidence(d).complexity for block, d in self._scaled()]).sum()
