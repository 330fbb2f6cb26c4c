"""The leaderboard between two markers in the README, computed from leaderboard.csv only."""

import io

import pandas as pd

from bench.publishing.text_tables import markdown

BEGIN, END = "<!-- leaderboard -->", "<!-- /leaderboard -->"


def rewritten(text: str, board_csv: bytes) -> str | None:
    """Replace the tables in a README.

    Args:
        text: the README.
        board_csv: content of a leaderboard.csv.

    Returns:
        The README with the new tables between its markers, or None if it has no markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{tables(board_csv)}{end}{after}" if begin and end else None


def tables(board_csv: bytes) -> str:
    """Markdown tables of a leaderboard.csv, one per track: methods with default hyperparameters, without ablations."""
    board = pd.read_csv(io.BytesIO(board_csv), dtype={"rank_low": "Int64", "rank_high": "Int64"})
    return markdown(board[(board["tuning"] == "default") & ~board["method"].str.contains(r" \((?:shuffle|reinit)\)$")])
