"""The curvature of one parameter tensor, and the posterior precision P = H + diag(d) that a Gaussian prior makes of it.

Of a block the evidence needs two things, for the prior precisions d of its parameters:

    γ_k = 1 - d_k (P⁻¹)_kk               how well the data determine parameter k, in [0, 1] (MacKay 1992)
    log det P - Σ_k log d_k              the Occam factor's complexity, in nats

The prior is given as one number for all (a 0-dimensional tensor), as `Separable` (unit-wise: log d_ij = r_i + c_j), or as a
tensor of the parameter's shape.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MAX_EXACT = 512  # sides of Kronecker factors up to which a unit-wise prior is solved exactly; above, projected


class Separable(NamedTuple):
    """Unit-wise prior: log d = r_o + c_i. `rows`: r (G, o, 1); `columns`: c (G, 1, i), of the block's groups."""

    rows: Tensor
    columns: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        """d, of the parameter's shape."""
        return (self.rows + self.columns).exp().reshape(shape)


class Evidence(NamedTuple):
    """`determined`: γ, of the parameter's shape; `complexity`: log det P - Σ log d."""

    determined: Tensor
    complexity: Tensor


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


@dataclass(frozen=True)
class Kronecker:
    """H = B ⊗ A for each of G groups, over a weight of G·o rows and i columns (row-major, kernels flattened into columns).

    `outer`: B (G, o, o), `inner`: A (G, i, i), both symmetric and positive semi-definite; `shape`: that of the parameter. A
    bias has A = 1. With eigenbases B = Q_B Λ_B Q_Bᵀ, A = Q_A Λ_A Q_Aᵀ and Λ = λ_B λ_Aᵀ:

    - one d for all: P = Q (Λ + d) Qᵀ, exact.
    - separable d = e^r (e^c)ᵀ: with whitened factors B_w = e^{-r/2} B e^{-r/2}, A_w = e^{-c/2} A e^{-c/2},
      P = S (B_w ⊗ A_w + 1) S, S = diag(e^{r/2}) ⊗ diag(e^{c/2}): exact, for sides up to `MAX_EXACT`.
    - any other d: its projection on the eigenbasis, D̃ = (Q_B²)ᵀ D Q_A², so that P = Q (Λ + D̃) Qᵀ: the diagonal of Qᵀ diag(d) Q
      is kept. By Hadamard's inequality its log-determinant is never below the exact one (Dhahri et al. 2024, released code).
      Where a factor lacks rank by two or more, it depends on the basis that the eigensolver takes for the null space.
    """

    outer: Tensor
    inner: Tensor
    shape: torch.Size

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        """(Λ (G, o, i), Q_B, Q_A)."""
        (b, qb), (a, qa) = _eigh(self.outer), _eigh(self.inner)
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
        """Whether a separable prior is solved exactly."""
        return max(self.outer.shape[1], self.inner.shape[1]) <= MAX_EXACT

    def evidence(self, d: Tensor | Separable) -> Evidence:
        """See the class: exact for a shared and a separable prior, projected for any other."""
        if isinstance(d, Separable):
            if self.solves_separable:
                return self._whitened(d)
            d = d.dense(self.shape)
        if d.dim() == 0:
            lam, qb, qa = self.eigen
            return Evidence(self.back(lam / (lam + d), qb, qa), torch.log1p(lam / d).sum(dtype=torch.float64))
        return self._projected(self.matrix(d))

    def eigenbasis_precision(self, d: Tensor) -> Tensor:
        """Diagonal of the projected P: (Q_B²)(Λ + D̃)(Q_A²)ᵀ, of the parameter's shape; d of that shape or 0-dimensional."""
        lam, qb, qa = self.eigen
        tilde = self.project(self.matrix(d)) if d.dim() else d
        return self.back(lam + tilde, qb, qa)

    def project(self, d: Tensor) -> Tensor:
        """D̃ = (Q_B²)ᵀ D Q_A² for D (G, o, i)."""
        _, qb, qa = self.eigen
        return qb.square().mT @ d @ qa.square()

    def _whitened(self, d: Separable) -> Evidence:
        (b, qb), (a, qa) = (
            _eigh(self.outer * torch.exp(-(d.rows + d.rows.mT) / 2)),
            _eigh(self.inner * torch.exp(-(d.columns + d.columns.mT) / 2)),
        )
        lam = b.unsqueeze(2) * a.unsqueeze(1)
        return Evidence(self.back(lam / (lam + 1.0), qb, qa), torch.log1p(lam).sum(dtype=torch.float64))

    def _projected(self, d: Tensor) -> Evidence:
        lam, qb, qa = self.eigen
        p = lam + self.project(d)
        determined = 1.0 - d.reshape(self.shape) * self.back(1.0 / p, qb, qa)
        return Evidence(determined, (p.log().sum(dtype=torch.float64) - d.log().sum(dtype=torch.float64)))

    def back(self, values: Tensor, qb: Tensor, qa: Tensor) -> Tensor:
        """Diagonal, in the basis of the weights, of Q diag(values) Qᵀ: (Q_B²) values (Q_A²)ᵀ, of the parameter's shape."""
        return (qb.square() @ values @ qa.square().mT).reshape(self.shape)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors.

    Eigenvalues no larger than what rounding leaves of none, ε √n λ_max, are zero: a factor seldom has full rank, and what is
    left of its null space would, times the largest eigenvalue of the other factor, outweigh the prior in single precision.
    """
    values, vectors = torch.linalg.eigh(matrix)
    least = torch.finfo(matrix.dtype).eps * matrix.shape[-1] ** 0.5 * values[..., -1:]
    return torch.where(values > least, values, 0.0), vectors
