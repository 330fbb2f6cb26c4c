"""The weights that can be pruned, decided by their role: a matrix or kernel that multiplies activations.

These are the weights of Linear, convolution, transposed convolution and Bilinear layers, the matrices of recurrent layers and cells,
and the input projections of `nn.MultiheadAttention`, of the first and the last layer too. Embeddings are looked up, not multiplied,
and stay; so do biases, norms and tokens. `include` and `exclude` change the choice by name.

If a layer computes its weight from a parameter of the same shape (weight norm, spectral norm, an attached mask), the parameter stands
for the weight. `methods.core.acting` checks that zeros in it are zeros of the weight.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


# Hooks that compute a weight before each forward pass -> the function of torch.nn.utils that removes them.
HOOKS: dict[type, str] = {WeightNorm: "remove_weight_norm", SpectralNorm: "remove_spectral_norm", BasePruningMethod: "prune.remove"}


class Place(NamedTuple):
    """Where a weight is used: a module and the attribute that it reads; `path`: the name of the module."""

    path: str
    module: nn.Module
    attribute: str

    @property
    def label(self) -> str:
        """The layer in messages."""
        kind = type(self.module).__name__.removeprefix("Parametrized")
        return f"layer '{self.path}' ({kind})" if self.path else f"the network itself ({kind})"

    @property
    def name(self) -> str:
        """The name of the weight as an attribute of the network."""
        return f"{self.path}.{self.attribute}".lstrip(".")

    @property
    def hooks(self) -> list[Any]:
        """The hooks of torch.nn.utils that compute this weight before each forward pass."""
        found = [h for h in self.module._forward_pre_hooks.values() if isinstance(h, tuple(HOOKS))]
        return [h for h in found if getattr(h, "name", getattr(h, "_tensor_name", None)) == self.attribute]

    @property
    def stored(self) -> str | None:
        """The attribute path of the parameter that holds the weight's entries, relative to the module; None if there is no single one."""
        own = self.module._parameters
        if own.get(self.attribute) is not None:
            return self.attribute
        if parametrize.is_parametrized(self.module, self.attribute):
            prefix = f"parametrizations.{self.attribute}."
            originals: nn.Module = self.module.parametrizations[self.attribute]  # type: ignore[index, assignment]
            found = {prefix + n: p for n, p in originals.named_parameters(recurse=False)}
        else:  # torch.nn.utils.weight_norm, spectral_norm and prune: the weight is computed before each forward pass
            found = {n: p for n, p in own.items() if n.startswith(f"{self.attribute}_") and p is not None}
        largest = max((p.numel() for p in found.values()), default=0)
        names = [n for n, p in found.items() if p.numel() == largest]
        return names[0] if len(names) == 1 else None


class Prunable(dict[str, nn.Parameter]):
    """Name -> prunable weight, in the order of `model.named_parameters()`. Printed, it is a table of all parameters with reasons.

    Attributes:
        excluded: the names that `exclude` left out.
    """

    def __init__(self, model: nn.Module, weights: dict[str, nn.Parameter], excluded: set[str]) -> None:
        super().__init__(weights)
        self._model, self.excluded = model, frozenset(excluded)

    @property
    def others(self) -> dict[str, str]:
        """Name of every other parameter -> why it is not prunable."""
        found = {n: _reason(self._model, n, p) for n, p in self._model.named_parameters() if n not in self}
        return found | dict.fromkeys(sorted(self.excluded), "excluded by name")

    def __str__(self) -> str:
        others = self.others
        rows = [(n, _shape(p), "yes" if n in self else "no: " + others[n]) for n, p in self._model.named_parameters()]
        rows = [("parameter", "shape", "prunable"), *rows]
        widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
        return "\n".join(f"{name:{widths[0]}}  {shape:{widths[1]}}  {said}" for name, shape, said in rows)


def prunable(model: nn.Module, include: Sequence[str] | str = (), exclude: Sequence[str] | str = ()) -> Prunable:
    """The prunable weights of a model.

        print(methods.prunable(model))                             # every parameter: name, shape, prunable or why not
        methods.prunable(model, include="embed.*", exclude=["head.*", "*.in_proj_weight"])

    Args:
        model: the network.
        include: patterns of parameter names to add, with `*` and `?`; the parameters must have two dimensions or more.
        exclude: patterns of parameter names to leave out.

    Returns:
        Name -> parameter, in the order of `model.named_parameters()`. A weight with two names appears once, with its first name.

    Raises:
        ValueError: if the model is not a network, a pattern matches nothing, or a layer has no weights yet (`nn.LazyLinear`).
    """
    check_network(model)
    listed = list(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    names = {n: first.setdefault(id(p), n) for n, p in listed}
    found = list(roles(model))
    multiply = {name for name, _ in _located(found, first)}
    added = _matching(include, {n: names[n] for n, p in listed if _possible(p)}, "include") if include != () else set()
    chosen = {n: p for n, p in listed if names[n] == n and (n in multiply or n in added)}
    computed = {p.name: p.name for p in found if p.stored is None}
    dropped = _matching(exclude, {n: f for n, f in names.items() if f in chosen} | computed, "exclude") if exclude != () else set()
    left = {n: p for n, p in chosen.items() if n not in dropped}
    for name, p in left.items():
        if isinstance(p, UninitializedParameter):
            raise ValueError(f"'{name}' has no values yet, because its layer is lazy: run one batch through the network first")
    return Prunable(model, {n: p for n, p in left.items() if p.is_floating_point() and p.numel()}, dropped)


def check_network(model: object) -> None:
    """Raise ValueError if something is not a network."""
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}; make an instance of it" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ValueError(f"model must be a torch.nn.Module, not {kind}")


def first_names(model: nn.Module) -> dict[str, str]:
    """Name of a parameter -> its first name, which differs for tied weights."""
    first = {id(p): n for n, p in model.named_parameters()}
    return {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}


def _possible(p: Tensor) -> bool:
    """Whether a parameter can be pruned by request."""
    return isinstance(p, UninitializedParameter) or (p.dim() > 1 and p.is_floating_point())


def places(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """(name of the parameter, place) of each weight that multiplies activations, where one parameter holds the weight's entries."""
    return _located(roles(model), {id(p): n for n, p in model.named_parameters()})


def _located(found: Iterable[Place], first: Mapping[int, str]) -> Iterator[tuple[str, Place]]:
    """See `places`; `first`: id of a parameter -> its name."""
    for place in found:
        stored = place.stored
        if stored is not None:
            inside, _, attribute = stored.rpartition(".")
            yield first[id(getattr(place.module.get_submodule(inside), attribute))], place


def roles(model: nn.Module) -> Iterator[Place]:
    """Each weight of the model that multiplies activations, also those that are not stored in a parameter of their own."""
    for path, module in model.named_modules():
        for attribute in _matrices(module):
            yield Place(path, module, attribute)


def _matrices(module: nn.Module) -> list[str]:
    if isinstance(module, (nn.Linear, _ConvNd, nn.Bilinear)):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        return [a for a in ATTENTION if getattr(module, a, None) is not None]
    if isinstance(module, RNNBase):
        return [n for n in module._flat_weights_names if n.startswith("weight_")]
    return ["weight_ih", "weight_hh"] if isinstance(module, RNNCellBase) else []


def summed(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name of a weight -> (its dimension that products sum over, number of entries along it that one product sums).

    A Linear layer sums over dimension 1 of its weight (out, in), a convolution over the channels of (out, in/groups, *kernel), and a
    transposed convolution over dimension 0 of (in, out/groups, *kernel), separately for each group. Bilinear layers, and parameters
    that were included by name, are left out.
    """
    found = {}
    parameters = dict(model.named_parameters())
    for name, place in places(model):
        module = place.module
        if isinstance(module, _ConvTransposeNd):
            found[name] = 0, module.in_channels // module.groups
        elif not isinstance(module, nn.Bilinear):
            found[name] = 1, parameters[name].shape[1]
    return found


def _matching(patterns: Sequence[str] | str, names: Mapping[str, str], argument: str) -> set[str]:
    """The first names of what a pattern matches; each pattern must match one. `names`: name -> first name."""
    found: set[str] = set()
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, Iterable) or not all(isinstance(pattern, str) for pattern in listed):
        raise ValueError(f"{argument} must be a pattern or a list of patterns, e.g. {argument}=['head.*'], not {patterns!r}")
    for pattern in listed:
        own = {first for n, first in names.items() if fnmatchcase(n, pattern)}
        if not own:
            kind = "parameter of two dimensions or more in floating point" if argument == "include" else "prunable weight"
            some = ", ".join(list(names)[:3])
            raise ValueError(f"{argument}='{pattern}' matches no {kind}" + (f"; there are {some} and others" if some else ""))
        found |= own
    return found


def _shape(p: Tensor) -> str:
    return "not known yet" if isinstance(p, UninitializedParameter) else " x ".join(map(str, p.shape)) or "1"


def _reason(model: nn.Module, name: str, p: Tensor) -> str:
    """Why a parameter is not prunable."""
    path, _, attribute = name.rpartition(".")
    if not isinstance(p, UninitializedParameter) and p.dim() < 2:
        return "has fewer than two dimensions"
    if not p.is_floating_point():
        return f"is {str(p.dtype).removeprefix('torch.')}, not floating point"
    if not isinstance(p, UninitializedParameter) and not p.numel():
        return "has no entries"
    for place in roles(model):
        if name.startswith(f"{place.path}.parametrizations.{place.attribute}.".lstrip(".")) or (
            path == place.path and attribute.startswith(f"{place.attribute}_")
        ):
            return f"the {place.attribute} of {place.label} is computed from it and other parameters: {remedy(place)}"
    owner = dict(model.named_modules())[path]
    if isinstance(owner, torch.jit.ScriptModule):
        return "belongs to a scripted layer, whose calls cannot be followed: prune the network before torch.jit.script or trace"
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return f"looked up, not multiplied; include='{name}' adds it"
    return f"not known to multiply activations; include='{name}' adds it"


def remedy(place: Place) -> str:
    """What to call so that a layer multiplies with a parameter of its own."""
    if parametrize.is_parametrized(place.module, place.attribute):
        return f'call torch.nn.utils.parametrize.remove_parametrizations(layer, "{place.attribute}") first'
    for hook in place.hooks:
        function = next(f for kind, f in HOOKS.items() if isinstance(hook, kind))
        return f'call torch.nn.utils.{function}(layer, "{place.attribute}") first'
    return "leave it out by exclude=..."


def nothing_prunable(model: nn.Module) -> str:
    """Why a model has nothing to prune."""
    quantised = next((n for n, m in model.named_modules() if ".quantized" in type(m).__module__), None)
    why = "it has no matrix or kernel that multiplies activations"
    if quantised is not None:
        why = f"layer '{quantised}' and others are quantised; prune the floating-point network first"
    elif prunable(model).others:
        name, reason = max(prunable(model).others.items(), key=lambda item: "computed" in item[1])
        why = f"'{name}' {reason}" if "computed" not in reason else reason
    return f"the model has no prunable weights: {why}"
