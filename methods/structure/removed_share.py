"""What a choice of channels removes: the fraction of the prunable weights, or of a cost such as FLOPs."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from methods.core.interface import Cost
from methods.structure.channel_groups import removed
from methods.structure.channel_limits import Limits

CLOSE = 1e-3  # a reached fraction of a cost this close to the requested one is accepted without looking at the step sizes


class RemovedShare:
    """Kept units -> the fraction of the dense network that is removed: of its prunable weights, or of its cost."""

    def __init__(self, model: nn.Module, limits: Limits, cost: Cost | None) -> None:
        self.model, self.limits, self.coupling, self.cost = model, limits, limits.coupling, cost
        self.dense = cost(model) if cost is not None else float(self.coupling.weights)
        if not self.dense > 0:
            raise ValueError(f"the cost of the dense network must be positive, not {self.dense}")
        self.known: dict[bytes, float] = {}

    def __call__(self, kept: Tensor) -> float:
        key = kept.numpy().tobytes()
        if key not in self.known:
            left = self.coupling.kept_weights(kept) if self.cost is None else self.cost(removed(self.model, self.coupling, kept))
            self.known[key] = 1.0 - left / self.dense
        return self.known[key]

    def near(self, reached: float, asked: float) -> bool:
        """Whether the difference is at most half the size of the largest step, so that no closer value can be expected."""
        difference = abs(reached - asked) - 1e-12
        if self.cost is None:
            return any(difference <= float(self.coupling.sizes[block].sum()) / self.dense / 2 for block in self._steps())
        return difference <= CLOSE or any(difference <= self(self._without(block)) / 2 for block in self._steps())

    def _steps(self) -> Iterator[list[int]]:
        """The largest units that one step removes, of each pool in turn; the pool with the largest unit first."""
        removable = self.coupling.removable & ~self.limits.protected
        sizes = torch.where(removable, self.coupling.sizes, -1.0)
        inside: dict[int, list[int]] = {}  # pool -> its units, the largest first
        order = sizes.argsort(descending=True)
        order = order[removable[order]]
        for unit, pool in zip(order.tolist(), self.coupling.pools[order].tolist(), strict=True):
            inside.setdefault(pool, []).append(unit)
        for pool, units in inside.items():
            largest = self._largest_block(pool, len(units))
            if largest:
                yield units[:largest]

    def _largest_block(self, pool: int, movable: int) -> int:
        """The largest number of units of a pool that are removed in one step; 0 if the limits allow none."""
        if pool in self.limits.removed:
            return 0
        total = int(self.limits.sizes[pool])
        counts = self.limits.allowed(pool, total, min(movable, total - 1))
        return max((b - a for a, b in itertools.pairwise(counts)), default=0)

    def _without(self, units: list[int]) -> Tensor:
        kept = torch.ones(len(self.coupling.pools), dtype=torch.bool)
        kept[units] = False
        return kept
