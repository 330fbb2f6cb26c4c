"""Open an exported network without unpickling anything: `load`."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import methods
from bench.export import reading
from bench.export.reading import Card
from bench.networks import build
from bench.spec import own_file
from bench.spec.errors import UserError


def load(folder: str | Path, network: Callable[..., nn.Module] | nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load an exported network. Only JSON and safetensors files are read, and no code that the card names is executed.

    Args:
        folder: a folder that `export` has written.
        network: for a network that is not razorbench's or timm's: the function that makes it, called as in a run, or the dense network.

    Returns:
        The network in eval mode on the CPU, and the content of card.json.

    Raises:
        ValueError: the folder does not contain an exported network, the weights are not those of the card, or `network` is needed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        said, content = reading.read(folder)
        given = reading.shapes(folder / "model.safetensors")
        kept = load_file(folder / "mask.safetensors")
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"'{folder}' holds no exported network: {' '.join(str(error).split())}") from None
    try:
        model = _pruned(said, given, kept, network)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (UserError, RuntimeError, ValueError) as error:
        raise ValueError(f"'{folder}' holds the weights of another network: {' '.join(str(error).split())}") from None
    return model.eval(), content


def _pruned(said: Card, given: reading.Shapes, kept: dict[str, Tensor], network: Callable[..., nn.Module] | nn.Module | None) -> nn.Module:
    """The pruned network of a card with any weights. Nothing is allocated before all shapes are checked.

    Args:
        said: the card.
        given: name -> shape of each tensor of the weights.
        kept: the content of mask.safetensors.
        network: the caller's network, see `load`.
    """
    name, shape, classes = said.architecture.name, tuple(said.architecture.input_shape), said.architecture.classes
    if network is None:
        with torch.device("meta"):  # it uses no memory: the card may name a network of any size
            _check(said, given, kept, _dense(name, shape, classes, None))
    model = _dense(name, shape, classes, network)
    _check(said, given, kept, model)
    if not said.compact:
        return model
    mask = {key.removeprefix("rows."): _outer(kept, key.removeprefix("rows."), model) for key in kept if key.startswith("rows.")}
    try:
        return methods.compact(model, mask, input_shape=shape, granularity=said.granularity)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # a mask that removes what the network needs
        raise ValueError(f"its mask does not fit to the network: {type(error).__name__}: {error}") from None


def _check(said: Card, given: reading.Shapes, kept: dict[str, Tensor], model: nn.Module) -> None:
    reading.check_weights(given, model, said.compact)
    if said.compact:
        reading.check_mask(kept, model)


def _dense(name: str, shape: tuple[int, ...], classes: int, network: Callable[..., nn.Module] | nn.Module | None) -> nn.Module:
    """The dense network of a card, with any weights: the caller's, or one of razorbench or timm."""
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        if network is not None:
            return build.built(network, f"network of '{name}'", shape, classes)
        if own_file.is_own("architecture", name):
            raise ValueError(
                f"the card names the network '{name}', whose code is not executed: import it yourself and pass the function or the"
                " dense network, load(folder, network=...)"
            )
        return build.create(name, shape, classes)


def _outer(kept: dict[str, Tensor], name: str, model: nn.Module) -> Tensor:
    """The mask of one weight from its rows and columns."""
    shape = model.get_parameter(name).shape
    plane = kept[f"rows.{name}"][:, None] & kept[f"columns.{name}"][None, :]
    return plane.view(*plane.shape, *(1 for _ in shape[2:])).expand(shape)
