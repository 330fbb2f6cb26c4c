"""What `put`, `get`, `done`, `remove` and leases promise, against a plain dict, and owners and times set by hand."""

import dataclasses
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from bench.spec.errors import UserError
from bench.spec.row import SCHEMA, Row
from bench.storage import rows as stores
from bench.storage import upsert
from bench.storage.rows import Leases, Store
from tests.bench.storage.test_store import row

STATES = ("ok", "collapsed", "failed", "unsupported")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def leases(url: str) -> dict[str, tuple[str, float]]:
    """name -> (owner, until), read without the store."""
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        return {name: (owner, until) for name, owner, until in database.execute("select name, owner, until from leases")}


def set_lease(url: str, name: str, owner: str, until: float) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("delete from leases where name = ?", [name])
        database.execute("insert into leases values (?, ?, ?)", [name, owner, until])


@pytest.mark.parametrize("old", [None, *STATES])
@pytest.mark.parametrize("new", STATES)
def test_only_a_failure_does_not_replace_what_did_not_fail(url: str, old: str | None, new: str) -> None:
    store = Store(url)
    if old is not None:
        store.put({"k": row(status=old, error="old"), "other": row(seed=1)})
    store.put({"k": row(status=new, error="new"), "more": row(seed=2)})
    stays = new == "failed" and old not in (None, "failed")
    wanted = row(status=old, error="old") if stays else row(status=new, error="new")
    assert store.get(["k", "other", "more"]) == {"k": wanted, "more": row(seed=2)} | ({"other": row(seed=1)} if old else {})
    assert ("k" in store.done(["k"])) == (wanted.status != "failed")


def test_random_writes_are_those_of_a_dict(url: str) -> None:
    draw, store, plain = random.Random(0), Store(url), dict[str, Row]()
    keys = [f"key {k}" for k in range(12)]
    for step in range(60):
        chosen = draw.sample(keys, draw.randrange(5))
        if draw.random() < 0.2:
            store.remove(iter(chosen))
            plain = {key: value for key, value in plain.items() if key not in chosen}
        else:
            new = {key: row(status=draw.choice(STATES), seed=step) for key in chosen}
            store.put(new)
            plain |= {key: r for key, r in new.items() if r.status != "failed" or key not in plain or plain[key].status == "failed"}
        asked = draw.sample(keys, 6)
        assert store.get(iter(asked)) == {key: plain[key] for key in asked if key in plain}
        assert store.done(iter(keys)) == {key for key, r in plain.items() if r.status != "failed"}
        assert dict(store.every()) == plain


@pytest.mark.parametrize("count", [499, 500, 501, 1001])
def test_any_number_of_keys(url: str, count: int) -> None:
    """More than one query may hold; keys that were not asked for stay."""
    store = Store(url)
    many = {f"{k:05d}": row(seed=k, status="failed" if k % 7 == 0 else "ok") for k in range(count)}
    store.put({**many, "x": row()})
    assert store.get(many) == many
    assert store.done(many) == {f"{k:05d}" for k in range(count) if k % 7}
    assert len(dict(store.every())) == count + 1
    store.remove(many)
    assert dict(store.every()) == {"x": row()}


def test_a_query_has_at_most_a_part_of_the_keys(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database limits the parameters of a statement: SQLite to 32766, others to fewer."""
    monkeypatch.setattr(stores, "PART", 3)
    store, keys, sizes = Store(url), [f"{k:05d}" for k in range(8)], list[int]()
    store.put({key: row() for key in keys})
    event.listen(store._engine, "before_cursor_execute", lambda c, cursor, text, parameters, *rest: sizes.append(text.count("?")))
    assert set(store.get(keys)) == store.done(keys) == set(keys)
    assert sizes == [3, 3, 2, 3, 3, 2]
    sizes.clear()
    store.remove(reversed(keys))
    assert sizes == [3, 3, 2]


def test_rows_are_written_in_the_order_of_their_keys(url: str) -> None:
    """So that two runs that write the same rows do not wait for each other's."""
    store, order = Store(url), list[str]()
    event.listen(store._engine, "before_cursor_execute", lambda c, cursor, text, values, *rest: order.extend(v[0] for v in values))
    store.put({key: row() for key in "bdac"})
    store.remove("dbac")
    assert order == ["a", "b", "c", "d"] * 2


def test_all_rows_are_read_in_parts_in_the_order_of_their_keys(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PART", 3)
    for count in (1, 2, 3, 4, 6, 7):
        store = Store(url)
        keys = [f"{(k * 5) % 7}" for k in range(count)]
        store.put({key: row(seed=int(key)) for key in keys})
        assert list(store.every()) == [(key, row(seed=int(key))) for key in sorted(keys)]
        store.remove(keys)
    assert list(store.every()) == []


def test_rows_that_were_written_are_there_for_others_at_once(url: str) -> None:
    first, second = Store(url), Store(url)
    first.put({"a": row()})
    assert second.get(["a"]) == {"a": row()}
    second.put({})
    second.remove([])
    assert (second.get([]), second.done([])) == ({}, set())
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        ((key, status, text),) = database.execute("select key, status, row from rows").fetchall()
    assert (key, status) == ("a", "ok")
    assert json.loads(text) == dataclasses.asdict(row())
    assert json.loads(text)["schema"] == SCHEMA


def test_a_lease_names_its_owner_and_ends_after_its_time(url: str) -> None:
    held = Leases(Store(url))
    before = time.time()
    assert held.take("a")
    owner, until = leases(url)["a"]
    assert owner == held.owner
    assert owner.startswith(f"{socket.gethostname()}/{os.getpid()}/")
    assert before + stores.LEASE <= until <= time.time() + stores.LEASE
    assert Leases(Store(url)).owner != held.owner, "two in one process are two owners"


LATE, EARLY = 1000.0, -0.5


@pytest.mark.parametrize(
    ("owner", "lasts", "free"),
    [
        ("elsewhere/1/x", LATE, False), ("elsewhere/1/x", EARLY, True), ("here/mine/x", LATE, False), ("here/mine/x", EARLY, True),
        ("here/dead/x", LATE, True), ("here/dead/x", EARLY, True), ("elsewhere/dead/x", LATE, False), ("here/text/x", LATE, False),
        ("a/host/with/1/x", LATE, False),
    ],
)  # fmt: skip
def test_a_lease_is_free_if_it_ended_or_its_process_did(url: str, owner: str, lasts: float, free: bool) -> None:
    host, pid, rest = owner.rsplit("/", 2)
    if pid == "dead":
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        pid = str(gone.pid)
    owner = f"{socket.gethostname() if host == 'here' else host}/{os.getpid() if pid == 'mine' else pid}/{rest}"
    held = Leases(Store(url))
    until = time.time() + lasts
    set_lease(url, "a", owner, until)
    set_lease(url, "b", owner, until)
    assert held.take("a") == free
    found = leases(url)
    assert found["b"] == (owner, until), "another name is untouched"
    if free:
        assert found["a"][0] == held.owner
        assert found["a"][1] > time.time() + stores.LEASE - 30
    else:
        assert found["a"] == (owner, until)


@pytest.mark.parametrize("upserts", [upsert.UPSERTS, {}], ids=["one statement", "two statements"])
@pytest.mark.parametrize("until", [None, "x", "", b"x"])
def test_a_lease_without_a_time_is_free(url: str, until: Any, upserts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever end it."""
    monkeypatch.setattr(upsert, "UPSERTS", upserts)
    mine, theirs = Leases(Store(url)), Leases(Store(url))
    set_lease(url, "a", "elsewhere/1/x", until)
    assert [mine.take("a"), theirs.take("a")] == [True, False]
    assert leases(url)["a"][0] == mine.owner


def test_only_its_own_lease_is_given_back(url: str) -> None:
    mine, theirs = Leases(Store(url)), Leases(Store(url))
    assert [mine.take("a"), mine.take("b"), theirs.take("c")] == [True] * 3
    mine.give("c")
    mine.give("absent")
    assert set(leases(url)) == {"a", "b", "c"}
    mine.give("a")
    assert {name: owner for name, (owner, _) in leases(url).items()} == {"b": mine.owner, "c": theirs.owner}
    assert mine.take("a")
    theirs.give("a")
    assert not theirs.take("a")


def test_the_end_of_a_run_gives_back_what_it_holds_and_no_more(url: str) -> None:
    theirs = Leases(Store(url))
    assert theirs.take("c")

    def broken_off() -> None:
        with Store(url).leases() as mine:
            assert [mine.take(name) for name in "abc"] == [True, True, False]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert {name: owner for name, (owner, _) in leases(url).items()} == {"c": theirs.owner}


def test_only_its_own_leases_are_renewed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LEASE", 0.4)
    store = Store(url)
    set_lease(url, "other", "elsewhere/1/x", 5.0)
    with store.leases() as mine:
        assert mine.take("a")
        first = leases(url)["a"][1]
        deadline = time.time() + 5
        while leases(url)["a"][1] == first and time.time() < deadline:
            time.sleep(0.02)
        owner, until = leases(url)["a"]
        assert owner == mine.owner
        assert first < until <= time.time() + 0.4
        assert leases(url)["other"] == ("elsewhere/1/x", 5.0)


def test_a_renewal_that_fails_is_tried_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database was out of reach for a moment; the run goes on, and at its end the lease is given back."""
    monkeypatch.setattr(stores, "LEASE", 0.4)
    whole, failures = Store._transaction, []

    def broken(store: Store, work: Any, patience: float | None = None) -> Any:
        if patience is not None and len(failures) < 2:
            failures.append(patience)
            raise UserError("out of reach")
        return whole(store, work, patience)

    monkeypatch.setattr(Store, "_transaction", broken)
    with Store(url).leases() as mine:
        assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()), "none delays the exit"
        assert mine.take("a")
        first = leases(url)["a"][1]
        deadline = time.time() + 5
        while leases(url)["a"][1] == first and time.time() < deadline:
            time.sleep(0.02)
        assert leases(url)["a"][1] > first
    assert failures == [0.1, 0.1], "a renewal takes no longer than the time between two"
    assert leases(url) == {}


@pytest.mark.parametrize("table", ["create table rows (id integer)", "create table leases (x)"])
def test_a_database_of_other_tables_is_refused_when_it_is_opened(url: str, table: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute(table)
    with pytest.raises(UserError, match="cannot open the store"):
        Store(url)


def test_the_url_for_workers_has_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "create_engine", lambda *arguments, **options: None)
    monkeypatch.setattr(stores, "insistent", lambda *arguments, **options: None)
    url = "postgresql+psycopg://user:s3cr3t@host:5/db"
    assert Store(url).url == url
