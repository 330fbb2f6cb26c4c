"""The store: a database with rows of results by key, and leases that divide the work between runs.

Any database that SQLAlchemy supports (default: SQLite). The key of a row is the digest of everything that determines the row (see
`bench.planning.cells`). Several runs may share a store: the run that holds the lease of a job does the job.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from pydantic_core import from_json  # three times as fast as the parser of Python
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    MetaData,
    String,
    Table,
    Text,
    cast,
    create_engine,
    delete,
    func,
    or_,
    select,
    update,
)

from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.storage.database import DEFAULT_URL, create_file_folder, engine_options, insistent, parsed_url, reason_of, shown
from bench.storage.migration import all_migrated
from bench.storage.upsert import upsert

LEASE = 60.0  # seconds; a lease that was not renewed for so long may be taken by another run
GIVING = 2.0  # most seconds that the end of a run waits for its leases to be given back
PART = 500  # rows of one query
_metadata = MetaData()
_rows = Table("rows", _metadata, Column("key", String(64), primary_key=True), Column("status", String(16)), Column("row", Text))
_leases = Table("leases", _metadata, Column("name", String(64), primary_key=True), Column("owner", String(255)), Column("until", Float))
T = TypeVar("T")


class Store:
    """Rows of results by key, in a database. A fault that may pass by itself is waited for, see `bench.storage.database`.

    Args:
        url: database URL. A missing SQLite file is created.

    Raises:
        UserError: the database cannot be opened; also raised by each method, where the database cannot be used.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        parsed = parsed_url(url)
        self.url = parsed.render_as_string(hide_password=False)
        try:
            create_file_folder(url)
            self._engine = create_engine(parsed, **engine_options(url))
            insistent(self._prepare, url, opening=True)
        except UserError:
            raise
        except Exception as error:  # of a driver or of a dialect: any
            raise UserError(f"cannot open the store '{shown(url)}': {reason_of(error, url)}") from None

    def _prepare(self) -> None:
        """Create missing tables, which another run may do at the same time, and look whether they have the columns."""
        _metadata.create_all(self._engine)
        with self._engine.connect() as connection:
            for table in (_rows, _leases):
                connection.execute(select(table).limit(1)).all()

    def get(self, keys: Iterable[str]) -> dict[str, Row]:
        """key -> row, for those of the keys that are stored.

        Raises:
            UserError: a row cannot be read: it was written by a later release, or is damaged.
        """
        return dict(self.rows(keys))

    def rows(self, keys: Iterable[str]) -> Iterator[tuple[str, Row]]:
        """Iterate over (key, row) of those of the keys that are stored, in their order; UserError as in `get`."""
        left = iter(keys)
        while part := list(itertools.islice(left, PART)):
            texts = dict(map(tuple, self._read(select(_rows.c.key, _rows.c.row).where(_rows.c.key.in_(part)))))
            there = [key for key in part if key in texts]
            try:
                yield from zip(there, _rows_of([texts[key] for key in there]), strict=True)
            except ValueError as error:
                hint = "`store clean unreadable` removes such rows"
                raise UserError(f"the store '{shown(self.url)}' has a row that cannot be read: {error}; {hint}") from None

    def statuses(self, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Iterate over (key, status) of those of the keys that are stored. No row is read."""
        left = iter(keys)
        while part := list(itertools.islice(left, PART)):
            yield from map(tuple, self._read(select(_rows.c.key, _rows.c.status).where(_rows.c.key.in_(part))))

    def contains(self, column: str, *values: str) -> bool:
        """Whether any row has one of these texts in a column. No row is read."""
        said = [json.dumps({column: value})[1:-1] for value in values]
        query = select(_rows.c.key).where(or_(*(_rows.c.row.contains(text, autoescape=True) for text in said))).limit(1)
        return bool(self._read(query))

    def every(self) -> Iterator[tuple[str, Row | None]]:
        """Iterate over (key, row) of all rows in the order of their keys; None for a row of a later release, or a damaged one."""
        last: str | None = None
        while True:
            query = select(_rows.c.key, _rows.c.row).order_by(_rows.c.key).limit(PART)
            part = self._read(query if last is None else query.where(_rows.c.key > last))
            try:
                found: list[Row | None] = [*_rows_of([text for _, text in part])]
            except ValueError:
                found = [_readable(text) for _, text in part]
            yield from zip((key for key, _ in part), found, strict=True)
            if len(part) < PART:
                return
            last = part[-1][0]

    def remove(self, keys: Iterable[str]) -> None:
        """Remove rows by key."""
        wanted = sorted(keys)
        for i in range(0, len(wanted), PART):
            query = delete(_rows).where(_rows.c.key.in_(wanted[i : i + PART]))
            self._transaction(partial(Connection.execute, statement=query))

    def done(self, keys: Iterable[str]) -> set[str]:
        """The keys whose rows are stored and did not fail."""
        return {key for key, status in self.statuses(keys) if status != "failed"}

    def put(self, rows: dict[str, Row]) -> None:
        """Write all rows, or none. An existing row is replaced, unless the new row failed and the existing one did not."""
        values = [
            {"key": key, "status": row.status, "row": json.dumps(dataclasses.asdict(row))}
            for key, row in sorted(rows.items())  # the same order in all processes, so that no two wait for each other
        ]
        if values:
            self._transaction(lambda connection: upsert(connection, _rows, values, _may_replace))

    @contextlib.contextmanager
    def leases(self) -> "Iterator[Leases]":
        """The leases of this run: inside the `with` block a thread renews them, at its end they are given back."""
        held = Leases(self)
        with held.alive():
            yield held

    def _read(self, query: Any) -> list[Any]:
        """The result of a query."""
        return self._transaction(lambda connection: list(connection.execute(query).all()))

    def _transaction(self, work: Callable[[Connection], T], patience: float | None = None) -> T:
        """Do the work in one transaction; it is repeated after a fault that passes, so that done twice it must be as done once."""

        def once() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return insistent(once, self.url, patience=patience)


def _may_replace(new: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
    """Whether a row may replace the one with its key: a failed row does not replace one that did not fail."""
    return or_(new["status"] != "failed", _rows.c.status == "failed")


def _rows_of(texts: Iterable[Any]) -> list[Row]:
    """The rows of records in JSON. Raises ValueError if one was written by a later release, or is damaged."""
    return all_migrated([_record_of(text) for text in texts])


def _record_of(text: Any) -> dict[str, Any]:
    try:
        try:
            record = from_json(text)
        except ValueError:  # Python's parser reads more: halves of surrogate pairs, which file names may contain
            record = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def _readable(text: Any) -> Row | None:
    """The row of a record in JSON; None if it cannot be read."""
    try:
        return _rows_of([text])[0]
    except ValueError:
        return None


class Leases:
    """Leases divide the work between runs that share a store: only one run at a time holds the lease of a name.

    A lease records the machine and the process of its owner. It ends with the process if that ran on this machine, otherwise `LEASE`
    seconds after it was last renewed. The clocks of machines that share a store must agree to a few seconds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._held: set[str] = set()

    def take(self, name: str) -> bool:
        """Try to take the lease of a name; whether this run holds it now."""

        def claim(connection: Connection) -> bool:
            now = time.time()
            found = connection.execute(select(_leases.c.owner, _leases.c.until).where(_leases.c.name == name)).first()
            ended = [] if found is None or not _is_dead(str(found.owner)) else [found.owner]
            if found is not None and found.owner not in (self.owner, *ended) and _number(found.until) >= now:
                return False
            mine = {"name": name, "owner": self.owner, "until": now + LEASE}
            free = or_(func.coalesce(cast(_leases.c.until, Float), 0.0) < now, _leases.c.owner.in_([self.owner, *ended]))
            upsert(connection, _leases, [mine], lambda new: free)  # another run may be faster
            return bool(connection.scalar(select(_leases.c.owner).where(_leases.c.name == name)) == self.owner)

        got = self._store._transaction(claim)
        if got:
            self._held.add(name)
        return got

    def give(self, name: str) -> None:
        """Give a lease back."""
        self._held.discard(name)
        self._store._transaction(lambda c: c.execute(delete(_leases).where(_leases.c.name == name, _leases.c.owner == self.owner)))

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Renew the leases inside the `with` block, and give them back at its end.

        A thread does both, and the end waits `GIVING` seconds for it at most: leases that stay are of a process that has ended.
        """
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LEASE / 4):
                if self._held:
                    with contextlib.suppress(UserError):  # the next renewal is early enough
                        self._all(update(_leases).values(until=time.time() + LEASE), LEASE / 4)
            with contextlib.suppress(UserError):
                self._all(delete(_leases), GIVING)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(GIVING)

    def _all(self, change: Any, patience: float) -> None:
        """Update or delete all leases of this run."""
        self._store._transaction(lambda connection: connection.execute(change.where(_leases.c.owner == self.owner)), patience)


def _number(value: object) -> float:
    """A number of the database; 0 for what is not one, which SQLite may hold in any column."""
    return value if isinstance(value, int | float) else 0.0


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine that has ended; False for owners on other machines."""
    host, pid = [*owner.rsplit("/", 2), ""][:2]
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, ValueError):
        return False
    return False
