"""Diagrams with one line per method: ranks, areas with intervals, cost of scoring."""

import io
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from bench.publishing.page import cells
from bench.ranking import over_blocks, tracks
from bench.ranking.tracks import BLOCK

PAD = 0.12  # inches at the sides: text is slightly wider in a PNG than in an SVG
TICKS = 16  # a longer axis of ranks has a number at every second tick: there is no room for more
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


class Picture(Figure):
    """A figure that a notebook shows, though pyplot has not made it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def ranks(title: str, board: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """A critical-difference diagram if there are at least ten blocks, else areas with intervals, best on top.

    Args:
        title: the track.
        board: its lines of the leaderboard.
        rows: its rows and those of the dense networks, without ablations, as made by `tracks.frame`.
    """
    (track,) = tracks.split(rows)
    areas = pd.DataFrame({m: tracks.areas(c).groupby(level=BLOCK).mean() for m, c in track.curves.items() if m not in track.unranked})
    found = over_blocks.critical_difference(areas)
    return _critical(title, found) if found is not None else _intervals(title, board)


def _intervals(title: str, board: pd.DataFrame) -> Figure:
    lines = board[board["relative_area"].notna()]
    figure = Picture(figsize=(7.6, 0.26 * len(lines) + 1.2), layout=ConstrainedLayoutEngine(w_pad=PAD))
    axes = figure.subplots()
    none = bool(lines["rank"].isna().all())
    for y, line in enumerate(lines.itertuples()):
        ranked = none or not pd.isna(line.rank)
        colour = "#0072b2" if ranked else "#8c8c8c"
        if not pd.isna(line.relative_area_low):
            axes.plot([line.relative_area_low, line.relative_area_high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(line.relative_area, y, "o", color=colour, markerfacecolor=colour if ranked else "white")
    axes.set_yticks(range(len(lines)), [_name(line, board["blocks"].max(), ranks=not none) for line in lines.itertuples()])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("area under the accuracy-sparsity curve / dense accuracy, 95 % interval over seeds")
    _title(figure, f"{title}: area (no ranks)" if none else f"{title}: area and range of ranks")
    return figure


def _name(line: Any, most: int, *, ranks: bool) -> str:
    """A method's label: its name, its number of blocks if some are missing, and its range of ranks."""
    lacking = cells.lacking(line.blocks, most)
    name = f"{line.method} ({lacking})" if lacking else str(line.method)
    return f"{name}   {cells.ranks(line.rank_low, line.rank_high)}" if ranks else name


def _critical(title: str, found: over_blocks.CriticalDifference) -> Figure:
    """Mean ranks on a line, best at the left; a bar joins methods that differ by less than the critical difference."""
    ranks = found.mean_ranks
    half = math.ceil(len(ranks) / 2)
    groups = _groups(ranks.to_numpy(float), found.distance)
    figure = Picture(figsize=(8.0, 1.5 + 0.24 * half + 0.12 * len(groups)), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    last, below = len(ranks), 0.35 + 0.3 * len(groups)
    margin = last * max(0.45, 0.023 * max(len(str(method)) for method in ranks.index))  # for the names
    axes.set_xlim(1 - margin, last + margin)
    axes.plot([1, last], [0, 0], color="black", linewidth=1.0)
    for tick in range(1, last + 1):
        axes.plot([tick, tick], [0, 0.12], color="black", linewidth=1.0)
        if last <= TICKS or tick % 2 == 1:
            axes.text(tick, 0.22, str(tick), ha="center", va="bottom", fontsize=8)
    for k, (method, rank) in enumerate(ranks.items()):
        left = k < half
        y = -below - 0.55 * (k if left else last - 1 - k)
        end = 0.7 if left else last + 0.3
        axes.plot([rank, rank, end], [0, y, y], color="#555555", linewidth=0.8)
        text = f"{method}  {rank:.2f}" if left else f"{rank:.2f}  {method}"
        axes.text(end + (-0.1 if left else 0.1), y, text, ha="right" if left else "left", va="center")
    for k, (first, second) in enumerate(groups):
        y = -0.2 - 0.3 * k
        axes.plot([first - 0.04, second + 0.04], [y, y], color="#d55e00", linewidth=3.0, solid_capstyle="butt")
    axes.plot([1, 1 + found.distance], [1.0, 1.0], color="black", linewidth=1.6)
    axes.text(1, 1.12, f"critical difference {found.distance:.2f}", ha="left", va="bottom", fontsize=8)
    axes.set_title(f"{title}: mean ranks over blocks (Friedman p = {found.p:.2g}; Nemenyi, 95 %)")
    return figure


def _groups(ranks: np.ndarray, distance: float) -> list[tuple[float, float]]:
    """The longest groups of sorted mean ranks within the critical difference: (first, last) of each."""
    runs = [(i, int(np.searchsorted(ranks, ranks[i] + distance)) - 1) for i in range(len(ranks))]
    return [(ranks[i], ranks[j]) for k, (i, j) in enumerate(runs) if j > i and not any(b >= j for _, b in runs[:k])]


def scoring(title: str, board: pd.DataFrame) -> Figure:
    """Cost of scoring in epochs of the method's own training, on a logarithmic axis."""
    lines = board[board["scoring_epochs"].astype(float) > 0].sort_values(["scoring_epochs", "method"], ascending=False)
    figure = Picture(figsize=(7.6, 0.26 * len(lines) + 1.2), layout=ConstrainedLayoutEngine(w_pad=PAD))
    axes = figure.subplots()
    for y, line in enumerate(lines.itertuples()):
        axes.plot(line.scoring_epochs, y, "o", color="#0072b2")
        axes.annotate(f"{line.scoring_epochs:.2g}", (line.scoring_epochs, y), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.margins(x=0.12)
    axes.set_yticks(range(len(lines)), lines["method"])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("time to score and cut, in epochs of training (median)")
    _title(figure, f"{title}: cost of scoring")
    return figure


def _title(figure: Figure, text: str) -> None:
    """A title over the whole figure, because long method names make the axes narrow."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11)
