"""A network as the sum of its paths from inputs to outputs.

With biases at zero, norms neutralised, the parameters' absolute values and inputs of ones, the outputs of a network whose units
pass positive numbers on unchanged sum to R, the sum over all paths of the products of the |weights| on them. Two things are read
off it: what share of R flows through a weight (`flow`, the criterion `synflow`), and whether a weight is on any path at all
(`effective_sparsity`), where values do not matter, so that it can be said whatever the activation.

Modes watch the calls of torch functions, as in `methods.capture`: the network is neither copied nor touched.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from methods.core.cutting import evaluating
from methods.core.interface import Mask, prunable

PRODUCTS = {"linear", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))}
NORMS = {"batch_norm", "instance_norm"}  # each channel by itself
ELEMENTWISE = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "softsign", "hardtanh",
    "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh", "threshold", "clamp", "clamp_min", "clamp_max", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
}  # fmt: skip
SMALL, LARGE = 2.0**-20, 2.0**20  # powers of two: scaling by them is exact
TOLERANCE = 1e-2  # what breaks them is far off; TF32, on a GPU, is not
SCALES = 1.0, 2.0**-480, 2.0**480, 2.0**-960, 2.0**960
LIMIT = 2.0**1000
_known: WeakKeyDictionary[nn.Module, dict[Any, str | None]] = WeakKeyDictionary()


# --- networks, seen by their paths -----------------------------------------------------------------------------------


class Flow(TorchFunctionMode):
    """Inside it, the outputs of a network in eval mode sum to R.

    `weights`: id of a parameter -> what stands for it in Linear and Conv layers. Their biases are dropped; any other parameter
    enters by its absolute value. Batch norm becomes the factor |γ|/√(σ² + ε) of each channel; where all γ of a layer are zero,
    as residual networks may start their branches, 1 stands for γ.

    `probe`: look for what has no paths. Then `fault` says how a weight or its input was not what R takes it for, and `breaks`
    names the functions f of activations (what requires a gradient) without f(c·x) = c·f(x).
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
        """The result of a function, `name` its name without the underscore of in-place ones."""
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
            self.fault = self.fault or "negative numbers reach a layer"
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
            self.fault = "its layers compute with something made of their weights"

    def _rescaled(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor | None:  # fmt: skip
        """None without running statistics: those of the input undo its scale."""
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
    """The network as a linear map: activations and norms of single channels are the identity, means stand for maxima.

    The gradient of a maximum goes to one of its inputs and would hide the paths through the others. `reach`: pass on only
    whether anything arrives, see `_Reach`.
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
    """1 where positive, else 0, of values and of gradients: in a network of any depth they neither vanish nor overflow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return (g > 0).to(g.dtype)


# --- where there are no paths ----------------------------------------------------------------------------------------


def undefined(model: nn.Module, input_shape: tuple[int, ...], view: type[Flow] = Flow) -> str | None:
    """Why a network is not the sum of its paths, in one line; None where it is. `input_shape`: without the batch.

    What counts is behaviour: that f(c·x) = c·f(x) for c > 0, of all functions that are no layers with weights and of the network
    itself, and of a linear view f(x + y) = f(x) + f(y), on random positive inputs and with random positive weights, so that it
    depends on the architecture alone; asked again of the same layers, the answer is remembered. Layer and group norm, attention,
    gates, class tokens and position embeddings break it, and under `Flow` any activation that bends on positive numbers.
    """
    known: dict[Any, str | None] = _known.setdefault(model, {})
    asked = (view, tuple(input_shape), *map(type, model.modules()))
    if asked not in known:
        known[asked] = _probed(model, input_shape, view)
    return known[asked]


def _probed(model: nn.Module, input_shape: tuple[int, ...], view: type[Flow]) -> str | None:
    parameters = prunable(model)
    device = next(iter(parameters.values())).device
    generator = torch.Generator().manual_seed(0)
    x, y = _random(torch.Size((2, *input_shape)), device, generator)
    inputs = torch.stack([x, y, x + y] if view.linear else [SMALL * x, LARGE * x]).requires_grad_()
    # Divided by the fan-in: outputs about as large as inputs, in a network of any width.
    weights = {id(p): _random(p.shape, device, generator) * (p.shape[0] / p.numel()) for p in parameters.values()}
    seen = view(weights, probe=True)
    try:
        with evaluating(model), torch.enable_grad(), seen:
            f = model(inputs).detach()
    except Exception as error:  # any network may raise anything, and it has no paths then
        return f"it does not take real numbers as inputs, or its weights by themselves ({' '.join(str(error).split())[:120]})"
    if seen.breaks:
        return f"its outputs are no sum over paths of products of weights: {', '.join([*dict.fromkeys(seen.breaks)][:5])}"
    if seen.fault:
        return seen.fault
    holds = _near(f[0] + f[1], f[2]) if view.linear else _near(f[0] / SMALL, f[1] / LARGE)
    if not holds:
        return "its outputs are no sum over paths of products of weights"
    return None if f.any() else "nothing flows from its inputs to its outputs"


def _random(shape: torch.Size, device: torch.device, generator: torch.Generator) -> Tensor:
    """Positive, of mean 1, and far from equal, so that what is largest among some is not always the same."""
    return (4.0 * torch.rand(shape, generator=generator) ** 3).to(device)


def _homogeneous(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether f(c·x) = c·f(x) in the activations among the arguments; True where there are none, or f gives no real numbers."""
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
    return _near(*found)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists and dictionaries with everything in it changed."""
    if type(value) in (tuple, list):
        return type(value)(_each(v, change) for v in value)
    return {k: _each(v, change) for k, v in value.items()} if type(value) is dict else change(value)


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=0.0)


# --- what is read off --------------------------------------------------------------------------------------------------


def flow(model: nn.Module, weights: Mapping[str, Tensor], input_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Name -> |w ∂R/∂w| / R, the share of R on paths through each weight, in double precision; zeros where R = 0.

    `model`: one where `undefined` is None. `weights`: those in place of the prunable ones, by name.

    In a very deep network R leaves the range of numbers. A factor on the inputs is one on R, in any architecture, and cancels
    in the share: powers of two are tried. (Rescaling single layers would change the ranking where paths go around layers.)
    Raises ValueError where none will do.
    """
    parameters = prunable(model)
    leaves = {n: w.detach().double().abs().requires_grad_() for n, w in weights.items()}
    ones = torch.ones(1, *input_shape, dtype=torch.float64, device=next(iter(leaves.values())).device)
    with evaluating(model), torch.enable_grad():
        for scale in SCALES:
            with Flow({id(p): leaves[n] for n, p in parameters.items()}):
                total = model(scale * ones).sum()
            if 1 / LIMIT < total < LIMIT:
                break
        else:
            if total != 0:
                raise ValueError("the sum over the network's paths leaves the range of double precision")
            return {n: torch.zeros_like(w) for n, w in leaves.items()}
    gradients = torch.autograd.grad(total, list(leaves.values()), 1 / total.detach(), materialize_grads=True)
    return {n: g * leaves[n].detach() for n, g in zip(leaves, gradients, strict=True)}


def effective_sparsity(model: nn.Module, mask: Mask, input_shape: tuple[int, ...]) -> float | None:
    """The fraction of the prunable weights that are masked, or on no path of kept weights from an input to an output.

    None where paths are not defined: layer or group norm, attention, gates, tokens, anything that `undefined` finds. Activations
    do not matter, and norms of single channels do not. Constants are no inputs: a unit that only its bias reaches is on no path.
    A weight of a convolution that meets nothing but padding, as most do in 3x3 kernels on maps of one pixel, is on none either.

    `mask`: name -> bool tensor, one for each prunable weight; `input_shape`: without the batch. The model is left as it is.
    """
    if undefined(model, input_shape, Connections) is not None:
        return None
    leaves = {id(p): mask[n].to(p.device, torch.float64).requires_grad_() for n, p in prunable(model).items()}
    device = next(iter(leaves.values())).device
    with evaluating(model), torch.enable_grad(), Connections(leaves, reach=True):
        total = model(torch.ones(1, *input_shape, dtype=torch.float64, device=device)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    live = sum(int((m * g > 0).sum()) for m, g in zip(leaves.values(), gradients, strict=True))
    return 1.0 - live / sum(m.numel() for m in leaves.values())
