"""The cost of a network: parameters, FLOPs, latency and memory."""

import contextlib
import copy
import statistics
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.trial.device import synchronize
from bench.trial.flops import layer_flops
from methods import Cost, Mask, prunable
from methods.core.modes import evaluating
from methods.granularity.nm import semi_structured

LATENCY_BATCHES = (1, 128)  # `export` reports both. A row has the last: a small network with one input measures only overhead.

LATENCY_TOLERANCE = 0.05  # largest difference between the requested and the reached fraction of latency; two timings never agree exactly


@dataclass(frozen=True)
class Dense:
    """Counts of a dense network.

    Attributes:
        prunable: the number of prunable weights.
        parameters: the number of all parameters.
        flops: FLOPs for one input.
        layers: name of each prunable weight -> FLOPs of its layer for one input.
    """

    prunable: int
    parameters: int
    flops: int
    layers: dict[str, int]


def dense(model: nn.Module, input_shape: tuple[int, ...], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Dense:
    """The counts of a dense network.

    Args:
        model: the network.
        input_shape: the shape of one input, without the batch.
        include, exclude: see `methods.prunable`.
    """
    flops, layers = layer_flops(model, input_shape, include, exclude)
    return Dense(sum(p.numel() for p in prunable(model, include, exclude).values()), parameters(model), flops, layers)


def parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class Size:
    """The counts of a pruned network, with the names of their columns.

    Attributes:
        parameters_kept: parameters that are not masked.
        flops_kept: FLOPs for one input.
        layers_collapsed: layers in which all weights are masked.
    """

    parameters_kept: int
    flops_kept: int
    layers_collapsed: int


def size(model: nn.Module, mask: Mask, flops: tuple[int, dict[str, int]]) -> Size:
    """The counts of a masked network. A layer's FLOPs are multiplied by its fraction of kept weights.

    Args:
        model: the network.
        mask: name -> bool mask of each prunable weight; True keeps.
        flops: the result of `bench.trial.flops.layer_flops` for this model.
    """
    kept = {n: int(m.sum()) for n, m in mask.items()}
    total, layers = flops
    saved = sum(layers[n] * (mask[n].numel() - k) / mask[n].numel() for n, k in kept.items())
    return Size(
        parameters_kept=parameters(model) - sum(mask[n].numel() - k for n, k in kept.items()),
        flops_kept=round(total - saved),
        layers_collapsed=sum(k == 0 for k in kept.values()),
    )


@torch.no_grad()
def latency(models: Sequence[nn.Module], inputs: Tensor, mask: Mask | None = None, seconds: float = 0.3) -> list[float]:
    """Median time of one forward pass of each model. The models take turns, so that a change of the machine's load affects all.

    On a GPU and with a mask that removes weights, all models are timed in half precision, and the Linear weights of the last
    model are in torch's semi-structured (2:4) format, if there is a kernel for them. On other devices a sparse pattern
    does not change the time.

    Args:
        models: the networks; they are not changed.
        inputs: one batch, (n, *input_shape).
        mask: the mask of the last model; None for a dense one.
        seconds: how long to measure after a warm-up. There are 10 to 200 passes of each model.

    Returns:
        Milliseconds for each model.
    """
    prepared = [copy.deepcopy(model).eval() for model in models]
    if inputs.device.type == "cuda" and mask is not None and not all(bool(m.all()) for m in mask.values()):
        prepared, inputs = [model.half() for model in prepared], inputs.half()
        with contextlib.suppress(RuntimeError, NotImplementedError):  # no kernel for this GPU
            semi_structured(prepared[-1], mask)
    times: list[list[float]] = [[] for _ in prepared]
    for _ in range(3):
        for model in prepared:
            _milliseconds(model, inputs)
    start = time.perf_counter()
    while len(times[0]) < 10 or (time.perf_counter() - start < seconds and len(times[0]) < 200):
        for model, measured in zip(prepared, times, strict=True):
            measured.append(_milliseconds(model, inputs))
    return [statistics.median(measured) for measured in times]


class _Alive(TorchDispatchMode):
    """The bytes of all tensors in use, now and at the peak. Sees each tensor that an operation makes, and when it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        self.peak = max(self.peak, self.now)
        return made

    def count(self, tensor: Tensor) -> None:
        """Count the storage of a tensor once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@torch.no_grad()
def peak_memory(model: nn.Module, inputs: Tensor) -> float:
    """Peak megabytes (10⁶ bytes) in one forward pass: weights, buffers, inputs and activations.

    The memory that an operation uses internally is not included.
    """
    alive = _Alive()
    with evaluating(model), alive:
        for tensor in (*model.parameters(), *model.buffers(), inputs):
            alive.count(tensor)
        model(inputs)
    return alive.peak / 1e6


def _milliseconds(model: nn.Module, inputs: Tensor) -> float:
    start = time.perf_counter()
    model(inputs)
    synchronize(inputs.device)
    return 1e3 * (time.perf_counter() - start)


def reached(match: str, dense: Dense, kept: int, size: Size, latencies: Mapping[str, float]) -> float | None:
    """The fraction removed of the quantity that sparsities are fractions of.

    Args:
        match: that quantity, one of `bench.spec.row.MATCHES`.
        dense: the counts of the dense network.
        kept: the number of weights that the mask keeps.
        size: the counts of the pruned network.
        latencies: the columns `latency_ms` and `dense_latency_ms`, if they were measured.

    Returns:
        The fraction; None if it was not measured.
    """
    left = {
        "weights": (kept, dense.prunable),
        "parameters": (size.parameters_kept, dense.parameters),
        "flops": (size.flops_kept, dense.flops),
        "latency": (latencies.get("latency_ms"), latencies.get("dense_latency_ms")),
    }
    present, whole = left[match]
    return None if present is None or not whole else 1.0 - present / whole


def check_latency(asked: float, reached: float) -> None:
    """Raise RuntimeError if the fraction of latency removed differs from the one asked for by more than `LATENCY_TOLERANCE`."""
    if abs(reached - asked) > LATENCY_TOLERANCE:
        raise RuntimeError(
            f"the latency was to be {100 * asked:.3g} % lower, but is {100 * abs(reached):.3g} % {'lower' if reached >= 0 else 'higher'}: "
            "removing channels does not shorten this network's forward pass as far, or other work disturbed the timing"
        )


def cost(match: str, whole: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """The quantity that sparsities are fractions of, if it is not the number of prunable weights.

    Args:
        match: "parameters", "flops", or "latency", the time of one batch, relative to that of `whole`, measured in turns with it.
        whole: the dense network.
        input_shape: the shape of one input, without the batch.

    Returns:
        A function of a network.
    """

    def measured(model: nn.Module) -> float:
        if match == "parameters":
            return float(parameters(model))
        if match == "flops":
            return float(layer_flops(model, input_shape)[0])
        inputs = torch.zeros(LATENCY_BATCHES[-1], *input_shape, device=next(model.parameters()).device)
        own, dense = latency([model, whole], inputs, seconds=0.1)
        return own / dense

    return measured
