"""Print a leaderboard. Nothing heavier than pandas is imported: a table of results that are there must not wait for torch."""

import pandas as pd
from rich.console import Console

from bench.cli.tables import print_board, print_dense, print_gains, say
from bench.publishing import text_tables
from bench.ranking import leaderboard, tracks, tuning_gain
from bench.spec.row import Row


def show(console: Console, rows: list[Row], style: str, board: pd.DataFrame) -> None:
    """Print dense networks, warnings, one table per track, what tuning gained, and what failed.

    Args:
        console: where to print; other styles than text go to standard output.
        rows: the rows.
        style: text, markdown or latex.
        board: their leaderboard.
    """
    if style != "text":
        print(text_tables.STYLES[style](board), end="")
        return
    print_dense(console, rows)
    table = tracks.frame(rows)
    for warning in tracks.warnings(table):
        say(console, f"warning: {warning}")
    resolutions = leaderboard.resolutions(table)
    for (track, tuning), part in board.groupby(["track", "tuning"], sort=False):
        title = track if tuning == "default" else f"{track}, {tuning}"
        print_board(console, title, part, resolutions[track, tuning].meaning)
    gains = tuning_gain.tuned(rows)
    if len(gains):
        print_gains(console, gains)
    say_failures(console, rows)


def say_failures(console: Console, rows: list[Row]) -> None:
    """Why rows failed, each error once, and how many."""
    failed = [row for row in rows if row.status == "failed"]
    for error in dict.fromkeys(f"{row.method} on {row.dataset}/{row.architecture}: {row.error}" for row in failed):
        console.print(f"failed: {error}", style="red", highlight=False)
    if failed:
        console.print(f"{len(failed)} of {len(rows)} rows failed; the next run tries them again", style="red", highlight=False)
