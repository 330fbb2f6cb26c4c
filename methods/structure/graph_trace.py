"""The coupling of the channels of a network, read from its torch-pruning graph index by index.

`methods.granularity.channel` builds the graph; this module does not import torch-pruning.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from methods.core.prunable import prunable
from methods.structure.channel_groups import Axis, Coupling

Build = Callable[[nn.Module, Tensor], Any]  # (model, example inputs) -> torch_pruning.DependencyGraph


class _Index(NamedTuple):
    """An index that torch-pruning's index mappings transform; `root_idx`: the index that it comes from."""

    idx: int
    root_idx: int


class _Sets:
    """Disjoint sets of the elements (node, side, index) of a graph; coupled elements are joined."""

    def __init__(self) -> None:
        self.number: dict[tuple[int, str, int], int] = {}
        self.parent: list[int] = []

    def add(self, element: tuple[int, str, int]) -> bool:
        """Whether the element is new."""
        if element in self.number:
            return False
        self.number[element] = len(self.parent)
        self.parent.append(len(self.parent))
        return True

    def find(self, element: tuple[int, str, int]) -> int:
        """The number of its set."""
        i = self.number[element]
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i

    def join(self, a: tuple[int, str, int], b: tuple[int, str, int]) -> None:
        """Make their sets one."""
        self.parent[self.find(a)] = self.find(b)


class _Trace:
    """Torch-pruning's graph of a copy of a model, read element by element."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], build: Build) -> None:
        self.model = copy.deepcopy(model).eval()
        for p in self.model.parameters():
            p.requires_grad_(True)  # the trace follows gradients
        self.heads = [n for n, m in self.model.named_modules() if _is_attention(m)]
        for name in self.heads:
            attention = self.model.get_submodule(name)
            attention.forward = partial(_attention_stand_in, attention)  # type: ignore[method-assign]
        self.names = {id(m): n for n, m in self.model.named_modules()} | {id(p): n for n, p in self.model.named_parameters()}
        self.layers = [m for m in self.model.modules() if isinstance(m, (nn.Linear, _ConvNd))]
        self.graph = self._graph(input_shape, build)
        self.sets = _Sets()
        self.nodes: dict[int, Any] = {}
        self.locked: list[tuple[int, str, int]] = []

    def _graph(self, input_shape: tuple[int, ...], build: Build) -> Any:
        first = next(self.model.parameters())
        example = torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype)
        calls: dict[nn.Module, int] = {}

        def count(module: nn.Module, *_: Any) -> None:
            calls[module] = calls.get(module, 0) + 1

        for layer in self.layers:
            layer.register_forward_hook(count)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                graph = build(self.model, example)
            except Exception as error:  # networks raise all kinds of exceptions
                line = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise ValueError(f"the network's channels cannot be traced with inputs of shape {input_shape}: {line}") from error
        twice = [self.names[id(m)] for m, n in calls.items() if n > 1]
        if twice:
            raise ValueError(f"layer '{twice[0]}' is used more than once in a forward pass, so channels cannot be removed")
        for node in graph.module2node.values():
            if "split" in node.grad_fn.name().lower():
                _repair_split(node)
        return graph

    def side(self, node: Any, function: Any) -> str:
        """The dimension of a node that a pruning function acts on; "own" for nodes with only one."""
        pruner = self.graph.get_pruner_of_module(node.module)
        if pruner.prune_out_channels == pruner.prune_in_channels and not isinstance(node.module, _ConvNd):
            return "own"
        return "columns" if function == pruner.prune_in_channels != pruner.prune_out_channels else "rows"

    def follow(self, root: nn.Module) -> None:
        """Join everything that is coupled to the rows of a layer, directly or not."""
        node = self.graph.module2node[root]
        function = self.graph.get_pruner_of_module(root).prune_out_channels
        rows = [i for i in range(len(root.weight)) if self.sets.add((id(node), "rows", i))]  # type: ignore[arg-type]
        stack = [(node, function, rows)]
        while stack:
            node, function, indices = stack.pop()
            self.nodes[id(node)] = node
            side = self.side(node, function)
            if not node.outputs and side != "columns":  # the network's outputs
                self.locked += [(id(node), side, i) for i in indices]
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(function):
                    continue
                mapped: list[Any] = [_Index(i, i) for i in indices]
                for mapping in dependency.index_mapping:
                    mapped = mapping(mapped) if mapping is not None else mapped
                target, other = dependency.target, self.side(dependency.target, dependency.handler)
                new = []
                for index in mapped:
                    element = id(target), other, index.idx
                    if self.sets.add(element):
                        new.append(index.idx)
                    self.sets.join(element, (id(node), side, index.root_idx))
                if new:
                    stack.append((target, dependency.handler, new))


def traced(model: nn.Module, input_shape: tuple[int, ...], build: Build) -> Coupling:
    """Read the coupling of channels from the graph of a model; not yet checked by removal.

    Args:
        model: the network.
        input_shape: shape of one input, without the batch dimension.
        build: (model, example inputs) -> `torch_pruning.DependencyGraph`.

    Raises:
        ValueError: if the network cannot be traced, has tied weights or uses a layer twice.
    """
    _check_untied(model)
    trace = _Trace(model, input_shape, build)
    for layer in trace.layers:
        if layer in trace.graph.module2node:
            trace.follow(layer)
    for name in trace.heads:
        _join_heads(trace, trace.model.get_submodule(name))
    sets, node_of = trace.sets, trace.graph.module2node
    units: dict[int, int] = {}
    for layer in trace.layers:  # in the order of the network
        if layer in node_of:
            for i in range(len(layer.weight)):
                units.setdefault(sets.find((id(node_of[layer]), "rows", i)), len(units))
    sides = {(node, side): 0 for node, side, _ in sets.number}
    for node, side, index in sets.number:
        sides[node, side] = max(sides[node, side], index + 1)
    axes, locked = [], {units[sets.find(e)] for e in trace.locked}
    for (node, side), reached in sides.items():
        module = trace.nodes[node].module
        if id(module) not in trace.names:
            continue  # an operation, without parameters
        size, removable = _dimension(trace, trace.nodes[node], side)
        numbers = [units[sets.find((node, side, i))] if (node, side, i) in sets.number else -1 for i in range(max(size, reached))]
        if reached > size or not removable:  # the trace is inconsistent, or removal is not supported
            locked.update(numbers)
        axes.append(_axis(trace, trace.nodes[node], side, torch.tensor(numbers[:size])))
    free = torch.ones(len(units), dtype=torch.bool)
    free[[u for u in locked if u >= 0]] = False
    pools = _pools(len(units), [a.units for a in axes if a.kind == "rows"])
    read = torch.zeros(len(units), dtype=torch.bool)
    for axis in axes:
        if axis.kind == "columns":
            read[axis.units[axis.units >= 0]] = True
    shapes = {n: p.shape for n, p in prunable(model).items()}
    return Coupling(tuple(axes), shapes, pools, free & read, tuple(trace.heads))


def _repair_split(split: Any) -> None:
    """Map the indices of each part of a split to the indices that they come from.

    Torch-pruning expects the consumers in the order of the parts, but lists them in the order of its search. Autograd knows the parts.
    """
    offsets = split.module.offsets
    if offsets is None:
        return
    for consumer in {id(n): n for n in split.outputs}.values():
        parts = [number for function, number in consumer.grad_fn.next_functions if function is split.grad_fn]
        onward = [d for d in split.dependencies if d.target is consumer]
        back = [d for d in consumer.dependencies if d.target is split]
        for part, there, here in zip(parts, onward, back, strict=True):
            low, high = offsets[part], offsets[part + 1]
            there.index_mapping[0] = partial(_shifted, by=-low, low=low, high=high)
            here.index_mapping[0] = partial(_shifted, by=low, low=0, high=high - low)


def _shifted(indices: list[_Index], by: int, low: int, high: int) -> list[_Index]:
    return [_Index(i.idx + by, i.root_idx) for i in indices if low <= i.idx < high]


def _check_untied(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if owners.setdefault(id(p), name) != name:
            raise ValueError(f"'{owners[id(p)]}' and '{name}' are one tied weight; channels of such networks cannot be removed")


def _dimension(trace: _Trace, node: Any, side: str) -> tuple[int, bool]:
    """(size of a dimension, whether channels can be removed from it)."""
    module = node.module
    if isinstance(module, nn.Parameter):
        return module.shape[node.pruning_dim], True
    if isinstance(module, nn.Linear):
        return module.weight.shape[side == "columns"], True
    if isinstance(module, _ConvNd):
        depthwise = module.groups == module.in_channels == module.out_channels
        plain = not isinstance(module, _ConvTransposeNd) and (module.groups == 1 or depthwise)
        return module.weight.shape[0] if side == "rows" else module.weight.shape[1], plain
    size = int(trace.graph.get_out_channels(node) or 0)
    if isinstance(module, nn.GroupNorm):
        return size, module.num_groups == 1
    if isinstance(module, nn.LayerNorm):
        return size, len(module.normalized_shape) == 1
    return size, isinstance(module, (_BatchNorm, nn.PReLU))


def _axis(trace: _Trace, node: Any, side: str, units: Tensor) -> Axis:
    pruner = trace.graph.get_pruner_of_module(node.module)
    function = pruner.prune_in_channels if side == "columns" else pruner.prune_out_channels
    dim = node.pruning_dim if isinstance(node.module, nn.Parameter) else 0
    remove = _shrink_layer_norm if isinstance(node.module, nn.LayerNorm) else _remover(function, node.pruning_dim)
    return Axis(trace.names[id(node.module)], side, units, dim, remove)


def _shrink_layer_norm(norm: nn.LayerNorm, indices: list[int]) -> None:
    """Remove channels of a LayerNorm over one dimension. Torch-pruning 1.6.1 reorders the others, as it reads them from a set."""
    left = torch.ones(norm.normalized_shape[0], dtype=torch.bool)
    left[indices] = False
    norm.normalized_shape = (int(left.sum()),)
    for name, p in list(norm.named_parameters(recurse=False)):
        setattr(norm, name, nn.Parameter(p[left.to(p.device)]))


def _remover(function: Any, dim: int) -> Callable[[Any, list[int]], Any]:
    """A function that removes indices of a module: that of torch-pruning, which reads the dimension from an attribute."""

    def remove(owner: Any, indices: list[int]) -> Any:
        function.__self__.pruning_dim = dim
        return function(owner, indices)

    return remove


def _pools(n: int, rows: list[Tensor]) -> Tensor:
    """The pool of each of n units: units that share the rows of a layer, directly or indirectly, are in the same pool."""
    sets = _Sets()
    elements = [(0, "", u) for u in range(n)]
    for element in elements:
        sets.add(element)
    for line in rows:
        for unit in line.unique().tolist():
            sets.join(elements[unit], elements[int(line[0])])
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(sets.find(e), len(numbers)) for e in elements])


def _is_attention(module: Any) -> bool:
    """Whether a module is the usual self-attention: one layer for queries, keys and values, a projection, and heads."""
    qkv, proj = (getattr(module, name, None) for name in ("qkv", "proj"))
    heads, width = (getattr(module, name, None) for name in ("num_heads", "head_dim"))
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(heads, int) and isinstance(width, int)):
        return False
    return qkv.out_features == 3 * heads * width and proj.in_features == heads * width


def _attention_stand_in(attention: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """A replacement that couples channel i of queries, keys, values and projection, as attention does, and can be traced."""
    y = attention.qkv(x)
    q, k, v = y.flatten(0, -2).split(attention.proj.in_features, dim=1)
    outputs: Tensor = attention.proj((q + k + v).view(*y.shape[:-1], -1))
    return outputs


def _join_heads(trace: _Trace, attention: Any) -> None:
    """All channels of a head are one unit."""
    node = id(trace.graph.module2node[attention.qkv])
    for i in range(attention.qkv.out_features):
        head = i % attention.proj.in_features // attention.head_dim
        trace.sets.join((node, "rows", i), (node, "rows", head * attention.head_dim))
