"""The nouns every method is written in: what it may see, what it must return.

Conventions, fixed once for the whole package: a score is larger where the weight should be kept; `sparsity` is the
fraction of the prunable weights that is removed; the prunable weights are the weight tensors of Linear and Conv layers,
first and last included; a mask is True where the weight stays.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.data import BatchSampler, DataLoader

from methods.core import hyperparameters
from methods.core.hyperparameters import Float

Values = dict[str, Tensor]
Mask = dict[str, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Cost = Callable[[nn.Module], float]  # what a physically smaller network costs: FLOPs, parameters, milliseconds


class Stage(StrEnum):
    """When a criterion is applied: before training, while training, or to the trained network."""

    INIT = "init"
    DURING = "during"
    AFTER = "after"


def derive(seed: int, *purpose: str) -> int:
    """A 63-bit seed for one purpose, by hash: streams with different purposes never shift each other."""
    digest = hashlib.sha256("/".join([str(seed), *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> weight of every Linear and Conv layer, in the order of `model.named_parameters()`; tied weights once."""
    weights = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, _ConvNd)) and isinstance(m.weight, nn.Parameter)}
    return {name: p for name, p in model.named_parameters() if id(p) in weights}


def full_mask(model: nn.Module) -> Mask:
    """The mask that keeps every prunable weight."""
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in prunable(model).items()}


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask) -> None:
    """Set the masked weights of the model to zero, in place."""
    parameters = dict(model.named_parameters())
    for name, m in mask.items():
        parameters[name].masked_fill_(~m, 0.0)


@dataclass(frozen=True)
class Posterior:
    """What a training under a Gaussian prior leaves: a Laplace approximation N(θ*, P⁻¹), P = H + diag(d).

    `prior`: parameter name -> prior precision d, a scalar tensor or one of the parameter's shape. `curvature`: name ->
    diagonal of H at θ*, summed over the N training samples and divided by the temperature T; empty where it was not
    computed. `factors`: name -> (B, A), H = B ⊗ A of that parameter (see `methods.blocks.Kronecker`), where the curvature was
    Kronecker-factored. `marginal_likelihood`: log q(D | d) in nats at each update of the prior, in order.
    """

    prior: Values
    samples: int
    temperature: float = 1.0
    curvature: Values = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    marginal_likelihood: tuple[float, ...] = ()

    def precision(self, name: str) -> Tensor:
        """Posterior precision P = H + d of one parameter, of the parameter's shape."""
        return self.curvature[name] + self.prior[name]

    @cached_property
    def decay(self) -> Values:
        """name -> d · T / N: the coefficient of ½θ² beside the MEAN loss, what an L2 penalty calls weight decay."""
        return {name: d * (self.temperature / self.samples) for name, d in self.prior.items()}


@dataclass
class Problem:
    """What a method may see. There is no validation and no test data here, and no way to get at them.

    `batches` re-iterates over (inputs, targets) of the training split; `loss` is the mean over a batch; `mask` and
    `target` are the present mask (all kept where nothing was cut) and the sparsity asked for; `posterior` is what the
    training left, if it left one. All randomness comes from `generator(purpose)`.
    """

    model: nn.Module
    batches: Batches
    loss: Loss = F.cross_entropy
    seed: int = 0
    mask: Mask = field(default_factory=dict)
    target: float = 0.0
    posterior: Posterior | None = None

    def __post_init__(self) -> None:
        if not self.mask:
            self.mask = full_mask(self.model)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Name -> prunable weight."""
        return prunable(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def generator(self, *purpose: str) -> torch.Generator:
        """A fresh CPU generator for one named purpose; the same seed and purpose give the same draws."""
        return torch.Generator().manual_seed(derive(self.seed, *purpose))

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch: the loader's own word for it, or else that of the first batch's.

        Raises ValueError where there are no batches.
        """
        known = getattr(self.batches, "input_shape", None)
        if known is not None:
            return tuple(known)
        for x, _ in self.batches:
            return tuple(x.shape[1:])
        raise ValueError("there are no batches to take the shape of the inputs from")

    @cached_property
    def samples(self) -> int:
        """N, the number of training samples: the loader's own word for it, or else counted by one pass."""
        known = getattr(self.batches, "samples", None)
        if isinstance(known, int):
            return known
        if isinstance(self.batches, DataLoader) and type(self.batches.batch_sampler) is BatchSampler and not self.batches.drop_last:
            drawn = self.batches.sampler
            if isinstance(drawn, Sized):
                return len(drawn)
        return sum(len(y) for _, y in self.batches)


@dataclass
class Scores:
    """`values`: prunable name -> score of the weight's shape, larger = keep. `state`: whatever `compensate` will need."""

    values: Values
    state: Any = None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A named thing with hyperparameters: a frozen dataclass whose fields are the hyperparameters, in their canonical form."""

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hyperparameters.settle(self)


@dataclass(frozen=True, kw_only=True)
class Criterion(Configuration):
    """Which weights matter. One duty: `score`.

    `stages`: where it may be applied, its default first. `nested`: its scores do not depend on the target, so that, cut in one
    round, a network is scored once for all sparsities, and their masks are nested. `data_free`: it reads no batches, at most
    asks `problem.input_shape`. The harness calls `score` with the model in eval
    mode and its masked weights at zero; it must leave the model, its gradients and the global random state as they are.
    """

    stages: ClassVar[tuple[Stage, ...]] = (Stage.AFTER,)
    nested: ClassVar[bool] = True
    data_free: ClassVar[bool] = False

    def score(self, problem: Problem) -> Scores:
        """Scores of all prunable weights."""
        raise NotImplementedError

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        """The sparsities to score and cut at, without training between, on the way from the present one to the target.

        Rising, the target last: see `methods.schedule.exponential` and `cubic`. One round where not overridden.
        """
        return (target,)

    def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
        """Adjust the kept weights in place for the loss of the others; `state` is that of the scores. Optional."""

    def unsupported(self, problem: Problem) -> str | None:
        """Why the criterion is not defined for this network or loss, or None where it is. Asked before anything runs."""
        return None


@dataclass(frozen=True, kw_only=True)
class Training(Configuration):
    """How the dense network is trained, so that it can be pruned: hooks of the one loop.

    A training is data; what it learns on the way is the `Posterior` that its hooks hand on. `lr` is the peak learning
    rate of SGD with momentum (the recipe of another optimiser rescales it). A search stays within half a decade of the default: what
    lies beyond trains too slowly for short budgets, or diverges.
    """

    lr: float = Float(0.1, 0.03, 0.3, log=True, above=0, meaning="peak learning rate of SGD with momentum")

    def prepare(self, problem: Problem) -> Posterior:
        """The state training starts from; may re-parametrise the model."""
        raise NotImplementedError

    def penalty(self, parameters: Mapping[str, nn.Parameter], state: Posterior) -> Tensor | None:
        """What is added to the mean loss of each batch beside the Gaussian prior: a scalar tensor. None: nothing.

        The prior of the state, ½ Σ_k d_k θ_k² · T / N, is minimised with the loss in any case: the loop adds its gradient.
        `parameters`: name -> trainable parameter.
        """
        return None

    def after_epoch(self, problem: Problem, state: Posterior, epoch: int, epochs: int) -> Posterior:
        """The state for the next epoch, after epoch `epoch` (from 1) of `epochs`. Not called while fine-tuning."""
        return state

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        """The state to keep beside the trained network; undoes what `prepare` did to the model. Not called while fine-tuning."""
        return state


@dataclass(frozen=True, kw_only=True)
class Granularity(Configuration):
    """What is removed: turns scores into a mask.

    `compacts`: whether what it cuts can be removed physically. Only then it may be given a `cost`, and `sparsity` is the share
    of the DENSE network's cost to remove, instead of the share of its prunable weights; otherwise a cost raises ValueError.
    """

    compacts: ClassVar[bool] = False

    @property
    def fixed_sparsity(self) -> float | None:
        """The one sparsity there is, where the granularity decides it; None where any may be asked for."""
        return None

    def unsupported(self, problem: Problem) -> str | None:
        """Why nothing of this kind can be removed from this network, or None where it can. Asked before anything runs."""
        return None

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        """The mask at this sparsity: a subset of `problem.mask`. Raises ValueError where it cannot be reached."""
        raise NotImplementedError

    def check(self, problem: Problem, sparsity: float, cost: Cost | None = None) -> None:
        """Raise RuntimeError where `problem.mask` is not what is promised at this sparsity: exactly round(s·n) masked weights."""
        self.refuse(cost)
        masked = sum(int((~m).sum()) for m in problem.mask.values())
        total = sum(m.numel() for m in problem.mask.values())
        wanted = count_masked(sparsity, total)
        if masked != wanted:
            raise RuntimeError(f"the mask keeps {total - masked} weights, {total - wanted} were asked for")

    def compact(self, problem: Problem) -> Problem:
        """The problem with what is masked removed physically, where that can be done; otherwise the problem itself."""
        return problem

    def refuse(self, cost: Cost | None) -> None:
        """Raise ValueError where a cost is given to a granularity that cannot make networks smaller."""
        if cost is not None and not self.compacts:
            raise ValueError(f"granularity '{self.name}' leaves networks as large as they are: it cannot cut to a cost")


def count_batches(batches: Batches) -> int:
    """How many batches one pass has: the loader's own word for it, or else counted by one pass."""
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)


def count_masked(sparsity: float, prunable_weights: int) -> int:
    """round(sparsity · prunable weights): how many weights a mask of this sparsity removes (ties of rounding to even)."""
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity {sparsity!r} is not in [0, 1)")
    return round(sparsity * prunable_weights)
