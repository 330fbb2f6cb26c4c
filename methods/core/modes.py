"""Train and eval modes of a network while it is scored or trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from methods.core.differentiation import as_written
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
        with own_modes(model), as_written():
            model.eval()
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
