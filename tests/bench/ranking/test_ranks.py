"""Ranks as ranges, and what a board says of them, on made-up rows."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from bench.cli import tables
from bench.ranking.leaderboard import leaderboard, resolutions
from bench.ranking.tracks import frame
from bench.spec.row import Row
from tests.bench.boards import dense, rows


def ranges(board: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Method -> its range of ranks, of those that have one; `rank` is the lower end."""
    ranked = board[board["rank"].notna()]
    assert ranked["rank"].tolist() == ranked["rank_low"].tolist()
    return {line.method: (line.rank_low, line.rank_high) for line in ranked.itertuples()}


def test_methods_that_do_not_differ_have_overlapping_ranks() -> None:
    board = leaderboard([
        *dense(), *rows("steady", (0.8,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.002}),
        *rows("alike", (0.79,) * 4, seeds={0: 0.02, 1: -0.02, 2: 0.0}), *rows("worse", (0.5,) * 4, seeds={0: 0.01, 1: 0.0, 2: 0.0}),
    ])  # fmt: skip
    assert ranges(board) == {"steady": (1, 2), "alike": (1, 2), "worse": (3, 3)}
    assert board["seeds"].tolist() == [3, 3, 3]
    assert board["blocks"].tolist() == [1, 1, 1]


def test_one_seed_ranks_nobody() -> None:
    one = {"seeds": {0: 0.0}}
    failed = rows("broken", (0.0,) * 4, status="failed", accuracy=None, error="x", **one)
    made = [*dense(), *rows("b", (0.1,) * 4, **one), *rows("a", (0.9,) * 4, **one), *failed]
    board = leaderboard(made)
    assert board["method"].tolist() == ["a", "b", "broken"]
    unknown = ["rank", "rank_low", "rank_high", "relative_area_low", "relative_area_high", "relative_area_std"]
    assert board[unknown].isna().all(axis=None)
    (resolution,) = resolutions(frame(made)).values()
    assert resolution.meaning == "With one seed nothing can be tested; methods are sorted by area and have no ranks."


def test_a_noisy_method_far_down_does_not_stand_above_a_better_mean() -> None:
    """As `magnitude` under `snip` did: too noisy to differ from the best, while a better one below the best does."""
    noisy = rows("noisy", (0.62,) * 4, seeds={0: 0.25, 1: -0.3, 2: 0.05, 3: 0.0, 4: 0.02})
    steady = {m: rows(m, (a,) * 4, seeds=dict(enumerate(es))) for m, a, es in (
        ("best", 0.85, (0.0, 0.001, 0.0, -0.001, 0.0)), ("second", 0.80, (0.001, 0.0, 0.0, 0.0, 0.001)),
        ("third", 0.75, (0.0, 0.0, 0.001, 0.0, 0.0)), ("fourth", 0.70, (0.0, 0.0, 0.0, 0.001, 0.0)))}  # fmt: skip
    board = leaderboard([*dense(), *noisy, *(row for made in steady.values() for row in made)])
    assert board["method"].tolist() == ["best", "second", "third", "fourth", "noisy"]
    assert board["relative_area"].is_monotonic_decreasing
    assert ranges(board) == {"best": (1, 2), "second": (2, 3), "third": (3, 4), "fourth": (4, 5), "noisy": (1, 5)}


def test_few_seeds_of_noisy_methods_on_one_block_rank_nobody() -> None:
    """Eight methods whose seeds differ by ten points and more: seven of them would be said to be the best."""
    spread = [(0.1, -0.1, 0.0), (-0.1, 0.02, 0.08), (0.0, 0.12, -0.12)]

    def eight(noise: float) -> list[Row]:
        seeds = [{seed: noise * e for seed, e in enumerate(errors)} for errors in spread]
        return [*dense(), *(row for k in range(8) for row in rows(f"m{k}", (0.8 - 0.05 * k,) * 4, seeds=seeds[k % 3]))]

    board = leaderboard(eight(1.0))
    assert board[["rank", "rank_low", "rank_high"]].isna().all(axis=None)
    assert board["method"].tolist() == [f"m{k}" for k in range(8)]
    (resolution,) = resolutions(frame(eight(1.0))).values()
    assert resolution.difference > 0.5
    assert resolution.meaning == (
        f"With 3 seeds and 1 block, a difference smaller than about {resolution.difference:.2g} in area cannot be detected reliably "
        "(power 80 %). To rank methods it must be below 0.5: they are sorted by area and have no ranks."
    )
    assert len(ranges(leaderboard(eight(0.01)))) == 8, "with a hundredth of the noise the same seeds and block rank them"


def test_a_failed_method_that_is_better_on_what_both_have_is_not_worse() -> None:
    """`easy` has an easy block alone, and so the larger mean; on it the test shows `hard`, which failed elsewhere, to be better."""
    seeds = {k: 0.001 * (k % 2) for k in range(5)}
    hard = [*rows("hard", (0.9,) * 4, seeds=seeds), *rows("hard", (0.3,) * 4, dataset="e", seeds=seeds)]
    hard = [replace(r, status="failed", accuracy=None) if (r.dataset, r.seed, r.sparsity) == ("e", 0, 0.99) else r for r in hard]
    board = leaderboard([*dense(), *hard, *rows("easy", (0.8,) * 4, seeds={k: 0.002 * k for k in range(5)})])
    assert board["method"].tolist() == ["easy", "hard"], "sorted by their own means"
    assert ranges(board) == {"easy": (2, 2), "hard": (1, 1)}


def test_two_failures_are_ordered_by_the_test_alone() -> None:
    """Both failed on one seed. `less` has the smaller area, but no test shows it: it is not worse for failing as well."""

    def partly(method: str, height: float) -> list[Row]:
        made = rows(method, (height,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.0, 3: 0.002, 4: 0.001})
        return [replace(row, status="failed", accuracy=None) if row.seed == 2 else row for row in made]

    whole = rows("whole", (0.75,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.0, 3: 0.002, 4: 0.001})
    other = rows("other", (0.70,) * 4, seeds={0: 0.003, 1: 0.001, 2: 0.0, 3: 0.002, 4: 0.001})
    noisy = [replace(row, accuracy=row.accuracy and row.accuracy + 0.05 * (row.seed % 2)) for row in partly("less", 0.84)]
    board = leaderboard([*dense(), *partly("more", 0.9), *noisy, *whole, *other])
    assert board["method"].tolist() == ["whole", "more", "other", "less"]
    assert ranges(board) == {"whole": (1, 1), "more": (2, 4), "other": (2, 3), "less": (3, 4)}


def test_a_failed_seed_earns_no_shared_rank_by_its_spread() -> None:
    """Two seeds of 0.95, one failed: the mean is worse than 0.9, and the noise so large that no test tells them apart."""
    partly = [
        replace(row, status="failed", accuracy=None) if row.seed == 2 else row
        for row in rows("partly", (0.95,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.0})
    ]
    board = leaderboard([*dense(), *partly, *rows("whole", (0.9,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.0})])
    assert ranges(board) == {"whole": (1, 1), "partly": (2, 2)}
    assert board["relative_area"].iloc[1] == pytest.approx(2 * 0.9505 / 3 / 0.905)


def test_controls_and_long_trainings_are_in_no_family_of_tests() -> None:
    """Two methods that differ at 5 % alone would not among six: what has no rank must not cost any power."""
    pair = [*rows("a", (0.8,) * 4, seeds={0: 0.0, 1: 0.01, 2: 0.02}), *rows("b", (0.75,) * 4, seeds={0: 0.0, 1: 0.03, 2: 0.01})]
    others = [
        row for i in range(4) for row in rows(f"o{i}", (0.7,) * 4, epochs=50, seeds={0: 0.01 * i, 1: -0.02, 2: 0.01 * (i % 2)})
    ]  # fmt: skip
    assert ranges(leaderboard([*dense(), *pair, *others])) == {"a": (1, 1), "b": (2, 2)}
    ranked = [replace(row, epochs=10) for row in others]
    assert ranges(leaderboard([*dense(), *pair, *ranked]))["b"][0] == 1


def printed(width: int, made: list[Row], capsys: pytest.CaptureFixture[str]) -> str:
    (resolution,) = resolutions(frame(made)).values()
    tables.print_board(Console(width=width), "a track, tuned", leaderboard(made), resolution.meaning)
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("width", "interval"), [(160, True), (80, True), (50, False)])
def test_the_board_says_what_its_ranks_mean(width: int, interval: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """One pair, whose differences of 0.011 and 0.022 relative to dense have a standard error of 0.0055 and one degree of freedom."""
    made = [*dense(0.995), *rows("a", (0.9,) * 4, seeds={0: 0.0, 1: 0.02}), *rows("b", (0.89,) * 4, seeds={0: 0.0, 1: 0.01})]
    out = printed(width, made, capsys)
    assert out.startswith("a track, tuned")
    assert ("±" in out) == interval
    assert "1–2 a 0.910" in out
    assert "paired t-tests, Holm-corrected" in out
    least = 0.005 * 16.334  # standard errors for power 0.8: what a t-test of one degree of freedom needs
    assert f"With 2 seeds and 1 block, a difference smaller than about {least:.2g} in area cannot be detected reliably" in out
    assert "With one seed nothing can be tested" in printed(width, [row for row in made if row.seed == 0], capsys)


def test_the_board_says_which_method_lacks_blocks_and_what_collapsed_counts(capsys: pytest.CaptureFixture[str]) -> None:
    both = [row for d in "de" for row in rows("a", (0.9,) * 4, dataset=d)]
    made = [*dense(), *both, *rows("b", (0.8,) * 4, status="collapsed")]
    out = printed(160, made, capsys)
    assert "1 a 2 1.003" in out
    assert "2 b 1 of 2 0.890" in out
    assert "collapsed: rows in which a layer has no weights left, or the dense network did not train (chance accuracy)." in out
    assert "collapsed" not in printed(160, [row for row in made if row.method != "b"], capsys)


def test_dense_accuracies_have_the_interval_of_all_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Half widths of 95 % intervals, not standard deviations; ends where 100 % would be passed."""
    one = replace(dense()[0], criterion="")
    made = [replace(one, accuracy=a, seed=k) for k, a in enumerate((0.8, 0.82, 0.84))]
    made += [replace(one, accuracy=a, seed=k, dataset="e") for k, a in enumerate((0.98, 1.0, 0.96))]
    tables.print_dense(Console(width=160), frame(made))
    out = " ".join(capsys.readouterr().out.split())
    half = stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3)
    assert f"dense d a 82.00% ±{half:.2%} dense e a 98.00% ({0.98 - half:.2%}–100.00%)" in out
