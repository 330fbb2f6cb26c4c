"""`compare`: two methods on the same seeds, read from the store. Runs nothing."""

import dataclasses
import math
import shlex

from rich.console import Console

from bench.cli.tables import Shown, make_console, print_table, say
from bench.execution import environment, pipeline
from bench.planning import catalogue
from bench.planning.catalogue import WHEN
from bench.planning.plan import plan_rows
from bench.planning.request import Request
from bench.publishing.page import cells
from bench.ranking import comparison, tracks
from bench.ranking.comparison import Comparison, Difference, interval
from bench.ranking.statistics import Estimate
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.storage.rows import Store
from methods import Stage


def compare(suite: str, pair: tuple[str, str], narrowing: Narrowing, resources: Resources, command: list[str]) -> None:
    """Print how two methods differ, for each track that both are in.

    `command` computes the rows. Raises UserError with it where some are not in the store, and where the methods share no track.
    """
    console = make_console()
    request = environment.open_request(suite, dataclasses.replace(narrowing, methods=pair), resources)
    first, second = (catalogue.get_method(name) for name in pair)
    if first.name == second.name:
        raise UserError(f"'{pair[0]}' and '{pair[1]}' are the same method: name two")
    lengths = sorted(set.intersection(*(set(request.suite.extent(early=m.stage is not Stage.AFTER)[1]) for m in (first, second))))
    shared = [f for f in lengths if tracks.track_name(first.stage, f) == tracks.track_name(second.stage, f)]
    when = f"'{first.name}' is applied {WHEN[first.stage]} and '{second.name}' is applied {WHEN[second.stage]}"
    if not shared:
        above = "numbers above 0 only" if request.suite.early_sparsities else "a number above 0"
        raise UserError(f"{when}: they share the fine-tuned tracks only; add --finetune-epochs with {above}")
    rows = [row for row in _rows(console, request, environment.open_store(resources), command) if row.finetune_epochs in shared]
    if len(shared) < len(lengths):
        say(console, f"note: {when}: only the fine-tuned tracks compare them")
    for found in comparison.compare(rows, first.name, second.name):
        _print(console, found)
    _print_remarks(console, rows)


def _rows(console: Console, request: Request, store: Store, command: list[str]) -> list[Row]:
    """The rows of both methods: at the defaults, and tuned if these are complete. Raises UserError where some are not in the store."""
    planned = plan_rows(request)
    wanted = sum(bool(row.criterion) for row in planned.expected.values())
    rows = [row for row in pipeline.collect(planned, store) if row.criterion]
    if len(rows) < wanted:
        raise UserError(f"{wanted - len(rows)} of {wanted} rows are not in the store. Run this to compute them: {shlex.join(command)}")
    for note in planned.notes:
        say(console, f"note: {note}")
    if request.suite.tunes:
        tuned = _tuned(request, store)
        if not tuned:
            say(console, f"note: not tuned by {request.suite.trials_said} trials. Run this to do it: {shlex.join(command)}")
        rows += tuned
    return rows


def _tuned(request: Request, store: Store) -> list[Row]:
    """The rows of the tuned methods; none where a search, or a row of what it found, is missing."""
    found, left = pipeline.searched(request, store)
    if left:
        return []
    planned = plan_rows(dataclasses.replace(request, tuned=found))
    rows = pipeline.collect(planned, store)
    return [row for row in rows if row.criterion] if len(rows) == len(planned.expected) else []


def _print(console: Console, found: Comparison) -> None:
    title = found.track if found.tuning == "default" else f"{found.track}, {found.tuning}"
    if not found.differences:
        say(console, f"{title}: the two have no supported row in common\n")
        return
    lines = found.differences
    columns = [
        *_blocks(lines),
        Shown("seeds", [str(d.seeds) for d in lines]),
        Shown(found.first, [f"{d.first:.3f}" for d in lines]),
        Shown(found.second, [f"{d.second:.3f}" for d in lines]),
        Shown("difference", [f"{d.area.mean:+.3f}" for d in lines]),
        Shown("95 % interval", [_interval(d.area) for d in lines]),
        Shown("p", [_p(d.area) for d in lines]),
    ]
    print_table(console, f"{title}: area, {found.first} - {found.second} (positive: {found.first} is better)", columns)
    if len(lines[0].at) > 1:
        at = [Shown(f"{100 * s:g}%", [_points(d.at[s]) for d in lines]) for s in lines[0].at]
        print_table(
            console, "difference in accuracy at each sparsity, percentage points ± 95 % confidence interval", [*_blocks(lines), *at]
        )
    say(console, f"{found.verdict}\n")


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
        epochs.setdefault(row.method, []).append(row.epochs)
    if len({tuple(e) for e in epochs.values()}) > 1:
        trained = ", ".join(f"{method} {sum(e) / len(e):.0f}" for method, e in epochs.items())
        say(console, f"note: the budgets differ: mean epochs of training {trained}")
