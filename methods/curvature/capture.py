"""Records the calls that a network makes with its parameters.

A `Capture` watches the calls of torch functions with a parameter (linear, convolution, normalisation, addition, multiplication,
expansion), whichever module makes them, and stores the other operand. Tensor hooks record the gradients of the outputs; they see
the values from before an in-place activation. Parameters need no gradient of their own, so the backward passes go through
activations only.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from methods.core.differentiation import repair
from methods.curvature.layer_calls import Elementwise, Product, Use


class Capture(TorchFunctionMode):
    """Context in which calls with given parameters are recorded.

    Attributes:
        names: id of a parameter -> its name.
        batch: number of samples.
        uses: the recorded calls, in order.
        leaves: outputs of the first calls, where the graph of gradients begins.
    """

    def __init__(self, names: dict[int, str], batch: int) -> None:
        super().__init__()
        self.names, self.batch = names, batch
        self.uses: list[Use] = []
        self.leaves: list[Tensor] = []

    def backward(self, outputs: Tensor, columns: list[Tensor], keep: bool) -> None:
        """One backward pass for each cotangent in `columns`; every use receives its gradient. `keep`: whether more passes follow."""
        for k, v in enumerate(columns if self.leaves else ()):
            keeps = keep or k < len(columns) - 1
            torch.autograd.grad(outputs, self.leaves, v, retain_graph=keeps, allow_unused=True)

    def name(self, tensor: Any) -> str | None:
        """The name of a parameter to record, otherwise None."""
        return self.names.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        repair(func, out)
        read = READERS.get(func)
        use = read(self, *args, **kwargs) if read and torch.is_grad_enabled() else None
        if use is None or out.shape[0] % self.batch:
            return out
        if not out.requires_grad:
            leaf = out.detach().requires_grad_()
            self.leaves.append(leaf)
            out = leaf.clone()  # an in-place activation may follow, which is not allowed on a leaf
        out.register_hook(use.receive)
        self.uses.append(use)
        return out


# Readers have the argument names of torch, because a network may pass any of them by keyword.


def _linear(c: Capture, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use | None:
    names = c.name(weight), c.name(bias)
    fits = any(names) and input.dim() > 1 and weight.dim() == 2 and input.shape[0] % c.batch == 0
    return Product(input, c.batch, weight.shape, *names) if fits else None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]  # type: ignore[return-value]


def _conv2d(
    c: Capture, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Use | None:  # fmt: skip
    names = c.name(weight), c.name(bias)
    if not any(names) or input.dim() != 4 or input.shape[0] != c.batch:
        return None
    kernel, dilation = tuple(weight.shape[2:]), _pair(dilation)
    if isinstance(padding, str):
        spread = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(s % 2 for s in spread):
            return None
        padding = [s // 2 for s in spread] if padding == "same" else 0
    return Product(
        input, c.batch, weight.shape, *names,
        kernel=kernel, stride=_pair(stride), padding=_pair(padding), dilation=dilation, groups=groups,
    )  # fmt: skip


def _batch_norm(
    c: Capture, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Use | None:  # fmt: skip
    names = c.name(weight), c.name(bias)
    if not any(names) or training or running_mean is None or running_var is None:
        return None
    shape = (1, -1, *[1] * (input.dim() - 2))
    mean, rate = running_mean.view(shape), torch.rsqrt(running_var + eps).view(shape)
    return Elementwise(input, c.batch, running_mean.shape, *names, channels_first=True, normalise=lambda v: (v - mean) * rate)


def _layer_norm(
    c: Capture, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Use | None:
    names = c.name(weight), c.name(bias)
    size = torch.Size(normalized_shape)
    return Elementwise(input, c.batch, size, *names, normalise=lambda v: F.layer_norm(v, size, eps=eps)) if any(names) else None


def _group_norm(
    c: Capture, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Use | None:
    names = c.name(weight), c.name(bias)
    if not any(names):
        return None
    size = torch.Size([input.shape[1]])
    return Elementwise(input, c.batch, size, *names, channels_first=True, normalise=lambda v: F.group_norm(v, num_groups, eps=eps))


def _operands(c: Capture, a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """(parameter, other operand) if one of the two is a parameter to record that broadcasts over the samples."""
    for p, other in ((a, b), (b, a)):
        if c.name(p) and isinstance(other, Tensor) and not c.name(other) and p.dim() <= other.dim():
            return (p, other) if p.dim() < other.dim() or p.shape[0] == 1 else None
    return None


def _add(c: Capture, input: Any, other: Any, **options: Any) -> Use | None:
    found = _operands(c, input, other)
    return Elementwise(None, c.batch, found[0].shape, None, c.name(found[0])) if found and not options else None


def _mul(c: Capture, input: Any, other: Any, **options: Any) -> Use | None:
    found = _operands(c, input, other)
    return Elementwise(found[1], c.batch, found[0].shape, c.name(found[0]), None) if found and not options else None


def _expand(c: Capture, p: Tensor, *sizes: Any, **options: Any) -> Use | None:
    size = sizes[0] if sizes and not isinstance(sizes[0], int) else sizes
    fits = c.name(p) and len(size) == p.dim() and p.dim() > 1 and p.shape[0] == 1 and size[0] == c.batch and not options
    return Elementwise(None, c.batch, p.shape, None, c.name(p)) if fits else None


READERS: dict[Any, Callable[..., Use | None]] = {
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.add: _add,
    Tensor.add: _add,
    torch.mul: _mul,
    Tensor.mul: _mul,
    Tensor.expand: _expand,
}
