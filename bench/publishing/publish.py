"""`publish`: write rows of the store, or of a contributed results.csv, to leaderboards/<suite>/.

Everything is computed and checked before the first file is written. Published rows of methods that are not published again stay in the
folder, because others may have contributed them.
"""

import dataclasses
import datetime
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.execution import pipeline
from bench.execution.environment import open_request, open_store
from bench.planning.plan import Expected, by_cell, plan_rows
from bench.planning.request import Request
from bench.publishing import board_folder, board_rules, contributions, derived_files, history, merge, readme, row_rules, trust, verified
from bench.publishing.board_folder import Board
from bench.publishing.page import overview
from bench.spec.choices import Narrowing, Resources
from bench.spec.errors import UserError
from bench.spec.row import ABLATIONS, Row
from bench.spec.suite import Suite
from bench.storage import results_csv
from bench.storage.contents import Contents
from bench.storage.migration import without_search_for_cycles
from bench.storage.rows import Store

ENOUGH_SEEDS = 5  # protocol, rule 9
SHOWN = "digits"  # the suite whose tables are in the README
RUN = ["python", "-m", "bench", "run"]
# Keys of a suite that may change while the published rows remain comparable.
EXTENT = {"description", "blocks", "sparsities", "early_sparsities", "seeds", "methods", "finetune_epochs", "trials"}


@dataclass(frozen=True)
class Publication:
    """A publication that is not yet written.

    `folder`: folder of the leaderboard. `rows`, `methods`: their numbers. `changes`: path relative to the folder -> new content, None for
    a file to remove. `readme`: new text of the README, or None if it does not change. `index`: new page of all leaderboards, or None
    likewise. `notes`: messages for the user.
    """

    folder: Path
    rows: int
    methods: int
    changes: Contents
    readme: str | None
    index: bytes | None
    notes: tuple[str, ...]

    @property
    def readme_file(self) -> Path:
        """The README in the parent directory of leaderboards/."""
        return self.folder.resolve().parent.parent / "README.md"

    def write(self) -> None:
        """Write all changes.

        Raises:
            UserError: a file cannot be written; then no file is changed.
        """
        text = None if self.readme is None else self.readme.encode()
        others = {self.folder.parent / overview.FILE: self.index, self.readme_file: text}
        board_folder.write(self.folder, self.changes, {path: content for path, content in others.items() if content is not None})


def publish(suite: str, narrowing: Narrowing, resources: Resources, to: Path, options: list[str]) -> Publication:
    """Prepare the leaderboard of a suite from the rows in the store.

    Args:
        suite: name or .toml file of the suite.
        narrowing: values to use instead of the suite's.
        resources: the store, and further resources.
        to: the parent folder of the leaderboard.
        options: options of the `run` command that computes the rows, for error messages.

    Raises:
        UserError: rows, methods or seeds are missing. The message contains the command that computes them.
    """
    request, notes = open_request(suite, narrowing, resources), list[str]()
    folder = to / request.suite.name
    return _publication(_of_store(request, folder, open_store(resources), narrowing.methods, options, notes), folder, notes)


def _of_store(
    request: Request, folder: Path, store: Store, methods: tuple[str, ...] | None, options: list[str], notes: list[str]
) -> Board:  # fmt: skip
    """The board of a request's rows in the store. `methods`: those that the user has named."""
    there = board_folder.read(folder) if (folder / "results").is_dir() else None
    names = [*((m.name, str(m.stage)) for m in request.methods), *((row.method, row.stage) for row in (there.rows if there else ()))]
    _check_controls(request.suite, names, options)
    rows = _collect(request, store, options, notes)
    kept = _kept(there, request.suite, rows)
    keys = {board_rules.key_of(row) for row in kept}
    marks = tuple(line for line in (there.contributions if there else ()) if line.key in keys)
    board = Board(_named(request.suite, there, methods), tuple(results_csv.ordered([*kept, *rows])), contributions=marks)
    gap = next(board_rules.incomplete(board.rows, request.suite), None)
    if gap is not None:
        raise UserError(f"{gap[1]}; compute these rows, or remove the file from '{folder / 'results'}'")
    return with_records(board, there)


def _named(suite: Suite, there: Board | None, methods: tuple[str, ...] | None) -> Suite:
    """The suite with the methods that are published: those of the published suite, and those that the user has named instead of its own."""
    if methods is None:
        return suite
    before = there.suite.methods if there is not None else ()
    return suite.model_copy(update={"methods": tuple(dict.fromkeys((*before, *methods)))})


def _rows_in_words(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


class Refused(UserError):
    """A file that was not merged. `reasons`: (row number, reason)."""

    def __init__(self, file: Path, reasons: list[tuple[int, str]]) -> None:
        refused = len({number for number, _ in reasons})
        super().__init__(f"'{file}': {_rows_in_words(refused)} refused; nothing was merged")
        self.reasons = reasons


def merge_file(file: Path, suite: str, to: Path, contributor: str, plugins: Iterable[str] = ()) -> Publication:
    """Prepare a leaderboard with the rows of a results.csv added, and marked as contributed. Arguments and errors are those of `merged`."""
    notes: list[str] = []
    return _publication(_recorded(file, suite, to, contributor, plugins, notes), to / suite, notes)


def _recorded(file: Path, suite: str, to: Path, contributor: str, plugins: Iterable[str], notes: list[str]) -> Board:
    """The leaderboard after a merge, with its records; the one before is let go of, because a million rows need 0.7 GB."""
    before, after, note = merged(file, suite, to, contributor, plugins)
    notes.append(note)
    return with_records(after, before)


def merged(file: Path, suite: str, to: Path, contributor: str, plugins: Iterable[str] = ()) -> tuple[Board, Board, str]:
    """Add the rows of a results.csv to a leaderboard, and mark them as contributed.

    Args:
        file: the results.csv.
        suite: name of the suite.
        to: the parent folder of the leaderboard.
        contributor: who has computed the rows.
        plugins: files of the user's own networks and data sets that the leaderboard may name.

    Returns:
        The leaderboard before and after, and a message for the user.

    Raises:
        Refused: a row is invalid; then no row is merged.
        UserError: the leaderboard does not exist, the file cannot be read, or methods or seeds are missing.
    """
    folder = to / suite
    if not folder.is_dir():
        raise UserError(f"the leaderboard folder '{folder}' does not exist; publish the suite before merging")
    board = board_folder.read(folder)
    trust.refuse_foreign_code(board, plugins)
    checked = merge.check(file, board)
    if checked.refused:
        raise Refused(file, checked.refused)
    names = ", ".join(dict.fromkeys(row.method for row in checked.new)) or "nothing new"
    repeated = f"; {_rows_in_words(checked.repeated)} already published" if checked.repeated else ""
    keys = {line.key for line in board.contributions}
    marks = [line for line in contributions.of_rows(checked.new, contributor) if line.key not in keys]
    made = Board(board.suite, tuple(results_csv.ordered([*board.rows, *checked.new])), contributions=(*board.contributions, *marks))
    _check_controls(made.suite, ((row.method, row.stage) for row in made.rows), ["--suite", suite])
    return board, made, f"{file}: {_rows_in_words(len(checked.new))} to merge ({names}){repeated}"


def _check_controls(suite: Suite, rows: Iterable[tuple[str, str]], options: list[str]) -> None:
    """UserError if methods or seeds that the protocol requires are missing. `rows`: (method, stage)."""
    missing = board_rules.missing_controls(suite, rows)
    if missing:
        command = shlex.join([*RUN, *_without(options, "--methods"), "--methods", ",".join(missing)])
        raise UserError(
            f"the controls {', '.join(missing)} are missing (protocol, rule 8). Add them to --methods. Run this to compute them: {command}"
        )
    least = board_rules.LEAST_SEEDS
    if len(suite.seeds) < least:
        seeds = [*suite.seeds, *(k for k in range(suite.tuning_seed) if k not in suite.seeds)][:least]
        command = shlex.join([*RUN, *_without(options, "--seeds"), "--seeds", ",".join(map(str, sorted(seeds)))])
        raise UserError(
            f"{len(suite.seeds)} seeds; a published suite needs {least} (protocol, rule 9). Run this to compute them: {command}"
        )


def _without(options: list[str], name: str) -> list[str]:
    """The options without one and its value."""
    return [part for k, part in enumerate(options) if name not in (part, options[k - 1] if k else "")]


def _collect(request: Request, store: Store, options: list[str], notes: list[str]) -> list[Row]:
    """All rows of a request: with default hyperparameters, tuned if the suite has trials, and every complete ablation."""
    rows = _rows(request, store, options, notes)
    for name in ABLATIONS if store.contains("ablation", *ABLATIONS) else ():
        if not store.contains("ablation", name):
            continue
        planned = plan_rows(dataclasses.replace(request, ablations=(name,)))
        wanted = sum(row.ablation == name for row in planned.expected.values())
        found = [row for row in pipeline.collect(planned, store) if row.ablation == name]
        if len(found) == wanted:
            rows += found
        elif found:
            notes.append(f"note: {len(found)} of {wanted} rows of ablation {name} are in the store; this ablation is not published")
    return rows + (_tuned(request, store, options, notes) if request.suite.tunes else [])


def _tuned(request: Request, store: Store, options: list[str], notes: list[str]) -> list[Row]:
    found, left = pipeline.searched(request, store)
    if left:
        raise UserError(f"{left} of {left + len(found)} searches are incomplete. Run this to finish them: {shlex.join([*RUN, *options])}")
    return _rows(dataclasses.replace(request, tuned=found), store, options, notes)


def _rows(request: Request, store: Store, options: list[str], notes: list[str]) -> list[Row]:
    """Every row of a request. UserError if one is missing."""
    rows, wanted, said = list[Row](), 0, list[str]()
    with without_search_for_cycles():
        for jobs in by_cell(request, said):
            expected = Expected(jobs)
            rows += pipeline.collect_expected(expected, store)
            wanted += len(expected)
    if len(rows) < wanted:
        missing = wanted - len(rows)
        raise UserError(f"{missing} of {wanted} rows are not in the store. Run this to compute them: {shlex.join([*RUN, *options])}")
    notes += [f"note: {note}" for note in said]
    return rows


def _kept(there: Board | None, suite: Suite, rows: list[Row]) -> list[Row]:
    """The published rows to keep. UserError if the suite has changed so that they cannot be compared with the new rows."""
    if there is None:
        return []
    new = {row.identity for row in rows}
    now = {(row.method, row.tuning, row.ablation) for row in rows}
    kept = [row for row in there.rows if row.identity not in new and (row.method, row.tuning, row.ablation) not in now]
    settings = {key for key, value in suite.model_dump(exclude=EXTENT).items() if value != there.suite.model_dump()[key]}
    blocks = dict.fromkeys((row.dataset, row.architecture) for row in kept)
    settings = settings or {f"blocks: {'/'.join(b)}" for b in blocks if suite.protocol(*b) != there.suite.protocol(*b)}
    tuned = dict.fromkeys((row.dataset, row.architecture) for row in kept if row.tuning != "default")
    if any(suite.trials_of(*b) != there.suite.trials_of(*b) for b in tuned):
        settings.add("trials")
    if kept and settings:
        names = ", ".join(dict.fromkeys(row.method for row in kept))
        changed = ", ".join(f"`{key}`" for key in sorted(settings))
        raise UserError(f"{changed} of the suite differs from the published rows of {names}; re-run these methods as well")
    lost = next(((row, fault) for row in kept for fault in row_rules.outside(row, suite)), None)
    if lost is not None:
        raise UserError(f"published rows of '{lost[0].method}' are not in the suite: {lost[1]}; re-run these methods as well")
    return kept


def with_records(board: Board, before: Board | None) -> Board:
    """A leaderboard with the records of the one before it: of verified rows that have not changed, and a changelog with this change."""
    old, text = (before.verified, before.history) if before is not None else ((), "")
    today = datetime.datetime.now(datetime.UTC).date()
    return dataclasses.replace(
        board, verified=verified.current(old, board.rows), history=history.updated(text, before, board, today)
    )  # fmt: skip


def _publication(board: Board, folder: Path, notes: list[str]) -> Publication:
    """The changes in the folder and in the tables of the README."""
    suite, count, own, tables = board.suite, len(board.rows), board_folder.evidence(board), derived_files.tables(board)
    methods = len({row.method for row in board.rows if row.criterion})
    failed = sum(row.status == "failed" for row in board.rows)
    del board  # a million rows need 0.7 GB, which the tables need next
    made = own | derived_files.files_of(suite, own, tables)
    readme_file, text = folder.resolve().parent.parent / "README.md", None
    if suite.name == SHOWN and readme_file.is_file():
        old = readme_file.read_text(encoding="utf-8")
        text = readme.rewritten(old, made["leaderboard.csv"])
        text = None if text == old else text
    kinds = {name.partition("-")[0] for name in made}
    if "plots/ranks" in kinds and "plots/accuracy" not in kinds:
        notes.append("note: many tracks and blocks: only ranks and costs of scoring are drawn; `bench.plot` draws the curves of one track")
    if failed:
        notes.append(f"{failed} of {count} rows failed; they count as accuracy 0")
    if len(suite.seeds) < ENOUGH_SEEDS:
        notes.append(f"warning: {len(suite.seeds)} seeds; a published suite should have {ENOUGH_SEEDS} (protocol, rule 9)")
    return Publication(folder, count, methods, board_folder.changes(folder, made), text, changed_index(folder, made), tuple(notes))


def changed_index(folder: Path, made: Contents) -> bytes | None:
    """The page of all leaderboards with these files of one of them; None if it does not change.

    Raises:
        UserError: a file has its name that is another page.
    """
    there, page = folder.parent / overview.FILE, overview.overview(folder.parent, {folder.name: made})
    old = there.read_bytes() if there.is_file() else page
    if overview.TITLE.encode() not in old:
        raise UserError(f"'{there}' is not the list of leaderboards, which `publish` would write there: give another folder by --to")
    return None if there.is_file() and old == page else page
