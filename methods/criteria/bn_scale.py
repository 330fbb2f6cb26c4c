"""The scale of batch norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from methods.core.configurations import Criterion
from methods.core.interface import Problem, Scores, Stage
from methods.granularity.channel import coupling_of
from methods.registry.registry import register
from methods.structure.channel_norms import batch_norms, rows_of_units


@register("bn_scale")
@dataclass(frozen=True, kw_only=True)
class BnScale(Criterion):
    """Batch-norm scale: remove the channels that batch norm scales down most.

    s_c = |γ_c|, γ_c the scale of channel c in the batch norm that follows it. If a channel has several batch norms (its outputs are
    added up, or a norm stands before the next layer), their |γ_c| are added. Channels without batch norm stay.

    Reference: Liu et al., "Learning efficient convolutional networks through network slimming", ICCV 2017, section 3, where γ is
    trained with an L1 penalty: method `slimming`. The paper compares γ over all layers: `channel(normalisation=none)`; the default of
    the granularity divides by the mean of each layer.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)
    data_free: ClassVar = True

    @property
    def granularities(self) -> tuple[str, ...]:
        """Output channels only."""
        return ("channel",)

    def unsupported(self, problem: Problem) -> str | None:
        """The reason if no removable channel has a batch norm. Raises ValueError if the network cannot be traced."""
        if not any(isinstance(m, _BatchNorm) and m.weight is not None for m in problem.model.modules()):
            return "it has no batch norm with a scale"
        coupling = coupling_of(problem)
        normed = [units[units >= 0] for _, units in batch_norms(problem.model, coupling)]
        if not any(bool(coupling.free[units].any()) for units in normed):
            return "no channel that can be removed has a batch norm"
        return None

    def score(self, problem: Problem) -> Scores:
        """|γ| of each output channel."""
        coupling = coupling_of(problem)
        total, scored = torch.zeros(len(coupling.pools), dtype=torch.float64), torch.zeros(len(coupling.pools), dtype=torch.bool)
        for norm, units in batch_norms(problem.model, coupling):
            inside = units >= 0
            total.index_add_(0, units[inside], norm.weight.detach().abs().double().cpu()[inside])
            scored[units[inside]] = True
        rows = rows_of_units(coupling, total, scored)
        return Scores(rows={n: r.to(problem.weights[n].device) for n, r in rows.items()})
