"""Read JSON that somebody else has written: bounded numbers, bounded depth, no duplicate keys."""

import json
from typing import Any

DIGITS = 100  # of a whole number, so that it can be converted to a floating-point number


def loads(text: str | bytes) -> Any:
    """The value of a JSON text.

    Args:
        text: the text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, contains NaN, a huge whole number or an invalid character, or an object
            has a key twice. The message is one line.
    """
    try:
        value = json.loads(text, parse_int=_whole, parse_constant=_constant, object_pairs_hook=_object)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except UnicodeError:
        raise ValueError("JSON contains an invalid character") from None
    return value


def loads_object(text: str | bytes) -> dict[str, Any]:
    """The value of a JSON text that must be an object; raises ValueError as `loads` does."""
    value = loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ValueError(f"the whole number {text[:20]}... has more than {DIGITS} digits")
    return int(text)


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN is not a number")
    return float(text)  # a bound of a hyperparameter may be infinite


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has a key twice")
    return made
