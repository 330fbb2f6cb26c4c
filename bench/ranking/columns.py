"""The columns of leaderboard.csv, each declared once: name, meaning, value and format.

leaderboard.csv, its schema, the tables in the terminal, in Markdown and on the page, and the documentation are derived from `BOARD`.
Rows at other sparsities than those of `BOARD`, and metrics of plug-ins, add columns, see `board_of`.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.ranking import statistics
from bench.ranking.grid import Grid
from bench.ranking.tracks import BLOCK, Track, accuracy, areas, difference
from bench.spec.row import COLLAPSED

BASELINE = "magnitude"
AT = (0.9, 0.95, 0.99)  # sparsities whose accuracy is a column
CALIBRATION_AT = 0.95
ACCURACY, AREA = "accuracy_", "area_"
_AT_SPARSITY = re.compile(ACCURACY + r"[0-9.e+-]+")
MARGIN = 0.01  # "within one point of dense"


@dataclass(frozen=True)
class Entry:
    """One method in one track, with all its rows in this track."""

    method: str
    rows: pd.DataFrame
    track: Track

    @cached_property
    def ran(self) -> pd.DataFrame:
        """The rows without the unsupported ones; their column `value` is the accuracy, 0 for failed rows."""
        return self.rows[self.rows["status"] != "unsupported"].assign(value=accuracy)

    @property
    def curves(self) -> pd.DataFrame:
        """Accuracies divided by dense accuracy: one line per block and seed, one column per sparsity."""
        return self.track.curves[self.method]

    @property
    def dense(self) -> pd.Series:
        """The dense accuracy of each block."""
        return self.track.dense[self.method]

    @cached_property
    def grid(self) -> Grid:
        """Means over seeds."""
        return Grid(self.ran)

    @cached_property
    def relative(self) -> statistics.Estimate:
        """The mean relative area with its 95 % confidence interval."""
        return statistics.estimate(areas(self.curves))


@dataclass(frozen=True)
class BoardColumn:
    """A column of leaderboard.csv.

    `value`: computes it; None if `bench.ranking.leaderboard` sets it. `always`: it also has a value for a method without supported rows.
    `heading`, `format`: how tables in the terminal and on the page show it; an empty heading: not shown as a column. `wide`: shown only
    if there is enough space.
    """

    name: str
    type: str
    meaning: str
    unit: str = ""
    value: Callable[[Entry], Any] | None = None
    least: float | None = None
    most: float | None = None
    values: tuple[str, ...] = ()
    required: bool = False
    always: bool = False
    heading: str = ""
    format: str = "{}"
    wide: bool = False


def _mean_at(entry: Entry, column: str, sparsity: float) -> float:
    """Mean of a column at one sparsity, over seeds and then over blocks."""
    at = np.isclose(entry.grid.sparsities, sparsity, rtol=0, atol=statistics.EXACT)
    sums, counts = (each[:, at].sum(1) for each in entry.grid.sums(column))
    return float((sums[counts > 0] / counts[counts > 0]).mean()) if counts.any() else np.nan


def _largest_sparsity(entry: Entry) -> float:
    """Mean over blocks of the largest sparsity whose accuracy is within one point of dense.

    The accuracy is the mean over seeds, interpolated linearly; the curve starts at (0, dense accuracy). The largest sparsity is where it
    first falls below dense accuracy - 0.01.
    """
    reached = []
    sums, counts = entry.grid.sums("value")
    for k, block in enumerate(entry.grid.blocks):
        if block not in entry.dense.index:
            continue
        there = counts[k] > 0
        if not there.any():
            continue
        floor = entry.dense[block] - MARGIN - statistics.EXACT
        x = [0.0, *entry.grid.sparsities[there]]
        y = [entry.dense[block], *(sums[k, there] / counts[k, there])]
        last = x[-1]
        for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
            if y1 < floor:
                last = x0 + (x1 - x0) * (y0 - floor) / (y0 - y1)
                break
        reached.append(last)
    return float(np.mean(reached)) if reached else np.nan


def _scoring_epochs(entry: Entry) -> float:
    """Median over rows of (time of scoring) / (time of one training epoch of the same row)."""
    epochs = entry.ran["epochs"] + entry.ran["finetune_epochs"]
    seconds = entry.ran["train_seconds"] / epochs.where(epochs > 0)  # none for given weights that are not fine-tuned
    return float((entry.ran["score_seconds"].astype(float) / seconds.astype(float)).median())


def _training_flops(entry: Entry) -> float:
    """Mean over rows of (FLOPs of training) / (those of the dense network)."""
    dense = entry.ran["dense_training_flops"].astype(float)
    return float((entry.ran["training_flops"].astype(float) / dense.where(dense > 0)).mean())


def _versus_baseline(entry: Entry, sign: int) -> Any:
    """Number of blocks and seeds whose area is larger (sign 1), equal (0) or smaller (-1) than the area of the baseline."""
    if BASELINE not in entry.track.curves:
        return pd.NA
    signs = np.sign(difference(entry.curves, entry.track.curves[BASELINE]).round(statistics.DIGITS))
    return int((signs == sign).sum())


def _count(name: str, meaning: str, value: Callable[[Entry], Any], unit: str = "rows", **more: Any) -> BoardColumn:
    return BoardColumn(name, "integer", meaning, unit, value, least=0, always=True, **{"format": "{:.0f}", **more})


def _status(name: str, meaning: str) -> BoardColumn:
    return _count(name, meaning, lambda e: int((e.rows["status"] == name).sum()), heading=name)


def as_percent(sparsity: float) -> str:
    """A sparsity in percent, with all of its digits: 0.29 -> "29", 0.99999 -> "99.999"."""
    return f"{100 * sparsity:.10g}"


def accuracy_at(sparsity: float) -> BoardColumn:
    """The column of the accuracy at one sparsity, e.g. `accuracy_90`."""
    percent = as_percent(sparsity)
    return BoardColumn(
        f"{ACCURACY}{percent}", "number", f"mean test accuracy at {percent} % sparsity", "fraction",
        lambda e: _mean_at(e, "value", sparsity), 0, 1, heading=f"acc {percent}%", format="{:.1%}",
    )  # fmt: skip


def area_of(metric: str) -> BoardColumn:
    """The column of a plug-in's metric, e.g. `area_confidence`."""
    return BoardColumn(
        f"{AREA}{metric}", "number", f"area under the curve of the plug-in's metric {metric} over sparsity, mean over blocks",
        value=lambda e: _plugin_area(e, metric), heading=f"{metric} area", format="{:.4g}",
    )  # fmt: skip


def _plugin_area(entry: Entry, metric: str) -> float:
    """Mean over seeds and then over blocks of the area under the curve of a plug-in's metric; rows without a value are left out."""
    values = entry.ran["plugin_metrics"].map(lambda said: json.loads(said).get(metric)).astype(float)
    ran = entry.ran.assign(value=values).dropna(subset=["value"])
    if ran.empty:
        return np.nan
    curves = ran.pivot_table(index=[*BLOCK, "seed"], columns="sparsity", values="value", sort=False)
    return float(areas(curves).groupby(level=BLOCK).mean().mean())


def board_of(rows: pd.DataFrame) -> tuple[BoardColumn, ...]:
    """The columns of the leaderboard of some rows.

    Args:
        rows: as `bench.ranking.tracks.frame` returns them.

    Returns:
        `BOARD`, and at the end the accuracy at each further sparsity and the area of each metric of plug-ins.
    """
    more = sorted(s for s in set(rows["sparsity"]) if s > 0 and accuracy_at(s).name not in BY_NAME)
    metrics = sorted({name for said in set(rows["plugin_metrics"]) for name in json.loads(said)})
    return (*BOARD, *map(accuracy_at, more), *map(area_of, metrics))


def column_of(name: str) -> BoardColumn:
    """The column of a leaderboard with this name."""
    if name in BY_NAME:
        return BY_NAME[name]
    return area_of(name.removeprefix(AREA)) if name.startswith(AREA) else accuracy_at(float(name.removeprefix(ACCURACY)) / 100)


def accuracies(board: pd.DataFrame) -> list[str]:
    """The names of the columns of accuracies that have values in a leaderboard, by increasing sparsity."""
    named = [name for name in board.columns if _AT_SPARSITY.fullmatch(str(name)) and board[name].notna().any()]
    return sorted(named, key=lambda name: float(name.removeprefix(ACCURACY)))


def _rank(name: str, meaning: str) -> BoardColumn:
    return BoardColumn(name, "integer", meaning, least=1)


_AREA: dict[str, Any] = {"least": 0, "format": "{:.3f}"}
_AT_95 = "test {} at 95 % sparsity"
BOARD = (
    BoardColumn("track", "string", "group of results that are ranked together", required=True),
    BoardColumn("tuning", "string", "hyperparameters: default, or tuned on validation data", values=("default", "tuned")),
    _rank("rank", "the same as rank_low"),
    _rank("rank_low", "1 + the number of methods that are significantly better; empty if not ranked"),
    _rank("rank_high", "number of ranked methods - the number of methods that are significantly worse"),
    BoardColumn("method", "string", "method; with its ablation in brackets, if any", value=lambda e: e.method, required=True, always=True),
    BoardColumn(
        "relative_area", "number", "area under the accuracy-sparsity curve divided by dense accuracy, mean over blocks",
        value=lambda e: e.relative.mean, heading="area /dense", **_AREA,
    ),
    BoardColumn(
        "relative_area_low", "number", "lower end of its 95 % confidence interval over seeds, cut to possible values",
        value=lambda e: np.clip(e.relative.low, 0, None), **_AREA,
    ),
    BoardColumn(
        "relative_area_high", "number", "upper end of its 95 % confidence interval over seeds, cut to possible values",
        value=lambda e: np.clip(e.relative.high, None, (1 / e.dense).mean()), **_AREA,
    ),
    BoardColumn(
        "relative_area_std", "number", "its standard deviation over seeds, pooled within blocks", value=lambda e: e.relative.std, **_AREA
    ),
    BoardColumn(
        "sparsity_within_one_point", "number", "largest sparsity with accuracy within one point of dense, interpolated", "fraction",
        _largest_sparsity, 0, 1, heading="within 1 point", format="{:.1%}",
    ),
    *(accuracy_at(sparsity) for sparsity in AT),
    BoardColumn(
        "nll_95", "number", "mean " + _AT_95.format("negative log-likelihood"), "nats", lambda e: _mean_at(e, "nll", CALIBRATION_AT), 0,
        heading="NLL 95%", format="{:.2f}", wide=True,
    ),
    BoardColumn(
        "ece_95", "number", "mean " + _AT_95.format("expected calibration error"), "fraction", lambda e: _mean_at(e, "ece", CALIBRATION_AT),
        0, 1, heading="ECE 95%", format="{:.3f}", wide=True,
    ),
    BoardColumn(
        "scoring_epochs", "number", "median cost of scoring, in epochs of the row's own training", "epochs", _scoring_epochs, 0,
        heading="scoring epochs", format="{:.2f}", wide=True,
    ),
    *(
        BoardColumn(name, "integer", f"number of blocks and seeds with {kind} area than {BASELINE}", "", value, least=0)
        for name, kind, value in (
            ("wins", "a larger", lambda e: _versus_baseline(e, 1)),
            ("ties", "an equal", lambda e: _versus_baseline(e, 0)),
            ("losses", "a smaller", lambda e: _versus_baseline(e, -1)),
        )
    ),
    _count(
        "blocks", "number of blocks (data set and architecture) in the mean area; without those whose dense network did not train",
        lambda e: 0 if e.ran.empty else len(e.dense), "blocks",
    ),
    _count("seeds", "number of seeds", lambda e: e.ran["seed"].nunique(), "seeds"),
    _count("rows", "rows of this method in this track", lambda e: len(e.rows)),
    _status("failed", "rows that failed; they count as accuracy 0"),
    _status("collapsed", f"rows in which {COLLAPSED}"),
    _status("unsupported", "rows that the method does not support"),
    BoardColumn(
        "epochs", "number", "mean epochs of training and fine-tuning", "epochs",
        lambda e: float((e.rows["epochs"] + e.rows["finetune_epochs"]).mean()), 0, always=True, heading="epochs", format="{:.0f}",
    ),
    BoardColumn(
        "training_flops_share", "number", "FLOPs of training and fine-tuning divided by those of the dense network, mean over rows",
        "fraction", _training_flops, 0, heading="train FLOPs", format="{:.0%}", wide=True,
    ),
)  # fmt: skip
COLUMNS = tuple(column.name for column in BOARD)
BY_NAME = {column.name: column for column in BOARD}


def line(entry: Entry, board: Iterable[BoardColumn]) -> dict[str, Any]:
    """The values of one line, by column, without those that `bench.ranking.leaderboard` sets."""
    return {c.name: c.value(entry) for c in board if c.value is not None and (c.always or not entry.ran.empty)}
