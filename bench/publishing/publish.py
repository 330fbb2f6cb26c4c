"""`publish`: rows of the store, or of somebody else's file, to leaderboards/<suite>/.

Everything is computed, and every check made, before the first file is written. What was published and is neither in the store's
rows nor contradicted by them stays: a folder may hold what others have contributed.
"""

import dataclasses
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.execution import pipeline
from bench.execution.environment import environment_of, open_store
from bench.planning import catalogue
from bench.planning.plan import Plan, plan
from bench.planning.request import Request, make_request
from bench.publishing import board_folder, merge, readme
from bench.publishing.board_folder import Board
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError
from bench.spec.row import ABLATIONS, Row
from bench.spec.suite import Suite
from bench.storage import files, results_csv
from bench.storage.rows import Store
from methods import Stage

CONTROLS = ("random", "magnitude", "magnitude_layer")  # protocol, rule 8
CONTROLS_AT_INIT = ("random_init",)
LEAST_SEEDS, ENOUGH_SEEDS = 3, 5  # protocol, rule 9
SHOWN = "digits"  # the suite whose tables stand in the README
RUN = ["python", "-m", "bench", "run"]
# What a suite may change without making the rows that are there rows of another comparison.
EXTENT = {"description", "blocks", "sparsities", "seeds", "methods", "finetune_epochs", "trials"}


@dataclass(frozen=True)
class Publication:
    """What a folder will hold. `changes`: path below the folder -> new content, None for a file that goes. `readme`: its new text, if any.

    `notes`: what a user should know of it.
    """

    folder: Path
    board: Board
    changes: dict[str, bytes | None]
    readme: str | None
    notes: tuple[str, ...]

    @property
    def readme_file(self) -> Path:
        """The README above the folder of leaderboards."""
        return self.folder.resolve().parent.parent / "README.md"

    def write(self) -> None:
        """Write all changes. Raises UserError where a file cannot be written; none is changed then."""
        try:
            files.write_files(self.folder, self.changes)
            if self.readme is not None:
                files.write_files(self.readme_file.parent, {self.readme_file.name: self.readme.encode()})
        except OSError as error:
            raise UserError(f"cannot write '{self.folder}': {error.strerror}") from None


def publish(suite: str, narrowing: Narrowing, resources: Resources, to: Path, options: list[str]) -> Publication:
    """The suite's folder from the store, not yet written.

    Args:
        suite: its name or file.
        narrowing: what to take instead of the suite's own values.
        resources: where the results are kept.
        to: the folder of leaderboards.
        options: those of the `run` command that computes the rows, for messages.

    Raises:
        UserError: it names what is missing, and the command that computes it.
    """
    environment = environment_of(resources)
    catalogue.load_plugins(environment.plugins)
    request = make_request(suite, narrowing, environment)
    folder = to / request.suite.name
    there = board_folder.read(folder) if (folder / "results").is_dir() else None
    stages = {m.stage for m in request.methods} | {row.stage for row in (there.rows if there else ())}
    names = {m.name for m in request.methods} | {row.method for row in (there.rows if there else ())}
    _check_controls(request.suite, names, stages, options)
    notes: list[str] = []
    rows = _collect(request, open_store(resources), options, notes)
    board = Board(request.suite, tuple(results_csv.ordered([*_kept(there, request.suite, rows), *rows])))
    gap = next(merge.incomplete(board.rows, request.suite), None)
    if gap is not None:
        raise UserError(f"{gap[1]}; compute it, or remove its file from '{folder / 'results'}'")
    return _publication(board, folder, notes)


class Refused(UserError):
    """A file that is not merged. `reasons`: (row number, why)."""

    def __init__(self, file: Path, reasons: list[tuple[int, str]]) -> None:
        refused = len({number for number, _ in reasons})
        super().__init__(f"'{file}': {refused} {'row' if refused == 1 else 'rows'} refused; nothing was merged")
        self.reasons = reasons


def merge_file(file: Path, suite: str, to: Path) -> Publication:
    """The suite's folder with the rows of a results.csv added, not yet written: all of them, or `Refused`.

    Args:
        file: the results.csv.
        suite: the name of the suite.
        to: the folder of leaderboards.
    """
    folder = to / suite
    if not folder.is_dir():
        raise UserError(f"there is no leaderboard '{folder}' to merge into: publish the suite first")
    board = board_folder.read(folder)
    checked = merge.check(file, board)
    if checked.refused:
        raise Refused(file, checked.refused)
    names = ", ".join(dict.fromkeys(row.method for row in checked.new)) or "nothing new"
    repeated = f"; {checked.repeated} rows repeat what is published" if checked.repeated else ""
    merged = Board(board.suite, tuple(results_csv.ordered([*board.rows, *checked.new])))
    _check_controls(merged.suite, {r.method for r in merged.rows}, {r.stage for r in merged.rows}, ["--suite", suite])
    return _publication(merged, folder, [f"{file}: {len(checked.new)} rows to merge ({names}){repeated}"])


def _check_controls(suite: Suite, methods: set[str], stages: Iterable[str], options: list[str]) -> None:
    """UserError where the controls or the seeds of the protocol are not there."""
    wanted = CONTROLS + (CONTROLS_AT_INIT if Stage.INIT in stages else ())
    missing = [name for name in wanted if name not in methods]
    if missing:
        command = shlex.join([*RUN, *_without(options, "--methods"), "--methods", ",".join(missing)])
        raise UserError(
            f"the controls {', '.join(missing)} are missing (protocol, rule 8). Run this to compute them, and name them here too: {command}"
        )
    if len(suite.seeds) < LEAST_SEEDS:
        seeds = [*suite.seeds, *(k for k in range(suite.tuning_seed) if k not in suite.seeds)][:LEAST_SEEDS]
        command = shlex.join([*RUN, *_without(options, "--seeds"), "--seeds", ",".join(map(str, sorted(seeds)))])
        raise UserError(
            f"{len(suite.seeds)} seeds, at least {LEAST_SEEDS} are published (protocol, rule 9). Run this to compute them: {command}"
        )


def _without(options: list[str], name: str) -> list[str]:
    """The options without one and its value."""
    return [part for k, part in enumerate(options) if name not in (part, options[k - 1] if k else "")]


def _collect(request: Request, store: Store, options: list[str], notes: list[str]) -> list[Row]:
    """All rows of a request: at the defaults, tuned where the suite tunes, and each ablation that is complete."""
    rows = _rows(plan(request, store), store, options, notes)
    for name in ABLATIONS:
        planned = plan(dataclasses.replace(request, ablations=(name,)), store)
        wanted = sum(row.ablation == name for row in planned.expected.values())
        found = [row for row in pipeline.collect(planned, store) if row.ablation == name]
        if len(found) == wanted:
            rows += found
        elif found:
            notes.append(f"note: {len(found)} of {wanted} rows of ablation {name} are in the store: left out")
    return rows + (_tuned(request, store, options, notes) if request.suite.trials else [])


def _tuned(request: Request, store: Store, options: list[str], notes: list[str]) -> list[Row]:
    found, left = pipeline.searched(request, store)
    if left:
        raise UserError(f"{left} of {left + len(found)} searches are not finished. Run this to finish them: {shlex.join([*RUN, *options])}")
    return _rows(plan(dataclasses.replace(request, tuned=found), store), store, options, notes)


def _rows(planned: Plan, store: Store, options: list[str], notes: list[str]) -> list[Row]:
    """Every row of a plan. Raises UserError where one is missing."""
    rows = pipeline.collect(planned, store)
    if len(rows) < len(planned.expected):
        missing, wanted = len(planned.expected) - len(rows), len(planned.expected)
        raise UserError(f"{missing} of {wanted} rows are not in the store. Run this to compute them: {shlex.join([*RUN, *options])}")
    notes += [f"note: {note}" for note in planned.notes]
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
        changed = ", ".join(f"`{key}`" for key in sorted(settings))
        raise UserError(f"{changed} of the suite differs from the published rows of {names}; re-run these methods as well")
    return kept


def _publication(board: Board, folder: Path, notes: list[str]) -> Publication:
    """What changes in the folder, and in the README's tables."""
    made = board_folder.evidence(board) | board_folder.derived(board)
    readme_file, text = folder.resolve().parent.parent / "README.md", None
    if board.suite.name == SHOWN and readme_file.is_file():
        old = readme_file.read_text(encoding="utf-8")
        text = readme.rewritten(old, made["leaderboard.csv"])
        text = None if text == old else text
    failed = sum(row.status == "failed" for row in board.rows)
    if failed:
        notes.append(f"{failed} of {len(board.rows)} rows failed: they count as accuracy 0")
    if len(board.suite.seeds) < ENOUGH_SEEDS:
        notes.append(f"warning: {len(board.suite.seeds)} seeds; a published suite should have {ENOUGH_SEEDS} (protocol, rule 9)")
    return Publication(folder, board, board_folder.changes(folder, made), text, tuple(notes))
