"""The store: a database with rows of results by key, and leases that divide the work between runs.

Any database that SQLAlchemy supports (default: SQLite). The key of a row is the digest of everything that determines the row (see
`bench.planning.cells`). Several runs may share a store: the run that holds the lease of a job does the job.
"""

import contextlib
import dataclasses
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Float, MetaData, String, Table, Text, create_engine, delete, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, OperationalError, ProgrammingError, SQLAlchemyError

from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.storage.migration import migrated

DEFAULT_URL = "sqlite:///.bench/store.db"
PATIENCE = 60.0  # seconds that a writer of an SQLite file waits for another one
LEASE = 60.0  # seconds; a lease that was not renewed for so long may be taken by another run
TRIES = 5
BUSY: tuple[type[Exception], ...] = (IntegrityError, OperationalError, ProgrammingError)
_metadata = MetaData()
_rows = Table("rows", _metadata, Column("key", String(64), primary_key=True), Column("status", String(16)), Column("row", Text))
_leases = Table("leases", _metadata, Column("name", String(64), primary_key=True), Column("owner", String(255)), Column("until", Float))
T = TypeVar("T")


def file_of(url: str) -> Path | None:
    """The file of an SQLite database by its URL; None for a database that is not a file."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database).resolve()


class Store:
    """Rows of results by key, in a database.

    Args:
        url: database URL. A missing SQLite file is created.

    Raises:
        UserError: the database cannot be opened.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        try:
            parsed = make_url(url)
            options: dict[str, Any] = {}
            if parsed.get_backend_name() == "sqlite":
                options = {"connect_args": {"timeout": PATIENCE}}
            file = file_of(url)
            if file is not None:  # absolute: a worker may have another working directory
                file.parent.mkdir(parents=True, exist_ok=True)
                parsed = parsed.set(database=str(file))
            self.url = parsed.render_as_string(hide_password=False)
            self._engine = create_engine(parsed, **options)
            insistent(lambda: _metadata.create_all(self._engine))  # another run may create them at the same time
        except (ArgumentError, NoSuchModuleError, ImportError, SQLAlchemyError, OSError, ValueError) as error:  # ValueError: a bad port
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise UserError(f"cannot open the store '{url}': {reason} (expected a database URL such as {DEFAULT_URL})") from None

    def get(self, keys: Iterable[str]) -> dict[str, Row]:
        """key -> row, for those of the keys that are stored.

        Raises:
            UserError: a row was written by a later release.
        """
        wanted, found = list(keys), {}
        with self._engine.connect() as connection:
            for i in range(0, len(wanted), 500):
                query = select(_rows.c.key, _rows.c.row).where(_rows.c.key.in_(wanted[i : i + 500]))
                try:
                    found.update({key: migrated(json.loads(text)) for key, text in connection.execute(query)})
                except ValueError as error:
                    raise UserError(f"the store '{self.url}' has a row that cannot be read: {error}") from None
        return found

    def every(self) -> Iterator[tuple[str, Row]]:
        """Iterate over (key, row) of all rows; rows of later releases are skipped."""
        with self._engine.connect() as connection:
            for key, text in connection.execute(select(_rows.c.key, _rows.c.row)):
                with contextlib.suppress(ValueError):
                    yield key, migrated(json.loads(text))

    def remove(self, keys: Iterable[str]) -> None:
        """Remove rows by key."""
        wanted = list(keys)
        for i in range(0, len(wanted), 500):
            query = delete(_rows).where(_rows.c.key.in_(wanted[i : i + 500]))
            self._transaction(partial(Connection.execute, statement=query))

    def done(self, keys: Iterable[str]) -> set[str]:
        """The keys whose rows are stored and did not fail."""
        wanted, found = list(keys), set()
        with self._engine.connect() as connection:
            for i in range(0, len(wanted), 500):
                query = select(_rows.c.key).where(_rows.c.key.in_(wanted[i : i + 500]), _rows.c.status != "failed")
                found |= set(connection.scalars(query))
        return found

    def put(self, rows: dict[str, Row]) -> None:
        """Write all rows, or none. An existing row is replaced, unless the new row failed and the existing one did not."""

        def write(connection: Connection) -> None:
            failed = [key for key, row in rows.items() if row.status == "failed"]
            whole = select(_rows.c.key).where(_rows.c.key.in_(failed), _rows.c.status != "failed")
            kept = set(connection.scalars(whole)) if failed else set()
            values = [
                {"key": key, "status": row.status, "row": json.dumps(dataclasses.asdict(row))}
                for key, row in rows.items()
                if key not in kept
            ]
            connection.execute(delete(_rows).where(_rows.c.key.in_([value["key"] for value in values])))
            if values:
                connection.execute(insert(_rows), values)

        if rows:
            self._transaction(write)

    @contextlib.contextmanager
    def leases(self) -> "Iterator[Leases]":
        """The leases of this run: inside the `with` block a thread renews them, at its end they are given back."""
        held = Leases(self)
        with held.alive():
            yield held

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        """Do the work in one transaction; retry if another process was writing."""

        def once() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return insistent(once)


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
            # Write before reading: SQLite then locks the database at once, and two runs cannot both see a free lease.
            connection.execute(delete(_leases).where(_leases.c.name == name, _leases.c.until < time.time()))
            owner = connection.scalar(select(_leases.c.owner).where(_leases.c.name == name))
            if owner is not None and (owner == self.owner or not _is_dead(owner)):
                return bool(owner == self.owner)
            connection.execute(delete(_leases).where(_leases.c.name == name, _leases.c.owner == owner))
            connection.execute(insert(_leases), [{"name": name, "owner": self.owner, "until": time.time() + LEASE}])
            return True

        try:
            got = self._store._transaction(claim)
        except IntegrityError:  # another run was faster
            return False
        if got:
            self._held.add(name)
        return got

    def give(self, name: str) -> None:
        """Give a lease back."""
        self._held.discard(name)
        self._store._transaction(lambda c: c.execute(delete(_leases).where(_leases.c.name == name, _leases.c.owner == self.owner)))

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Renew the leases inside the `with` block, and give them back at its end."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LEASE / 4):
                if self._held:
                    with contextlib.suppress(SQLAlchemyError):  # the next renewal is early enough
                        self._store._transaction(
                            lambda c: c.execute(update(_leases).where(_leases.c.owner == self.owner).values(until=time.time() + LEASE))
                        )

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(SQLAlchemyError):
                self._store._transaction(lambda c: c.execute(delete(_leases).where(_leases.c.owner == self.owner)))


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine that has ended; False for owners on other machines."""
    host, pid, _ = owner.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False


def insistent(work: Callable[[], T], *also: type[Exception]) -> T:
    """Call a function that uses a database, and retry if another process interfered (same tables created, or same row written).

    Args:
        work: the function.
        also: further exceptions that mean such a conflict.

    Returns:
        The result of the function.

    Raises:
        Exception: the last exception, after `TRIES` attempts.
    """
    for k in range(TRIES - 1):
        try:
            return work()
        except (*BUSY, *also) as error:
            if isinstance(error, OperationalError) and "locked" not in str(error) and "exists" not in str(error):
                raise
            time.sleep(random.uniform(0.05, 0.2) * (k + 1))
    return work()
