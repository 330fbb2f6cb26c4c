"""Tables in the terminal. Numbers are always shown whole: where room is short, columns are left out, and long names fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.publishing.page import cells
from bench.ranking import statistics
from bench.ranking.columns import ACCURACY, AREA, BASELINE, BY_NAME, BoardColumn, accuracies, column_of
from bench.ranking.tracks import BLOCK
from bench.spec.row import COLLAPSED

PAGE = 140  # characters of a line where no terminal says how many there are
WARNINGS = ("note:", "warning:")
NAME = 12  # characters that a name has at least before it folds


@dataclass(frozen=True)
class Shown:
    """A column of a table in the terminal. `rank`: columns with larger ones are left out first; 0 never. `name`: text that may fold."""

    heading: str
    values: Sequence[str]
    rank: int = 0
    name: bool = False


def make_console(*, stderr: bool = False) -> Console:
    """The terminal, or where there is none a page wide enough for every column. Text is shown as it is: brackets are no markup."""
    console = Console(stderr=stderr, markup=False, emoji=False)
    return console if console.is_terminal else Console(stderr=stderr, markup=False, emoji=False, width=PAGE)


def say(console: Console, line: str) -> None:
    """Print a line as it is; notes and warnings in yellow."""
    console.print(line, style="yellow" if line.startswith(WARNINGS) else "", highlight=False, soft_wrap=True)


def print_table(console: Console, title: str, columns: Sequence[Shown]) -> None:
    """Print a table in the width of the console, without the columns for which there is no room. A table of which no column can be left
    out is wider than the console.
    """
    shown = list(columns)
    while _width(shown) > console.width and any(c.rank for c in shown):
        shown.remove(max(shown, key=lambda c: c.rank))
    if title:
        console.print(Text(title, style="italic"), soft_wrap=True)
    if _width(shown) > console.width:
        file, terminal = console.file, console.is_terminal
        console = Console(file=file, force_terminal=terminal, width=_width(shown), markup=False, emoji=False)
    table = Table(box=box.SIMPLE_HEAD)
    for column in shown:
        if column.name:
            table.add_column(column.heading, overflow="fold", min_width=min(NAME, max(map(len, [column.heading, *column.values]))))
        else:
            width = max(len(line) for line in [*column.heading.split("\n"), *column.values])
            table.add_column(column.heading, justify="right", no_wrap=True, min_width=width)
    for line in zip(*(column.values for column in shown), strict=True):
        table.add_row(*line)
    console.print(table)


def parted(console: Console, names: Sequence[Shown], columns: Sequence[Shown]) -> list[list[Shown]]:
    """Columns that all matter, as several tables where they are too wide for one; each begins with the names."""
    parts = [list(names)]
    for column in columns:
        if len(parts[-1]) > len(names) and _width([*parts[-1], column]) > console.width:
            parts.append(list(names))
        parts[-1].append(column)
    return parts


def _width(columns: Sequence[Shown]) -> int:
    """The least number of characters that a table with these columns needs."""
    widest = [max(len(line) for line in [*c.heading.split("\n"), *c.values]) for c in columns]
    least = [min(w, NAME) if c.name else w for c, w in zip(columns, widest, strict=True)]
    return sum(width + 3 for width in least) + 1  # two blanks and a border for each column


def print_dense(console: Console, rows: pd.DataFrame) -> None:
    """Accuracy of the dense networks: mean over seeds and its 95 % interval. `rows`: as `tracks.frame` returns them."""
    dense = rows[(rows["criterion"] == "") & (rows["tuning"] == "default")]
    plain = dense[dense["finetune_epochs"] == 0]
    dense = dense if plain.empty else plain
    groups = list(dense.groupby(["method", *BLOCK], sort=False)["accuracy"])
    title = "dense networks: mean test accuracy over seeds ± 95 % confidence interval"
    names = [Shown(heading, [str(key[k]) for key, _ in groups], name=True) for k, heading in enumerate(("training", "data set", "network"))]
    print_table(console, title, [*names, Shown("accuracy", [_mean_and_interval(part.astype(float).dropna()) for _, part in groups])])


def _mean_and_interval(values: pd.Series) -> str:
    if values.empty:
        return "failed"
    mean, half = values.mean(), float(statistics.half_width(values.std(), len(values)))
    low, high = np.clip([mean - half, mean + half], 0, 1)  # not a number with one seed
    return f"{mean:.2%} {cells.spread(mean, low, high, '{:.2%}')}".rstrip()


def print_board(console: Console, title: str, board: pd.DataFrame, meaning: str) -> None:
    """One track's table, and below it what its ranks mean."""
    print_table(console, title, board_columns(board))
    said = [meaning] * bool(meaning)
    if board["collapsed"].any():
        said.append(f"collapsed: rows in which {COLLAPSED}.")
    if said:
        console.print(" ".join(said), style="dim", highlight=False)


def board_columns(board: pd.DataFrame) -> list[Shown]:
    """The columns of a track's table that have something to show."""
    lines = [line for _, line in board.iterrows()]
    most = board["blocks"].max()
    found = [
        Shown("rank", [cells.ranks(line["rank_low"], line["rank_high"]) for line in lines]),
        Shown("method", [str(line["method"]) for line in lines], name=True),
    ]
    lacking = [cells.lacking(line["blocks"], most).removesuffix(" blocks") or str(most) for line in lines]
    if any(cells.lacking(blocks, most) for blocks in board["blocks"]):
        found.append(Shown("blocks", lacking))
    for column in _in_order(board):
        if not column.heading or column.name in ("failed", "collapsed", "unsupported", "epochs") or not board[column.name].notna().any():
            continue
        values = [_number(line[column.name], column.format) for line in lines]
        heading = column.heading.replace(" ", "\n", 1)
        found.append(Shown(heading, values, rank=_rank(column)))
        if column.name == "relative_area":
            ends = ("relative_area", "relative_area_low", "relative_area_high")
            found.append(Shown("± 95 %\ninterval", [cells.spread(*(line[name] for name in ends)) for line in lines], rank=1))
    found.append(Shown(f"wins/ties/losses\nagainst {BASELINE}", [_against(line) for line in lines], rank=2))
    for name in ("failed", "collapsed", "unsupported"):
        if board[name].any():
            found.append(Shown(name, [f"{line[name]:.0f}" for line in lines], rank=1))
    if board["epochs"].nunique() > 1:  # methods that trained for longer have no rank
        found.append(Shown("epochs", [f"{line['epochs']:.0f}" for line in lines], rank=1))
    return found


def _in_order(board: pd.DataFrame) -> list[BoardColumn]:
    """The columns of a leaderboard, with all accuracies by increasing sparsity where the first one is."""
    every, at = [column_of(name) for name in BY_NAME], [column_of(name) for name in accuracies(board)]
    place = next(k for k, column in enumerate(every) if column.name.startswith(ACCURACY))
    own = [column_of(str(name)) for name in board.columns if str(name).startswith(AREA)]
    return [*every[:place], *at, *own, *(column for column in every[place:] if not column.name.startswith(ACCURACY))]


def _rank(column: BoardColumn) -> int:
    """How early a column is left out where there is no room for all."""
    if column.wide or column.name == "sparsity_within_one_point":
        return 3 if column.wide else 2
    return int(column.name.startswith(ACCURACY) and column.name not in BY_NAME)


def _number(value: Any, form: str) -> str:
    return cells.MISSING if cells.missing(value) else form.format(value)


def _against(line: Any) -> str:
    return cells.MISSING if cells.missing(line["wins"]) else f"{line['wins']:.0f}/{line['ties']:.0f}/{line['losses']:.0f}"


def print_gains(console: Console, gains: pd.DataFrame) -> None:
    """What tuning gained each method, on average over blocks, and what it cost."""
    means = gains.groupby(["method", "finetune_epochs"], sort=False)[["area_default", "area_tuned", "gain"]].mean()
    cost = gains.drop_duplicates(["method", *BLOCK]).groupby("method")[["trials", "tuning_epochs"]].sum()
    order = [str(name) for name in means["gain"].groupby(level=0).mean().sort_values(ascending=False).index]
    columns = [Shown("method", order, name=True)]
    for length in sorted(gains["finetune_epochs"].unique()):
        kind = f"fine-tuned {length}" if length else "one-shot"
        for name, heading, form, rank in (
            ("area_default", "default", "{:.3f}", 1), ("area_tuned", "tuned", "{:.3f}", 1), ("gain", "gain", "{:+.3f}", 0)
        ):  # fmt: skip
            values = means[name].to_dict()  # methods that are not fine-tuned have none for that
            columns.append(Shown(f"{kind}\n{heading}", [_number(values.get((m, length)), form) for m in order], rank))
    for name, heading in (("trials", "trials"), ("tuning_epochs", "training\nepochs")):
        columns.append(Shown(heading, [f"{cost.loc[m, name]:.0f}" for m in order], rank=2))
    print_table(console, "what tuning gained: area on test data, mean over blocks", columns)
