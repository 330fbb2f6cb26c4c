"""Many rows: equal values are checked once and are one object in memory; what is read is the same as row by row."""

import dataclasses
import gc
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from bench.spec import strict_json
from bench.spec.row import COLUMNS, SCHEMA, Row, changed, rows_of_columns
from bench.storage import contents, results_csv, row_check
from bench.storage.contents import Contents
from bench.storage.migration import all_migrated, migrated
from bench.storage.rows import Store
from tests.bench import boards

ROWS = 3000


def many(count: int = ROWS) -> list[Row]:
    """Rows with the long texts and the different numbers of real ones."""
    draw = random.Random(0)
    settings = [f'{{"training": {{"lr": 0.{k}, "note": "{"x" * 200}"}}}}' for k in range(1, 4)]
    measured = ("accuracy", "nll", "brier", "ece", "score_seconds", "train_seconds", "latency_ms")
    (one,) = boards.rows("obd", (0.9,) * 4, seeds={0: 0.0})[:1]
    return [
        dataclasses.replace(
            one, seed=k, hyperparameters=settings[k % 3], recipe='{"optimizer": "sgd"}', torch="2.11", device="cpu",
            **{name: draw.random() for name in measured},
        )
        for k in range(count)
    ]  # fmt: skip


def cells_of(rows: list[Row]) -> list[list[str]]:
    return [["" if (value := getattr(row, name)) is None else str(value) for name in COLUMNS] for row in rows]


def test_lines_are_checked_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_check, "PART", 4)
    lines = cells_of(many(14))
    place = COLUMNS.index
    lines[1][place("accuracy")] = "1.5"
    lines[2][place("sparsity")] = "0_5"
    lines[2][place("method")] = ""
    lines[5][place("hyperparameters")] = '{"a": 1, "a": 2}'
    lines[6][place("schema")] = str(SCHEMA + 1)
    lines[7][place("protocol")] = "1"
    lines[8][place("accuracy")] = "'-0.5"
    lines[9][place("method")] = "'=SUM(A1)"
    lines[10][place("accuracy")] = ""
    lines[13] = lines[13][:-1]
    for any_protocol in (False, True):
        found = list(row_check.rows_of(COLUMNS, enumerate(lines), any_protocol=any_protocol))
        assert [number for number, _, _ in found] == list(range(14))
        for (_, row, faults), cells in zip(found[:13], lines[:13], strict=True):
            assert (row, faults) == row_check.row_of(dict(zip(COLUMNS, cells, strict=True)), any_protocol=any_protocol)
        assert found[13][1:] == (None, [f"{len(COLUMNS) - 1} cells, expected {len(COLUMNS)}"])
        refused = [number for number, row, _ in found if row is None]
        assert refused == [1, 2, 5, 6, *([] if any_protocol else [7]), 8, 13]
        assert found[9][1] is not None
        assert found[9][1].method == "=SUM(A1)"


def test_each_different_json_text_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    loads = strict_json.loads_object

    def counted(text: Any) -> dict[str, Any]:
        decoded.append(text)
        return loads(text)

    rows = many()
    results_csv.write_rows(rows, tmp_path / "results.csv")
    monkeypatch.setattr(strict_json, "loads_object", counted)
    assert results_csv.read_rows(tmp_path / "results.csv") == rows
    texts = {getattr(row, name) for row in rows for name in ("hyperparameters", "environment", "recipe", "plugin_metrics")}
    assert sorted(decoded) == sorted([*texts, "{}"]), "environment and plugin_metrics have the same text"


def bytes_of_each(read: Any) -> float:
    tracemalloc.start()
    rows = read()
    found = tracemalloc.get_traced_memory()[0] / len(rows)
    tracemalloc.stop()
    return found


def test_a_row_needs_less_than_a_kilobyte(tmp_path: Path) -> None:
    results_csv.write_rows(many(), tmp_path / "results.csv")
    results_csv.read_rows(tmp_path / "results.csv")  # what is made once
    assert bytes_of_each(lambda: results_csv.read_rows(tmp_path / "results.csv")) < 900
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    store.put({f"{k:05}": row for k, row in enumerate(many())})
    keys = [f"{k:05}" for k in range(ROWS)]
    assert [row for _, row in store.rows(keys)] == many()
    assert bytes_of_each(lambda: [row for _, row in store.rows(keys)]) < 900


def test_rows_of_columns_are_rows() -> None:
    rows = many(5)
    made = rows_of_columns(5, {name: [getattr(row, name) for row in rows] for name in COLUMNS})
    assert made == rows
    assert len(set(made)) == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        made[0].seed = 1  # type: ignore[misc]


def test_records_are_converted_as_one_by_one() -> None:
    records = [dataclasses.asdict(row) for row in many(6)]
    for k, (name, value) in enumerate([("ece", -0.0), ("ece", 0.0), ("nll", 1), ("nll", 1.0), ("match_reached", None)]):
        records[k][name] = value
    made = all_migrated(records)
    assert list(map(repr, made)) == [repr(migrated(record)) for record in records], "repr tells 1 from 1.0 and 0.0 from -0.0"
    del records[2]["schema"]
    older = {name: records[2].pop(name) for name in ("training_flops", "dense_training_flops")}
    assert older
    assert all_migrated(records) == [migrated(record) for record in records], "with a record of an older schema"
    records[1]["accuracy"] = "high"
    with pytest.raises(ValueError, match="accuracy should be a number, got 'high'"):
        all_migrated(records)
    assert all_migrated([]) == []


def test_rows_come_in_the_order_of_the_keys_and_a_text_is_found_without_reading(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    rows = {f"{k:05}": row for k, row in enumerate(many(1200))}
    store.put(rows)
    keys = [*reversed(rows), "missing"]
    assert list(store.rows(keys)) == [(key, rows[key]) for key in reversed(rows)]
    assert not store.contains("ablation", "shuffle")
    assert store.contains("ablation", "none")
    store.put({"x": dataclasses.replace(rows["00000"], method='"ablation": "shuffle"')})
    assert not store.contains("ablation", "shuffle"), "the name of a method is no ablation"
    store.put({"y": dataclasses.replace(rows["00000"], ablation="shuffle")})
    assert store.contains("ablation", "shuffle")


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_contents_are_the_same_in_memory_and_in_a_file(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "IN_MEMORY", size)
    first = Contents([("a", b"12345"), ("b", b""), ("c", b"67")])
    both = first | {"b": b"89", "d": None}
    assert dict(first) == {"a": b"12345", "b": b"", "c": b"67"}
    assert dict(both) == {"a": b"12345", "b": b"89", "c": b"67", "d": None}
    assert both.removes("d")
    assert not both.removes("a")
    assert list(both.only(["c", "a"]).items()) == [("c", b"67"), ("a", b"12345")]


def test_a_changed_row_is_a_replaced_one() -> None:
    (row,) = many(1)
    assert changed(row, seed=7, accuracy=None) == dataclasses.replace(row, seed=7, accuracy=None)
    assert row == many(1)[0]
    with pytest.raises(TypeError, match="'acuracy'"):
        changed(many(1)[0], acuracy=0.5)


def test_the_search_for_cycles_goes_on_after_reading(tmp_path: Path) -> None:
    """Also after a fault; and it stays off for a caller who has switched it off."""
    (tmp_path / "bad.csv").write_text(",".join(COLUMNS) + "\nnothing\n")
    with pytest.raises(ValueError, match=r"line 2"):
        results_csv.read_rows(tmp_path / "bad.csv")
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(ValueError, match=r"line 2"):
            results_csv.read_rows(tmp_path / "bad.csv")
        assert not gc.isenabled()
    finally:
        gc.enable()
