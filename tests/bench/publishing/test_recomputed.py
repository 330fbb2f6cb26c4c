"""Every cell of every committed leaderboard.csv and tuned.csv, computed a second time from its rows (protocol, rule 14)."""

import csv
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from bench.publishing import derived_files
from bench.ranking import leaderboard
from bench.ranking.columns import COLUMNS
from bench.spec.row import Row
from bench.storage import results_csv
from tests.bench import recomputed
from tests.bench.pages import row

FOLDERS = sorted(path.parent for path in (Path(__file__).resolve().parents[3] / "leaderboards").glob("*/leaderboard.csv"))


def cells(path_or_text: Path | str) -> list[dict[str, str]]:
    text = path_or_text if isinstance(path_or_text, str) else path_or_text.read_text()
    return list(csv.DictReader(io.StringIO(text)))


def different(shown: str, wanted: Any) -> bool:
    """Whether a cell of the CSV, of ten significant digits, is not the value."""
    if wanted is None or shown == "":
        return wanted is not None or shown != ""
    if isinstance(wanted, str):
        return shown != wanted
    if isinstance(wanted, dict):
        return json.loads(shown) != wanted
    return not math.isclose(float(shown), wanted, rel_tol=1e-8, abs_tol=1e-10)


def assert_same(shown: list[dict[str, str]], wanted: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    assert len(shown) == len(wanted)
    assert tuple(shown[0]) == columns, "and accuracies at further sparsities, by increasing sparsity"
    wrong = [
        (line["method"], name, got[name], line.get(name))
        for got, line in zip(shown, wanted, strict=True)
        for name in columns
        if different(got[name], line.get(name))
    ]
    assert wrong == []


def with_further(records: list[dict[str, str]]) -> tuple[str, ...]:
    """The declared columns, and those of the further sparsities that pruned rows have."""
    further = sorted({float(r["sparsity"]) for r in records} - {0.0, 0.9, 0.95, 0.99})
    return (*COLUMNS, *(f"accuracy_{100 * s:g}" for s in further))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_committed_leaderboard_is_what_its_rows_give(folder: Path) -> None:
    assert_same(cells(folder / "leaderboard.csv"), recomputed.leaderboard(recomputed.read(folder)), with_further(recomputed.read(folder)))


@pytest.mark.parametrize("folder", [f for f in FOLDERS if (f / "tuned.csv").exists()], ids=lambda folder: folder.name)
def test_a_committed_tuning_is_what_its_rows_give(folder: Path) -> None:
    names = ("dataset", "architecture", "granularity", "match", "method", "finetune_epochs")

    def ordered(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(lines, key=lambda line: [str(line[name]) for name in names])

    shown = cells(folder / "tuned.csv")
    assert_same(ordered(shown), ordered(recomputed.tuned(recomputed.read(folder))), tuple(shown[0]))


def awkward() -> list[Row]:
    """Rows with all that a board has to do right: failures, refusals, ablations, long trainings, missing blocks and sparsities, one dense
    network at chance, blocks where no dense network was run."""
    draw = random.Random(7)
    places = [
        ("digits", "mlp", 0.9),
        ("digits", "lenet5", 0.95),
        ("breast_cancer", "mlp", 0.97),
        ("dead", "mlp", 0.1),
        ("bare", "mlp", 0.8),
    ]
    made: list[Row] = []
    for (dataset, architecture, dense), finetuned in ((p, f) for p in places for f in (0, 2)):
        for seed in range(4):
            common: dict[str, Any] = {"dataset": dataset, "architecture": architecture, "seed": seed, "finetune_epochs": finetuned}
            if dataset != "bare":
                at = {"accuracy": dense + draw.gauss(0, 0.01), "status": "collapsed" if dataset == "dead" and seed else "ok"}
                made.append(replace(row("dense", sparsity=0.0), **common, **at, criterion="", stage=""))
            for k, method in enumerate(("magnitude", "snip", "obd", "long", "partly", "broken", "broken_too", "short", "refuses")):
                for sparsity in (0.5, 0.9, 0.95, 0.99):
                    height = dense * (1 - sparsity ** (6 + k)) + draw.gauss(0, 0.01 * (1 + 5 * (architecture == "lenet5")))
                    one = replace(
                        row(method, sparsity=sparsity), **common, accuracy=min(1.0, max(0.0, height)), dense_accuracy=dense - 0.02
                    )
                    if method == "long":
                        one = replace(one, epochs=50, stage="during")
                    if method.startswith("broken") and seed == 1 and sparsity >= 0.95 and (method == "broken" or dataset == "digits"):
                        one = replace(one, status="failed", accuracy=None, nll=None, ece=None, score_seconds=None, error="x")
                    if method == "refuses" or (method == "partly" and architecture == "lenet5"):
                        one = replace(one, status="unsupported", accuracy=None, nll=None, ece=None, score_seconds=None)
                    if method == "short" and sparsity == 0.99:
                        continue
                    made.append(one)
                    if method == "snip":
                        made.append(replace(one, ablation="shuffle", accuracy=(one.accuracy or 0) / 2))
                        made.append(replace(one, tuning="tuned", accuracy=min(1.0, (one.accuracy or 0) + 0.01)))
                    if method in ("obd", "magnitude"):
                        made.append(replace(one, tuning="tuned"))
    return made


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_an_awkward_board_is_what_its_rows_give(seeds: int, tmp_path: Path) -> None:
    rows = [r for r in awkward() if r.seed < seeds]
    (tmp_path / "results").mkdir()
    results_csv.write_rows(rows, tmp_path / "results" / "all.csv")
    shown = cells(results_csv.table_text(leaderboard.leaderboard(rows), derived_files.DIGITS))
    wanted = recomputed.leaderboard(recomputed.read(tmp_path))
    assert_same(shown, wanted, (*COLUMNS, "accuracy_50"))
    assert any(line["rank_low"] for line in shown) == (seeds > 1)


def test_tuning_makes_no_method_significantly_worse() -> None:
    """On every committed board, for every method and length of fine-tuning: tuned against default, paired by block and seed."""
    found = {}
    for folder in FOLDERS:
        rows = [r for r in recomputed.read(folder) if r["criterion"] and r["ablation"] == "none" and r["status"] != "unsupported"]
        curves: dict[Any, dict[str, dict[Any, dict[float, float]]]] = {}
        for r in rows:
            line = curves.setdefault((folder.name, r["method"], r["finetune_epochs"]), {}).setdefault(r["tuning"], {})
            key = (*recomputed.block_of(r), r["seed"])
            line.setdefault(key, {})[float(r["sparsity"])] = recomputed.accuracy(r)
        for name, line in curves.items():
            if "tuned" in line:
                gains = {k: recomputed.area(c) - recomputed.area(line["default"][k]) for k, c in line["tuned"].items()}
                found[name] = recomputed.Sample(gains)
    assert found, "a board has tuned rows"
    losses = {name: sample for name, sample in found.items() if sample.mean < -1e-12}
    worse = {n: s.mean for n, s in losses.items() if not s.error or 2 * stats.t.sf(-s.mean / s.error, s.df) < 0.05}
    assert not worse
