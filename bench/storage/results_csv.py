"""Write and read results.csv; floats read back exactly.

A spreadsheet would run a text that begins with = + - @, a tab or a carriage return as a formula. Such a text is written with an
apostrophe in front, and reading removes it. Numbers are not texts: negative numbers are written as they are.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from bench.spec.row import COLUMNS, Row
from bench.storage import csv_file, files, row_check
from bench.storage.csv_file import neutralised
from bench.storage.migration import schema_of, without_search_for_cycles

PART = 5000  # rows that are written together


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
    return "".join(text_parts(rows))


def text_parts(rows: Iterable[Row]) -> Iterator[str]:
    """The parts of `rows_text`, one after the other."""
    written, left = _Written(), iter(ordered(rows))
    yield ",".join(COLUMNS) + "\n"
    while part := list(itertools.islice(left, PART)):
        columns = (_texts(list(map(attrgetter(name), part)), written) for name in COLUMNS)
        yield "\n".join(map(",".join, zip(*columns, strict=True))) + "\n"


class _Written(dict[Any, str]):
    """Text, whole number or None -> its cell; each is looked at once. Floats are not in it, because 1.0 and 1 would be one key."""

    def __missing__(self, value: str | int | None) -> str:
        found: list[str] = []
        # The csv module quotes cells with characters of the line terminator; cells with a carriage return must be quoted as well.
        cell = neutralised(value) if isinstance(value, str) else value
        csv.writer(SimpleNamespace(write=found.append), lineterminator="\r\n").writerow([cell, ""])
        self[value] = found[0].removesuffix(",\r\n")
        return self[value]


def _texts(values: list[Any], written: _Written) -> list[str]:
    """The cells of a column. Floats are written with the digits that read back exactly."""
    kinds = set(map(type, values))
    if kinds <= {str, int, NoneType}:
        return list(map(written.__getitem__, values))
    if kinds == {float} and 2 * len(distinct := set(values)) < len(values):
        known = {value: repr(value) for value in distinct}
        return [known[value] if value else repr(value) for value in values]  # 0.0 and -0.0 are one key
    return [repr(value) if type(value) is float else written[value] for value in values]


def ordered(rows: Iterable[Row]) -> list[Row]:
    """The rows in the order of a results.csv: by their key, of which the method comes first."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    for found in by_method.values():  # the keys of all rows at once would need much memory
        found.sort(key=attrgetter("identity"))
    return [row for method in sorted(by_method) for row in by_method[method]]


def read_rows(path: Path) -> list[Row]:
    """Read a results.csv of this release or an older one. Every cell is checked against the declaration of its column.

    Raises:
        ValueError: it cannot be read or is not a results.csv. The message is one line with the file, the line and the first fault.
    """
    lines = csv_file.lines(path)
    _, header = next(lines, (1, []))
    if schema_of(header) is None:
        hint = " (columns must be separated by commas)" if len(header) == 1 and ";" in header[0] else ""
        raise ValueError(f"{path}: this is not the header of results.csv{hint}")
    rows = []
    with without_search_for_cycles():
        for number, row, faults in row_check.rows_of(header, lines, any_protocol=True):
            if row is None:
                raise ValueError(f"{path}, line {number}: {faults[0]}")
            rows.append(row)
    return rows


def read(path: Path) -> list[Row]:
    """The rows of a results.csv, or of the folder of a leaderboard or of an output.

    Raises:
        ValueError: there is no such file, one cannot be read, or a row is there twice. The message is one line.
    """
    files = files_of(path)
    if not files:
        raise ValueError(f"'{path}' is neither a results.csv nor a folder with results")
    rows = [row for file in files for row in read_rows(file)]
    check_once(rows, f"'{path}'")
    return rows


def files_of(path: Path) -> list[Path]:
    """The files with the rows of a leaderboard's or output folder, or of a results.csv."""
    return [path] if path.is_file() else [*sorted((path / "results").glob("*.csv")), *path.glob("results.csv")]


def check_once(rows: Iterable[Row], where: str) -> None:
    """Raise ValueError if a row is there twice: it would count twice in every mean. `where`: for the message."""
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        if row.identity in seen:
            cell = f"{row.method} on {row.dataset}/{row.architecture} at sparsity {row.sparsity:.10g}, seed {row.seed}"
            raise ValueError(f"{where} has a row twice: {cell}")
        seen.add(row.identity)


def table_text(table: "pd.DataFrame", float_format: str | None = None) -> str:
    """A table as CSV, with a header and without an index.

    Args:
        table: the table.
        float_format: format of floats, such as "%.10g"; None: floats read back exactly.
    """
    safe = table.map(lambda value: neutralised(value) if isinstance(value, str) else value)
    return str(safe.to_csv(index=False, lineterminator="\n", float_format=float_format))
