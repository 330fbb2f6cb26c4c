"""A real PostgreSQL server as the store: many writers, new stores opened at once, restarts, and no password in any text."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.execution import environment
from bench.execution import run as execution
from bench.execution.executors import Inline
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.storage import database, rows
from bench.storage.results_csv import ordered, read_rows
from bench.storage.rows import Leases, Store
from bench.tuning import trials
from tests.bench.storage.test_store import row
from tests.conftest import TINY
from tests.faults.test_stores import open_at_once
from tests.services import postgres
from tests.services.postgres import PASSWORD, Server

pytestmark = [pytest.mark.services, pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing())]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres.server() as started:
        yield started


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """A new database."""
    return server.new(request.node.name[:60])


WRITE = """
import multiprocessing, os, sys, traceback
from bench.storage.rows import Leases, Store
from tests.bench.storage.test_store import row

keys, together = [f"{k:03d}" for k in range(75)], multiprocessing.get_context("fork").Barrier(8)
for writer in range(8):
    if os.fork() == 0:
        try:
            store = Store(sys.argv[1])
            took = 0
            for turn in range(8):
                order = keys if writer % 2 else keys[::-1]
                status = "failed" if (writer + turn) % 2 else "ok"
                store.put({key: row(seed=writer, status=status, error=f"{writer}") for key in order})
                store.remove(order[:3]) if turn == 3 else None
                took += Leases(store).take(f"lease {turn}")
            os.write(1, f"took {took}\\n".encode())
            together.wait(60)  # the lease of a process that has ended is free
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
print([os.wait()[1] for _ in range(8)])
"""


def test_eight_writers_of_the_same_keys(url: str) -> None:
    """600 rows each, half of them failed, in opposite orders: no error, no row missing, and a failed one replaces nothing."""
    done = subprocess.run([sys.executable, "-c", WRITE, url], cwd=ROOT, capture_output=True, text=True, timeout=200)
    lines = done.stdout.splitlines()
    assert (lines[-1], done.stderr) == (str([0] * 8), "")
    assert sum(int(line.split()[1]) for line in lines[:-1]) == 8, "each lease went to one of them"
    found = Store(url).get([f"{k:03d}" for k in range(75)])
    assert len(found) == 75
    assert {r.status for r in found.values()} == {"ok"}


def test_six_processes_open_a_new_store_at_once(server: Server) -> None:
    open_at_once(*(server.new(f"opened{k}") for k in range(3)))


def test_rows_leases_and_studies_survive_a_restart(server: Server, url: str) -> None:
    """Each use comes back, without an error, when the server is there again."""
    store = Store(url)
    with store.leases() as mine:
        assert mine.take("a")
        assert trials.studies(url) == []
        server.control("restart", "-m", "immediate")
        store.put({"x": row()})
        server.control("restart", "-m", "immediate")
        assert store.get(["x"]) == {"x": row()}
        server.control("restart", "-m", "immediate")
        assert [mine.take("a"), Leases(store).take("a")] == [True, False]
        server.control("restart", "-m", "immediate")
        assert trials.studies(url) == []
        server.control("stop", "-m", "immediate")
        threading.Timer(1.5, server.control, ["start"]).start()
        store.put({"y": row()})
    assert Leases(store).take("a"), "given back"
    assert {key for key, _ in store.every()} == {"x", "y"}


def test_a_server_that_stays_away_is_one_line(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.5)
    store = Store(url)
    with contextlib.ExitStack() as stack:
        with store.leases() as mine:
            assert mine.take("a")
            server.control("stop", "-m", "immediate")
            stack.callback(server.control, "start")
            with pytest.raises(UserError, match="What was finished is kept") as error:
                store.put({"x": row()})
            begin = time.monotonic()
        assert time.monotonic() - begin < rows.GIVING + 0.5
        with pytest.raises(UserError, match="cannot open the store") as opening:
            Store(url)
        for text in (str(error.value), str(opening.value)):
            assert "\n" not in text
            assert PASSWORD not in text
            assert "bench:***@127.0.0.1" in text


def test_what_the_server_refuses_is_one_line(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password, a missing database, a role without permission, tables of others, and a lock that stays."""
    import psycopg

    monkeypatch.setattr(database, "PATIENCE", 0.5)
    monkeypatch.setattr(database, "BUSY", 0.2)
    for wrong in (url.replace(PASSWORD, "wrong-word"), server.url("absent"), url.replace("bench:", "nobody:")):
        with pytest.raises(UserError, match="cannot open the store") as error:
            Store(wrong)
        assert not any(word in str(error.value) for word in (PASSWORD, "wrong-word", "\n"))
    store = Store(url)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        other.execute("create role reader login password 'reader-word'")
        other.execute("grant select on all tables in schema public to reader")
        reading = Store(url.replace(f"bench:{PASSWORD}", "reader:reader-word"))
        assert reading.get(["x"]) == {}
        with pytest.raises(UserError, match=r"permission denied for table rows\. Ask for the permission"):
            reading.put({"x": row()})
        with other.transaction():
            other.execute("lock table rows in access exclusive mode")
            with pytest.raises(UserError, match="lock timeout"):
                store.get(["x"])
        other.execute("drop table leases")
        with pytest.raises(UserError, match='relation "leases" does not exist'):
            Leases(store).take("a")
        other.execute("create table leases (x int)")
        with pytest.raises(UserError, match="cannot open the store"):
            Store(url)


# --- the command line

METHODS = ("random", "magnitude")
CHANGES: dict[str, Any] = {"seeds": (0,), "sparsities": (0.5, 0.9), "epochs": 2, "finetune_epochs": (0,), "trials": 3}
OPTIONS = [part for name, value in CHANGES.items() for part in (
    f"--{name.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
)]  # fmt: skip
MEASURED = ("method", "tuning", "sparsity", "seed", "status", "accuracy", "nll", "kept_weights", "hyperparameters")


def counts(connection: Any) -> list[int]:
    """The numbers of rows, trials, studies and leases in a database."""
    return [connection.execute(f"select count(*) from {table}").fetchone()[0] for table in ("rows", "trials", "studies", "leases")]


def measured(found: list[Row]) -> list[list[Any]]:
    return [[getattr(row, name) for name in MEASURED] for row in ordered(found)]


def alone(folder: Path) -> list[Row]:
    """The rows of the same run in this process, with an SQLite file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        request = environment.open_request("tiny.toml", Narrowing(methods=METHODS, **CHANGES), Resources())
        return execution.run(request, Store(), Inline(), lambda: contextlib.nullcontext(lambda _: None), lambda _: None)


def begun(connection: Any) -> bool:
    """Whether the run has written its first row."""
    exists = connection.execute("select to_regclass('rows')").fetchone()
    return bool(exists and exists[0] and connection.execute("select 1 from rows").fetchone())


def test_a_run_with_tuning_while_the_server_restarts(server: Server, url: str, tiny: Path) -> None:
    """The same rows as with an SQLite file; none, and no trial, is lost or doubled; the password is in no text."""
    import psycopg

    place = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", "run", "--suite", "tiny.toml", "--methods", ",".join(METHODS), *OPTIONS, "--workers", "1"]
    (tiny / "run").mkdir()
    (tiny / "run" / "tiny.toml").write_text(TINY)
    with (tiny / "output").open("w") as out:
        run = subprocess.Popen([*command, "--store", url, "--output", "out"], cwd=tiny / "run", env=place, stdout=out, stderr=out)
    plain, restarts = url.replace("+psycopg", ""), 0
    with psycopg.connect(plain, autocommit=True) as connection:
        while not begun(connection):
            assert run.poll() is None, (tiny / "output").read_text()
            time.sleep(0.1)
    while run.poll() is None:
        server.control("restart", "-m", "immediate")
        restarts += 1
        time.sleep(0.7)
    said = (tiny / "output").read_text()
    assert run.returncode == 0, said
    assert restarts >= 2
    assert measured(read_rows(tiny / "run" / "out" / "results.csv")) == measured(alone(tiny))
    with contextlib.closing(sqlite3.connect(tiny / ".bench" / "store.db")) as file, psycopg.connect(plain) as connection:
        assert counts(connection) == counts(file)
        stored = connection.execute("select string_agg(row, ' ') from rows").fetchone()
    assert PASSWORD not in said + str(stored)
    written = [path for path in (tiny / "run").rglob("*") if path.is_file()]
    assert len(written) > 3
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]
