"""SpaM: training by the Laplace marginal likelihood."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from methods.core.configurations import Training
from methods.core.hyperparameters import Choice, Float, Int
from methods.core.interface import Batches, Posterior, Problem, Values, count_batches
from methods.core.modes import evaluating
from methods.curvature.blocks import Block, Diagonal, Kronecker
from methods.curvature.compute import STRUCTURES, Curvature, curvature
from methods.curvature.loss_factors import KINDS
from methods.curvature.precision import widened
from methods.posterior.marginal_likelihood import PRIORS, Maximiser, log_marginal_likelihood
from methods.posterior.prior import uniform_prior
from methods.registry.registry import register

POSITIONS = 16  # positions of each sample for the Kronecker factor of the inputs, which is a mean over very many


@register("spam")
@dataclass(frozen=True, kw_only=True)
class Spam(Training):
    """SpaM: train the weights and learn the precisions of their prior by the Laplace marginal likelihood.

    Minimises the mean loss + ½ Σ_k d_k θ_k² · T / N, and sets the prior precisions d to maximise the log marginal likelihood

        log q(D | d) = -(1/T) Σ_n ℓ_n - ½ [ log det(H + diag(d)) - Σ_k log d_k + Σ_k d_k θ_k² ]

    every `frequency` epochs after a burn-in, with the weights θ and the curvature H (summed over the data, divided by T)
    fixed. `structure`: H diagonal or Kronecker-factored. `prior`: one d per parameter, per output and input unit
    (log d_ij = r_i + c_j), per parameter tensor ("layer"), or one for all ("scalar"). How d is computed: see
    `methods.posterior.marginal_likelihood`.

    Each update reads a fraction `share` of the training data, a different part each time, and uses a running average of the curvature
    in which the past has the weight `memory`.

    Precisions start at weight_decay · N and are never smaller, so that a greedy update cannot free a weight from all decay. Without an
    update this training is the same as `map`. They are never larger than N / (T · lr): at this value one step of gradient descent
    sets a weight to zero, and a larger d makes it oscillate and diverge. The posterior contains d and, at the final weights and over
    all data, H.

    Weights that start at exactly zero (the last convolutions of Fixup networks) must have moved before the first update, which would
    otherwise give them the largest d, so that they stay zero: use a longer `burn_in`, e.g. 0.2.

    References: Dhahri et al. 2024 (see `methods.criteria.opd`); Immer et al. 2021, "Scalable marginal likelihood estimation",
    for the online scheme. Departures: closed forms, fixed points and Newton's method replace the 100 steps of Adam of the released
    code; `share`, `memory` and the bounds of d are ours; a unit-wise prior over small Kronecker factors is exact.
    """

    weight_decay: float = Float(1e-3, 1e-5, 2e-2, log=True, above=0, meaning="initial and smallest prior precision, divided by N")
    prior: str = Choice("parameter", *PRIORS, tuned=False, meaning="which weights share a prior precision")
    structure: str = Choice("diagonal", *STRUCTURES, tuned=False, meaning="structure of the curvature H")
    curvature: str = Choice("mc", *KINDS, meaning="kind of curvature: empirical Fisher, Monte-Carlo or exact Gauss-Newton")
    burn_in: float = Float(0.05, 0.0, 1.0, minimum=0, maximum=1, meaning="fraction of the training before the first update of the prior")
    frequency: int = Int(1, 1, 20, log=True, minimum=1, meaning="epochs between updates of the prior")
    share: float = Float(0.25, 0.01, 1.0, log=True, above=0, maximum=1, meaning="fraction of the training data that an update reads")
    memory: float = Float(0.5, 0.0, 0.95, minimum=0, maximum=1, meaning="weight of the past in the running average of the curvature")
    temperature: float = Float(1.0, 0.05, 1.0, log=True, above=0, meaning="temperature T that divides the log-likelihood")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_decay > 1.0 / self.lr:
            raise ValueError(f"Spam: weight_decay={self.weight_decay!r} is above 1/lr={1.0 / self.lr:g}: gradient descent would oscillate")

    def prepare(self, problem: Problem) -> Posterior:
        """The prior d = weight_decay · N / T for every parameter, which gives the penalty of `map`."""
        start = uniform_prior(problem.model, self.weight_decay * problem.samples / self.temperature)
        return Posterior(start, problem.samples, self.temperature)

    def after_epoch(self, problem: Problem, state: Posterior, epoch: int, epochs: int) -> Posterior:
        """Update the precisions every `frequency` epochs after the burn-in."""
        first = math.floor(self.burn_in * epochs) + 1
        if epoch < first or (epoch - first) % self.frequency:
            return state
        parts = min(round(1.0 / self.share), count_batches(problem.batches))
        part = replace(problem, batches=_Part(problem.batches, (epoch - first) // self.frequency % parts, parts, problem.samples))
        measured = self._measure(part, state, f"epoch {epoch}")
        return self._update(problem, state, self._remember(problem, state, measured))

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """The posterior at the final weights, with the last precisions."""
        measured = self._measure(problem, state, "finish")
        value = log_marginal_likelihood(measured.blocks, state.prior, _squares(problem, state), measured.loss)
        return replace(_with(state, measured), marginal_likelihood=(*state.marginal_likelihood, value))

    def _measure(self, problem: Problem, state: Posterior, purpose: str) -> Curvature:
        """Loss and curvature over the training data, divided by T."""
        with evaluating(problem.model):
            names = list(state.prior)
            found = curvature(
                problem, self.curvature, structure=self.structure, positions=POSITIONS, names=names, purpose=purpose
            )  # fmt: skip
        t = self.temperature
        return Curvature({n: _alive(b.scaled(1.0 / t), problem.mask.get(n)) for n, b in found.blocks.items()}, found.loss / t)

    def _remember(self, problem: Problem, state: Posterior, measured: Curvature) -> Curvature:
        """The running average of the curvature; zero for weights that were cut since."""
        if not state.curvature or not self.memory:
            return measured
        averaged = {n: _alive(self._averaged(state, n, b), problem.mask.get(n)) for n, b in measured.blocks.items()}
        return replace(measured, blocks=averaged)

    def _averaged(self, state: Posterior, name: str, new: Block) -> Block:
        def mixed(old: Tensor, fresh: Tensor) -> Tensor:
            return torch.lerp(fresh, old, self.memory)

        if isinstance(new, Kronecker):
            outer, inner = state.factors[name]
            return Kronecker(mixed(outer, new.outer), mixed(inner, new.inner), new.shape)
        return Diagonal(mixed(state.curvature[name], new.diagonal()))

    def _update(self, problem: Problem, state: Posterior, measured: Curvature) -> Posterior:
        floor, cap = (rate * problem.samples / self.temperature for rate in (self.weight_decay, 1.0 / self.lr))
        squares = _squares(problem, state)
        prior = Maximiser(self.prior, (floor, cap), problem.mask)(measured.blocks, squares, state.prior)
        value = log_marginal_likelihood(measured.blocks, prior, squares, measured.loss)
        return replace(_with(state, measured), prior=prior, marginal_likelihood=(*state.marginal_likelihood, value))


class _Part:
    """Every `step`-th batch from the `first` on, as a sample of all `samples`."""

    def __init__(self, batches: Batches, first: int, step: int, samples: int) -> None:
        self.batches, self.first, self.step, self.samples = batches, first, step, samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.islice(iter(self.batches), self.first, None, self.step)


def _alive(block: Block, mask: Tensor | None) -> Block:
    """The curvature under a mask: zero for masked weights, which are not parameters."""
    return Diagonal(block.h * mask) if isinstance(block, Diagonal) and mask is not None else block


def _with(state: Posterior, measured: Curvature) -> Posterior:
    """The state with this curvature."""
    factors = {n: (b.outer, b.inner) for n, b in measured.blocks.items() if isinstance(b, Kronecker)}
    return replace(state, curvature=measured.diagonal, factors=factors)


@torch.no_grad()
def _squares(problem: Problem, state: Posterior) -> Values:
    """θ² of the parameters that have a prior."""
    parameters = dict(problem.model.named_parameters())
    return {n: widened(parameters[n]).square() for n in state.prior}
