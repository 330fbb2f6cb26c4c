"""Hyperparameters: a default, the values that are possible, the part of them that tuning searches, and what it means.

    @dataclass(frozen=True)
    class Snip(Criterion):
        n_batches: int = Int(1, 1, 10, minimum=1, meaning="training batches that are read")

Two intervals are declared in this one place, and they are different things:

- the search range, 1 to 10 here (second and third argument). Tuning draws values from it and nothing else depends on it. A
  hyperparameter without a search range keeps its default in tuning.
- the limits: `minimum` (allowed), `above` (not allowed itself) and `maximum` (allowed). A value outside is refused with ValueError,
  also in `methods.train` and `methods.prune`. Declare only what is mathematically impossible. Without limits any finite number
  is accepted.

This module does not know the tuner.
"""

import dataclasses
import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """The values that one hyperparameter can take: an interval of numbers, or a list of choices.

    Attributes:
        low: smallest value, itself included unless `open`.
        high: largest value, itself included.
        log: whether tuning searches on a logarithmic scale.
        integer: whether only integers are allowed.
        choices: the allowed values; empty for an interval.
        drawn: those of the choices that tuning draws from; empty for all.
        tuned: False if tuning keeps the default.
        search: (smallest, largest) value that tuning draws; None for the whole interval.
        open: whether `low` itself is excluded.
        meaning: what the hyperparameter is, in one line.
        text: whether the value is a text; its configuration checks what it says.
    """

    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()
    drawn: tuple[Any, ...] = ()
    tuned: bool = True
    search: tuple[float, float] | None = None
    open: bool = False
    meaning: str = ""
    text: bool = False

    @property
    def searched(self) -> "Range":
        """The values that tuning draws from."""
        low, high = self.search or (self.low, self.high)
        return replace(self, low=low, high=high, search=None, choices=self.drawn or self.choices, open=self.open and low == self.low)

    def __contains__(self, value: object) -> bool:
        if self.text:
            return isinstance(value, str)
        if self.choices:
            return any(value is c or (value == c and type(value) is type(c)) for c in self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (self.integer and not isinstance(value, int)):
            return False
        return _is_finite(value) and self.low <= value <= self.high and not (self.open and value == self.low)

    def canonical(self, value: Any) -> Any:
        """The form in which a value is stored and written.

        Args:
            value: any object. Numbers of other types (numpy) are converted.

        Returns:
            A float for a real hyperparameter (2 becomes 2.0, -0.0 becomes 0.0), an int for an integer one, the equal choice
            where there are choices. 2.0 is not accepted as an integer: it is returned unchanged, as is any other object.
        """
        if isinstance(value, bool) or not isinstance(value, Real):
            return value
        if self.choices:
            return next((c for c in self.choices if c == value and not isinstance(c, bool)), value)
        if self.integer:
            return int(value) if isinstance(value, Integral) else value
        try:
            return float(value) + 0.0  # turns -0.0 into 0.0
        except OverflowError:
            return value

    def at(self, u: float) -> Any:
        """The value at the fraction `u`, in [0, 1), of this interval (of its logarithm if `log`) or of this list of choices."""
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        high = self.high + 1 if self.integer else self.high
        value = self.low * (high / self.low) ** u if self.log else self.low + (high - self.low) * u
        return min(int(value), int(self.high)) if self.integer else min(value, self.high)

    def __str__(self) -> str:
        if self.text:
            return "a text"
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"{'an integer' if self.integer else 'a number'} in {'(' if self.open else '['}{self.low:g}, {self.high:g}]"
        kind = "an integer" if self.integer else "a finite number"
        least = f" {'>' if self.open else '>='} {self.low:g}" if math.isfinite(self.low) else ""
        return f"{kind}{least}" if math.isinf(self.high) else f"{kind} <= {self.high:g}"


def Float(
    default: float,
    low: float | None = None,
    high: float | None = None,
    *,
    log: bool = False,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    meaning: str = "",
) -> Any:
    """Declare a real hyperparameter.

    Args:
        default: value when none is given.
        low: smallest value that tuning draws; without `low` and `high` the hyperparameter is not tuned.
        high: largest value that tuning draws.
        log: search on a logarithmic scale.
        minimum: smallest allowed value.
        above: every allowed value is larger than this number; use it in place of `minimum`.
        maximum: largest allowed value.
        meaning: what the hyperparameter is, in one line.

    Returns:
        A dataclass field.

    Raises:
        ValueError: if the search range has one end only, is not inside the limits, or both `minimum` and `above` are given.
    """
    return _number(default, low, high, log, minimum, above, maximum, Range(meaning=meaning))


def Int(
    default: int,
    low: int | None = None,
    high: int | None = None,
    *,
    log: bool = False,
    minimum: int | None = None,
    maximum: int | None = None,
    meaning: str = "",
) -> Any:
    """Declare an integer hyperparameter; arguments as for `Float`."""
    return _number(default, low, high, log, minimum, None, maximum, Range(integer=True, meaning=meaning))


def Choice(default: Any, *choices: Any, tuned: bool = True, drawn: tuple[Any, ...] = (), meaning: str = "") -> Any:
    """Declare a hyperparameter that takes one of the listed values.

    Args:
        default: value when none is given.
        choices: the allowed values.
        tuned: False if tuning keeps the default, e.g. because another value is a method of its own.
        drawn: those of the choices that tuning draws from; empty for all.
        meaning: what the hyperparameter is, in one line.

    Returns:
        A dataclass field.
    """
    return dataclasses.field(default=default, metadata={"range": Range(choices=choices, drawn=drawn, tuned=tuned, meaning=meaning)})


def Text(default: str = "", *, meaning: str = "") -> Any:
    """Declare a hyperparameter that is a text, e.g. patterns of names; it is not tuned.

    Args:
        default: value when none is given.
        meaning: what the hyperparameter is, in one line.

    Returns:
        A dataclass field.
    """
    return dataclasses.field(default=default, metadata={"range": Range(text=True, tuned=False, meaning=meaning)})


def _number(
    default: float, low: float | None, high: float | None, log: bool, minimum: float | None, above: float | None,
    maximum: float | None, empty: Range,
) -> Any:  # fmt: skip
    """The field of a `Float` or an `Int`."""
    if minimum is not None and above is not None:
        raise ValueError("give minimum or above, not both")
    if (low is None) != (high is None):
        raise ValueError("a search range needs low and high")
    search = None if low is None or high is None else (low, high)
    least = minimum if minimum is not None else above
    allowed = replace(
        empty, low=-math.inf if least is None else least, high=math.inf if maximum is None else maximum, log=log,
        search=search, tuned=search is not None, open=above is not None,
    )  # fmt: skip
    outside = [] if search is None else [value for value in search if value not in allowed]
    if outside:
        raise ValueError(f"the search range contains {outside[0]!r}, which is not {allowed}")
    return dataclasses.field(default=default, metadata={"range": allowed})


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def ranges(config: Any) -> dict[str, Range]:
    """The declared ranges of a configuration.

    Args:
        config: a dataclass or an instance of one.

    Returns:
        Name of the hyperparameter -> range, in the order of the fields.
    """
    return {f.name: f.metadata["range"] for f in dataclasses.fields(config) if "range" in f.metadata}


def settle(config: Any) -> None:
    """Bring each hyperparameter of a configuration into its canonical form, in place.

    Args:
        config: an instance of a dataclass.

    Raises:
        ValueError: if a value is outside its limits; the message names the value and what is allowed.
    """
    for name, allowed in ranges(config).items():
        given = getattr(config, name)
        value = allowed.canonical(given)
        if value not in allowed:
            raise ValueError(f"{type(config).__name__}: {name}={given!r} is not {allowed}")
        object.__setattr__(config, name, value)  # configurations are frozen
