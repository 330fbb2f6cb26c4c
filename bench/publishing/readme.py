"""The leaderboard between two markers of a README: a pure function of leaderboard.csv."""

import io

import pandas as pd

from bench.publishing.text_tables import markdown

BEGIN, END = "<!-- leaderboard -->", "<!-- /leaderboard -->"


def rewritten(text: str, board_csv: bytes) -> str | None:
    """The README's text with the tables of a leaderboard.csv between its markers; None where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{tables(board_csv)}{end}{after}" if begin and end else None


def tables(board_csv: bytes) -> str:
    """A Markdown table for each track of a leaderboard.csv: methods at their defaults, without the controls by ablation."""
    board = pd.read_csv(io.BytesIO(board_csv), dtype={"rank_low": "Int64", "rank_high": "Int64"})
    return markdown(board[(board["tuning"] == "default") & ~board["method"].str.contains(r" \((?:shuffle|reinit)\)$")])
