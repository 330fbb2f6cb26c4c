"""The FLOPs of one forward pass. An architecture has the same number on every torch release, device and kernel.

Matrix products and convolutions are counted, with two operations for a multiplication and an addition. Products with zeros
(of padding, masks and pruned weights) are included. Biases, norms, activations and pooling are not counted. A fused kernel hides
its products, and the release and the device decide which kernels are fused. Attention, LSTM and GRU therefore run unfused here.
"""

import copy
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
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
FUSED_ATTENTION = "_scaled_dot_product_"  # how the names of its operators begin; reached only if a network demands one
BACKENDS: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn, torch.backends.opt_einsum)

_lock = threading.RLock()  # the switches are global: a second thread would restore the values that the first one set


def layer_flops(
    model: nn.Module, input_shape: tuple[int, ...], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[int, dict[str, int]]:
    """Count the FLOPs of a network for one input, in eval mode. The model is not changed.

    The FLOPs of a weight are those of all products with it as a factor: a layer that is called twice, or a weight shared by
    two layers, counts twice. Products without a prunable weight, as inside attention, count in the total only.

    Args:
        model: the network.
        input_shape: the shape of one input, without the batch.
        include, exclude: see `methods.prunable`.

    Returns:
        The total, and name of each prunable weight -> FLOPs of its layer.
    """
    model = copy.deepcopy(model).eval()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    inputs = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    devices = [like.device] if like.device.type == "cuda" else []
    counter = _Counter(prunable(model, include, exclude), inputs)
    with _lock, torch.random.fork_rng(devices=devices), _plain_kernels(like.dtype), torch.no_grad(), counter:
        model(inputs)
    return counter.total, counter.layers


@contextmanager
def _plain_kernels(dtype: torch.dtype) -> Iterator[None]:
    """Without fused kernels, with einsum from left to right and this default `dtype`; every switch is restored."""
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
    """Counts the FLOPs of all products, in total and for each weight that is a factor."""

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
            with self:  # in inference mode composite operators are not yet decomposed
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        flops, factors = _product(name, args, made)
        self._add(flops, factors)
        self._sources.follow(tree_leaves((args, kwargs)), tree_leaves(made), product=bool(factors))
        return made

    def _add(self, flops: int, factors: tuple[Tensor, ...]) -> None:
        """Count a product. Weights that are concatenated in one factor share its FLOPs in proportion to their sizes."""
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
    """Which prunable weights a tensor was computed from, if neither the network's input nor a product was used.

    A transpose, a slice, a cast or a standardised kernel counts as its weight. A tensor that depends on the input or on the
    result of a product is an activation. Tensors are identified by their storage: storage -> weight names, None for activations.
    """

    def __init__(self, weights: dict[str, nn.Parameter], inputs: Tensor) -> None:
        self._known = WeakIdKeyDictionary({weight.untyped_storage(): {name} for name, weight in weights.items()})
        self._known[inputs.untyped_storage()] = None

    def of(self, tensors: Iterable[Any]) -> set[str]:
        """The names of the weights that these tensors were computed from."""
        return set().union(*(self._known.get(t.untyped_storage()) or () for t in _strided(tensors)))

    def follow(self, read: list[Any], made: list[Any], product: bool) -> None:
        """Record from which weights the results of an operation were computed, given the tensors it read."""
        activation = product or any(self._known.get(t.untyped_storage(), ()) is None for t in _strided(read))
        names = self.of(read)
        for storage in (t.untyped_storage() for t in _strided(made)):
            if activation or names:
                self._known[storage] = None if activation else names


def _strided(leaves: Iterable[Any]) -> list[Tensor]:
    """The tensors that have one storage, so no sparse ones."""
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
