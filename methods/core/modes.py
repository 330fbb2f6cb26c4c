"""The state of a network while it is scored or trained: train and eval modes, buffers, and its return after an error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from methods.core.differentiation import as_written
from methods.core.prunable import prunable

LAZY = (UninitializedParameter, UninitializedBuffer)


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
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Context in which the network may change; if it ends in an exception, modules, parameters, buffers and gradients are as before."""
    plain = [m for m in model.modules() if not isinstance(m, (torch.jit.ScriptModule, LazyModuleMixin))]
    before = [(m, type(m), dict(m._modules), dict(m._parameters), dict(m._buffers)) for m in plain]
    tensors = [t for t in chain(model.parameters(), model.buffers()) if not isinstance(t, LAZY)]
    values = [(t, t.detach().clone(), t.grad) for t in tensors]
    try:
        yield
    except Exception:
        for module, kind, modules, parameters, buffers in before:
            if type(module) is not kind:  # torch.nn.utils.parametrize gives a module a class of its own
                module.__class__ = kind
            module._modules, module._parameters, module._buffers = modules, parameters, buffers
        _write_back(values)
        raise


@contextmanager
def _own_buffers(model: nn.Module) -> Iterator[None]:
    """Context in which forward passes may change buffers, e.g. the ranges that quantisation observes; they are restored at the end."""
    buffers = [b for b in model.buffers() if not isinstance(b, LAZY)]
    values = [(b, b.detach().clone(), b.grad) for b in buffers]
    try:
        yield
    finally:
        _write_back(values)


@torch.no_grad()
def _write_back(values: list[tuple[Tensor, Tensor, Tensor | None]]) -> None:
    """Give tensors their earlier values, each with its gradient."""
    for t, value, grad in values:
        if not t.is_inference():  # cannot have changed
            if t.shape != value.shape:  # a buffer that the first forward pass sizes
                t.resize_(value.shape)
            t.copy_(value)
            t.grad = grad


@contextmanager
def evaluating(model: nn.Module, weights: Mapping[str, nn.Parameter] | None = None) -> Iterator[None]:
    """Context with the model in eval mode, so that scoring does not change batch-norm statistics.

    The weights (None: all prunable ones) require gradients inside, so that frozen layers can be scored too. Modes and flags are
    restored at the end, and so are the buffers.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for p in (prunable(model) if weights is None else weights).values():
        p.requires_grad_(True)
    try:
        with own_modes(model), _own_buffers(model), as_written():
            model.eval()
            yield
    finally:
        for p, flag in flags:
            if p.requires_grad != flag:
                p.requires_grad_(flag)
