"""Time and memory of `table`, `status`, `publish`, `publish --merge` and the page of a leaderboard of many rows, each in its own process.

    python benchmarks/many_rows.py [--rows 1000000] [--folder FOLDER] [--only table,status] [--profile]

The rows are made up: all methods on ten blocks (data set and architecture), with noise over seeds. They are what a run would have
stored, so that `publish` and the checks of `--merge` accept them. The store and the published board have at least the given number of
rows; one half of those of the board is tuned, and the rows of one method are merged into the others. `page` ranks the rows of the board,
and makes its page and plots. Making the rows is not measured and takes longer than the rest; with `--folder` they are kept for the next
call. The goal is a minute and 2 GB for each.
"""

import argparse
import dataclasses
import itertools
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from bench.execution.environment import open_request
from bench.planning.plan import expanded
from bench.planning.request import Request
from bench.publishing import board_folder
from bench.publishing.board_folder import Board
from bench.spec.choices import Narrowing, Resources
from bench.spec.row import Row
from bench.spec.setting import Search, decoded
from bench.storage import files, results_csv
from bench.storage.rows import Store
from methods import count_masked

NAME, LAST = "many", "obd"
LEAST_SEEDS = 3
HALF = 0.505  # share of the seeds of a board: most of its rows are there twice, as default and as tuned ones
BLOCKS = {
    "digits": ["mlp", "mlp_256", "residual_mlp", "lenet5", "vit_micro_patch4", "resnet20", "wrn16_4"],
    "breast_cancer": ["mlp", "mlp_256", "residual_mlp"],
}
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)
FINETUNED = (0, 1, 2, 5, 10)
PAGE = f"""
from pathlib import Path
from bench.publishing import board_folder, derived_files
from bench.storage.contents import Contents

board = board_folder.read(Path("board/{NAME}"))
suite, tables = board.suite, derived_files.tables(board)
del board
Path("index.html").write_bytes(derived_files.files_of(suite, Contents(), tables)["index.html"])
"""
STORED = ["--suite", f"{NAME}.toml", "--store", "sqlite:///store.db"]
COMMANDS = {  # arguments of Python; the board that `merge` changes is copied before
    "table": ["-m", "bench", "table", f"board/{NAME}"],
    "page": ["-c", PAGE],
    "status": ["-m", "bench", "status", *STORED],
    "publish": ["-m", "bench", "publish", *STORED, "--to", "published"],
    "merge": ["-m", "bench", "publish", "--suite", NAME, "--merge", "contributed.csv", "--contributor", "somebody", "--to", "merged"],
}


def write_suite(folder: Path, sparsities: tuple[float, ...], finetuned: tuple[int, ...], seeds: int) -> Request:
    """Write the suite, and return its request."""
    suite = {
        "name": NAME, "description": "made-up rows", "sparsities": list(sparsities), "finetune_epochs": list(finetuned),
        "seeds": list(range(seeds)), "methods": ["all"], "epochs": 14, "trials": 0,
        "blocks": [{"dataset": dataset, "architectures": names} for dataset, names in BLOCKS.items()],
    }  # fmt: skip
    (folder / "many.toml").write_text(tomli_w.dumps(suite))
    return open_request(str(folder / "many.toml"), Narrowing(), Resources())


def expected(request: Request, folder: Path) -> dict[str, Row]:
    """Key -> row without measurements."""
    request = dataclasses.replace(request, environment=dataclasses.replace(request.environment, cache=folder / "cache"))
    return {key: row for planned in expanded(request) for key, row in planned.rows.items()}


def measured(rows: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """The rows with made-up measurements; the values of dense networks agree with the rows that refer to them."""
    draw = random.Random(0)
    shapes: dict[Any, int] = {}
    dense: dict[Any, Row] = {}
    for key, row in sorted(rows.items(), key=lambda item: bool(item[1].criterion)):
        weights = shapes.setdefault((row.dataset, row.architecture), 10_000 * (len(shapes) + 1))
        network = (row.dataset, row.architecture, row.seed, row.finetune_epochs, row.training)
        kept = weights - count_masked(row.sparsity, weights)
        quality = (sum(map(ord, row.method)) % 40) / 40
        height = 0.95 if not row.criterion else max(0.1, 0.95 - (0.1 + quality) * row.sparsity**8) + draw.gauss(0, 0.01)
        made = dataclasses.replace(row, **_values(draw, round(360 * min(1.0, height)) / 360, weights, kept))
        if row.criterion:
            own = dense[network]
            copied: dict[str, Any] = {"dense_accuracy": own.accuracy, "dense_nll": own.nll, "dense_training_flops": own.training_flops}
            before = made.accuracy if row.finetune_epochs else None
            made = dataclasses.replace(made, **copied, accuracy_before_finetune=before)
        else:
            made = dataclasses.replace(made, dense_training_flops=made.training_flops)
            dense[network] = made
        yield key, made


def _values(draw: random.Random, accuracy: float, weights: int, kept: int) -> dict[str, Any]:
    nll = -math.log(max(accuracy, 0.02)) * draw.uniform(0.9, 1.1) + 1e-3
    return {
        "status": "ok", "sparsity_reached": 1 - kept / weights, "prunable_weights": weights, "kept_weights": kept,
        "parameters": weights + 100, "parameters_kept": kept + 100, "flops": 2 * weights, "flops_kept": 2 * kept, "accuracy": accuracy,
        "top5": 1.0, "nll": nll, "brier": min(2.0, nll / 2), "ece": draw.uniform(0, 0.1),
        "worst_class_accuracy": accuracy * draw.randrange(30) / 30, "layers_collapsed": 0, "effective_sparsity": 1 - kept / weights,
        "score_seconds": draw.uniform(0.01, 1), "train_seconds": draw.uniform(1, 2), "latency_ms": draw.uniform(0.1, 0.2),
        "dense_latency_ms": 0.2, "match_reached": 1 - kept / weights, "training_flops": 1000 * weights,
    }  # fmt: skip


def tuned(row: Row) -> Row:
    """The row as a tuned one, which keeps the default hyperparameters."""
    setting = dataclasses.replace(decoded(row.hyperparameters), search=Search(10, 100, 0.8, 0.9))
    return dataclasses.replace(row, tuning="tuned", hyperparameters=setting.encoded())


def make(folder: Path, rows: int) -> None:
    """Write the suite, a store, a published board, and a file of rows to merge with it."""
    few = len(expected(write_suite(folder, SPARSITIES[3::3], FINETUNED[:2], 1), folder))
    many = len(expected(write_suite(folder, SPARSITIES, FINETUNED, 1), folder))  # rows of one seed
    wide = rows >= LEAST_SEEDS * many
    seeds = max(LEAST_SEEDS, math.ceil(rows / (many if wide else few)))
    sparsities, finetuned = (SPARSITIES, FINETUNED) if wide else (SPARSITIES[3::3], FINETUNED[:2])
    request = write_suite(folder, sparsities, finetuned, seeds)
    stored = fill_store(request, folder)
    half = write_suite_of_board(request, folder, max(LEAST_SEEDS, math.ceil(seeds * HALF)))
    made = [row for _, row in measured(expected(half, folder))]
    made += [tuned(row) for row in made if row.criterion]
    new = [row for row in made if row.method == LAST]
    results_csv.write_rows(new, folder / "contributed.csv")
    board = Board(half.suite.model_copy(update={"trials": 10}), tuple(row for row in made if row.method != LAST))
    files.write_files(folder / "board" / NAME, board_folder.evidence(board))
    print(f"{len(request.methods)} methods; {stored:,} rows in the store, {len(made):,} of the board, {len(new):,} of them to merge")


def fill_store(request: Request, folder: Path) -> int:
    """Store the rows of a request; their number."""
    store, rows = Store(f"sqlite:///{folder / 'store.db'}"), measured(expected(request, folder))
    count = 0
    while part := dict(itertools.islice(rows, 20_000)):
        store.put(part)
        count += len(part)
    return count


def write_suite_of_board(request: Request, folder: Path, seeds: int) -> Request:
    """The request of the board: half of the seeds."""
    return open_request(str(folder / "many.toml"), Narrowing(seeds=tuple(range(seeds))), Resources())


def run(folder: Path, name: str, profile: bool) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and largest memory in MB of a command."""
    for left in ("published", "merged"):
        shutil.rmtree(folder / left, ignore_errors=True)
    if name == "merge":
        shutil.copytree(folder / "board", folder / "merged")
    log, how = folder / f"{name}.log", ["-m", "cProfile", "-o", str(folder / f"{name}.prof")] if profile and name != "page" else []
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, *how, *COMMANDS[name]], cwd=folder, stdout=file, stderr=file)
        _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{name} failed: {log.read_text()[-2000:]}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Make the rows, and measure each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default=",".join(COMMANDS))
    parser.add_argument("--profile", action="store_true", help="Write FOLDER/<command>.prof, except of the page.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "contributed.csv").exists():
            make(folder, options.rows)
        print(f"{'command':<10}{'seconds':>10}{'processor':>12}{'MB':>8}")
        for name in filter(None, options.only.split(",")):
            seconds, processor, memory = run(folder, name, options.profile)
            print(f"{name:<10}{seconds:>10.1f}{processor:>12.1f}{memory:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
