"""The tables on made-up rows whose answers are known."""

import json

import pytest

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
    **more: object,
) -> list[Row]:
    """A row for each sparsity and two seeds; the second seed is one point better."""
    return [
        Row(
            suite="s",
            dataset="d",
            architecture="a",
            granularity="weight",
            match="weights",
            method=method,
            criterion=method,
            training=training,
            stage=stage,
            tuning="default",
            ablation=ablation,
            sparsity=s,
            seed=seed,
            epochs=epochs,
            finetune_epochs=finetune,
            hyperparameters=json.dumps({"training": {}}),
            **(
                {
                    "status": "ok",
                    "accuracy": a + seed / 100,
                    "nll": 1 - a,
                    "ece": 0.1,
                    "dense_accuracy": 0.9,
                    "score_seconds": 2.0,
                    "train_seconds": 10.0,
                }
                | more
            ),
        )
        for seed in (0, 1)
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
