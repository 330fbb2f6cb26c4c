"""Whether channels can be removed as a coupling says: tried on a copy of the network with random weights.

How a network's channels hang together is read off a trace, which cannot see everything: a transpose between positions and channels,
a reshape, a sum with the inputs. So each coupling is rehearsed. Half of the units of a pool are removed, and the pool is sound if
the smaller network runs, its outputs have the shape they had, and one of two things holds in double precision:

- the smaller network's outputs are those of the masked one: nothing reads the removed channels but the masked columns;
- once all that makes the channels is zero (rows, biases, the norms' scales and shifts), nothing depends on the columns that
  read them: the channels are zero wherever they are read. So it is where a LayerNorm averages over channels, whose mean the
  removal does change.
"""

import copy

import torch
from torch import Tensor, nn

from methods.core.interface import apply_mask
from methods.structure.channel_groups import Coupling, removed

TOLERANCE = 1e-7  # relative to the largest output; what is wrong is off by the order of one


class _Rehearsal:
    def __init__(self, model: nn.Module, coupling: Coupling, input_shape: tuple[int, ...]) -> None:
        self.coupling = coupling
        self.generator = torch.Generator().manual_seed(0)
        self.model = copy.deepcopy(model).double().eval()
        for name, p in self.model.named_parameters():
            p.copy_(
                self._draw(p.shape) * (2 / p[0].numel()) ** 0.5 if p.dim() > 1 and name.endswith("weight") else self._draw(p.shape, 0.2) + 1
            )
        for name, b in self.model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.copy_(self._draw(b.shape, 0.2).abs() + 0.5)
        device = next(self.model.parameters()).device
        self.inputs = self._draw((2, *input_shape)).to(device)

    def _draw(self, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def unsound(self, pools: list[int]) -> list[int]:
        """Those of the pools that cannot be removed from: by halving, since most often all can."""
        if not pools or self._sound(pools):
            return []
        if len(pools) == 1:
            return pools
        half = len(pools) // 2
        return self.unsound(pools[:half]) + self.unsound(pools[half:])

    def _sound(self, pools: list[int]) -> bool:
        kept = torch.ones_like(self.coupling.free)
        draws = torch.rand(2, len(kept), generator=self.generator, dtype=torch.float64)
        order = self.coupling.order(draws[0], kept, draws[1])
        order = order[torch.isin(self.coupling.pools[order], torch.tensor(pools))]
        kept[order[: (len(order) + 1) // 2]] = False
        if bool(kept.all()):
            return True
        try:
            small = removed(self.model, self.coupling, kept)(self.inputs)
        except Exception:  # each network refuses in its own way
            return False
        masked = copy.deepcopy(self.model)
        apply_mask(masked, self.coupling.mask(kept, self.inputs.device))
        return _close(small, masked(self.inputs)) or (
            small.shape == self.model(self.inputs).shape and _close(self._silenced(kept, 1.0), self._silenced(kept, 3.0))
        )

    def _silenced(self, kept: Tensor, factor: float) -> Tensor:
        """The outputs once all that makes the units not kept is zero, the columns that read them scaled by a factor."""
        model = copy.deepcopy(self.model)
        parameters = dict(model.named_parameters())
        for axis in self.coupling.axes:
            gone = ((axis.units >= 0) & ~kept[axis.units]).nonzero().squeeze(1).to(self.inputs.device)
            if axis.kind == "columns":
                weight = parameters[f"{axis.owner}.weight"]
                weight.index_copy_(1, gone, weight.index_select(1, gone) * factor)
            elif axis.owner in parameters:
                parameters[axis.owner].index_fill_(axis.dim, gone, 0.0)
            else:
                for p in model.get_submodule(axis.owner).parameters(recurse=False):
                    p.index_fill_(0, gone, 0.0)
        outputs: Tensor = model(self.inputs)
        return outputs


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


@torch.no_grad()
def unsound(model: nn.Module, coupling: Coupling, input_shape: tuple[int, ...]) -> list[int]:
    """The pools whose free units cannot be removed as the coupling says; the model is left as it is."""
    pools: list[int] = coupling.pools[coupling.free].unique().tolist()
    return _Rehearsal(model, coupling, input_shape).unsound(pools)
