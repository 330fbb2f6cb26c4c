"""`compare`: what it prints, and two methods of a folder with results. Runs nothing, and needs neither torch nor the store."""

import math
from pathlib import Path

from rich.console import Console

from bench import api
from bench.cli.tables import Shown, make_console, parted, print_table, say
from bench.publishing.page import cells
from bench.ranking import comparison, tracks
from bench.ranking.columns import as_percent
from bench.ranking.comparison import Comparison, Difference, interval
from bench.ranking.statistics import Estimate
from bench.spec.errors import UserError, unknown
from bench.spec.row import Row


def compare_folder(path: Path, pair: tuple[str, str]) -> None:
    """Print how two methods differ, for each track that both are in.

    Args:
        path: a leaderboard's or output folder, or a results.csv.
        pair: the names of the methods, as its tables show them.

    Raises:
        UserError: the folder cannot be read, does not have one of the methods, or the methods share no track.
    """
    by_name: dict[str, list[Row]] = {}
    every = api.read_rows(path)
    for row in every:
        if row.criterion:
            by_name.setdefault(tracks.label(row.method, row.ablation), []).append(row)
    if not by_name:
        raise UserError(f"'{path}' has no rows of pruned networks")
    for name in pair:
        if name not in by_name:
            raise unknown("method", name, by_name)
    if pair[0] == pair[1]:
        raise UserError(f"'{pair[0]}' and '{pair[1]}' are the same method: name two")
    rows = [*by_name[pair[0]], *by_name[pair[1]]]
    dense = [row for row in every if not row.criterion]
    found = comparison.compare([*rows, *dense], *pair)
    if not found:
        raise UserError(f"'{path}' has '{pair[0]}' and '{pair[1]}' in different tracks only, and they cannot be compared")
    shared = {each.track for each in found}
    show(make_console(), found, [*(row for row in rows if tracks.of_row(row) in shared), *dense])


def show(console: Console, found: list[Comparison], rows: list[Row]) -> None:
    """Print comparisons, and what a reader has to know of their rows. `rows`: of the two methods in these tracks, and of dense networks."""
    for warning in tracks.warnings(tracks.frame(rows)):
        say(console, f"warning: {warning}")
    for each in found:
        _print(console, each)
    _print_remarks(console, [row for row in rows if row.criterion])


def _print(console: Console, found: Comparison) -> None:
    title = found.track if found.tuning == "default" else f"{found.track}, {found.tuning}"
    if not found.differences:
        say(console, f"{title}: the two have no supported row in common\n")
        return
    lines = found.differences
    columns = [
        *_blocks(lines),
        Shown("seeds", [str(d.seeds) for d in lines], rank=2),
        Shown(found.first, [f"{d.first:.3f}" for d in lines], rank=1),
        Shown(found.second, [f"{d.second:.3f}" for d in lines], rank=1),
        Shown("difference", [f"{d.area.mean:+.3f}" for d in lines]),
        Shown("95 % interval", [_interval(d.area) for d in lines]),
        Shown("p", [_p(d.area) for d in lines]),
    ]
    print_table(console, f"{title}: area, {found.first} - {found.second} (positive: {found.first} is better)", columns)
    if len(lines[0].at) > 1:
        at = [Shown(f"{as_percent(s)}%", [_points(d.at[s]) for d in lines]) for s in lines[0].at]
        title = "difference in accuracy at each sparsity, percentage points ± 95 % confidence interval"
        for k, part in enumerate(parted(console, _blocks(lines), at)):
            print_table(console, "" if k else title, part)
    say(console, " ".join(filter(None, (found.verdict, found.over_blocks))) + "\n")


def _blocks(lines: tuple[Difference, ...]) -> list[Shown]:
    named = (("data set", [d.dataset for d in lines]), ("network", [d.architecture for d in lines]))
    return [Shown(heading, values, name=True) for heading, values in named]


def _interval(found: Estimate) -> str:
    if math.isnan(found.p):
        return cells.MISSING
    low, high = interval(found)
    return f"{low:+.3f} to {high:+.3f}"


def _points(found: Estimate) -> str:
    if math.isnan(found.mean):
        return cells.MISSING
    low, high = interval(found)
    return f"{100 * found.mean:+.1f} {cells.spread(100 * found.mean, 100 * low, 100 * high, '{:+.1f}')}".rstrip()


def _p(found: Estimate) -> str:
    return cells.MISSING if math.isnan(found.p) else "<0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _print_remarks(console: Console, rows: list[Row]) -> None:
    """What a reader has to know of these rows: failures count as 0, and one method may have trained for longer."""
    failed = [row.method for row in rows if row.status == "failed"]
    for method in dict.fromkeys(failed):
        console.print(f"{method}: {failed.count(method)} failed rows count as accuracy 0", style="red", highlight=False)
    epochs: dict[str, list[int]] = {}
    for row in rows:
        epochs.setdefault(tracks.label(row.method, row.ablation), []).append(row.epochs)
    means = {method: f"{sum(e) / len(e):.4g}" for method, e in epochs.items()}
    if len(set(means.values())) > 1:
        said = ", ".join(f"{method} {mean}" for method, mean in means.items())
        say(console, f"note: the budgets differ: mean epochs of training {said}")
