"""SpaM: training by the Laplace marginal likelihood under sparsity-inducing priors."""

import math
from dataclasses import dataclass, replace

import torch

from methods.blocks import Block, Diagonal, Kronecker
from methods.curvature import KINDS, STRUCTURES, Curvature, curvature
from methods.evidence import PRIORS, Maximiser, log_marginal_likelihood
from methods.interface import Posterior, Problem, Training, Values
from methods.prior import uniform_prior
from methods.pruning import evaluating
from methods.registry import register
from methods.space import Choice, Float, Int


@register("spam")
@dataclass(frozen=True, kw_only=True)
class Spam(Training):
    """Minimise the mean loss + ½ Σ_k d_k θ_k² · T / N, and set the prior precisions d to maximise the marginal likelihood

        log q(D | d) = -(1/T) Σ_n ℓ_n - ½ [ log det(H + diag(d)) - Σ_k log d_k + Σ_k d_k θ_k² ]

    every `frequency` epochs after a burn-in, with the weights θ and the curvature H (summed over the data, divided by T)
    held. `structure`: H diagonal or Kronecker-factored. `prior`: one d for each parameter, for each output and input unit
    (log d_ij = r_i + c_j), each parameter tensor ("layer"), or one in all ("scalar"). How d is found: `methods.evidence`.

    Precisions start at weight_decay · N and never fall below it, so that the update, which is greedy, cannot free a weight
    from all decay; with no update this training IS `map`. They never rise above N / (T · lr), where one step of gradient
    descent brings a weight to zero and a larger d would make it oscillate and diverge. Leaves the posterior: d and, at the
    final weights, H.

    Reference: Dhahri et al. 2024 (see `methods.criteria.opd`); Immer et al. 2021, "Scalable marginal likelihood estimation",
    for the online scheme. Departures: fixed points and closed forms stand where the released code takes 100 steps of Adam;
    the floor and the cap; a unit-wise prior over Kronecker factors is solved exactly where they are small.
    """

    weight_decay: float = Float(1e-3, 1e-6, 1e-1, log=True)
    prior: str = Choice("parameter", *PRIORS)
    structure: str = Choice("diagonal", *STRUCTURES)
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
        return self._update(problem, state, self._measure(problem, state, f"epoch {epoch}"))

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """The posterior at the final weights, with the last precisions."""
        measured = self._measure(problem, state, "finish")
        value = log_marginal_likelihood(measured.blocks, state.prior, _squares(problem, state), measured.loss)
        blocks = measured.blocks.items()
        factors = {n: (b.outer, b.inner) for n, b in blocks if isinstance(b, Kronecker)}
        likelihoods = (*state.marginal_likelihood, value)
        return replace(state, curvature=measured.diagonal, factors=factors, marginal_likelihood=likelihoods)

    def _measure(self, problem: Problem, state: Posterior, purpose: str) -> Curvature:
        """Loss and curvature over all training data, divided by T."""
        with evaluating(problem.model):
            names = list(state.prior)
            found = curvature(problem, self.curvature, structure=self.structure, names=names, purpose=purpose)
        # A masked weight is no parameter: without curvature it takes no part in any sum.
        blocks: dict[str, Block] = {
            n: Diagonal(b.h * problem.mask[n]) if isinstance(b, Diagonal) and n in problem.mask else b for n, b in found.blocks.items()
        }
        t = self.temperature
        return Curvature({n: b.scaled(1.0 / t) for n, b in blocks.items()}, found.loss / t)

    def _update(self, problem: Problem, state: Posterior, measured: Curvature) -> Posterior:
        floor, cap = (rate * problem.samples / self.temperature for rate in (self.weight_decay, 1.0 / self.lr))
        squares = _squares(problem, state)
        prior = Maximiser(self.prior, (floor, cap), problem.mask)(measured.blocks, squares, state.prior)
        value = log_marginal_likelihood(measured.blocks, prior, squares, measured.loss)
        return replace(state, prior=prior, marginal_likelihood=(*state.marginal_likelihood, value))


@torch.no_grad()
def _squares(problem: Problem, state: Posterior) -> Values:
    """θ² of the parameters that have a prior."""
    parameters = dict(problem.model.named_parameters())
    return {n: parameters[n].square() for n in state.prior}
