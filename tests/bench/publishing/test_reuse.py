"""`store add`: published rows get the keys under which a run looks for them, and only if this code would compute them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import methods
from bench.publishing import board_folder, reuse
from bench.spec.choices import Resources
from bench.spec.row import Row
from bench.spec.suite import load_suite
from bench.storage import files, results_csv
from bench.storage.rows import Store
from tests.bench.repositories import commit, git

Bench = Callable[..., tuple[int, str, str]]
WHAT = ("--suite", "tiny.toml", "--methods", "random,magnitude,magnitude_layer,spam", "--seeds", "0,1,2", "--finetune-epochs", "0")
OTHER = "sqlite:///other.db"
BOARD = Path("leaderboards/tiny")


def stored(url: str) -> dict[str, Row]:
    return {key: row for key, row in Store(url).every() if row is not None}


def published(bench: Bench, *more: str) -> None:
    assert bench("run", *WHAT, *more, "--workers", "1")[0] == 0
    assert bench("publish", *WHAT, *more)[0] == 0


@pytest.fixture
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code counts as that of the rows' commit, also while it is being edited."""
    monkeypatch.setattr(reuse.Code, "changed_since", lambda self, commit: "")


def with_tuned_rows(bench: Bench) -> None:
    """A board with rows of tuned hyperparameters: twice the learning rate, as if a search had found it."""
    assert bench("run", *WHAT, "--trials", "0", "--workers", "1", "--output", "found")[0] == 0
    found = []
    for row in results_csv.read_rows(Path("found/results.csv")):
        said = json.loads(row.hyperparameters)
        said["training"]["lr"] *= 2
        said["tuning"] = {"trials": 4, "epochs": 9, "validation": {"default": 0.7, "tuned": 0.8}}
        found += [replace(row, tuning="tuned", hyperparameters=json.dumps(said))] if row.criterion else []
    results_csv.write_rows(found, Path("found/results.csv"))
    assert bench("run", *WHAT, "--trials", "4", "--tuned", "found", "--workers", "1", "--output", "both")[0] == 0
    suite = load_suite("both/suite.toml")
    board = board_folder.Board(suite, tuple(results_csv.read_rows(Path("both/results.csv"))))
    files.write_files(BOARD, board_folder.evidence(board))


@pytest.mark.usefixtures("same_code")
def test_a_run_finds_every_row_of_a_board_in_a_new_store(tiny: Path, bench: Bench) -> None:
    with_tuned_rows(bench)
    rows = board_folder.read(BOARD).rows
    code, out, _ = bench("store", "add", str(BOARD), "--store", OTHER)
    before, after = stored("sqlite:///.bench/store.db"), stored(OTHER)
    assert code == 0
    assert f"{len(after)} rows added; 0 were in the store; 0 left out" in out
    assert len(after) == len(rows), "no two rows are one"
    assert {row.tuning for row in after.values()} == {"default", "tuned"}
    assert after.keys() == before.keys(), "the keys are those of the run"
    assert {key: row.accuracy for key, row in after.items()} == {key: row.accuracy for key, row in before.items()}
    assert f"0 rows added; {len(after)} were in the store; 0 left out" in bench("store", "add", str(BOARD), "--store", OTHER)[1]
    files.write_files(BOARD, {"results/magnitude_layer.csv": None})
    kept = [row for row in rows if row.method != "magnitude_layer" or row.tuning == "default"]
    files.write_files(BOARD, board_folder.evidence(replace(board_folder.read(BOARD), rows=tuple(kept))))
    found = reuse.add(BOARD, Resources(store="sqlite:///third.db"))
    assert (len(found.rows), found.left_out.total()) == (len(rows) - 6, 0), "a method without tuned rows, as contributed ones may be"
    default = sum(row.tuning == "default" for row in rows)
    code, said, _ = bench("status", *WHAT, "--trials", "0", "--store", OTHER)
    assert code == 0
    assert f"{default} of {default} rows in the store" in said


OTHERS: list[tuple[dict[str, object], int, str]] = [  # (changed values, seeds with the change, reason)
    ({"torch": "2.0.0"}, 1, "`torch`"),
    ({"device": "cuda: Other"}, 1, "`device`"),
    ({"recipe": "{}"}, 1, "`recipe`"),
    ({"status": "failed", "accuracy": None, "error": "x"}, 1, "it failed"),
    ({"protocol": "1"}, 1, "protocol 1"),
    ({"kept_weights": 1}, 1, "breaks a rule"),
    ({"seed": 11}, 1, "the suite does not contain it"),
    ({"method": "mine", "criterion": "mine"}, 3, "its method is not one of this repository"),
]


@pytest.mark.usefixtures("same_code")
def test_a_row_of_something_else_is_left_out_with_the_reason(tiny: Path, bench: Bench) -> None:
    published(bench, "--trials", "0")
    board = board_folder.read(BOARD)
    for k, (changes, seeds, reason) in enumerate(OTHERS):
        rows = [replace(r, **changes) if r.method == "magnitude" and r.seed < seeds else r for r in board.rows]  # type: ignore[arg-type]
        files.write_files(BOARD, board_folder.evidence(replace(board, rows=tuple(rows))))
        found = reuse.add(BOARD, Resources(store=f"sqlite:///{k}.db"))
        assert found.left_out.total() == 2 * seeds, reason
        assert all(reason in said for said in found.left_out), (reason, found.left_out)
        assert len(found.rows) == len(board.rows) - 2 * seeds
        assert stored(f"sqlite:///{k}.db").keys() == found.rows.keys()
        for name in board_folder.evidence(replace(board, rows=tuple(rows))):
            (BOARD / name).unlink()


def test_a_board_of_somebodys_own_network_is_refused_before_it_is_imported(tiny: Path, bench: Bench) -> None:
    published(bench, "--trials", "0")
    board = board_folder.read(BOARD)
    files.write_files(BOARD, board_folder.evidence(replace(board, rows=tuple(replace(r, architecture="own.py:build") for r in board.rows))))
    (tiny / "own.py").write_text("raise SystemExit(9)")
    code, _, err = bench("store", "add", str(BOARD), "--store", OTHER)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "somebody's own code" in err
    assert not (tiny / "other.db").exists()


def test_code_is_compared_with_that_of_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "a.py"
    file.write_text("def f(x):\n    return x + 1\n")
    git(tmp_path / "there", "init", "--quiet")
    first = commit(tmp_path / "there")
    monkeypatch.setattr(reuse, "HERE", tmp_path / "there")
    monkeypatch.setattr(methods, "source_files", lambda *roots: {file})

    def reason(commit: str) -> str:
        return reuse.Code([]).changed_since(commit)

    assert reason(first) == ""
    file.write_text('def f(x):\n    """Add one."""\n    return x + 1  # said\n')
    assert reason(first) == "", "comments and docstrings decide nothing"
    file.write_text("def f(x):\n    return x + 2\n")
    assert reason(first) == "a.py has changed since its commit"
    second = commit(tmp_path / "there")
    assert (reason(second), reason(first)) == ("", "a.py has changed since its commit")
    (tmp_path / "there" / "b.py").write_text("")
    monkeypatch.setattr(methods, "source_files", lambda *roots: {file, tmp_path / "there" / "b.py"})
    commit(tmp_path / "there")
    assert reason(second) == "b.py has changed since its commit", "it is new"
    for unknown in (f"{first}+", "0" * 40, "", "--help", "HEAD~1"):
        assert "does not have its commit" in reason(unknown)
    monkeypatch.setattr(methods, "source_files", lambda *roots: {file, tmp_path / "mine.py"})
    assert reason(second) == "its method is not in this repository (mine.py)"
    monkeypatch.setattr(reuse, "HERE", tmp_path)
    assert "not in a git repository" in reason(second)


def test_what_is_not_a_board_is_one_line(tiny: Path, bench: Bench) -> None:
    code, _, err = bench("store", "add", "nothing")
    assert (code, len(err.splitlines())) == (2, 1)
    assert not (tiny / ".bench" / "store.db").exists()
