"""The Laplace marginal likelihood of a network, and the prior precisions that maximise it.

    log q(D | d) = -(1/T) Σ_n ℓ_n - ½ [ log det P - Σ_k log d_k + Σ_k d_k θ_k² ],   P = H + diag(d)

with H the curvature summed over the data and divided by the temperature T, block-diagonal over parameter tensors. At a
maximum over a d that a group of parameters shares, Σ γ_k = Σ d θ_k² over the group, with γ_k = 1 - d_k (P⁻¹)_kk (MacKay 1992,
"Bayesian interpolation", equation 4.8; γ from `methods.curvature.blocks`). The objective is concave in log d, and in
any parameters that log d is linear in: log det(H + diag(d)) is the logarithm of a sum of products of precisions with coefficients
>= 0, the minors of H.

For shared and unit-wise precisions the maximum is found by the iteration

    log d ← log d + ½ log(Σ γ / Σ d θ²),

half of MacKay's step. The half step converges also if d is much larger than the curvature, where the full step oscillates.
Parameter-wise precisions with diagonal curvature have a closed form. With Kronecker factors they share eigenvectors, γ may be
negative and the iteration may oscillate; there, and for every prior that is projected on the eigenbasis, Newton's method is used
(`methods.posterior.projected`).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from methods.core.interface import Values
from methods.core.masks import Mask
from methods.curvature.blocks import Block, Diagonal, Kronecker, Separable
from methods.posterior.projected import FARTHEST, Projected
from methods.posterior.units import STILL, Units, has_units

PRIORS = ("parameter", "unit", "layer", "scalar")
STEPS = 40  # steps of the iteration, at most; each at least halves the distance to the maximum
FACTORISATIONS = 10  # steps, at most, if each needs new eigenvectors


def log_marginal_likelihood(blocks: Mapping[str, Block], prior: Values, squares: Values, loss: float) -> float:
    """The log marginal likelihood log q(D | d).

    Args:
        blocks: name -> curvature, summed over the data and divided by the temperature T.
        prior: name -> prior precision d.
        squares: name -> θ².
        loss: Σ_n ℓ_n / T in nats.

    Returns:
        A value in nats.
    """
    occam = torch.zeros((), dtype=torch.float64)
    units = _unit_wise(blocks, prior)
    for n, block in blocks.items():
        occam += _occam(block, prior[n], squares[n], units)
    return -loss - 0.5 * float(occam)


def _unit_wise(blocks: Mapping[str, Block], prior: Values) -> bool:
    """Whether the precisions of all weights with Kronecker factors are separable, and not one for all."""
    free = [(prior[n], b) for n, b in blocks.items() if isinstance(b, Kronecker) and prior[n].dim() and has_units(prior[n])]
    return bool(free) and all(isinstance(Units(d.shape, b).given(d), Separable) for d, b in free)


def _occam(block: Block, d: Tensor, squares: Tensor, units: bool = True) -> Tensor:
    """log det P - Σ log d + Σ d θ² of one block; exact, not projected, if d is separable. `units`: so it is for a bias, too."""
    separable = has_units(squares) or (units and _full_bias(block, squares))
    complexity = block.evidence(Units(squares.shape, block).given(d) if separable else d).complexity
    return complexity.double().cpu() + (d * squares).sum(dtype=torch.float64).cpu()


def _full_bias(block: Block, squares: Tensor) -> bool:
    """Whether a block is the full one of a bias, whose entries are output units."""
    return isinstance(block, Kronecker) and squares.dim() == 1


class Maximiser:
    """Finds the prior precisions that maximise the marginal likelihood, with the curvature and the weights fixed.

    Args:
        prior: structure of the prior. "scalar": one d; "layer": one per parameter tensor; "unit": log d_ij = r_i + c_j over the
            output and input units of a weight, one per entry of every other parameter; "parameter": one per parameter.
        bounds: (smallest, largest) d.
        mask: name -> bool tensor; masked weights are ignored.

    Raises:
        ValueError: if the structure is unknown.
    """

    def __init__(self, prior: str, bounds: tuple[float, float], mask: Mask | None = None) -> None:
        if prior not in PRIORS:
            raise ValueError(f"prior '{prior}' is not one of {', '.join(PRIORS)}")
        self.prior, self.bounds, self.mask = prior, bounds, mask or {}

    @torch.no_grad()
    def __call__(self, blocks: Mapping[str, Block], squares: Values, start: Values) -> Values:
        """Name -> d (0-dimensional if shared by a tensor or by all), starting from the precisions `start`; `squares`: name -> θ²."""
        if self.prior == "scalar":
            shared = self._shared(blocks, squares, start)
            return dict.fromkeys(blocks, shared)
        if self.prior == "layer":
            return {n: self._shared({n: b}, squares, start) for n, b in blocks.items()}
        find = self._units if self.prior == "unit" else self._parameters
        return {n: find(n, b, squares[n], start[n]) for n, b in blocks.items()}

    def _clamp(self, d: Tensor) -> Tensor:
        return d.nan_to_num(self.bounds[1], posinf=self.bounds[1]).clamp(*self.bounds)

    def _moved(self, d: Tensor, determined: Tensor, weighed: Tensor) -> Tensor:
        """One step d ← d · √(Σ γ / Σ dθ²), log d changed by at most `FARTHEST`; the sums are over the weights that share d."""
        tiny = torch.finfo(d.dtype).tiny
        step = 0.5 * torch.log(determined.clamp_min(tiny) / weighed.clamp_min(tiny))
        return d * step.clamp(-FARTHEST, FARTHEST).exp()

    def _alive(self, name: str, values: Tensor) -> Tensor:
        return values * self.mask[name] if name in self.mask else values

    def _shared(self, blocks: Mapping[str, Block], squares: Values, start: Values) -> Tensor:
        norm = torch.stack([squares[n].sum() for n in blocks]).sum()
        d = torch.stack([start[n].log().mean() for n in blocks]).mean().exp()
        for _ in range(STEPS):
            determined = torch.stack([self._alive(n, b.evidence(d).determined).sum() for n, b in blocks.items()]).sum()
            before, d = d, self._clamp(self._moved(d, determined, d * norm))
            if abs(float((d / before).log())) < STILL:
                break
        return d

    def _parameters(self, name: str, block: Block, squares: Tensor, start: Tensor) -> Tensor:
        if isinstance(block, Diagonal):
            return self._clamp(closed_form(block.h, squares))
        assert isinstance(block, Kronecker)
        return self._projected(name, block, squares, start, None)

    def _projected(self, name: str, block: Kronecker, squares: Tensor, start: Tensor, units: "Units | None") -> Tensor:
        objective = Projected(block, squares, self.bounds, self.mask.get(name))
        shared = self._shared({name: block}, {name: squares}, {name: start})
        starts = [d.log().expand_as(squares) for d in (start, shared)]
        best = max((objective.keep(u, starts[0]) for u in starts), key=objective.value)
        return self._clamp(objective.ascend(best, units).exp())

    def _units(self, name: str, block: Block, squares: Tensor, start: Tensor) -> Tensor:
        """The maximum for a unit-wise prior: exact, or projected if the factors are large."""
        if not has_units(squares) and not _full_bias(block, squares):  # a norm layer, a token: every entry is its own unit
            return self._parameters(name, block, squares, start)
        layout = Units(squares.shape, block)
        if isinstance(block, Kronecker) and not block.solves_separable:
            return self._projected(name, block, squares, start, layout)

        def cost(d: Tensor) -> float:
            return float(_occam(block, d, squares))

        shared = self._shared({name: block}, {name: squares}, {name: start})
        begin = min((self._clamp(start), shared), key=cost).expand_as(squares)
        found = self._alternate(name, block, squares, begin, layout)
        return min((found, begin.clone()), key=cost)  # between tight bounds a step may go too far

    def _alternate(self, name: str, block: Block, squares: Tensor, start: Tensor, layout: "Units") -> Tensor:
        """Iterate over rows and columns in turn, each within the bounds that the other leaves."""
        low, high = (math.log(b) for b in self.bounds)

        def room(one: Tensor, other: Tensor) -> Tensor:
            least, most = other.amin((1, 2), keepdim=True), other.amax((1, 2), keepdim=True)
            return one.maximum(low - least).minimum(high - most)

        r, c = layout.split(start.expand_as(squares).log())
        c = c.clamp((low - high) / 2, (high - low) / 2)
        r = room(r, c)
        for _ in range(STEPS if isinstance(block, Diagonal) else FACTORISATIONS):
            before = r, c
            for along in (0, 1) if has_units(squares) else (0,):
                d = Separable(r, layout.over_kernel(c))
                determined = self._alive(name, block.evidence(d).determined)
                sums = [layout.sums(v, along) for v in (determined, d.dense(squares.shape) * squares)]
                moved = self._moved(torch.ones_like(sums[0]), *sums).log()
                r, c = (room(r + moved, c), c) if along == 0 else (r, room(c + moved, r))
            if max(float((a - b).abs().max()) for a, b in zip((r, c), before, strict=True)) < STILL:
                break
        return self._clamp(Separable(r, layout.over_kernel(c)).dense(squares.shape))


def closed_form(h: Tensor, theta_squared: Tensor) -> Tensor:
    """argmax_d of ½ [log d - log(h + d) - d θ²] = ½ (-h + √(h² + 4h/θ²)), computed as 2/(θ² (1 + √(1 + 4/(h θ²)))) without cancellation.

    Args:
        h: curvature, >= 0.
        theta_squared: θ², of the same shape.

    Returns:
        d, of the same shape: 0 where h = 0, infinite where θ² = 0; the caller clamps it.
    """
    h64, t64 = h.double(), theta_squared.double()  # 4/(h θ²) overflows in single precision for the smallest weights
    d = 2.0 / (t64 * (1.0 + torch.sqrt(1.0 + 4.0 / (h64 * t64))))
    return torch.where(theta_squared > 0, d, torch.inf).to(h.dtype)
