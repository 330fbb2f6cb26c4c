"""`compare`: two methods on the same seeds, read from the store. Runs nothing."""

import dataclasses
import shlex

from rich.console import Console

from bench.cli.differences import show
from bench.cli.tables import make_console, say
from bench.execution import environment, pipeline
from bench.planning import catalogue
from bench.planning.catalogue import WHEN
from bench.planning.plan import plan_rows
from bench.planning.request import Request
from bench.ranking import comparison, tracks
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
    show(console, comparison.compare(rows, first.name, second.name), rows)


def _rows(console: Console, request: Request, store: Store, command: list[str]) -> list[Row]:
    """The rows of both methods and of their dense networks: at the defaults, and tuned if these are complete. Raises UserError where some
    are not in the store.
    """
    planned = plan_rows(request)
    wanted = sum(bool(row.criterion) for row in planned.expected.values())
    rows = pipeline.collect(planned, store)
    missing = wanted - sum(bool(row.criterion) for row in rows)
    if missing:
        raise UserError(f"{missing} of {wanted} rows are not in the store. Run this to compute them: {shlex.join(command)}")
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
