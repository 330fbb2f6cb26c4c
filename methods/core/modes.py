"""Train and eval modes of a network while it is scored or trained."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from methods.core.prunable import prunable


@contextmanager
def own_modes(model: nn.Module) -> Iterator[None]:
    """Context in which train and eval modes may change; they are restored at the end."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module, weights: Mapping[str, nn.Parameter] | None = None) -> Iterator[None]:
    """Context with the model in eval mode, so that scoring does not change batch-norm statistics.

    The weights (None: all prunable ones) require gradients inside, so that frozen layers can be scored too. Modes and flags are
    restored at the end.
    """
    frozen = [p for p in (prunable(model) if weights is None else weights).values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        with own_modes(model), _as_written():
            model.eval()
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _as_written() -> AbstractContextManager[Any]:
    """Context in which compiled networks run as they are written: what a compiled call does inside cannot be watched."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
