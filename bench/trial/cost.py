"""What a network costs: parameters, FLOPs, latency, memory."""

import contextlib
import copy
import statistics
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.trial.flops import layer_flops
from methods import Cost, Mask, prunable
from methods.core.cutting import evaluating
from methods.granularity.nm import semi_structured

LATENCY_BATCHES = (1, 128)  # `export` says both; a row has the last, for one input may cost a small network nothing but overhead


@dataclass(frozen=True)
class Dense:
    """Counts of a network before anything is removed; `flops` for one input, `layers`: weight name -> FLOPs of its layer."""

    prunable: int
    parameters: int
    flops: int
    layers: dict[str, int]


def dense(model: nn.Module, input_shape: tuple[int, ...]) -> Dense:
    """Counts of a whole network."""
    flops, layers = layer_flops(model, input_shape)
    return Dense(sum(p.numel() for p in prunable(model).values()), parameters(model), flops, layers)


def parameters(model: nn.Module) -> int:
    """How many numbers it has to learn."""
    return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class Size:
    """What is left of a network: parameters, FLOPs for one input, and layers without a weight."""

    parameters_kept: int
    flops_kept: int
    layers_collapsed: int


def size(model: nn.Module, mask: Mask, flops: tuple[int, dict[str, int]]) -> Size:
    """Counts of a masked network; `flops`: those of the model from `layer_flops`. A layer's shrink with its share of kept weights."""
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
    """Milliseconds of one forward pass of each model on these inputs: the median of many, in turns, so that all see the same machine.

    About `seconds` of measuring after a warm-up, at least 10 passes each. On a GPU, networks with a 2:4 `mask` are timed
    in half precision, the last model with its Linear weights in torch's semi-structured form where it takes them; a sparse
    pattern is worth nothing to other devices, and the last model is then as fast as a dense one.
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
    """Bytes of the tensors that are alive, and their peak, from what every operation makes and what is let go of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        self.peak = max(self.peak, self.now)
        return made

    def hold(self, tensor: Tensor) -> None:
        """Count the memory behind a tensor, once, until it is given back."""
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
    """Megabytes alive at most in one forward pass: weights, buffers, inputs and what lies between, without an operation's own workspace."""
    alive = _Alive()
    with evaluating(model), alive:
        for tensor in (*model.parameters(), *model.buffers(), inputs):
            alive.hold(tensor)
        model(inputs)
    return alive.peak / 1e6


def _milliseconds(model: nn.Module, inputs: Tensor) -> float:
    start = time.perf_counter()
    model(inputs)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)
    return 1e3 * (time.perf_counter() - start)


def cost(match: str, whole: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """What sparsities are shares of, where not of prunable weights: the parameters or FLOPs of a network, or its latency.

    Latency is that of a batch, relative to the `whole` network's in the same moments: what slows the machine slows both.
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
