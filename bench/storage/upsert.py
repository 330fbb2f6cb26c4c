"""Insert or update records of a database in one step."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

UPSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}  # dialects that can do it in one statement


def upsert(
    connection: Connection, table: Table, values: Sequence[dict[str, Any]], replaces: Callable[[Any], ColumnElement[bool]]
) -> None:  # fmt: skip
    """Insert records, or update those whose key exists if `replaces(new)` is true. No other process can come in between.

    SQLite and PostgreSQL do it in one statement. Other databases update and then insert; if another process inserts the same key
    meanwhile, this is a conflict, and the caller repeats the transaction.
    """
    (key,) = table.primary_key.columns
    kind = UPSERTS.get(connection.dialect.name)
    if kind is not None:
        statement: Any = kind(table)
        new = statement.excluded
        changed = {column.name: new[column.name] for column in table.columns if column is not key}
        connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=changed, where=replaces(new)), values)
        return
    for record in values:
        this = key == record[key.name]
        new = {name: literal(value) for name, value in record.items()}
        connection.execute(update(table).where(this, replaces(new)).values(record))
        if connection.scalar(select(key).where(this)) is None:
            connection.execute(insert(table), [record])
