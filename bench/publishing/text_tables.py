"""The leaderboard as Markdown or LaTeX, computed from the table of leaderboard.csv only."""

from collections.abc import Callable

import pandas as pd

from bench.publishing.page import cells
from bench.ranking.columns import BASELINE, accuracies, column_of

AGAINST = f"wins/ties/losses against {BASELINE}"
ESCAPES = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def table_of(part: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """(heading, cells) of each column. `part`: the lines of one track."""
    numbers = [*accuracies(part), "sparsity_within_one_point"]
    lines, most = [line for _, line in part.iterrows()], part["blocks"].max()
    named = [(str(line["method"]), cells.lacking(line["blocks"], most)) for line in lines]
    area = ("relative_area", "relative_area_low", "relative_area_high")
    return [
        ("rank", [cells.ranks(line["rank_low"], line["rank_high"]) for line in lines]),
        ("method", [f"{name} ({lacking})" if lacking else name for name, lacking in named]),
        ("area/dense", [f"{_shown(line, area[0])} {cells.spread(*(line[n] for n in area))}".rstrip() for line in lines]),
        *((column_of(name).heading, [_shown(line, name) for line in lines]) for name in numbers),
        (AGAINST, [_against(line) for line in lines]),
        ("collapsed", [str(line["collapsed"]) for line in lines]),
    ]


def markdown(board: pd.DataFrame) -> str:
    """Markdown tables, one per track and tuning."""
    parts = []
    for title, part in _tracks(board):
        columns = table_of(part)
        head = ["| " + " | ".join(heading for heading, _ in columns) + " |", "|---:|---|" + "---:|" * (len(columns) - 2)]
        body = []
        for line, method in zip(zip(*(values for _, values in columns), strict=True), part["method"], strict=True):
            plain = str(method).replace("|", "\\|").replace("`", "'")
            named = line[1].replace(str(method), f"`{plain}`", 1)
            body.append("| " + " | ".join([line[0], named, *line[2:]]) + " |")
        parts.append("\n".join([f"**{title}**", "", *head, *body]) + "\n")
    return "\n".join(parts)


def latex(board: pd.DataFrame) -> str:
    """LaTeX tables (booktabs), one per track and tuning."""
    parts = []
    for title, part in _tracks(board):
        columns = table_of(part)
        rows = [" & ".join(map(_escaped, line)) + r" \\" for line in zip(*(values for _, values in columns), strict=True)]
        parts.append("\n".join([
            r"\begin{table}", r"\centering", rf"\caption{{{_escaped(title)}}}", rf"\begin{{tabular}}{{rl{'r' * (len(columns) - 2)}}}",
            r"\toprule", " & ".join(_escaped(heading) for heading, _ in columns) + r" \\", r"\midrule", *rows, r"\bottomrule",
            r"\end{tabular}", r"\end{table}",
        ]) + "\n")  # fmt: skip
    return "\n".join(parts)


STYLES: dict[str, Callable[[pd.DataFrame], str]] = {"markdown": markdown, "latex": latex}


def _tracks(board: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    found = board.groupby(["track", "tuning"], sort=False)
    return [(track if tuning == "default" else f"{track}, {tuning}", part) for (track, tuning), part in found]


def _shown(line: pd.Series, name: str) -> str:
    return cells.MISSING if cells.missing(line[name]) else column_of(name).format.format(line[name])


def _against(line: pd.Series) -> str:
    return cells.MISSING if cells.missing(line["wins"]) else f"{line['wins']:.0f}/{line['ties']:.0f}/{line['losses']:.0f}"


def _escaped(text: str) -> str:
    plain = "".join(ESCAPES.get(c, c) for c in text)
    return plain.replace("±", r"$\pm$").replace("–", "--")
