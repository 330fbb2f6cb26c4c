"""The curvature H of one parameter tensor, and its posterior precision P = H + diag(d) under a Gaussian prior.

For prior precisions d the evidence needs two quantities of a block:

    γ_k = 1 - d_k (P⁻¹)_kk               how well the data determine parameter k, in [0, 1] (MacKay 1992)
    log det P - Σ_k log d_k              complexity in the Occam factor, in nats

The prior is one number for all (a 0-dimensional tensor), as `Separable` (unit-wise: log d_ij = r_i + c_j), or as a
tensor of the parameter's shape.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from methods.curvature.eigen import eigh

MAX_EXACT = 512  # largest side of Kronecker factors for which a unit-wise prior is exact; above it is projected


class Separable(NamedTuple):
    """Unit-wise prior: log d = r_o + c_i. `rows`: r (G, o, 1); `columns`: c (G, 1, i), for G groups."""

    rows: Tensor
    columns: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        """d, in the shape of the parameter."""
        return (self.rows + self.columns).exp().reshape(shape)


class Evidence(NamedTuple):
    """`determined`: γ, of the parameter's shape; `complexity`: log det P - Σ log d."""

    determined: Tensor
    complexity: Tensor


@dataclass(frozen=True)
class Precision:
    """P = S Q diag(v) Qᵀ S of one parameter tensor: S = diag(s), Q = Q_B ⊗ Q_A orthogonal for each of G groups, or 1.

    `values`: v (G, o, i); `bases`: (Q_B, Q_A), None for Q = 1; `scale`: s (G, o, i), None for S = 1. A vector is the flattened
    parameter, in the last dimension: w (..., G·o·i).
    """

    values: Tensor
    bases: tuple[Tensor, Tensor] | None = None
    scale: Tensor | None = None

    def inverse(self) -> "Precision":
        """P⁻¹, in the same form."""
        return Precision(1.0 / self.values, self.bases, None if self.scale is None else 1.0 / self.scale)

    def times(self, w: Tensor) -> Tensor:
        """P w."""
        return self._scaled(self._rotated(self._scaled(w), self.values))

    def root(self, w: Tensor) -> Tensor:
        """R w with R Rᵀ = P, R = S Q v^{1/2} Qᵀ (symmetric where S = 1); `inverse().root` of w from N(0, 1) is from N(0, P⁻¹)."""
        return self._scaled(self._rotated(w, self.values.sqrt()))

    def log_det(self) -> Tensor:
        """log det P, 0-dimensional, in double precision."""
        value = self.values.log().sum(dtype=torch.float64)
        return value if self.scale is None else value + 2.0 * self.scale.log().sum(dtype=torch.float64)

    def diagonal(self) -> Tensor:
        """Diagonal of P, flat: s² (Q_B²) v (Q_A²)ᵀ."""
        v = self.values
        if self.bases is not None:
            v = self.bases[0].square() @ v @ self.bases[1].square().mT
        return (v if self.scale is None else v * self.scale.square()).flatten()

    def _scaled(self, w: Tensor) -> Tensor:
        return w if self.scale is None else w * self.scale.flatten()

    def _rotated(self, w: Tensor, v: Tensor) -> Tensor:
        """Q diag(v) Qᵀ w."""
        if self.bases is None:
            return w * v.flatten()
        qb, qa = self.bases
        rotated = qb.mT @ w.reshape(*w.shape[:-1], *v.shape) @ qa
        return (qb @ (rotated * v) @ qa.mT).flatten(-3)


class Precisions:
    """P, block-diagonal over parameter tensors, with the method names of `KronDecomposed` in laplace-torch."""

    def __init__(self, blocks: list[Precision]) -> None:
        self.blocks, self.inverse = blocks, [block.inverse() for block in blocks]

    def bmm(self, w: Tensor, exponent: float = -1) -> Tensor:
        """P w, P⁻¹ w, or R w with R Rᵀ = P⁻¹, for `exponent` 1, -1, -½ (ValueError otherwise); w (..., parameters)."""
        if exponent not in (1, -1, -0.5):
            raise ValueError(f"exponent {exponent} is not one of 1, -1, -0.5")
        blocks = self.blocks if exponent == 1 else self.inverse
        parts = w.split([block.values.numel() for block in blocks], -1)
        return torch.cat([b.root(v) if exponent == -0.5 else b.times(v) for b, v in zip(blocks, parts, strict=True)], -1)

    def inv_square_form(self, w: Tensor) -> Tensor:
        """w P⁻¹ wᵀ for w (batch, k, parameters)."""
        return w @ self.bmm(w).mT

    def logdet(self) -> Tensor:
        """log det P."""
        return torch.stack([block.log_det() for block in self.blocks]).sum()

    def diag(self, exponent: float = 1) -> Tensor:
        """Diagonal of P (`exponent` 1) or P⁻¹ (-1)."""
        return torch.cat([block.diagonal() for block in (self.blocks if exponent == 1 else self.inverse)])

    def to_matrix(self, exponent: float = 1) -> Tensor:
        """P or P⁻¹ as a dense matrix, for small networks."""
        values = self.blocks[0].values
        return self.bmm(torch.eye(sum(b.values.numel() for b in self.blocks)).to(values), exponent)


class Block(Protocol):
    """Curvature of one parameter tensor."""

    def diagonal(self) -> Tensor:
        """Diagonal of H, of the parameter's shape."""
        ...

    def scaled(self, factor: float) -> "Block":
        """H times a number."""
        ...

    def evidence(self, d: Tensor | Separable) -> Evidence:
        """γ and complexity under the prior precisions d > 0."""
        ...

    def precision(self, d: Tensor | Separable) -> Precision:
        """P under the prior precisions d > 0, exact or projected as in `evidence`."""
        ...


@dataclass(frozen=True)
class Diagonal:
    """H = diag(h). `h` >= 0, of the parameter's shape."""

    h: Tensor

    def diagonal(self) -> Tensor:
        """h."""
        return self.h

    def scaled(self, factor: float) -> "Diagonal":
        """See `Block.scaled`."""
        return Diagonal(self.h * factor)

    def evidence(self, d: Tensor | Separable) -> Evidence:
        """γ = h/(h + d), complexity Σ log(1 + h/d)."""
        dense = d.dense(self.h.shape) if isinstance(d, Separable) else d
        return Evidence(self.h / (self.h + dense), torch.log1p(self.h / dense).sum(dtype=torch.float64))

    def precision(self, d: Tensor | Separable) -> Precision:
        """diag(h + d)."""
        return Precision((self.h + (d.dense(self.h.shape) if isinstance(d, Separable) else d)).reshape(1, 1, -1))


@dataclass(frozen=True)
class Kronecker:
    """H = B ⊗ A for each of G groups, over a weight of G·o rows and i columns (row-major, kernels flattened into columns).

    `outer`: B (G, o, o), `inner`: A (G, i, i), both symmetric and positive semi-definite; `shape`: shape of the parameter.
    For a bias A = 1. With eigenbases B = Q_B Λ_B Q_Bᵀ, A = Q_A Λ_A Q_Aᵀ and Λ = λ_B λ_Aᵀ:

    - one d for all: P = Q (Λ + d) Qᵀ, exact.
    - separable d = e^r (e^c)ᵀ: with whitened factors B_w = e^{-r/2} B e^{-r/2}, A_w = e^{-c/2} A e^{-c/2},
      P = S (B_w ⊗ A_w + 1) S, S = diag(e^{r/2}) ⊗ diag(e^{c/2}); exact for sides up to `MAX_EXACT`.
    - any other d: its projection on the eigenbasis, D̃ = (Q_B²)ᵀ D Q_A², so that P = Q (Λ + D̃) Qᵀ: the diagonal of Qᵀ diag(d) Q
      is kept. By Hadamard's inequality its log-determinant is at least the exact one (Dhahri et al. 2024, released code).
      Where eigenvalues coincide (fewer samples than columns) the eigenbasis, and so the projection, is not unique.
    """

    outer: Tensor
    inner: Tensor
    shape: torch.Size

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        """(Λ (G, o, i), Q_B, Q_A)."""
        (b, qb), (a, qa) = eigh(self.outer), eigh(self.inner)
        return b.unsqueeze(2) * a.unsqueeze(1), qb, qa

    def diagonal(self) -> Tensor:
        """B_ii A_jj, of the parameter's shape."""
        b, a = (f.diagonal(dim1=1, dim2=2) for f in (self.outer, self.inner))
        return (b.unsqueeze(2) * a.unsqueeze(1)).reshape(self.shape)

    def scaled(self, factor: float) -> "Kronecker":
        """See `Block.scaled`."""
        return Kronecker(self.outer * factor, self.inner, self.shape)

    def matrix(self, d: Tensor) -> Tensor:
        """d of the parameter's shape as (G, o, i)."""
        return d.reshape(self.outer.shape[0], self.outer.shape[1], self.inner.shape[1])

    @property
    def solves_separable(self) -> bool:
        """Whether a separable prior is exact, not projected."""
        return max(self.outer.shape[1], self.inner.shape[1]) <= MAX_EXACT

    def evidence(self, d: Tensor | Separable) -> Evidence:
        """See the class: exact for a shared and a separable prior, projected for any other."""
        if isinstance(d, Separable):
            if self.solves_separable:
                lam, qb, qa = self._whitened(d)
                return Evidence(self.back(lam / (lam + 1.0), qb, qa), torch.log1p(lam).sum(dtype=torch.float64))
            d = d.dense(self.shape)
        if d.dim() == 0:
            lam, qb, qa = self.eigen
            return Evidence(self.back(lam / (lam + d), qb, qa), torch.log1p(lam / d).sum(dtype=torch.float64))
        return self._projected(self.matrix(d))

    def precision(self, d: Tensor | Separable) -> Precision:
        """See the class. With a separable prior the eigenvectors depend on d, and d gets no gradient."""
        if isinstance(d, Separable):
            if self.solves_separable:
                with torch.no_grad():
                    lam, qb, qa = self._whitened(d)
                    return Precision(lam + 1.0, (qb, qa), ((d.rows + d.columns) / 2).exp())
            d = d.dense(self.shape)
        lam, qb, qa = self.eigen
        return Precision(lam + (self.project(self.matrix(d)) if d.dim() else d), (qb, qa))

    def eigenbasis_precision(self, d: Tensor) -> Tensor:
        """Diagonal of the projected P: (Q_B²)(Λ + D̃)(Q_A²)ᵀ, of the parameter's shape; d of that shape or 0-dimensional."""
        lam, qb, qa = self.eigen
        tilde = self.project(self.matrix(d)) if d.dim() else d
        return self.back(lam + tilde, qb, qa)

    def project(self, d: Tensor) -> Tensor:
        """D̃ = (Q_B²)ᵀ D Q_A² for D (G, o, i)."""
        _, qb, qa = self.eigen
        return qb.square().mT @ d @ qa.square()

    def _whitened(self, d: Separable) -> tuple[Tensor, Tensor, Tensor]:
        """(Λ, Q_B, Q_A) of B_w and A_w."""
        outer = self.outer * torch.exp(-(d.rows + d.rows.mT) / 2)
        inner = self.inner * torch.exp(-(d.columns + d.columns.mT) / 2)
        return Kronecker(outer, inner, self.shape).eigen

    def _projected(self, d: Tensor) -> Evidence:
        lam, qb, qa = self.eigen
        p = lam + self.project(d)
        determined = 1.0 - d.reshape(self.shape) * self.back(1.0 / p, qb, qa)
        return Evidence(determined, (p.log().sum(dtype=torch.float64) - d.log().sum(dtype=torch.float64)))

    def back(self, values: Tensor, qb: Tensor, qa: Tensor) -> Tensor:
        """Diagonal, in the basis of the weights, of Q diag(values) Qᵀ: (Q_B²) values (Q_A²)ᵀ, of the parameter's shape."""
        return (qb.square() @ values @ qa.square().mT).reshape(self.shape)
