"""Network slimming: an L1 penalty on the scales of batch norm."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.core.configurations import Training
from methods.core.hyperparameters import Float
from methods.core.interface import Posterior, Problem
from methods.posterior.prior import decayed
from methods.posterior.unfinished import Unfinished
from methods.registry.registry import register


@register("slimming")
@dataclass(frozen=True, kw_only=True)
class Slimming(Training):
    """Network slimming: train with an L1 penalty on the scales of batch norm, so that channels are switched off.

    Minimises the mean loss + λ Σ_c |γ_c| + ½ · weight_decay · ‖θ‖², λ = `lam`, γ the scales of all batch norms, by subgradients:
    λ sign(γ_c), and 0 for γ_c = 0. Criterion `bn_scale` then removes the channels with the smallest |γ|. A network without batch norm
    is trained as by `map`. Fine-tuning has no L1 penalty, as in the paper. The posterior is the prior of `map`, without curvature.

    Reference: Liu et al., "Learning efficient convolutional networks through network slimming", ICCV 2017, equation 1; the
    subgradient is that of its section 4. Departures: γ keeps its initial value (the paper starts at 0.5); `lam` is ours, because
    the trainings here are short: the shrinkage of a γ without gradient is λ times the sum of the learning rates. The paper has 1e-4
    (VGG) and 1e-5 (ResNet, DenseNet) for 160 epochs.
    """

    lam: float = Float(1e-2, 1e-4, 1e-1, log=True, minimum=0, meaning="strength λ of the L1 penalty on the scales of batch norm")
    weight_decay: float = Float(1e-3, 1e-5, 2e-2, log=True, minimum=0, meaning="coefficient of the L2 penalty: ½ · weight_decay · ‖θ‖²")

    def prepare(self, problem: Problem) -> Posterior:
        """The prior d = weight_decay · N, N the number of training samples; the scales get the L1 penalty."""
        scales = {id(m.weight) for m in problem.model.modules() if isinstance(m, _BatchNorm) and m.weight is not None}
        names = {n: 0 for n, p in problem.model.named_parameters() if id(p) in scales}
        return Unfinished(decayed(problem, self.weight_decay).prior, problem.samples, penalised=names)

    def penalty(self, parameters: Mapping[str, nn.Parameter], state: Posterior) -> Tensor | None:
        """λ Σ |γ|; None while fine-tuning."""
        scales = [parameters[n] for n in state.penalised if n in parameters] if isinstance(state, Unfinished) else []
        return self.lam * torch.cat([g.abs() for g in scales]).sum() if scales else None

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """The prior, as with `map`."""
        return decayed(problem, self.weight_decay)
