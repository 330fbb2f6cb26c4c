"""Write and read results.csv; floats read back exactly.

A spreadsheet would run a text that begins with = + - @, a tab or a carriage return as a formula. Such a text is written with an
apostrophe in front, and reading removes it. Numbers are not texts: negative numbers are written as they are.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from bench.spec.columns import Column
from bench.spec.row import COLUMNS, DECLARED, Row
from bench.storage import files
from bench.storage.migration import migrated, schema_of

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # also with apostrophes in front, so that removing one restores the text exactly


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write a results.csv, completely or not at all.

    Args:
        rows: the rows, in any order; they are sorted by their key.
        path: path of the file.
    """
    text = rows_text(rows)
    files.write(path, text.encode())


def rows_text(rows: Iterable[Row]) -> str:
    """The content of a results.csv: the header, and the rows sorted by their key."""
    lines = [[_text(getattr(row, name)) for name in COLUMNS] for row in ordered(rows)]
    written: list[str] = []
    # The csv module quotes cells with characters of the line terminator; cells with a carriage return must be quoted as well.
    csv.writer(SimpleNamespace(write=written.append), lineterminator="\r\n").writerows([COLUMNS, *lines])
    return "".join(line.removesuffix("\r\n") + "\n" for line in written)


def ordered(rows: Iterable[Row]) -> list[Row]:
    """The rows in the order of a results.csv."""
    return sorted(rows, key=lambda row: tuple(map(_sortable, row.identity)))


def read_rows(path: Path) -> list[Row]:
    """Read a results.csv of this release or an older one.

    Raises:
        ValueError: it is not a results.csv. The message names the file and the line.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if schema_of(reader.fieldnames or ()) is None:
            raise ValueError(f"{path}: this is not the header of results.csv")
        rows = []
        for record in reader:
            try:
                rows.append(migrated({name: value_of(text, DECLARED[name]) for name, text in record.items() if name in DECLARED}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
        return rows


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as CSV, with a header and without an index; floats read back exactly.

    Args:
        table: the table.
        path: path of the file.
    """
    text = table_text(table)
    files.write(path, text.encode())


def table_text(table: "pd.DataFrame", float_format: str | None = None) -> str:
    """A table as CSV, with a header and without an index.

    Args:
        table: the table.
        float_format: format of floats, such as "%.10g"; None: floats read back exactly.
    """
    safe = table.map(lambda value: neutralised(value) if isinstance(value, str) else value)
    return str(safe.to_csv(index=False, lineterminator="\n", float_format=float_format))


def neutralised(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet would run it as a formula."""
    return "'" + text if _FORMULA.match(text) else text


def restored(text: str) -> str:
    """The text from which `neutralised` made this one."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _sortable(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return neutralised(value) if isinstance(value, str) else repr(value) if isinstance(value, float) else str(value)


def value_of(text: str, column: Column) -> Any:
    """The value of a cell.

    Args:
        text: the cell.
        column: its column.

    Returns:
        A text, a number, or None for an empty cell.

    Raises:
        ValueError: the cell is not of the type of the column.
    """
    if column.type == "string":
        return restored(text)
    if text == "" and column.empty:
        return None
    return float(text) if column.type == "number" else int(text)
