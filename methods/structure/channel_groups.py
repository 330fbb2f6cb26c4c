"""Which channels of a network are removed together, and which weights a choice of channels keeps.

A *unit* is removed as a whole: a channel with everything coupled to it (the rows that produce it in every layer that adds to it, the
columns that read it), or an attention head. A *pool* is a set of units that compete: those of one layer, or of all layers whose
outputs are added. This module does not know how the coupling was found.
"""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from methods.core.interface import Values
from methods.core.masks import Mask


@dataclass(frozen=True)
class Axis:
    """One dimension of a parameter or buffer along which units lie.

    Attributes:
        owner: name of the parameter or buffer.
        dim: the dimension.
        kind: "rows" (output channels) or "columns" (input channels) of a Linear or Conv weight; "own" for anything else, e.g. a bias.
        units: the unit of each index; -1 for none.
    """

    owner: str
    dim: int
    kind: str
    units: Tensor


@dataclass(frozen=True)
class Coupling:
    """Which channels of a network are removed together.

    Attributes:
        axes: all dimensions that units lie along.
        shapes: prunable name -> shape.
        pools: the pool of each unit.
        free: whether each unit may be removed; those of the network's outputs may not.
        heads: names of the attention modules, whose attributes depend on the number of heads.
        integers: whether the inputs of the network are integers.
        unknown: operations that the trace has no rule for; channels that they read stay.
    """

    axes: tuple[Axis, ...]
    shapes: dict[str, torch.Size]
    pools: Tensor
    free: Tensor
    heads: tuple[str, ...] = ()
    integers: bool = False
    unknown: tuple[str, ...] = ()

    @cached_property
    def lines(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Prunable name -> (units along the first dimension, units along the second); -1 for none."""
        found = {n: [torch.full((size,), -1) for size in _matrix(s)[:2]] for n, s in self.shapes.items()}
        for axis in self.axes:
            if axis.kind != "own" and axis.owner in found:
                found[axis.owner][axis.dim] = axis.units
        return {n: (first, second) for n, (first, second) in found.items()}

    @cached_property
    def removable(self) -> Tensor:
        """Whether each unit may be removed without emptying a layer: free, and not the only unit of all rows or of all columns."""
        found = self.free.clone()
        for line in [line for lines in self.lines.values() for line in lines]:
            if bool((line == line[0]).all()) and line[0] >= 0:
                found[line[0]] = False
        return found

    @cached_property
    def sizes(self) -> Tensor:
        """The number of prunable weights of each unit in the dense network."""
        return self.sums({n: torch.ones(s) for n, s in self.shapes.items()})

    @property
    def weights(self) -> int:
        """The number of prunable weights."""
        return sum(s.numel() for s in self.shapes.values())

    def sums(self, values: Values) -> Tensor:
        """The sum of the values over all weights of each unit, each weight once for a unit: float64, on the CPU."""
        total = torch.zeros(len(self.pools) + 1, dtype=torch.float64)
        for name, (rows, columns) in self.lines.items():
            table = values[name].detach().reshape(_matrix(values[name].shape)).to(torch.float64).sum(2).cpu()
            last = len(self.pools)  # collects the weights of no unit, which are dropped
            total.index_add_(0, rows.remainder(last + 1), table.sum(1)).index_add_(0, columns.remainder(last + 1), table.sum(0))
            # If a unit has a row and a column of the same weight, their intersection was counted twice.
            if bool(torch.isin(rows[rows >= 0], columns).any()):
                r, c = ((rows.unsqueeze(1) == columns.unsqueeze(0)) & (rows.unsqueeze(1) >= 0)).nonzero(as_tuple=True)
                total.index_add_(0, rows[r], -table[r, c])
        return total[:-1]

    def row_sums(self, rows: Values) -> tuple[Tensor, Tensor]:
        """Add up scores of output channels: (the sum over the rows of each unit, whether it has such a row), on the CPU.

        Args:
            rows: name of a prunable weight -> (outputs,).
        """
        total, found = torch.zeros(len(self.pools), dtype=torch.float64), torch.zeros(len(self.pools), dtype=torch.bool)
        for axis in self.axes:
            if axis.kind == "rows" and axis.owner in rows:
                inside = axis.units >= 0
                total.index_add_(0, axis.units[inside], rows[axis.owner].detach().double().cpu()[inside])
                found[axis.units[inside]] = True
        return total, found

    def kept_weights(self, kept: Tensor) -> int:
        """The number of weights of the kept units (`kept`: bool)."""
        stays = _with_none(kept)
        return sum(int(stays[r].sum()) * int(stays[c].sum()) * _matrix(self.shapes[n])[2] for n, (r, c) in self.lines.items())

    def mask(self, kept: Tensor, device: torch.device | str = "cpu") -> Mask:
        """The mask that keeps a weight if the units of its row and of its column are kept."""
        stays = _with_none(kept)
        mask = {}
        for name, (rows, columns) in self.lines.items():
            table = (stays[rows].unsqueeze(1) & stays[columns].unsqueeze(0)).unsqueeze(2)
            mask[name] = table.expand(_matrix(self.shapes[name])).reshape(self.shapes[name]).to(device)
        return mask

    def kept_units(self, mask: Mask) -> Tensor:
        """The units that a mask keeps, as a bool tensor; raises ValueError if it does not consist of whole units."""
        kept = (self.sums({n: m.float() for n, m in mask.items()}) > 0) | (self.sizes == 0)
        if any(not torch.equal(m, mask[n].cpu()) for n, m in self.mask(kept).items()):
            raise ValueError("the mask does not consist of whole channels: some weights of a channel are masked and others are not")
        return kept

    def empties(self, kept: Tensor) -> list[str]:
        """The names of the prunable weights that would have no row or no column left."""
        stays = _with_none(kept)
        return [n for n, (rows, columns) in self.lines.items() if not (stays[rows].any() and stays[columns].any())]

    def obstacle(self) -> str:
        """What keeps channels from being removed, in brackets, for a message; '' if nothing is known."""
        stay = [n for n, lines in self.lines.items() if not any(bool(self.free[line[line >= 0]].any()) for line in lines)]
        largest = f"no channel of '{max(stay, key=lambda n: self.shapes[n].numel())}' can be removed" if stay else ""
        reasons = [largest, f"channels read by {', '.join(self.unknown)} stay" if self.unknown else ""]
        return f" ({'; '.join(r for r in reasons if r)})" if any(reasons) else ""

    def order(self, worth: Tensor, kept: Tensor, tie_breakers: Tensor, by_pool: bool = False) -> Tensor:
        """The order in which units are removed.

        Args:
            worth: score of each unit.
            kept: units that are kept now.
            tie_breakers: decide the order of units with the same score, smallest first.
            by_pool: whether the same fraction of every pool is removed at any point of the order, instead of one global ranking.

        Returns:
            Indices of the kept units that may be removed, lowest score first. The best unit of every row and column axis is left
            out, so that no layer becomes empty.
        """
        rank = torch.empty(len(worth), dtype=torch.long)
        rank[_sorted(worth, tie_breakers)] = torch.arange(len(worth))
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
        return units[_sorted(place, tie_breakers[units])]


def _matrix(shape: torch.Size) -> tuple[int, int, int]:
    """A weight's shape with all dimensions after the second as one."""
    return shape[0], shape[1] if len(shape) > 1 else 1, shape[2:].numel()


def _with_none(kept: Tensor) -> Tensor:
    """`kept` with True appended: the index -1 (no unit) is always kept."""
    return torch.cat([kept, torch.ones(1, dtype=torch.bool)])


def _sorted(values: Tensor, tie_breakers: Tensor) -> Tensor:
    """The indices in ascending order of the values; equal values in the order of their tie-breakers."""
    by_tie = tie_breakers.argsort(stable=True)
    return by_tie[values[by_tie].argsort(stable=True)]


@torch.no_grad()
def removed(model: nn.Module, coupling: Coupling, kept: Tensor, share: bool = False) -> nn.Module:
    """Make a physically smaller copy of a model.

    Args:
        model: the network; it is not changed.
        coupling: its coupling.
        kept: bool, the units to keep.
        share: whether the parameters and buffers that keep their shape are those of the model, not copies.

    Returns:
        A plain module without gradients; training modes, `requires_grad`, dtype, device and memory format are those of the model.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    memo: dict[int, Any] = {id(t): t for t in tensors.values()} if share else {}
    memo |= {id(tensors[n]): t for n, t in _smaller(tensors, coupling, kept).items()}
    small = copy.deepcopy(model, memo)  # a tied weight is replaced wherever it is used
    for old, new in zip(model.modules(), small.modules(), strict=True):
        _set_sizes(old, new)
    for name in coupling.heads:
        attention: Any = small.get_submodule(name)
        attention.num_heads = attention.proj.in_features // attention.head_dim
        if hasattr(attention, "attn_dim"):
            attention.attn_dim = attention.proj.in_features
    if not share:
        for p in small.parameters():
            p.grad = None
    return small


def _smaller(tensors: dict[str, Tensor], coupling: Coupling, kept: Tensor) -> dict[str, Tensor]:
    """Name -> smaller copy, of the parameters and buffers that do not keep all of their units."""
    stays, found = _with_none(kept), dict[str, Tensor]()
    for axis in coupling.axes:
        left = stays[axis.units].nonzero().squeeze(1)
        if len(left) < len(axis.units):
            old = tensors[axis.owner]
            found[axis.owner] = found.get(axis.owner, old).index_select(axis.dim, left.to(old.device))
    for name, new in found.items():
        old = tensors[name]
        if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last):
            new = new.contiguous(memory_format=torch.channels_last)
        found[name] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    return found


def _set_sizes(old: Any, new: Any) -> None:
    """Set the attributes of a module that hold the sizes of its parameters."""
    sizes: dict[int, int] = {}
    for before, after in ((old._parameters, new._parameters), (old._buffers, new._buffers)):
        for name, tensor in before.items():
            if tensor is not None:
                sizes |= {a: b for a, b in zip(tensor.shape, after[name].shape, strict=True) if a != b}
    if not sizes:
        return
    if isinstance(new, nn.Linear):
        new.out_features, new.in_features = new.weight.shape
    elif isinstance(new, _ConvNd):
        _set_channels(new)
    for attribute in ("num_features", "num_channels", "num_parameters"):
        if getattr(old, attribute, None) in sizes:
            setattr(new, attribute, sizes[getattr(old, attribute)])
    if getattr(old, "normalized_shape", None) is not None:
        new.normalized_shape = tuple(sizes.get(n, n) for n in old.normalized_shape)


def _set_channels(conv: Any) -> None:
    """The numbers of channels of a convolution, from the shape of its weight."""
    first, second = conv.weight.shape[:2]
    if isinstance(conv, _ConvTransposeNd):
        groups = first if conv.groups > 1 else 1
        conv.in_channels, conv.out_channels, conv.groups = first, second * groups, groups
    else:
        groups = first * conv.groups // conv.out_channels if conv.groups > 1 else 1
        conv.in_channels, conv.out_channels, conv.groups = second * groups, first, groups


def survivors(model: nn.Module, coupling: Coupling, kept: Tensor) -> dict[str, Tensor]:
    """Parameter name -> flat indices of the entries that `removed` keeps, in the shape of the smaller parameter."""
    numbered = copy.deepcopy(model).to("cpu", torch.float64)
    with torch.no_grad():
        for p in numbered.parameters():
            p.copy_(torch.arange(p.numel(), dtype=torch.float64).view(p.shape))
    return {n: p.detach().long() for n, p in removed(numbered, coupling, kept).named_parameters()}
