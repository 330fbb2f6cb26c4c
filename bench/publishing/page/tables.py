"""The tables of a leaderboard's page as plain values: leaderboard and blocks of each track, cost and gain of tuning, failures."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.publishing.contributions import Contribution
from bench.publishing.page import blocks, board_columns, cells, references
from bench.publishing.page.board_columns import AREA, Scale, Shown
from bench.publishing.page.cells import Column, Line, Table, axis, number, text, words
from bench.publishing.verified import Verified
from bench.ranking import leaderboard, tracks, tuning_gain
from bench.ranking.columns import BASELINE, CALIBRATION_AT, COLUMNS
from bench.ranking.statistics import EXACT
from bench.ranking.tracks import BLOCK
from bench.ranking.tuning_gain import SHOWN as SHOWN_GAINS
from bench.spec.row import KEY

MOST_CELLS = 40_000  # accuracies of blocks on the page, about 3 MB; more are read from blocks.csv when they are asked for
MOST_LINES = 2000  # of other tables
EQUAL = ("Failed", "Coll.", "Unsup.", "All", "Verified", "Blocks", "Seeds", "Epochs", "Training\nFLOPs")  # not shown if equal in all lines
OUTSIDE = 0.2  # largest share of methods below the axis; an arrow marks them


@dataclass(frozen=True)
class Board:
    """The tables of one track and tuning. `meaning`: the note below the leaderboard. `critical`: Friedman's test in words, if there are
    enough blocks. `blocks`: the table of blocks; None if it is too large for the page.
    """

    track: str
    tuning: str
    table: Table
    meaning: str
    critical: str
    blocks: Table | None


def boards(
    board: pd.DataFrame,
    rows: pd.DataFrame,
    measured: pd.DataFrame | None = None,
    verified: Collection[Verified] = (),
    resolutions: Mapping[tuple[str, str], leaderboard.Resolution] | None = None,
    contributed: Iterable[Contribution] = (),
) -> list[Board]:
    """The tables of each track and tuning, in the order of leaderboard.csv.

    Args:
        board: leaderboard.csv as a table.
        rows: all rows, with track names.
        measured: blocks.csv as a table; None: it is computed.
        verified: records of rows that were computed again.
        resolutions: those of `leaderboard.ranked`; None: they are computed.
        contributed: who has contributed which rows.
    """
    measured = blocks.measured(rows) if measured is None else measured
    table = _with_more(board.reindex(columns=list(dict.fromkeys([*COLUMNS, *board.columns]))), rows, measured, verified)
    shown, linked = board_columns.shown(table), _links(rows)
    resolutions = leaderboard.resolutions(rows) if resolutions is None else resolutions
    by = {(tracks.label(line.method, line.ablation), line.tuning): line.contributor for line in contributed}
    fits = len(measured) <= MOST_CELLS
    found = []
    for (track, tuning), part in table.groupby(["track", "tuning"], sort=False):
        own = measured[(measured["track"] == track) & (measured["tuning"] == tuning)]
        unranked = tracks.unranked(rows[(rows["track"] == track) & (rows["tuning"] == tuning)], rows)
        resolution = resolutions.get((str(track), str(tuning)))
        meaning = resolution.meaning if resolution else ""
        by_block = blocks.table(own) if fits else None
        marked = {name: {**linked.get(name, {}), "contributor": by.get((name, tuning), "")} for name in part["method"]}
        found.append(Board(str(track), str(tuning), _board(part, shown, marked), meaning, blocks.critical(own, unranked), by_block))
    return found


def _links(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Method -> its links, as fields of `Line`. Contributors are added for each tuning."""
    found = {}
    for line in rows.drop_duplicates("method").itertuples():
        pages = [page for page in references.docs(line.plain, line.criterion, line.training) if "/trainings/" not in page.url]
        found[line.method] = {
            "papers": tuple(references.papers(line.plain, line.criterion, line.training)), "docs": pages[0].url if pages else "",
        }  # fmt: skip
    return found


def _with_more(board: pd.DataFrame, rows: pd.DataFrame, measured: pd.DataFrame, verified: Collection[Verified]) -> pd.DataFrame:
    """The leaderboard with columns that leaderboard.csv does not have: the own dense networks, FLOPs that are left, verified rows."""
    cell = ["track", "tuning", "method"]
    dense = measured.drop_duplicates([*cell, *BLOCK]).groupby(cell)["dense_accuracy"].mean()
    at = rows[(rows["track"] != "") & np.isclose(rows["sparsity"].astype(float), CALIBRATION_AT, rtol=0, atol=EXACT)]
    left = at.assign(left=at["flops_kept"].astype(float) / at["flops"].astype(float)).groupby([*cell, *BLOCK])["left"].mean()
    records = pd.DataFrame([one.key for one in verified], columns=list(KEY), dtype=object)
    counted: Counter[tuple[str, ...]] = Counter()
    if len(records):
        keys = rows[list(KEY)].astype(dict.fromkeys(KEY, str))
        again = rows[pd.MultiIndex.from_frame(keys.assign(method=rows["plain"])).isin(pd.MultiIndex.from_frame(records))]
        counted.update(again[cell].itertuples(index=False, name=None))
    places = pd.MultiIndex.from_frame(board[cell])
    return board.assign(**{
        board_columns.DENSE: dense.reindex(places).to_numpy(), board_columns.FLOPS: left.groupby(cell).mean().reindex(places).to_numpy(),
        board_columns.VERIFIED: [counted[place] for place in places],
    })  # fmt: skip


def _board(part: pd.DataFrame, every: Sequence[Shown], linked: dict[str, dict[str, Any]]) -> Table:
    area = part[["relative_area", "relative_area_low", "relative_area_high"]].astype(float)
    scale, axis_of = None, dict[str, Any]()
    if area.notna().any(axis=None):
        low, high, decimals = axis(_lowest(area), float(np.nanmax(area)))
        scale = (low, high)
        dense = (1 - low) / (high - low) if low < 1 < high else None
        axis_of = {"axis": (f"{low:.{decimals}f}", f"{high:.{decimals}f}"), "mark": dense}
    most = part["blocks"].max()
    lines = [_board_line(line, every, scale, most, linked) for _, line in part.iterrows()]
    same = [k for k, one in enumerate(every) if one.column.title in EQUAL and len({line.cells[k].text for line in lines}) == 1]
    kept = [k for k in range(len(every)) if k not in same]
    columns = [dataclasses.replace(one.column, **axis_of) if one is AREA else one.column for one in every]
    return Table(
        [columns[k] for k in kept],
        [dataclasses.replace(line, cells=[line.cells[k] for k in kept]) for line in lines],
        ordered=kept.index(every.index(AREA)),
        same=tuple((columns[k].short, lines[0].cells[k].text) for k in same),
    )


def _lowest(area: pd.DataFrame) -> float:
    """Lower end of the axis: the lowest interval, unless a few methods far below would leave half of the axis to the others."""
    highest, lows = float(np.nanmax(area)), area.min(axis="columns").dropna()
    lowest, most = float(lows.min()), float(lows.quantile(OUTSIDE))
    return most if highest - most < (highest - lowest) / 2 else lowest


def _board_line(line: "pd.Series[Any]", every: Sequence[Shown], scale: Scale, most: Any, linked: dict[str, dict[str, Any]]) -> Line:
    name = words(line["method"])
    remark = "baseline" if name == BASELINE else ""
    shown = [one.cell(line, scale) for one in every]
    return Line(name, shown, remark=remark, note=cells.lacking(line["blocks"], most), **linked.get(name, {}))


def cut(table: Table, most: int = MOST_LINES) -> Table:
    """The first lines of a table that may have very many."""
    return dataclasses.replace(table, lines=table.lines[:most], left_out=max(0, len(table.lines) - most))


def gains(table: pd.DataFrame) -> Table | None:
    """Cost and gain of tuning; None if nothing was tuned."""
    table = table.reindex(columns=list(tuning_gain.COLUMNS))
    if table.empty:
        return None
    kinds = ["dataset", "architecture", *(name for name in ("granularity", "match") if table[name].nunique() > 1)]
    titles = {"dataset": "Data set", "architecture": "Architecture", "granularity": "Granularity", "match": "Match"}
    columns = [
        Column("Method", first="ascending", kind="text", key="method"),
        *(Column(titles[name], first="ascending", kind="text", key=name) for name in kinds),
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
    return cut(Table(columns, lines))


def key_column(name: str) -> Column:
    """A column of texts that a filter may belong to."""
    title = name.capitalize().replace("Dataset", "Data set").replace("Finetune", "Fine-tuning").replace("_", " ")
    return Column(title, first="ascending", kind="text", key=name)


def troubles(rows: pd.DataFrame) -> Table | None:
    """Failed and unsupported rows with their errors; None if there are none."""
    bad = rows[rows["status"].isin(["failed", "unsupported"])]
    if bad.empty:
        return None
    keys = ["method", "dataset", "architecture", "status", "error"]
    columns = [*map(key_column, ("method", "dataset", "architecture", "status")), Column("Rows")]
    columns.append(Column("Error", first="ascending", kind="text"))
    lines = []
    for key, part in bad.groupby(keys, sort=False):
        method, dataset, architecture, status, error = map(str, key)
        said = [text(method, "method"), text(dataset), text(architecture), text(status), number(len(part), "{:.0f}"), text(error, "prose")]
        lines.append(Line(method, said, dataset, architecture))
    return cut(Table(columns, lines))
