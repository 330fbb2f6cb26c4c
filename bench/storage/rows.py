"""Rows in a database, by key, and who is at work on what.

Any database SQLAlchemy speaks to (SQLite by default). Keys are digests of all that decides a row (see `bench.planning`). Any number
of runs may share a store: a piece of work is done by who holds its lease.
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
PATIENCE = 60.0  # seconds: writers of one SQLite file wait for each other
LEASE = 60.0  # seconds without a sign of life after which a lease is anybody's
TRIES = 5
BUSY: tuple[type[Exception], ...] = (IntegrityError, OperationalError, ProgrammingError)
_metadata = MetaData()
_rows = Table("rows", _metadata, Column("key", String(64), primary_key=True), Column("status", String(16)), Column("row", Text))
_leases = Table("leases", _metadata, Column("name", String(64), primary_key=True), Column("owner", String(255)), Column("until", Float))
T = TypeVar("T")


class Store:
    """Rows by key. Raises UserError where the database cannot be reached; a SQLite file is made where it is not there."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        try:
            parsed = make_url(url)
            options: dict[str, Any] = {}
            if parsed.get_backend_name() == "sqlite":
                options = {"connect_args": {"timeout": PATIENCE}}
            if options and parsed.database and parsed.database != ":memory:":
                file = Path(parsed.database).resolve()  # the same one in a worker, wherever that stands
                file.parent.mkdir(parents=True, exist_ok=True)
                parsed = parsed.set(database=str(file))
            self.url = parsed.render_as_string(hide_password=False)
            self._engine = create_engine(parsed, **options)
            insistent(lambda: _metadata.create_all(self._engine))  # another run may be making them, too
        except (ArgumentError, NoSuchModuleError, ImportError, SQLAlchemyError, OSError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise UserError(f"cannot open the store '{url}': {reason} (expected a database URL such as {DEFAULT_URL})") from None

    def get(self, keys: Iterable[str]) -> dict[str, Row]:
        """The rows there are for these keys. UserError for a row of a later release."""
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
        """(key, row) of all rows that this release can read."""
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
        """Those of the keys whose rows are there and have not failed."""
        wanted, found = list(keys), set()
        with self._engine.connect() as connection:
            for i in range(0, len(wanted), 500):
                query = select(_rows.c.key).where(_rows.c.key.in_(wanted[i : i + 500]), _rows.c.status != "failed")
                found |= set(connection.scalars(query))
        return found

    def put(self, rows: dict[str, Row]) -> None:
        """Write rows, all or none; a row that was there is replaced, but not by one that has failed."""

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
        """Leases of this run, kept alive inside by a thread of their own and given back at the end."""
        held = Leases(self)
        with held.alive():
            yield held

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        """Do the work in one transaction; again, where another writer was in the way."""

        def once() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return insistent(once)


class Leases:
    """Who does what, among runs that share a store: a name is held by one run at a time, as long as that gives signs of life.

    The owner says its machine and process: on the same machine a lease ends with its process, elsewhere `LEASE` seconds after the last
    sign. Machines that share a store need clocks that agree to a few seconds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._held: set[str] = set()

    def take(self, name: str) -> bool:
        """Whether this run holds the name now."""

        def claim(connection: Connection) -> bool:
            # Written before it is read, so that SQLite's lock is taken at once and two runs cannot both find it free.
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
        """The work is done, or is not going to be."""
        self._held.discard(name)
        self._store._transaction(lambda c: c.execute(delete(_leases).where(_leases.c.name == name, _leases.c.owner == self.owner)))

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Renew what is held until the end, and give it back then."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LEASE / 4):
                if self._held:
                    with contextlib.suppress(SQLAlchemyError):  # the next time will do
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
    """Whether an owner of this machine has ended; False for those of other machines, of which nothing is known."""
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
    """What the work on a database returns; tried again where another process was in its way.

    Two may be making the same tables, or writing the same row. `also`: what else a library makes of such an error.
    """
    for k in range(TRIES - 1):
        try:
            return work()
        except (*BUSY, *also) as error:
            if isinstance(error, OperationalError) and "locked" not in str(error) and "exists" not in str(error):
                raise
            time.sleep(random.uniform(0.05, 0.2) * (k + 1))
    return work()
