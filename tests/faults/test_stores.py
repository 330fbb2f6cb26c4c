"""A store that is locked, full, read-only, damaged or of other tables: one line and exit code 2, and what was finished is kept."""

import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.cli import interruption
from bench.execution import environment
from bench.execution import run as execution
from bench.execution.executors import Inline
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError
from bench.spec.row import SCHEMA
from bench.storage import database, rows, upsert
from bench.storage.database import shown
from bench.storage.rows import Store
from bench.tuning import trials
from tests.bench.storage.test_store import row
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
RUN = ("run", "--methods", "random", "--datasets", "breast_cancer", "--seeds", "0", "--sparsities", "0.5", "--epochs", "1",
       "--finetune-epochs", "0", "--trials", "0", "--workers", "1")  # fmt: skip
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store with 100 rows and the tables of searches."""
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.put({f"{k:064d}": row(seed=k) for k in range(100)})
    trials.studies(store.url)
    trials.database.cache_clear()
    return tmp_path / "store.db"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes by itself is waited for only a short time."""
    monkeypatch.setattr(database, "PATIENCE", 0.5)
    monkeypatch.setattr(database, "BUSY", 0.1)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process has locked the file."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('begin exclusive'); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        try:
            yield
        finally:
            other.kill()


def uses(url: str) -> dict[str, Callable[[], object]]:
    """Every use of a store that is open."""
    store, key = Store(url), f"{1:064d}"
    leases = rows.Leases(store)
    return {
        "get": lambda: store.get([key]), "every": lambda: list(store.every()), "done": lambda: store.done([key]),
        "put": lambda: store.put({key: row(seed=5, accuracy=0.5), "z": row()}), "remove": lambda: store.remove([key]),
        "take": lambda: leases.take("a"), "give": lambda: leases.give("a"), "studies": lambda: trials.studies(url),
    }  # fmt: skip


def says(work: Callable[[], object], *words: str) -> str:
    with pytest.raises(UserError) as error:
        work()
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    return text


# --- locks


@pytest.mark.parametrize("use", ["get", "every", "done", "put", "remove", "take", "give", "studies"])
def test_a_store_that_stays_locked_is_one_line(file: Path, hurried: None, use: str) -> None:
    work = uses(f"sqlite:///{file}")[use]
    with locked(file):
        says(work, "database is locked", "end that process", "What was finished is kept")
    trials.database.cache_clear()
    work()


def test_a_lock_that_ends_is_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than one try of SQLite takes."""
    monkeypatch.setattr(database, "BUSY", 0.05)
    store = Store(f"sqlite:///{file}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(file))
        threading.Timer(0.6, stack.pop_all().close).start()
        begin = time.monotonic()
        store.put({"after": row()})
    assert time.monotonic() - begin >= 0.5
    assert store.get(["after"]) == {"after": row()}


def test_leases_of_a_locked_store_do_not_keep_a_run_from_ending(file: Path) -> None:
    store = Store(f"sqlite:///{file}")
    with contextlib.ExitStack() as stack:
        with store.leases() as mine:
            assert mine.take("a")
            stack.enter_context(locked(file))
            begin = time.monotonic()
        assert time.monotonic() - begin < rows.GIVING + 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_lock(file: Path, number: signal.Signals) -> None:
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with locked(file):
        process = subprocess.Popen(
            [sys.executable, "-c", "from bench.cli import main; print('ready', flush=True); main.main()", "store", "list", "--store",
             f"sqlite:///{file}"], env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=file.parent,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(4)
        assert process.poll() is None, process.communicate()
        begin = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < 2.5
    assert process.returncode == 128 + number
    assert err.splitlines() == [interruption.MESSAGE]


# --- no space, no permission


def test_a_full_disk_keeps_what_was_written(file: Path) -> None:
    """As for the user: the file may not grow."""
    store = Store(f"sqlite:///{file}")
    with store._engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.execute(f"pragma max_page_count = {raw.execute('pragma page_count').fetchone()[0]}")
    many = {f"new{k}": row(seed=k) for k in range(500)}
    says(lambda: store.put(many), "disk is full", "Make space", "What was finished is kept")
    assert not store.get(many), "all or none"
    assert len(list(store.every())) == 100
    assert len(list(Store(f"sqlite:///{file}").every())) == 100


def test_a_limit_of_file_size_is_one_line(file: Path) -> None:
    """In a process of its own, whose files may not grow."""
    code = f"""
import resource, signal, sys
from bench.spec.errors import UserError
from bench.storage.rows import Store
from tests.bench.storage.test_store import row
from tests.conftest import TINY
store = Store("sqlite:///{file}")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({file.stat().st_size}, {file.stat().st_size}))
try:
    store.put({{f"new{{k}}": row(seed=k) for k in range(500)}})
except UserError as error:
    print(error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "What was finished is kept" in out.stdout, out
    assert out.stdout.count("\n") == 1
    assert not out.stderr
    assert len(list(Store(f"sqlite:///{file}").every())) == 100


def test_a_store_that_is_only_read_serves_rows_and_refuses_others(file: Path) -> None:
    url = f"sqlite:///file:{file}?mode=ro&uri=true"
    found = uses(url)
    for name in ("get", "every", "done"):
        assert found[name]()
    assert found["studies"]() == []
    for name in ("put", "remove", "take"):
        says(found[name], "readonly database", "--store")
    assert not list(file.parent.glob("file:*"))


def test_a_run_on_a_read_only_store_ends_before_anything_is_trained(file: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    code, _, err = bench(*RUN, "--store", f"sqlite:///file:{file}?mode=ro&uri=true")
    assert code == 2
    assert "readonly database" in err
    assert len(err.splitlines()) == 1
    assert not list(Path(".bench").rglob("*.safetensors"))


# --- files that are no stores, and damaged ones


def test_a_file_that_is_not_a_database(tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "x.db").write_text("hello, this is not a database" * 100)
    code, _, err = bench("store", "list", "--store", f"sqlite:///{tmp_path}/x.db")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "file is not a database" in err


@pytest.mark.parametrize("tables", [
    "create table rows (id integer)", "create table rows (key text, status text, row text, more text not null)",
    "create table leases (x)", "create view rows as select 1 as key, 2 as status, 3 as row",
])  # fmt: skip
def test_a_database_with_other_tables(tmp_path: Path, tables: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as other:
        other.execute(tables)
    begin = time.monotonic()

    def use() -> None:
        store = Store(f"sqlite:///{tmp_path}/x.db")
        assert rows.Leases(store).take("a")
        store.put({"a": row()})

    says(use, "the store")
    assert time.monotonic() - begin < 5, "nothing that another process could end"


@pytest.mark.parametrize("table", ["rows", "leases", "trials", "studies", "alembic_version"])
def test_a_missing_table(file: Path, table: str) -> None:
    """Removed while the store is open."""
    found = uses(f"sqlite:///{file}")
    trials.studies(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute(f"drop table {table}")
    for use in found.values():
        with contextlib.suppress(UserError):
            use()


def test_flipped_bytes_are_one_line_or_no_difference(file: Path) -> None:
    """In any page: each use either works or says what is wrong."""
    whole, draw, said = file.read_bytes(), random.Random(0), 0
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 20, 400))):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        copy = file.with_name(f"{draw.random()}.db")
        copy.write_bytes(damaged)
        try:
            found = uses(f"sqlite:///{copy}")
        except UserError:
            said += 1
            continue
        for use in found.values():
            try:
                use()
            except UserError:
                said += 1
        trials.database.cache_clear()
    assert said > 10


def test_a_damaged_page_on_the_command_line(file: Path, bench: Bench) -> None:
    content = bytearray(file.read_bytes())
    content[4096 : len(content) // 2] = os.urandom(len(content) // 2 - 4096)
    file.write_bytes(content)
    for command in (("store", "list"), ("store", "clean", "all"), ("status",)):
        code, _, err = bench(*command, "--store", f"sqlite:///{file}")
        assert (code, len(err.splitlines())) == (2, 1), err
        assert "malformed" in err
        assert "Restore a copy" in err


# --- rows that this release cannot read

RECORD = dataclasses.asdict(row())
UNREADABLE = {
    "later schema": json.dumps(RECORD | {"schema": SCHEMA + 1}), "unknown column": json.dumps(RECORD | {"worst": 1}),
    "missing column": json.dumps({"schema": SCHEMA}), "no JSON": "{", "empty": "", "null": None, "list": "[1]", "number": "3",
    "deep": "[" * 100_000, "type": json.dumps(RECORD | {"accuracy": "high"}), "no text": json.dumps(RECORD | {"method": None}),
    "schema": json.dumps(RECORD | {"schema": "x"}), "huge schema": json.dumps(RECORD | {"schema": 10**30}), "bytes": b"\xff\xfe",
    "boolean": json.dumps(RECORD | {"seed": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_row_that_cannot_be_read(file: Path, kind: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("update rows set row = ? where key = ?", [UNREADABLE[kind], f"{7:064d}"])
        other.commit()
    store = Store(f"sqlite:///{file}")
    says(lambda: store.get([f"{7:064d}"]), "cannot be read", "store clean unreadable")
    assert sum(found is None for _, found in store.every()) == 1
    url = ("--store", f"sqlite:///{file}")
    code, out, err = bench("store", "list", *url)
    assert (code, err) == (0, "")
    assert "1 rows are of a later release or damaged" in out
    assert "1 rows, 0 networks and 0 searches removed" in bench("store", "clean", "unreadable", *url)[1]
    assert len(list(store.every())) == 99


SEARCH = ("--suite", "tiny.toml", "--methods", "random", "--trials", "2")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete search."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "tiny.toml").write_text(TINY)
        request = environment.open_request("tiny.toml", Narrowing(methods=("random",), trials=2), Resources())
        execution.run(request, Store(), Inline(), lambda: contextlib.nullcontext(lambda _: None), lambda _: None)
    return folder


@pytest.mark.parametrize("change", [
    "update trial_user_attributes set value_json = '{'", "update trial_user_attributes set value_json = '\"x\"'",
    "update trial_params set distribution_json = '{}'", "update trials set state = 'ODD'", "update trials set number = null",
    "delete from trial_params", "delete from trial_user_attributes where key = 'samples'", "update alembic_version set version_num = 'x'",
    "update trial_values set value = 'x'", "delete from study_directions",
])  # fmt: skip
def test_a_damaged_search(change: str, bench: Bench, searched: Path, tiny: Path) -> None:
    shutil.copytree(searched / ".bench", ".bench")
    trials.database.cache_clear()
    with contextlib.closing(sqlite3.connect(".bench/store.db")) as other:
        assert other.execute(change).rowcount
        other.commit()
    code, _, err = bench("status", *SEARCH)
    assert code in (0, 2), err
    assert len(err.splitlines()) == (code == 2)


# --- URLs

SECRETS = [
    "postgresql+psycopg://user:s3cr3t@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db?user=u&password=s3cr3t",
    "postgresql+psycopg://user:s3cr3t@127.0.0.1:port/db", "postgresql+psycopg://user:a@s3cr3t@127.0.0.1:1/db",
    "postgresql+psycopg://user:a@b/s3cr3t@127.0.0.1:1/db", "magic://user:s3cr3t@host/db", "user:s3cr3t@host/db",
    "postgresql+psycopg://user:s3cr3t", "mysql+nodriver://u:s3cr3t@h/d", "postgresql+psycopg://u@h/d?sslpassword=s3cr3t&host=127.0.0.1&port=1",
    "oracle+cx_oracle://u:s3cr3t@h/d?mode=ro", "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Ds3cr3t",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRETS)
def test_no_message_has_a_password(url: str, bench: Bench, tiny: Path) -> None:
    assert "s3cr3t" not in shown(url)
    for command in (("store", "list"), ("status",), (*RUN, "--dry-run"), RUN, ("compare", "magnitude", "random"), ("publish",)):
        code, out, err = bench(*command, "--store", url)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert "cannot open the store" in err
        assert "s3cr3t" not in out + err
    assert "s3cr3t" not in repr(Resources(store=url))


def test_a_url_without_secrets_is_shown_as_it_is() -> None:
    for url in ("sqlite:///.bench/store.db", "sqlite:////a/b@c/store.db", "postgresql+psycopg://u@h:5/d?sslmode=require", "x.db"):
        assert shown(url) == url


def test_suggested_commands_have_no_password(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.cli.options import command_line

    assert command_line("digits", Resources(store="postgresql+psycopg://u:s3cr3t@h/d")) == [
        "--suite", "digits", "--store", "postgresql+psycopg://u:***@h/d",
    ]  # fmt: skip


@pytest.mark.parametrize(("url", "words"), [
    ("", "not a database URL such as sqlite:///.bench/store.db"), ("x.db", "such as sqlite:///x.db"), ("sqlite:///.", "it is a directory"),
    ("magic://x", "unknown kind of database 'magic'"), ("sqlite://", "in memory"), ("sqlite:///:memory:", "in memory"),
    ("sqlite:///a\0b", "cannot open"), ("sqlite:///" + "x" * 5000, "cannot open"), ("sqlite+no:///x", "unknown kind"),
    ("sqlite:///~nobodyatall/x.db", "cannot open the store"), ("sqlite:///tiny.toml/x.db", "cannot open the store"),
    ("postgresql+pg8000://u@h/d", "not installed"), ("://", "not a database URL"), ("sqlite:///tiny.toml", "not a database"),
])  # fmt: skip
def test_urls_that_are_wrong(url: str, words: str, bench: Bench, tiny: Path) -> None:
    before = sorted(tiny.rglob("*"))
    code, _, err = bench("store", "list", "--store", url)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err
    assert sorted(tiny.rglob("*")) == before


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for url in ("postgresql://h/d", "postgres://h/d", "postgresql+psycopg://h/d"):
        says(lambda url=url: Store(url), "psycopg, which is not installed: pip install 'razorbench[postgres]'")


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Store("sqlite:///~/in/store.db").put({"a": row()})
    assert (tmp_path / "in" / "store.db").is_file()


# --- several processes

OPEN = """
import os, sys, time, traceback
import bench.tuning.storage
from bench.storage.rows import Store
from bench.tuning import trials

for url in sys.argv[1:]:
    at = time.time() + 0.3
    for _ in range(6):
        if os.fork() == 0:
            time.sleep(max(0.0, at - time.time()))
            try:
                trials.studies(Store(url).url)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    print([os.wait()[1] for _ in range(6)])
"""


def open_at_once(*urls: str) -> None:
    """Six processes open each of the new stores at the same moment, with the tables of searches."""
    done = subprocess.run([sys.executable, "-c", OPEN, *urls], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.stdout.splitlines(), done.stderr) == ([str([0] * 6)] * len(urls), "")


def test_six_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    open_at_once(*(f"sqlite:///{tmp_path}/{k}.db" for k in range(3)))


def test_other_databases_write_with_an_update_and_an_insert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SQLite and PostgreSQL do in one statement."""
    monkeypatch.setattr(upsert, "UPSERTS", {})
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.put({"whole": row(), "bad": row(status="failed", error="first")})
    store.put({"whole": row(status="failed"), "bad": row(status="failed", error="again"), "new": row()})
    store.put({"new": row(accuracy=0.5)})
    assert store.get(["whole", "bad", "new"]) == {"whole": row(), "bad": row(status="failed", error="again"), "new": row(accuracy=0.5)}
    with store.leases() as mine, store.leases() as theirs:
        assert [mine.take("a"), theirs.take("a"), mine.take("a")] == [True, False, True]
        mine.give("a")
        assert theirs.take("a")
