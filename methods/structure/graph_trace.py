"""The coupling of the channels of a network, found by a forward pass in which every tensor carries labels of channels."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_flatten

from methods.core.prunable import remedy, roles
from methods.structure.channel_groups import Axis, Coupling
from methods.structure.channel_labels import Labels
from methods.structure.label_flow import LabelFlow, Layer

# The matrices of these modules have channels in an order that the module's own code defines; what enters or leaves them stays.
OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)


class _Trace:
    """One forward pass of a copy of a model."""

    def __init__(self, model: nn.Module, weights: set[str], input_shape: tuple[int, ...], integers: bool) -> None:
        self.model, self.integers = _copy(model).eval(), integers
        self.parameters = dict(self.model.named_parameters())
        first = next(self.model.parameters())
        self.labels = Labels(first.device)
        self.layers: dict[str, Layer] = {}
        names = {id(p): n for n, p in self.parameters.items()}
        for module in self.model.modules():
            if isinstance(module, (nn.Linear, _ConvNd)) and names.get(id(module.weight), "") not in ("", *self.layers):
                name = names[id(module.weight)]
                self.layers[name] = Layer(module, self.labels.fresh(_rows(module)), fixed=name not in weights)
        self.heads = [n for n, m in self.model.named_modules() if _has_heads(m)]
        for name in self.heads:
            self._join_heads(self.model.get_submodule(name))
        opaque = {id(p) for m in self.model.modules() if isinstance(m, OPAQUE) for p in m.parameters(recurse=False)}
        taken = opaque | {id(self.parameters[n]) for n in {*self.layers, *weights} if n in self.parameters}
        tensors = [*self.parameters.items(), *self.model.named_buffers()]
        self.owned = {n: t for n, t in tensors if id(t) not in taken and t.is_floating_point()}
        self.flow = LabelFlow(self.labels, self.layers.values(), self.owned.values())
        self._run(torch.zeros(1, *input_shape, device=first.device, dtype=torch.long if integers else first.dtype))

    def _join_heads(self, attention: Any) -> None:
        """All channels of a head are one unit."""
        layer = next((layer for layer in self.layers.values() if layer.module is attention.qkv), None)
        if layer is not None:
            heads = layer.rows.view(3, attention.num_heads, attention.head_dim)
            self.labels.join(heads, heads[:1, :, :1])

    @torch.no_grad()
    def _run(self, example: Tensor) -> None:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # whole transformer layers as one operation
        try:
            with self.flow:
                outputs = self.model(example)
        except Exception as error:  # networks raise all kinds of exceptions
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ValueError(f"the network's channels cannot be traced with inputs of shape {tuple(example.shape[1:])}: {line}") from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        for output in tree_flatten(outputs)[0]:
            if isinstance(output, Tensor):
                self.labels.lock(self.flow.of(output))
        for layer in self.layers.values():
            if layer.fixed and layer.columns is not None:
                self.labels.lock(torch.cat([layer.rows, layer.columns]))


def traced(model: nn.Module, weights: dict[str, torch.Size], input_shape: tuple[int, ...]) -> Coupling:
    """Find which channels of a model are removed together; not yet checked by removal.

    Args:
        model: the network; it is not changed.
        weights: name -> shape of the weights to prune. Channels of other Linear and Conv layers stay.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        ValueError: if the network cannot be copied, or does not accept inputs of this shape.
    """
    trace = _traced(model, set(weights), input_shape)
    called = {n: layer for n, layer in trace.layers.items() if layer.columns is not None}
    if not called:
        raise ValueError("no channel of this network can be removed: it calls no Linear or Conv layer")
    number = _numbered(trace.labels, [layer.rows for layer in called.values()])
    units = int(number.max()) + 1
    axes: list[Axis] = []
    rows: list[Tensor] = []
    for name, layer in called.items():
        axes += _of_layer(name, layer, number)
        rows.append(number[layer.rows.long()])
    locked = number[trace.labels.locked.nonzero().squeeze(1)]
    for name, tensor in trace.owned.items():
        if tensor in trace.flow.known:
            found, inconsistent = _of_tensor(name, number[trace.flow.of(tensor).long()])
            axes += found
            locked = torch.cat([locked, inconsistent])
    free, read = torch.ones(units, dtype=torch.bool), torch.zeros(units, dtype=torch.bool)
    free[locked[locked >= 0].cpu()] = False
    for axis in axes:
        if axis.kind == "columns":
            read[axis.units[axis.units >= 0]] = True
    return Coupling(tuple(axes), weights, _pools(units, rows), free & read, tuple(trace.heads), trace.integers, tuple(trace.flow.unknown))


def _traced(model: nn.Module, weights: set[str], input_shape: tuple[int, ...]) -> _Trace:
    """The trace of real inputs, or of integers if the network does not accept these and looks up embeddings."""
    try:
        return _Trace(model, weights, input_shape, integers=False)
    except ValueError:
        if not any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in model.modules()):
            raise
        return _Trace(model, weights, input_shape, integers=True)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # tensors that are results of computations, e.g. after `weight_norm`
        for place in roles(model):
            if place.hooks:
                why = f"the {place.attribute} of {place.label} is computed in every forward pass: {remedy(place)}"
                raise ValueError(f"the network cannot be copied, because {why}") from error
        raise ValueError(f"the network cannot be copied: {str(error).splitlines()[0]}") from error


def _rows(module: Any) -> int:
    """The number of output channels."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _numbered(labels: Labels, rows: list[Tensor]) -> Tensor:
    """Label -> number of its unit, in the order of the rows of the network; -1 for labels of no row."""
    roots = labels.root(torch.cat(rows)).long().tolist()
    units: dict[int, int] = {}
    for root in roots:
        units.setdefault(root, len(units))
    number = torch.full_like(labels.parent, -1)
    number[list(units)] = torch.tensor(list(units.values()), device=number.device)
    return number[labels.parent]


def _of_layer(name: str, layer: Layer, number: Tensor) -> list[Axis]:
    """The rows and columns of a weight; a depthwise convolution has no columns."""
    assert layer.columns is not None
    swapped = isinstance(layer.module, _ConvTransposeNd)
    rows, columns = number[layer.rows.long()].cpu(), number[layer.columns.long()].cpu()
    depthwise = getattr(layer.module, "groups", 1) > 1
    if depthwise and swapped:  # (in, out/groups, ...)
        return [Axis(name, 0, "columns", columns)]
    axes = [Axis(name, int(swapped), "rows", rows)]
    return axes if depthwise else [*axes, Axis(name, int(not swapped), "columns", columns)]


def _of_tensor(name: str, units: Tensor) -> tuple[list[Axis], Tensor]:
    """(the dimension of a tensor along which its units lie, the units that lie along no single dimension)."""
    none = units.new_empty(0)
    if not bool((units >= 0).any()):
        return [], none
    for dim in range(units.dim()):
        lines = units.movedim(dim, 0).flatten(1) if units.dim() > 1 else units.unsqueeze(1)
        if bool((lines == lines[:, :1]).all()):
            return [Axis(name, dim, "own", lines[:, 0].cpu())], none
    return [], units.flatten()


def _pools(units: int, rows: list[Tensor]) -> Tensor:
    """The pool of each unit: units that share the rows of a layer, directly or indirectly, are in the same pool."""
    sets = Labels(torch.device("cpu"))
    labels = sets.fresh(units)
    for line in rows:
        sets.join(labels[line.cpu()], labels[line[:1].cpu()])
    roots = sets.root(labels).tolist()
    numbers: dict[float, int] = {}
    return torch.tensor([numbers.setdefault(r, len(numbers)) for r in roots])


def _has_heads(module: Any) -> bool:
    """Whether a module looks like self-attention with one layer for queries, keys and values. Removal is tried before it is used."""
    qkv, proj = (getattr(module, name, None) for name in ("qkv", "proj"))
    heads, width = (getattr(module, name, None) for name in ("num_heads", "head_dim"))
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(heads, int) and isinstance(width, int)):
        return False
    return qkv.out_features == 3 * heads * width and proj.in_features == heads * width
