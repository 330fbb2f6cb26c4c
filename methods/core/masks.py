"""Masks: name -> bool tensor in the shape of the weight, True for weights that are kept."""

from collections.abc import Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.core.arguments import require
from methods.core.prunable import first_names, prunable

Mask = dict[str, Tensor]


def full_mask(model: nn.Module) -> Mask:
    """The mask that keeps every prunable weight."""
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in prunable(model).items()}


def settled(mask: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], model: nn.Module) -> Mask:
    """A mask with one bool tensor for every weight.

    Args:
        mask: name -> tensor of the weight's shape, bool or holding only 0 and 1; weights that it does not name are kept.
        weights: the prunable weights.
        model: their network.

    Returns:
        The mask, in the order of the weights and on their devices.

    Raises:
        ValueError: if a name, a shape or a value is wrong.
    """
    require(mask, Mapping, "mask", "a dict: weight name -> bool tensor")
    for name in mask:
        require(name, str, "a key of the mask", "the name of a weight")
    found: Mask = {}
    for name, p in weights.items():
        if p.is_meta:
            raise ValueError(f"'{name}' has no values, because it is on the meta device")
        given = mask.get(name)
        found[name] = torch.ones_like(p, dtype=torch.bool) if given is None else _checked(name, given, p)
    for name in mask:
        if name not in weights:
            if not _computed(model, name):
                raise ValueError(_unknown(name, weights, model))
            found[name] = mask[name]  # a training has split this weight into several parameters for now
    return found


def _checked(name: str, given: Tensor, p: nn.Parameter) -> Tensor:
    if not isinstance(given, Tensor):
        raise ValueError(f"the mask of '{name}' must be a tensor, not a {type(given).__name__}")
    if given.shape != p.shape:
        raise ValueError(f"the mask of '{name}' must have the shape of the weight, {tuple(p.shape)}, not {tuple(given.shape)}")
    if given.dtype != torch.bool:
        if not bool(((given == 0) | (given == 1)).all()):
            raise ValueError(f"the mask of '{name}' must be bool, or hold only 0 (removed) and 1 (kept)")
        given = given != 0
    return given if given.device == p.device else given.to(p.device)


def _computed(model: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    try:
        return parametrize.is_parametrized(model.get_submodule(path), attribute)
    except AttributeError:
        return False


def _unknown(name: str, weights: Mapping[str, nn.Parameter], model: nn.Module) -> str:
    first = first_names(model).get(name)
    if first in weights:
        return f"the mask names '{name}', another name of '{first}': use '{first}'"
    if name in dict(model.named_parameters()):
        return f"the mask names '{name}', which is not among the weights to prune: choose it by include, or take it out of the mask"
    inner = name.removeprefix("module.").removeprefix("_orig_mod.")
    near = [inner] if inner in weights else get_close_matches(name, weights, n=1)
    return f"the mask names '{name}', but the network has no such weight" + (f"; did you mean '{near[0]}'?" if near else "")


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask) -> None:
    """Set the masked weights of the model to zero, in place."""
    parameters = dict(model.named_parameters())
    for name, m in mask.items():
        parameters[name].masked_fill_(~m, 0.0)


def mask_holds(model: nn.Module, mask: Mask) -> bool:
    """Whether every masked weight of the model is exactly zero."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        return all(not parameters[name][~m].any() for name, m in mask.items())


def shuffled(mask: Mask, generator: torch.Generator) -> Mask:
    """A random permutation of the mask within each layer; the density of each layer stays the same."""
    return {n: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].view(m.shape) for n, m in mask.items()}


def sparsity_of(mask: Mask) -> float:
    """The fraction of weights that the mask removes."""
    kept, total = kept_weights(mask)
    return 1.0 - kept / total


def kept_weights(mask: Mask) -> tuple[int, int]:
    """(kept, all): numbers of weights in the mask. Kept weights whose value is zero count as kept."""
    return sum(int(m.sum()) for m in mask.values()), sum(m.numel() for m in mask.values())


def stored(model: nn.Module, name: str, shape: torch.Size) -> list[nn.Parameter]:
    """The parameters of a weight: itself, or the ones that `torch.nn.utils.parametrize` computes it from."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, attribute):
        originals: nn.Module = module.parametrizations[attribute]  # type: ignore[index, assignment]
        return [p for p in originals.parameters() if p.shape == shape]
    return [getattr(module, attribute)]
