"""Core data types of the method interface: `Problem`, `Scores`, `Mask`, `Posterior`.

Conventions of the whole package:

- prunable weights: the weight tensors of all Linear and Conv layers, including the first and the last one;
- score: larger for weights that should be kept;
- mask: True for weights that are kept;
- sparsity: the fraction of the prunable weights that is removed, in [0, 1).
"""

import hashlib
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.data import BatchSampler, DataLoader

Values = dict[str, Tensor]
Mask = dict[str, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Cost = Callable[[nn.Module], float]  # the cost of a physically smaller network: FLOPs, parameters, milliseconds


class Stage(StrEnum):
    """When a criterion is applied: before training, during training, or after training."""

    INIT = "init"
    DURING = "during"
    AFTER = "after"


def derive(seed: int, *purpose: str) -> int:
    """Derive the seed of one random stream by hash, so that streams with different purposes are independent.

    Args:
        seed: seed of the whole run.
        purpose: words that name the stream.

    Returns:
        A 63-bit integer.
    """
    digest = hashlib.sha256("/".join([str(seed), *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> weight of every Linear and Conv layer, in the order of `model.named_parameters()`. A tied weight appears once."""
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
    """The result of a training under a Gaussian prior: a Laplace approximation N(θ*, P⁻¹) with P = H + diag(d).

    Attributes:
        prior: parameter name -> prior precision d, a scalar tensor or a tensor of the parameter's shape.
        samples: N, the number of training samples.
        temperature: T, which divides the log-likelihood.
        curvature: name -> diagonal of H at θ*, summed over the N samples and divided by T; empty if it was not computed.
        factors: name -> (B, A) with H = B ⊗ A, see `methods.curvature.blocks.Kronecker`; empty for diagonal curvature.
        marginal_likelihood: log q(D | d) in nats after each update of the prior, in order.
    """

    prior: Values
    samples: int
    temperature: float = 1.0
    curvature: Values = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    marginal_likelihood: tuple[float, ...] = ()

    def precision(self, name: str) -> Tensor:
        """Diagonal of the posterior precision P = H + diag(d) of one parameter, of the parameter's shape."""
        return self.curvature[name] + self.prior[name]

    @cached_property
    def decay(self) -> Values:
        """Name -> weight decay d · T / N: the coefficient of ½θ² when the prior is added to the mean loss of a batch."""
        return {name: d * (self.temperature / self.samples) for name, d in self.prior.items()}


@dataclass
class Problem:
    """Everything that a method can see. It contains no validation data and no test data.

    Attributes:
        model: the network.
        batches: re-iterable of (inputs, targets) of the training split.
        loss: (outputs, targets) -> mean loss of a batch, a scalar tensor.
        seed: seed of all random draws; draw with `generator(purpose)` only.
        mask: the current mask; an empty one is replaced by the mask that keeps everything.
        target: the requested sparsity.
        posterior: the result of the training, if there is one.
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
        """The device of the model."""
        return next(self.model.parameters()).device

    def generator(self, *purpose: str) -> torch.Generator:
        """A fresh CPU generator for one named purpose; the same seed and purpose give the same draws."""
        return torch.Generator().manual_seed(derive(self.seed, *purpose))

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch dimension: `batches.input_shape` if it exists, otherwise that of the first batch.

        Raises:
            ValueError: if there are no batches.
        """
        known = getattr(self.batches, "input_shape", None)
        if known is not None:
            return tuple(known)
        for x, _ in self.batches:
            return tuple(x.shape[1:])
        raise ValueError("the shape of the inputs is unknown: there are no batches")

    @cached_property
    def samples(self) -> int:
        """N, the number of training samples: `batches.samples` or the length of its sampler, otherwise counted in one pass."""
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
    """Scores of the prunable weights.

    Attributes:
        values: name -> tensor of the weight's shape; larger = keep.
        state: anything that `Criterion.compensate` needs later; kept in memory only.
    """

    values: Values
    state: Any = None


def count_batches(batches: Batches) -> int:
    """The number of batches of one pass: `len(batches)` if it has a length, otherwise counted in one pass."""
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)


def count_masked(sparsity: float, prunable_weights: int) -> int:
    """The number of weights that a mask of this sparsity removes: round(sparsity · prunable_weights), halves to even.

    Raises:
        ValueError: if the sparsity is not in [0, 1).
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity {sparsity!r} is not in [0, 1)")
    return round(sparsity * prunable_weights)
