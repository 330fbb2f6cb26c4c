"""The database of the store: its URL, its engine, and its errors.

What passes by itself is tried again: a lock of another process, a conflict between two writers, a server that restarts. Every other error
of the database is raised as a `UserError` of one line. No message contains a password.
"""

import importlib.util
import itertools
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

from bench.spec.errors import UserError

DEFAULT_URL = "sqlite:///.bench/store.db"
PATIENCE = 60.0  # seconds for which something that passes by itself is tried again
BUSY = 1.0  # seconds of one try; Python does not see a signal meanwhile
PAUSE = 1.0  # most seconds between two tries
PLAIN = {"mode", "uri", "cache", "immutable", "nolock", "timeout", "sslmode", "connect_timeout", "host", "port", "charset"}  # no secrets
STARTING = ("starting up", "shutting down", "recovery", "not yet accepting")
T = TypeVar("T")

# Kinds of faults by SQLite's primary result code, and by the SQLSTATE of a server.
SQLITE = {3: "denied", 5: "locked", 6: "locked", 8: "read-only", 10: "disk", 11: "damaged", 13: "full", 23: "denied", 26: "damaged"}
UNIQUE = (1555, 2067)  # SQLite's extended codes of a key that exists already
STATES = {
    "08": "lost", "57P": "lost", "53300": "lost", "40": "conflict", "23505": "conflict", "42P07": "conflict", "42710": "conflict",
    "55P03": "locked", "53100": "full", "25006": "read-only", "42501": "denied",
}  # fmt: skip
PASSING = {"locked", "conflict", "lost"}
CONTINUE = "What was finished is kept; the same command continues"
ADVICE = {
    "locked": f"Another process has locked it for a minute: end that process. {CONTINUE}",
    "lost": f"Its server did not answer for a minute. {CONTINUE} when the server runs",
    "full": f"Make space, or choose another one with --store. {CONTINUE}",
    "disk": f"Check the disk, its space and its limits. {CONTINUE}",
    "read-only": f"Allow writing to the database (of a file also to its folder), or choose another one with --store. {CONTINUE}",
    "denied": f"Ask for the permission, or choose another one with --store. {CONTINUE}",
    "damaged": "Restore a copy of the file, or choose another one with --store; `sqlite3 FILE .recover` prints what can still be read",
    "other": "Choose another one with --store if this is not a store of razorbench. What was finished is kept",
}


def shown(url: str) -> str:
    """A database URL as messages and suggested commands show it: `***` for its password and for the values of options that may be secret.

    Args:
        url: any text that a user gave as a URL.
    """
    url = str(url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # it is unknown which part is the password
        scheme, mark, _ = url.partition("://")
        return f"{scheme}://***" if mark else "***" if re.search("[@:]", url) else url
    tail = f"{parsed.host or ''}/{parsed.database or ''}"
    if "@" in tail and parsed.password is not None:  # a password that contains @
        return f"{parsed.drivername}://***@{tail.rpartition('@')[2]}"
    query = {name: value if name in PLAIN else "***" for name, value in parsed.query.items()}
    if parsed.password is None and query == dict(parsed.query):
        return url
    return parsed.set(query=query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def parsed_url(url: str) -> URL:
    """Parse a database URL. The path of an SQLite file becomes absolute, because workers may have another working directory.

    Args:
        url: the URL. `postgresql://` is read as `postgresql+psycopg://` unless psycopg2 is installed.

    Raises:
        UserError: it is not a database URL.
    """
    text = str(url)
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        hint = f"sqlite:///{text}" if text and "***" not in shown(text) and "://" not in text else DEFAULT_URL
        raise UserError(f"cannot open the store '{shown(text)}': it is not a database URL such as {hint}") from None
    if parsed.drivername in ("postgres", "postgresql") and importlib.util.find_spec("psycopg2") is None:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite" or _in_memory(parsed):
        return parsed
    database = str(parsed.database)
    try:
        if not _is_uri(parsed):
            return parsed.set(database=str(Path(database).expanduser().resolve()))
        path = re.sub("^//[^/]*", "", unquote(database.removeprefix("file:")))
        return parsed.set(database=f"file:{quote(str(Path(path).expanduser().resolve()))}")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot open the store '{shown(text)}': {error}") from None


def _is_uri(parsed: URL) -> bool:
    return str(parsed.database).startswith("file:") and parsed.query.get("uri", "") in ("true", "1", "yes", "on")


def _in_memory(parsed: URL) -> bool:
    return parsed.database in (None, "", ":memory:", "file::memory:") or parsed.query.get("mode") == "memory"


def file_of(url: str) -> Path | None:
    """The file of an SQLite database by its URL; None for a database that is not a file.

    Raises:
        UserError: it is not a database URL.
    """
    parsed = parsed_url(url)
    if parsed.get_backend_name() != "sqlite" or _in_memory(parsed):
        return None
    database = str(parsed.database)
    return Path(unquote(database.removeprefix("file:")) if _is_uri(parsed) else database)


def is_temporary(url: str) -> bool:
    """Whether the URL is of an SQLite database in memory, which ends with the process and which workers cannot share."""
    parsed = parsed_url(url)
    return parsed.get_backend_name() == "sqlite" and _in_memory(parsed)


def create_file_folder(url: str) -> None:
    """Create the folder of an SQLite file, unless the file is only read.

    Raises:
        OSError: it cannot be created, or the file is a directory.
    """
    file = file_of(url)
    if file is None:
        return
    if file.is_dir():
        raise IsADirectoryError(21, "it is a directory; expected a file")
    if parsed_url(url).query.get("mode") != "ro":
        file.parent.mkdir(parents=True, exist_ok=True)


def engine_options(url: str) -> dict[str, Any]:
    """Arguments of `sqlalchemy.create_engine` for a URL: one try ends soon, and a lost connection is replaced.

    An option of the URL itself has precedence.
    """
    parsed = parsed_url(url)
    if parsed.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY}}
    options: dict[str, Any] = {}
    if parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() in ("psycopg", "psycopg2"):
        options = {
            "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
            "options": f"-c lock_timeout={5 * BUSY:.0f}s",
        }  # fmt: skip
    return {"pool_pre_ping": True, "connect_args": {name: value for name, value in options.items() if name not in parsed.query}}


def insistent(
    work: Callable[[], T], url: str, *, patience: float | None = None, opening: bool = False, also: tuple[type[Exception], ...] = ()
) -> T:  # fmt: skip
    """Call a function that uses a database; try again while a fault may pass by itself.

    Args:
        work: the function. Called twice it must do the same as called once.
        url: URL of the database, for messages.
        patience: seconds after which it is given up; None: `PATIENCE`.
        opening: whether this is the first use of the database. A server that cannot be reached is then an error at once.
        also: further exceptions that mean a conflict with another process.

    Returns:
        The result of the function.

    Raises:
        UserError: the database cannot be used, with the reason.
    """
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    for k in itertools.count():
        try:
            return work()
        except Exception as error:
            fault = "conflict" if isinstance(error, also) else kind_of(error)
            if not fault:
                raise
            left = until - time.monotonic()
            waits = fault in PASSING and not (opening and fault == "lost" and not any(word in str(error) for word in STARTING))
            if not waits or left <= 0:
                raise UserError(_message(error, fault, url, opening)) from None
        time.sleep(min(random.uniform(0.5, 1.0) * min(PAUSE, 0.05 * 2 ** min(k, 10)), left))
    raise AssertionError  # the loop has no end


def kind_of(error: BaseException) -> str:
    """The kind of a database's fault: a key of `ADVICE` or "conflict"; "" for other exceptions."""
    found = _database_error(error)
    if found is None:
        return ""
    cause: Any = getattr(found, "orig", None)
    code, state = getattr(cause, "sqlite_errorcode", None), getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    text = str(cause or found).lower()
    if any(word in text for word in ("already exists", "concurrently updated", "deadlock", "lock wait timeout")):
        return "conflict"
    if code is not None:
        return "conflict" if code in UNIQUE else SQLITE.get(code & 0xFF, "other")
    if state is not None:
        return next((kind for start, kind in STATES.items() if str(state).startswith(start)), "other")
    if type(cause).__module__.startswith("sqlite3"):
        return "other"
    if isinstance(found, IntegrityError):
        return "conflict"
    lost = isinstance(found, OperationalError | InterfaceError) or getattr(found, "connection_invalidated", False)
    return "lost" if lost else "other"


def _database_error(error: BaseException) -> SQLAlchemyError | UnicodeError | None:
    """The error of SQLAlchemy in an exception or its causes; Optuna raises its own from one."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, SQLAlchemyError | UnicodeError):
            return at
        at = at.__cause__
    return None


def _message(error: Exception, fault: str, url: str, opening: bool) -> str:
    """One line: what was tried, why it failed, and what to do."""
    reason = reason_of(error, url)
    if opening:
        advice = "" if fault in ("other", "lost") else f". {ADVICE.get(fault, ADVICE['other'])}"
        return f"cannot open the store '{shown(url)}': {reason}{advice}"
    return f"the store '{shown(url)}' cannot be used: {reason}. {ADVICE.get(fault, ADVICE['other'])}"


def reason_of(error: BaseException, url: str) -> str:
    """Why a database cannot be used: the first line of its own message, without secrets."""
    found: BaseException = _database_error(error) or error
    if isinstance(found, NoSuchModuleError):
        return f"unknown kind of database '{str(url).partition(':')[0]}'; expected a URL such as {DEFAULT_URL}"
    if isinstance(found, ImportError):
        if (found.name or "").startswith("psycopg"):
            return f"it needs {found.name}, which is not installed: pip install 'razorbench[postgres]'"
        return f"its driver is not installed ({found})"
    if isinstance(found, OSError) and found.strerror:
        return found.strerror
    cause = found.orig if isinstance(found, DBAPIError) and found.orig is not None else found
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    text = lines[0].rstrip(".")
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    return printable(text)


def printable(text: str) -> str:
    """A text of the database for a message: one line of at most 300 characters, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 300 else line[:297] + "..."


def _secrets(url: str) -> list[str]:
    """The parts of a URL that no message may show, longest first."""
    try:
        parsed = make_url(str(url))
    except (ArgumentError, ValueError):
        return [str(url)]
    values = [
        value for name, given in parsed.query.items() if name not in PLAIN for value in ([given] if isinstance(given, str) else given)
    ]
    found = [str(parsed.password or ""), *values, *(part.rpartition("@")[0] for part in (parsed.host or "", parsed.database or ""))]
    return sorted((secret for secret in found if len(secret) > 2), key=len, reverse=True)
