"""Limits on which channels are removed: a floor per pool, multiples for hardware, protected layers, ratios of single layers."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor

from methods.structure.channel_groups import Coupling


@dataclass(frozen=True)
class Limits:
    """Limits of a network's channels.

    Attributes:
        coupling: the channels.
        floor: smallest fraction of the units of a pool that is kept.
        round_to: a pool from which units are removed keeps a multiple of so many channels.
        protect: patterns of the layers whose output channels stay.
        ratios: pattern of layers -> the fraction of their output channels that is removed.
    """

    coupling: Coupling
    floor: float = 0.0
    round_to: int = 1
    protect: tuple[str, ...] = ()
    ratios: Mapping[str, float] | None = None

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """Prunable name -> the units of its output channels, without -1."""
        axes = [a for a in self.coupling.axes if a.kind == "rows" and a.owner in self.coupling.shapes]
        return {a.owner: a.units[a.units >= 0] for a in axes}

    @cached_property
    def sizes(self) -> Tensor:
        """The number of units of each pool of the dense network."""
        return torch.bincount(self.coupling.pools)

    @cached_property
    def steps(self) -> list[int]:
        """The multiple of units that each pool keeps: `round_to` channels, where a unit such as a head may be several of them."""
        if self.round_to == 1:
            return [1] * len(self.sizes)
        channels = [0] * len(self.sizes)
        for line in [line for lines in self.coupling.lines.values() for line in lines]:
            for pool, count in zip(*self._per_unit(line[line >= 0]), strict=True):
                channels[pool] = math.gcd(channels[pool], count)
        return [self.round_to // math.gcd(self.round_to, count) for count in channels]

    def _per_unit(self, units: Tensor) -> tuple[list[int], list[int]]:
        """(the pool of each different unit, how often it occurs)."""
        found, counts = units.unique(return_counts=True)
        return self.coupling.pools[found].tolist(), counts.tolist()

    @cached_property
    def protected(self) -> Tensor:
        """Whether each unit is an output channel of a protected layer."""
        stays = torch.zeros(len(self.coupling.pools), dtype=torch.bool)
        for pattern in self.protect:
            for name in self._matching("protect", pattern):
                stays[self.rows[name]] = True
        return stays

    @cached_property
    def removed(self) -> dict[int, int]:
        """Pool -> the number of its units that are removed, for pools with a ratio: the allowed number that is nearest to it."""
        named: dict[int, tuple[float, str]] = {}
        counts: dict[int, int] = {}
        for pattern, ratio in (self.ratios or {}).items():
            names = self._matching("ratios", pattern)
            for pool, name in [(p, n) for n in names for p in self.coupling.pools[self.rows[n]].unique().tolist()]:
                first = named.setdefault(pool, (ratio, name))
                if first[0] != ratio:
                    raise ValueError(
                        f"ratios: '{first[1]}' and '{name}' lose the same channels, but have the ratios {first[0]:g} and {ratio:g}"
                    )
                inside = (self.coupling.pools == pool) & self.coupling.free & ~self.protected
                total, movable = int(self.sizes[pool]), min(int(inside.sum()), int(self.sizes[pool]) - 1)
                if movable:
                    counts[pool] = min(self.allowed(pool, total, movable), key=lambda c, wanted=ratio * total: abs(c - wanted))  # type: ignore[misc]
            if not any(pool in counts for name in names for pool in self.coupling.pools[self.rows[name]].tolist()):
                raise ValueError(f"ratios: no output channel of '{names[0]}' can be removed")
        return counts

    def _matching(self, option: str, pattern: str) -> list[str]:
        """The weights that a pattern matches, by their names or those of their layers; raises ValueError if there are none."""
        layers = {name: name.removesuffix(".weight") for name in self.rows}
        found = [name for name, layer in layers.items() if fnmatchcase(name, pattern) or fnmatchcase(layer, pattern)]
        if not found:
            near = get_close_matches(pattern, list(layers.values()), n=1, cutoff=0.5)
            meant = f" (did you mean '{near[0]}'?)" if near else f"; there are {', '.join(list(layers.values())[:3])} and others"
            raise ValueError(f"{option}: '{pattern}' matches no layer with output channels{meant}")
        return found

    def allowed(self, pool: int, present: int, movable: int) -> list[int]:
        """How many of `present` units of a pool may be removed, in increasing order, if `movable` of them can be; 0 is allowed always."""
        least = math.ceil(self.floor * int(self.sizes[pool]) - 1e-9)
        step = self.steps[pool]
        most = min(movable, present - least)
        return [0, *(c for c in range(1, most + 1) if (present - c) % step == 0)]

    def blocks(self, order: Tensor, present: Tensor, stays: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Divide an order of removal into blocks of units that are removed together.

        Args:
            order: units, the first to be removed first, as `Coupling.order` gives them.
            present: the units that are kept now.
            stays: further units that stay; None for none.

        Returns:
            (blocks that are removed in any case, by the ratios; the other blocks, in their order).

        Raises:
            ValueError: if a pattern matches nothing, or the present units are already fewer than a ratio keeps.
        """
        stays = self.protected if stays is None else self.protected | stays
        place = {unit: k for k, unit in enumerate(order.tolist())}
        units = order[~stays[order]]
        first, others = list[Tensor](), list[Tensor]()
        for pool in range(len(self.sizes)):
            inside, alive = units[self.coupling.pools[units] == pool], int((present & (self.coupling.pools == pool)).sum())
            if pool in self.removed:
                count = self.removed[pool] - (int(self.sizes[pool]) - alive)
                if not 0 <= count <= len(inside):
                    raise ValueError(
                        f"the ratios keep {int(self.sizes[pool]) - self.removed[pool]} channels of a layer that has {alive} left"
                    )
                first.append(inside[:count])
            else:
                counts = self.allowed(pool, alive, len(inside))
                others += [inside[a:b] for a, b in itertools.pairwise(counts)]
        others.sort(key=lambda block: sum(place[u] for u in block.tolist()) / len(block))
        return [b for b in first if len(b)], others

    def fault(self, kept: Tensor) -> str:
        """What is wrong with a choice of kept units, in one line; '' if it is within the limits."""
        counts = torch.bincount(self.coupling.pools[kept], minlength=len(self.sizes)).tolist()
        if bool((self.protected & ~kept).any()):
            return "the mask removes channels of a protected layer"
        for pool, (count, total) in enumerate(zip(counts, self.sizes.tolist(), strict=True)):
            layer = self._layer(pool)
            if pool in self.removed:
                if count != total - self.removed[pool]:
                    return f"the mask keeps {count} channels of '{layer}', but its ratio keeps {total - self.removed[pool]} of {total}"
            elif count < total and count < self.floor * total - 1e-9:
                return f"the mask keeps {count} of {total} channels of '{layer}', which is below the floor of {self.floor:g}"
            elif count < total and count % self.steps[pool]:
                return f"the mask keeps {count} channels of '{layer}', which is not a multiple of {self.steps[pool]}"
        return ""

    def _layer(self, pool: int) -> str:
        """The first layer with output channels in a pool."""
        return next((n for n, units in self.rows.items() if bool((self.coupling.pools[units] == pool).any())), "?")


def patterns(option: str, text: str) -> tuple[str, ...]:
    """The patterns in `a.*|b.*`; raises ValueError if one is empty."""
    found = tuple(part.strip() for part in text.split("|")) if text else ()
    if not all(found):
        raise ValueError(f"{option}={text!r} must be patterns of layers with | between them, e.g. {option}=stem.*|head")
    return found


def fractions(option: str, text: str) -> dict[str, float]:
    """Pattern -> fraction, of `a.*:0.3|b.*:0.5`; raises ValueError if it cannot be read or a fraction is not in [0, 1)."""
    found: dict[str, float] = {}
    for part in patterns(option, text):
        pattern, colon, value = (p.strip() for p in part.rpartition(":"))
        try:
            fraction = float(value)
        except ValueError:
            fraction = math.nan
        if not (colon and pattern and 0 <= fraction < 1):
            raise ValueError(f"{option}: '{part}' must be a pattern of layers and a fraction in [0, 1), e.g. {option}=layer1.*:0.3")
        if pattern in found:
            raise ValueError(f"{option}: '{pattern}' is given twice")
        found[pattern] = fraction
    return found
