"""Check the cells of a results.csv against the declarations of their columns: type, bounds, allowed values."""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from bench.spec import strict_json
from bench.spec.columns import Column
from bench.spec.row import DECLARED, PROTOCOL_VERSION, SCHEMA, Row
from bench.storage.csv_file import restored

TYPES = {"string": str, "integer": int, "number": float}
# Python and pydantic also read 1_0, " 1" and, as an integer, 1.0: no release writes these.
FORMS = {"integer": re.compile(r"[+-]?[0-9]+"), "number": re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf)")}
WHOLE = 2**63 - 1  # largest whole number: databases and tables have 64 bits
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # a terminal would act on them
SHOWN = 60  # characters of a cell in a message
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
    empty: dict[str, Any] = {name: "" if column.type == "string" else None for name, column in DECLARED.items() if name not in values}
    if values["schema"] > SCHEMA:
        return None, [f"schema: the row has schema {values['schema']} of a later release; this release reads schemas up to {SCHEMA}"]
    return Row(**{**values, **empty, "schema": SCHEMA, "protocol": protocol}), []


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
    return NotRequired[kind] if column.empty else kind


_CELLS = TypeAdapter[dict[str, Any]](
    TypedDict("_Cells", {name: _annotation(column) for name, column in DECLARED.items()})  # type: ignore[operator]
)
