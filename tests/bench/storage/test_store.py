"""Rows and networks come back as they went in; what is damaged or out of reach is said in one line."""

import csv
import dataclasses
import json
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bench.spec.errors import UserError
from bench.spec.row import COLUMNS, DECLARED, SCHEMA, Row
from bench.storage import migration
from bench.storage.checkpoints import Networks
from bench.storage.results_csv import ordered, read_rows, write_rows
from bench.storage.rows import Leases, Store
from methods import Posterior


def row(**changes: object) -> Row:
    values = {
        "suite": "s", "dataset": "d", "architecture": "a", "granularity": "weight", "match": "weights", "method": "m", "criterion": "c",
        "training": "map", "stage": "after", "tuning": "default", "ablation": "none", "sparsity": 0.9, "seed": 0, "epochs": 3,
        "finetune_epochs": 0, "status": "ok", "accuracy": 1 / 3, "nll": 1e-300, "kept_weights": 10**12,
    }  # fmt: skip
    return Row(**(values | changes))  # type: ignore[arg-type]


def test_rows_come_back_and_are_replaced(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/deep/er/store.db")
    many = {f"{i:064d}": row(seed=i) for i in range(1200)}
    store.put(many)
    assert store.get(many) == many
    store.put({f"{7:064d}": row(seed=7, accuracy=0.5)})
    assert store.get([f"{7:064d}", "absent"]) == {f"{7:064d}": row(seed=7, accuracy=0.5)}
    assert Store(f"sqlite:///{tmp_path}/deep/er/store.db").get(many).keys() == many.keys()


def test_a_failure_replaces_nothing_but_a_failure(tmp_path: Path) -> None:
    """Of two runs that do the same work, the one that failed must not undo the other's."""
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.put({"whole": row(), "bad": row(status="failed", error="first")})
    store.put(
        {"whole": row(status="failed", error="x"), "bad": row(status="failed", error="again"), "new": row(status="failed", error="y")}
    )
    found = store.get(["whole", "bad", "new"])
    assert {key: r.error for key, r in found.items()} == {"whole": "", "bad": "again", "new": "y"}
    assert store.done(["whole", "bad", "new", "absent"]) == {"whole"}


# --- rows of other releases


def test_every_published_row_can_be_read(tmp_path: Path) -> None:
    """The committed files and one of the first schema, whatever release wrote them."""
    files = [
        *(Path(__file__).parents[3] / "leaderboards").glob("*/results/*.csv"),
        Path(__file__).parents[1] / "data" / "results-schema-1.csv",
    ]
    assert len(files) > 20
    for file in files:
        rows = read_rows(file)
        assert rows
        assert {r.schema for r in rows} == {SCHEMA}
        write_rows(rows, tmp_path / "again.csv")
        assert read_rows(tmp_path / "again.csv") == ordered(rows)


def test_an_old_file_keeps_every_cell(tmp_path: Path) -> None:
    """Read by the csv module alone: each cell of the old file is a cell of the file that is written from its rows."""
    old = Path(__file__).parents[1] / "data" / "results-schema-1.csv"
    write_rows(read_rows(old), tmp_path / "new.csv")
    with old.open(newline="") as file, (tmp_path / "new.csv").open(newline="") as again:
        before, after = list(csv.DictReader(file)), list(csv.DictReader(again))
    assert "schema" not in before[0]
    kept = [{name: line[name] for name in before[0]} for line in after]
    assert sorted(kept, key=str) == sorted(before, key=str)


def test_a_store_of_another_release_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store(url)
    store.put({"old": row(), "new": row()})
    with sqlite3.connect(tmp_path / "store.db") as database:
        record = dataclasses.asdict(row())
        older = {name: value for name, value in record.items() if name not in ("environment", "schema")}
        database.execute("update rows set row = ? where key = 'old'", [json.dumps(older)])
        database.execute("update rows set row = ? where key = 'new'", [json.dumps(record | {"schema": SCHEMA + 1, "worst": 0.1})])
    assert store.get(["old"]) == {"old": row()}
    with pytest.raises(UserError, match=f"schema {SCHEMA + 1} of a later release; this release reads schemas up to {SCHEMA}"):
        store.get(["new"])


def test_columns_that_come_and_go_are_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later release would declare it: schema 1 had a column `speed`, which went with 2."""
    record = dataclasses.asdict(row())
    older = {name: value for name, value in record.items() if DECLARED[name].since == 1} | {"speed": 3}
    with pytest.raises(ValueError, match="no column 'speed'"):
        migration.migrated(older)
    monkeypatch.setitem(migration.REMOVED, 2, ("speed",))
    assert migration.migrated(older) == row()
    assert migration.schema_of(older) == 1
    assert migration.schema_of(COLUMNS) == SCHEMA == max(column.since for column in DECLARED.values())
    assert migration.schema_of(COLUMNS[:-1]) is None
    with pytest.raises(ValueError, match="no column 'method'"):
        migration.migrated({name: value for name, value in record.items() if name != "method"})


# --- several runs at once


def test_a_lease_is_held_by_one_run_until_it_is_given_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    with Store(url).leases() as mine, Store(url).leases() as theirs:
        assert mine.take("a")
        assert mine.take("a"), "asked for again by its holder"
        assert not theirs.take("a")
        assert theirs.take("b")
        mine.give("a")
        assert theirs.take("a")
    with Store(url).leases() as later:
        assert later.take("a"), "given back at the end"


def test_a_dead_owner_keeps_nothing(tmp_path: Path) -> None:
    """On this machine it is known at once; of another one only its silence is."""
    store = Store(f"sqlite:///{tmp_path}/store.db")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with sqlite3.connect(tmp_path / "store.db") as database:
        late = time.time() + 1000
        owners = [
            ("here", f"{socket.gethostname()}/{gone.pid}/x", late),
            ("silent", "elsewhere/1/x", time.time() - 1),
            ("alive", "elsewhere/1/x", late),
        ]
        database.executemany("insert into leases values (?, ?, ?)", owners)
    with store.leases() as mine:
        assert [mine.take(name) for name in ("here", "silent", "alive")] == [True, True, False]


def test_leases_are_renewed_while_they_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.storage import rows as stores

    monkeypatch.setattr(stores, "LEASE", 0.4)
    monkeypatch.setattr(stores, "_is_dead", lambda owner: False)
    url = f"sqlite:///{tmp_path}/store.db"
    with Store(url).leases() as mine, Store(url).leases() as theirs:
        assert mine.take("a")
        time.sleep(1.0)
        assert not theirs.take("a"), "long after the lease would have ended"


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    """Eight at once, each with a connection of its own, on the same and on other rows; one lease goes to one of them."""
    url = f"sqlite:///{tmp_path}/store.db"

    def write(k: int) -> bool:
        store = Store(url)
        store.put({"shared": row(), **{f"{k}-{i}": row(seed=i) for i in range(20)}})
        return Leases(store).take("only")

    with ThreadPoolExecutor(8) as pool:
        took = list(pool.map(write, range(8)))
    assert sum(took) == 1
    assert len(Store(url).get(["shared", *(f"{k}-{i}" for k in range(8) for i in range(20))])) == 161


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/no/store.db", "postgresql://nobody@127.0.0.1:1/x", "magic://x"])
def test_an_unreachable_store_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="cannot open the store") as error:
        Store(url)
    assert "\n" not in str(error.value)


def test_a_network_survives_with_its_posterior(tmp_path: Path) -> None:
    networks = Networks(tmp_path / "networks")
    state = {"w": torch.randn(2, 3), "bn.num_batches_tracked": torch.tensor(4)}
    factors = {"layer.w": (torch.rand(1, 2, 2), torch.rand(1, 3, 3))}
    posterior = Posterior({"w": torch.tensor(2.0)}, 100, 0.5, {"w": torch.rand(2, 3)}, factors, (-3.5, -1.25))
    assert not networks.has("k")
    networks.save("k", state, posterior, {"train_seconds": 1.5})
    loaded, again, facts = networks.load("k")
    assert networks.has("k")
    assert all(torch.equal(loaded[n], t) for n, t in state.items())
    assert torch.equal(again.precision("w"), posterior.precision("w"))
    assert again.factors.keys() == factors.keys()
    assert all(torch.equal(a, b) for a, b in zip(again.factors["layer.w"], factors["layer.w"], strict=True))
    assert (again.samples, again.temperature, again.marginal_likelihood) == (100, 0.5, (-3.5, -1.25))
    assert facts == networks.facts("k") == {"train_seconds": 1.5}
    assert networks.facts("absent") is None
    networks.fail("bad", "ValueError: x")
    assert (networks.failed("bad"), networks.has("bad"), networks.failed("k")) == ("ValueError: x", False, "")
    (networks.folder / "bad.failed").unlink()
    assert [p.name for p in networks.folder.iterdir()] == ["k.safetensors"], "no partial file is left"


def test_csv_floats_read_back_exactly(tmp_path: Path) -> None:
    rows = [row(seed=2, accuracy=0.1 + 0.2, error='a "quoted", text'), row(seed=1, accuracy=None, top5=1e-17)]
    write_rows(rows, tmp_path / "out" / "results.csv")
    text = (tmp_path / "out" / "results.csv").read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert read_rows(tmp_path / "out" / "results.csv") == [rows[1], rows[0]], "sorted by identity"
    write_rows(reversed(rows), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == text, "the order of rows coming in does not matter"


def test_a_csv_with_another_header_or_a_wrong_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="header"):
        read_rows(tmp_path / "x.csv")
    write_rows([row()], tmp_path / "y.csv")
    (tmp_path / "y.csv").write_text((tmp_path / "y.csv").read_text().replace("0.9", "often"))
    with pytest.raises(ValueError, match="line 2"):
        read_rows(tmp_path / "y.csv")


def test_rows_hold_plain_values_only() -> None:
    assert all(v is None or isinstance(v, (str, int, float)) for v in dataclasses.asdict(row()).values())


def test_a_relative_file_is_the_same_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies are opened by this address, in other processes and later in this one."""
    monkeypatch.chdir(tmp_path)
    assert Store("sqlite:///here/store.db").url == f"sqlite:///{tmp_path}/here/store.db"
