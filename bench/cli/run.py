"""`run` and `status`."""

import sys
from collections import Counter
from pathlib import Path

import pandas as pd

from bench import api
from bench.cli import choose
from bench.cli import dry_run as dry_runs
from bench.cli.board import ranked, say_failures, show
from bench.cli.tables import Shown, make_console, print_table, say
from bench.execution import environment, pipeline
from bench.execution.display import Display
from bench.execution.run import tuned_of
from bench.planning.plan import by_cell
from bench.planning.request import Request
from bench.publishing import board_folder
from bench.ranking import tuning_gain
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.spec.suite import Suite
from bench.storage import files, results_csv


def run(
    suite: str, narrowing: Narrowing, resources: Resources, *, ablations: tuple[str, ...], tuned: Path | None, output: Path | None,
    style: str, force: bool,
) -> bool:  # fmt: skip
    """Run and show the leaderboard; with `output` also write it, before it is shown. Whether all rows succeeded."""
    apart = style != "text"  # the table alone goes to standard output, so that it can be written to a file
    console, notes = make_console(), make_console(stderr=apart)
    rows = api.run_rows(
        suite, narrowing, resources, ablations, tuned, lambda: Display(stderr=apart), lambda line: say(notes, line), force=force
    )
    found, written = ranked(rows), list[Path]()
    if output is not None:
        made = environment.open_request(suite, narrowing, resources, ablations)
        try:
            written = _write(rows, found.board, made.suite.model_copy(update={"methods": tuple(m.name for m in made.methods)}), output)
        except OSError as error:
            raise UserError(f"cannot write to --output '{output}': {error.strerror}. The rows are kept in the store") from None
    show(console, found, style)
    if apart:
        say_failures(notes, rows)
    if written:
        say(notes, f"wrote {', '.join(map(str, written))}")
    if style == "text" and any(row.criterion and not row.epochs and row.status != "unsupported" for row in rows):
        choose.show(console, rows, output)
    sys.stdout.flush()
    return all(row.status != "failed" for row in rows)


def dry_run(suite: str, narrowing: Narrowing, resources: Resources, ablations: tuple[str, ...], tuned: Path | None) -> None:
    """Print what would run."""
    request = environment.open_request(suite, narrowing, resources, ablations)
    found = None if tuned is None else tuned_of(request, tuned)
    pool = environment.open_executor(resources, request.environment)
    try:
        dry_runs.show(make_console(), request, environment.open_store(resources), pool, found)
    finally:
        pool.close()


def _write(rows: list[Row], board: pd.DataFrame, suite: Suite, output: Path) -> list[Path]:
    """Write the files of `--output`, and return them."""
    gains = tuning_gain.tuned(rows)
    made = {
        "results.csv": results_csv.rows_text(rows).encode(),
        "leaderboard.csv": results_csv.table_text(board).encode(),
        board_folder.SUITE: board_folder.suite_toml(suite).encode(),
        "tuned.csv": results_csv.table_text(gains).encode() if len(gains) else None,  # one of an earlier run would not belong to them
    }
    files.write_files(output, made)
    return [output / name for name, content in made.items() if content is not None]


def _methods(request: Request) -> dict[str, str]:
    """Key of each row of a request -> its method."""
    return {point.key: planned.shared.method for jobs in by_cell(request) for planned in jobs for point in planned.job.points}


def status(suite: str, narrowing: Narrowing, resources: Resources) -> None:
    """Print how many rows of each method are finished, failed or missing."""
    import dataclasses

    console = make_console()
    request, store = environment.open_request(suite, narrowing, resources), environment.open_store(resources)
    methods = _methods(request)
    counts = {method: Counter(missing=count) for method, count in Counter(methods.values()).items()}
    for key, status in store.statuses(methods):
        counts[methods[key]]["failed" if status == "failed" else "finished"] += 1
        counts[methods[key]]["missing"] -= 1
    missing = sum(count["missing"] for count in counts.values())
    say(console, f"suite {request.suite.name}, at the defaults: {len(methods) - missing} of {len(methods)} rows in the store")
    if request.suite.tunes:
        found, left = pipeline.searched(request, store)
        say(console, f"tuning: {len(found)} of {len(found) + left} searches finished")
        tuned = _methods(dataclasses.replace(request, tuned=found)) if found else {}
        say(console, f"tuned: {sum(1 for _ in store.statuses(tuned))} of {len(tuned)} rows of these in the store")
    numbers = [Shown(kind, [str(count[kind]) for count in counts.values()]) for kind in ("finished", "failed", "missing")]
    print_table(console, "", [Shown("method", list(counts), name=True), *numbers])
