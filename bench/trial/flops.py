"""FLOPs of one forward pass: one number for an architecture, on every torch release, device and kernel.

Matrix products and convolutions are counted, a multiply and an add as two operations, including those with the zeros of padding,
masks and pruned weights. Biases, norms, activations and pooling are not. Fused kernels hide the products inside them, and
which kernels are fused depends on release and device: here attention, LSTM and GRU always run as matrix products.
"""

import copy
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from methods import prunable

# Matrix products by the name of their operator, with the position of the first factor among its arguments; the second follows.
MATRIX_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1}
CONVOLUTIONS = ("convolution", "_convolution")
FUSED_ATTENTION = "_scaled_dot_product_"  # how the names of its operators begin; here only where a network insists on one
BACKENDS: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn, torch.backends.opt_einsum)

_lock = threading.RLock()  # the switches belong to the process: a second thread would restore what the first has set


def layer_flops(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, dict[str, int]]:
    """(all FLOPs, prunable weight -> FLOPs of its layer) for one input, in eval mode; the model stays as it was.

    A weight's FLOPs are those of all products it is a factor of: a layer called twice, or a weight shared by two layers, counts
    twice. Products without a prunable weight, as in attention and recurrent layers, are in the total only.
    """
    model = copy.deepcopy(model).eval()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    inputs = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    devices = [like.device] if like.device.type == "cuda" else []
    counter = _Counter(prunable(model), inputs)
    with _lock, torch.random.fork_rng(devices=devices), _plain_kernels(like.dtype), torch.no_grad(), counter:
        model(inputs)
    return counter.total, counter.layers


@contextmanager
def _plain_kernels(dtype: torch.dtype) -> Iterator[None]:
    """Fused kernels off, einsum contracting from left to right, `dtype` the default; every switch is restored."""
    mha = torch.backends.mha
    with sdpa_kernel(SDPBackend.MATH), ExitStack() as restore:
        restore.callback(torch.set_default_dtype, torch.get_default_dtype())
        restore.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        for backend in BACKENDS:
            restore.callback(setattr, backend, "enabled", backend.enabled)
            backend.enabled = False
        mha.set_fastpath_enabled(False)
        torch.set_default_dtype(dtype)
        yield


class _Counter(TorchDispatchMode):
    """Counts the products among all operations, in total and for the weight that is a factor."""

    def __init__(self, weights: dict[str, nn.Parameter], inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.layers = dict.fromkeys(weights, 0)
        self._sizes = {name: weight.numel() for name, weight in weights.items()}
        self._sources = _Sources(weights, inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")  # addmm_ is addmm in place
        if name not in MATRIX_PRODUCTS and name not in CONVOLUTIONS and func.namespace != "prim":
            with self:  # in inference mode composite operators arrive whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        flops, factors = _product(name, args, made)
        self._add(flops, factors)
        self._sources.follow(tree_leaves((args, kwargs)), tree_leaves(made), product=bool(factors))
        return made

    def _add(self, flops: int, factors: tuple[Tensor, ...]) -> None:
        """Count a product; weights that are concatenated in one factor share it by their sizes."""
        self.total += flops
        names = self._sources.of(factors)
        for name in names:
            self.layers[name] += flops * self._sizes[name] // sum(self._sizes[n] for n in names)


def _product(name: str, args: Any, made: Any) -> tuple[int, tuple[Tensor, ...]]:
    """FLOPs and factors of an operation that is a product; (0, ()) for any other."""
    if name in MATRIX_PRODUCTS:
        a, b = args[MATRIX_PRODUCTS[name] :][:2]
        return 2 * a.numel() * (b.shape[-1] if b.dim() > 1 else 1), (a, b)
    if name in CONVOLUTIONS:
        x, kernel, transposed = args[0], args[1], args[6]
        positions = math.prod((x if transposed else made).shape[2:])
        return 2 * x.shape[0] * positions * kernel.numel(), (x, kernel)
    if name.startswith(FUSED_ATTENTION):
        query, key, value = args[:3]
        return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]), (query, key, value)
    return 0, ()


class _Sources:
    """Which prunable weights a tensor is made from without the network's input.

    A transpose, a slice, a cast or a standardised kernel stands for its weight. A tensor is an activation where the input, or
    the result of a product, has a part in it. Tensors are known by their memory: storage -> weight names, None for activations.
    """

    def __init__(self, weights: dict[str, nn.Parameter], inputs: Tensor) -> None:
        self._known = WeakIdKeyDictionary({weight.untyped_storage(): {name} for name, weight in weights.items()})
        self._known[inputs.untyped_storage()] = None

    def of(self, tensors: Iterable[Any]) -> set[str]:
        """The weights that these tensors stand for."""
        return set().union(*(self._known.get(t.untyped_storage()) or () for t in _strided(tensors)))

    def follow(self, read: list[Any], made: list[Any], product: bool) -> None:
        """Note what the results of an operation are, from the tensors it has read."""
        activation = product or any(self._known.get(t.untyped_storage(), ()) is None for t in _strided(read))
        names = self.of(read)
        for storage in (t.untyped_storage() for t in _strided(made)):
            if activation or names:
                self._known[storage] = None if activation else names


def _strided(leaves: Iterable[Any]) -> list[Tensor]:
    """The tensors among them that have one piece of memory to be known by: no sparse ones."""
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
