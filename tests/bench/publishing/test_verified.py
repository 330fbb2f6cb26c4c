"""verified.csv: what is recorded, that it is dropped with a change, and that a wrong record is found."""

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.publishing import board_check, board_folder, publish, verified, verify
from bench.publishing.board_folder import Board
from bench.publishing.row_comparison import Verdict
from bench.spec.errors import UserError
from bench.spec.suite import load_suite
from bench.storage import files
from bench.trial.job import Environment
from tests.bench.pages import HOSTILE, row

DAY = datetime.date(2026, 1, 31)
SUITE = load_suite("digits")
FINE = Verdict(differences=[], allowed="")
ROWS = (row("magnitude"), row("magnitude", seed=1), row("snip", status="failed", accuracy=None))


def records() -> tuple[verified.Verified, ...]:
    computed = (replace(ROWS[0], device="=cmd()"), replace(ROWS[1], accuracy=0.5), ROWS[2])
    found = [verified.of(pair, FINE, DAY) for pair in zip(ROWS, computed, strict=True)]
    return verified.joined((), filter(None, found))


def test_a_record_repeats_what_was_compared_and_where() -> None:
    by_key = {one.key: one for one in records()}
    first, second, third = (by_key[verified.key_of(r)] for r in ROWS)
    assert (first.published, first.computed, first.verdict) == (repr(ROWS[0].accuracy), repr(ROWS[0].accuracy), "equal")
    assert (second.published, second.computed, second.verdict) == (repr(ROWS[1].accuracy), "0.5", "agrees")
    assert (third.published, third.verdict) == ("", "equal")
    assert (first.date, first.device, first.commit) == ("2026-01-31", "=cmd()", "0123abc")
    assert verified.of((ROWS[0], ROWS[0]), replace(FINE, differences=["accuracy"]), DAY) is None


def test_a_later_record_replaces_the_one_before() -> None:
    (new,) = verified.joined((), [replace(records()[0], date="2026-03-01")])
    assert verified.joined(records(), [new]) == tuple(sorted([new, *records()[1:]]))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    odd = tuple(sorted([*records(), replace(records()[0], key=(HOSTILE, *records()[0].key[1:]), device='a,"b"')]))
    (tmp_path / "verified.csv").write_text(verified.text(odd))
    assert verified.read(tmp_path / "verified.csv") == odd
    assert ",'=cmd()" in verified.text(odd), "no spreadsheet runs it"
    assert verified.read(tmp_path / "nothing.csv") == ()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [("method,", "methode,", "does not have the columns"), (",equal,", ",maybe,", "verdict 'maybe'"), ("2026-01-31", "yesterday", "date"),
     (",0123abc", "", "cells, expected"), (",equal,", "x,equal,", "is not an accuracy"), (",equal,", "e9,equal,", "is not an accuracy"),
     (",0123abc", ",\x1b[2J", r"'\?\[2J' has control characters"), ("\nmagnitude,", "\nm\x07,", r"'m\?' has control characters")],
)  # fmt: skip
def test_a_malformed_file_is_refused(tmp_path: Path, old: str, new: str, reason: str) -> None:
    (tmp_path / "verified.csv").write_text(verified.text(records()).replace(old, new, 1))
    with pytest.raises(UserError, match=reason):
        verified.read(tmp_path / "verified.csv")


def test_a_row_that_changes_loses_its_mark(tmp_path: Path) -> None:
    board = Board(SUITE, ROWS, records())
    files.write_files(tmp_path, dict(board_folder.evidence(board)))
    assert board_folder.read(tmp_path).verified == records()
    changed = Board(SUITE, (replace(ROWS[0], accuracy=0.001), *ROWS[1:]))
    assert len(records()) == 3
    assert {one.key for one in publish.with_records(changed, board).verified} == {verified.key_of(r) for r in ROWS[1:]}


def test_a_record_of_another_accuracy_is_a_fault(tmp_path: Path) -> None:
    def faults(board: Board) -> list[str]:
        return [line for line in board_check.faults(board, Environment("cpu", None, tmp_path)).lines if "verified.csv" in line]

    board = Board(SUITE, ROWS, records())
    assert faults(board) == []
    assert "1 record of rows that are not published" in faults(replace(board, rows=(replace(ROWS[0], accuracy=0.001), *ROWS[1:])))[0]
    assert faults(replace(board, verified=(*records(), records()[0]))) == ["verified.csv: two records of the same row"]


def test_verify_records_what_agrees_and_nothing_else(
    tmp_path: Path, bench: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is made up here; what it decides is in test_verify.py."""
    board = Board(SUITE, ROWS)
    files.write_files(tmp_path, dict(board_folder.evidence(board)))
    sample = verify.Sample(tmp_path, board, ROWS[:2], (), (), Environment("cpu", None, tmp_path))
    agrees = verify.Verification([(r, r) for r in ROWS[:2]], [FINE, FINE], [], 0, (), {})
    monkeypatch.setattr(verify, "draw", lambda *_, **__: sample)
    monkeypatch.setattr(board_folder, "files_of", board_folder.evidence)
    monkeypatch.setattr(verify, "recompute", lambda *_: replace(agrees, stale={"index.html": "is missing"}))
    code, out, _ = bench("verify", str(tmp_path), "--record", "--workers", "1")
    assert code == 1
    assert "nothing is recorded" in out
    assert not (tmp_path / "verified.csv").exists()
    monkeypatch.setattr(verify, "recompute", lambda *_: agrees)
    code, out, _ = bench("verify", str(tmp_path), "--record", "--workers", "1")
    assert code == 0
    assert "2 rows recorded" in out
    assert {one.key for one in verified.read(tmp_path / "verified.csv")} == {verified.key_of(r) for r in ROWS[:2]}
    code, _, err = bench("verify", str(tmp_path), "--record", "--tolerance", "0.1")
    assert code == 2
    assert "leave out --tolerance" in err
