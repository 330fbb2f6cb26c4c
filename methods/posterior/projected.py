"""The evidence of a Kronecker block whose prior is projected on the eigenbasis, and its maximum by Newton's method."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from methods.curvature.blocks import Kronecker
from methods.posterior.units import Units

NEWTON = 12  # steps of Newton's method, at most
CONJUGATE = 8  # steps of conjugate gradients in each, at most
FARTHEST = 2.0  # largest change of log d in a step


class Projected:
    """Twice the evidence of a Kronecker block whose prior is projected on the eigenbasis, as a function of u = log d:

        F(u) = Σ_k u_k - Σ_j log(Λ_j + Σ_k W_kj e^{u_k}) - Σ_k e^{u_k} θ_k²,   W = Q_B² ⊗ Q_A²,

    which is concave. Its gradient is γ - dθ², its Hessian -[diag(dV + dθ²) - diag(d) W diag(1/P²) Wᵀ diag(d)], with V the diagonal of P⁻¹.
    `mask`: masked weights keep their precision.
    """

    def __init__(self, block: Kronecker, squares: Tensor, bounds: tuple[float, float], mask: Tensor | None) -> None:
        self.block, self.squares, self.mask = block, squares, mask
        self.low, self.high = (math.log(b) for b in bounds)

    def keep(self, u: Tensor, start: Tensor) -> Tensor:
        """u clamped to the bounds; the value of `start` for masked weights."""
        inside = u.clamp(self.low, self.high)
        return inside if self.mask is None else torch.where(self.mask, inside, start)

    def value(self, u: Tensor) -> float:
        """F(u)."""
        p = self.block.eigen[0] + self.block.project(self.block.matrix(u.exp()))
        parts = (u, -p.log(), -u.exp() * self.squares)
        return float(sum(part.sum(dtype=torch.float64) for part in parts))

    def ascend(self, start: Tensor, units: "Units | None" = None) -> Tensor:
        """Newton steps from `start` that never decrease F; with `units`, u = r_o + c_i."""
        split = units.split(start) if units else (start, start)
        z = torch.cat([part.flatten() for part in split]) if units else start
        expand, gather = (units.expand, units.gather) if units else (torch.clone, torch.clone)
        u = self.keep(expand(z), start)
        value = self.value(u)
        for _ in range(NEWTON):
            step = self._step(u, expand, gather)
            for halvings in range(8):
                further = z + step * 0.5**halvings
                moved = self.keep(expand(further), start)
                reached = self.value(moved)
                if reached > value:
                    break
            else:
                break
            gain, value, u, z = reached - value, reached, moved, further if units else moved
            if gain < 1e-6 * abs(value):
                break
        return u

    def _step(self, u: Tensor, expand: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Newton's step by conjugate gradients, preconditioned by the diagonal of the Hessian, over entries that are not at a bound."""
        block, (lam, qb, qa) = self.block, self.block.eigen
        d = u.exp()
        p = lam + block.project(block.matrix(d))
        own, pull = d * block.back(1.0 / p, qb, qa), d * self.squares
        gradient = 1.0 - own - pull
        free = ((u > self.low) | (gradient > 0)) & ((u < self.high) | (gradient < 0))
        free = free if self.mask is None else free & self.mask
        weigh = p.square().reciprocal()

        def product(v: Tensor) -> Tensor:
            v = expand(v) * free
            return gather(free * ((own + pull) * v - d * block.back(block.project(block.matrix(d * v)) * weigh, qb, qa)))

        fourth = (qb.square().square() @ weigh @ qa.square().square().mT).reshape(d.shape)
        diagonal = gather(free * (own + pull - d.square() * fourth)).clamp_min(math.sqrt(torch.finfo(d.dtype).eps))
        slope = gather(free * gradient)
        step, rest, along = torch.zeros_like(slope), slope, slope / diagonal
        size = first = float((rest * along).sum())
        for _ in range(CONJUGATE):
            if size <= 1e-4 * first:
                break
            bent = product(along)
            curved = float((along * bent).sum())
            if curved <= 0:
                break
            step, rest = step + size / curved * along, rest - size / curved * bent
            smaller = float((rest * rest / diagonal).sum())
            along, size = rest / diagonal + smaller / size * along, smaller
        step = step.clamp(-FARTHEST, FARTHEST)
        return step if float((step * slope).sum()) > 0 else (slope / diagonal).clamp(-FARTHEST, FARTHEST)
