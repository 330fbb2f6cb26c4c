"""The tables on made-up rows whose answers are known."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from bench.ranking import tuning_gain
from bench.ranking.leaderboard import COLUMNS, leaderboard, resolutions
from bench.ranking.tracks import area, frame, warnings
from tests.bench.boards import dense, rows


def test_area_is_the_mean_height_of_the_curve() -> None:
    assert area([0.5, 0.9], [1.0, 0.0]) == pytest.approx(0.5)
    assert area([0.9, 0.5, 0.7], [0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert area([0.5], [0.3]) == 0.3


def test_ranks_follow_the_area_within_a_track() -> None:
    board = leaderboard([
        *dense(), *rows("magnitude", (0.9, 0.8, 0.7, 0.2)), *rows("worse", (0.9, 0.5, 0.4, 0.1)), *rows("better", (0.9, 0.9, 0.8, 0.5)),
        *rows("early", (0.99,) * 4, stage="init"), *rows("gradual", (0.98,) * 4, stage="during"),
        *rows("magnitude", (0.95,) * 4, finetune=3), *rows("early", (0.5,) * 4, stage="init", finetune=3),
        *rows("gradual", (0.7,) * 4, stage="during", finetune=3, score_seconds=None),
    ])  # fmt: skip
    assert list(board.columns) == [*COLUMNS, "accuracy_50"]
    assert dict(zip(board["method"], board["accuracy_50"], strict=False))["better"] == pytest.approx(0.905)
    ranked = {(t, m): r for t, m, r in zip(board["track"], board["method"], board["rank"], strict=True)}
    assert ranked == {
        ("one-shot after training", "better"): 1, ("one-shot after training", "magnitude"): 2, ("one-shot after training", "worse"): 3,
        ("one-shot while training", "gradual"): 1, ("one-shot at initialisation", "early"): 1,
        ("fine-tuned 3 epochs", "magnitude"): 1, ("fine-tuned 3 epochs", "gradual"): 2, ("fine-tuned 3 epochs", "early"): 3,
    }  # fmt: skip
    tracks = ["one-shot after training", "one-shot while training", "one-shot at initialisation", "fine-tuned 3 epochs"]
    assert list(dict.fromkeys(board["track"])) == tracks
    line = board[board["method"] == "better"].iloc[0]
    assert line["accuracy_90"] == pytest.approx(0.905)
    assert line["nll_95"] == pytest.approx(0.2)
    assert line["scoring_epochs"] == pytest.approx(2.0), "two seconds of scoring, one second an epoch"
    assert (line["wins"], line["ties"], line["losses"]) == (2, 0, 0)


def test_largest_sparsity_within_a_point_is_interpolated() -> None:
    board = leaderboard([*dense(0.895), *rows("m", (0.895, 0.855, 0.8, 0.7))])
    # Dense 0.9 on average, so the floor is 0.89; the mean curve goes from 0.9 at 0.5 to 0.86 at 0.9: a quarter of the way.
    assert board.iloc[0]["sparsity_within_one_point"] == pytest.approx(0.6)


def test_exactly_one_point_below_dense_is_within_one_point() -> None:
    """0.5026 - 0.01 is a little more than 0.4926 in floating point, which is no loss of more than a point."""
    same = {0: 0.0, 1: 0.0}
    board = leaderboard([*(replace(r, accuracy=0.5026) for r in dense()), *rows("m", (0.5026, 0.4926, 0.4976, 0.4926), seeds=same)])
    assert board.iloc[0]["sparsity_within_one_point"] == pytest.approx(0.99)


def test_failures_are_the_worst_and_unsupported_is_not_ranked() -> None:
    failed = rows("broken", (0.0,) * 4, status="failed", accuracy=None, error="x")
    refused = rows("refuses", (0.0,) * 4, status="unsupported", accuracy=None)
    board = leaderboard([*dense(), *rows("magnitude", (0.5, 0.4, 0.3, 0.2)), *failed, *refused]).set_index("method")
    assert board.loc["broken", "rank"] == 2
    assert board.loc["broken", "failed"] == 8
    assert board["rank"].isna()["refuses"]
    assert board.loc["refuses", "unsupported"] == 8


def test_relative_to_ordinary_training_not_to_its_own_weaker_dense_network() -> None:
    """A training that gives up dense accuracy must not gain by it."""
    weak = rows("weak", (0.45,) * 4, training="other", dense_accuracy=0.45)
    board = leaderboard([*dense(0.895), *dense(0.45, method="dense@other"), *weak]).set_index("method")
    assert board.loc["weak", "relative_area"] == pytest.approx(0.455 / 0.9)


def test_each_block_is_over_its_own_dense_accuracy_where_the_dense_network_was_run_and_else_over_the_methods_own() -> None:
    """As tuned methods at initialisation: a dense network of two blocks, their own dense accuracy empty there, and given on the third."""
    measured = [replace(r, dataset=d, accuracy=a) for d, a in (("d", 0.9), ("e", 0.8)) for r in dense()]
    mine = [*rows("m", (0.45,) * 4, dense_accuracy=None), *rows("m", (0.6,) * 4, dataset="e", dense_accuracy=None),
            *rows("m", (0.5,) * 4, dataset="f", dense_accuracy=0.625)]  # fmt: skip
    line = leaderboard([*measured, *mine]).iloc[0]
    assert line["relative_area"] == pytest.approx((0.455 / 0.9 + 0.605 / 0.8 + 0.505 / 0.625) / 3)
    assert line["blocks"] == 3
    # The curves are flat at 0.455, 0.605, 0.505 and start at dense: one point is lost at once.
    lost = [0.01 / (0.9 - 0.455), 0.01 / (0.8 - 0.605), 0.01 / (0.625 - 0.505)]
    assert line["sparsity_within_one_point"] == pytest.approx(sum(0.5 * share for share in lost) / 3)


def test_a_block_with_nothing_to_divide_by_is_an_error() -> None:
    bare = rows("m", (0.5,) * 4, dataset="e", dense_accuracy=None)
    with pytest.raises(ValueError, match="'m' has rows on e/a but no dense accuracy to divide its area by"):
        leaderboard([*dense(), *rows("m", (0.5,) * 4), *bare])
    unsupported = [replace(row, status="unsupported", accuracy=None) for row in bare]
    assert leaderboard([*dense(), *rows("m", (0.5,) * 4), *unsupported])["blocks"].tolist() == [1]


@pytest.mark.parametrize("status", ["collapsed", "failed"])
def test_a_block_whose_dense_network_did_not_train_is_left_out_and_named(status: str) -> None:
    """On two of four seeds; on one of four, the block stays."""
    seeds = {k: 0.001 * k for k in range(4)}
    fine = rows("dense", (0.9,) * 4, stage="", seeds=seeds)
    dead = [replace(r, dataset="e", accuracy=0.1 if status == "collapsed" else None, status=status if r.seed < 2 else "ok") for r in fine]
    dead = [replace(r, accuracy=0.1) if r.status == "ok" else r for r in dead]
    good, chance = rows("m", (0.45,) * 4, seeds=seeds), rows("m", (0.1,) * 4, dataset="e", seeds=seeds)
    other = [*rows("o", (0.3,) * 4, seeds=seeds), *rows("o", (0.2,) * 4, dataset="e", seeds=seeds)]
    made = [r for r in [*fine, *dead] if r.sparsity == 0.5] + good + chance + other
    board = leaderboard(made).set_index("method")
    alone = leaderboard([r for r in made if r.dataset == "d"]).set_index("method")
    names = ["rank_low", "rank_high", "relative_area", "relative_area_low", "relative_area_high", "sparsity_within_one_point", "blocks"]
    assert board[names].equals(alone[names])
    assert board["rank"].to_dict() == {"m": 1, "o": 2}
    assert board.loc["m", "accuracy_90"] == pytest.approx((0.4515 + 0.1015) / 2), "accuracies are what was measured"
    (warning,) = warnings(frame(made))
    assert warning.startswith("e/a: the dense network did not train (chance accuracy, or an error) on 2 of 4 seeds.")
    better = [replace(r, status="ok", accuracy=0.1) if (r.method, r.dataset, r.seed) == ("dense", "e", 1) else r for r in made]
    assert leaderboard(better)["blocks"].tolist() == [2, 2]
    assert warnings(frame(better)) == []


def test_where_no_dense_network_trained_there_are_no_ranks_and_no_areas() -> None:
    """A network at chance pruned at no loss is not 1.000, rank 1."""
    made = [*(replace(r, status="collapsed") for r in dense(0.1)), *rows("m", (0.1,) * 4), *rows("o", (0.1,) * 4)]
    board = leaderboard(made)
    areas = ["rank", "rank_low", "rank_high", "relative_area", "relative_area_low", "relative_area_high", "sparsity_within_one_point"]
    assert board[areas].isna().all(axis=None)
    assert board["blocks"].tolist() == [0, 0]
    assert resolutions(frame(made))["one-shot after training", "default"].meaning == ""
    assert len(warnings(frame(made))) == 1


def test_no_rows_no_board() -> None:
    assert leaderboard([]).empty
    assert frame(dense())["track"].unique().tolist() == [""]


def test_who_trains_for_longer_and_controls_are_shown_without_a_rank() -> None:
    long = rows("imp", (0.9,) * 4, stage="during", epochs=50)
    rival = rows("gradual", (0.8,) * 4, stage="during")
    control = rows("gradual", (0.85,) * 4, stage="during", ablation="shuffle")
    board = leaderboard([*dense(), *long, *rival, *control]).set_index("method")
    assert board.index.tolist() == ["imp", "gradual (shuffle)", "gradual"], "by area, ranked or not"
    assert board["rank"].isna().tolist() == [True, True, False]
    assert board.loc["gradual", "rank"] == 1
    assert board["epochs"].to_dict() == {"imp": 50.0, "gradual (shuffle)": 10.0, "gradual": 10.0}
    assert board.loc["imp", "accuracy_95"] == pytest.approx(0.905)


def test_intervals_stay_inside_what_is_possible() -> None:
    wild = rows("wild", (0.45,) * 4, seeds={0: 0.45, 1: -0.4, 2: 0.0})
    line = leaderboard([*dense(0.895), *wild]).iloc[0]
    assert line["relative_area"] == pytest.approx((0.45 + 0.05 / 3) / 0.9)
    assert (line["relative_area_low"], line["relative_area_high"]) == (0, pytest.approx(1 / 0.9)), "accuracies end at 0 and 1"


def test_interval_and_deviation_are_those_of_the_seeds_within_blocks() -> None:
    """Two blocks, two seeds each, 2 and 4 points apart, relative to dense networks of 1: s^2 is 0.0002 and 0.0008, pooled 0.0005.

    The variance of the mean is (0.0002 / 2 + 0.0008 / 2) / 2^2, with (1 + 4)^2 / (1^2 + 4^2) degrees of freedom.
    """
    ones = [replace(r, accuracy=1.0, dataset=d) for r in dense() for d in "de"]
    mine = [*rows("m", (0.5,) * 4, seeds={0: 0.0, 1: 0.02}), *rows("m", (0.9,) * 4, seeds={0: 0.0, 1: 0.04}, dataset="e")]
    line = leaderboard([*ones, *mine]).iloc[0]
    assert line["relative_area_std"] == pytest.approx(0.0005**0.5)
    assert line["relative_area"] == pytest.approx(0.715)
    half = stats.t.ppf(0.975, 25 / 17) * 0.000125**0.5
    assert line["relative_area_high"] - line["relative_area"] == pytest.approx(half)
    assert line["relative_area_low"] + line["relative_area_high"] == pytest.approx(2 * line["relative_area"])


def test_pairs_are_compared_over_the_sparsities_and_blocks_both_have() -> None:
    """What was measured at easy sparsities only, or on an easy block only, does not look better for it."""
    short = [row for row in rows("short", (0.89, 0.79, 0.69, 0.1)) if row.sparsity < 0.99]
    full = [*rows("magnitude", (0.9, 0.8, 0.7, 0.2)), *rows("magnitude", (0.3,) * 4, dataset="hard")]
    board = leaderboard([*dense(), *full, *short]).set_index("method")
    assert board["rank"].to_dict() == {"short": 2, "magnitude": 1}
    assert board["blocks"].to_dict() == {"short": 1, "magnitude": 2}
    assert (board.loc["short", "wins"], board.loc["short", "losses"]) == (0, 2)
    assert board.loc["short", "relative_area"] > board.loc["magnitude", "relative_area"]


def test_defaults_and_tuned_results_are_two_tables() -> None:
    board = leaderboard([
        *dense(), *rows("a", (0.9,) * 4), *rows("b", (0.8,) * 4), *rows("a", (0.91,) * 4, tuning="tuned"),
        *rows("b", (0.95,) * 4, tuning="tuned"),
    ])  # fmt: skip
    ranks = {(t, m): r for t, m, r in zip(board["tuning"], board["method"], board["rank"], strict=True)}
    assert ranks == {("default", "a"): 1, ("default", "b"): 2, ("tuned", "b"): 1, ("tuned", "a"): 2}
    assert board["track"].nunique() == 1


def test_sparsities_close_to_one_keep_all_of_their_digits() -> None:
    close = (0.99999, 0.999999, 0.9999999, 0.99999999)
    made = [replace(r, sparsity=close[k % 4]) for k, r in enumerate(rows("m", (0.9, 0.7, 0.5, 0.3), seeds={0: 0.0, 1: 0.0}))]
    board = leaderboard([*dense(), *made])
    names = ["accuracy_99.999", "accuracy_99.9999", "accuracy_99.99999", "accuracy_99.999999"]
    assert board.iloc[0][names].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3])
    assert board.columns.is_unique


def test_a_method_without_accuracies_has_no_largest_sparsity() -> None:
    board = leaderboard([*dense(), *rows("m", (0.9,) * 4), *rows("unmeasured", (0.9,) * 4, accuracy=None)]).set_index("method")
    assert board.loc["m", "sparsity_within_one_point"] == pytest.approx(0.99)
    assert pd.isna(board.loc["unmeasured", "sparsity_within_one_point"])


def test_the_gain_of_tuning_is_over_what_both_have() -> None:
    """Sparsities and seeds of one of them alone would count as gain or loss."""
    default = [r for r in rows("m", (0.9, 0.8, 0.4, 0.2)) if (r.sparsity, r.seed) != (0.99, 1)]
    search = {"trials": 2, "epochs": 4, "validation": {"default": 0.5, "tuned": 0.6}}
    said = json.dumps({"criterion": {}, "training": {}, "tuning": search})
    after = [replace(r, hyperparameters=said) for r in rows("m", (0.91, 0.83, 0.45, 0.27), tuning="tuned") if r.sparsity != 0.9]
    (line,) = tuning_gain.tuned([*default, *after]).to_dict("records")
    first = (0.45 * (0.01 + 0.05) / 2 + 0.04 * (0.05 + 0.07) / 2) / 0.49  # trapezoids over 0.5, 0.95, 0.99
    second = (0.01 + 0.05) / 2  # the other seed lacks 0.99
    assert line["gain"] == pytest.approx((first + second) / 2)
    assert line["seeds"] == 2
