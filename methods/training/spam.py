"""SpaM: training by the Laplace marginal likelihood, with diagonal curvature."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.curvature import KINDS, Diagonal, diagonal
from methods.interface import Posterior, Problem, Training, Values
from methods.prior import uniform_prior
from methods.pruning import evaluating
from methods.registry import register
from methods.space import Choice, Float, Int

FIXED_POINT_STEPS = 30


@register("spam")
@dataclass(frozen=True, kw_only=True)
class Spam(Training):
    """Minimise the mean loss + ½ Σ_k d_k θ_k² · T / N, and set the prior precisions d to maximise the marginal likelihood

        log q(D | d) = -(1/T) Σ_n ℓ_n - ½ [ Σ_k log(h_k + d_k) - Σ_k log d_k + Σ_k d_k θ_k² ]

    every `frequency` epochs after a burn-in, with the weights θ and the diagonal curvature h (summed over the data, divided
    by T) held. `prior`: one d for each parameter, each parameter tensor ("layer"), or one in all ("scalar").

    - parameter: the maximum in closed form, d = ½ (-h + √(h² + 4h/θ²)).
    - layer, scalar: MacKay's fixed point, d = γ / ‖θ‖², γ = Σ h/(h + d), over the parameters that share d.

    Precisions start at weight_decay · N and never fall below it, so that the closed form, which is greedy, cannot free a
    weight from all decay; with no update this training IS `map`. They never rise above N / (T · lr), where one step of
    gradient descent brings a weight to zero and a larger d would make it oscillate and diverge. Leaves the posterior: d and,
    at the final weights, h.

    Reference: Dhahri et al. 2024 (see `methods.criteria.opd`); MacKay 1992 for the fixed point; Immer et al. 2021, "Scalable
    marginal likelihood estimation", for the online scheme. Departures: diagonal curvature only (Monte-Carlo Gauss-Newton or
    empirical Fisher); exact maxima stand where the released code takes 100 steps of Adam; the floor and the cap.
    """

    weight_decay: float = Float(1e-3, 1e-6, 1e-1, log=True)
    prior: str = Choice("parameter", "parameter", "layer", "scalar")
    curvature: str = Choice("mc", *KINDS)
    burn_in: float = Float(1 / 3, 0.0, 1.0)
    frequency: int = Int(5, 1, 20, log=True)
    temperature: float = Float(1.0, 0.05, 1.0, log=True)

    def prepare(self, problem: Problem) -> Posterior:
        """The prior d = weight_decay · N / T for every parameter, so that the penalty is that of `map`."""
        start = uniform_prior(problem.model, self.weight_decay * problem.samples / self.temperature)
        return Posterior(start, problem.samples, self.temperature)

    def after_epoch(self, problem: Problem, state: Posterior, epoch: int, epochs: int) -> Posterior:
        """New precisions, every `frequency` epochs once the burn-in is over."""
        first = math.floor(self.burn_in * epochs) + 1
        if epoch < first or (epoch - first) % self.frequency:
            return state
        return self._update(problem, state, self._fit(problem, state, f"epoch {epoch}"))

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """The posterior at the final weights, with the last precisions."""
        fitted = self._fit(problem, state, "finish")
        h = {n: v / state.temperature for n, v in fitted.values.items()}
        value = log_marginal_likelihood(problem.model, state.prior, h, fitted.loss / state.temperature)
        return replace(state, curvature=h, marginal_likelihood=(*state.marginal_likelihood, value))

    def _fit(self, problem: Problem, state: Posterior, purpose: str) -> Diagonal:
        with evaluating(problem.model):
            fitted = diagonal(problem, self.curvature, names=list(state.prior), purpose=purpose)
        # A masked weight is no parameter: without curvature it takes no part in any sum below.
        values = {n: h * problem.mask[n] if n in problem.mask else h for n, h in fitted.values.items()}
        return replace(fitted, values=values)

    @torch.no_grad()
    def _update(self, problem: Problem, state: Posterior, fitted: Diagonal) -> Posterior:
        floor, cap = (rate * problem.samples / self.temperature for rate in (self.weight_decay, 1.0 / self.lr))
        h = {n: v / state.temperature for n, v in fitted.values.items()}
        parameters = dict(problem.model.named_parameters())
        squares = {n: parameters[n].detach().square() for n in h}
        if self.prior == "parameter":
            prior = {n: closed_form(h[n], squares[n]).clamp(floor, cap) for n in h}
        else:
            groups = [[n] for n in h] if self.prior == "layer" else [list(h)]
            prior = {n: d for group in groups for n, d in _shared(group, h, squares, state.prior, floor, cap).items()}
        value = log_marginal_likelihood(problem.model, prior, h, fitted.loss / state.temperature)
        return replace(state, prior=prior, marginal_likelihood=(*state.marginal_likelihood, value))


def closed_form(h: Tensor, theta_squared: Tensor) -> Tensor:
    """argmax_d of ½ [log d - log(h + d) - d θ²] = ½ (-h + √(h² + 4h/θ²)), in a form that does not cancel: 2/(θ² (1 + √(1 + 4/(h θ²)))).

    h, θ² >= 0 of one shape. No curvature: 0; no weight: infinite; both for the caller to clamp.
    """
    h64, t64 = h.double(), theta_squared.double()  # 4/(h θ²) overflows in single precision for the smallest weights
    d = 2.0 / (t64 * (1.0 + torch.sqrt(1.0 + 4.0 / (h64 * t64))))
    return torch.where(theta_squared > 0, d, torch.inf).to(h.dtype)


def _shared(group: list[str], h: Values, squares: Values, prior: Values, floor: float, cap: float) -> Values:
    """MacKay's fixed point for one precision shared by a group of parameters."""
    curvature = torch.cat([h[n].flatten() for n in group])
    norm = sum(squares[n].sum() for n in group)
    d = prior[group[0]].max()
    for _ in range(FIXED_POINT_STEPS):
        wanted = (curvature / (curvature + d)).sum() / norm
        d = wanted.nan_to_num(cap).clamp(floor, cap)  # all zero, and no curvature: nothing asks for a smaller precision
    return dict.fromkeys(group, d)


@torch.no_grad()
def log_marginal_likelihood(model: nn.Module, prior: Values, h: Values, loss: float) -> float:
    """-loss - ½ Σ_k [log(h_k + d_k) - log d_k + d_k θ_k²] in nats; `loss` and h summed over the data and divided by T."""
    parameters = dict(model.named_parameters())
    occam = [(torch.log1p(h[n] / d) + d * parameters[n].square()).double().sum() for n, d in prior.items()]
    return -loss - 0.5 * float(torch.stack(occam).sum())
