"""Modes in which a network computes the sum over its paths: see `methods.structure.path_flow`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PRODUCTS = {"linear", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))}
NORMS = {"batch_norm", "instance_norm"}  # each channel by itself
ELEMENTWISE = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "softsign", "hardtanh",
    "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh", "threshold", "clamp", "clamp_min", "clamp_max", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
}  # fmt: skip
SMALL, LARGE = 2.0**-20, 2.0**20  # powers of two: scaling by them is exact
TOLERANCE = 1e-2  # violations are much larger; the error of TF32 on a GPU is smaller


class Flow(TorchFunctionMode):
    """Context in which the outputs of a network in eval mode sum to R.

    `weights`: id of a parameter -> the tensor used for it in Linear and Conv layers. Their biases are dropped; of any other parameter
    the absolute value is used. Batch norm becomes the factor |γ|/√(σ² + ε) of each channel; if all γ of a layer are zero, as at
    the start of residual branches, γ = 1 is used.

    `probe`: look for operations without paths. `fault` then says which assumption on a weight or its input is violated, and `breaks`
    contains the functions f of activations (tensors that require a gradient) for which f(c·x) = c·f(x) does not hold.
    """

    linear = False

    def __init__(self, weights: Mapping[int, Tensor], probe: bool = False) -> None:
        super().__init__()
        self.weights, self.probe = weights, probe
        self.dtype = next(iter(weights.values())).dtype
        self.fault = ""
        self.breaks: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, getattr(func, "__name__", "").rstrip("_"), args, kwargs or {})

    def call(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of a function; `name`: its name without the trailing underscore of in-place functions."""
        if name in PRODUCTS:
            return self.product(func, *args, **kwargs)
        scaled = self._rescaled(*args, **kwargs) if name == "batch_norm" else None
        if scaled is not None:
            return scaled
        if name == "__get":  # an attribute: a shape, a device, a transpose
            out = func(*args, **kwargs)
            self._use(args[0], isinstance(out, Tensor))
            return out
        args, kwargs = _each((args, kwargs), self._positive)
        if self.probe and not _homogeneous(func, args, kwargs):
            self.breaks.append(name)
        return func(*args, **kwargs)

    def product(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """A Linear or Conv layer, without its bias."""
        if self.probe and input.min() < -TOLERANCE * input.max():
            self.fault = self.fault or "a layer has negative inputs"
        own = self.weights.get(id(weight))
        w = self._positive(weight) if own is None else own
        out: Tensor = func(input.to(w.dtype), w, None, *args, **kwargs)
        return out

    def _positive(self, value: Any) -> Any:
        if not isinstance(value, nn.Parameter):
            return value
        self._use(value, True)
        return value.detach().abs().to(self.dtype)

    def _use(self, value: Any, computed: bool) -> None:
        if computed and id(value) in self.weights:
            self.fault = "its layers transform their weights before using them"

    def _rescaled(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor | None:  # fmt: skip
        """Batch norm as a factor; None without running statistics, because statistics of the input undo its scale."""
        if training or running_var is None:
            return None
        scale = torch.rsqrt(running_var.to(self.dtype) + eps)
        if weight is not None and weight.any():
            scale = scale * weight.detach().abs()
        return input * scale.view(1, -1, *[1] * (input.dim() - 2))


def _mean_over_windows(
    mean: Callable[..., Tensor], input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    if dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        raise ValueError("dilated max pooling")
    return mean(input, kernel_size, stride or kernel_size, padding, ceil_mode)


def _mean_to_size(mean: Callable[..., Tensor], input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    return mean(input, output_size)


MEANS: dict[str, Callable[..., Tensor]] = {
    "amax": torch.mean,
    **{f"max_pool{d}d": partial(_mean_over_windows, getattr(F, f"avg_pool{d}d")) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": partial(_mean_to_size, getattr(F, f"adaptive_avg_pool{d}d")) for d in (1, 2, 3)},
}


class Connections(Flow):
    """The network as a linear map: activations and norms of single channels become the identity, maxima become means.

    The gradient of a maximum goes to one of its inputs only and would hide the paths through the others. `reach`: replace values by
    whether they are positive, see `_Reach`.
    """

    linear = True

    def __init__(self, weights: Mapping[int, Tensor], probe: bool = False, reach: bool = False) -> None:
        super().__init__(weights, probe)
        self.reach = reach

    def call(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """See `Flow.call`."""
        if name in ELEMENTWISE or name in NORMS:
            return args[0] if args else kwargs["input"]
        if name in MEANS:
            return MEANS[name](*args, **kwargs)
        return super().call(func, name, args, kwargs)

    def product(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """See `Flow.product`."""
        out = super().product(func, input, weight, bias, *args, **kwargs)
        return _Reach.apply(out) if self.reach else out  # type: ignore[no-untyped-call,no-any-return]


class _Reach(torch.autograd.Function):
    """1 for positive values and gradients, otherwise 0, so that they neither vanish nor overflow in deep networks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return (g > 0).to(g.dtype)


def _homogeneous(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether f(c·x) = c·f(x) for the activations among the arguments; True without activations or if f returns no real numbers."""
    activations, found = 0, []

    def scaled(value: Any) -> Any:
        nonlocal activations
        if not (isinstance(value, Tensor) and value.requires_grad):
            return value
        activations += 1
        return value.detach() * c

    for c in (SMALL, LARGE):
        a, k = _each((args, kwargs), scaled)
        out = func(*a, **k)
        if not activations or not isinstance(out, Tensor) or not out.is_floating_point():
            return True
        found.append(out / c)
    return near(*found)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested tuples, lists and dictionaries with `change` applied to every element."""
    if type(value) in (tuple, list):
        return type(value)(_each(v, change) for v in value)
    return {k: _each(v, change) for k, v in value.items()} if type(value) is dict else change(value)


def near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=0.0)
