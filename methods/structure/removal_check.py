"""Check that channels can be removed as a coupling says, on a copy of the network with random weights.

The coupling comes from a trace, which cannot see everything: a transpose between positions and channels, a reshape, a sum with the
inputs. So about half of the units of each pool are removed, and the pool is accepted if the smaller network runs, its outputs have the same
shape as before, and one of two conditions holds up to rounding:

- the smaller network has the outputs of the masked one, so nothing reads the removed channels except the masked columns;
- if everything that produces the channels is zero (rows, biases, scales and shifts of norms), nothing depends on the columns that
  read them, so the channels are zero wherever they are read. This is the case if a LayerNorm averages over channels: the removal
  changes its mean.
"""

import copy
import math
import re
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten

from methods.structure.channel_groups import Coupling, removed

TOLERANCE = 1e-7  # of double precision, relative to the largest output; errors are of order one
SURE = (1e-4, 1e-2)  # of single precision: smaller differences are rounding, larger ones are errors; in between double decides


class _Rehearsal:
    """Removes units from a copy of a model with random weights, and compares outputs."""

    def __init__(self, model: nn.Module, coupling: Coupling, input_shape: tuple[int, ...]) -> None:
        self.coupling = coupling
        self.generator = torch.Generator().manual_seed(0)
        double = copy.deepcopy(model).double().eval()
        for name, p in double.named_parameters():
            p.copy_(
                self._draw(p.shape) * (2 / p[0].numel()) ** 0.5 if p.dim() > 1 and name.endswith("weight") else self._draw(p.shape, 0.2) + 1
            )
        for name, b in double.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.copy_(self._draw(b.shape, 0.2).abs() + 0.5)
        device = next(double.parameters()).device
        drawn = self._draw((2, *input_shape)).to(device)
        inputs = (drawn > 0).long() if coupling.integers else drawn
        single = copy.deepcopy(double).float()
        self.networks = {
            torch.float32: _Network(single, coupling, inputs if coupling.integers else inputs.float()),
            torch.float64: _Network(double, coupling, inputs),
        }

    def _draw(self, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def failing(self, pools: list[int], equal: bool = False) -> list[int]:
        """The pools for which no condition holds, or with `equal` not the first one.

        A search in single precision, which is faster, and a check in double. Pools with the same role in repeated blocks are tried
        together: if the first and the last of them fail, all of them count as failing.
        """
        found: list[int] = []
        if not self._sound(pools, torch.float32, equal):
            for alike in self._by_role(pools):
                if not self._sound(alike, torch.float32, equal):
                    ends = not any(self._sound([p], torch.float32, equal) for p in {alike[0], alike[-1]})
                    found += alike if ends else self._search(alike, torch.float32, equal)
        return found + self._search([p for p in pools if p not in set(found)], torch.float64, equal)

    def _by_role(self, pools: list[int]) -> list[list[int]]:
        """The pools in groups: those that lie in parameters of the same names, except for numbers."""
        roles: dict[int, set[tuple[str, str]]] = {p: set() for p in pools}
        for axis in self.coupling.axes:
            name = re.sub(r"\d+", "*", axis.owner)
            for pool in self.coupling.pools[axis.units[axis.units >= 0]].unique().tolist():
                if pool in roles:
                    roles[pool].add((name, axis.kind))
        groups: dict[frozenset[tuple[str, str]], list[int]] = {}
        for pool, role in roles.items():
            groups.setdefault(frozenset(role), []).append(pool)
        return list(groups.values())

    def _search(self, pools: list[int], dtype: torch.dtype, equal: bool) -> list[int]:
        """By bisection, since usually all are accepted."""
        if not pools or self._sound(pools, dtype, equal):
            return []
        if len(pools) == 1:
            return pools
        half = len(pools) // 2
        return self._search(pools[:half], dtype, equal) + self._search(pools[half:], dtype, equal)

    def _sound(self, pools: list[int], dtype: torch.dtype, equal: bool) -> bool:
        kept = torch.ones_like(self.coupling.free)
        draws = torch.rand(2, len(kept), generator=self.generator, dtype=torch.float64)
        order = self.coupling.order(draws[0], kept, draws[1])
        for pool in pools:
            inside = order[self.coupling.pools[order] == pool]
            kept[inside[: _count(len(inside), int((self.coupling.pools == pool).sum()))]] = False
        if bool(kept.all()):
            return True
        difference = self.networks[dtype].difference(kept, equal)
        if dtype is torch.float32 and not (difference <= SURE[0] or difference >= SURE[1]):
            difference, dtype = self.networks[torch.float64].difference(kept, equal), torch.float64
        return difference <= (TOLERANCE if dtype is torch.float64 else SURE[0])


class _Network:
    """A network in one precision, with some of its units removed, masked or silenced."""

    def __init__(self, model: nn.Module, coupling: Coupling, inputs: Tensor) -> None:
        self.model, self.coupling, self.inputs = model, coupling, inputs
        self.parameters = dict(model.named_parameters())

    @cached_property
    def outputs(self) -> Tensor:
        """The outputs of the whole network."""
        return _as_tensor(self.model(self.inputs))

    def difference(self, kept: Tensor, equal: bool) -> float:
        """The smaller one of the differences that the conditions are about; infinite if the smaller network does not run."""
        try:
            small = _as_tensor(removed(self.model, self.coupling, kept, share=True)(self.inputs))
        except Exception:  # networks raise all kinds of exceptions
            return math.inf
        if small.shape != self.outputs.shape:
            return math.inf
        first = _difference(small, self._masked(kept))
        if equal or first <= TOLERANCE or (first <= SURE[0] and small.dtype is torch.float32):
            return first
        return min(first, _difference(self._silenced(kept, 1.0), self._silenced(kept, 3.0)))

    def _masked(self, kept: Tensor) -> Tensor:
        """The outputs of the masked network."""
        gone = ~torch.cat([kept, kept.new_ones(1)])
        changed: dict[str, Tensor] = {}
        for name, lines in self.coupling.lines.items():
            for dim, line in enumerate(lines):
                dropped = gone[line].nonzero().squeeze(1).to(self.inputs.device)
                if len(dropped):
                    changed[name] = changed.get(name, self.parameters[name]).index_fill(dim, dropped, 0.0)
        return self._with(changed)

    def _silenced(self, kept: Tensor, factor: float) -> Tensor:
        """The outputs if everything that produces the removed units is zero and the columns that read them are scaled by a factor."""
        changed: dict[str, Tensor] = {}
        for axis in self.coupling.axes:
            dropped = ((axis.units >= 0) & ~kept[axis.units]).nonzero().squeeze(1).to(self.inputs.device)
            if axis.owner not in self.parameters or not len(dropped):
                continue  # a buffer
            tensor = changed.get(axis.owner, self.parameters[axis.owner])
            if axis.kind == "columns":
                changed[axis.owner] = tensor.index_copy(axis.dim, dropped, tensor.index_select(axis.dim, dropped) * factor)
            else:
                changed[axis.owner] = tensor.index_fill(axis.dim, dropped, 0.0)
        return self._with(changed)

    def _with(self, changed: dict[str, Tensor]) -> Tensor:
        """The outputs with some parameters replaced."""
        inside = nn.Sequential(self.model)  # torch refuses DataParallel, but not inside another module
        return _as_tensor(functional_call(inside, {f"0.{name}": tensor for name, tensor in changed.items()}, (self.inputs,)))


def _as_tensor(outputs: Any) -> Tensor:
    """The outputs of a network as one tensor, also if it returns a dict, a tuple or a list of tensors."""
    if isinstance(outputs, Tensor):
        return outputs
    return torch.cat([t.flatten() for t in tree_flatten(outputs)[0] if isinstance(t, Tensor) and t.is_floating_point()])


def _count(movable: int, units: int) -> int:
    """How many of the movable units to remove: about half, so that the number of units left has no small divisor.

    A network may divide its channels into a fixed number of parts.
    """
    counts = sorted(range(1, movable + 1), key=lambda count: abs(2 * count - movable))
    return next((c for c in counts if math.gcd(units - c, 2 * 3 * 5 * 7) == 1), (movable + 1) // 2)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def unsound(model: nn.Module, coupling: Coupling, input_shape: tuple[int, ...]) -> list[int]:
    """The pools whose free units cannot be removed as the coupling says. The model is not changed."""
    pools: list[int] = coupling.pools[coupling.free].unique().tolist()
    return _Rehearsal(model, coupling, input_shape).failing(pools)


@torch.no_grad()
def not_equal(model: nn.Module, coupling: Coupling, input_shape: tuple[int, ...]) -> list[int]:
    """The pools whose removal gives other outputs than masking. The model is not changed."""
    pools: list[int] = coupling.pools[coupling.free].unique().tolist()
    return _Rehearsal(model, coupling, input_shape).failing(pools, equal=True)
