"""What may be written in the brackets of a method's name."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from methods.core.configurations import Configuration, Criterion
from methods.core.hyperparameters import Range, ranges
from methods.core.regrowth import Regrowing
from methods.registry.registry import SCHEDULES, Method, get, lookup


@dataclass(frozen=True)
class Option:
    """One option that may be written in the brackets of a method's name.

    Attributes:
        part: what the option belongs to: "criterion", "training" or "schedule".
        name: how it is written: `name=value`.
        default: its value under this method; None where the method has no schedule.
        fixed: whether the method's name sets the value. Tuning does not change it then.
        allowed: the allowed values, in words.
        searched: the values that tuning draws from, in words; empty if it is not tuned.
        meaning: what it is, in one line.
    """

    part: str
    name: str
    default: Any
    fixed: bool
    allowed: str
    searched: str
    meaning: str


def describe(method: str) -> list[Option]:
    """The options of a method.

        for option in methods.describe("magnitude(weight_decay=0.003)"):
            print(option.name, option.default, option.allowed)

    Args:
        method: name of a method, with or without brackets and `@training`.

    Returns:
        The options of its criterion, of its training and its schedule, in this order. An option that criterion and training both
        have is listed twice; in brackets before an `@` it belongs to the criterion, in brackets after it to the training.

    Raises:
        ValueError: if there is no such method.
    """
    found = get(method)
    return [
        *_of("criterion", found.make_criterion(), found.options),
        *_of("training", found.make_training(), found.training_options),
        *_schedules(found),
    ]


def _of(part: str, made: Configuration, fixed: Collection[str]) -> list[Option]:
    return [
        Option(part, name, getattr(made, name), name in fixed, str(allowed), "" if name in fixed else _searched(allowed), allowed.meaning)
        for name, allowed in ranges(made).items()
    ]


def _searched(allowed: Range) -> str:
    """What tuning draws from, in words; '' for nothing."""
    if not allowed.tuned:
        return ""
    if allowed.choices:
        return ", ".join(map(str, allowed.searched.choices))
    searched = allowed.searched
    return f"[{searched.low:g}, {searched.high:g}]{' (log scale)' if searched.log else ''}"


def _schedules(method: Method) -> list[Option]:
    """The option `schedule`, where the criterion may be applied under one."""
    criterion = lookup("criteria", method.criterion)
    assert issubclass(criterion, Criterion)
    if issubclass(criterion, Regrowing):
        return []  # it has its own
    names = [name for name, schedule in SCHEDULES.items() if schedule.stage in criterion.stages]
    if not names:
        return []
    own = next((name for name, schedule in SCHEDULES.items() if schedule == method.schedule), None)
    default = method.schedule.kind if own is None and method.schedule is not None else own
    meaning = "when weights are removed; without a schedule: once"
    return [Option("schedule", "schedule", default, own is not None, f"one of {', '.join(names)}", "", meaning)]
