"""Core data types of the method interface: `Problem`, `Scores`, `Mask`, `Posterior`.

Conventions of the whole package:

- prunable weights: the matrices and kernels that multiply activations, see `methods.core.prunable`;
- score: larger for weights that should be kept;
- mask: True for weights that are kept;
- sparsity: the fraction of the prunable weights that is removed, in [0, 1).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from methods.core.acting import acting_weights
from methods.core.arguments import require
from methods.core.masks import Mask, settled
from methods.core.prunable import Prunable, prunable
from methods.core.reading import check_reiterable, each, is_empty, pairs

if TYPE_CHECKING:
    from methods.core.configurations import Granularity

Values = dict[str, Tensor]
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


def check_prior(posterior: Posterior, parameters: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a posterior belongs to another network: it knows none of the parameters, or another shape of one."""
    known = [n for n in parameters if n in posterior.prior]
    odd = [n for n in known if posterior.prior[n].dim() and posterior.prior[n].shape != parameters[n].shape]
    if odd or (posterior.prior and not known):
        why = f"its prior of '{odd[0]}' has another shape" if odd else "it has a prior for none of the parameters"
        raise ValueError(f"the posterior belongs to another network: {why}")


class Groups(NamedTuple):
    """Groups of a weight: at least `kept` of every `size` consecutive weights along dimension `dim` are kept."""

    kept: int
    size: int
    dim: int


@dataclass
class Problem:
    """Everything that a method can see. It contains no validation data and no test data.

    Attributes:
        model: the network.
        batches: re-iterable of (inputs, targets) of the training split.
        loss: (outputs, targets) -> mean loss of a batch, a scalar tensor.
        seed: seed of all random draws; draw with `generator(purpose)` only.
        mask: the current mask; weights that it does not name are kept.
        target: the requested sparsity.
        posterior: the result of the training, if there is one.
        include, exclude: patterns of names that add to the prunable weights or take from them, see `methods.prunable`.
        granularity: the units in which weights will be removed, for criteria that choose weights under its limits; None for single
            weights. `cut` sets it.

    Raises:
        ValueError: if the mask has a name, shape or value that does not fit, or a pattern matches nothing.
    """

    model: nn.Module
    batches: Batches
    loss: Loss = F.cross_entropy
    seed: int = 0
    mask: Mask = field(default_factory=dict)
    target: float = 0.0
    posterior: Posterior | None = None
    include: Sequence[str] | str = ()
    exclude: Sequence[str] | str = ()
    granularity: "Granularity | None" = None

    def __post_init__(self) -> None:
        require(self.posterior, (Posterior, type(None)), "posterior", "what methods.train returns")
        check_reiterable(self.batches)
        self.mask = settled(self.mask, self.weights, self.model)

    @property
    def weights(self) -> Prunable:
        """Name -> prunable weight."""
        return prunable(self.model, self.include, self.exclude)

    @property
    def acting(self) -> Values:
        """Name -> what the network multiplies with: the weight, or what its layer computes from it, e.g. under weight norm."""
        return acting_weights(self.model, self.weights)

    @property
    def device(self) -> torch.device:
        """The device of the model; the CPU if it has no parameters."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the batches, (inputs, targets) on the model's device; empty batches are left out.

        Raises:
            ValueError: if a batch is not such a pair.
        """
        return pairs(self.batches, self.device)

    @cached_property
    def example(self) -> tuple[Tensor, Tensor]:
        """The first two samples, or one if the first batch has no more: (inputs, targets) on the model's device.

        Raises:
            ValueError: if there are no samples.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # a DataLoader draws its seed
            for x, y in self.read():
                return x[:2], y[:2]
        raise ValueError("there are no training samples: the batches are empty")

    def generator(self, *purpose: str) -> torch.Generator:
        """A fresh CPU generator for one named purpose; the same seed and purpose give the same draws."""
        return torch.Generator().manual_seed(derive(self.seed, *purpose))

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch dimension: `batches.input_shape` if it exists, otherwise that of the first batch.

        Raises:
            ValueError: if there are no samples.
        """
        known = getattr(self.batches, "input_shape", None)
        if known is not None:
            return tuple(known)
        if _length(self.batches) == 0:
            raise ValueError("the shape of the inputs is unknown: pass batches")
        return tuple(self.example[0].shape[1:])

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
        return sum(len(y) for _, y in self.read())


@dataclass
class Scores:
    """Scores of the prunable weights, or of their output channels.

    Attributes:
        values: name -> tensor of the weight's shape; larger = keep. Empty if the criterion is defined for output channels only.
        state: anything that `Criterion.compensate` needs later; kept in memory only.
        rows: name -> (outputs,), one score for each output channel of a layer; larger = keep. Granularity "channel" then adds up
            these in place of scores of weights. Channels of weights that it does not name stay. None: the criterion scores weights.
    """

    values: Values = field(default_factory=dict)
    state: Any = None
    rows: Values | None = None


def count_batches(batches: Batches) -> int:
    """The number of batches of one pass that have samples: `len(batches)` if it has a length, otherwise counted in one pass."""
    known = None if isinstance(batches, (list, tuple)) else _length(batches)
    return sum(1 for batch in each(batches) if not is_empty(batch)) if known is None else known


def check_length(batches: Batches, said: int) -> None:
    """Raise ValueError if one pass over batches, with those that are empty, does not give as many as they say."""
    read = sum(1 for _ in each(batches))
    if read != said:
        raise ValueError(f"batches has length {said}, but {read} batches were read in one pass: correct its __len__")


def _length(batches: Batches) -> int | None:
    """`len(batches)`; None if it has none, like a DataLoader over an `IterableDataset`, or only an estimate."""
    if isinstance(batches, DataLoader) and isinstance(batches.dataset, IterableDataset):
        return None
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def count_masked(sparsity: float, prunable_weights: int) -> int:
    """The number of weights that a mask of this sparsity removes: round(sparsity · prunable_weights), halves to even.

    Raises:
        ValueError: if the sparsity is not in [0, 1).
    """
    require(sparsity, Real, "sparsity", "a number in [0, 1), e.g. 0.9")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity {sparsity!r} is not in [0, 1)")
    return round(sparsity * prunable_weights)
