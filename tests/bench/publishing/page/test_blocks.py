"""blocks.csv: every number computed a second time from the rows; Friedman's test in words."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.publishing import board_folder
from bench.publishing.board_folder import Board
from bench.publishing.page import blocks, page, tables
from bench.publishing.plots import diagrams
from bench.ranking import leaderboard, tracks
from bench.spec.row import Row
from bench.spec.suite import load_suite
from tests.bench.pages import dense, made, row, rows_of

ROOT = Path(__file__).resolve().parents[4]


def prepared(rows: list[Row]) -> pd.DataFrame:
    return page.prepared(tracks.columns(rows, page.USED))


def test_each_number_is_that_of_the_rows() -> None:
    rows = [*rows_of(["magnitude", "snip"]), row("snip", "digits", 0.5, 0, status="failed", accuracy=None, nll=None, ece=None)]
    table = blocks.measured(prepared(rows)).set_index(["method", "dataset", "sparsity"])
    assert len(table) == 2 * 2 * 3 + 1
    for method, dataset, sparsity in table.index:
        own = [r for r in rows if (r.method, r.dataset, r.sparsity) == (method, dataset, sparsity)]
        accuracy = np.array([0.0 if r.accuracy is None else r.accuracy for r in own])
        line = table.loc[(method, dataset, sparsity)]
        assert line["accuracy"] == pytest.approx(accuracy.mean())
        assert (line["seeds"], line["failed"], line["collapsed"]) == (len(own), sum(r.status == "failed" for r in own), 0)
        assert line["dense_accuracy"] == pytest.approx(0.9)
        if len(own) > 1:
            low, high = stats.t.interval(0.95, len(own) - 1, accuracy.mean(), stats.sem(accuracy))
            assert (line["accuracy_low"], line["accuracy_high"]) == pytest.approx((max(low, 0), min(high, 1)))
        curve = [(r.sparsity, r.accuracy or 0.0) for r in rows if (r.method, r.dataset, r.seed) == (method, dataset, 1)]
        if (method, dataset) == ("magnitude", "digits"):
            heights = [
                np.trapezoid([a for _, a in sorted(c)], [s for s, _ in sorted(c)]) / 0.09 / 0.9
                for seed in range(3)
                if (c := [(r.sparsity, r.accuracy or 0.0) for r in rows if (r.method, r.dataset, r.seed) == (method, dataset, seed)])
            ]
            assert len(curve) == 3
            assert line["relative_area"] == pytest.approx(np.mean(heights))


def test_the_mean_over_blocks_is_the_leaderboard() -> None:
    """What the page computes for chosen blocks: with all blocks it must be the published number."""
    board = board_folder.read(ROOT / "leaderboards/spam")
    table = blocks.measured(prepared(list(board.rows)))
    published = pd.read_csv(ROOT / "leaderboards/spam/leaderboard.csv").set_index("method")
    areas = table.drop_duplicates(["method", "dataset", "architecture"]).groupby("method")["relative_area"].mean()
    at = table[table["sparsity"] == 0.95].groupby("method")["accuracy"].mean()
    assert len(areas) == len(published)
    for method, line in published.iterrows():
        assert areas[method] == pytest.approx(line["relative_area"], abs=1e-9)
        assert at[method] == pytest.approx(line["accuracy_95"], abs=1e-9)


def many(blocks_: int) -> list[Row]:
    heights = {"magnitude": 0.3, "snip": 0.5, "random": 0.1}
    rows = []
    for k in range(blocks_):
        rows += [dense(f"d{k}", seed) for seed in (0, 1)]
        rows += [
            row(m, f"d{k}", s, seed, accuracy=h + 0.01 * ((3 * k + seed) % 4))
            for m, h in heights.items()
            for s in (0.5, 0.9)
            for seed in (0, 1)
        ]
    return rows


def test_from_ten_blocks_on_friedman_comes_first() -> None:
    rows = many(10)
    (board,) = tables.boards(leaderboard.leaderboard(rows), prepared(rows))
    assert (
        "Friedman's test of 3 methods over 10 blocks: p = 4.5e-05, so the methods differ" in board.critical
    )  # exp(-10): χ² of 20 with df 2
    assert f"differ by more than {2.3437 * (3 * 4 / 60) ** 0.5:.2f}" in board.critical  # Demšar 2006, table 5(a)
    source = made(
        rows, plots={"plots/ranks.svg": "Ranks and intervals: one-shot after training", "plots/a.svg": "Accuracy: one-shot after training"}
    )
    assert source.index("Friedman") < source.index("plots/ranks.svg") < source.index('id="board-1"') < source.index('src="plots/a.svg"')
    assert source.count('src="plots/ranks.svg"') == 1
    few = made(many(9), plots={"plots/ranks.svg": "Ranks and intervals: one-shot after training"})
    assert "Friedman" not in few
    assert few.index('id="board-1"') < few.index('src="plots/ranks.svg"')


def test_a_method_without_a_rank_is_in_no_test_over_blocks() -> None:
    """It trained for longer than the dense networks (protocol, rule 4), or is a control by ablation."""
    longer = [replace(r, method="obd", criterion="obd", epochs=3 * r.epochs) for r in many(10) if r.method == "snip"]
    control = [replace(r, ablation="shuffle") for r in many(10) if r.method == "snip"]
    rows, other = many(10), [*many(10), *longer, *control]
    (board,), (same,) = (tables.boards(leaderboard.leaderboard(r), prepared(r)) for r in (rows, other))
    assert {line.method for line in same.table.lines} == {"magnitude", "snip", "random", "obd", "snip (shuffle)"}
    assert same.critical == board.critical != ""
    board_ = leaderboard.leaderboard(other)
    drawn = diagrams.ranks("a track", board_, tracks.frame([r for r in other if r.ablation == "none"]))
    named = " ".join(t.get_text() for t in drawn.axes[0].texts)
    assert all(name in named for name in ("magnitude", "snip", "random"))
    assert "obd" not in named


def test_without_a_small_p_value_no_pair_is_said_to_differ() -> None:
    heights = [(0.1, 0.2, 0.3), (0.2, 0.3, 0.1), (0.3, 0.1, 0.2)] * 4  # each method has each place equally often: p = 1
    rows = [
        row(method, f"d{k}", s, seed, accuracy=accuracy + 0.001 * seed)
        for k, own in enumerate(heights)
        for method, accuracy in zip(("magnitude", "snip", "random"), own, strict=True)
        for s in (0.5, 0.9)
        for seed in (0, 1)
    ]
    rows += [dense(f"d{k}", seed) for k in range(len(heights)) for seed in (0, 1)]
    (board,) = tables.boards(leaderboard.leaderboard(rows), prepared(rows))
    assert "over 12 blocks: p = 1, so no difference between any two methods is shown" in board.critical
    assert "Nemenyi" not in board.critical


def test_too_many_blocks_are_left_to_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(["magnitude", "snip"])
    assert 'data-load="block-1"' not in made(rows)
    monkeypatch.setattr(tables, "MOST_CELLS", 11)
    source = made(rows)
    assert 'data-load="block-1"' in source
    assert 'id="block-1"' not in source
    assert source.count('<a href="blocks.csv">') >= 2


def test_blocks_are_published() -> None:
    rows = rows_of(["magnitude", "snip"])
    files = board_folder.files_of(Board(load_suite("digits"), tuple(rows)))
    table = pd.read_csv(io.BytesIO(files["blocks.csv"]))
    assert list(table.columns) == [column.name for column in blocks.COLUMNS]
    assert len(table) == 2 * 2 * 3
    assert b'"schemas/blocks.json"' in files["datapackage.json"]
    assert "schemas/blocks.json" in files
