"""Checks of a method: `check(name_or_class)` runs them on the methods of this package and on any plug-in.

Each check gives one line that says what is wrong. Checks look at behaviour only, on small networks made for them: a convolutional
network with batch norm, an MLP, and an MLP whose weights are all equal, so that only the rule for ties decides.
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from methods.checking.criterion_clauses import CRITERION
from methods.checking.fixtures import Breach, Skip, require
from methods.checking.granularity_clauses import GRANULARITY
from methods.checking.regrowth_clauses import REGROWING
from methods.checking.training_clauses import TRAINING
from methods.core.configurations import Configuration, Criterion, Granularity, Training
from methods.core.hyperparameters import ranges
from methods.core.regrowth import Regrowing
from methods.registry.registry import KINDS, get, lookup, names


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        entry: name of the class that was checked.
        clause: name of the check.
        error: what is wrong, in one line; '' if the check passed.
        skipped: why the check does not apply; '' if it was run.
    """

    entry: str
    clause: str
    error: str = ""
    skipped: str = ""


def check(entry: str | type[Configuration]) -> list[Finding]:
    """Run all checks.

    Args:
        entry: a class, or a registered name. A name that several kinds have (criterion, training, granularity) is checked as each of
            them. For a named method its criterion is checked.

    Returns:
        One finding per check.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if the class is not a Criterion, a Training or a Granularity.
    """
    if isinstance(entry, str):
        return [finding for cls in entries(entry) for finding in check(cls)]
    clauses: dict[str, Callable[[Any], None]]
    if not isinstance(entry, type):
        raise TypeError(f"{entry!r} is not a name or a class")
    if issubclass(entry, Criterion):
        clauses = _DECLARED | CRITERION | (REGROWING if issubclass(entry, Regrowing) else {})
    elif issubclass(entry, Training):
        clauses = _DECLARED | TRAINING
    elif issubclass(entry, Granularity):
        clauses = _DECLARED | GRANULARITY
    else:
        raise TypeError(f"{entry!r} is not a Criterion, a Training or a Granularity")
    return [_ask(entry, clause, question) for clause, question in clauses.items()]


def entries(name: str) -> list[type[Configuration]]:
    """The classes that a name refers to: one of each kind that has it, or the criterion of a named method."""
    return [lookup(kind, name) for kind in KINDS if name in names(kind)] or [lookup("criteria", get(name).criterion)]


def _ask(entry: type[Configuration], clause: str, question: Callable[[Any], None]) -> Finding:
    name = entry.name or entry.__name__
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* the same score; ties are")  # one of the networks is made for ties
            question(entry)
    except Skip as reason:
        return Finding(name, clause, skipped=str(reason))
    except Breach as breach:
        return Finding(name, clause, error=str(breach))
    except Exception as error:  # any exception of the checked code is a finding
        return Finding(name, clause, error=f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Finding(name, clause)


def _declares(entry: type[Configuration]) -> None:
    own = vars(entry).get("__dataclass_params__")  # of the class itself, not of a base class
    require(own is not None and own.frozen, "must be decorated with @dataclass(frozen=True, kw_only=True)")
    for field in dataclasses.fields(entry):
        require("range" in field.metadata, f"field '{field.name}' must be declared by Float, Int or Choice")
        allowed, value = ranges(entry)[field.name], field.default
        require(value in allowed, f"default {field.name}={value!r} is not {allowed}")
        wanted = allowed.searched
        require(not allowed.tuned or value in wanted, f"default {field.name}={value!r} is outside its search range: {wanted}")
    require(entry() == entry(), "two instances with the same hyperparameters are not equal")


def _documents(entry: type[Configuration]) -> None:
    inherited = entry.__doc__ is None or entry.__doc__.startswith(f"{entry.__name__}(")
    require(not inherited, "must have a docstring with the formula, the reference and every departure from it")


_DECLARED: dict[str, Callable[[Any], None]] = {
    "hyperparameters are declared, defaults are allowed": _declares,
    "has a docstring": _documents,
}
