"""A suite whose blocks have values of their own, from `run` to `verify`, through the command line."""

import html
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.publishing.plots import curves
from bench.spec.row import Row
from bench.storage import results_csv

Bench = Callable[..., tuple[int, str, str]]
SUITE = """
name = "blocks"
description = "two blocks"
blocks = [
    { dataset = "breast_cancer", architectures = ["mlp"], epochs = 2, trials = 2 },
    { dataset = "digits", architectures = ["mlp"], train_limit = 200 },
]
sparsities = [0.5, 0.8, 0.9]
early_sparsities = [0.8]
finetune_epochs = [0, 1]
seeds = [0, 1, 2]
tuning_seeds = 1
pool = 1
methods = ["random", "magnitude", "magnitude_layer", "random_init"]
epochs = 1
validation = 0.2
"""


def test_a_suite_with_blocks_runs_is_published_and_verified(tiny: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "draw", lambda rows, board: {})  # they take seconds, and have tests of their own
    (tiny / "blocks.toml").write_text(SUITE)
    code, out, err = bench("run", "--suite", "blocks.toml", "--output", "out", "--workers", "1")
    assert code == 0, err
    assert "what tuning gained" in out
    rows = results_csv.read_rows(tiny / "out" / "results.csv")
    # 2 blocks x 3 seeds x (3 methods x 3 sparsities x 2 lengths + 1 early + 2 dense), and the first block also tuned
    assert len(rows) == 2 * 3 * (18 + 1 + 2) + 3 * (18 + 1 + 2)
    assert {of(row) for row in rows} == {
        ("breast_cancer", "default", 2), ("breast_cancer", "tuned", 2), ("digits", "default", 1),
    }  # fmt: skip
    code, out, err = bench("publish", "--suite", "blocks.toml")
    assert code == 0, err
    source = html.unescape((tiny / "leaderboards/blocks/index.html").read_text())
    again = shlex.split(source.split("python -m bench run")[1].split("</code>")[0].replace("\\\n", ""))
    code, out, err = bench("run", *again, "--dry-run", "--workers", "1")
    assert code == 0, err
    assert "126 rows: 126 in the store, 0 to compute" in out, "the command on the page asks for the rows of the page"
    assert "Tuning: 0 searches" in out
    code, out, err = bench("verify", "leaderboards/blocks", "--sample", "2", "--seed", "1")
    assert code == 0, out + err
    code, out, _ = bench("status", "--suite", "blocks.toml")
    assert code == 0
    assert "126 of 126 rows" in out
    assert "4 of 4 searches finished" in out
    assert "63 of 63 rows" in out
    code, _, err = bench("compare", "magnitude", "random_init", "--suite", "blocks.toml")
    assert code == 2
    assert "they share the fine-tuned tracks only; add --finetune-epochs with numbers above 0 only" in err
    code, out, err = bench("compare", "magnitude", "random", "--suite", "blocks.toml")
    assert (code, out.count("area, magnitude - random"), "only the fine-tuned" in out) == (0, 4, False), err
    for old, new, said in (
        (", trials = 2", "", "`trials` of the suite differs from the published rows of dense, magnitude, magnitude_layer, random, "),
        (
            "early_sparsities = [0.8]",
            "early_sparsities = [0.9]",
            "published rows of 'random_init' are not in the suite: sparsity 0.8 is not one of 0.9",
        ),
    ):
        assert old in SUITE
        (tiny / "blocks.toml").write_text(SUITE.replace(old, new))
        code, out, err = bench("publish", "--suite", "blocks.toml", "--methods", "random,magnitude,magnitude_layer", "--dry-run")
        assert code == 2, out
        assert said in err


def of(row: Row) -> tuple[str, str, int]:
    return row.dataset, row.tuning, row.epochs
