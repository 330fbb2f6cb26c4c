"""Optimal Posterior Damage: the posterior precision times the squared weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from methods.curvature import KINDS, curvature
from methods.interface import Criterion, Problem, Scores, Stage
from methods.prior import uniform_prior
from methods.registry import register
from methods.scope import SCOPES, rescope
from methods.space import Choice, Float, Int


@register("opd")
@dataclass(frozen=True, kw_only=True)
class Opd(Criterion):
    """s_k = P_kk θ_k², with P = H + diag(d) the precision of the Laplace posterior: curvature H plus prior precision d.

    After training `spam` P is there already and scoring costs nothing. A training that leaves a prior only (`map`: its L2
    penalty as a precision) has H fitted here, at the present weights; a network without a posterior gets the stated
    `precision` as d. `curvature` and `samples` belong to that fit: see `methods.curvature`.

    With large d this is magnitude pruning, with small d it is `obd`.

    Reference: Dhahri, Immer, Charpentier, Günnemann, Fortuin, "Shaving weights with Occam's razor: Bayesian sparsification
    for neural networks using the marginal likelihood", NeurIPS 2024. Diagonal curvature.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    curvature: str = Choice("mc", *KINDS)
    samples: int = Int(4096, 256, 65536, log=True)
    precision: float = Float(1.0, 1e-2, 1e3, log=True)
    scope: str = Choice("global", *SCOPES)

    def score(self, problem: Problem) -> Scores:
        """P ⊙ θ²."""
        weights = problem.weights
        posterior = problem.posterior
        prior = posterior.prior if posterior else uniform_prior(problem.model, self.precision)
        h = dict(posterior.curvature) if posterior else {}
        missing = [n for n in weights if n not in h]
        if missing:
            temperature = posterior.temperature if posterior else 1.0
            fitted = curvature(problem, self.curvature, samples=self.samples, names=missing).diagonal
            h |= {n: v / temperature for n, v in fitted.items()}
        # Weights that were frozen in training have no prior of its making.
        d = {n: prior.get(n, torch.tensor(self.precision, device=problem.device)) for n in weights}
        values = {n: (h[n] + d[n]) * w.detach().square() for n, w in weights.items()}
        return Scores(rescope(values, self.scope, problem))
