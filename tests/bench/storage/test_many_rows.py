"""Many rows: equal values are checked once and are one object in memory; what is read is the same as row by row."""

import csv
import dataclasses
import gc
import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.spec import strict_json
from bench.spec.row import COLUMNS, SCHEMA, Row, changed, rows_of_columns
from bench.storage import contents, csv_file, results_csv, row_check, rows
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


@pytest.mark.parametrize("column", ["accuracy", "sparsity", "nll", "match_reached"])
@pytest.mark.parametrize(
    "text", ["0.5", "5.", ".5", "+1", "1e-3", "-0.0", "00.5", "1E0", "", "0", "1", "2", "1.0000000000000002", "1e999", "-1e-9", "inf",
             "nan", "0x1", "0_5", " 1", "1 ", ".", "e5", "1e", "--1", "'-0.5", "\u0661"]
)  # fmt: skip
def test_numbers_that_are_checked_together_are_those_that_are_checked_alone(text: str, column: str) -> None:
    (line,) = cells_of(many(1))
    told = dict(zip(COLUMNS, line, strict=True)) | {column: text}
    others = [list((told | {column: "0.25"}).values())] * 3
    found = list(row_check.rows_of(COLUMNS, enumerate([*others, list(told.values())])))
    assert repr(found[-1][1:]) == repr(row_check.row_of(told)), "repr tells 0.0 from -0.0"
    assert [row is None for _, row, _ in found[:3]] == [False] * 3


ODD = [
    'a,b,"x, y",1\n', 'c,d,"x, y",1\n', ',,"x, y",1\n', 'c"d,e,"x, y",1\n', '"a",d,"x, y",1\n', 'a,"b\nc","x, y",1\n', "a,b,c,d\n", "\n",
    'a,b,"x ""y""",1\r\n', 'e,f,"x ""y""",1\r\n', 'f,"x, y",1\n', 'a,"b\n', 'c",d,"x, y",1\n', 'g,d,"x, y",1',
]  # fmt: skip


@pytest.mark.parametrize("most", [1, 10])
def test_lines_are_those_of_the_csv_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Also where ends of lines repeat, and where a cell has a line break."""
    monkeypatch.setattr(csv_file, "MOST_ENDS", most)
    for k in range(50):
        (tmp_path / "odd.csv").write_text("".join(random.Random(k).choices(ODD[:11], k=12) + ODD[11:]), newline="")
        with (tmp_path / "odd.csv").open(newline="") as file:
            reader = csv.reader(file, strict=True)
            assert list(csv_file.lines(tmp_path / "odd.csv")) == [(reader.line_num, cells) for cells in reader]


def test_a_fault_after_repeated_ends_is_said_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text('a,"x"\n' * 3 + 'a,"x\ny"\n' + 'b,"x"z\n')
    with pytest.raises(ValueError, match=r"line 6: not CSV"):
        list(csv_file.lines(tmp_path / "odd.csv"))
    (tmp_path / "odd.csv").write_text('a,"x"\n' * 3 + "b" * (csv_file.LONGEST + 1) + ',"x"\n')
    with pytest.raises(ValueError, match=r"line 4: not CSV: a cell has more than"):
        list(csv_file.lines(tmp_path / "odd.csv"))


def test_rows_are_written_as_by_the_csv_module() -> None:
    texts = ["plain", "a,b", 'say "no"', "two\nlines", "back\rward", "=SUM(A1)", "'", " ", ""]
    numbers = [0.0, -0.0, 1.0, 1, 0.1, 1e-17, None, 3.0, 3.0, 3.0, 3.0, 3.0]
    rows = [dataclasses.replace(row, error=texts[k % 9], nll=numbers[k % 12], ece=0.5) for k, row in enumerate(many(200))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    for row in rows:
        cells = dataclasses.asdict(row)
        writer.writerow((cells | {"error": csv_file.neutralised(row.error)}).values())
    wanted = ",".join(COLUMNS) + "\n" + file.getvalue().replace("\r\n", "\n")
    assert results_csv.rows_text(reversed(rows)) == wanted


def test_statuses_are_read_without_rows(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    one, other = many(2)
    store.put({"a": one, "b": dataclasses.replace(other, status="failed")})
    assert dict(store.statuses(["b", "c", "a"])) == {"a": "ok", "b": "failed"}


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
    assert store.contains("ablation", "reinit", "shuffle")
    assert not store.contains("ablation", "reinit", "none of them")


@given(
    error=st.text(st.characters(), max_size=30) | st.sampled_from(["\ud800", "a\udc80b", "\x00", '\\"\n']),
    nll=st.floats() | st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2]),
    flops=st.integers(-(10**40), 10**40) | st.none(),
    fault=st.sampled_from(["", ",", "[", "NaN"]),
)
def test_records_are_read_as_the_parser_of_python_reads_them(error: str, nll: float, flops: int | None, fault: str) -> None:
    text = json.dumps(dataclasses.asdict(changed(many(1)[0], error=error, nll=nll, flops=flops))) + fault
    if fault:
        with pytest.raises(ValueError, match="it is not JSON"):
            rows._rows_of([text])
    else:
        (made,) = rows._rows_of([text])
        assert repr(made) == repr(Row(**json.loads(text)))


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
