"""The Laplace marginal likelihood of a network, and the prior precisions that maximise it.

    log q(D | d) = -(1/T) Σ_n ℓ_n - ½ [ log det P - Σ_k log d_k + Σ_k d_k θ_k² ],   P = H + diag(d)

with H the curvature summed over the data and divided by the temperature T, block-diagonal over parameter tensors. At a
maximum over a d that a group of parameters shares, Σ γ_k = Σ d θ_k² over the group, with γ_k = 1 - d_k (P⁻¹)_kk (MacKay 1992,
"Bayesian interpolation", equation 4.8; γ from `methods.blocks`). Every structure below is brought there by the same iteration,

    log d ← log d + ½ log(Σ γ / Σ d θ²),

half of MacKay's step: with it the iteration contracts also where d is far above the curvature, where the whole step turns
back and forth. Only parameter-wise precisions over diagonal curvature have a closed form.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from methods.blocks import Block, Diagonal, Kronecker, Separable
from methods.interface import Mask, Values

PRIORS = ("parameter", "unit", "layer", "scalar")
STEPS = 40  # of the fixed point; a step halves the distance at worst
FACTORISATIONS = 10  # steps where each needs new eigenvectors
FARTHEST = 2.0  # |log d| changes by no more in a step


def log_marginal_likelihood(blocks: Mapping[str, Block], prior: Values, squares: Values, loss: float) -> float:
    """log q(D | d) in nats; `squares`: θ²; `loss` and the curvature summed over the data and divided by T."""
    occam = torch.zeros((), dtype=torch.float64)
    for n, block in blocks.items():
        d = prior[n]
        occam += block.evidence(d).complexity.double().cpu() + (d * squares[n]).sum(dtype=torch.float64).cpu()
    return -loss - 0.5 * float(occam)


class Maximiser:
    """New prior precisions of one structure, between two bounds, with the curvature and the weights held.

    `prior`: "scalar" (one d), "layer" (one for each parameter tensor), "unit" (log d_ij = r_i + c_j over the output and input
    units of a weight, one for each entry of every other parameter), "parameter". `bounds`: smallest and largest d.
    `mask`: weights that were cut take no part.
    """

    def __init__(self, prior: str, bounds: tuple[float, float], mask: Mask | None = None) -> None:
        if prior not in PRIORS:
            raise ValueError(f"prior '{prior}' is not one of {', '.join(PRIORS)}")
        self.prior, self.bounds, self.mask = prior, bounds, mask or {}

    @torch.no_grad()
    def __call__(self, blocks: Mapping[str, Block], squares: Values, start: Values) -> Values:
        """name -> d (0-dimensional where shared by a tensor or all), from the precisions `start`; `squares`: θ²."""
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
        """One step: d ← d · √(γ / dθ²), no farther than `FARTHEST`; both sums over what shares d."""
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
            d = self._clamp(self._moved(d, determined, d * norm))
        return d

    def _parameters(self, name: str, block: Block, squares: Tensor, start: Tensor) -> Tensor:
        if isinstance(block, Diagonal):
            return self._clamp(closed_form(block.h, squares))
        d = start.expand_as(squares).clone()
        for _ in range(STEPS):
            d = self._clamp(self._moved(d, self._alive(name, block.evidence(d).determined), d * squares))
        return d

    def _units(self, name: str, block: Block, squares: Tensor, start: Tensor) -> Tensor:
        """The whitened (or, for large factors, projected) fixed point, rows and columns in turn."""
        if squares.dim() not in (2, 4):  # a bias, a norm layer, a token: every entry is a unit of its own
            return self._parameters(name, block, squares, start)
        layout = Units(squares.shape, block)
        r, c = layout.split(start.expand_as(squares).log())
        for _ in range(FACTORISATIONS):
            for along in (0, 1):
                d = Separable(r, layout.over_kernel(c))
                determined = self._alive(name, block.evidence(d).determined)
                sums = [layout.sums(v, along) for v in (determined, d.dense(squares.shape) * squares)]
                moved = self._moved(torch.ones_like(sums[0]), *sums).log()
                r, c = (r + moved, c) if along == 0 else (r, c + moved)
                low, high = (math.log(b) for b in self.bounds)
                middle = c.median()
                r, c = (r + middle).clamp(low, high), (c - middle).clamp(low - high, high - low)
        return self._clamp(Separable(r, layout.over_kernel(c)).dense(squares.shape))


class Units:
    """Output and input units of a weight (out, in, *kernel) in G groups: r (G, o, 1), c (G, 1, in), kernels share c."""

    def __init__(self, shape: torch.Size, block: Block) -> None:
        self.groups = len(block.outer) if isinstance(block, Kronecker) else 1
        self.view = (self.groups, shape[0] // self.groups, shape[1], shape[2:].numel())

    def split(self, log_d: Tensor) -> tuple[Tensor, Tensor]:
        """(r, c) nearest to log d in the mean of squares."""
        v = log_d.reshape(self.view).mean(3)
        r = v.mean(2, keepdim=True)
        return r, (v - r).mean(1, keepdim=True)

    def sums(self, values: Tensor, along: int) -> Tensor:
        """Sums over what shares an output unit (`along` 0, of r's shape) or an input unit (1, of c's)."""
        v = values.reshape(self.view).sum(3)
        return v.sum(2, keepdim=True) if along == 0 else v.sum(1, keepdim=True)

    def over_kernel(self, c: Tensor) -> Tensor:
        """c (G, 1, in) repeated over the kernel: (G, 1, i)."""
        return c.repeat_interleave(self.view[3], dim=2)


def closed_form(h: Tensor, theta_squared: Tensor) -> Tensor:
    """argmax_d of ½ [log d - log(h + d) - d θ²] = ½ (-h + √(h² + 4h/θ²)), in a form that does not cancel: 2/(θ² (1 + √(1 + 4/(h θ²)))).

    h, θ² >= 0 of one shape. No curvature: 0; no weight: infinite; both for the caller to clamp.
    """
    h64, t64 = h.double(), theta_squared.double()  # 4/(h θ²) overflows in single precision for the smallest weights
    d = 2.0 / (t64 * (1.0 + torch.sqrt(1.0 + 4.0 / (h64 * t64))))
    return torch.where(theta_squared > 0, d, torch.inf).to(h.dtype)
