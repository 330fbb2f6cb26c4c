"""The batch norms of a network's channels, and scores of units as scores of output channels."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.core.interface import Values
from methods.structure.channel_groups import Coupling


def batch_norms(model: nn.Module, coupling: Coupling) -> Iterator[tuple[_BatchNorm, Tensor]]:
    """Each batch norm with a scale and a shift that normalises units, with the unit of each of its channels (-1: none)."""
    axes = {axis.owner: axis for axis in coupling.axes if axis.kind == "own" and axis.dim == 0}
    for path, module in model.named_modules():
        axis = axes.get(f"{path}.weight".lstrip("."))
        if isinstance(module, _BatchNorm) and axis is not None:
            yield module, axis.units


def rows_of_units(coupling: Coupling, scores: Tensor, scored: Tensor) -> Values:
    """Write scores of units as scores of output channels whose sum over the rows of a unit is its score.

    Args:
        coupling: the units.
        scores: the score of each unit.
        scored: whether each unit has one.

    Returns:
        Name of a weight -> (outputs,), float64: the score at the first row of a unit, zero at its other rows. Weights with output
        channels of no scored unit are left out.
    """
    rows: Values = {}
    left = scores.double().cpu().clone()
    for axis in coupling.axes:
        if axis.kind != "rows" or axis.owner not in coupling.shapes or not bool((axis.units >= 0).all() and scored[axis.units].all()):
            continue
        first = torch.zeros(len(axis.units), dtype=torch.bool)
        seen: set[int] = set()
        for index, unit in enumerate(axis.units.tolist()):
            first[index] = unit not in seen
            seen.add(unit)
        rows[axis.owner] = torch.where(first, left[axis.units], 0.0)
        left[axis.units] = 0.0
    return rows
