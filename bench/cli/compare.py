"""`compare`: two methods on the same seeds, read from the store: paired differences with interval and p-value. Runs nothing."""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bench.cli import report
from bench.execution import pipeline
from bench.planning import planning
from bench.planning.catalogue import WHEN
from bench.planning.planning import Request
from bench.publishing.page import cells
from bench.ranking import tracks
from bench.ranking.statistics import ALPHA, Estimate, estimate
from bench.ranking.tracks import BLOCK
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.suite import Suite
from bench.storage.rows import DEFAULT_URL, Store
from methods import Method


def compare(
    suite: Suite, pair: tuple[Method, Method], *, datasets: list[str], architectures: list[str], changes: dict[str, Any], device: str,
    store: str | None, data_root: Path | None, plugins: tuple[str, ...], command: list[str],
) -> None:  # fmt: skip
    """Print how two methods differ, for each track that both are in; see `bench.cli.compare`.

    `command` computes the rows. UserError names it where some are not in the store, and says so where the methods share no track.
    """
    console = report.make_console()
    place = report.make_place(device, data_root, plugins)
    narrowed = planning.narrow(suite, datasets=datasets, architectures_=architectures, **changes)
    narrowed = planning.what_is_removed(narrowed, sparsities=changes.get("sparsities"))
    names = {f: [tracks.track_name(m.stage, f) for m in pair] for f in narrowed.finetune_epochs}
    shared = [f for f, (a, b) in names.items() if a == b]
    when = " and ".join(f"'{m.name}' is applied {WHEN[m.stage]}" for m in pair)
    if not shared:
        raise UserError(f"{when}: they share the fine-tuned tracks only; add --finetune-epochs with a number above 0")
    database = Store(store or DEFAULT_URL)
    planned = planning.plan(Request(narrowed, pair, place), database)
    wanted = sum(bool(row.criterion) for row in planned.expected.values())
    rows = [row for row in pipeline.collect(planned, database) if row.criterion]
    if len(rows) < wanted:
        raise UserError(f"{wanted - len(rows)} of {wanted} rows are not in the store; this computes them: {shlex.join(command)}")
    notes = list(planned.notes)
    if narrowed.trials:
        tuned = _tuned(Request(narrowed, pair, place), database)
        rows += tuned
        if not tuned:
            notes.append(f"not tuned by {narrowed.trials} trials; this does it: {shlex.join(command)}")
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    if len(shared) < len(names):
        console.print(f"note: {when}: only the fine-tuned tracks compare them", style="yellow", highlight=False)
    table = tracks.frame(row for row in rows if row.finetune_epochs in shared)
    for (track, tuning), part in table.groupby(["track", "tuning"], sort=False):
        _print_track(console, track if tuning == "default" else f"{track}, {tuning}", part, (pair[0].name, pair[1].name))
    _print_remarks(console, rows)


def _tuned(request: Request, database: Store) -> list[Row]:
    """The rows of the tuned methods; none where a search, or a row of what it found, is missing."""
    found, left = pipeline.searched(request, database)
    if left:
        return []
    planned = planning.plan(dataclasses.replace(request, tuned=found), database)
    rows = pipeline.collect(planned, database)
    return [row for row in rows if row.criterion] if len(rows) == len(planned.expected) else []


def _print_track(console: Console, title: str, part: pd.DataFrame, pair: tuple[str, str]) -> None:
    measured = tracks.curves(part)
    nothing = pd.DataFrame(index=part.set_index([*BLOCK, "seed"]).index[:0])
    first, second = (measured.get(name, nothing) for name in pair)
    first, second = first.align(second, join="inner")
    first, second = first.where(second.notna()), second.where(first.notna())  # what both have is compared
    areas = pd.DataFrame({"first": tracks.areas(first), "second": tracks.areas(second)})
    if areas.empty:
        console.print(f"{title}: the two have no supported row in common\n", highlight=False)
        return
    table = Table(title=f"{title}: area, {pair[0]} - {pair[1]} (positive: {pair[0]} is better)", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("data set", "architecture"):
        table.add_column(heading)
    for heading in ("seeds", *pair, "difference", "95 % interval", "p"):
        table.add_column(heading, justify="right")
    for block, lines in _blocks(areas):
        found, means = estimate(lines["first"] - lines["second"]), lines.groupby(level=BLOCK).mean().mean()
        seeds = lines.index.get_level_values("seed").nunique()
        interval = "–" if math.isnan(found.p) else f"{max(-1.0, found.low):+.3f} to {min(1.0, found.high):+.3f}"
        table.add_row(*block, str(seeds), *(f"{v:.3f}" for v in means), f"{found.mean:+.3f}", interval, _p(found))
    console.print(table)
    if first.shape[1] > 1:
        _print_sparsities(console, first - second)
    console.print(_verdict(estimate(areas["first"] - areas["second"]), pair), highlight=False)


def _print_sparsities(console: Console, differences: pd.DataFrame) -> None:
    """Difference in accuracy at each sparsity."""
    table = Table(
        title="accuracy, difference in points at each sparsity, ± half width of its 95 % interval",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("data set", "architecture"):
        table.add_column(heading)
    for sparsity in differences.columns:
        table.add_column(f"{100 * sparsity:g}%", justify="right")
    for block, lines in _blocks(differences):
        table.add_row(*block, *(_points(estimate(lines[sparsity])) for sparsity in differences.columns))
    console.print(table)


def _blocks(lines: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """(data set, architecture) and its lines, and all of them where there is more than one."""
    blocks = [((str(d), str(a)), part) for (d, a), part in lines.groupby(level=BLOCK, sort=False)]
    return blocks + ([(("all", f"{len(blocks)} blocks"), lines)] if len(blocks) > 1 else [])


def _points(found: Estimate) -> str:
    if math.isnan(found.mean):
        return "–"
    low, high = 100 * max(-1.0, found.low), 100 * min(1.0, found.high)  # two accuracies differ by 100 points at most
    return f"{100 * found.mean:+.1f} {cells.spread(100 * found.mean, low, high, '{:+.1f}')}".rstrip()


def _p(found: Estimate) -> str:
    return "–" if math.isnan(found.p) else "<0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _verdict(found: Estimate, pair: tuple[str, str]) -> str:
    if math.isnan(found.p):
        return "With one seed nothing can be tested.\n"
    better, worse = pair if found.mean > 0 else pair[::-1]
    said = f"{better} is better than {worse}" if found.p < ALPHA else f"{pair[0]} and {pair[1]} do not differ significantly"
    return f"{said} (p-value not corrected for multiple comparisons; the leaderboard's ranks are corrected).\n"


def _print_remarks(console: Console, rows: list[Row]) -> None:
    """What a reader has to know of these rows: failures count as 0, and one may have trained for longer."""
    failed = [row.method for row in rows if row.status == "failed"]
    for method in dict.fromkeys(failed):
        console.print(f"{method}: {failed.count(method)} failed rows count as accuracy 0", style="red", highlight=False)
    epochs: dict[str, list[int]] = {}
    for row in rows:
        epochs.setdefault(row.method, []).append(row.epochs)
    if len({tuple(e) for e in epochs.values()}) > 1:
        trained = ", ".join(f"{method} {sum(e) / len(e):.0f}" for method, e in epochs.items())
        console.print(f"not the same budget: mean epochs of training {trained}", style="yellow", highlight=False)
