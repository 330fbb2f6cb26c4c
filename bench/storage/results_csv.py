"""results.csv: rows out and in, so that floats read back exactly.

A text that a spreadsheet would run as a formula, for it begins with = + - @, a tab or a carriage return, is written with an
apostrophe before it, which reading takes away again. Numbers are no texts: a negative one stays as it is.
"""

import contextlib
import csv
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from bench.spec.columns import Column
from bench.spec.row import COLUMNS, DECLARED, Row
from bench.storage.migration import migrated, schema_of

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # apostrophes that were there count, so that taking one away is exact


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows under the contract's header, sorted by what identifies them; the file is there whole or not at all."""
    text = rows_text(rows)
    write_atomically(path, lambda file: file.write(text))


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
    with path.open(newline="") as file:
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
    write_atomically(path, lambda file: file.write(text))


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


def write_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write files by their path below a folder, or remove those that are None; where one cannot be written, none is changed.

    Contents are all on the disk under temporary names before the first file is replaced.
    """
    staged: dict[Path, Path] = {}
    try:
        for name, content in files.items():
            if content is not None:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
                staged[path] = Path(temporary)
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                os.chmod(temporary, 0o644)
        for path, part in staged.items():
            os.replace(part, path)
        for name, content in files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
    finally:
        for part in staged.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside the path and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", newline="") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


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
