"""Made-up results for the tests of the page: rows as strangers might send them, and the page of them."""

import itertools
import json
import random
from dataclasses import asdict
from typing import Any

import pandas as pd

from bench.publishing.page import page
from bench.ranking import leaderboard, tuning_gain
from bench.spec.row import Row

HOSTILE = """</script><script>alert("it's")</script>' onmouseover="x"""


def row(method: str, dataset: str = "digits", sparsity: float = 0.9, seed: int = 0, **more: Any) -> Row:
    draw = random.Random(f"{method} {dataset} {sparsity} {seed} {more.get('tuning')}")
    given: dict[str, Any] = {
        "suite": "tiny", "dataset": dataset, "architecture": "mlp", "granularity": "weight", "match": "weights", "method": method,
        "criterion": method, "training": "map", "stage": "after", "tuning": "default", "ablation": "none", "sparsity": sparsity,
        "seed": seed, "epochs": 4, "finetune_epochs": 0, "status": "ok", "accuracy": draw.random(), "nll": draw.random(),
        "ece": draw.random(), "dense_accuracy": 0.9, "score_seconds": draw.random(), "train_seconds": 3.0,
        "hyperparameters": '{"criterion": {"samples": 64}}',
        "version": "0.1.0", "commit": "0123abc", "torch": "2.11", "device": "cpu",
    }  # fmt: skip
    return Row(**given | more)


def dense(dataset: str, seed: int) -> Row:
    return row("dense", dataset, 0.0, seed, criterion="", stage="", accuracy=0.9)


def rows_of(methods: list[str], seeds: tuple[int, ...] = (0, 1, 2), **more: Any) -> list[Row]:
    cells = itertools.product(methods, ("digits", "breast_cancer"), (0.9, 0.95, 0.99), seeds)
    references = [dense(d, s) for d, s in itertools.product(("digits", "breast_cancer"), seeds)]
    return references + [row(m, d, s, seed, **more) for m, d, s, seed in cells]


def made(rows: list[Row], suite: str = "tiny", **more: Any) -> str:
    """The page of these rows; `more`: fields of `page.More`."""
    table = pd.DataFrame([asdict(r) for r in rows])
    return page.page(suite, "for tests", leaderboard.leaderboard(rows), tuning_gain.tuned(rows), table, page.More(**more))


def search(trials: int = 2) -> str:
    said = {"trials": trials, "epochs": 8, "validation": {"default": 0.25, "tuned": 0.75}}
    return json.dumps({"criterion": {"samples": 7}, "training": {}, "tuning": said})
