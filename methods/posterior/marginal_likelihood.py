"""The Laplace marginal likelihood of a network, and the prior precisions that maximise it.

    log q(D | d) = -(1/T) Σ_n ℓ_n - ½ [ log det P - Σ_k log d_k + Σ_k d_k θ_k² ],   P = H + diag(d)

with H the curvature summed over the data and divided by the temperature T, block-diagonal over parameter tensors. At a
maximum over a d that a group of parameters shares, Σ γ_k = Σ d θ_k² over the group, with γ_k = 1 - d_k (P⁻¹)_kk (MacKay 1992,
"Bayesian interpolation", equation 4.8; γ from `methods.blocks`). In log d the objective is concave, and so is any other that is
linear in log d: log det(H + diag(d)) is the logarithm of a sum of products of precisions with coefficients >= 0, the minors of H.

Shared and unit-wise precisions are brought there by

    log d ← log d + ½ log(Σ γ / Σ d θ²),

half of MacKay's step: with it the iteration contracts also where d is far above the curvature, where the whole step turns
back and forth. Parameter-wise precisions over diagonal curvature have a closed form. Over Kronecker factors they share
eigenvectors, γ may be negative, and the iteration would turn back and forth for good: there, and wherever a prior is projected
on the eigenbasis, Newton's method finds the maximum (`Projected`).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from methods.core.interface import Mask, Values
from methods.curvature.blocks import Block, Diagonal, Kronecker, Separable

PRIORS = ("parameter", "unit", "layer", "scalar")
STEPS = 40  # of the fixed point at most; a step halves the distance at worst
NEWTON = 12  # steps of Newton's method at most
CONJUGATE = 8  # of conjugate gradients in each
FACTORISATIONS = 10  # steps where each needs new eigenvectors
FARTHEST = 2.0  # |log d| changes by no more in a step
STILL = 1e-4  # where log d changes by less, the iteration has ended


def log_marginal_likelihood(blocks: Mapping[str, Block], prior: Values, squares: Values, loss: float) -> float:
    """log q(D | d) in nats; `squares`: θ²; `loss` and the curvature summed over the data and divided by T."""
    occam = torch.zeros((), dtype=torch.float64)
    for n, block in blocks.items():
        occam += _occam(block, prior[n], squares[n])
    return -loss - 0.5 * float(occam)


def _occam(block: Block, d: Tensor, squares: Tensor) -> Tensor:
    """log det P - Σ log d + Σ d θ² of one block, without a projection where a d is that of a unit-wise prior."""
    complexity = block.evidence(Units(squares.shape, block).given(d) if _has_units(squares) else d).complexity
    return complexity.double().cpu() + (d * squares).sum(dtype=torch.float64).cpu()


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
        """The whitened (or, for large factors, projected) maximum."""
        if not _has_units(squares):  # a bias, a norm layer, a token: every entry is a unit of its own
            return self._parameters(name, block, squares, start)
        layout = Units(squares.shape, block)
        if isinstance(block, Kronecker) and not block.solves_separable:
            return self._projected(name, block, squares, start, layout)

        def cost(d: Tensor) -> float:
            return float(_occam(block, d, squares))

        shared = self._shared({name: block}, {name: squares}, {name: start})
        begin = min((self._clamp(start), shared), key=cost).expand_as(squares)
        found = self._alternate(name, block, squares, begin, layout)
        return min((found, begin.clone()), key=cost)  # between bounds that leave little room, a step may go too far

    def _alternate(self, name: str, block: Block, squares: Tensor, start: Tensor, layout: "Units") -> Tensor:
        """The fixed point, rows and columns in turn, each as far as the other leaves room between the bounds."""
        low, high = (math.log(b) for b in self.bounds)

        def room(one: Tensor, other: Tensor) -> Tensor:
            least, most = other.amin((1, 2), keepdim=True), other.amax((1, 2), keepdim=True)
            return one.maximum(low - least).minimum(high - most)

        r, c = layout.split(start.expand_as(squares).log())
        c = c.clamp((low - high) / 2, (high - low) / 2)
        r = room(r, c)
        for _ in range(STEPS if isinstance(block, Diagonal) else FACTORISATIONS):
            before = r, c
            for along in (0, 1):
                d = Separable(r, layout.over_kernel(c))
                determined = self._alive(name, block.evidence(d).determined)
                sums = [layout.sums(v, along) for v in (determined, d.dense(squares.shape) * squares)]
                moved = self._moved(torch.ones_like(sums[0]), *sums).log()
                r, c = (room(r + moved, c), c) if along == 0 else (r, room(c + moved, r))
            if max(float((a - b).abs().max()) for a, b in zip((r, c), before, strict=True)) < STILL:
                break
        return self._clamp(Separable(r, layout.over_kernel(c)).dense(squares.shape))


class Projected:
    """Twice the evidence of a Kronecker block whose prior is projected on the eigenbasis, as a function of u = log d:

        F(u) = Σ_k u_k - Σ_j log(Λ_j + Σ_k W_kj e^{u_k}) - Σ_k e^{u_k} θ_k²,   W = Q_B² ⊗ Q_A²,

    concave. Its gradient is γ - dθ², its Hessian -[diag(dV + dθ²) - diag(d) W diag(1/P²) Wᵀ diag(d)], with V the diagonal of P⁻¹.
    `mask`: weights that were cut keep their precision.
    """

    def __init__(self, block: Kronecker, squares: Tensor, bounds: tuple[float, float], mask: Tensor | None) -> None:
        self.block, self.squares, self.mask = block, squares, mask
        self.low, self.high = (math.log(b) for b in bounds)

    def keep(self, u: Tensor, start: Tensor) -> Tensor:
        """u between the bounds, and as it was at the start where the weight is masked."""
        inside = u.clamp(self.low, self.high)
        return inside if self.mask is None else torch.where(self.mask, inside, start)

    def value(self, u: Tensor) -> float:
        """F(u)."""
        p = self.block.eigen[0] + self.block.project(self.block.matrix(u.exp()))
        parts = (u, -p.log(), -u.exp() * self.squares)
        return float(sum(part.sum(dtype=torch.float64) for part in parts))

    def ascend(self, start: Tensor, units: "Units | None" = None) -> Tensor:
        """Newton steps from `start`, each no lower than the one before; u = r_o + c_i under `units`."""
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
        """Newton's, by conjugate gradients with the Hessian's diagonal as preconditioner, over what is not held at a bound."""
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


def _has_units(parameter: Tensor) -> bool:
    return parameter.dim() in (2, 4)


class Units:
    """Output and input units of a weight (out, in, *kernel) in G groups: r (G, o, 1), c (G, 1, in), kernels share c."""

    def __init__(self, shape: torch.Size, block: Block) -> None:
        self.groups = len(block.outer) if isinstance(block, Kronecker) else 1
        self.shape = shape
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

    def given(self, d: Tensor) -> Tensor | Separable:
        """d as the separable prior that it is, or d itself where it is none or one for all."""
        if d.dim() == 0:
            return d
        log_d = d.log()
        r, c = self.split(log_d)
        separable = Separable(r, self.over_kernel(c))
        return separable if float((separable.dense(self.shape).log() - log_d).abs().max()) < STILL else d

    def expand(self, z: Tensor) -> Tensor:
        """log d, of the parameter's shape, from r and c in one vector."""
        groups, out, inner, _ = self.view
        r, c = z[: groups * out].view(groups, out, 1), z[groups * out :].view(groups, 1, inner)
        return (r + self.over_kernel(c)).reshape(self.shape)

    def gather(self, values: Tensor) -> Tensor:
        """The transpose of `expand`: sums over what shares a unit."""
        return torch.cat([self.sums(values, along).flatten() for along in (0, 1)])

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
