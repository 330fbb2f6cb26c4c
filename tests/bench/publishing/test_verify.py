"""`verify` as a user types it, on a board whose re-runs are made up: what is printed, what is allowed, the exit code."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.publishing import board_check, board_folder, row_comparison, verify
from bench.publishing.board_check import Faults
from bench.publishing.board_folder import Board
from bench.spec.row import Row
from bench.spec.suite import load_suite
from bench.storage import files
from bench.trial import provenance
from bench.trial.job import Environment

Bench = Callable[..., tuple[int, str, str]]
Rerun = Callable[[Row], Row]
SAMPLES = 114  # of the test split of breast_cancer


def rows_of_a_board() -> list[Row]:
    """Six methods at two sparsities with five seeds; every accuracy is a number of test samples."""
    rng = np.random.default_rng(0)
    here = provenance.provenance("cpu", 1)
    return [
        Row(
            suite="tiny", dataset="breast_cancer", architecture="mlp", granularity="weight", match="weights", method=method,
            criterion="magnitude", training="map", stage="after", tuning="default", ablation="none", sparsity=sparsity, seed=seed, epochs=3,
            finetune_epochs=0, status="ok", prunable_weights=1000, kept_weights=500, parameters=1010, flops=2000,
            accuracy=(108 + int(rng.integers(-1, 2))) / SAMPLES, nll=0.2 * float(np.exp(0.1 * rng.standard_normal())),
            hyperparameters=json.dumps({"training": {"lr": 0.1}}), **{**here, "torch": "2.99"},
        )
        for method in ("magnitude", "random", "obd", "opd", "snip", "grasp")
        for sparsity in (0.5, 0.9)
        for seed in range(5)
    ]  # fmt: skip


@pytest.fixture
def check(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Verify a board whose rows are changed by `tamper`, computed anew by `rerun`: (exit code, what is printed)."""

    def run(tamper: Rerun = lambda row: row, rerun: Rerun = lambda row: row, *options: str, here: bool = False) -> tuple[int, str]:
        rows = rows_of_a_board()
        if here:
            rows = [replace(row, torch=str(provenance.provenance("cpu", 1)["torch"])) for row in rows]
        honest = {row.identity: row for row in rows}
        board = Board(load_suite("tiny.toml"), tuple(map(tamper, rows)))
        files.write_files(Path("board"), board_folder.evidence(board))

        def compute(chosen: Sequence[Row], board: Board, place: Environment, *rest: object) -> list[Row]:
            return [rerun(replace(honest[row.identity], torch=verify._blank(row, place).torch)) for row in chosen]

        monkeypatch.setattr(verify, "_compute", compute)
        monkeypatch.setattr(board_check, "faults", lambda *_: Faults((), frozenset()))  # tests/faults/test_forgeries.py tests it
        monkeypatch.setattr(board_folder, "stale", lambda *_: {})
        code, out, err = bench("verify", "board", "--sample", "60", "--workers", "1", *options)
        assert err == ""
        return code, out

    return run


def first(**changes: object) -> Rerun:
    """The first row of random, changed."""

    def change(row: Row) -> Row:
        one = (row.method, row.sparsity, row.seed) == ("random", 0.5, 0)
        return replace(row, **changes) if one else row  # type: ignore[arg-type]

    return change


def rounding(row: Row) -> Row:
    """What another release makes of a row: the likelihood differs in its last digits."""
    return replace(row, nll=(row.nll or 0) * (1 + 1e-8))


def test_a_board_that_repeats_elsewhere_is_as_published(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(rerun=rounding)
    assert code == 0, out
    assert "note: different environment: torch 2.99 (published) and " in out
    assert "Numbers may differ as much as between seeds." in out
    assert out.count("agrees   ") == 62, "rows, and accuracy and likelihood of all together"
    assert re.search(r"accuracy 94\.74% published, 94\.74% computed; 0\.877 points allowed, because nll is equal up to rounding", out)
    assert "agrees   all rows together: on average computed accuracy is as published (5 independent networks, p = 1)" in out
    assert out.endswith("all 60 rows are as published\nthe derived files follow from the rows\n")


def test_a_re_run_like_another_seed_agrees_and_says_what_its_cell_allows(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(rerun=first(accuracy=109 / SAMPLES, nll=0.21))
    assert code == 0, out
    said = re.search(r"random · .* seed 0 .*: accuracy (\S+)% published, 95\.61% computed; this cell allows (\S+) points \(5 seeds\)", out)
    assert said
    assert 0.8 < float(said[2]) < 6


def test_a_changed_row_differs_and_says_why(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(tamper=first(accuracy=0.99), rerun=lambda row: replace(row, nll=(row.nll or 0) * 1.01))
    assert code == 1
    assert "DIFFERS  random · breast_cancer/mlp · sparsity 0.5 · seed 0 · fine-tuned 0: accuracy 99.00% published" in out
    lines = [line.strip() for line in out.splitlines() if line.startswith(" ")]
    assert re.fullmatch(r"accuracy: expected 0\.99, got 0\.9\d*: .* points.* \(5 seeds\)", lines[0])
    assert lines[1] == "accuracy: 0.99 is not a multiple of 1/114 (114 test samples)"
    assert "1 of 60 rows differ" in out


def test_a_small_change_that_is_no_number_of_samples_differs(check: Callable[..., tuple[int, str]]) -> None:
    """Half a sample: within what the cell allows, but no network has such an accuracy."""
    code, out = check(tamper=first(accuracy=108.5 / SAMPLES), rerun=lambda row: replace(row, nll=(row.nll or 0) * 1.01))
    assert code == 1
    assert [line.strip() for line in out.splitlines() if line.startswith(" ")] == [
        f"accuracy: {108.5 / SAMPLES} is not a multiple of 1/114 (114 test samples)"
    ]


def test_here_everything_is_equal_to_the_last_bit(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(here=True)
    assert code == 0
    assert out.count("equal    ") == 60
    assert "all rows together" not in out
    code, out = check(rerun=rounding, here=True)
    assert code == 1
    assert out.count("DIFFERS") == 60
    assert "60 of them differ no more than another seed of the same cell does: perhaps the processor is another one of the same name" in out
    code, out = check(tamper=first(accuracy=0.5), rerun=rounding, here=True)
    assert "59 of them" in out


def test_all_rows_together_can_be_shifted_though_none_differs(
    check: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_comparison, "_network", lambda row: (row.method, row.seed))  # as if each were trained by itself
    code, out = check(rerun=lambda row: replace(row, nll=(row.nll or 0) * 1.06))
    assert code == 1
    assert re.search(
        r"DIFFERS  all rows together: on average computed nll lies 0\.\d\d deviations above the published "
        r"\(30 independent networks, p = 0\.0001\)",
        out,
    )
    assert out.endswith("all 60 rows are as published; all rows together are shifted\nthe derived files follow from the rows\n")


def test_a_method_may_be_spelled_otherwise_than_on_the_board(check: Callable[..., tuple[int, str]]) -> None:
    code, out = check(lambda row: row, rounding, "--methods", "random@map,opd(precision=1)")
    assert code == 0
    assert "computing 20 of 60 rows" in out
    assert set(re.findall(r"agrees   (\w+) · ", out)) == {"random", "opd"}


def test_a_tolerance_decides_alone(check: Callable[..., tuple[int, str]]) -> None:
    wrong: Rerun = lambda row: replace(row, accuracy=(round((row.accuracy or 0) * SAMPLES) - 11) / SAMPLES, nll=0.4)  # noqa: E731
    assert check(rerun=wrong)[0] == 1
    code, out = check(lambda row: row, wrong, "--tolerance", "0.1")
    assert code == 0, out
    assert "--tolerance allows 10 points" in out
    assert "all rows together" not in out
    assert check(lambda row: row, wrong, "--tolerance", "0.09")[0] == 1


def test_what_a_row_says_of_its_machine_is_not_taken_over(tmp_path: Path) -> None:
    place = Environment("cpu", None, tmp_path)
    blank = verify._blank(replace(rows_of_a_board()[0], device="cuda: other"), place)
    here = provenance.provenance("cpu", 1)
    assert {name: getattr(blank, name) for name in row_comparison.WHERE} == {name: here.get(name, "") for name in row_comparison.WHERE}
    assert blank.accuracy is None
    assert blank.status == "missing"
