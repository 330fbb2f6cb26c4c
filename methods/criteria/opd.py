"""Optimal Posterior Damage."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core.configurations import Criterion
from methods.core.hyperparameters import Choice, Float, Int
from methods.core.interface import Posterior, Problem, Scores, Stage
from methods.core.layer_scaling import ACROSS, SCOPES, rescope
from methods.curvature.blocks import Kronecker
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import KINDS
from methods.curvature.precision import widened
from methods.posterior.prior import uniform_prior
from methods.registry.registry import register


@register("opd")
@dataclass(frozen=True, kw_only=True)
class Opd(Criterion):
    """Optimal Posterior Damage: remove the weights with the smallest posterior precision times squared weight.

    s_k = P_kk θ_k², where P = H + diag(d) is the precision of the Laplace posterior: curvature H plus prior precision d.

    After training with `spam`, P is available and scoring costs nothing. After a training that leaves only a prior (`map`: its L2
    penalty as a precision), H is computed here at the current weights. For a network without a posterior, d = `precision`.
    `curvature`, `draws` and `samples` belong to this computation: see `methods.curvature.compute`.

    `form`, for Kronecker-factored posteriors: "exact": the diagonal B_ii A_jj + d_ij. "eigenbasis": the diagonal of P with the prior
    projected on the eigenbasis of the factors, which smooths d over the units (the form of the released code).

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
    scope: str = Choice("global", *SCOPES, drawn=ACROSS, meaning="how scores of different layers are compared")

    def score(self, problem: Problem) -> Scores:
        """P ⊙ θ²."""
        weights = problem.weights
        posterior = problem.posterior
        prior = posterior.prior if posterior else uniform_prior(problem.model, self.precision)
        precision = dict.fromkeys(weights, torch.tensor(self.precision, device=problem.device))  # for weights that were frozen in training
        d = {n: prior.get(n, own) for n, own in precision.items()}
        p = {n: self._precision(n, posterior, d[n]) for n in weights if posterior and n in posterior.curvature}
        missing = [n for n in weights if n not in p]
        if missing:
            temperature = posterior.temperature if posterior else 1.0
            fitted = curvature(problem, self.curvature, draws=self.draws, samples=self.samples, names=missing).diagonal
            p |= {n: h / temperature + d[n] for n, h in fitted.items()}
        values = {n: p[n] * widened(w.detach()).square() for n, w in weights.items()}
        return Scores(rescope(values, self.scope, problem))

    def _precision(self, name: str, posterior: Posterior, d: Tensor) -> Tensor:
        """P_kk of one parameter, in its shape."""
        h = posterior.curvature[name]
        if self.form == "eigenbasis" and name in posterior.factors:
            return Kronecker(*posterior.factors[name], h.shape).eigenbasis_precision(d)
        return h + d
