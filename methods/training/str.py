"""Soft threshold weight reparametrisation (STR)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.configurations import Training
from methods.core.hyperparameters import Float
from methods.core.interface import Posterior, Problem
from methods.core.reparametrised import collapse, reparametrise, replaceable
from methods.posterior.prior import decayed, uniform_prior
from methods.registry.registry import register


@register("str")
@dataclass(frozen=True, kw_only=True)
class Str(Training):
    """STR: train weights behind a soft threshold that is learned for each layer.

    Each prunable weight tensor w is replaced by

        S(w, s) = sign(w) · relu(|w| - σ(s)),    σ the logistic function, s one number per layer,

    and training minimises the mean loss + ½ · weight_decay · ‖θ‖² + ½ · threshold_decay · Σ s² over w, s and all other parameters θ.
    s starts at `start`, where σ(s) is near zero; its decay raises s towards 0, and with it the threshold, until the gradient of the
    loss keeps it. `finish` writes S(w, s) into the weights. They have exact zeros; `magnitude` then cuts to an exact count.

    Reference: Kusupati et al., "Soft threshold weight reparameterization for learnable sparsity", ICML 2020, equations 3 to 6.
    Departures: the paper decays s and w by one λ and sets `start` far from zero (-3200 on ImageNet), so that the threshold rises within
    100 epochs; the trainings here are short, so s has a decay of its own and starts nearer. The sparsity of S is not a target: weights
    are cut to an exact count, and other zeros count as kept. Weights that are all zero, shared by several modules, computed from
    parameters of their own (weight norm), or matrices of recurrent layers and attention have no threshold. Fine-tuning has the penalty of
    `map` and no threshold. The posterior is the prior of `map`, without curvature.
    """

    start: float = Float(
        -8.0, -12.0, -4.0, maximum=0, meaning="initial s of each layer; the initial threshold is the logistic function of s"
    )
    threshold_decay: float = Float(2e-2, 1e-3, 5e-2, log=True, minimum=0, meaning="L2 penalty of s: ½ · threshold_decay · s²")
    weight_decay: float = Float(1e-3, 1e-5, 2e-2, log=True, minimum=0, meaning="coefficient of the L2 penalty: ½ · weight_decay · ‖θ‖²")

    def prepare(self, problem: Problem) -> Posterior:
        """Put the weights behind thresholds. The prior is d = N · threshold_decay for s and N · weight_decay for the rest."""
        model, thresholds = problem.model, []
        for _, path in [*replaceable(problem)]:
            w = model.get_parameter(f"{path}weight")
            reparametrise(model, path, SoftThreshold(torch.tensor(self.start, dtype=w.dtype, device=w.device)))
            thresholds.append(f"{path}parametrizations.weight.0.s")
        own = uniform_prior(model, problem.samples * self.threshold_decay)
        return Posterior(decayed(problem, self.weight_decay).prior | {n: own[n] for n in thresholds}, problem.samples)

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """Write S(w, s) into the weights; the prior is that of `map`."""
        collapse(problem.model, SoftThreshold)
        return decayed(problem, self.weight_decay)


class SoftThreshold(nn.Module):
    """The parametrisation S(w, s); `s`: the initial s, a scalar tensor."""

    def __init__(self, s: Tensor) -> None:
        super().__init__()
        self.s = nn.Parameter(s)

    def forward(self, w: Tensor) -> Tensor:
        """sign(w) · relu(|w| - σ(s))."""
        return torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(self.s))

    def right_inverse(self, w: Tensor) -> Tensor:
        """The start: w itself, so that the first weights are smaller than the given ones by σ(s)."""
        return w
