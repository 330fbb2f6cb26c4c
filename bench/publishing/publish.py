"""`publish`: rows of the store, or of somebody else's file, to leaderboards/<suite>/.

Everything is computed, and every check made, before the first file is written. What was published and is neither in the store's
rows nor contradicted by them stays: a folder may hold what others have contributed.
"""

import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.cli import report
from bench.execution import pipeline
from bench.planning import catalogue, planning
from bench.planning.planning import Plan, Request
from bench.publishing import board_folder, merge, readme
from bench.publishing.board_folder import Board
from bench.spec.errors import UserError
from bench.spec.row import ABLATIONS, Row
from bench.spec.suite import Suite
from bench.storage import results_csv
from bench.storage.rows import DEFAULT_URL, Store
from methods import Stage

CONTROLS = ("random", "magnitude", "magnitude_layer")  # protocol, rule 8
CONTROLS_AT_INIT = ("random_init",)
LEAST_SEEDS, ENOUGH_SEEDS = 3, 5  # protocol, rule 9
SHOWN = "digits"  # the suite whose tables stand in the README
RUN = ["python", "-m", "bench", "run"]
# What a suite may change without making the rows that are there rows of another comparison.
EXTENT = {"description", "blocks", "sparsities", "seeds", "methods", "finetune_epochs", "trials"}


def publish(
    suite: Suite, *, methods: str, datasets: list[str], architectures: list[str], changes: dict[str, Any], device: str,
    store: str | None, data_root: Path | None, plugins: tuple[str, ...], to: Path, dry_run: bool, options: list[str],
) -> None:  # fmt: skip
    """Write the suite's folder from the store; see `bench.cli.publish`. `options`: those of the `run` command that computes rows.

    UserError names what is missing, and the command that computes it, before anything is written.
    """
    console = report.make_console()
    place = report.make_place(device, data_root, plugins)
    catalogue.load_plugins(plugins)
    chosen = catalogue.select_methods(methods)
    suite = planning.what_is_removed(
        planning.narrow(suite, datasets=datasets, architectures_=architectures, **changes), sparsities=changes.get("sparsities")
    )
    folder = to / suite.name
    there = board_folder.read(folder) if (folder / "results").is_dir() else None
    stages = {m.stage for m in chosen} | {row.stage for row in (there.rows if there else ())}
    names = {m.name for m in chosen} | {row.method for row in (there.rows if there else ())}
    _check_controls(suite, names, stages, options)
    rows = _collect(console, Request(suite, chosen, place), Store(store or DEFAULT_URL), options)
    board = Board(suite, tuple(results_csv.ordered([*_kept(there, suite, rows), *rows])))
    gap = next(merge.incomplete(board.rows, suite), None)
    if gap is not None:
        raise UserError(f"{gap[1]}; compute it, or remove its file from '{folder / 'results'}'")
    _write(console, board, folder, dry_run)


def merge_file(file: Path, *, suite: str, plugins: tuple[str, ...], to: Path, dry_run: bool) -> None:
    """Merge a results.csv into the suite's folder: all of it, or nothing, with every refusal printed. `suite`: its name."""
    console = report.make_console()
    catalogue.load_plugins(plugins)
    folder = to / suite
    if not folder.is_dir():
        raise UserError(f"there is no leaderboard '{folder}' to merge into: publish the suite first")
    board = board_folder.read(folder)
    checked = merge.check(file, board)
    if checked.refused:
        for number, reason in checked.refused:
            console.print(f"row {number}: {reason}", highlight=False, markup=False, soft_wrap=True)
        refused = len({number for number, _ in checked.refused})
        raise UserError(f"'{file}': {refused} {'row' if refused == 1 else 'rows'} refused; nothing was merged")
    names = ", ".join(dict.fromkeys(row.method for row in checked.new)) or "nothing new"
    repeated = f"; {checked.repeated} rows repeat what is published" if checked.repeated else ""
    console.print(f"{file}: {len(checked.new)} rows to merge ({names}){repeated}", highlight=False, markup=False, soft_wrap=True)
    merged = Board(board.suite, tuple(results_csv.ordered([*board.rows, *checked.new])))
    _check_controls(merged.suite, {r.method for r in merged.rows}, {r.stage for r in merged.rows}, ["--suite", suite])
    _write(console, merged, folder, dry_run)


def _check_controls(suite: Suite, methods: set[str], stages: Iterable[str], options: list[str]) -> None:
    """UserError where the controls or the seeds of the protocol are not there."""
    wanted = CONTROLS + (CONTROLS_AT_INIT if Stage.INIT in stages else ())
    missing = [name for name in wanted if name not in methods]
    if missing:
        command = shlex.join([*RUN, *_without(options, "--methods"), "--methods", ",".join(missing)])
        raise UserError(f"the controls {', '.join(missing)} are missing (protocol, rule 8); this computes them, name them too: {command}")
    if len(suite.seeds) < LEAST_SEEDS:
        seeds = [*suite.seeds, *(k for k in range(suite.tuning_seed) if k not in suite.seeds)][:LEAST_SEEDS]
        command = shlex.join([*RUN, *_without(options, "--seeds"), "--seeds", ",".join(map(str, sorted(seeds)))])
        raise UserError(f"{len(suite.seeds)} seeds, at least {LEAST_SEEDS} are published (protocol, rule 9); this computes them: {command}")


def _without(options: list[str], name: str) -> list[str]:
    """The options without one and its value."""
    return [part for k, part in enumerate(options) if name not in (part, options[k - 1] if k else "")]


def _collect(console: Console, request: Request, store: Store, options: list[str]) -> list[Row]:
    """All rows of a request: at the defaults, tuned where the suite tunes, and each ablation that is complete."""
    rows = _rows(console, planning.plan(request, store), store, options)
    for name in ABLATIONS:
        planned = planning.plan(dataclasses.replace(request, ablations=(name,)), store)
        wanted = sum(row.ablation == name for row in planned.expected.values())
        found = [row for row in pipeline.collect(planned, store) if row.ablation == name]
        if len(found) == wanted:
            rows += found
        elif found:
            console.print(f"note: {len(found)} of {wanted} rows of ablation {name} are in the store: left out", highlight=False)
    return rows + (_tuned(console, request, store, options) if request.suite.trials else [])


def _tuned(console: Console, request: Request, store: Store, options: list[str]) -> list[Row]:
    found, left = pipeline.searched(request, store)
    if left:
        raise UserError(f"{left} of {left + len(found)} searches are not finished; this does them: {shlex.join([*RUN, *options])}")
    return _rows(console, planning.plan(dataclasses.replace(request, tuned=found), store), store, options)


def _rows(console: Console, planned: Plan, store: Store, options: list[str]) -> list[Row]:
    """Every row of a plan. UserError where one is missing."""
    rows = pipeline.collect(planned, store)
    if len(rows) < len(planned.expected):
        missing, wanted = len(planned.expected) - len(rows), len(planned.expected)
        raise UserError(f"{missing} of {wanted} rows are not in the store; this computes them: {shlex.join([*RUN, *options])}")
    for note in planned.notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    return rows


def _kept(there: Board | None, suite: Suite, rows: list[Row]) -> list[Row]:
    """The published rows that stay beside new ones. UserError where they are of other settings, and would not compare."""
    if there is None:
        return []
    new = {row.identity for row in rows}
    now = {(row.method, row.tuning, row.ablation) for row in rows}
    kept = [row for row in there.rows if row.identity not in new and (row.method, row.tuning, row.ablation) not in now]
    settings = {key for key, value in suite.model_dump(exclude=EXTENT).items() if value != there.suite.model_dump()[key]}
    if kept and settings:
        names = ", ".join(dict.fromkeys(row.method for row in kept))
        raise UserError(f"the suite has another {', '.join(sorted(settings))} than the published rows of {names}: compute these too")
    return kept


def _write(console: Console, board: Board, folder: Path, dry_run: bool) -> None:
    """Write what has changed, and the README's tables, or only say so."""
    files = board_folder.evidence(board) | board_folder.derived(board)
    changes = board_folder.changes(folder, files)
    for name, content in changes.items():
        what = "removed" if content is None else "changed" if (folder / name).exists() else "new"
        console.print(f"{what:<8} {folder / name}", highlight=False, markup=False, soft_wrap=True)
    readme_file, text = folder.resolve().parent.parent / "README.md", None
    if board.suite.name == SHOWN and readme_file.is_file():
        old = readme_file.read_text(encoding="utf-8")
        text = readme.rewritten(old, files["leaderboard.csv"])
        text = None if text == old else text
    if text is not None:
        console.print(
            f"changed  {readme_file.name} above '{folder.parent}': the leaderboard's tables", highlight=False, markup=False, soft_wrap=True
        )
    failed = sum(row.status == "failed" for row in board.rows)
    if failed:
        console.print(f"{failed} of {len(board.rows)} rows failed: they count as accuracy 0", style="red", highlight=False)
    if len(board.suite.seeds) < ENOUGH_SEEDS:
        seeds = f"{len(board.suite.seeds)} seeds; a published suite should have {ENOUGH_SEEDS} (protocol, rule 9)"
        console.print(f"warning: {seeds}", style="yellow", highlight=False)
    said = f"{len(board.rows)} rows of {len({row.method for row in board.rows if row.criterion})} methods"
    if dry_run:
        console.print(f"{folder}: {said}, {len(changes)} files would change; nothing was written", highlight=False, soft_wrap=True)
        return
    try:
        results_csv.write_files(folder, changes)
        if text is not None:
            results_csv.write_files(readme_file.parent, {readme_file.name: text.encode()})
    except OSError as error:
        raise UserError(f"cannot write '{folder}': {error.strerror}") from None
    console.print(f"{folder}: {said}, {len(changes)} files written", highlight=False, soft_wrap=True)
