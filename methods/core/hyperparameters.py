"""Hyperparameter ranges, declared beside their defaults.

    @dataclass(frozen=True)
    class Snip(Criterion):
        n_batches: int = Int(1, 1, 10)

The field's default is the method's default; its range is what tuning may choose from. Nothing here knows the tuner.
"""

import dataclasses
import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """The values one hyperparameter may take: an interval (both ends included) or a list of choices.

    `tuned`: False where a search must not choose: another value makes another method, to be named (`spam(prior=layer)`), or
    only costs more. `search`: the part of the interval that a search chooses from, where not all of it is worth trying.
    """

    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()
    tuned: bool = True
    search: tuple[float, float] | None = None

    @property
    def searched(self) -> "Range":
        """The values that a search chooses from."""
        low, high = self.search or (self.low, self.high)
        return replace(self, low=low, high=high, search=None)

    def __contains__(self, value: object) -> bool:
        if self.choices:
            return any(value is c or (value == c and type(value) is type(c)) for c in self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return self.low <= value <= self.high and not (self.integer and not isinstance(value, int))

    def canonical(self, value: Any) -> Any:
        """The value as it is kept and written: 2 where a real number is asked for is 2.0, a number among choices is that choice.

        A real number is no integer, not even 2.0; what is no number is left as it is.
        """
        if isinstance(value, bool) or not isinstance(value, Real):
            return value
        if self.choices:
            return next((c for c in self.choices if c == value and not isinstance(c, bool)), value)
        if self.integer:
            return int(value) if isinstance(value, Integral) else value
        try:
            return float(value) + 0.0  # which has no negative zero
        except OverflowError:
            return value

    def at(self, u: float) -> Any:
        """The value at the fraction u, in [0, 1), of the range: of its logarithm where it is searched on that scale."""
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        high = self.high + 1 if self.integer else self.high
        value = self.low * (high / self.low) ** u if self.log else self.low + (high - self.low) * u
        return min(int(value), int(self.high)) if self.integer else min(value, self.high)

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        return f"{'an integer' if self.integer else 'a number'} in [{self.low:g}, {self.high:g}]"


def Float(default: float, low: float, high: float, *, log: bool = False, search: tuple[float, float] | None = None) -> Any:
    """A real hyperparameter in [low, high]; `log` where it should be searched on a logarithmic scale, and within `search` if given."""
    return dataclasses.field(default=default, metadata={"range": Range(low, high, log, search=search)})


def Int(default: int, low: int, high: int, *, log: bool = False, tuned: bool = True) -> Any:
    """An integer hyperparameter in [low, high]; not `tuned` where a search should leave it as it is."""
    return dataclasses.field(default=default, metadata={"range": Range(low, high, log, integer=True, tuned=tuned)})


def Choice(default: Any, *choices: Any, tuned: bool = True) -> Any:
    """A hyperparameter that takes one of the listed values; not `tuned` where another value makes another method."""
    return dataclasses.field(default=default, metadata={"range": Range(choices=choices, tuned=tuned)})


def ranges(config: Any) -> dict[str, Range]:
    """The declared ranges of a configuration (a dataclass or its type), in the order of its fields."""
    return {f.name: f.metadata["range"] for f in dataclasses.fields(config) if "range" in f.metadata}


def settle(config: Any) -> None:
    """Bring each field into its canonical form; ValueError, naming the value and what is allowed, where it lies outside its range."""
    for name, allowed in ranges(config).items():
        given = getattr(config, name)
        value = allowed.canonical(given)
        if value not in allowed:
            raise ValueError(f"{type(config).__name__}: {name}={given!r} is not {allowed}")
        object.__setattr__(config, name, value)  # configurations are frozen
