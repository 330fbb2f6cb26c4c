"""Read a TOML file that somebody else has written: bounded size, depth, numbers and texts."""

import tomllib
import unicodedata
from pathlib import Path
from typing import Any

from bench.spec.errors import UserError

LARGEST = 1_000_000  # bytes of a file
LONGEST = 10_000  # characters of a text
LONGEST_KEY = 1000  # characters of a key
DOTS = 1000  # in a line: tomllib needs memory in proportion to the square of the parts of a key a.b.c
DEEPEST = 20  # nested tables and arrays
WHOLE = 2**63 - 1  # TOML's own limit of a whole number
HIDDEN = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, separators of lines and paragraphs


def read(path: Path, title: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: path of the file.
        title: the file in messages, e.g. "suite file 'x.toml'".

    Raises:
        UserError: the file cannot be read, is too large, is not TOML, or has a value outside the limits. The message names the place.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"cannot read {title}: it is not a plain file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise UserError(f"cannot read {title}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > LARGEST:
        raise UserError(f"{title} is not TOML of this kind: it has more than {LARGEST} bytes")
    dotted = next((k for k, line in enumerate(content.split(b"\n"), 1) if line.count(b".") > DOTS), None)
    if dotted is not None:
        raise UserError(f"{title} is not TOML of this kind: line {dotted} has more than {DOTS} dots")
    try:
        made = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{title} is not TOML: line {line} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise UserError(f"{title} is not TOML: {said}") from None
    _check(made, title, ())
    return made


def _check(value: Any, title: str, place: tuple[str, ...]) -> None:
    """UserError for a value outside the limits, with its key."""
    fault = _fault(value, len(place))
    if fault:
        where = ".".join(place)
        raise UserError(f"{title}: {where[:100]}: {fault}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if len(key) > LONGEST_KEY:
                raise UserError(f"{title}: a key has more than {LONGEST_KEY} characters: {key[:40]}...")
            _check(key, title, (*place, ascii(key)[1:-1]))
            _check(inner, title, (*place, key))
    elif isinstance(value, list):
        for k, inner in enumerate(value):
            _check(inner, title, (*place, str(k)))


def _fault(value: Any, depth: int) -> str:
    if depth > DEEPEST:
        return f"nested more than {DEEPEST} deep"
    if isinstance(value, str):
        hidden = next((c for c in value if unicodedata.category(c) in HIDDEN), None)
        if hidden is not None:
            return f"a text must not contain the control character U+{ord(hidden):04X}"
        return f"a text of more than {LONGEST} characters" if len(value) > LONGEST else ""
    if isinstance(value, int) and abs(value) > WHOLE:
        return "a whole number must fit into 64 bits"
    if isinstance(value, float) and value - value != 0.0:
        return f"must be a finite number, got {value}"
    return ""
