"""Which channels of a network stand and fall together, and what a choice among them means for its weights.

A *unit* is what can be removed as a whole: a channel with everything that is coupled to it (the rows that make it in every layer
that adds to it, the columns that read it), or an attention head. A *pool* is the set of units that compete to stay: those of one
layer, or of all layers whose outputs are added up. Nothing here knows how the coupling was found.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from methods.core.interface import Mask, Values


@dataclass(frozen=True)
class Axis:
    """One dimension of a module, or of a parameter that belongs to none of the known modules.

    `owner`: the name of the module or parameter. `kind`: "rows" or "columns" of a Linear or Conv weight, "own" for anything
    else (the channels of a norm). `units`: the unit that governs each index, -1 where none. `dim`: the dimension, for a
    parameter. `remove(owner, indices)` takes indices off it, of a module in place; of a parameter it returns the smaller one.
    """

    owner: str
    kind: str
    units: Tensor
    dim: int
    remove: Callable[[Any, list[int]], Any]


@dataclass(frozen=True)
class Coupling:
    """`shapes`: prunable name -> shape. `pools`: the pool of each unit. `free`: units that may be removed at all (those of the
    network's outputs may not). `heads`: names of the attention modules, whose attributes follow the heads that are left."""

    axes: tuple[Axis, ...]
    shapes: dict[str, torch.Size]
    pools: Tensor
    free: Tensor
    heads: tuple[str, ...] = ()

    @cached_property
    def lines(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Prunable name -> (unit of each row, unit of each column), -1 where none."""
        found = {n: [torch.full((s[0],), -1), torch.full((s[1],), -1)] for n, s in self.shapes.items()}
        for axis in self.axes:
            if axis.kind != "own":
                found[f"{axis.owner}.weight"][axis.kind == "columns"] = axis.units
        return {n: (rows, columns) for n, (rows, columns) in found.items()}

    @cached_property
    def sizes(self) -> Tensor:
        """The number of prunable weights that each unit takes with it from the dense network."""
        return self.sums({n: torch.ones(s[:2]) * (s.numel() // (s[0] * s[1])) for n, s in self.shapes.items()})

    @property
    def weights(self) -> int:
        """The number of prunable weights."""
        return sum(s.numel() for s in self.shapes.values())

    def sums(self, values: Values) -> Tensor:
        """The sum of the values over all weights of each unit, each weight once for a unit: float64, on the CPU."""
        total = torch.zeros(len(self.pools) + 1, dtype=torch.float64)
        for name, (rows, columns) in self.lines.items():
            table = values[name].detach().flatten(2) if values[name].dim() > 2 else values[name].detach().unsqueeze(2)
            table = table.to(torch.float64).sum(2).cpu()
            last = len(self.pools)  # where what no unit governs is collected, and forgotten
            total.index_add_(0, rows.remainder(last + 1), table.sum(1)).index_add_(0, columns.remainder(last + 1), table.sum(0))
            # Where a unit governs a row and a column, their crossing was counted twice.
            if bool(torch.isin(rows[rows >= 0], columns).any()):
                r, c = ((rows.unsqueeze(1) == columns.unsqueeze(0)) & (rows.unsqueeze(1) >= 0)).nonzero(as_tuple=True)
                total.index_add_(0, rows[r], -table[r, c])
        return total[:-1]

    def kept_weights(self, kept: Tensor) -> int:
        """The number of weights that are left where the units `kept` (bool) are."""
        stays = _with_none(kept)
        return sum(int(stays[r].sum()) * int(stays[c].sum()) * (s.numel() // (s[0] * s[1]))
                   for s, (r, c) in zip(self.shapes.values(), self.lines.values(), strict=True))  # fmt: skip

    def mask(self, kept: Tensor, device: torch.device | str = "cpu") -> Mask:
        """The mask that keeps a weight where the units of its row and of its column are kept."""
        stays = _with_none(kept)
        mask = {}
        for name, (rows, columns) in self.lines.items():
            shape = self.shapes[name]
            table = stays[rows].unsqueeze(1) & stays[columns].unsqueeze(0)
            mask[name] = table.view(*table.shape, *[1] * (len(shape) - 2)).expand(shape).to(device).contiguous()
        return mask

    def kept_units(self, mask: Mask) -> Tensor:
        """The units that a mask keeps. Raises ValueError where it is not one of whole units."""
        kept = self.sums({n: m.float() for n, m in mask.items()}) > 0
        if any(not torch.equal(m, mask[n].cpu()) for n, m in self.mask(kept).items()):
            raise ValueError("the mask is not one of whole channels: some weights of a channel are masked and others are not")
        return kept

    def empties(self, kept: Tensor) -> list[str]:
        """The names of the prunable weights that would be left without a row or without a column."""
        stays = _with_none(kept)
        return [n for n, (rows, columns) in self.lines.items() if not (stays[rows].any() and stays[columns].any())]

    def order(self, worth: Tensor, kept: Tensor, lots: Tensor, by_pool: bool = False) -> Tensor:
        """The free units among the kept ones in the order of their removal, the least worthy first; equal ones by their lots.

        The best unit of every row and column axis is not among them, so that no layer is ever emptied. `by_pool`: the same
        share of every pool at any point of the order, instead of one ranking of all.
        """
        rank = torch.empty(len(worth), dtype=torch.long)
        rank[_sorted(worth, lots)] = torch.arange(len(worth))
        movable = self.free & kept
        for line in [line for lines in self.lines.values() for line in lines]:
            if bool((line >= 0).all() and kept[line].any()):
                alive = line[kept[line]]
                movable[alive[rank[alive].argmax()]] = False
        units = rank.argsort()
        units = units[movable[units]]
        if not by_pool:
            return units
        place, pool = torch.empty(len(units), dtype=torch.float64), self.pools[units]
        for number in pool.unique():
            inside = (pool == number).nonzero().squeeze(1)
            place[inside] = (torch.arange(len(inside), dtype=torch.float64) + 0.5) / len(inside)
        return units[_sorted(place, lots[units])]


def _with_none(kept: Tensor) -> Tensor:
    """`kept` with an entry more at the end, where the index -1 looks: what no unit governs stays."""
    return torch.cat([kept, torch.ones(1, dtype=torch.bool)])


def _sorted(values: Tensor, lots: Tensor) -> Tensor:
    """The indices in ascending order of the values, equal ones in that of their lots."""
    by_lot = lots.argsort(stable=True)
    return by_lot[values[by_lot].argsort(stable=True)]


@torch.no_grad()
def removed(model: nn.Module, coupling: Coupling, kept: Tensor) -> nn.Module:
    """A copy of the model without the units that are not kept: plain, physically smaller, without gradients.

    Training modes, `requires_grad`, dtype, device and memory format are those of the model.
    """
    small = copy.deepcopy(model)
    before = dict(model.named_parameters())
    stays = _with_none(kept)
    for axis in coupling.axes:
        gone = (~stays[axis.units]).nonzero().squeeze(1).tolist()
        if not gone:
            continue
        path, _, attribute = axis.owner.rpartition(".")
        if axis.owner in before:
            owner = small.get_submodule(path)
            setattr(owner, attribute, axis.remove(getattr(owner, attribute), gone))
        else:
            axis.remove(small.get_submodule(axis.owner), gone)
    for name in coupling.heads:
        attention: Any = small.get_submodule(name)
        attention.num_heads = attention.proj.in_features // attention.head_dim
        if hasattr(attention, "attn_dim"):
            attention.attn_dim = attention.proj.in_features
    for name, p in small.named_parameters():
        p.grad = None
        p.requires_grad_(before[name].requires_grad)
        if p.dim() == 4 and before[name].is_contiguous(memory_format=torch.channels_last):
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return small


def survivors(model: nn.Module, coupling: Coupling, kept: Tensor) -> dict[str, Tensor]:
    """Parameter name -> flat indices, in the shape of the smaller parameter, of what `removed` leaves of it."""
    numbered = copy.deepcopy(model).to("cpu", torch.float64)
    with torch.no_grad():
        for p in numbered.parameters():
            p.copy_(torch.arange(p.numel(), dtype=torch.float64).view(p.shape))
    return {n: p.detach().long() for n, p in removed(numbered, coupling, kept).named_parameters()}
