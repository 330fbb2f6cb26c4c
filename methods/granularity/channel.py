"""Structured pruning: whole channels and attention heads, with all that is coupled to them, physically removable.

The only door to torch-pruning (Fang et al. 2023, "DepGraph: Towards any structural pruning"), which says how layers depend on
each other and takes channels off modules. Imported where it is first used: it takes a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from methods.core.hyperparameters import Choice
from methods.core.interface import Cost, Granularity, Mask, Posterior, Problem, Scores, full_mask
from methods.registry.registry import register
from methods.structure.channel_groups import Coupling, removed, survivors
from methods.structure.graph_trace import traced
from methods.structure.removal_check import unsound

CLOSE = 1e-3  # a reached share of a cost this near to the one asked for needs no look at how large the steps are
_known: WeakKeyDictionary[nn.Module, tuple[Any, Coupling]] = WeakKeyDictionary()


def _graph(model: nn.Module, example: Tensor) -> Any:
    import torch_pruning

    return torch_pruning.DependencyGraph().build_dependency(model, (example,), verbose=False)


def coupling_of(model: nn.Module, input_shape: tuple[int, ...]) -> Coupling:
    """How the channels of a model hang together, for inputs of a shape (without the batch).

    Remembered as long as the model lives and its parameters keep their shapes. Raises ValueError where the network cannot be
    traced, ties weights or uses a layer twice, or where nothing of it can be removed.
    """
    key = (tuple(input_shape), tuple((n, p.shape) for n, p in model.named_parameters()))
    known = _known.get(model)
    if known is None or known[0] != key:
        with torch.random.fork_rng(devices=[]):
            coupling = traced(model, input_shape, _graph)
            rejected = torch.tensor(unsound(model, coupling, input_shape), dtype=torch.long)
        coupling = replace(coupling, free=coupling.free & ~torch.isin(coupling.pools, rejected))
        if not coupling.free.any():
            raise ValueError("no channel of this network can be removed without changing its inputs or outputs")
        known = _known[model] = key, coupling
    return known[1]


@register("channel")
@dataclass(frozen=True, kw_only=True)
class Channel(Granularity):
    """Remove channels and attention heads, those of least score first, until the share that is removed is nearest to the one asked.

    A unit is a channel with all that is coupled to it (rows of the layers that make it, columns of those that read it), or a
    head. Its score is the sum over its prunable weights, so that a criterion's scores for weights serve unchanged. The weights
    of a unit go together and so the sparsity is hit only to within half of what a unit weighs. The best unit of
    each layer stays: no layer is ever emptied. The network's inputs and outputs stay, and what `methods.rehearsal` finds cannot
    be removed (in MLP-Mixers, all but hidden units); grouped convolutions that are not depthwise keep their channels.

    `normalisation`: how units of different pools (layers, or layers that are added up) compare. "mean": a unit's score over the
    mean of its pool's (their absolute values); "size": its mean score of a weight; "none": the sum. `ranking`: "layer" takes
    the same share of every pool.
    """

    normalisation: str = Choice(
        "mean", "mean", "size", "none", tuned=False, meaning="how scores of channels in different layers are compared"
    )
    ranking: str = Choice(
        "global", "global", "layer", tuned=False, meaning="rank all channels together, or remove the same share of each layer"
    )
    compacts = True

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        """See `Granularity.cut`. Raises ValueError where the share is beyond reach, because no layer may be emptied or the present
        mask goes further already, and where that mask is not one of whole channels."""
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity {sparsity!r} is not in [0, 1)")
        coupling = coupling_of(problem.model, problem.input_shape)
        present = coupling.kept_units(problem.mask)
        lots = torch.rand(len(present), generator=problem.generator("ties"), dtype=torch.float64)
        order = coupling.order(self._worth(coupling, scores, problem.mask), present, lots, by_pool=self.ranking == "layer")
        share = _Share(problem.model, coupling, cost)

        def after(count: int) -> Tensor:
            kept = present.clone()
            kept[order[:count]] = False
            return kept

        low, high = 0, len(order)  # the first count that reaches the share, by bisection: more units never weigh less
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if share(after(middle)) >= sparsity else (middle + 1, high)
        count = min((c for c in (low - 1, low) if c >= 0), key=lambda c: abs(share(after(c)) - sparsity))
        kept, reached = after(count), share(after(count))
        if count == len(order) and reached < sparsity and not share.near(reached, sparsity):
            raise ValueError(f"sparsity {sparsity} cannot be reached without emptying a layer: {reached:.4g} is the largest that can")
        if count == 0 and reached > sparsity and not share.near(reached, sparsity):
            raise ValueError(f"sparsity {sparsity} is below that of the present mask, {reached:.4g}")
        return coupling.mask(kept, problem.device)

    def check(self, problem: Problem, sparsity: float, cost: Cost | None = None) -> None:
        """Raise RuntimeError where the mask is not one of whole channels, empties a layer, removes a channel that must stay, or is
        further from the sparsity than half of what the largest unit weighs. A `cost` must be deterministic for this."""
        coupling = coupling_of(problem.model, problem.input_shape)
        try:
            kept = coupling.kept_units(problem.mask)
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        empty = coupling.empties(kept)
        if empty:
            raise RuntimeError(f"the mask leaves nothing of '{empty[0]}'")
        if not bool((kept | coupling.free).all()):
            raise RuntimeError("the mask removes channels that have to stay")
        share = _Share(problem.model, coupling, cost)
        if not share.near(share(kept), sparsity):
            raise RuntimeError(f"the mask removes the share {share(kept):.4g}, {sparsity} was asked for")

    def compact(self, problem: Problem) -> Problem:
        """The problem on a plain, smaller copy of its model, all weights kept, the posterior sliced to what is left.

        Priors, curvature and Kronecker factors of the kept weights are those of the whole: of a Gaussian this is the posterior
        given that the others are zero. Scalar priors stay; factors that do not split into rows and columns are left out. Raises
        ValueError where the mask is not one of whole channels, RuntimeError where the smaller model is not what the mask keeps.
        """
        coupling = coupling_of(problem.model, problem.input_shape)
        kept = coupling.kept_units(problem.mask)
        small = removed(problem.model, coupling, kept)
        left = survivors(problem.model, coupling, kept)
        # Checked, not trusted: libraries have been seen to remove nothing, other channels, or to shuffle those that are left.
        for name, m in problem.mask.items():
            if not torch.equal(left[name].flatten(), m.flatten().nonzero().squeeze(1).cpu()):
                raise RuntimeError(f"the smaller network does not have the weights of '{name}' that the mask keeps")
        shuffled = [n for n, indices in left.items() if bool((indices.flatten().diff() <= 0).any())]
        if shuffled:
            raise RuntimeError(f"the smaller network has the entries of '{shuffled[0]}' in another order")
        posterior = None if problem.posterior is None else _sliced(problem.posterior, left, problem.model)
        return replace(problem, model=small, mask=full_mask(small), posterior=posterior)

    def _worth(self, coupling: Coupling, scores: Scores, mask: Mask) -> Tensor:
        """The score of each unit, comparable between pools; weights already masked count for nothing."""
        worth = coupling.sums({n: v * mask[n].to(v.device) for n, v in scores.values.items()})
        if self.normalisation == "mean":
            alive = coupling.kept_units(mask).double()
            pools = int(coupling.pools.max()) + 1
            totals = torch.zeros(pools, dtype=torch.float64).index_add_(0, coupling.pools, worth.abs() * alive)
            means = totals / torch.zeros(pools, dtype=torch.float64).index_add_(0, coupling.pools, alive).clamp(min=1)
            return worth / torch.where(means > 0, means, 1.0)[coupling.pools]
        if self.normalisation == "size":
            return worth / coupling.sums({n: m.double() for n, m in mask.items()}).clamp(min=1)
        return worth


class _Share:
    """Kept units -> the share of the dense network that is removed: of its prunable weights, or of its cost."""

    def __init__(self, model: nn.Module, coupling: Coupling, cost: Cost | None) -> None:
        self.model, self.coupling, self.cost = model, coupling, cost
        self.dense = cost(model) if cost is not None else float(coupling.weights)
        if not self.dense > 0:
            raise ValueError(f"the cost of the dense network is {self.dense}: no share of it can be removed")
        self.known: dict[bytes, float] = {}

    def __call__(self, kept: Tensor) -> float:
        key = kept.numpy().tobytes()
        if key not in self.known:
            left = self.coupling.kept_weights(kept) if self.cost is None else self.cost(removed(self.model, self.coupling, kept))
            self.known[key] = 1.0 - left / self.dense
        return self.known[key]

    def near(self, reached: float, asked: float) -> bool:
        """Whether nothing nearer may be expected: the difference is at most half of the largest share that one unit has."""
        difference = abs(reached - asked) - 1e-12
        if self.cost is None:
            return difference <= float(self.coupling.sizes[self.coupling.free].max()) / self.dense / 2
        return difference <= CLOSE or any(difference <= self(kept) / 2 for kept in self._single())

    def _single(self) -> Iterator[Tensor]:
        """The network without one unit: of each pool in turn its largest, the pools with the largest first."""
        seen = set()
        sizes = torch.where(self.coupling.free, self.coupling.sizes, -1.0)
        for unit in sizes.argsort(descending=True).tolist():
            pool = int(self.coupling.pools[unit])
            kept = torch.arange(len(sizes)) != unit
            if self.coupling.free[unit] and pool not in seen and not self.coupling.empties(kept):
                seen.add(pool)
                yield kept


def _sliced(posterior: Posterior, left: dict[str, Tensor], model: nn.Module) -> Posterior:
    """The posterior of what is left of each parameter, given by flat indices."""
    shapes = {n: p.shape for n, p in model.named_parameters()}

    def slice_of(name: str, value: Tensor) -> Tensor:
        return value if value.dim() == 0 else value.flatten()[left[name].to(value.device)]

    factors = {n: _sliced_factors(f, left[n], shapes[n]) for n, f in posterior.factors.items()}
    return replace(
        posterior,
        prior={n: slice_of(n, v) for n, v in posterior.prior.items()},
        curvature={n: slice_of(n, v) for n, v in posterior.curvature.items()},
        factors={n: f for n, f in factors.items() if f is not None},
    )


def _sliced_factors(factors: tuple[Tensor, Tensor], left: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    """(B (G, o, o), A (G, i, i)) of the rows and columns that are left; None where these make no such factors."""
    outer, inner = factors
    width = shape.numel() // shape[0]
    rows, columns = (left // width).unique().to(outer.device), (left % width).unique().to(inner.device)
    if len(rows) * len(columns) != left.numel():
        return None
    if len(outer) == 1:
        return outer[:, rows][:, :, rows], inner[:, columns][:, :, columns]
    if outer.shape[1] == 1 and len(columns) == width:  # depthwise: a group a row
        return outer[rows], inner[rows]
    return factors if left.numel() == shape.numel() else None
