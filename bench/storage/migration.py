"""Rows of older releases: what a record has by name, to a `Row` of today.

A record says its `schema`; one that does not is of schema 1. A column added since is at its default, one removed since is left out.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from bench.spec.row import COLUMNS, DECLARED, SCHEMA, Row

REMOVED: dict[int, tuple[str, ...]] = {}  # schema -> the columns that went with it


def columns_of(schema: int) -> tuple[str, ...]:
    """The columns of that schema that there still are, in their order."""
    return tuple(name for name, column in DECLARED.items() if column.since <= schema)


def schema_of(header: Iterable[str]) -> int | None:
    """The newest schema that has just these columns, in this order; None where there is none."""
    header = tuple(header)
    for schema in range(SCHEMA, 0, -1):
        gone = {name for version, names in REMOVED.items() if version > schema for name in names}
        if tuple(name for name in header if name not in gone) == columns_of(schema) and gone <= set(header):
            return schema
    return None


def migrated(record: Mapping[str, Any]) -> Row:
    """The row that a record of any schema up to today's stands for. Raises ValueError for one of a later release, or of none."""
    schema = int(record.get("schema", 1))
    if schema > SCHEMA:
        raise ValueError(f"the row has schema {schema}, this release reads up to {SCHEMA}: it is of a later release")
    removed = {name for version, names in REMOVED.items() if version > schema for name in names}
    unknown = sorted(record.keys() - set(COLUMNS) - removed)
    if unknown:
        raise ValueError(f"a row of schema {schema} has no column '{unknown[0]}'")
    needed = [f.name for f in dataclasses.fields(Row) if f.default is dataclasses.MISSING and f.name not in record]
    if needed:
        raise ValueError(f"the row has no column '{needed[0]}'")
    return Row(**{name: record[name] for name in COLUMNS if name in record} | {"schema": SCHEMA})
