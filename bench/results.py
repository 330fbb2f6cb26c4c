"""results.csv: rows out and in, so that floats read back exactly."""

import csv
import dataclasses
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from bench.spec import COLUMNS, Row


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows under the contract's header, sorted by what identifies them; the file is there whole or not at all."""
    ordered = sorted(rows, key=lambda row: tuple(map(_sortable, row.identity)))
    lines = [[_text(getattr(row, name)) for name in COLUMNS] for row in ordered]
    write_atomically(path, lambda file: csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines]))


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.csv. Raises ValueError naming the line where it is not one."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(Row)}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: the header is not that of results.csv")
        rows = []
        for record in reader:
            try:
                rows.append(Row(**{name: _value(record[name], kind) for name, kind in kinds.items()}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
        return rows


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Write a table with a header and no index; floats read back exactly."""
    write_atomically(path, lambda file: table.to_csv(file, index=False, lineterminator="\n"))


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
    return repr(value) if isinstance(value, float) else str(value)


def _value(text: str, kind: str) -> Any:
    if kind.endswith("None") and text == "":
        return None
    if "float" in kind:
        return float(text)
    return int(text) if "int" in kind else text
