"""Any criterion as an importance for Torch-Pruning's pruners.

This is the only module that imports torch-pruning (Fang et al. 2023, "DepGraph: Towards any structural pruning"). The import takes a
second, so it happens at the first use. The granularity "channel" of this package finds coupled channels on its own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from methods.api import scores
from methods.core.interface import Batches


class Importance:
    """The importance of the channels of a group: the sum of the scores of all prunable weights that are removed with each of them.

    For a method that scores output channels (`fpgm`, `bn_scale`, `taylor`) it is the sum over the rows that are removed.

        import torch_pruning as tp

        importance = methods.Importance(model, batches, method="obd")
        tp.pruner.BasePruner(model, inputs, importance, pruning_ratio=0.5, ignored_layers=[model.head]).step()

    The scores are computed at the first call, and again whenever the network has become smaller.

    Args:
        model: the network that the pruner gets.
        batches: re-iterable of (inputs, targets); None for a criterion that reads no data.
        method: a method without a training of its own, see `methods.prune`.
        options: further arguments of `methods.scores`, e.g. `loss`, `posterior` and hyperparameters.
    """

    def __init__(self, model: nn.Module, batches: Batches | None = None, method: str = "magnitude", **options: Any) -> None:
        self.model, self.batches, self.method, self.options = model, batches, method, options
        self._shapes: list[torch.Size] = []
        self._scores: dict[int, Tensor] = {}

    def __call__(self, group: Any) -> Tensor:
        """The importance of each channel of a `torch_pruning.Group`: float64 (channels,)."""
        self._refresh()
        total = torch.zeros(len(group[0].idxs), dtype=torch.float64)
        for item in group:
            sums = self._sums(item.dep)
            if sums is not None and None not in item.root_idxs:
                total.index_add_(0, torch.tensor(item.root_idxs), sums[item.idxs])
        return total

    def _refresh(self) -> None:
        shapes = [p.shape for p in self.model.parameters()]
        if shapes != self._shapes:
            parameters = dict(self.model.named_parameters())
            found = scores(self.model, self.batches, self.method, **self.options)
            self._shapes, self._scores = shapes, {id(parameters[n]): s.detach().double().cpu() for n, s in found.items()}

    def _sums(self, dependency: Any) -> Tensor | None:
        """The sum of the scores of each row or column of a layer, whichever the dependency removes; None for other modules."""
        import torch_pruning

        module = dependency.target.module
        if not isinstance(module, (nn.Linear, _ConvNd)) or id(module.weight) not in self._scores:
            return None
        prune = torch_pruning.function
        of_rows = prune.prune_conv_out_channels, prune.prune_depthwise_conv_out_channels, prune.prune_linear_out_channels
        rows = dependency.handler in of_rows
        if not rows and dependency.handler not in (prune.prune_conv_in_channels, prune.prune_linear_in_channels):
            return None
        if self._scores[id(module.weight)].dim() == 1:
            return self._scores[id(module.weight)] if rows else None
        by_side = self._scores[id(module.weight)].flatten(2) if module.weight.dim() > 2 else self._scores[id(module.weight)].unsqueeze(2)
        first = rows != isinstance(module, _ConvTransposeNd)
        found = by_side.sum((1, 2)) if first else by_side.sum((0, 2))
        groups = getattr(module, "groups", 1)
        return found.repeat(groups) if not rows and groups > 1 else found
