"""FPGM: filter pruning via geometric median."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core.configurations import Criterion
from methods.core.filters import filters
from methods.core.interface import Problem, Scores, Stage
from methods.registry.registry import register

ROUNDING = 1e-13  # squared distances below this fraction of the squared norms are zero in double precision


@register("fpgm")
@dataclass(frozen=True, kw_only=True)
class Fpgm(Criterion):
    """FPGM: remove the filters that the other filters of their layer can replace best.

    s_j = Σ_j' ‖F_j - F_j'‖₂, F_j the weights of output channel j of a layer, the sum over the layer's kept filters. The filters with
    the smallest sum are the closest to the geometric median of the layer.

    Reference: He, Liu, Wang, Hu, Yang, "Filter pruning via geometric median for deep convolutional neural networks acceleration",
    CVPR 2019, equations 4 to 7. Departures: the paper removes the same fraction of every layer, which is `channel(ranking=layer)`;
    here also the rows of Linear layers are filters; of a channel that several layers produce the sums are added; filters are cut once
    after training, while the paper sets them to zero after every epoch and lets them grow again.
    """

    stages: ClassVar = (Stage.AFTER, Stage.DURING)
    data_free: ClassVar = True

    @property
    def granularities(self) -> tuple[str, ...]:
        """Output channels only."""
        return ("channel",)

    def score(self, problem: Problem) -> Scores:
        """Σ_j' ‖F_j - F_j'‖₂ of each output channel, in double precision."""
        found, kept = filters(problem.model, problem.acting), filters(problem.model, problem.mask)
        return Scores(rows={n: distances(f.double(), kept[n].any(1)) for n, f in found.items()})


def distances(f: Tensor, kept: Tensor) -> Tensor:
    """The sum of the Euclidean distances of each row of `f` (filters, entries) to the rows that `kept` marks: (filters,)."""
    squares = f.square().sum(1)
    sums = squares.unsqueeze(1) + squares.unsqueeze(0)
    apart = sums - 2.0 * f @ f.T
    return torch.where(apart > ROUNDING * sums, apart, 0.0).sqrt()[:, kept].sum(1)
