"""Deep weight factorisation (DWF)."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.configurations import Training
from methods.core.hyperparameters import Float, Int
from methods.core.interface import Posterior, Problem, derive
from methods.core.reparametrised import collapse, reparametrise, replaceable
from methods.posterior.prior import decayed, uniform_prior
from methods.registry.registry import register

# Bounds of the product of the drawn factors, in units of the root mean square of the layer's initial weights.
NEAREST, FARTHEST = 0.01, 2.0


@register("dwf")
@dataclass(frozen=True, kw_only=True)
class Dwf(Training):
    """Deep weight factorisation: train each weight as a product of factors whose L2 penalty makes it sparse.

    Each prunable weight tensor is written as w = w_1 ⊙ ... ⊙ w_D, and training minimises

        L(w_1 ⊙ ... ⊙ w_D) + (λ/D) Σ_d ‖w_d‖²,    L the mean loss, D the `depth`, λ = `lam`,

    over the factors, each in the shape of w. For a given product the penalty is smallest for balanced factors, |w_d| = |w|^(1/D):
    λ ‖w‖_{2/D}^{2/D} (arithmetic and geometric mean). This is the L1 penalty for D = 2 and not convex for larger D, minimised by plain
    gradient descent. `finish` multiplies the factors, with the original names and order; it sets nothing to zero.

    The absolute values of the factors are drawn from a normal distribution truncated to [NEAREST^(1/D), FARTHEST^(1/D)], in units of
    the layer's deviation to the power 1/D; signs are random. So no factor starts near zero, where the others have no gradient, or far
    from it. The factors are not balanced, because balanced factors could not change the sign of their product. Their scaling, see
    below, widens the interval: at D = 2 from [0.1, 1.41] to about [0.064, 2.13] for normally distributed weights, and to about
    [0.064, 2.45] for uniformly distributed ones.

    Reference: Kolb, Weber, Bischl and Rügamer 2025, "Deep weight factorization: sparse learning through the lens of artificial
    symmetries": the objective, the truncated draw whose product has the variance of the layer's own initialisation, the larger
    learning rate. Departures: the draws are assigned by rank and scaled, the factors of a weight together, so that their product is
    the given initial weight (or NEAREST of the layer's root mean square, with its sign, if it is smaller). This gives the wanted
    variance without the loss by truncation, and the initial network of all other trainings. Weights are cut to an exact count, not
    at a threshold. Parameters that are not factorised (biases, norms, weights that are all zero, shared by several modules, or
    matrices of recurrent layers and attention) have the L2 penalty ½ · `weight_decay` of `map`; during fine-tuning the whole
    network has it, because the penalty of λ is not smooth in w. The posterior is this prior, without curvature. The bounds and the
    defaults are ours: a larger `lr` makes networks sparser, but was seen to diverge from 0.25 on (LeNet-5, MNIST).
    """

    lr: float = Float(0.2, 0.06, 0.3, log=True, above=0, meaning="peak learning rate of SGD with momentum")
    depth: int = Int(2, 2, 4, minimum=2, meaning="number of factors D of each weight")
    lam: float = Float(1e-3, 1e-5, 1e-2, log=True, minimum=0, meaning="strength λ of the sparsity penalty")
    weight_decay: float = Float(
        1e-3, 1e-5, 2e-2, log=True, minimum=0, meaning="L2 penalty of what is not factorised, and of all while fine-tuning"
    )

    def prepare(self, problem: Problem) -> Posterior:
        """Factorise the weights. The prior is d = N · 2λ/D for their factors and N · weight_decay for all other parameters."""
        model, factors = problem.model, []
        for name, path in [*replaceable(problem)]:
            reparametrise(model, path, Product(self.depth, derive(problem.seed, "dwf", name)))
            factors += [f"{path}parametrizations.weight.original{d}" for d in range(self.depth)]
        own = uniform_prior(model, problem.samples * 2.0 * self.lam / self.depth)
        return Posterior(decayed(problem, self.weight_decay).prior | {n: own[n] for n in factors}, problem.samples)

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """Multiply the factors; the prior is d = N · weight_decay for every parameter, as with `map`."""
        collapse(problem.model, Product)
        return decayed(problem, self.weight_decay)


class Product(nn.Module):
    """The parametrisation w = w_1 ⊙ ... ⊙ w_D; `seed`: of the draw of the factors."""

    def __init__(self, depth: int, seed: int) -> None:
        super().__init__()
        self.depth, self.seed = depth, seed

    def forward(self, *factors: Tensor) -> Tensor:
        """The product of factors of one shape."""
        return functools.reduce(torch.mul, factors)

    @torch.no_grad()
    def right_inverse(self, w: Tensor) -> tuple[Tensor, ...]:
        """D factors of w. Entries smaller than NEAREST of their root mean square are raised to it.

        The k-th smallest product of the draws is used for the k-th smallest weight, so that the scaling is small.
        """
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU, so that every device draws the same
        low, high = (math.erf(bound ** (1 / self.depth) / math.sqrt(2)) for bound in (NEAREST, FARTHEST))
        uniform = torch.rand(self.depth, *w.shape, generator=generator, dtype=torch.float64)
        sizes = torch.erfinv(low + (high - low) * uniform) * math.sqrt(2)
        signs = torch.randint(2, sizes.shape, generator=generator) * 2.0 - 1.0
        wanted = w.double().cpu()
        signs[0] = torch.where(wanted < 0, -1.0, 1.0) * signs[1:].prod(0)
        magnitude = wanted.abs().clamp(min=NEAREST * wanted.square().mean().sqrt())
        by_product = sizes.prod(0).flatten().argsort(stable=True)
        rank = magnitude.flatten().argsort(stable=True).argsort()
        sizes = sizes.flatten(1)[:, by_product[rank]].view_as(sizes)
        return ((magnitude / sizes.prod(0)) ** (1 / self.depth) * sizes * signs).to(w).unbind()
