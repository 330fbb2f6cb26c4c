"""A real PostgreSQL server as the store: many writers, new stores opened at once, restarts, and no password in any text."""

import contextlib
import csv
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.spec.errors import UserError
from bench.storage import database, rows
from bench.storage.rows import Leases, Store
from bench.tuning import trials
from tests.bench.storage.test_store import row
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
import os, sys, traceback
from bench.storage.rows import Leases, Store
from tests.bench.storage.test_store import row

keys = [f"{k:03d}" for k in range(75)]
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
            print("took", took, flush=True)
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
    open_at_once(*(server.new(f"opened{k}") for k in range(4)))


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

RUN = ("run", "--methods", "random,magnitude", "--datasets", "breast_cancer", "--architectures", "mlp", "--seeds", "0,1", "--sparsities",
       "0.5,0.9", "--epochs", "2", "--finetune-epochs", "0", "--trials", "3", "--workers", "1", "--output", "out")  # fmt: skip
MEASURED = ("method", "tuning", "sparsity", "seed", "status", "accuracy", "nll", "kept_weights", "hyperparameters")


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    folder.mkdir()
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *RUN, *options]
    return subprocess.Popen(command, cwd=folder, env=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def measured(folder: Path) -> list[list[str]]:
    with (folder / "out" / "results.csv").open(newline="") as file:
        return [[line[name] for name in MEASURED] for line in csv.DictReader(file)]


def test_a_run_with_tuning_while_the_server_restarts(server: Server, url: str, tmp_path: Path) -> None:
    """The same CSV as with an SQLite file; no row and no trial is lost or doubled; the password is nowhere."""
    alone = start(tmp_path / "alone")
    out, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, out
    run = start(tmp_path / "restarted", "--store", url)
    restarts = 0
    while run.poll() is None:
        time.sleep(1.5)
        if restarts < 6 and Store(url).done(f"{k}" for k in range(1)) == set():
            server.control("restart", "-m", "immediate")
            restarts += 1
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 0, out
    assert restarts >= 3
    assert measured(tmp_path / "restarted") == measured(tmp_path / "alone")
    with contextlib.closing(sqlite3.connect(tmp_path / "alone" / ".bench" / "store.db")) as file:
        counts = [file.execute(f"select count(*) from {table}").fetchone()[0] for table in ("rows", "trials", "studies")]
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        counted = []
        for table in (b"rows", b"trials", b"studies"):
            found = connection.execute(b"select count(*) from " + table).fetchone()
            counted.append(found[0] if found else None)
        stored = connection.execute("select string_agg(row, ' ') from rows").fetchone()
    assert counted == counts
    assert PASSWORD not in out + str(stored)
    for text in [*(tmp_path / "restarted").rglob("*.csv"), *(tmp_path / "restarted").rglob("*.toml")]:
        assert PASSWORD not in text.read_text()
