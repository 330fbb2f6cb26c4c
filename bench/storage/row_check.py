"""Check the cells of a results.csv against the declarations of their columns: type, bounds, allowed values."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from bench.spec.columns import Column
from bench.spec.row import DECLARED, Row
from bench.storage.results_csv import restored

TYPES = {"string": str, "integer": int, "number": float}
# Python and pydantic also read 1_0, " 1" and, as an integer, 1.0: no release writes these.
FORMS = {"integer": re.compile(r"[+-]?[0-9]+"), "number": re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf)")}


def row_of(cells: Mapping[str, str]) -> tuple[Row | None, list[str]]:
    """Check and convert cells.

    Args:
        cells: column -> text.

    Returns:
        The row and no messages, or None and one message for each invalid cell.
    """
    filled = {name: restored(text) for name, text in cells.items() if text != "" or not DECLARED[name].empty}
    try:
        values = _CELLS.validate_strings(filled)
    except ValidationError as error:
        return None, [_fault(dict(fault)) for fault in error.errors()]
    empty: dict[str, Any] = {name: "" if DECLARED[name].type == "string" else None for name in cells if name not in filled}
    return Row(**values, **empty), []


def _fault(fault: dict[str, Any]) -> str:
    text, said = fault["input"], fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{fault['loc'][0]}: " + (f"{said}, got '{text}'" if text else "is empty")


def _number(form: re.Pattern[str], text: str) -> str:
    if not form.fullmatch(text):
        raise ValueError("should be a plain number")
    return text


def _annotation(column: Column) -> Any:
    if column.values:
        kind: Any = Literal[column.values]
    elif column.type == "string":
        kind = Annotated[str, Field(min_length=1, pattern=f"^(?:{column.pattern})$" if column.pattern else None)]
    else:
        finite = False if column.type == "number" else None
        limits = Field(ge=column.least, le=column.most, allow_inf_nan=finite)
        kind = Annotated[TYPES[column.type], limits, BeforeValidator(partial(_number, FORMS[column.type]))]
    return NotRequired[kind] if column.empty else kind


_CELLS = TypeAdapter[dict[str, Any]](
    TypedDict("_Cells", {name: _annotation(column) for name, column in DECLARED.items()})  # type: ignore[operator]
)
