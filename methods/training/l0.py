"""L0 regularisation with hard-concrete gates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.configurations import Training
from methods.core.hyperparameters import Float
from methods.core.interface import Posterior, Problem
from methods.core.reparametrised import collapse, reparametrise, replaceable
from methods.posterior.prior import decayed
from methods.registry.registry import register

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and ends of the stretched interval, section 4 of the paper
GATE = "parametrizations.weight.0.a"


@register("l0")
@dataclass(frozen=True, kw_only=True)
class L0(Training):
    """L0 regularisation: train a random gate for each weight, with a penalty on the expected number of open gates.

    Each prunable weight is w z with a hard-concrete gate z, and training minimises

        E_z[mean loss] + (λ/N) Σ_k σ(log α_k - β log(-γ/ζ)) + ½ · weight_decay · ‖θ‖²,    λ = `lam`, N training samples,

    where the summand is P(z_k ≠ 0). In each forward pass u ~ U(0, 1), s = σ((log u - log(1 - u) + log α)/β) and
    z = min(1, max(0, s (ζ - γ) + γ)). In eval mode, and for the weights that `finish` writes, z = min(1, max(0, σ(log α)(ζ - γ) + γ)).
    Closed gates leave exact zeros; `magnitude` then cuts to an exact count. At the start P(s > ½) = `opened` for all gates.

    Reference: Louizos, Welling, Kingma, "Learning sparse neural networks through L0 regularization", ICLR 2018, equations 9 to 13.
    Departures: gates of single weights, where the paper has groups, and no factor for the size of groups; the same start for all gates,
    not a draw; log α = √r · a with trained a, r = `gate_rate`, which gives the gates r times the learning rate, as plain SGD moves single
    gates too slowly (Gale et al. 2019 tune such a factor too); no weight decay of a. Weights that are all zero, shared by several
    modules, computed from parameters of their own (weight norm), or matrices of recurrent layers and attention have no gates. Fine-tuning
    has the penalty of `map` and no gates. The posterior is the prior of `map`, without curvature.
    """

    lam: float = Float(1.0, 1e-2, 10.0, log=True, minimum=0, meaning="strength λ of the penalty on the number of open gates")
    opened: float = Float(0.9, 0.5, 0.99, above=0, maximum=0.999, meaning="initial probability that a gate is more than half open")
    gate_rate: float = Float(
        1000.0, 100.0, 10000.0, log=True, above=0, meaning="learning rate of the gates, relative to that of the weights"
    )
    weight_decay: float = Float(1e-3, 1e-5, 2e-2, log=True, minimum=0, meaning="coefficient of the L2 penalty: ½ · weight_decay · ‖θ‖²")

    def prepare(self, problem: Problem) -> Posterior:
        """Put the weights behind gates. The prior is d = N · weight_decay, and 0 for the gates."""
        model = problem.model
        for _, path in [*replaceable(problem)]:
            w = model.get_parameter(f"{path}weight")
            reparametrise(model, path, Gates(torch.full_like(w, math.log(self.opened / (1 - self.opened))), self.gate_rate**0.5))
        return Posterior({n: d for n, d in decayed(problem, self.weight_decay).prior.items() if not n.endswith(GATE)}, problem.samples)

    def penalty(self, parameters: Mapping[str, nn.Parameter], state: Posterior) -> Tensor | None:
        """(λ/N) Σ P(z ≠ 0); None while fine-tuning, where there are no gates."""
        gates = [p for n, p in parameters.items() if n.endswith(GATE)]
        opened = [torch.sigmoid(self.gate_rate**0.5 * a - BETA * math.log(-GAMMA / ZETA)).sum() for a in gates]
        return self.lam / state.samples * torch.stack(opened).sum() if opened else None

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """Write the weights times the gates of eval mode; the prior is that of `map`."""
        for module in problem.model.modules():
            if isinstance(module, Gates):
                module.eval()
        collapse(problem.model, Gates)
        return decayed(problem, self.weight_decay)


class Gates(nn.Module):
    """The parametrisation w z; `log_alpha`: the initial log α in the shape of w; `scale`: √r."""

    def __init__(self, log_alpha: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a = nn.Parameter(log_alpha / scale)

    def forward(self, w: Tensor) -> Tensor:
        """w z, with random gates in training mode. The draws are those of torch's global generator, as for dropout."""
        log_alpha = self.scale * self.a
        if self.training:
            u = torch.rand_like(w).clamp(1e-6, 1 - 1e-6)
            s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
        else:
            s = torch.sigmoid(log_alpha)
        return w * (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)

    def right_inverse(self, w: Tensor) -> Tensor:
        """The start: w itself."""
        return w
