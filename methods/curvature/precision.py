"""Networks in half precision are scored in float32.

Sums over many batches stall in bfloat16 and gradients underflow in float16. The weights are therefore converted for the time of the
computation: it then equals that of a float32 network with the same, rounded weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.core.interface import Problem
from methods.core.tensorfloat import without_tf32

HALF = (torch.float16, torch.bfloat16)


def widened(value: Any) -> Any:
    """A tensor of half precision in float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


@contextmanager
def full_precision(problem: Problem) -> Iterator[Problem]:
    """Context in which weights, buffers and batches of half precision are float32, and autocast and TensorFloat-32 are off.

    Args:
        problem: the problem. At the end its weights have their type again; changes made inside are rounded to it.

    Yields:
        The problem with float32 batches; the same problem if nothing has half precision.
    """
    weights = [p for p in problem.model.parameters() if p.dtype in HALF]
    with torch.autocast(problem.device.type, enabled=False), without_tf32():
        if not weights:
            yield problem
            return
        buffers = [(m, key, b) for m in problem.model.modules() for key, b in m._buffers.items() if b is not None and b.dtype in HALF]
        stored = [p.data for p in weights]
        try:
            _convert(weights, buffers)
            yield replace(problem, batches=_Widened(problem))
        finally:
            for p, data in zip(weights, stored, strict=True):
                p.data = data.copy_(p.data)
            for module, key, buffer in buffers:
                module._buffers[key] = buffer


def _convert(weights: list[nn.Parameter], buffers: list[tuple[nn.Module, str, Tensor]]) -> None:
    for p in weights:
        p.data = p.data.float()
    for module, key, buffer in buffers:
        module._buffers[key] = buffer.float()


class _Widened:
    """The batches of a problem in float32."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __iter__(self) -> Iterator[Any]:
        for batch in self.problem.batches:
            yield tuple(map(widened, batch)) if isinstance(batch, (tuple, list)) else batch

    @property
    def samples(self) -> int:
        """N, the number of training samples."""
        return self.problem.samples

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch dimension."""
        return self.problem.input_shape
