"""The tables on made-up rows whose answers are known."""

import json
from dataclasses import replace

import pytest
from rich.console import Console
from scipy import stats

from bench import report
from bench.leaderboard import COLUMNS, area, frame, leaderboard
from bench.spec import Row

S = (0.5, 0.9, 0.95, 0.99)


def rows(
    method: str,
    curve: tuple[float, ...],
    *,
    stage: str = "after",
    finetune: int = 0,
    training: str = "map",
    ablation: str = "none",
    epochs: int = 10,
    seeds: dict[int, float] | None = None,
    dataset: str = "d",
    tuning: str = "default",
    **more: object,
) -> list[Row]:
    """A row for each sparsity and seed; `seeds` are what each adds to the accuracy: two, the second a point better."""
    return [
        Row(
            suite="s",
            dataset=dataset,
            architecture="a",
            granularity="weight",
            match="weights",
            method=method,
            criterion=method,
            training=training,
            stage=stage,
            tuning=tuning,
            ablation=ablation,
            sparsity=s,
            seed=seed,
            epochs=epochs,
            finetune_epochs=finetune,
            hyperparameters=json.dumps({"training": {}}),
            **(
                {
                    "status": "ok",
                    "accuracy": a + gain,
                    "nll": 1 - a,
                    "ece": 0.1,
                    "dense_accuracy": 0.9,
                    "score_seconds": 2.0,
                    "train_seconds": 10.0,
                }
                | more
            ),
        )
        for seed, gain in (seeds or {0: 0.0, 1: 0.01}).items()
        for s, a in zip(S, curve, strict=True)
    ]


def dense(accuracy: float = 0.9, finetune: int = 0, method: str = "dense") -> list[Row]:
    made = rows(method, (accuracy,) * 4, stage="", finetune=finetune)
    return [r for r in made if r.sparsity == 0.5]


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
    assert list(board.columns) == list(COLUMNS)
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


def test_no_rows_no_board() -> None:
    assert leaderboard([]).empty
    assert frame(dense())["track"].unique().tolist() == [""]


def test_who_trains_for_longer_and_controls_are_shown_without_a_rank() -> None:
    long = rows("imp", (0.9,) * 4, stage="during", epochs=50)
    rival = rows("gradual", (0.8,) * 4, stage="during")
    control = rows("gradual", (0.85,) * 4, stage="during", ablation="shuffle")
    board = leaderboard([*dense(), *long, *rival, *control]).set_index("method")
    assert board["rank"].isna().to_dict() == {"imp": True, "gradual (shuffle)": True, "gradual": False}
    assert board.loc["gradual", "rank"] == 1
    assert board["epochs"].to_dict() == {"imp": 50.0, "gradual (shuffle)": 10.0, "gradual": 10.0}
    assert board.loc["imp", "accuracy_95"] == pytest.approx(0.905)


def test_methods_that_cannot_be_told_apart_share_a_rank() -> None:
    board = leaderboard([
        *dense(), *rows("steady", (0.8,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.002}),
        *rows("alike", (0.79,) * 4, seeds={0: 0.02, 1: -0.02, 2: 0.0}), *rows("worse", (0.5,) * 4, seeds={0: 0.01, 1: 0.0, 2: 0.0}),
    ]).set_index("method")  # fmt: skip
    assert board["rank"].to_dict() == {"steady": 1, "alike": 1, "worse": 3}
    assert board.loc["worse", "seeds"] == 3
    assert board.loc["worse", "blocks"] == 1


def test_one_seed_ranks_nobody_below_another_but_for_failures() -> None:
    one = {"seeds": {0: 0.0}}
    failed = rows("broken", (0.0,) * 4, status="failed", accuracy=None, error="x", **one)
    too = rows("broken_too", (0.0,) * 4, status="failed", accuracy=None, error="x", **one)
    board = leaderboard([*dense(), *rows("a", (0.9,) * 4, **one), *rows("b", (0.1,) * 4, **one), *failed, *too]).set_index("method")
    assert board["rank"].to_dict() == {"a": 1, "b": 1, "broken": 3, "broken_too": 3}
    assert board[["relative_area_low", "relative_area_high", "relative_area_std"]].isna().all(axis=None)


def test_a_failed_seed_earns_no_shared_rank_by_its_spread() -> None:
    """Two seeds of 0.95, one failed: the mean is worse than 0.9, and the noise so large that no test tells them apart."""
    partly = [
        replace(row, status="failed", accuracy=None) if row.seed == 2 else row
        for row in rows("partly", (0.95,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.0})
    ]
    board = leaderboard([*dense(), *partly, *rows("whole", (0.9,) * 4, seeds={0: 0.0, 1: 0.001, 2: 0.0})]).set_index("method")
    assert board["rank"].to_dict() == {"whole": 1, "partly": 2}
    assert board.loc["partly", "relative_area"] == pytest.approx(2 * 0.9505 / 3 / 0.905)


def test_interval_and_deviation_are_those_of_the_seeds_within_blocks() -> None:
    """Two blocks, two seeds each, 2 and 4 points apart: s^2 = (2 * 0.01^2 + 2 * 0.02^2) / 2, relative to dense networks of 1."""
    ones = [replace(r, accuracy=1.0, dataset=d) for r in dense() for d in "de"]
    mine = [*rows("m", (0.5,) * 4, seeds={0: 0.0, 1: 0.02}), *rows("m", (0.9,) * 4, seeds={0: 0.0, 1: 0.04}, dataset="e")]
    line = leaderboard([*ones, *mine]).iloc[0]
    s = (0.01**2 + 0.02**2) ** 0.5
    assert line["relative_area_std"] == pytest.approx(s)
    assert line["relative_area"] == pytest.approx(0.715)
    assert line["relative_area_high"] - line["relative_area"] == pytest.approx(stats.t.ppf(0.975, 2) * s / 2)
    assert line["relative_area_low"] + line["relative_area_high"] == pytest.approx(2 * line["relative_area"])


def test_pairs_are_compared_over_the_sparsities_and_blocks_both_have() -> None:
    """What was measured at easy sparsities only, or on an easy block only, does not look better for it."""
    short = [row for row in rows("short", (0.89, 0.79, 0.69, 0.1)) if row.sparsity < 0.99]
    full = [*rows("magnitude", (0.9, 0.8, 0.7, 0.2)), *rows("magnitude", (0.3,) * 4, dataset="hard")]
    board = leaderboard([*dense(), *full, *short]).set_index("method")
    assert board["rank"].to_dict() == {"short": 2, "magnitude": 1}
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


def test_controls_and_long_trainings_are_in_no_family_of_tests() -> None:
    """Two methods told apart at 5 % alone would not be among six: what has no rank must not cost any power."""
    pair = [*rows("a", (0.8,) * 4, seeds={0: 0.0, 1: 0.01, 2: 0.02}), *rows("b", (0.75,) * 4, seeds={0: 0.0, 1: 0.03, 2: 0.01})]
    others = [
        row for i in range(4) for row in rows(f"o{i}", (0.7,) * 4, epochs=50, seeds={0: 0.01 * i, 1: -0.02, 2: 0.01 * (i % 2)})
    ]  # fmt: skip
    ranks = leaderboard([*dense(), *pair, *others]).set_index("method")["rank"]
    assert ranks.loc[["a", "b"]].tolist() == [1, 2]
    ranked = [replace(row, epochs=10) for row in others]
    assert leaderboard([*dense(), *pair, *ranked]).set_index("method")["rank"].loc[["a", "b"]].tolist() == [1, 1]


@pytest.mark.parametrize(("width", "interval"), [(160, True), (70, False)])
def test_the_board_says_what_its_ranks_mean(width: int, interval: bool, capsys: pytest.CaptureFixture[str]) -> None:
    made = [*dense(), *rows("a", (0.9,) * 4, seeds={0: 0.0, 1: 0.02}), *rows("b", (0.89,) * 4, seeds={0: 0.01, 1: 0.02})]
    report.print_board(Console(width=width), "a track, tuned", leaderboard(made))
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("a track, tuned")
    assert ("±" in out) == interval
    assert "Equal ranks are not told apart (paired t, Holm). 2 seeds on 1 block show a difference of 16.3 standard deviations" in out
    report.print_board(Console(width=width), "a track", leaderboard([row for row in made if row.seed == 0]))
    assert "One seed tells no two methods apart" in " ".join(capsys.readouterr().out.split())
