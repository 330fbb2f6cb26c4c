"""Optimal Posterior Damage: the posterior precision times the squared weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice, Float, Int
from methods.core.interface import Posterior, Problem, Scores, Stage
from methods.core.layer_scaling import SCOPES, rescope
from methods.curvature.blocks import Kronecker
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import KINDS
from methods.posterior.prior import uniform_prior
from methods.registry.registry import register


@register("opd")
@dataclass(frozen=True, kw_only=True)
class Opd(Criterion):
    """s_k = P_kk θ_k², with P = H + diag(d) the precision of the Laplace posterior: curvature H plus prior precision d.

    `form`: of Kronecker-factored posteriors, the diagonal of P that is taken. "exact": B_ii A_jj + d_ij. "eigenbasis": that of
    P with the prior projected on the eigenbasis of the factors, which smooths d over the units (the released code's form).
    After training `spam` P is there already and scoring costs nothing. A training that leaves a prior only (`map`: its L2
    penalty as a precision) has H fitted here, at the present weights; a network without a posterior gets the stated
    `precision` as d. `curvature`, `draws` and `samples` belong to that fit: see `methods.curvature`.

    With large d this is magnitude pruning, with small d it is `obd`.

    Reference: Dhahri, Immer, Charpentier, Günnemann, Fortuin, "Shaving weights with Occam's razor: Bayesian sparsification
    for neural networks using the marginal likelihood", NeurIPS 2024.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)

    form: str = Choice("exact", "exact", "eigenbasis", meaning="which diagonal of a Kronecker-factored posterior precision is used")
    curvature: str = Choice("mc", *KINDS, meaning="kind of curvature: empirical Fisher, Monte-Carlo or exact Gauss-Newton")
    draws: int = Int(1, minimum=1, meaning="labels drawn for each sample (curvature=mc)")
    samples: int = Int(4096, minimum=1, meaning="training samples that are read, at most")
    precision: float = Float(1.0, 1e-2, 1e3, log=True, minimum=0, meaning="prior precision of a network without a posterior")
    scope: str = Choice("global", *SCOPES, meaning="how scores of different layers are compared")

    def score(self, problem: Problem) -> Scores:
        """P ⊙ θ²."""
        weights = problem.weights
        posterior = problem.posterior
        prior = posterior.prior if posterior else uniform_prior(problem.model, self.precision)
        precision = dict.fromkeys(weights, torch.tensor(self.precision, device=problem.device))  # of weights frozen in training
        d = {n: prior.get(n, own) for n, own in precision.items()}
        p = {n: self._precision(n, posterior, d[n]) for n in weights if posterior and n in posterior.curvature}
        missing = [n for n in weights if n not in p]
        if missing:
            temperature = posterior.temperature if posterior else 1.0
            fitted = curvature(problem, self.curvature, draws=self.draws, samples=self.samples, names=missing).diagonal
            p |= {n: h / temperature + d[n] for n, h in fitted.items()}
        values = {n: p[n] * w.detach().square() for n, w in weights.items()}
        return Scores(rescope(values, self.scope, problem))

    def _precision(self, name: str, posterior: Posterior, d: Tensor) -> Tensor:
        """P_kk of one parameter, of its shape."""
        h = posterior.curvature[name]
        if self.form == "eigenbasis" and name in posterior.factors:
            return Kronecker(*posterior.factors[name], h.shape).eigenbasis_precision(d)
        return h + d
