"""Networks of a user: a function or a class of `nn.Module` that is called with what it names of a data set."""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from bench.spec.errors import UserError
from bench.spec.own_file import one_line

OFFERED = ("classes", "num_classes", "channels", "in_chans", "input_shape", "image_size", "img_size")
_made: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def made_by(function: Callable[..., Any], title: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Call a user's function for a data set.

    Args:
        function: a function, or a class of `nn.Module`. It is called with those of `OFFERED` that its signature names.
        title: the network in messages.
        input_shape: shape of one example, (channels, height, width) or (features,).
        classes: number of outputs.

    Returns:
        A new module.

    Raises:
        UserError: a parameter is not offered, the function raises an exception, or its result is not a new module with parameters.
    """
    arguments = _arguments(function, title, input_shape, classes)
    try:
        model = function(**arguments)
    except Exception as error:  # the function of a user may raise anything
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise UserError(f"{title}: the call with ({given}) raised {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{title} must return a torch.nn.Module, not {_kind(model)}")
    if model in _made:
        raise UserError(f"{title} returned the same module as in an earlier call; it must make a new one in each call")
    if next(model.parameters(), None) is None:
        raise UserError(f"{title}: the module has no parameters")
    _made.add(model)
    return model


def offered(input_shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """The arguments for a data set: rows of features have no image size, an image size that is not square is (height, width)."""
    values: dict[str, Any] = {"classes": classes, "num_classes": classes, "channels": input_shape[0], "in_chans": input_shape[0]}
    values["input_shape"] = tuple(input_shape)
    if len(input_shape) == 3:
        height, width = input_shape[1:]
        size = height if height == width else (height, width)
        values |= {"image_size": size, "img_size": size}
    return values


def _arguments(function: Callable[..., Any], title: str, input_shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """The values that the signature of a function names."""
    values = offered(input_shape, classes)
    named = inspect.signature(function).parameters.values()
    for parameter in named:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise UserError(f"{title}: its parameter '{parameter.name}' takes no name; arguments are passed by name: remove the '/'")
        if not variable and parameter.default is parameter.empty and parameter.name not in values:
            why = "is for images only" if parameter.name in OFFERED else "has no default and is not offered"
            raise UserError(f"{title}: its parameter '{parameter.name}' {why}; offered are: {', '.join(values)}")
    return {p.name: values[p.name] for p in named if p.name in values and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else "None" if value is None else f"a {type(value).__name__}"
