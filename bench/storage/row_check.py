"""Check the cells of a results.csv against the declarations of their columns: type, bounds, allowed values."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from bench.spec import strict_json
from bench.spec.columns import Column
from bench.spec.row import DECLARED, PROTOCOL_VERSION, SCHEMA, Row, rows_of_columns
from bench.storage.csv_file import restored

TYPES = {"string": str, "integer": int, "number": float}
# Python and pydantic also read 1_0, " 1" and, as an integer, 1.0: no release writes these.
FORMS = {"integer": re.compile(r"[+-]?[0-9]+"), "number": re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf)")}
WHOLE = 2**63 - 1  # largest whole number: databases and tables have 64 bits
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # a terminal would act on them
SHOWN = 60  # characters of a cell in a message
PART = 5000  # lines that are checked together
_INVALID = object()
# Columns that a row of an older schema lacks have their default.
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Row) if field.default is not dataclasses.MISSING}


def row_of(cells: Mapping[str, str], *, any_protocol: bool = False) -> tuple[Row | None, list[str]]:
    """Check and convert cells.

    Args:
        cells: column -> text. Columns that were removed from results.csv are ignored; those that a later schema added may be missing.
        any_protocol: whether rows of another version of the protocol are valid.

    Returns:
        The row and no messages, or None and one message for each invalid cell.
    """
    known = {name: text for name, text in cells.items() if name in DECLARED}
    filled = {name: restored(text) for name, text in known.items() if text != "" or not DECLARED[name].empty}
    protocol = filled.get("protocol", "")
    if any_protocol and protocol.isascii() and protocol.isalnum():
        filled["protocol"] = PROTOCOL_VERSION
    later = {name: DEFAULTS[name] for name, column in DECLARED.items() if name not in cells and column.since > 1}
    try:
        values = _CELLS.validate_strings({**{name: str(value) for name, value in later.items() if value not in ("", None)}, **filled})
    except ValidationError as error:
        return None, [_fault(dict(fault)) for fault in error.errors()]
    empty: dict[str, Any] = {name: _empty(name) for name in DECLARED if name not in values}
    if values["schema"] > SCHEMA:
        return None, [f"schema: the row has schema {values['schema']} of a later release; this release reads schemas up to {SCHEMA}"]
    return Row(**{**values, **empty, "schema": SCHEMA, "protocol": protocol}), []


def rows_of(
    header: Sequence[str], lines: Iterable[tuple[int, list[str]]], *, any_protocol: bool = False
) -> Iterator[tuple[int, Row | None, list[str]]]:
    """Check and convert many lines as `row_of` does. Equal cells of a column are checked once, and share one value in memory.

    Args:
        header: the columns; see `row_of` for columns that are removed or missing.
        lines: (number of the line, its cells).
        any_protocol: whether rows of another version of the protocol are valid.

    Yields:
        For each line its number, and what `row_of` returns.
    """
    columns = [_Column(name, any_protocol) for name in header if name in DECLARED]
    places = [k for k, name in enumerate(header) if name in DECLARED]
    missing: dict[str, Iterable[Any]] = {name: itertools.repeat(default) for name, default in DEFAULTS.items() if name not in header}
    lines = iter(lines)
    while part := list(itertools.islice(lines, PART)):
        whole = [cells for _, cells in part if len(cells) == len(header)]
        by_column = list(zip(*whole, strict=True)) or [()] * len(header)
        values = {column.name: column.values(by_column[k]) for column, k in zip(columns, places, strict=True)}
        rows = iter(rows_of_columns(len(whole), missing | values))
        valid = not any(column.invalid for column in columns)
        if valid and len(whole) == len(part):
            yield from ((number, row, []) for (number, _), row in zip(part, rows, strict=True))
            continue
        for number, cells in part:
            if len(cells) != len(header):
                yield number, None, [f"{len(cells)} cells, expected {len(header)}"]
                continue
            row = next(rows)
            if valid or not any(getattr(row, name) is _INVALID for name in values):
                yield number, row, []
            else:
                yield number, *row_of(dict(zip(header, cells, strict=True)), any_protocol=any_protocol)


def _empty(name: str) -> str | None:
    """The value of an empty cell."""
    return "" if DECLARED[name].type == "string" else None


class _Column:
    """The cells of one column that were checked: text -> value, `_INVALID` for a text that `row_of` refuses."""

    def __init__(self, name: str, any_protocol: bool) -> None:
        self.name, self.invalid, self._any_protocol = name, False, any_protocol
        self._known: dict[str, Any] = {}

    def values(self, texts: Sequence[str]) -> list[Any]:
        """The value of each cell."""
        if DECLARED[self.name].type == "number":
            self._known = {}  # most differ: only those of one part are kept
        try:
            return list(map(self._known.__getitem__, texts))
        except KeyError:
            self._known |= self._checked(dict.fromkeys(text for text in texts if text not in self._known))
        return list(map(self._known.__getitem__, texts))

    def _checked(self, texts: dict[str, None]) -> dict[str, Any]:
        numbers = _plain_numbers(DECLARED[self.name], texts) if DECLARED[self.name].type == "number" else None
        made = self._one_by_one(texts) if numbers is None else numbers
        self.invalid = self.invalid or (numbers is None and any(value is _INVALID for value in made.values()))
        return made

    def _one_by_one(self, texts: Iterable[str]) -> dict[str, Any]:
        made: dict[str, Any] = dict.fromkeys(texts, _INVALID)
        cells = {text: restored(text) for text in texts}
        if DECLARED[self.name].empty and cells.pop("", None) is not None:
            made[""] = _empty(self.name)
        if self.name == "protocol" and self._any_protocol:
            made |= {text: cells.pop(text) for text, cell in list(cells.items()) if cell.isascii() and cell.isalnum()}
        try:
            made |= _cells_of(self.name).validate_strings(cells)
        except ValidationError as error:
            wrong = {fault["loc"][0] for fault in error.errors()}
            made |= _cells_of(self.name).validate_strings({text: cell for text, cell in cells.items() if text not in wrong})
        if self.name == "schema":
            made = {text: _INVALID if value is _INVALID or value > SCHEMA else SCHEMA for text, value in made.items()}
        return made


def _plain_numbers(column: Column, texts: Collection[str]) -> dict[str, float | None] | None:
    """Text -> number, if all texts are plain numbers in the bounds of their column; None if one must be looked at alone.

    From texts of these characters `float` reads what `FORMS` describes, and nothing else.
    """
    filled = [text for text in texts if text]
    try:
        if "".join(filled).encode().translate(None, b"0123456789+-.eE"):
            return None
        numbers = list(map(float, filled))
    except ValueError:
        return None
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    inside = (column.least is None or low >= column.least) and (column.most is None or high <= column.most)
    if numbers and not (inside and (column.below is None or high < column.below) and math.isfinite(low) and math.isfinite(high)):
        return None
    if len(numbers) < len(texts):
        return {"": None, **dict(zip(filled, numbers, strict=True))} if column.empty else None
    return dict(zip(filled, numbers, strict=True))


def _fault(fault: dict[str, Any]) -> str:
    text, said = str(fault["input"]), fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
    shown = re.sub(r"\s", " ", CONTROL.sub("?", text if len(text) <= SHOWN else text[:SHOWN] + "..."))
    return f"{fault['loc'][0]}: " + (f"{said}, got '{shown}'" if text else "is empty")


def _number(form: re.Pattern[str], text: str) -> str:
    if not form.fullmatch(text):
        raise ValueError("should be a plain number")
    return text


def _text(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError("should not contain control characters")
    return text


def _object(kind: str, text: str) -> str:
    values = strict_json.loads_object(text).values()
    if kind == "numbers" and not all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values):
        raise ValueError("should be a JSON object of finite numbers")
    return text


def _annotation(column: Column) -> Any:
    kind: Any
    if column.values:
        kind = Literal[column.values]
    elif column.type == "string":
        kind = Annotated[str, Field(min_length=1, pattern=f"^(?:{column.pattern})$" if column.pattern else None)]
        kind = Annotated[kind, AfterValidator(partial(_object, column.json) if column.json else _text)]
    else:
        finite = False if column.type == "number" else None
        most = column.most if column.type == "number" or column.most is not None else WHOLE
        limits = Field(ge=column.least, le=most, lt=column.below, allow_inf_nan=finite)
        kind = Annotated[TYPES[column.type], limits, BeforeValidator(partial(_number, FORMS[column.type]))]
    return kind


_KINDS = {name: _annotation(column) for name, column in DECLARED.items()}
_CELLS = TypeAdapter[dict[str, Any]](
    TypedDict("_Cells", {name: NotRequired[kind] if DECLARED[name].empty else kind for name, kind in _KINDS.items()})  # type: ignore[operator]
)


@functools.cache
def _cells_of(name: str) -> TypeAdapter[dict[str, Any]]:
    """The check of several cells of one column."""
    return TypeAdapter(dict[str, _KINDS[name]])  # type: ignore[valid-type]
