"""A PostgreSQL server of a test, in a temporary folder."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "s3cr3t-of-the-store"
OPTIONS = "-c fsync=off -c listen_addresses=127.0.0.1 -c max_connections=100 -c shared_buffers=16MB"


@dataclass
class Server:
    """A running server. `prefix`: the command that runs another as its user."""

    folder: Path
    programs: Path
    prefix: list[str]
    port: int

    def run(self, name: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs."""
        command = [*self.prefix, str(self.programs / name), *arguments]
        with (self.folder / "output").open("a") as out:  # a file, because the server keeps a pipe open
            subprocess.run(command, cwd=self.folder, stdout=out, stderr=out, check=True, timeout=60)

    def control(self, *arguments: str) -> None:
        """Run pg_ctl."""
        options = ("-o", f"-p {self.port} -k {self.folder} {OPTIONS}") if arguments[0] != "stop" else ()
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", *options, *arguments)

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, with the password."""
        return f"postgresql+psycopg://bench:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new(self, database: str) -> str:
        """Create a database, and return its URL."""
        import psycopg

        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'create database "{database}"')
        return self.url(database)


def missing() -> str:
    """Why no server can be started here, or an empty text."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'razorbench[postgres]'"
    if programs() is None:
        return "no initdb and pg_ctl of PostgreSQL on the PATH or in /usr/lib/postgresql"
    if os.geteuid() == 0 and (user() is None or shutil.which("setpriv") is None):
        return "PostgreSQL does not run as root, and there is neither setpriv nor a user postgres or nobody"
    return ""


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; those of the newest release that Debian installed, if none is on the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name, reverse=True)
    return next((f for f in folders if (f / "initdb").is_file() and (f / "pg_ctl").is_file()), None)


def user() -> "pwd.struct_passwd | None":
    """A user other than root."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Start a server with passwords; it is stopped and removed at the end."""
    found = programs()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="razorbench-postgres-", dir="/tmp"))  # short, because of its socket
    prefix: list[str] = []
    if os.geteuid() == 0 and (other := user()) is not None:
        os.chown(folder, other.pw_uid, other.pw_gid)
        prefix = ["setpriv", f"--reuid={other.pw_uid}", f"--regid={other.pw_gid}", "--clear-groups"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Server(folder, found, prefix, port)
    try:
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        made.run(
            "initdb", "-D", str(folder / "data"), "-A", "scram-sha-256", "-U", "bench", "--pwfile", str(folder / "password"), "--no-sync",
            "-E", "UTF8", "--locale=C",
        )  # fmt: skip
        made.control("start")
        yield made
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            made.control("stop", "-m", "immediate")
        shutil.rmtree(folder, ignore_errors=True)
