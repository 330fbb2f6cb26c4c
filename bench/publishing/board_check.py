"""Check a whole published leaderboard without computing its rows again: every row, all rows together, and what its suite requires."""

import importlib.metadata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from bench.networks import build
from bench.planning import catalogue
from bench.planning.trained import protocol_of, without_training
from bench.publishing import board_rules, history, row_rules, verified
from bench.publishing.board_folder import HISTORY, Board
from bench.spec.errors import UserError
from bench.spec.row import Row
from bench.trial import loading
from bench.trial.job import Environment

BLOCKS_WITHOUT_ROWS = "the suite contains {}, but the leaderboard has no rows of it"


@dataclass(frozen=True)
class Faults:
    """The rules that a leaderboard breaks.

    `lines`: in words; equal faults of several rows of a method are one line, with their number. `rows`: the rows that break a rule for one
    row, which cannot be computed again.
    """

    lines: tuple[str, ...]
    rows: frozenset[Row]


def faults(board: Board, environment: Environment, methods: Collection[str] | None = None) -> Faults:
    """Check all rules.

    Args:
        board: the leaderboard.
        environment: folders and plug-ins. Plug-ins are loaded already.
        methods: methods whose rows are checked; None: all, and that the leaderboard has all rows that its suite requires.
    """
    chosen = [row for row in board.rows if methods is None or row.method in methods]
    rules = row_rules.Rules(board, complete=False)
    found = [(row, fault) for row in chosen for fault in rules.faults(row)]
    broken = frozenset(row for row, _ in found)
    if not broken:  # the rules for several rows need rows that satisfy those for one row
        found = [(row, fault) for row, fault in board_rules.contradictions(board.rows) if methods is None or row.method in methods]
    counts = Counter((board_rules.label_of(board_rules.key_of(row)), fault) for row, fault in found)
    lines = [f"'{label}': {fault}" + f" ({number} rows)" * (number > 1) for (label, fault), number in counts.items()]
    return Faults((*lines, *(() if methods is not None else _lacking(board, environment))), broken)


def _lacking(board: Board, environment: Environment) -> Iterator[str]:
    """What the suite and the protocol require, and the leaderboard does not have."""
    suite = board.suite
    yield from (reason for _, reason in board_rules.incomplete(board.rows, suite))
    lacking = board_rules.missing_controls(suite, [(row.method, row.stage) for row in board.rows])
    if lacking:
        yield f"the controls {', '.join(lacking)} are missing (protocol, rule 8)"
    if len(suite.seeds) < board_rules.LEAST_SEEDS:
        yield f"{len(suite.seeds)} seeds; a published suite needs {board_rules.LEAST_SEEDS} (protocol, rule 9)"
    there = {board_rules.key_of(row) for row in board.rows}
    yield from (f"contributions.csv names '{line.method}', which has no such rows" for line in board.contributions if line.key not in there)
    yield from verified.faults(board.verified, board.rows)
    if board.history and not history.is_current(board.history, board):
        yield f"{HISTORY}: its latest entry does not describe these rows; it must end in: {history.state(board)}"
    yield from _methods_without_rows(board)
    yield from _blocks_without_rows(board, environment)


def _methods_without_rows(board: Board) -> Iterator[str]:
    """Methods of the suite without rows. `all` means the methods of the release that computed the rows: another one knows others."""
    if any(name.startswith("all") for name in board.suite.methods) and all(row.version != _release() for row in board.rows):
        return
    there = {(row.method, row.tuning) for row in board.rows if row.criterion}
    try:
        wanted = catalogue.select_methods(",".join(board.suite.methods), board.suite.granularity)
        wanted = wanted if board.suite.epochs else without_training(wanted, board.suite.methods)
    except UserError as error:
        yield f"the methods of the suite: {error} (a method of your own: --plugin FILE)"
        return
    contributed = {line.method for line in board.contributions}  # a contributor need not have tuned
    for tuning, exempt in (("default", set()), ("tuned", contributed)) if board.suite.tunes else (("default", set()),):
        missing = [method.name for method in wanted if (method.name, tuning) not in there and method.name not in exempt]
        if missing:
            yield f"the suite contains the methods {', '.join(missing)}, but the leaderboard has no {tuning} rows of them"


def _release() -> str:
    return importlib.metadata.version("razorbench")


def _blocks_without_rows(board: Board, environment: Environment) -> Iterator[str]:
    """Blocks without rows, if the architecture supports the data set or this cannot be determined here."""
    there = {(row.dataset, row.architecture) for row in board.rows}
    for dataset, architecture in ((block.dataset, name) for block in board.suite.blocks for name in block.architectures):
        if (dataset, architecture) in there:
            continue
        try:
            card = loading.load_card(dataset, protocol_of(board.suite, dataset, architecture), environment)
            if build.accepts(architecture, card.input_shape):
                yield BLOCKS_WITHOUT_ROWS.format(f"{dataset}/{architecture}")
        except UserError as error:
            yield f"{BLOCKS_WITHOUT_ROWS.format(f'{dataset}/{architecture}')} ({error})"
