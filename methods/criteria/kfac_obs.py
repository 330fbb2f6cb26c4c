"""Optimal Brain Surgeon with a Kronecker-factored Fisher."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice, Float, Int
from methods.core.interface import Problem, Scores, Stage
from methods.core.layer_scaling import ACROSS, SCOPES, rescope
from methods.core.masks import Mask
from methods.core.schedule import cubic
from methods.curvature.blocks import Precision
from methods.curvature.compute import SHARING, curvature
from methods.curvature.loss_factors import KINDS
from methods.curvature.precision import widened
from methods.registry.registry import register

ITERATIONS = 200  # steps of conjugate gradients, at most
TOLERANCE = 1e-5  # of the residual, relative to the right-hand side


@register("kfac_obs")
@dataclass(frozen=True, kw_only=True)
class KfacObs(Criterion):
    """Optimal Brain Surgeon with the Kronecker-factored Fisher of each layer, and an update of the kept weights.

    s_q = w_q² / (2 [F⁻¹]_qq), with F = B ⊗ A + λ 1 for the weights of each layer, averaged over the samples. B ⊗ A is the
    Kronecker-factored curvature (`curvature`, `samples`, `sharing`: see `methods.curvature.compute`), λ the `damping`. The
    eigenvectors of B and A give [F⁻¹]_qq for all weights of a layer at the cost of two eigendecompositions.

    `update` of the kept weights K for the removed weights Q of a layer: "joint" minimises the quadratic model,
    δw_K = F_KK⁻¹ F_KQ w_Q, by conjugate gradients on products with F; "summed" adds the updates for single weights,
    δw = -F⁻¹ Σ_{q∈Q} e_q w_q / [F⁻¹]_qq. `steps`: number of times to score and cut, on a cubic schedule, with new curvature each time.

    References: Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon", NIPS 1992, equations 5
    and 6; Wang et al., "EigenDamage: structured pruning in the Kronecker-factored eigenbasis", ICML 2019, section 3.1, for Kronecker
    factors in OBS; Singh and Alistarh 2020 for the summed updates. Departures: λ is added to the product of the factors, not to each
    factor; weights that were cut earlier count as free in [F⁻¹]_qq (their gradients cannot be removed from the factors), but not in
    the joint update; biases are not changed.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    curvature: str = Choice("mc", *KINDS, meaning="kind of curvature: empirical Fisher, Monte-Carlo or exact Gauss-Newton")
    samples: int = Int(4096, minimum=1, meaning="training samples that are read, at most")
    sharing: str = Choice("expand", *SHARING, meaning="how positions that share a weight enter the factors")
    damping: float = Float(1e-3, 1e-8, 1e-1, log=True, above=0, meaning="λ, added to the diagonal of the Fisher")
    update: str = Choice("joint", "joint", "summed", "none", meaning="how kept weights are adjusted for removed ones")
    steps: int = Int(1, minimum=1, meaning="rounds of scoring and cutting, without training between them")
    scope: str = Choice("global", *SCOPES, drawn=ACROSS, meaning="how scores of different layers are compared")

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        """`steps` cuts on a cubic schedule."""
        return cubic(present, target, self.steps)

    def score(self, problem: Problem) -> Scores:
        """w² / (2 [F⁻¹]_qq); the state is name -> F."""
        weights = problem.weights
        found = curvature(
            problem, self.curvature, structure="kronecker", samples=self.samples, sharing=self.sharing, names=list(weights)
        ).blocks  # fmt: skip
        fisher = {n: b.scaled(1.0 / problem.samples).precision(torch.tensor(self.damping)) for n, b in found.items()}
        values = {n: widened(w.detach()).square() / (2.0 * fisher[n].inverse().diagonal().view(w.shape)) for n, w in weights.items()}
        return Scores(rescope(values, self.scope, problem), state=fisher)

    @torch.no_grad()
    def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
        """Update the kept weights of every layer for the weights that the new mask removes."""
        fisher: dict[str, Precision] = state
        for name, w in problem.weights.items():
            kept, alive = mask[name].flatten(), problem.mask[name].flatten()
            removed = torch.where(alive & ~kept, widened(w.detach()).flatten(), 0.0)
            if self.update == "joint":
                change = solve(fisher[name], kept, fisher[name].times(removed) * kept)
            elif self.update == "summed":
                inverse = fisher[name].inverse()
                change = -inverse.times(removed / inverse.diagonal())
            else:
                continue
            w.add_((change * kept).view(w.shape))


def solve(f: Precision, kept: Tensor, b: Tensor) -> Tensor:
    """Solve F_KK x_K = b_K with x = 0 outside K by conjugate gradients, preconditioned by the diagonal.

    Args:
        f: F.
        kept: K, a bool tensor (parameters,).
        b: right-hand side (parameters,), zero outside K.

    Returns:
        x (parameters,).
    """
    scale = f.diagonal()
    x, r = torch.zeros_like(b), b
    z = r / scale
    p, rz = z, r @ z
    limit = TOLERANCE**2 * float(b @ b)
    for _ in range(ITERATIONS):
        if float(r @ r) <= limit:
            break
        fp = f.times(p) * kept
        along = p @ fp
        if not along > 0.0:  # rounding errors exceed the damping
            break
        step = rz / along
        x, r = x + step * p, r - step * fp
        z = r / scale
        before, rz = rz, r @ z
        p = z + (rz / before) * p
    return x
