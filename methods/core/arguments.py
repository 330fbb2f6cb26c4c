"""Types of arguments, checked where a wrong one would fail far from the call."""

from collections.abc import Mapping, Sequence
from typing import Any


def require(value: Any, kind: type | tuple[type, ...], argument: str, wanted: str) -> None:
    """Raise ValueError if an argument does not have a type.

    Args:
        value: the argument.
        kind: its type, or several.
        argument: its name.
        wanted: what it must be, in words.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        got = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise ValueError(f"{argument} must be {wanted}, not {got}")


def require_names(**arguments: Any) -> None:
    """Raise ValueError if one of the arguments is not text."""
    for argument, value in arguments.items():
        require(value, str, argument, "a name (str)")


def copied(mask: Any) -> dict[str, Any]:
    """A copy of a mask, empty for None; raises ValueError if it is not a mapping."""
    require(mask, (Mapping, type(None)), "mask", "a dict: weight name -> bool tensor")
    return dict(mask if mask is not None else {})


def sizes(input_shape: Any) -> tuple[int, ...]:
    """The shape of one input; raises ValueError if it is not a sequence of positive integers."""
    found = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if not found or not all(isinstance(n, int) and n > 0 for n in found):
        raise ValueError(f"input_shape must be the sizes of one input, e.g. (3, 32, 32), not {input_shape!r}")
    return found
