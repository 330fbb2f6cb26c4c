"""The columns of a track's table on the page: each one's heading stands next to the cell that it makes of a line of leaderboard.csv."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.publishing.page import cells
from bench.publishing.page.cells import MISSING, Bar, Cell, Column, exact, missing, number, percent, text, words
from bench.ranking.columns import ACCURACY, BASELINE, BY_NAME, accuracies, column_of
from bench.ranking.columns import AREA as BOARD_AREA
from bench.spec.row import COLLAPSED

RANKS = "from 1 + the number of methods that are significantly better to the number of methods - the number that are significantly worse"
INTERVAL = "± half the width of the 95 % confidence interval over seeds; (low–high) if the interval was cut to possible values"
OWN_DENSE = "mean accuracy (%) of the dense networks that the method pruned: the price of a training that makes networks easier to prune"
FLOPS_LEFT = "FLOPs that are left at 95 % sparsity, in % of the dense network: equal sparsity does not mean equal FLOPs"
MOST = 8  # accuracies of a line; more are in leaderboard.csv
DENSE, FLOPS, VERIFIED = "own_dense", "flops_left", "verified_rows"  # columns that `bench.publishing.page.tables` adds to a leaderboard
Scale = tuple[float, float] | None
Of = Callable[["pd.Series[Any]", Scale], Cell]


@dataclass(frozen=True)
class Shown:
    """A column, and the cell of a line in it; the scale is that of the bars of areas."""

    column: Column
    cell: Of


def _plain(name: str, title: str, group: str = "", form: str = "", first: str = "descending", hint: str = "", label: str = "") -> Shown:
    """A number of leaderboard.csv, with the meaning that is declared there."""
    declared = column_of(name)
    made = Column(title, group, hint or declared.meaning, first, label=label)
    if declared.unit == "fraction" and not form:
        return Shown(made, lambda line, _: percent(line[name]))
    return Shown(made, lambda line, _: number(line[name], form or declared.format))


def _alarm(name: str, title: str, hint: str) -> Shown:
    """A count that is bad news."""
    return Shown(
        Column(title, "Rows", hint, label=f"{name.capitalize()} rows"),
        lambda line, _: number(line[name], "{:.0f}", kind="alarm" if line[name] else "number"),
    )


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
    std = "" if missing(line["relative_area_std"]) else f"; standard deviation over seeds {exact(line['relative_area_std'])}"
    hint = f"95 % interval {exact(low)} to {exact(high)}{std}" if known else ""
    ends = (low, mean, high) if known else (mean, mean, mean)
    first, middle, last = (max(0.0, (float(v) - scale[0]) / (scale[1] - scale[0])) for v in ends)
    bar = Bar(first, middle, last, off=bool(mean < scale[0]))
    return number(mean, kind="area", note=cells.spread(mean, low, high), hint=hint, bar=bar)


def _verified(line: "pd.Series[Any]", _: Scale) -> Cell:
    if not line[VERIFIED]:
        return number(0, "{:.0f}")
    return Cell(f"✓ {line[VERIFIED]:.0f}", exact(line[VERIFIED]), hint=f"{line[VERIFIED]:.0f} of {line['rows']:.0f} rows", kind="verified")


AREA = Shown(Column("Area / dense", kind="area", hint=f"{BY_NAME['relative_area'].meaning} {INTERVAL}"), _area)
_BEFORE = (
    Shown(Column("Rank", first="ascending", hint=RANKS), _rank),
    Shown(Column("Method", first="ascending", kind="text", key="method"), lambda line, _: text(words(line["method"]), "method")),
    AREA,
    Shown(Column("Dense", hint=OWN_DENSE), lambda line, _: percent(line[DENSE])),
)  # fmt: skip
_AFTER = (
    _plain(
        "sparsity_within_one_point", "Within\n1 point",
        hint="largest sparsity (%) at which accuracy stays within one point of the dense network, interpolated",
    ),
    _plain("nll_95", "NLL", "At 95 %", "{:.2f}", "ascending", "negative log-likelihood of the test data, in nats: lower is better"),
    _plain("ece_95", "ECE", "At 95 %", "{:.3f}", "ascending", "expected calibration error: lower is better"),
    Shown(Column("FLOPs", "At 95 %", FLOPS_LEFT, "ascending"), lambda line, _: percent(line[FLOPS])),
    _plain("scoring_epochs", "Scoring,\nepochs", form="{:.2f}", first="ascending"),
    Shown(Column("W / T / L", f"vs {BASELINE}", "pairs of block and seed: area larger / equal / smaller", kind="center"), _versus),
    _alarm("failed", "Failed", "rows that ended in an error; they count as accuracy 0"),
    _alarm("collapsed", "Coll.", f"collapsed rows, in which {COLLAPSED}; they count as measured"),
    _alarm("unsupported", "Unsup.", "rows that the method does not support (declared before running); left out of means and ranks"),
    _plain("rows", "All", "Rows", label="Rows", hint="one row = one method, data set, architecture, sparsity and seed"),
    Shown(Column("Verified", "Rows", "rows that a maintainer has computed again: they agree", label="Verified rows"), _verified),
    _plain("blocks", "Blocks", "Measured on", label="Blocks", hint="blocks in the mean; one block = one data set with one architecture"),
    _plain("seeds", "Seeds", "Measured on", label="Seeds", hint="one seed = one initial network and order of batches, for every method"),
    _plain("epochs", "Epochs", form="{:.3g}", first="ascending"),
    _plain("training_flops_share", "Training\nFLOPs", form="{:.0%}", first="ascending", hint="FLOPs of training; dense: 100 %"),
)  # fmt: skip


def _sparsity(name: str) -> float:
    """The sparsity of a column of accuracies, in percent."""
    return float(name.removeprefix(ACCURACY))


def _accuracy(name: str, title: str) -> Shown:
    column = Column(title, "Accuracy, % at sparsity", column_of(name).meaning, label=f"At {title}")
    return Shown(column, lambda line, _: percent(line[name]))


def shown(board: pd.DataFrame) -> tuple[Shown, ...]:
    """The columns of a leaderboard's table: with the accuracy at every sparsity that it has."""
    at, own = sorted(accuracies(board), key=_sparsity)[-MOST:], [str(name) for name in board.columns if str(name).startswith(BOARD_AREA)]
    titles = [f"{_sparsity(name):g} %" for name in at]
    metrics = [_plain(name, name.removeprefix(BOARD_AREA), "Area", "{:.4g}") for name in own]
    return (*_BEFORE, *map(_accuracy, at, titles), *_AFTER, *metrics)
