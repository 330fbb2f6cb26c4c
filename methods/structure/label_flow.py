"""A mode in which the tensors of a forward pass carry labels of channels: see `methods.structure.channel_labels`.

Linear and Conv layers are recognised as functions that read their weight. Everything else is followed as the operations of torch's
core (ATen) that it consists of, whichever module or function calls them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from methods.structure import label_rules
from methods.structure.channel_labels import FIXED, NONE, Labels

PRODUCTS = {"linear", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))}


@dataclass
class Layer:
    """A Linear or Conv layer and the labels of its channels.

    Attributes:
        module: the layer.
        rows: the label of each output channel.
        columns: the label of each input channel; None before the first call.
        fixed: whether its channels must stay.
    """

    module: Any
    rows: Tensor
    columns: Tensor | None = None
    fixed: bool = False


class LabelFlow:
    """Context in which the tensors of a forward pass carry labels.

    Args:
        labels: the sets of labels.
        layers: the layers.
        owned: parameters and buffers whose elements get labels of their own when they are first read.
    """

    def __init__(self, labels: Labels, layers: Iterable[Layer], owned: Iterable[Tensor]) -> None:
        self.labels = labels
        self.layers = {id(layer.module.weight): layer for layer in layers}
        self.owned = {id(t) for t in owned}
        self.known: Any = WeakIdKeyDictionary()
        self.unknown: dict[str, None] = {}  # operations without a rule, in order
        self.paused = False
        self._modes: tuple[Any, ...] = (_Operations(self), _Functions(self))

    def __enter__(self) -> "LabelFlow":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def of(self, value: Any) -> Any:
        """The labels of a floating-point tensor; any other value as it is."""
        if not _labelled(value):
            return value
        found = self.known.get(value)
        if found is None or found.shape != value.shape:
            found = self.known[value] = self._first(value)
        return found

    def _first(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor that no operation made: a parameter, a buffer, an input, a constant."""
        layer = self.layers.get(id(tensor))
        if layer is not None:  # something other than the layer reads its weight
            layer.fixed = True
        if id(tensor) in self.owned:
            return self.labels.fresh(tensor.numel()).view(tensor.shape)
        return _full(FIXED if tensor.dim() else NONE, tensor)

    def set(self, tensor: Tensor, labels: Tensor) -> None:
        """Store labels. Those of a tensor that is written in place are overwritten, so that its views see them."""
        old = self.known.get(tensor)
        if old is not None and old.shape == labels.shape and old is not labels:
            if 0 not in old.stride():
                old.copy_(labels)
                return
            self.labels.join(old, labels)  # views may still have the old ones
        self.known[tensor] = labels

    def layer(self, layer: Layer, out: Tensor, x: Tensor, bias: Tensor | None) -> None:
        """Labels for the result of a layer, and the labels of the channels that it reads."""
        labels, module = self.labels, layer.module
        spatial = 0 if isinstance(module, nn.Linear) else len(module.kernel_size)
        at = x.dim() - 1 - spatial
        columns = self._columns(self.of(x), at)
        groups = getattr(module, "groups", 1)
        if 1 < groups == len(columns):  # depthwise: a channel has rows of its own
            labels.join(layer.rows, columns.repeat_interleave(len(layer.rows) // groups))
        elif groups > 1:
            labels.lock(torch.cat([columns, layer.rows]))
        if layer.columns is not None:
            labels.join(layer.columns, columns)
            columns = torch.where(columns == NONE, layer.columns, columns)
        layer.columns = columns
        if bias is not None:
            labels.join(self.of(bias), layer.rows)
        self.set(out, labels.root(layer.rows).view(-1, *[1] * spatial).expand(out.shape))

    def _columns(self, x: Tensor, at: int) -> Tensor:
        """The labels of the channels that a layer reads along one dimension of its inputs."""
        others = tuple(d for d in range(x.dim()) if d != at)
        if bool(self.labels.common(x, others)[1].any()) and not bool(self.labels.common(x, (at,))[1].any()):
            self.labels.lock(x)  # the dimension is one of positions: MLP-Mixer
            return x.new_full((x.shape[at],), float(FIXED))
        return self.labels.joined(x, others).flatten()

    def operation(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Labels for the results of an operation of ATen."""
        found = [t for t in tree_flatten(out)[0] if _labelled(t)]
        if not found:
            return  # comparisons and indices carry no channel
        name = func._schema.name.partition("::")[2].rstrip("_")
        operands = [self.of(t) for t in tree_flatten((args, kwargs))[0] if _labelled(t)]
        try:
            labels = label_rules.results(self.labels, label_rules.Call(func, name, args, kwargs, operands, found, self.of))
        except (RuntimeError, IndexError, TypeError):  # arguments of a kind that the rule does not know
            labels = None
        if labels is None:
            self.unknown[name] = None
            for operand in operands:
                self.labels.lock(operand)
            labels = [_full(FIXED, t) for t in found]
        for tensor, label in zip(found, labels, strict=True):
            self.set(tensor, label)


def _full(label: int, like: Tensor) -> Tensor:
    return torch.tensor(float(label), dtype=torch.float64, device=like.device).expand(like.shape)


def _labelled(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


class _Operations(TorchDispatchMode):
    def __init__(self, flow: LabelFlow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.flow.paused:
            with torch._C.DisableTorchFunction():
                self.flow.operation(func, args, kwargs or {}, out)
        return out


class _Functions(TorchFunctionMode):
    def __init__(self, flow: LabelFlow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flow = self.flow
        if getattr(func, "__name__", "") not in PRODUCTS or flow.paused:
            return func(*args, **kwargs)
        x, weight, bias = (args[i] if len(args) > i else kwargs.get(n) for i, n in enumerate(("input", "weight", "bias")))
        layer = flow.layers.get(id(weight))
        if layer is None:
            return func(*args, **kwargs)
        flow.paused = True
        try:
            out = func(*args, **kwargs)
            flow.layer(layer, out, x, bias)
        finally:
            flow.paused = False
        return out
