"""The columns of a track's table on the page: each one's heading stands next to the cell that it makes of a line of leaderboard.csv."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.publishing.page import cells
from bench.publishing.page.cells import MISSING, Bar, Cell, Column, exact, missing, number, percent, text, words
from bench.ranking.columns import AREA as BOARD_AREA
from bench.ranking.columns import BASELINE, BY_NAME, accuracies, column_of
from bench.spec.row import COLLAPSED

RANKS = "from 1 + the number of methods that are significantly better to the number of methods - the number that are significantly worse"
INTERVAL = "± half the width of the 95 % confidence interval over seeds; (low–high) if the interval was cut to possible values"
Scale = tuple[float, float] | None
Of = Callable[["pd.Series[Any]", Scale], Cell]


@dataclass(frozen=True)
class Shown:
    """A column, and the cell of a line in it; the scale is that of the bars of areas."""

    column: Column
    cell: Of


def _plain(name: str, title: str, group: str = "", form: str = "", first: str = "descending", hint: str = "") -> Shown:
    """A number of leaderboard.csv, with the meaning that is declared there."""
    declared = column_of(name)
    made = Column(title, group, hint or declared.meaning, first)
    if declared.unit == "fraction" and not form:
        return Shown(made, lambda line, _: percent(line[name]))
    return Shown(made, lambda line, _: number(line[name], form or declared.format))


def _alarm(name: str, title: str, hint: str) -> Shown:
    """A count that is bad news."""
    return Shown(Column(title, "Rows", hint), lambda line, _: number(line[name], "{:.0f}", kind="alarm" if line[name] else "number"))


def _rank(line: "pd.Series[Any]", _: Scale) -> Cell:
    low = line["rank_low"]
    return Cell(cells.ranks(low, line["rank_high"]), "" if missing(low) else exact(low), kind="rank")


def _versus(line: "pd.Series[Any]", _: Scale) -> Cell:
    if missing(line["wins"]):
        return Cell(MISSING, kind="center")
    counts = " / ".join(f"{line[name]:.0f}" for name in ("wins", "ties", "losses"))
    return Cell(counts, exact(line["wins"] - line["losses"]), kind="center")


def _area(line: "pd.Series[Any]", scale: Scale) -> Cell:
    mean, low, high = (line[name] for name in ("relative_area", "relative_area_low", "relative_area_high"))
    if missing(mean) or scale is None:
        return Cell(MISSING, kind="area")
    known = not (missing(low) or missing(high))
    hint = f"95 % interval {exact(low)} to {exact(high)}" if known else ""
    ends = (low, mean, high) if known else (mean, mean, mean)
    first, middle, last = (max(0.0, (float(v) - scale[0]) / (scale[1] - scale[0])) for v in ends)
    bar = Bar(first, middle, last, off=bool(mean < scale[0]))
    return number(mean, kind="area", note=cells.spread(mean, low, high), hint=hint, bar=bar)


AREA = Shown(Column("Area / dense", kind="area", hint=f"{BY_NAME['relative_area'].meaning} {INTERVAL}"), _area)
_BEFORE = (
    Shown(Column("Rank", first="ascending", hint=RANKS), _rank),
    Shown(Column("Method", first="ascending", kind="text"), lambda line, _: text(words(line["method"]), "method")),
    AREA,
    _plain("relative_area_std", "Std", first="ascending", hint="standard deviation of the area over seeds, pooled within blocks"),
)  # fmt: skip
_AFTER = (
    _plain(
        "sparsity_within_one_point", "Within\n1 point",
        hint="largest sparsity (%) at which accuracy stays within one point of the dense network, interpolated",
    ),
    _plain("nll_95", "NLL", "At 95 %", "{:.2f}", "ascending", "negative log-likelihood of the test data, in nats: lower is better"),
    _plain("ece_95", "ECE", "At 95 %", "{:.3f}", "ascending", "expected calibration error: lower is better"),
    _plain("scoring_epochs", "Scoring,\nepochs", form="{:.2f}", first="ascending"),
    Shown(Column("W / T / L", f"Against {BASELINE}", "pairs of block and seed: area larger / equal / smaller", kind="center"), _versus),
    _alarm("failed", "Failed", "rows that ended in an error; they count as accuracy 0"),
    _alarm("collapsed", "Collapsed", f"rows in which {COLLAPSED}; they count as measured"),
    _alarm("unsupported", "Unsup.", "rows that the method does not support (declared before running); left out of means and ranks"),
    _plain("rows", "All", "Rows", hint="one row = one method, data set, architecture, sparsity and seed"),
    _plain("blocks", "Blocks", "Measured on", hint="number of blocks in the mean; one block = one data set with one architecture"),
    _plain("seeds", "Seeds", "Measured on", hint="one seed = one initial network and order of batches, the same for every method"),
    _plain("epochs", "Epochs", form="{:.3g}", first="ascending"),
    _plain("training_flops_share", "Training\nFLOPs", form="{:.0%}", first="ascending", hint="FLOPs of training; dense: 100 %"),
)  # fmt: skip


def shown(board: pd.DataFrame) -> tuple[Shown, ...]:
    """The columns of a leaderboard's table: with the accuracy at every sparsity that it has."""
    at, own = accuracies(board), [str(name) for name in board.columns if str(name).startswith(BOARD_AREA)]
    titles = [column_of(name).heading.removeprefix("acc ").replace("%", " %") for name in at]
    metrics = [_plain(name, name.removeprefix(BOARD_AREA), "Area", "{:.4g}") for name in own]
    return (*_BEFORE, *(_plain(n, title, "Accuracy, % at sparsity") for n, title in zip(at, titles, strict=True)), *_AFTER, *metrics)
