"""CHANGELOG.md of a leaderboard: what an entry says, and that a missing entry is found."""

import datetime
from dataclasses import replace
from pathlib import Path

from bench.publishing import board_check, board_folder, history, publish
from bench.publishing.board_folder import Board
from bench.spec.suite import load_suite
from bench.storage import files
from bench.trial.job import Environment
from tests.bench.pages import dense, row

DAY, NEXT = datetime.date(2026, 1, 31), datetime.date(2026, 2, 1)
SUITE = load_suite("digits")
ROWS = (dense("digits", 0), row("magnitude"), row("magnitude", seed=1), row("snip", commit="f" * 40 + "+"))


def test_an_entry_says_what_was_added_changed_and_removed_and_what_is_there_now() -> None:
    first = history.updated("", None, Board(SUITE, ROWS), DAY)
    kept, other, new = ROWS[1], replace(ROWS[2], accuracy=0.123), row("obd`\u2028<b>", commit="")
    after = Board(SUITE.model_copy(update={"trials": 99}), (ROWS[0], kept, other, new))
    text = history.updated(first, Board(SUITE, ROWS), after, NEXT)
    latest, oldest = history.entries(text)
    assert (latest.date, oldest.date) == ("2026-02-01", "2026-01-31")
    assert latest.lines == (
        "Added: 1 row of `obd??<b>`",
        "Changed: 1 row of `magnitude`",
        "Removed: 1 row of `snip`",
        "Suite: other `trials`",
        "Now: 4 rows of 2 methods, protocol 2; razorbench `0.1.0`, commit `?` (1 row); razorbench `0.1.0`, commit `0123abc` (3 rows)",
    )
    assert oldest.lines[0] == "First published: 3 rows of `magnitude`, `snip`; 1 row of dense networks"
    assert "commit `ffffffffffff+` (1 row)" in oldest.lines[-1]
    assert text.startswith("# Changelog of the leaderboard `digits`\n\n## 2026-02-01\n")


def test_another_protocol_is_said() -> None:
    old = Board(SUITE, tuple(replace(r, protocol="1") for r in ROWS))
    assert "Protocol: 2, before 1" in history.entries(history.updated("", old, Board(SUITE, ROWS), DAY))[0].lines


def test_nothing_changes_without_a_change() -> None:
    board = Board(SUITE, ROWS)
    text = history.updated("", None, board, DAY)
    assert history.updated(text, board, Board(SUITE, ROWS[::-1]), NEXT) == text


def test_a_board_without_a_changelog_gets_one() -> None:
    board = Board(SUITE, ROWS)
    (entry,) = history.entries(history.updated("", board, board, DAY))
    assert entry.lines == ("This changelog starts here.", history.state(board))


def test_many_names_are_cut() -> None:
    board = Board(SUITE, tuple(row(f"m{k}") for k in range(11)))
    (entry,) = history.entries(history.updated("", None, board, DAY))
    assert entry.lines[0].endswith("`m7` and 3 more")


def test_a_missing_entry_is_a_fault(tmp_path: Path) -> None:
    board = Board(SUITE, ROWS, history=history.updated("", None, Board(SUITE, ROWS), DAY))
    assert not [line for line in board_check.faults(board, Environment("cpu", None, tmp_path)).lines if "CHANGELOG" in line]
    changed = replace(board, rows=ROWS[:-1])
    (line,) = [line for line in board_check.faults(changed, Environment("cpu", None, tmp_path)).lines if "CHANGELOG" in line]
    assert line.endswith(history.state(changed))


def test_the_records_stay_in_the_folder(tmp_path: Path) -> None:
    board = publish.with_records(Board(SUITE, ROWS), None)
    files.write_files(tmp_path, dict(board_folder.evidence(board)))
    assert "First published: 3 rows" in (tmp_path / "CHANGELOG.md").read_text()
    read = board_folder.read(tmp_path)
    assert read.history == board.history
    assert publish.with_records(Board(SUITE, read.rows), read).history == board.history
