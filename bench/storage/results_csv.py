"""results.csv: rows out and in, so that floats read back exactly.

A text that a spreadsheet would run as a formula, for it begins with = + - @, a tab or a carriage return, is written with an
apostrophe before it, which reading takes away again. Numbers are no texts: a negative one stays as it is.
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

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # apostrophes that were there count, so that taking one away is exact


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows under the contract's header, sorted by what identifies them; the file is there whole or not at all."""
    text = rows_text(rows)
    files.write(path, text.encode())


def rows_text(rows: Iterable[Row]) -> str:
    """The contents of a results.csv: the header, and the rows sorted by what identifies them."""
    lines = [[_text(getattr(row, name)) for name in COLUMNS] for row in ordered(rows)]
    written: list[str] = []
    # Cells with a character of the line's end are quoted: a carriage return must be, too.
    csv.writer(SimpleNamespace(write=written.append), lineterminator="\r\n").writerows([COLUMNS, *lines])
    return "".join(line.removesuffix("\r\n") + "\n" for line in written)


def ordered(rows: Iterable[Row]) -> list[Row]:
    """The rows in the order of a results.csv."""
    return sorted(rows, key=lambda row: tuple(map(_sortable, row.identity)))


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.csv, of this release or an older one. Raises ValueError naming the line where it is not one."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if schema_of(reader.fieldnames or ()) is None:
            raise ValueError(f"{path}: the header is not that of results.csv")
        rows = []
        for record in reader:
            try:
                rows.append(migrated({name: value_of(text, DECLARED[name]) for name, text in record.items() if name in DECLARED}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
        return rows


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Write a table with a header and no index; floats read back exactly."""
    text = table_text(table)
    files.write(path, text.encode())


def table_text(table: "pd.DataFrame", float_format: str | None = None) -> str:
    """The contents of such a file; `float_format` in place of floats that read back exactly."""
    safe = table.map(lambda value: neutralised(value) if isinstance(value, str) else value)
    return str(safe.to_csv(index=False, lineterminator="\n", float_format=float_format))


def neutralised(text: str) -> str:
    """The text with an apostrophe before it where a spreadsheet would run it as a formula; see `restored`."""
    return "'" + text if _FORMULA.match(text) else text


def restored(text: str) -> str:
    """The text that `neutralised` has made this of."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _sortable(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return neutralised(value) if isinstance(value, str) else repr(value) if isinstance(value, float) else str(value)


def value_of(text: str, column: Column) -> Any:
    """The value of a cell. Raises ValueError where it is not one of its column."""
    if column.type == "string":
        return restored(text)
    if text == "" and column.empty:
        return None
    return float(text) if column.type == "number" else int(text)
