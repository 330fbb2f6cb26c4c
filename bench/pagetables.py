"""The tables of a leaderboard's page as plain values: each track's board and blocks, what tuning gained, what went wrong."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench import leaderboard, statistics, tuned
from bench.cells import MISSING, Bar, Cell, Column, Line, Table, axis, exact, missing, number, percent, text, words

OUTSIDE = 0.2  # the share of methods that the axis may leave out, with an arrow
BLOCK = ["dataset", "architecture", "granularity", "match"]


@dataclass(frozen=True)
class Board:
    """All that is shown of one track and tuning."""

    track: str
    tuning: str
    table: Table
    meaning: str
    blocks: Table = field(default_factory=lambda: Table([], []))


BOARD_COLUMNS = (
    Column("Rank", first="ascending", hint="1 + the number of methods that are told apart as better"),
    Column("Method", first="ascending", kind="text"),
    Column("Area / dense", kind="area", hint="area under the accuracy-sparsity curve over dense accuracy, and its 95 % interval"),
    Column("Std", first="ascending", hint="standard deviation of the area over seeds, pooled within blocks"),
    Column("90 %", "Accuracy, % at sparsity", "mean test accuracy at 90 % sparsity"),
    Column("95 %", "Accuracy, % at sparsity", "mean test accuracy at 95 % sparsity"),
    Column("99 %", "Accuracy, % at sparsity", "mean test accuracy at 99 % sparsity"),
    Column("Within\n1 point", hint="largest sparsity, %, at which accuracy stays within one point of dense, interpolated"),
    Column("NLL", "At 95 %", "negative log-likelihood of the test data, in nats: less is better", first="ascending"),
    Column("ECE", "At 95 %", "expected calibration error: less is better", first="ascending"),
    Column("Scoring,\nepochs", first="ascending", hint="median cost of scoring, in epochs of training"),
    Column("W / T / L", f"Against {leaderboard.BASELINE}", "wins, ties, losses of area, over blocks and seeds", kind="center"),
    Column("Failed", "Rows", "rows that ended in an error; counted as accuracy 0", first="descending"),
    Column("Collapsed", "Rows", "rows with a layer that lost every weight; counted as measured"),
    Column("Unsup.", "Rows", "rows that the method declined beforehand; left out of means and ranks"),
    Column("All", "Rows", "a row is a sparsity of a seed of a block"),
    Column("Blocks", "Measured on", "data sets with an architecture"),
    Column("Seeds", "Measured on", "each with an initial network and batches of its own, the same for every method"),
    Column("Epochs", first="ascending", hint="epochs of training and fine-tuning"),
)  # fmt: skip


def boards(board: pd.DataFrame, rows: pd.DataFrame) -> list[Board]:
    """One for each track and tuning, in the order of leaderboard.csv."""
    table = board.reindex(columns=list(leaderboard.COLUMNS))
    measured = _by_block(rows)
    found = []
    for (track, tuning), part in table.groupby(["track", "tuning"], sort=False):
        order = {str(name): place for place, name in enumerate(part["method"])}
        own = measured[(measured["track"] == track) & (measured["tuning"] == tuning)]
        found.append(Board(str(track), str(tuning), _board(part), meaning(part[part["rank"].notna()]), _blocks(own, order)))
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
    falling = area["relative_area"].dropna().is_monotonic_decreasing  # lines come by area, and nearly always so relative to dense too
    return Table(columns, [_board_line(line, scale) for _, line in part.iterrows()], ordered=2 if falling else None)


def _lowest(area: pd.DataFrame) -> float:
    """Where the axis begins: at the lowest interval, unless a few methods far below would squeeze the others into half of it."""
    highest, lows = float(np.nanmax(area)), area.min(axis="columns").dropna()
    lowest, most = float(lows.min()), float(lows.quantile(OUTSIDE))
    return most if highest - most < (highest - lowest) / 2 else lowest


def _board_line(line: "pd.Series[Any]", scale: tuple[float, float] | None) -> Line:
    versus = Cell(MISSING, kind="center")
    if not missing(line["wins"]):
        counts = " / ".join(f"{line[name]:.0f}" for name in ("wins", "ties", "losses"))
        versus = Cell(counts, exact(line["wins"] - line["losses"]), kind="center")
    name = words(line["method"])
    remark = "baseline" if name == leaderboard.BASELINE else ""
    cells = [
        number(line["rank"], "{:.0f}", kind="rank"),
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
    return Line(name, cells, remark=remark)


def _area(line: "pd.Series[Any]", scale: tuple[float, float] | None) -> Cell:
    mean, low, high = (line[name] for name in ("relative_area", "relative_area_low", "relative_area_high"))
    if missing(mean) or scale is None:
        return Cell(MISSING, kind="area")
    known = not (missing(low) or missing(high))
    note = f"±{high - mean:.3f}" if known else ""
    hint = f"95 % interval {exact(low)} to {exact(high)}" if known else ""
    first, middle, last = (
        max(0.0, (float(v) - scale[0]) / (scale[1] - scale[0])) for v in ((low, mean, high) if known else (mean, mean, mean))
    )
    return number(mean, kind="area", note=note, hint=hint, bar=Bar(first, middle, last, off=bool(mean < scale[0])))


def meaning(ranked: pd.DataFrame) -> str:
    """What the ranks of one board say, and how small a difference its seeds can show; '' where there is nothing to rank."""
    if len(ranked) < 2:
        return ""
    seeds, blocks = map(int, ranked[["seeds", "blocks"]].value_counts().index[0])  # of most methods: some fail, some decline a block
    if seeds < 2:
        return "One seed tells no two methods apart: lines are in the order of their areas, and all ranks are 1."
    gap = statistics.detectable(seeds, blocks, len(ranked))
    typical = float(ranked["relative_area_std"].astype(float).median())
    about = "" if math.isnan(typical) else f", about {gap * typical:.3f} of area at this table's median deviation"
    on = f"{seeds} seeds on {blocks} {'block' if blocks == 1 else 'blocks'}"
    return f"{on} show a difference of {gap:.1f} standard deviations over seeds with 80 % power among {len(ranked)} methods{about}."


def _by_block(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, half width of the 95 % interval and remarks for each track, tuning, method, block and sparsity."""
    ran = rows[(rows["track"] != "") & (rows["status"] != "unsupported")]
    failed = ran["status"] == "failed"
    ran = ran.assign(value=ran["accuracy"].astype(float).where(~failed, 0.0), failed=failed, collapsed=ran["status"] == "collapsed")
    groups = ran.groupby(["track", "tuning", "method", *BLOCK, "sparsity"], sort=False)
    table = groups.agg(
        mean=("value", "mean"), std=("value", "std"), n=("value", "count"), dense=("dense_accuracy", "mean"),
        failed=("failed", "sum"), collapsed=("collapsed", "sum"),
    ).reset_index()  # fmt: skip
    from scipy import stats  # a second, which only a page with rows has to wait for

    level = 1 - statistics.ALPHA / 2
    table["half"] = stats.t.ppf(level, (table["n"] - 1).clip(lower=1)) * table["std"] / np.sqrt(table["n"].clip(lower=1))
    return table


def _blocks(table: pd.DataFrame, order: dict[str, int]) -> Table:
    if table.empty:
        return Table([], [])
    sparsities = sorted(table["sparsity"].unique())
    kinds = [name for name in BLOCK if name in ("dataset", "architecture") or table[name].nunique() > 1]
    titles = {"dataset": "Data set", "architecture": "Architecture", "granularity": "Granularity", "match": "Match"}
    columns = [
        Column("Method", first="ascending", kind="text"),
        *(Column(titles[name], first="ascending", kind="text") for name in kinds),
        Column("Dense", hint="mean accuracy of the method's own dense networks, %"),
        *(Column(f"{100 * s:.4g} %", "Accuracy, % at sparsity") for s in sparsities),
    ]
    lines = []
    for key, part in table.groupby(["method", *BLOCK], sort=False):
        at = {line.sparsity: line for line in part.itertuples()}
        named = dict(zip(["method", *BLOCK], key, strict=True))
        cells = [text(named["method"], "method"), *(text(named[name]) for name in kinds), percent(part["dense"].mean())]
        cells += [_point(at.get(s)) for s in sparsities]
        lines.append(Line(str(named["method"]), cells, str(named["dataset"]), str(named["architecture"])))
    lines.sort(key=lambda line: (line.dataset, line.architecture, order.get(line.method, len(order))))
    return Table(columns, lines)


def _point(found: Any) -> Cell:
    """Mean accuracy at one sparsity; † where a row failed, ‡ where a layer was emptied."""
    if found is None or missing(found.mean):
        return Cell(MISSING)
    remarks = [(found.failed, "failed", "†"), (found.collapsed, "collapsed", "‡")]
    said = [f"{count} of {found.n} {what}" for count, what, _ in remarks if count]
    marks = "".join(mark for count, _, mark in remarks if count)
    note = ("" if missing(found.half) else f"±{100 * found.half:.1f}") + marks
    return percent(found.mean, note=note, hint=", ".join(said))


GAIN_COLUMNS = (
    ("area_default", "Defaults", "Area", "mean over seeds of the area on test data, at the declared defaults"),
    ("area_tuned", "Tuned", "Area", "the same, tuned"),
    ("gain", "Gain", "Area", "tuned less defaults"),
    ("validation_default", "Defaults", "Validation", "what the search saw: mean pruned accuracy on validation data"),
    ("validation_tuned", "Tuned", "Validation", "the same, for what was chosen"),
    ("trials", "Trials", "Cost", "trials of the search"),
    ("tuning_epochs", "Epochs", "Cost", "epochs that the search trained, beside the pool that all methods share"),
)


def gains(table: pd.DataFrame) -> Table | None:
    """The cost of tuning beside its gain; None where nothing was tuned."""
    table = table.reindex(columns=list(tuned.COLUMNS))
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
        Column("Chosen", first="ascending", kind="text"),
    ]
    lines = []
    for _, line in table.iterrows():
        cells = [text(line["method"], "method"), *(text(line[name]) for name in kinds), number(line["finetune_epochs"], "{:.0f}")]
        for name, *_ in GAIN_COLUMNS:
            sign = ("gain" if line[name] > 0 else "loss" if line[name] < 0 else "number") if name == "gain" else "number"
            said = number(line[name], form.get(name, "{:.3f}"), kind=sign)
            cells.append(dataclasses.replace(said, text=said.text.replace("-", "−")))
        cells += [number(line["seeds"], "{:.0f}"), text(line["hyperparameters"], "json")]
        lines.append(Line(words(line["method"]), cells, words(line["dataset"]), words(line["architecture"])))
    return Table(columns, lines)


def troubles(rows: pd.DataFrame) -> Table | None:
    """Failed and declined rows with what they say; None where there are none."""
    bad = rows[rows["status"].isin(["failed", "unsupported"])]
    if bad.empty:
        return None
    keys = ["method", "dataset", "architecture", "status", "error"]
    columns = [*(Column(t, first="ascending", kind="text") for t in ("Method", "Data set", "Architecture", "Status")), Column("Rows")]
    columns.append(Column("What it says", first="ascending", kind="text"))
    lines = []
    for key, part in bad.groupby(keys, sort=False):
        method, dataset, architecture, status, error = map(str, key)
        said = [text(method, "method"), text(dataset), text(architecture), text(status), number(len(part), "{:.0f}"), text(error, "prose")]
        lines.append(Line(method, said, dataset, architecture))
    return Table(columns, lines)
