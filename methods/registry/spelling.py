"""How methods are written: `name(key=value,...)@training(key=value,...)`. Every spelling of a method leads to the same name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from methods.core.arguments import require_names
from methods.core.hyperparameters import ranges

if TYPE_CHECKING:
    from methods.registry.registry import Method

LONGEST = 1000  # characters of a name
CONSTANTS = {"True": True, "False": False, "None": None}
INTEGER = re.compile(r"[+-]?[0-9]+")  # a name is shorter than the longest number that Python reads
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
QUOTED = re.compile(r"(['\"])(.*)\1")


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Read `name(key=value,...)`.

    Returns:
        (name, options); a value is a number, True, False or None, or a text, which may be quoted.

    Raises:
        ValueError: if the text cannot be read or is too long, or a key appears twice.
    """
    require_names(name=text)
    if len(text) > LONGEST:
        raise ValueError(f"the name '{text[:40]}...' has {len(text)} characters, more than {LONGEST}")
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name.strip(), {}
    options: dict[str, Any] = {}
    for part in rest.removesuffix(")").split(","):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not (rest.endswith(")") and key and equals and value):
            raise ValueError(f"cannot read '{text}': options are written name(key=value,key=value)")
        if key in options:
            raise ValueError(f"cannot read '{text}': {key} is given twice")
        options[key] = _value(value)
    return name.strip(), options


def _value(text: str) -> Any:
    """The value that a text stands for. Only these forms are read; Python's own parser is not used on a user's text."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return float(text)
    quoted = QUOTED.fullmatch(text)
    return text if quoted is None else quoted[2]


def named(made: "Method", typed: "Method", planned: Mapping[str, str], registered: Iterable["Method"]) -> "Method":
    """The canonical name of a method that is not registered: the closest registered method, with the differences in brackets.

    Args:
        made: the method, under any name.
        typed: the registered method whose name was typed.
        planned: {"schedule": name} if a schedule was typed in brackets, else {}. It is written in brackets if no registered method
            has that schedule.
        registered: all registered methods.

    Returns:
        `made` under its canonical name. An option that criterion and training both have is written after an `@` if it belongs to
        the training.
    """
    registered = [m for m in registered if m.criterion == made.criterion]
    near, schedule = _within(made, [m for m in registered if (m.stage, m.schedule) == (made.stage, made.schedule)]), dict[str, str]()
    if not near:
        near, schedule = _within(made, registered) if planned else [typed], dict(planned)
    own = ranges(made.make_criterion())
    if made.training_options.keys() & own.keys():
        near = [m for m in near if m.training != made.training] or near
    best = max(near, key=lambda m: (m.training == made.training, len(m.options) + len(m.training_options)))
    options = _different(made.make_criterion(), best.make_criterion()) | schedule
    same = best.training == made.training
    training = _different(made.make_training(), best.make_training()) if same else made.training_options
    if same and not training.keys() & own.keys():
        name = best.name + _brackets({**options, **training})
    else:
        name = f"{best.name}{_brackets(options)}@{made.training}{_brackets(training)}"
    return replace(made, name=name, costly=best.costly)


def _within(made: "Method", registered: Iterable["Method"]) -> list["Method"]:
    """The methods that fix no option to another value than `made` has, with its training or with `map`."""
    return [
        m
        for m in registered
        if m.options.items() <= made.options.items()
        and (m.training_options.items() <= made.training_options.items() if m.training == made.training else m.training == "map")
    ]


def _different(configuration: Any, other: Any) -> dict[str, Any]:
    """The hyperparameters of a configuration that differ from those of another one of the same type."""
    return {k: getattr(configuration, k) for k in ranges(configuration) if getattr(configuration, k) != getattr(other, k)}


def _brackets(options: Mapping[str, Any]) -> str:
    return f"({','.join(f'{k}={v}' for k, v in options.items())})" if options else ""
