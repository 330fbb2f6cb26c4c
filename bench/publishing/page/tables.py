"""The tables of a leaderboard's page as plain values: leaderboard and blocks of each track, cost and gain of tuning, failures."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench.publishing.page import cells
from bench.publishing.page.cells import MISSING, Bar, Cell, Column, Line, Table, axis, exact, missing, number, percent, text, words
from bench.ranking import leaderboard, statistics, tracks, tuning_gain
from bench.ranking.columns import BASELINE, COLUMNS
from bench.spec.row import COLLAPSED

OUTSIDE = 0.2  # largest share of methods below the axis; an arrow marks them
BLOCK = ["dataset", "architecture", "granularity", "match"]


@dataclass(frozen=True)
class Board:
    """The tables of one track and tuning. `meaning`: the note below the leaderboard."""

    track: str
    tuning: str
    table: Table
    meaning: str
    blocks: Table = field(default_factory=lambda: Table([], []))


RANKS = "from 1 + the number of methods that are significantly better to the number of methods - the number that are significantly worse"
INTERVAL = "± half the width of the 95 % confidence interval over seeds; (low–high) if the interval was cut to possible values"
BOARD_COLUMNS = (
    Column("Rank", first="ascending", hint=RANKS),
    Column("Method", first="ascending", kind="text"),
    Column("Area / dense", kind="area", hint=f"area under the accuracy-sparsity curve / dense accuracy, mean over blocks {INTERVAL}"),
    Column("Std", first="ascending", hint="standard deviation of the area over seeds, pooled within blocks"),
    Column("90 %", "Accuracy, % at sparsity", "mean test accuracy at 90 % sparsity"),
    Column("95 %", "Accuracy, % at sparsity", "mean test accuracy at 95 % sparsity"),
    Column("99 %", "Accuracy, % at sparsity", "mean test accuracy at 99 % sparsity"),
    Column("Within\n1 point", hint="largest sparsity (%) at which accuracy stays within one point of the dense network, interpolated"),
    Column("NLL", "At 95 %", "negative log-likelihood of the test data, in nats: lower is better", first="ascending"),
    Column("ECE", "At 95 %", "expected calibration error: lower is better", first="ascending"),
    Column("Scoring,\nepochs", first="ascending", hint="median time to score and cut, in epochs of training"),
    Column("W / T / L", f"Against {BASELINE}", "pairs of block and seed with a larger / equal / smaller area", kind="center"),
    Column("Failed", "Rows", "rows that ended in an error; they count as accuracy 0", first="descending"),
    Column("Collapsed", "Rows", f"rows in which {COLLAPSED}; they count as measured"),
    Column("Unsup.", "Rows", "rows that the method does not support (declared before running); left out of means and ranks"),
    Column("All", "Rows", "one row = one method, data set, architecture, sparsity and seed"),
    Column("Blocks", "Measured on", "number of blocks in the mean; one block = one data set with one architecture"),
    Column("Seeds", "Measured on", "one seed = one initial network and order of batches, the same for every method"),
    Column("Epochs", first="ascending", hint="mean epochs of training and fine-tuning"),
)  # fmt: skip


def boards(board: pd.DataFrame, rows: pd.DataFrame) -> list[Board]:
    """The tables of each track and tuning, in the order of leaderboard.csv."""
    table = board.reindex(columns=list(COLUMNS))
    measured, resolutions = _by_block(rows), leaderboard.resolutions(rows)
    found = []
    for (track, tuning), part in table.groupby(["track", "tuning"], sort=False):
        order = {str(name): place for place, name in enumerate(part["method"])}
        own = measured[(measured["track"] == track) & (measured["tuning"] == tuning)]
        resolution = resolutions.get((str(track), str(tuning)))
        found.append(Board(str(track), str(tuning), _board(part), resolution.meaning if resolution else "", _blocks(own, order)))
    return found


def _board(part: pd.DataFrame) -> Table:
    area = part[["relative_area", "relative_area_low", "relative_area_high"]].astype(float)
    columns, scale = list(BOARD_COLUMNS), None
    if area.notna().any(axis=None):
        low, high, decimals = axis(_lowest(area), float(np.nanmax(area)))
        scale = (low, high)
        dense = (1 - low) / (high - low) if low < 1 < high else None
        column = columns[2]
        ends = f"{low:.{decimals}f}", f"{high:.{decimals}f}"
        columns[2] = Column(column.title, column.group, column.hint, kind=column.kind, axis=ends, mark=dense)
    most = part["blocks"].max()
    return Table(columns, [_board_line(line, scale, most) for _, line in part.iterrows()], ordered=2)


def _lowest(area: pd.DataFrame) -> float:
    """Lower end of the axis: the lowest interval, unless a few methods far below would leave half of the axis to the others."""
    highest, lows = float(np.nanmax(area)), area.min(axis="columns").dropna()
    lowest, most = float(lows.min()), float(lows.quantile(OUTSIDE))
    return most if highest - most < (highest - lowest) / 2 else lowest


def _board_line(line: "pd.Series[Any]", scale: tuple[float, float] | None, most: Any) -> Line:
    versus = Cell(MISSING, kind="center")
    if not missing(line["wins"]):
        counts = " / ".join(f"{line[name]:.0f}" for name in ("wins", "ties", "losses"))
        versus = Cell(counts, exact(line["wins"] - line["losses"]), kind="center")
    name = words(line["method"])
    remark = "baseline" if name == BASELINE else ""
    rank = Cell(cells.ranks(line["rank_low"], line["rank_high"]), "" if missing(line["rank_low"]) else exact(line["rank_low"]), kind="rank")
    shown = [
        rank,
        text(name, "method"),
        _area(line, scale),
        number(line["relative_area_std"]),
        *(percent(line[f"accuracy_{at}"]) for at in (90, 95, 99)),
        percent(line["sparsity_within_one_point"]),
        number(line["nll_95"], "{:.2f}"),
        number(line["ece_95"]),
        number(line["scoring_epochs"], "{:.2f}"),
        versus,
        *(number(line[name], "{:.0f}", kind="alarm" if line[name] else "number") for name in ("failed", "collapsed", "unsupported")),
        *(number(line[name], "{:.0f}") for name in ("rows", "blocks", "seeds")),
        number(line["epochs"], "{:.3g}"),
    ]
    return Line(name, shown, remark=remark, note=cells.lacking(line["blocks"], most))


def _area(line: "pd.Series[Any]", scale: tuple[float, float] | None) -> Cell:
    mean, low, high = (line[name] for name in ("relative_area", "relative_area_low", "relative_area_high"))
    if missing(mean) or scale is None:
        return Cell(MISSING, kind="area")
    known = not (missing(low) or missing(high))
    note = cells.spread(mean, low, high)
    hint = f"95 % interval {exact(low)} to {exact(high)}" if known else ""
    first, middle, last = (
        max(0.0, (float(v) - scale[0]) / (scale[1] - scale[0])) for v in ((low, mean, high) if known else (mean, mean, mean))
    )
    return number(mean, kind="area", note=note, hint=hint, bar=Bar(first, middle, last, off=bool(mean < scale[0])))


def _by_block(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, its 95 % interval cut to [0, 1], and remarks for each track, tuning, method, block and sparsity."""
    ran = rows[(rows["track"] != "") & (rows["status"] != "unsupported")]
    failed = ran["status"] == "failed"
    ran = ran.assign(value=tracks.accuracy, failed=failed, collapsed=ran["status"] == "collapsed")
    groups = ran.groupby(["track", "tuning", "method", *BLOCK, "sparsity"], sort=False)
    table = groups.agg(
        mean=("value", "mean"), std=("value", "std"), n=("value", "count"), dense=("dense_accuracy", "mean"),
        failed=("failed", "sum"), collapsed=("collapsed", "sum"),
    ).reset_index()  # fmt: skip
    half = statistics.half_width(table["std"], table["n"])
    return table.assign(low=(table["mean"] - half).clip(lower=0), high=(table["mean"] + half).clip(upper=1))


def _blocks(table: pd.DataFrame, order: dict[str, int]) -> Table:
    if table.empty:
        return Table([], [])
    sparsities = sorted(table["sparsity"].unique())
    kinds = [name for name in BLOCK if name in ("dataset", "architecture") or table[name].nunique() > 1]
    titles = {"dataset": "Data set", "architecture": "Architecture", "granularity": "Granularity", "match": "Match"}
    columns = [
        Column("Method", first="ascending", kind="text"),
        *(Column(titles[name], first="ascending", kind="text") for name in kinds),
        Column("Dense", hint="mean accuracy (%) of the dense networks that the method pruned"),
        *(Column(f"{100 * s:.4g} %", "Accuracy, % at sparsity") for s in sparsities),
    ]
    lines = []
    for key, part in table.groupby(["method", *BLOCK], sort=False):
        at = {line.sparsity: line for line in part.itertuples()}
        named = dict(zip(["method", *BLOCK], key, strict=True))
        shown = [text(named["method"], "method"), *(text(named[name]) for name in kinds), percent(part["dense"].mean())]
        shown += [_point(at.get(s)) for s in sparsities]
        lines.append(Line(str(named["method"]), shown, str(named["dataset"]), str(named["architecture"])))
    lines.sort(key=lambda line: (line.dataset, line.architecture, order.get(line.method, len(order))))
    return Table(columns, lines)


def _point(found: Any) -> Cell:
    """Mean accuracy at one sparsity; † if a row failed, ‡ if one collapsed."""
    if found is None or missing(found.mean):
        return Cell(MISSING)
    remarks = [(found.failed, "failed", "†"), (found.collapsed, "collapsed", "‡")]
    said = [f"{count} of {found.n} {what}" for count, what, _ in remarks if count]
    marks = "".join(mark for count, _, mark in remarks if count)
    note = cells.spread(100 * found.mean, 100 * found.low, 100 * found.high, "{:.1f}") + marks
    return percent(found.mean, note=note, hint=", ".join(said))


GAIN_COLUMNS = (
    ("area_default", "Defaults", "Area", "area on test data with default hyperparameters, mean over seeds"),
    ("area_tuned", "Tuned", "Area", "the same with tuned hyperparameters"),
    ("gain", "Gain", "Area", "tuned - defaults (positive: tuning helped)"),
    ("validation_default", "Defaults", "Validation", "mean accuracy of the pruned networks on validation data, which the search compares"),
    ("validation_tuned", "Tuned", "Validation", "the same with the selected hyperparameters"),
    ("trials", "Trials", "Cost", "number of trials of the search"),
    ("tuning_epochs", "Epochs", "Cost", "training epochs used by this search (without the networks shared by all methods)"),
)


def gains(table: pd.DataFrame) -> Table | None:
    """Cost and gain of tuning; None if nothing was tuned."""
    table = table.reindex(columns=list(tuning_gain.COLUMNS))
    if table.empty:
        return None
    form = {"trials": "{:.0f}", "tuning_epochs": "{:.4g}", "gain": "{:+.3f}"}
    kinds = ["dataset", "architecture", *(name for name in ("granularity", "match") if table[name].nunique() > 1)]
    titles = {"dataset": "Data set", "architecture": "Architecture", "granularity": "Granularity", "match": "Match"}
    columns = [
        Column("Method", first="ascending", kind="text"),
        *(Column(titles[name], first="ascending", kind="text") for name in kinds),
        Column("Fine-tuned,\nepochs", first="ascending"),
        *(Column(title, group, hint) for _, title, group, hint in GAIN_COLUMNS),
        Column("Seeds"),
        Column("Selected", first="ascending", kind="text"),
    ]
    lines = []
    for _, line in table.iterrows():
        shown = [text(line["method"], "method"), *(text(line[name]) for name in kinds), number(line["finetune_epochs"], "{:.0f}")]
        for name, *_ in GAIN_COLUMNS:
            sign = ("gain" if line[name] > 0 else "loss" if line[name] < 0 else "number") if name == "gain" else "number"
            said = number(line[name], form.get(name, "{:.3f}"), kind=sign)
            shown.append(dataclasses.replace(said, text=said.text.replace("-", "−")))
        shown += [number(line["seeds"], "{:.0f}"), text(line["hyperparameters"], "json")]
        lines.append(Line(words(line["method"]), shown, words(line["dataset"]), words(line["architecture"])))
    return Table(columns, lines)


def troubles(rows: pd.DataFrame) -> Table | None:
    """Failed and unsupported rows with their errors; None if there are none."""
    bad = rows[rows["status"].isin(["failed", "unsupported"])]
    if bad.empty:
        return None
    keys = ["method", "dataset", "architecture", "status", "error"]
    columns = [*(Column(t, first="ascending", kind="text") for t in ("Method", "Data set", "Architecture", "Status")), Column("Rows")]
    columns.append(Column("Error", first="ascending", kind="text"))
    lines = []
    for key, part in bad.groupby(keys, sort=False):
        method, dataset, architecture, status, error = map(str, key)
        said = [text(method, "method"), text(dataset), text(architecture), text(status), number(len(part), "{:.0f}"), text(error, "prose")]
        lines.append(Line(method, said, dataset, architecture))
    return Table(columns, lines)
