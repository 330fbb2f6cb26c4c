"""Weights that a training computes from other parameters, with `torch.nn.utils.parametrize`, until it is finished."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from methods.core.interface import Problem


def replaceable(problem: Problem) -> Iterator[tuple[str, str]]:
    """(name, path of the module with a dot at its end) of each prunable weight that can be computed from other parameters.

    Left out are weights that are frozen, all zero, shared by several modules, or matrices of recurrent layers and attention.
    """
    model = problem.model
    owners = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
    owner = {f"{path}.weight".lstrip("."): m for path, m in model.named_modules()}
    for name, w in problem.weights.items():
        plain = isinstance(owner.get(name), (nn.Linear, _ConvNd, nn.Bilinear))
        if plain and w.requires_grad and bool(w.any()) and owners.count(id(w)) == 1:
            yield name, name.removesuffix("weight")


def reparametrise(model: nn.Module, path: str, computed: nn.Module) -> None:
    """Compute the weight of a module by a parametrisation; `path`: as `replaceable` gives it."""
    parametrize.register_parametrization(model.get_submodule(path.rstrip(".")), "weight", computed)


def collapse(model: nn.Module, kind: type[nn.Module]) -> None:
    """Write the values of all weights with a parametrisation of this kind into plain parameters, in their original order."""
    for module in [*model.modules()]:
        if not parametrize.is_parametrized(module, "weight") or not isinstance(module.parametrizations["weight"][0], kind):  # type: ignore[index]
            continue
        parametrize.remove_parametrizations(module, "weight")
        # The weight is now the last parameter of its module; it was the first.
        for name, p in [*module.named_parameters(recurse=False)]:
            if name != "weight":
                delattr(module, name)
                module.register_parameter(name, p)
