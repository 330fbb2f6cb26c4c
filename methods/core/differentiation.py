"""Contexts in which torch differentiates a network correctly: without checkpointing, and with repairs of three functions.

- The backward pass of `batch_norm` and `instance_norm` on the CPU reads the gradient in the wrong order if there is one sample and
  the gradient lies in memory with channels last, as after `flatten(2).transpose(1, 2)` (seen in torch 2.15). A contiguous copy of
  the gradient avoids it.
- `hardsigmoid` has no second derivative in torch. It is computed from `relu6`, which has one.
- A reentrant checkpoint (`torch.utils.checkpoint`, `use_reentrant=True`) cannot be differentiated by `torch.autograd.grad`. The
  function is called directly, which needs more memory and has the same derivative.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

NORMS = (F.batch_norm, F.instance_norm)
_entered: list[None] = []  # one entry for each context in which checkpoints are called directly; they may overlap


def repair(func: Any, out: Any) -> None:
    """Make the gradient of a normalised single sample contiguous before torch's backward pass reads it."""
    if func in NORMS and out.shape[0] == 1 and out.requires_grad:
        out.register_hook(Tensor.contiguous)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    value = F.relu6(input + 3.0) / 6.0
    return input.copy_(value) if inplace else value


class Repairs(TorchFunctionMode):
    """Context in which `repair` acts. `twice`: whether functions without a second derivative are replaced by ones that have it."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.replaced: dict[Any, Callable[..., Tensor]] = {F.hardsigmoid: _hardsigmoid} if twice else {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.replaced.get(func, func)(*args, **(kwargs or {}))
        repair(func, out)
        return out


def as_written() -> AbstractContextManager[Any]:
    """Context in which compiled networks run as they are written: what a compiled call does inside cannot be watched."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def differentiable(model: nn.Module, twice: bool = False) -> Iterator[None]:
    """Context in which the network can be differentiated, also where gradients are switched off outside.

    Args:
        model: the network.
        twice: whether second derivatives are needed too. Fused attention and cuDNN have none.
    """
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())  # cuDNN differentiates these in train mode only
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_checkpoints_called_directly())
        stack.enter_context(as_written())
        if twice:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def differentiable_once_only(value: Tensor) -> bool:
    """Whether a gradient in the graph of `value` cannot be differentiated: torch would leave out its part without an error."""
    seen, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            if node.name() == "torch::autograd::Error":
                return True
            seen.add(node)
            left += [following for following, _ in node.next_functions]
    return False


@contextmanager
def _checkpoints_called_directly() -> Iterator[None]:
    def call(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)

    _entered.append(None)
    CheckpointFunction.apply = staticmethod(call)
    try:
        yield
    finally:
        _entered.pop()
        if not _entered:
            del CheckpointFunction.apply  # the inherited method shows again
