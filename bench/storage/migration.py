"""Convert rows of older releases to the current `Row`.

A record contains its `schema`; without one it has schema 1. Columns added later get their default; columns removed later are dropped.
"""

import dataclasses
import gc
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench.spec.row import COLUMNS, DECLARED, SCHEMA, Row, rows_of_columns

_OF_TYPE: dict[str, set[type]] = {"string": {str}, "integer": {int}, "number": {float, int}}
TYPES = {  # column -> the types of its values
    name: _OF_TYPE[column.type] | ({type(None)} if column.empty and column.type != "string" else set()) for name, column in DECLARED.items()
}
REMOVED: dict[int, tuple[str, ...]] = {}  # schema -> columns that it removed


def columns_of(schema: int) -> tuple[str, ...]:
    """The columns of a schema that still exist, in their order."""
    return tuple(name for name, column in DECLARED.items() if column.since <= schema)


def schema_of(header: Iterable[str]) -> int | None:
    """The newest schema with exactly these columns in this order, or None."""
    header = tuple(header)
    for schema in range(SCHEMA, 0, -1):
        removed = {name for version, names in REMOVED.items() if version > schema for name in names}
        if tuple(name for name in header if name not in removed) == columns_of(schema) and removed <= set(header):
            return schema
    return None


def migrated(record: Mapping[str, Any]) -> Row:
    """Convert a record of any schema up to the current one.

    Args:
        record: column -> value.

    Raises:
        ValueError: the record is of a later release, has an unknown or missing column, or a value of another type.
    """
    schema = record.get("schema", 1)
    if type(schema) is not int:
        raise ValueError(f"its schema should be an integer, got {str(schema)[:40]!r}")
    if schema > SCHEMA:
        raise ValueError(f"the row has schema {schema} of a later release; this release reads schemas up to {SCHEMA}")
    removed = {name for version, names in REMOVED.items() if version > schema for name in names}
    unknown = sorted(record.keys() - set(COLUMNS) - removed)
    if unknown:
        raise ValueError(f"a row of schema {schema} has no column '{unknown[0]}'")
    needed = [f.name for f in dataclasses.fields(Row) if f.default is dataclasses.MISSING and f.name not in record]
    if needed:
        raise ValueError(f"the row has no column '{needed[0]}'")
    wrong = [name for name, value in record.items() if name in TYPES and type(value) not in TYPES[name]]
    if wrong:
        raise ValueError(f"{wrong[0]} should be a {DECLARED[wrong[0]].type}, got {str(record[wrong[0]])[:40]!r}")
    return Row(**{name: record[name] for name in COLUMNS if name in record} | {"schema": SCHEMA})


def all_migrated(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Convert many records as `migrated` does, with the same ValueError. Equal values share one object in memory.

    Args:
        records: column -> value, of each record.
    """
    if records and all(tuple(record) == COLUMNS and record["schema"] == SCHEMA for record in records):
        columns = dict(zip(COLUMNS, zip(*(record.values() for record in records), strict=True), strict=True))
        kinds = {name: set(map(type, values)) for name, values in columns.items()}
        if all(kinds[name] <= TYPES[name] for name in columns):
            return rows_of_columns(len(records), {name: _shared(values, kinds[name]) for name, values in columns.items()})
    return [migrated(record) for record in records]


def _shared(values: Sequence[Any], kinds: set[type]) -> Sequence[Any]:
    """The values, equal ones as one object. 0.0 and -0.0 stay apart, and so do 1 and 1.0."""
    if kinds == {str}:
        return [sys.intern(text) for text in values]
    if {int, float} <= kinds:
        return values
    known: dict[Any, Any] = {}
    return [known.setdefault(value, value) if value else value for value in values]


@contextmanager
def without_search_for_cycles() -> Iterator[None]:
    """A context in which Python does not look for cycles of objects: rows have none, and among many of them a search takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
