"""Results of each block: blocks.csv, and its table on the page. One block is one data set with one architecture."""

import math
from collections.abc import Collection
from typing import Any

import pandas as pd

from bench.publishing.page import cells
from bench.publishing.page.cells import MISSING, Cell, Column, Line, Table, missing, number, percent, text
from bench.ranking import over_blocks, statistics, tracks
from bench.ranking.columns import BoardColumn, as_percent
from bench.ranking.tracks import BLOCK
from bench.spec.row import COLLAPSED, DECLARED

FILE = "blocks.csv"
KINDS = [*BLOCK, "granularity", "match"]
MANY = 6  # sparsities from which on an interval stands below its mean
_KEY = ["track", "tuning", "method", *KINDS]


def _share(name: str, meaning: str) -> BoardColumn:
    return BoardColumn(name, "number", meaning, "fraction", least=0, most=1)


def _count(name: str, meaning: str) -> BoardColumn:
    return BoardColumn(name, "integer", meaning, "rows", least=0, required=True)


COLUMNS = (
    BoardColumn("track", "string", "rows that may be compared", required=True),
    BoardColumn("tuning", "string", DECLARED["tuning"].meaning, required=True),
    BoardColumn("method", "string", "method; `(shuffle)` and `(reinit)` mark controls", required=True),
    *(BoardColumn(name, "string", DECLARED[name].meaning, required=True) for name in KINDS),
    BoardColumn("sparsity", "number", DECLARED["sparsity"].meaning, "fraction", least=0, most=1, required=True),
    _share("accuracy", "mean test accuracy over seeds; failed rows count as 0"),
    _share("accuracy_low", "lower end of its 95 % confidence interval"),
    _share("accuracy_high", "upper end of its 95 % confidence interval"),
    _share("dense_accuracy", "mean test accuracy of the dense networks that the method pruned"),
    BoardColumn("relative_area", "number", "area of the block, over all its sparsities, divided by the dense accuracy", least=0),
    _count("seeds", "rows with an accuracy"),
    _count("failed", "rows that ended in an error"),
    _count("collapsed", f"rows in which {COLLAPSED}"),
)  # fmt: skip


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of blocks.csv, one line per track, tuning, method, block and sparsity.

    Args:
        rows: all rows with the columns of `tracks.frame`.
    """
    ran = rows[(rows["track"] != "") & (rows["status"] != "unsupported")]
    ran = ran.assign(value=tracks.accuracy, failed=ran["status"] == "failed", collapsed=ran["status"] == "collapsed")
    if ran.empty:
        return pd.DataFrame(columns=[column.name for column in COLUMNS])
    groups = ran.groupby([*_KEY, "sparsity"], sort=False)
    table = groups.agg(
        accuracy=("value", "mean"), std=("value", "std"), seeds=("value", "count"), dense_accuracy=("dense_accuracy", "mean"),
        failed=("failed", "sum"), collapsed=("collapsed", "sum"),
    ).reset_index()  # fmt: skip
    half = statistics.half_width(table["std"], table["seeds"])
    table["accuracy_low"] = (table["accuracy"] - half).clip(lower=0)
    table["accuracy_high"] = (table["accuracy"] + half).clip(upper=1)
    joined = table.merge(_areas(rows), how="left", on=["track", "tuning", "method", *BLOCK])
    return joined[[column.name for column in COLUMNS]]


def _areas(rows: pd.DataFrame) -> pd.DataFrame:
    """The relative area of each track, tuning, method and block: mean over seeds."""
    parts = [
        tracks.areas(curve).groupby(level=BLOCK).mean().rename("relative_area").reset_index().assign(
            track=track.name, tuning=track.tuning, method=method
        )
        for track in tracks.split(rows)
        for method, curve in track.curves.items()
        if len(curve)
    ]  # fmt: skip
    empty = pd.DataFrame(columns=["track", "tuning", "method", *BLOCK, "relative_area"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def critical(part: pd.DataFrame, unranked: Collection[str]) -> str:
    """Friedman's test and the critical difference in words; '' for too few blocks.

    Args:
        part: the lines of one track and tuning, as `measured` makes them.
        unranked: methods that have no rank.
    """
    once = part[~part["method"].isin(unranked)].drop_duplicates(["method", *BLOCK])
    found = over_blocks.critical_difference(once.pivot(index=BLOCK, columns="method", values="relative_area").astype(float))
    if found is None:
        return ""
    blocks, methods = len(once[BLOCK].drop_duplicates()), len(found.mean_ranks)
    said = f"Friedman's test of {methods} methods over {blocks} blocks: p = {found.p:.2g}"
    if found.p < statistics.ALPHA:
        said += (
            ", so the methods differ on data sets and architectures of this kind. Two methods differ significantly if their mean ranks"
            f" differ by more than {found.distance:.2f} (Nemenyi, 95 %)."
        )
    else:
        said += ", so no difference between any two methods is shown on data sets and architectures of this kind."
    return said + " Methods that lack a block are left out."


def table(part: pd.DataFrame) -> Table:
    """The table of one track and tuning, each block sorted by its own area. `part`: lines of `measured`."""
    if part.empty:
        return Table([], [])
    sparsities = sorted(part["sparsity"].unique())
    kinds = [name for name in KINDS if name in BLOCK or part[name].nunique() > 1]
    columns = [
        Column("Method", first="ascending", kind="text", key="method"),
        *(Column(name.capitalize().replace("Dataset", "Data set"), first="ascending", kind="text", key=name) for name in kinds),
        Column("Dense", hint="mean accuracy (%) of the dense networks that the method pruned", mean="percent"),
        Column("Area", hint="area of this block, divided by the dense accuracy", mean="area"),
        *(Column(f"{as_percent(s)} %", "Accuracy, % at sparsity", label=f"At {as_percent(s)} %", mean="percent") for s in sparsities),
    ]
    lines = []
    for key, own in part.groupby(["method", *KINDS], sort=False):
        named = dict(zip(["method", *KINDS], map(str, key), strict=True))
        at, area = {line.sparsity: line for line in own.itertuples()}, own["relative_area"].iloc[0]
        shown = [
            text(named["method"], "method"),
            *(text(named[name]) for name in kinds),
            percent(own["dense_accuracy"].mean()),
            number(area),
        ]
        shown += [_point(at.get(s)) for s in sparsities]
        order = math.inf if missing(area) else -round(float(area), 10)
        lines.append((named["dataset"], named["architecture"], order, named["method"], shown))
    lines.sort(key=lambda line: line[:4])
    made = [Line(method, shown, dataset, architecture) for dataset, architecture, _, method, shown in lines]
    return Table(columns, made, stacked=len(sparsities) > MANY)


def _point(found: Any) -> Cell:
    """Mean accuracy at one sparsity; † if a row failed, ‡ if one collapsed."""
    if found is None or missing(found.accuracy):
        return Cell(MISSING)
    remarks = [(found.failed, "failed", "†"), (found.collapsed, "collapsed", "‡")]
    said = [f"{count} of {found.seeds} {what}" for count, what, _ in remarks if count]
    marks = "".join(mark for count, _, mark in remarks if count)
    note = cells.spread(100 * found.accuracy, 100 * found.accuracy_low, 100 * found.accuracy_high, "{:.1f}") + marks
    return percent(found.accuracy, note=note, hint=", ".join(said))
