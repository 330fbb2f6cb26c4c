"""The tables of a leaderboard's page as plain values: leaderboard and blocks of each track, cost and gain of tuning, failures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench.publishing.page import board_columns, cells
from bench.publishing.page.board_columns import AREA, Scale, Shown
from bench.publishing.page.cells import MISSING, Cell, Column, Line, Table, axis, missing, number, percent, text, words
from bench.ranking import leaderboard, statistics, tracks, tuning_gain
from bench.ranking.columns import BASELINE, COLUMNS
from bench.ranking.tuning_gain import SHOWN as SHOWN_GAINS

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


def boards(board: pd.DataFrame, rows: pd.DataFrame) -> list[Board]:
    """The tables of each track and tuning, in the order of leaderboard.csv."""
    table = board.reindex(columns=list(dict.fromkeys([*COLUMNS, *board.columns])))
    shown = board_columns.shown(table)
    measured, resolutions = _by_block(rows), leaderboard.resolutions(rows)
    found = []
    for (track, tuning), part in table.groupby(["track", "tuning"], sort=False):
        order = {str(name): place for place, name in enumerate(part["method"])}
        own = measured[(measured["track"] == track) & (measured["tuning"] == tuning)]
        resolution = resolutions.get((str(track), str(tuning)))
        found.append(Board(str(track), str(tuning), _board(part, shown), resolution.meaning if resolution else "", _blocks(own, order)))
    return found


def _board(part: pd.DataFrame, every: Sequence[Shown]) -> Table:
    area = part[["relative_area", "relative_area_low", "relative_area_high"]].astype(float)
    columns, scale = [shown.column for shown in every], None
    place = every.index(AREA)
    if area.notna().any(axis=None):
        low, high, decimals = axis(_lowest(area), float(np.nanmax(area)))
        scale = (low, high)
        dense = (1 - low) / (high - low) if low < 1 < high else None
        columns[place] = dataclasses.replace(columns[place], axis=(f"{low:.{decimals}f}", f"{high:.{decimals}f}"), mark=dense)
    most = part["blocks"].max()
    return Table(columns, [_board_line(line, every, scale, most) for _, line in part.iterrows()], ordered=place)


def _lowest(area: pd.DataFrame) -> float:
    """Lower end of the axis: the lowest interval, unless a few methods far below would leave half of the axis to the others."""
    highest, lows = float(np.nanmax(area)), area.min(axis="columns").dropna()
    lowest, most = float(lows.min()), float(lows.quantile(OUTSIDE))
    return most if highest - most < (highest - lowest) / 2 else lowest


def _board_line(line: "pd.Series[Any]", every: Sequence[Shown], scale: Scale, most: Any) -> Line:
    name = words(line["method"])
    remark = "baseline" if name == BASELINE else ""
    return Line(name, [shown.cell(line, scale) for shown in every], remark=remark, note=cells.lacking(line["blocks"], most))


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


def gains(table: pd.DataFrame) -> Table | None:
    """Cost and gain of tuning; None if nothing was tuned."""
    table = table.reindex(columns=list(tuning_gain.COLUMNS))
    if table.empty:
        return None
    kinds = ["dataset", "architecture", *(name for name in ("granularity", "match") if table[name].nunique() > 1)]
    titles = {"dataset": "Data set", "architecture": "Architecture", "granularity": "Granularity", "match": "Match"}
    columns = [
        Column("Method", first="ascending", kind="text"),
        *(Column(titles[name], first="ascending", kind="text") for name in kinds),
        Column("Fine-tuned,\nepochs", first="ascending"),
        *(Column(column.title, column.group, column.meaning) for column in SHOWN_GAINS),
        Column("Seeds"),
        Column("Selected", first="ascending", kind="text"),
    ]
    lines = []
    for _, line in table.iterrows():
        shown = [text(line["method"], "method"), *(text(line[name]) for name in kinds), number(line["finetune_epochs"], "{:.0f}")]
        for column in SHOWN_GAINS:
            value = line[column.name]
            sign = ("gain" if value > 0 else "loss" if value < 0 else "number") if column.name == "gain" else "number"
            said = number(value, column.format, kind=sign)
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
