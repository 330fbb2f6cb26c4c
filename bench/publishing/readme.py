"""The leaderboard as Markdown, between two markers of a README: a pure function of leaderboard.csv."""

import io

import pandas as pd

from bench.publishing.page import cells

BEGIN, END = "<!-- leaderboard -->", "<!-- /leaderboard -->"
HEADINGS = (
    "rank",
    "method",
    "area/dense",
    "acc 90%",
    "acc 95%",
    "acc 99%",
    "within 1 point",
    "wins/ties/losses against magnitude",
    "collapsed",
)
SHARES = ("accuracy_90", "accuracy_95", "accuracy_99", "sparsity_within_one_point")


def rewritten(text: str, board_csv: bytes) -> str | None:
    """The README's text with the tables of a leaderboard.csv between its markers; None where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{tables(board_csv)}{end}{after}" if begin and end else None


def tables(board_csv: bytes) -> str:
    """A Markdown table for each track of a leaderboard.csv: methods at their defaults, without the controls by ablation."""
    board = pd.read_csv(io.BytesIO(board_csv), dtype={"rank_low": "Int64", "rank_high": "Int64"})
    board = board[(board["tuning"] == "default") & ~board["method"].str.contains(r" \((?:shuffle|reinit)\)$")]
    parts = []
    for track, lines in board.groupby("track", sort=False):
        head = ["| " + " | ".join(HEADINGS) + " |", "|---:|---|" + "---:|" * (len(HEADINGS) - 2)]
        parts.append("\n".join([f"**{track}**", "", *head, *(_line(line, lines["blocks"].max()) for _, line in lines.iterrows())]) + "\n")
    return "\n".join(parts)


def _line(line: pd.Series, most: int) -> str:
    ends = (line[name] for name in ("relative_area", "relative_area_low", "relative_area_high"))
    area = f"{_shown(line['relative_area'], '{:.3f}')} {cells.spread(*ends)}".rstrip()
    against = "–" if pd.isna(line["wins"]) else f"{line['wins']:.0f}/{line['ties']:.0f}/{line['losses']:.0f}"
    method = str(line["method"]).replace("|", "\\|").replace("`", "'")
    lacking = cells.lacking(line["blocks"], most)
    named = f"`{method}` ({lacking})" if lacking else f"`{method}`"
    rank = cells.ranks(line["rank_low"], line["rank_high"])
    return "| " + " | ".join([rank, named, area, *(_shown(line[n], "{:.1%}") for n in SHARES), against, str(line["collapsed"])]) + " |"


def _shown(value: object, form: str) -> str:
    return cells.MISSING if cells.missing(value) else form.format(value)
