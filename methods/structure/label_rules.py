"""How operations of torch's core (ATen) carry labels of channels from their arguments to their results.

A rule takes the labels of the arguments and gives those of the results. An operation without a rule locks the channels that it reads,
so an unknown layer makes fewer channels removable, never a wrong coupling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from methods.structure.channel_labels import FIXED, NONE, Labels
from methods.structure.flow_modes import ELEMENTWISE

# Each element of the result is an element of an argument.
MOVES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "numpy_T", "slice", "select", "unsqueeze",
    "squeeze", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "cat", "stack", "roll", "flip", "repeat",
    "index", "index_select", "gather", "clone", "detach", "alias", "as_strided", "unfold", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "im2col", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "diagonal",
    "rot90", "tril", "triu", "lift_fresh", "copy", "embedding", "index_put", "slice_scatter", "select_scatter", "repeat_interleave",
    "upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d",
}  # fmt: skip
# Each element of the result has the label of the same element of the argument.
UNCHANGED = {"softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "_to_copy", "native_dropout"}
FACTORIES = {
    "zeros", "ones", "full", "empty", "arange", "linspace", "rand", "randn", "scalar_tensor", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_strided",
    "fill", "zero", "eye", "normal", "uniform", "bernoulli",
}  # fmt: skip
REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm", "norm", "prod",
    "median", "topk",
}  # fmt: skip
MATRIX = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # the position of the first factor
NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm")  # parts of names
SPATIAL = ("pool1d", "pool2d", "pool3d", "linear1d", "linear2d", "cubic2d", "sampler_2d", "sampler_3d")  # ends of names


@dataclass(frozen=True)
class Call:
    """A call of an operation.

    Attributes:
        func: the operation.
        name: its name without overload and without the underscore of in-place operations.
        args: its positional arguments.
        kwargs: its other arguments.
        operands: the labels of its floating-point tensors.
        results: the floating-point tensors that it returned.
        of: the labels of a tensor.
    """

    func: Any
    name: str
    args: Any
    kwargs: dict[str, Any]
    operands: list[Tensor]
    results: list[Tensor]
    of: Callable[[Any], Any]

    def value(self, name: str) -> Any:
        """An argument by its name in the schema; None without."""
        names = [a.name for a in self.func._schema.arguments]
        at = names.index(name) if name in names else len(self.args)
        return self.args[at] if at < len(self.args) else self.kwargs.get(name)


def results(labels: Labels, call: Call) -> list[Tensor] | None:
    """The labels of the results of an operation; None if there is no rule for it."""
    name, shape = call.name, call.results[0].shape
    if name in FACTORIES:
        return [torch.full(r.shape, float(NONE), dtype=torch.float64, device=r.device) for r in call.results]
    if not call.operands:
        return None
    if name in MOVES:
        return _moved(call)
    if name == "expand":
        return [_expanded(call)]
    if name == "constant_pad_nd":
        return [_padded(labels, call)]
    if name in UNCHANGED:
        return [labels.root(call.operands[0])]
    if torch.Tag.pointwise in call.func.tags or name in ELEMENTWISE or name in ("masked_fill", "_prelu_kernel"):
        return [labels.elementwise(call.operands, shape)]
    if name in REDUCTIONS:
        return _reduced(labels, call)
    if name in MATRIX:
        return [_matrix(labels, call)]
    if "scaled_dot_product" in name:
        q, k, v = call.operands[:3]
        return [
            labels.contracted(labels.contracted(q, k.mT), v),
            *(torch.full_like(r, FIXED, dtype=torch.float64) for r in call.results[1:]),
        ]
    if any(part in name for part in NORMS):
        return [_normalised(labels, call)] + [torch.full_like(r, FIXED, dtype=torch.float64) for r in call.results[1:]]
    if name.removesuffix("_with_indices").removesuffix("_aa").lstrip("_").endswith(SPATIAL):
        return [_by_channel(labels, call)]
    return None


def _moved(call: Call) -> list[Tensor]:
    args, kwargs = tree_map(call.of, (call.args, call.kwargs))
    if call.func._schema.is_mutable and 0 in args[0].stride():
        args = [args[0].contiguous(), *args[1:]]
    try:
        out = call.func(*args, **kwargs)
    except RuntimeError:  # the labels are laid out differently in memory
        if call.name not in ("view", "_unsafe_view"):
            raise
        out = args[0].reshape(call.results[0].shape)
    return [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]


def _expanded(call: Call) -> Tensor:
    """Repetition: what belongs to no channel follows the other operand along a new dimension."""
    x, shape = call.operands[0], call.results[0].shape
    old = x.view(*[1] * (len(shape) - x.dim()), *x.shape)
    if x.shape == shape or not bool((x == FIXED).any()):
        return x.expand(shape)
    return torch.where(old == FIXED, float(NONE), old).expand(shape)


def _padded(labels: Labels, call: Call) -> Tensor:
    """Padding along positions belongs to the channel of its neighbours; along channels it stays."""
    x, pad = call.operands[0], call.value("pad")
    dims = tuple(x.dim() - 1 - i // 2 for i in range(0, len(pad), 2) if pad[i] or pad[i + 1])
    _, several = labels.common(x, dims)
    return torch.constant_pad_nd(x, pad, float(FIXED if bool(several.any()) else NONE))


def _reduced(labels: Labels, call: Call) -> list[Tensor]:
    x, dims = call.operands[0], call.value("dim")
    if call.name == "topk":
        dims = -1 if dims is None else dims
        return [labels.common(x, (dims,))[0].expand(call.results[0].shape)]
    dims = [dims] if isinstance(dims, int) else dims
    dims = tuple(dims or range(x.dim()))
    found, several = labels.common(x, dims)
    if bool(several.any()) and labels.apart(x, dims):  # a sum of several channels for each channel of the result
        found = labels.joined(x, dims)
    return [found.reshape(r.shape) for r in call.results]


def _matrix(labels: Labels, call: Call) -> Tensor:
    at = MATRIX[call.name]
    out = labels.contracted(*call.operands[at : at + 2])
    return labels.elementwise([out, call.operands[0]], out.shape) if at else out


def _normalised(labels: Labels, call: Call) -> Tensor:
    """A norm with parameters for each channel."""
    x, *parameters = call.operands
    size = len(call.value("normalized_shape") or ()) if "layer" in call.name or "rms" in call.name else 0
    inner = tuple(range(x.dim() - size, x.dim())) if size else (1,)
    channels = labels.joined(x, tuple(d for d in range(x.dim()) if d not in inner)).squeeze()
    if (call.value("group") or 1) > 1 or size > 1:  # the removal of a channel moves the others to another group
        labels.lock(channels)
    for p in parameters:
        if p.numel() == channels.numel():
            labels.join(channels.view(-1), p.view(-1))
    return labels.root(x)


def _by_channel(labels: Labels, call: Call) -> Tensor:
    """Pooling and resizing: an operation over positions, for each channel by itself."""
    x, *others = call.operands
    for other in others:
        labels.lock(other)
    positions = next(int(c) for c in call.name if c in "123")
    found = labels.joined(x, tuple(range(x.dim() - positions, x.dim())))
    return found.expand(call.results[0].shape)
