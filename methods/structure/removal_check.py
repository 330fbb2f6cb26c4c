"""Check that channels can be removed as a coupling says, on a copy of the network with random weights.

The coupling comes from a trace, which cannot see everything: a transpose between positions and channels, a reshape, a sum with the
inputs. So half of the units of a pool are removed, and the pool is accepted if the smaller network runs, its outputs have the same
shape as before, and one of two conditions holds in double precision:

- the smaller network has the outputs of the masked one, so nothing reads the removed channels except the masked columns;
- if everything that produces the channels is zero (rows, biases, scales and shifts of norms), nothing depends on the columns that
  read them, so the channels are zero wherever they are read. This is the case if a LayerNorm averages over channels: the removal
  changes its mean.
"""

import copy

import torch
from torch import Tensor, nn

from methods.core.interface import apply_mask
from methods.structure.channel_groups import Coupling, removed

TOLERANCE = 1e-7  # relative to the largest output; errors are of order one


class _Rehearsal:
    """Removes units from a copy of a model with random weights, and compares outputs."""

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
        """The pools that units cannot be removed from, by bisection, since usually all are accepted."""
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
        except Exception:  # networks raise all kinds of exceptions
            return False
        masked = copy.deepcopy(self.model)
        apply_mask(masked, self.coupling.mask(kept, self.inputs.device))
        return _close(small, masked(self.inputs)) or (
            small.shape == self.model(self.inputs).shape and _close(self._silenced(kept, 1.0), self._silenced(kept, 3.0))
        )

    def _silenced(self, kept: Tensor, factor: float) -> Tensor:
        """The outputs if everything that produces the removed units is zero and the columns that read them are scaled by a factor."""
        model = copy.deepcopy(self.model)
        parameters = dict(model.named_parameters())
        for axis in self.coupling.axes:
            dropped = ((axis.units >= 0) & ~kept[axis.units]).nonzero().squeeze(1).to(self.inputs.device)
            if axis.owner not in parameters:
                continue  # a buffer
            tensor = parameters[axis.owner]
            if axis.kind == "columns":
                tensor.index_copy_(axis.dim, dropped, tensor.index_select(axis.dim, dropped) * factor)
            else:
                tensor.index_fill_(axis.dim, dropped, 0.0)
        outputs: Tensor = model(self.inputs)
        return outputs


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


@torch.no_grad()
def unsound(model: nn.Module, coupling: Coupling, input_shape: tuple[int, ...]) -> list[int]:
    """The pools whose free units cannot be removed as the coupling says. The model is not changed."""
    pools: list[int] = coupling.pools[coupling.free].unique().tolist()
    return _Rehearsal(model, coupling, input_shape).unsound(pools)
