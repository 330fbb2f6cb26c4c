"""Structured pruning: whole channels and attention heads, with everything coupled to them, which can be removed physically."""

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from methods.core.configurations import Granularity
from methods.core.hyperparameters import Choice, Float, Int, Text
from methods.core.interface import Cost, Posterior, Problem, Scores
from methods.core.masks import Mask
from methods.core.tensorfloat import without_tf32
from methods.registry.registry import register
from methods.structure.channel_groups import Coupling, removed, survivors
from methods.structure.channel_limits import Limits, fractions, patterns
from methods.structure.graph_trace import traced
from methods.structure.removal_check import not_equal, unsound
from methods.structure.removed_share import RemovedShare

_known: WeakKeyDictionary[nn.Module, tuple[Any, Coupling]] = WeakKeyDictionary()


def coupling_of(problem: Problem) -> Coupling:
    """Find which channels of a problem's model must be removed together.

    The result is stored as long as the model exists, its parameters keep their shapes, and the same weights are prunable.

    Args:
        problem: network, shape of the inputs, and the weights that are pruned.

    Returns:
        The coupling.

    Raises:
        ValueError: if the network cannot be traced, or no channel can be removed.
    """
    model, input_shape, shapes = problem.model, problem.input_shape, {n: w.shape for n, w in problem.weights.items()}
    key = (tuple(input_shape), tuple(shapes), tuple((n, p.shape) for n, p in model.named_parameters()))
    known = _known.get(model)
    if known is None or known[0] != key:
        with torch.random.fork_rng(devices=[]), without_tf32():
            coupling = traced(model, shapes, input_shape)
            rejected = torch.tensor(unsound(model, coupling, input_shape), dtype=torch.long)
        coupling = replace(coupling, free=coupling.free & ~torch.isin(coupling.pools, rejected))
        if not coupling.removable.any():
            raise ValueError(f"no channel of this network can be removed without changing its inputs or outputs{coupling.obstacle()}")
        known = _known[model] = key, coupling
    return known[1]


def changes_outputs(problem: Problem) -> list[str]:
    """Find the weights whose output channels cannot be removed without other outputs than those of the masked network.

    Masked channels are not always zero, because biases and norms are not masked, and a mean over channels divides by their number. So
    outputs differ if something that combines channels reads a removed one: LayerNorm, GroupNorm with one group, RMSNorm, an L2
    norm, a mean or maximum over channels. Batch norm, activations, pooling and gates treat each channel by itself.

    Args:
        problem: network, shape of the inputs, and the weights that are pruned.

    Returns:
        The names of the weights; empty if the smaller network has the outputs of the masked one for every mask.

    Raises:
        ValueError: if the network cannot be traced, or no channel can be removed.
    """
    coupling = coupling_of(problem)
    with torch.random.fork_rng(devices=[]):
        pools = torch.tensor(not_equal(problem.model, coupling, problem.input_shape), dtype=torch.long)
    changing = coupling.free & torch.isin(coupling.pools, pools)
    rows = [(a.owner, a.units) for a in coupling.axes if a.kind == "rows"]
    return [name for name, units in rows if bool(changing[units[units >= 0]].any())]


@register("channel")
@dataclass(frozen=True, kw_only=True)
class Channel(Granularity):
    """Remove the lowest-scored channels and attention heads until the sparsity is as close as possible to the requested one.

    A unit is a channel with everything coupled to it (the rows of the layers that produce it, the columns of the layers that read
    it), or an attention head. Its score is the sum of the scores of its prunable weights, so any criterion can be used; of a
    criterion that scores output channels (`Scores.rows`) the sum over the rows of the unit. The weights of a unit are removed
    together; the reached sparsity differs from the requested one by at most half the size of what is removed in one step. The best
    unit of each layer is always kept, so no layer becomes empty. Inputs and outputs of the network stay, and so do channels
    that `methods.structure.removal_check` finds not to be removable (in MLP-Mixers all but hidden units). Grouped convolutions
    keep their channels, except depthwise ones.

    `normalisation` decides how units of different pools are compared; a pool is a layer, or all layers whose outputs are added.
    "mean": the score divided by the mean absolute score of the pool; "size": the mean score of a weight of the unit; "none": the
    sum. `ranking`: "global" ranks all units together; "layer" removes the same fraction of every pool.

    Limits: every pool keeps at least the fraction `floor` of its units. A pool from which units are removed keeps a multiple of
    `round_to` channels; a step then removes up to `round_to` channels of a pool, and the sparsity is reached to half of it. `protect`:
    layers whose output channels stay. `ratios`: layers that lose a fixed fraction of their output channels; the other layers are
    cut until the sparsity of the whole network is reached. Layers are named by patterns, with | between them:
    `channel(floor=0.1,round_to=8,protect=stem.*|fc1,ratios=layer1.*:0.3|layer2.*:0.5)`.
    """

    normalisation: str = Choice(
        "mean", "mean", "size", "none", tuned=False, meaning="how scores of channels in different layers are compared"
    )
    ranking: str = Choice(
        "global", "global", "layer", tuned=False, meaning="rank all channels together, or remove the same share of each layer"
    )
    floor: float = Float(0.0, minimum=0, maximum=1, meaning="smallest fraction of the channels of each layer that is kept")
    round_to: int = Int(1, minimum=1, meaning="layers that lose channels keep a multiple of this number")
    protect: str = Text(meaning="patterns of layers whose output channels stay, e.g. stem.*|fc1")
    ratios: str = Text(meaning="patterns of layers with the fraction of their output channels to remove, e.g. layer1.*:0.3|layer2.*:0.5")
    compacts = True

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns("protect", self.protect)
        fractions("ratios", self.ratios)

    def _limits(self, coupling: Coupling) -> Limits:
        return Limits(coupling, self.floor, self.round_to, patterns("protect", self.protect), fractions("ratios", self.ratios))

    def cut(self, problem: Problem, scores: Scores, sparsity: float, cost: Cost | None = None) -> Mask:
        """See `Granularity.cut`.

        Raises:
            ValueError: if the sparsity cannot be reached without emptying a layer or within the limits, the current mask removes
                more, or it does not consist of whole channels.
        """
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity {sparsity!r} is not in [0, 1)")
        coupling = coupling_of(problem)
        limits = self._limits(coupling)
        present = coupling.kept_units(problem.mask)
        tie_breakers = torch.rand(len(present), generator=problem.generator("ties"), dtype=torch.float64)
        worth, unscored = self._worth(coupling, scores, problem.mask)
        order = coupling.order(worth, present, tie_breakers, by_pool=self.ranking == "layer")
        first, blocks = limits.blocks(order, present, unscored)
        share = RemovedShare(problem.model, limits, cost)
        units = torch.cat([order[:0], *first, *blocks])
        ends = [sum(map(len, first))]
        for block in blocks:
            ends.append(ends[-1] + len(block))

        def after(count: int) -> Tensor:
            kept = present.clone()
            kept[units[: ends[count]]] = False
            return kept

        low, high = 0, len(blocks)  # bisection for the smallest count that reaches the sparsity: it does not decrease with the count
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if share(after(middle)) >= sparsity else (middle + 1, high)
        count = min((c for c in (low - 1, low) if c >= 0), key=lambda c: abs(share(after(c)) - sparsity))
        kept, reached = after(count), share(after(count))
        too_little, too_much = low == len(blocks) and reached < sparsity, count == 0 and reached > sparsity
        if (too_little or too_much) and not share.near(reached, sparsity):  # `near` may evaluate the cost many times
            if too_little:
                limited = "" if self == Channel(normalisation=self.normalisation, ranking=self.ranking) else " within the limits"
                most = f"the largest possible is {reached:.4g}{limited}{coupling.obstacle()}"
                raise ValueError(f"sparsity {sparsity} cannot be reached without emptying a layer; {most}")
            of = "the ratios alone" if first else "the current mask"
            raise ValueError(f"sparsity {sparsity} is lower than the sparsity of {of}, {reached:.4g}")
        return coupling.mask(kept, problem.device)

    def check(self, problem: Problem, sparsity: float, cost: Cost | None = None) -> None:
        """See `Granularity.check`. A `cost` must be deterministic for this.

        Raises:
            RuntimeError: if the mask does not consist of whole channels, empties a layer, removes a channel that must stay, breaks
                a limit, or differs from the sparsity by more than half the size of the largest step.
        """
        coupling = coupling_of(problem)
        try:
            kept = coupling.kept_units(problem.mask)
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        empty = coupling.empties(kept)
        if empty:
            raise RuntimeError(f"the mask removes all of '{empty[0]}'")
        if not bool((kept | coupling.free).all()):
            raise RuntimeError("the mask removes channels that cannot be removed")
        limits = self._limits(coupling)
        fault = limits.fault(kept)
        if fault:
            raise RuntimeError(fault)
        share = RemovedShare(problem.model, limits, cost)
        if not share.near(share(kept), sparsity):
            raise RuntimeError(f"the mask has sparsity {share(kept):.4g} instead of {sparsity}")

    def compact(self, problem: Problem) -> Problem:
        """The problem on a smaller copy of its model, with all weights kept and the posterior restricted to them.

        Priors, curvature and Kronecker factors keep the values of the kept weights: for a Gaussian this is the posterior given that
        the removed weights are zero. Scalar priors stay. Factors that cannot be divided into rows and columns are left out.

        Raises:
            ValueError: if the mask does not consist of whole channels.
            RuntimeError: if the smaller model does not contain exactly the kept weights.
        """
        coupling = coupling_of(problem)
        kept = coupling.kept_units(problem.mask)
        small = removed(problem.model, coupling, kept)
        left = survivors(problem.model, coupling, kept)
        # Removal is always checked: libraries were seen to remove nothing or other channels, or to reorder those that are left.
        for name, m in problem.mask.items():
            if not torch.equal(left[name].flatten(), m.flatten().nonzero().squeeze(1).cpu()):
                raise RuntimeError(f"the smaller network does not contain exactly the kept weights of '{name}'")
        shuffled = [n for n, indices in left.items() if bool((indices.flatten().diff() <= 0).any())]
        if shuffled:
            raise RuntimeError(f"the smaller network has the entries of '{shuffled[0]}' in a different order")
        posterior = None if problem.posterior is None else _sliced(problem.posterior, left, problem.model)
        return replace(problem, model=small, mask={}, posterior=posterior)

    def _worth(self, coupling: Coupling, scores: Scores, mask: Mask) -> tuple[Tensor, Tensor]:
        """(the score of each unit after normalisation, whether it has none); masked weights are ignored."""
        if scores.rows is not None:
            worth, scored = coupling.row_sums(scores.rows)
        else:
            worth = coupling.sums({n: v * mask[n].to(v.device) for n, v in scores.values.items()})
            scored = torch.ones(len(worth), dtype=torch.bool)
        return self._normalised(coupling, worth, mask), ~scored

    def _normalised(self, coupling: Coupling, worth: Tensor, mask: Mask) -> Tensor:
        if self.normalisation == "mean":
            alive = coupling.kept_units(mask).double()
            pools = int(coupling.pools.max()) + 1
            totals = torch.zeros(pools, dtype=torch.float64).index_add_(0, coupling.pools, worth.abs() * alive)
            means = totals / torch.zeros(pools, dtype=torch.float64).index_add_(0, coupling.pools, alive).clamp(min=1)
            return worth / torch.where(means > 0, means, 1.0)[coupling.pools]
        if self.normalisation == "size":
            return worth / coupling.sums({n: m.double() for n, m in mask.items()}).clamp(min=1)
        return worth


def _sliced(posterior: Posterior, left: dict[str, Tensor], model: nn.Module) -> Posterior:
    """The posterior restricted to the entries `left` (flat indices) of each parameter."""
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
    """(B (G, o, o), A (G, i, i)) restricted to the rows and columns that are left; None if the entries are not such a product."""
    outer, inner = factors
    width = shape.numel() // shape[0]
    rows, columns = (left // width).unique().to(outer.device), (left % width).unique().to(inner.device)
    if len(rows) * len(columns) != left.numel():
        return None
    if len(outer) == 1:
        return outer[:, rows][:, :, rows], inner[:, columns][:, :, columns]
    if outer.shape[1] == 1 and len(columns) == width:  # depthwise: one group per row
        return outer[rows], inner[rows]
    return factors if left.numel() == shape.numel() else None
