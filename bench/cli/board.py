"""Print a leaderboard. Nothing heavier than pandas is imported: a table of results that are there must not wait for torch."""

from dataclasses import dataclass

import pandas as pd
from rich.console import Console

from bench.cli.tables import print_board, print_dense, print_gains, say
from bench.publishing import text_tables
from bench.ranking import leaderboard, tracks, tuning_gain
from bench.spec.errors import UserError
from bench.spec.row import Row


@dataclass(frozen=True)
class Ranked:
    """Rows, as a list and as the table that `tracks.frame` returns, and what `leaderboard.ranked` returns for it."""

    rows: list[Row]
    table: pd.DataFrame
    board: pd.DataFrame
    resolutions: dict[tuple[str, str], leaderboard.Resolution]


def ranked(rows: list[Row]) -> Ranked:
    """Rank rows. UserError if they are a part of the results that cannot be ranked."""
    table = tracks.frame(rows)
    try:
        return Ranked(rows, table, *leaderboard.ranked(table))
    except ValueError as error:
        raise UserError(f"{error}; rows of dense networks are missing") from None


def show(console: Console, found: Ranked, style: str) -> None:
    """Print dense networks, warnings, one table per track, what tuning gained, and what failed.

    Args:
        console: where to print; other styles than text go to standard output.
        found: the ranked rows.
        style: text, markdown or latex.
    """
    if style != "text":
        print(text_tables.STYLES[style](found.board), end="")
        return
    print_dense(console, found.table)
    for warning in tracks.warnings(found.table):
        say(console, f"warning: {warning}")
    for (track, tuning), part in found.board.groupby(["track", "tuning"], sort=False):
        title = track if tuning == "default" else f"{track}, {tuning}"
        print_board(console, title, part, found.resolutions[track, tuning].meaning)
    gains = tuning_gain.tuned(found.rows)
    if len(gains):
        print_gains(console, gains)
    say_failures(console, found.rows)


def say_failures(console: Console, rows: list[Row]) -> None:
    """Why rows failed, each error once, and how many."""
    failed = [row for row in rows if row.status == "failed"]
    for error in dict.fromkeys(f"{row.method} on {row.dataset}/{row.architecture}: {row.error}" for row in failed):
        console.print(f"failed: {error}", style="red", highlight=False)
    if failed:
        console.print(f"{len(failed)} of {len(rows)} rows failed; the next run tries them again", style="red", highlight=False)
