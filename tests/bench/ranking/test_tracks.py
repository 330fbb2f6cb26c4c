"""Names of tracks, and the dense rows that each track is compared with."""

import random
from dataclasses import replace

import pandas as pd
import pytest

from bench.ranking.leaderboard import leaderboard
from bench.ranking.tracks import BLOCK, columns, difference, pivoted, track_name
from tests.bench.boards import dense, rows


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (("after", 0), "one-shot after training"),
        (("after", 0, "channel", "flops"), "one-shot after training, channel, equal flops"),
        (("after", 2), "fine-tuned 2 epochs"),
        (("after", 0, "weight", "weights", 0), "one-shot on given weights"),
        (("after", 2, "2:4", "weights", 0, "batchnorm"), "fine-tuned 2 epochs from given weights, 2:4, batch norm recalibrated"),
        (("init", 0, "weight", "weights", 5, "batchnorm"), "one-shot at initialisation, batch norm recalibrated"),
        (("", 0), ""),
    ],
)
def test_names(kind: tuple[str, int], name: str) -> None:
    assert track_name(*kind) == name


def test_a_pivot_table_is_that_of_pandas() -> None:
    """With missing values, gaps, a row twice, and blocks and seeds that are not sorted."""
    draw = random.Random(0)
    made = [replace(row, dataset=f"d{k}", accuracy=draw.random() if k else None) for k in (2, 0, 1) for row in rows("a", (0.5,) * 4)]
    draw.shuffle(made)
    table = columns([*made[:-3], *made[:2]], [*BLOCK, "seed", "sparsity", "accuracy"])
    wanted = table.pivot_table(index=[*BLOCK, "seed"], columns="sparsity", values="accuracy", sort=False)
    found = pivoted(table, "accuracy")
    pd.testing.assert_frame_equal(found, wanted, check_exact=True, check_index_type=False)
    assert list(found.index) == list(wanted.index)
    shifted = found.iloc[1:].add(0.1)
    assert difference(found, shifted).to_dict() == pytest.approx(dict.fromkeys(shifted.index, -0.1))
    assert difference(found, found + 0.1).to_dict() == pytest.approx(dict.fromkeys(found.index, -0.1))


def test_given_networks_and_recalibrated_ones_are_tracks_with_dense_networks_of_their_own() -> None:
    """The same method with accuracy 0.45 everywhere: relative to a dense accuracy of 0.9, 0.6 and 0.5."""
    trained = [*dense(0.9), *rows("magnitude", (0.45,) * 4, seeds={0: 0.0})]
    given = [replace(r, epochs=0) for r in [*dense(0.6), *rows("magnitude", (0.45,) * 4, seeds={0: 0.0})]]
    again = [replace(r, epochs=0, recalibration="batchnorm") for r in [*dense(0.5), *rows("magnitude", (0.45,) * 4, seeds={0: 0.0})]]
    board = leaderboard([*trained, *given, *again])
    means = {r.track: r.relative_area for r in board.itertuples()}
    assert means == {
        "one-shot after training": pytest.approx(0.45 / 0.905),
        "one-shot on given weights": pytest.approx(0.45 / 0.605),
        "one-shot on given weights, batch norm recalibrated": pytest.approx(0.45 / 0.505),
    }
    assert not board["rank"].isna().any(), "a network that was not trained here is over no budget"
