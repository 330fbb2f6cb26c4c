"""Check every cell of a contributed results.csv before its rows are added to a leaderboard.

A row is refused if it violates the schema, belongs to another suite or protocol, has impossible counts, does not match the name of its
method, or occurs twice. Refusals contain the row number as a spreadsheet counts (the header is row 1) and the reason. The rows of a method
must cover all blocks (data set and architecture), sparsities and seeds of the suite. Rows that are already published are not added again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.publishing import board_rules, row_comparison, row_rules
from bench.publishing.board_folder import Board
from bench.publishing.noise import Noise
from bench.spec.errors import UserError
from bench.spec.row import COLUMNS, Row
from bench.spec.setting import decoded
from bench.storage import csv_file, row_check

MOST = 5  # names in a message


@dataclass
class Checked:
    """The content of a checked file: new rows, number of already published rows, refusals as (row number, reason)."""

    new: list[Row] = field(default_factory=list)
    repeated: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)


def check(path: Path, board: Board) -> Checked:
    """Check every row of a file.

    Args:
        path: a results.csv.
        board: the leaderboard that the rows are for.

    Raises:
        UserError: the file is not a results.csv.
    """
    checked, rules = Checked(), row_rules.Rules(board)
    seen: dict[tuple[Any, ...], int] = {}
    valid: list[tuple[int, Row]] = []
    for number, row, faults in row_check.rows_of(COLUMNS, _records(path)):
        if row is not None and not faults:
            faults = rules.faults(row)
            first = seen.setdefault(row.identity, number)
            if first != number:
                faults.append(f"has the same key (method, data set, sparsity, seed, ...) as row {first}")
        checked.refused += [(number, fault) for fault in faults]
        if row is not None and not faults:
            valid.append((number, row))
    published = {identity: row for row in board.rows if (identity := row.identity) in seen}
    repeated = [(number, (published[row.identity], row)) for number, row in valid if row.identity in published]
    checked.new = [row for _, row in valid if row.identity not in published]
    contradictions = list(_contradictions(repeated, board))
    checked.refused += contradictions
    checked.repeated = len(repeated) - len(contradictions)
    if not checked.refused:
        checked.refused += _together(checked.new, {id(row): number for number, row in valid}, board)
    checked.refused.sort(key=lambda fault: fault[0])
    return checked


def _together(new: list[Row], numbers: dict[int, int], board: Board) -> Iterator[tuple[int, str]]:
    """(row number, reason) of each new method that is incomplete, and each new row that contradicts other rows.

    `numbers`: id of a row -> row number.
    """
    complete = [*board.rows, *new]
    first = {board_rules.key_of(row): numbers[id(row)] for row in reversed(new)}
    yield from ((first[key], reason) for key, reason in board_rules.incomplete(complete, board.suite) if key in first)
    yield from ((numbers[id(row)], reason) for row, reason in board_rules.contradictions(new, board.rows) if id(row) in numbers)


def _contradictions(repeated: list[tuple[int, row_comparison.Pair]], board: Board) -> Iterator[tuple[int, str]]:
    """(row number, reason) for rows that differ from the published row with the same key, compared as `verify` does."""
    verdicts = row_comparison.compare([pair for _, pair in repeated], Noise(board.rows))
    for (number, pair), verdict in zip(repeated, verdicts, strict=True):
        different = [*verdict.differences, *_configuration(*pair)]
        if different:
            yield number, f"differs from the published row: {'; '.join(different)}"


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of each line below the header. UserError if the file is not a CSV with the columns of results.csv."""
    number = 0
    try:
        for number, (_, cells) in enumerate(csv_file.lines(path), 1):
            if number > 1:
                yield number, cells
            elif tuple(cells) != COLUMNS:
                raise UserError(f"'{path}' does not have the columns of results.csv: {_header_fault(cells)}")
    except ValueError as error:
        raise UserError(str(error)) from None
    if number == 0:
        raise UserError(f"'{path}' does not have the columns of results.csv: {_header_fault([])}")
    if number == 1:
        raise UserError(f"'{path}' has no rows")


def _header_fault(header: list[str]) -> str:
    missing, unknown = [c for c in COLUMNS if c not in header], [c[:40] for c in header if c not in COLUMNS]
    if missing or unknown:
        parts = [f"missing {_few(missing)}"] * bool(missing) + [f"unknown {_few(list(map(repr, unknown)))}"] * bool(unknown)
        return "; ".join(parts)
    place, name = next((k, c) for k, c in enumerate(header) if k >= len(COLUMNS) or c != COLUMNS[k])
    return f"column {place + 1} is '{name[:40]}'" + (f", expected '{COLUMNS[place]}'" if place < len(COLUMNS) else "")


def _few(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:MOST]) + f" and {len(names) - MOST} more" * (len(names) > MOST)


def _configuration(there: Row, row: Row) -> list[str]:
    """`hyperparameters` if it differs from the published row, otherwise nothing."""
    same = decoded(there.hyperparameters) == decoded(row.hyperparameters)
    return [] if same else ["hyperparameters"]
