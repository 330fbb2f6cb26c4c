"""What `run` and `status` do and show: progress while it runs, the leaderboard at the end."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bench.cli import dry_run as dry_runs
from bench.execution import executors, pipeline
from bench.execution.pipeline import Progress
from bench.planning import catalogue, planning
from bench.planning.planning import Request
from bench.publishing.page import cells
from bench.ranking import leaderboard, statistics, tracks, tuning_gain
from bench.ranking.tracks import BLOCK
from bench.spec.errors import UserError
from bench.spec.row import COLLAPSED, Row
from bench.spec.suite import Suite
from bench.storage import results_csv
from bench.storage.rows import DEFAULT_URL, Store
from bench.trial.job import Place
from bench.tuning.study import Found

CACHE = Path(".bench")
# Column of the leaderboard -> (title, format). The first ones are shown on narrow terminals too.
NUMBERS = {
    "relative_area": ("area\n/dense", "{:.3f}"), "accuracy_90": ("acc\n90%", "{:.1%}"), "accuracy_95": ("acc\n95%", "{:.1%}"),
    "accuracy_99": ("acc\n99%", "{:.1%}"), "sparsity_within_one_point": ("within\n1 point", "{:.1%}"),
    "nll_95": ("NLL\n95%", "{:.2f}"), "ece_95": ("ECE\n95%", "{:.3f}"), "scoring_epochs": ("scoring\nepochs", "{:.2f}"),
}  # fmt: skip
NARROW = 100  # characters below which the last three are left out


def run(
    suite: Suite, *, methods: str, datasets: list[str], architectures: list[str], changes: dict[str, Any],
    ablations: tuple[str, ...], executor: str, ray_address: str | None, workers: int | None, device: str, store: str | None,
    data_root: Path | None, plugins: tuple[str, ...], output: Path | None, dry_run: bool, chosen: Path | None = None,
) -> None:  # fmt: skip
    """Plan, run and show; see `bench.cli.run` for the arguments."""
    console = make_console()
    place = make_place(device, data_root, plugins)
    request = _request(suite, methods, place, datasets, architectures, changes, ablations)
    found = _chosen(request, chosen) if chosen is not None else None
    database = Store(store or DEFAULT_URL)
    if dry_run:
        dry_runs.show(console, request, database, worker_count(workers, place.device))
        return
    pool = _executor(executor, workers, place.device, ray_address)
    try:
        planned = planning.plan(request, database)
        for note in planned.notes:
            console.print(f"note: {note}", style="yellow", highlight=False)
        with Display(console, len(planned.expected), pool.workers) as display:
            pipeline.run(planned, database, pool, display.show)
        rows = pipeline.collect(planned, database)
        if found is None and request.suite.trials:
            found = _search(console, request, database, pool)
        if found is not None:
            rows += _tuned(console, dataclasses.replace(request, tuned=found), database, pool)
    finally:
        pool.close()
    _finish(console, rows, output)


def _search(console: Console, request: Request, database: Store, pool: pipeline.Pool) -> dict[tuple[str, str, str], Found]:
    """What tuning finds for each method and block."""
    console.print(f"tuning: {request.suite.trials} trials for each method and block, on validation data", highlight=False)
    with Display(console, 0, pool.workers) as display:
        studies = pipeline.pools(request, database, pool, display.show)
    with Display(console, 0, pool.workers) as display:
        return pipeline.search(studies, database, request.place.cache, pool, display.show)


def _tuned(console: Console, request: Request, database: Store, pool: pipeline.Pool) -> list[Row]:
    """The rows of what was found."""
    planned = planning.plan(request, database)
    with Display(console, len(planned.expected), pool.workers) as display:
        pipeline.run(planned, database, pool, display.show)
    return pipeline.collect(planned, database)


def _chosen(request: Request, folder: Path) -> dict[tuple[str, str, str], Found]:
    """What a published leaderboard, or the output of a run, has chosen. UserError where it says nothing of what the request is for."""
    files = [*sorted((folder / "results").glob("*.csv")), *folder.glob("results.csv")]
    if not files:
        raise UserError(f"--tuned '{folder}': it contains neither results/*.csv nor results.csv")
    try:
        found = tuning_gain.chosen(row for file in files for row in results_csv.read_rows(file))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--tuned '{folder}': {error}") from None
    wanted = [(b.dataset, a, m.name) for b in request.suite.blocks for a in b.architectures for m in request.methods]
    blocks = {cell[:2] for cell in found}  # an architecture that does not take a data set has rows of nobody
    missing = [cell for cell in wanted if cell not in found and (cell[:2] in blocks or not blocks & {w[:2] for w in wanted})]
    if missing:
        dataset, architecture, method = missing[0]
        raise UserError(f"--tuned '{folder}': it has no tuned rows of {method} on {dataset}/{architecture}")
    return {cell: found[cell] for cell in wanted if cell in found}


def status(suite: Suite, *, methods: str, store: str | None, device: str, data_root: Path | None, plugins: tuple[str, ...]) -> None:
    """Print how many rows of each method are done, failed, left."""
    console = make_console()
    request = _request(suite, methods, make_place(device, data_root, plugins), [], [], {})
    database = Store(store or DEFAULT_URL)
    planned = planning.plan(request, database)
    have = {key: row.status for key, row in database.get(planned.expected).items()}
    console.print(f"suite {suite.name}, at the defaults: {len(have)} of {len(planned.expected)} rows in the store", highlight=False)
    if request.suite.trials:
        found, left = pipeline.searched(request, database)
        console.print(f"tuning: {len(found)} of {len(found) + left} searches finished", highlight=False)
        tuned_rows = planning.plan(dataclasses.replace(request, tuned=found), database).expected if found else {}
        console.print(f"tuned: {len(database.get(tuned_rows))} of {len(tuned_rows)} rows of these in the store", highlight=False)
    table = Table("method", "done", "failed", "left", box=box.SIMPLE_HEAD)
    for method in dict.fromkeys(row.method for row in planned.expected.values()):
        keys = [key for key, row in planned.expected.items() if row.method == method]
        failed = sum(have.get(key) == "failed" for key in keys)
        done = sum(key in have for key in keys) - failed
        table.add_row(method, str(done), str(failed), str(len(keys) - done - failed))
    console.print(table)


def make_place(device: str, data_root: Path | None, plugins: tuple[str, ...]) -> Place:
    """Where jobs find things. UserError for a GPU or a folder that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU on this machine; use --device cpu or auto")
    if data_root is not None and not data_root.is_dir():
        raise UserError(f"--data-root '{data_root}' is not a directory")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return Place(chosen, data_root, CACHE.resolve(), tuple(str(Path(p).resolve()) for p in plugins))


def _request(
    suite: Suite, methods: str, place: Place, datasets: list[str], architectures: list[str], changes: dict[str, Any],
    ablations: tuple[str, ...] = (),
) -> Request:  # fmt: skip
    catalogue.load_plugins(place.plugins)
    chosen = catalogue.select_methods(methods)
    narrowed = planning.narrow(suite, datasets=datasets, architectures_=architectures, **changes)
    return Request(planning.what_is_removed(narrowed, ablations, changes.get("sparsities")), chosen, place, ablations)


def _executor(name: str, workers: int | None, device: str, address: str | None) -> "executors.Local | executors.Ray":
    if workers is None and name == "local":
        workers = worker_count(workers, device)
    return executors.make(name, workers, gpus=device == "cuda", address=address)


def worker_count(asked: int | None, device: str) -> int:
    """How many jobs run at a time on this machine: one on a GPU, unless more are asked for."""
    return asked or (1 if device == "cuda" else os.cpu_count() or 1)


class Display:
    """A line that moves where a terminal is watching: done, running, time left. A line now and then where none is."""

    QUIET_SECONDS = 15.0  # between two lines in a log

    def __init__(self, console: Console, rows: int, workers: int) -> None:
        self._console, self._rows, self._workers = console, rows, workers
        self._start = self._said = time.monotonic()
        self._live = Live(console=console, transient=True, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """One look at the run."""
        if progress.jobs == 0:
            return
        line = self._line(progress)
        if self._live:
            running = [Text("  " + label, style="dim") for label in progress.running[: self._workers]]
            self._live.update(Text("\n").join([Text(line), *running]))
        elif time.monotonic() - self._said > self.QUIET_SECONDS:
            self._said = time.monotonic()
            print(line, flush=True)

    def _line(self, progress: Progress) -> str:
        width, share = 24, progress.epochs_done / max(1, progress.epochs)
        bar = "█" * round(width * share) + "░" * (width - round(width * share))
        elapsed = time.monotonic() - self._start
        left = f"about {dry_runs.duration(elapsed * (1 - share) / share)} left" if share > 0.02 else "estimating"
        failed = f" · {progress.failed} rows failed" if progress.failed else ""
        return f"{bar} {progress.done}/{progress.jobs} jobs · {share:.0%} of epochs · {dry_runs.duration(elapsed)} gone · {left}{failed}"


def _finish(console: Console, rows: list[Row], output: Path | None) -> None:
    """Print dense networks and leaderboard, write the CSVs, name what failed."""
    board, table = leaderboard.leaderboard(rows), tracks.frame(rows)
    print_dense(console, rows)
    for warning in tracks.warnings(table):
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    resolutions = leaderboard.resolutions(table)
    for (track, tuning), part in board.groupby(["track", "tuning"], sort=False):
        title = track if tuning == "default" else f"{track}, {tuning}"
        print_board(console, title, part, resolutions[track, tuning].meaning)
    gains = tuning_gain.tuned(rows)
    if len(gains):
        print_gains(console, gains)
    failed = [row for row in rows if row.status == "failed"]
    for error in dict.fromkeys(f"{row.method} on {row.dataset}/{row.architecture}: {row.error}" for row in failed):
        console.print(f"failed: {error}", style="red", highlight=False)
    if failed:
        console.print(f"{len(failed)} of {len(rows)} rows failed; the next run tries them again", style="red", highlight=False)
    if output is not None:
        results_csv.write_rows(rows, output / "results.csv")
        results_csv.write_table(board, output / "leaderboard.csv")
        written = [output / "results.csv", output / "leaderboard.csv"]
        if len(gains):
            results_csv.write_table(gains, output / "tuned.csv")
            written.append(output / "tuned.csv")
        console.print(f"wrote {', '.join(map(str, written))}", highlight=False)
    sys.stdout.flush()


def print_dense(console: Console, rows: list[Row]) -> None:
    """Accuracy of the dense networks: mean over seeds and its 95 % interval."""
    rows = [row for row in rows if row.tuning == "default"]
    dense = tracks.frame(row for row in rows if not row.criterion and row.finetune_epochs == 0)
    if dense.empty:
        dense = tracks.frame(row for row in rows if not row.criterion)
    blocks = list(dict.fromkeys(zip(dense["dataset"], dense["architecture"], strict=True)))
    table = Table(title="dense networks: test accuracy, ± half width of the 95 % interval", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("training", no_wrap=True)
    for dataset, architecture in blocks:
        table.add_column(f"{dataset}\n{architecture}", justify="right")
    for method, part in dense.groupby("method", sort=False):
        groups = [part[(part["dataset"] == d) & (part["architecture"] == a)]["accuracy"].astype(float) for d, a in blocks]
        table.add_row(str(method), *(_mean_and_interval(g.dropna()) for g in groups))
    console.print(table)


def _mean_and_interval(values: pd.Series) -> str:
    if values.empty:
        return "failed"
    mean, half = values.mean(), statistics.half_width(values.std(), len(values))
    return f"{mean:.2%} {cells.spread(mean, max(0.0, mean - half), min(1.0, mean + half), '{:.2%}')}".rstrip()


def make_console() -> Console:
    """The terminal, or where there is none a page wide enough for every column."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def print_board(console: Console, title: str, board: pd.DataFrame, meaning: str) -> None:
    """One track's table, with the 95 % interval of the area where there is room, and below it what its ranks mean."""
    table = _board_table(console, title, board, intervals=True)
    if Measurement.get(console, console.options.update_width(10 * console.width), table).maximum > console.width:
        table = _board_table(console, title, board, intervals=False)
    console.print(table)
    said = [meaning] * bool(meaning)
    if board["collapsed"].any():
        said.append(f"collapsed: rows in which {COLLAPSED}.")
    if said:
        console.print(" ".join(said), style="dim", highlight=False)


def _board_table(console: Console, title: str, board: pd.DataFrame, *, intervals: bool) -> Table:
    wanted = list(NUMBERS.items())[: None if console.width >= NARROW else -3]
    shown = {name: heading for name, heading in wanted if board[name].notna().any()}
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    table.add_column("method", no_wrap=True)
    most = board["blocks"].max()
    lacking = any(cells.lacking(blocks, most) for blocks in board["blocks"])
    if lacking:
        table.add_column("blocks", justify="right", no_wrap=True)
    for name, (heading, _) in shown.items():
        table.add_column("area/dense\n± 95 % interval" if intervals and name == "relative_area" else heading, justify="right")
    table.add_column("wins/ties/losses\nagainst magnitude" if console.width >= NARROW else "w/t/l", justify="right")
    kinds = ["failed", "collapsed"] if lacking and console.width < NARROW else ["failed", "collapsed", "unsupported"]
    remarks = [name for name in kinds if board[name].any()]  # on narrow terminals the number of blocks says enough
    for name in remarks:
        table.add_column(name, justify="right")
    if board["epochs"].nunique() > 1:  # who trained for longer is no rival: it has no rank
        remarks.append("epochs")
        table.add_column("epochs", justify="right")
    for _, line in board.iterrows():
        named = [cells.ranks(line["rank_low"], line["rank_high"]), line["method"]]
        if lacking:
            named.append(cells.lacking(line["blocks"], most).removesuffix(" blocks") or str(most))
        numbers = ["–" if cells.missing(line[name]) else form.format(line[name]) for name, (_, form) in shown.items()]
        if intervals and "relative_area" in shown:
            ends = (line[name] for name in ("relative_area", "relative_area_low", "relative_area_high"))
            numbers[0] = f"{numbers[0]} {cells.spread(*ends)}".rstrip()
        against = "–" if cells.missing(line["wins"]) else f"{line['wins']:.0f}/{line['ties']:.0f}/{line['losses']:.0f}"
        table.add_row(*named, *numbers, against, *(f"{line[name]:.0f}" for name in remarks))
    return table


def print_gains(console: Console, gains: pd.DataFrame) -> None:
    """What tuning gained each method, on average over blocks, and what it cost."""
    table = Table(title="what tuning gained: area on test data, mean over blocks", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    lengths = sorted(gains["finetune_epochs"].unique())
    for length in lengths:
        kind = f"fine-tuned {length}" if length else "one-shot"
        for heading in (f"{kind}\ndefault", "\ntuned", "\ngain"):
            table.add_column(heading, justify="right")
    table.add_column("trials", justify="right")
    table.add_column("training\nepochs", justify="right")
    means = gains.groupby(["method", "finetune_epochs"], sort=False)[["area_default", "area_tuned", "gain"]].mean()
    cost = gains.drop_duplicates(["method", *BLOCK]).groupby("method")[["trials", "tuning_epochs"]].sum()
    for method in means["gain"].groupby(level=0).mean().sort_values(ascending=False).index:
        numbers = [form.format(v) for f in lengths for v, form in zip(means.loc[(method, f)], ("{:.3f}", "{:.3f}", "{:+.3f}"), strict=True)]
        table.add_row(str(method), *numbers, *(f"{cost.loc[method, name]:.0f}" for name in ("trials", "tuning_epochs")))
    console.print(table)
