"""Products of float32 in float32 on a GPU too, where results are compared or inverted."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """Context in which a GPU multiplies float32 numbers as such, not rounded to TensorFloat-32 (10 bits of mantissa).

    Convolutions use TensorFloat-32 by default. Its errors of about 1e-3 are harmless in training, but not in an inverse of a curvature
    or a comparison of two outputs up to rounding.
    """
    cudnn: Any = torch.backends.cudnn
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before, older = [switch.fp32_precision for switch in switches], None
    with suppress(RuntimeError):  # torch refuses to read its older switch if the newer ones were set and differ from it
        older = cudnn.allow_tf32
    try:
        if older is not None:
            cudnn.allow_tf32 = False
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        if older is not None:
            cudnn.allow_tf32 = older
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
