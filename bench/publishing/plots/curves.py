"""Plots of a leaderboard, as SVG and PNG. The same rows give the same bytes.

A method has the same colour, line and marker in all plots. The sparsity axis is logarithmic in the share of kept weights, because most
differences are near 100 %. The global state of matplotlib is not changed.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.publishing.plots import diagrams
from bench.publishing.plots.diagrams import PLAIN, Picture
from bench.ranking import statistics, tracks
from bench.ranking.columns import as_percent
from bench.ranking.tracks import BLOCK

RELEASE = f"Matplotlib v{matplotlib.__version__}"
STYLE: Any = {
    "svg.hashsalt": "razorbench", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.titlesize": 10.0, "axes.titlelocation": "left",
    "lines.linewidth": 1.5, "lines.markersize": 4.5, "legend.frameon": False, "legend.fontsize": 9.0,
    "figure.dpi": 100.0, "savefig.dpi": 100.0,
}  # fmt: skip
# Distinguishable with colour blindness, together with lines and markers. Black and grey are for the controls.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c510a", "#7b3fa0", "#b2182b", "#66a61e")
LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
CONTROLS = {
    "magnitude": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "magnitude_layer": {"color": "#4d4d4d", "linestyle": "--", "marker": "s"},
    "magnitude_init": {"color": "#4d4d4d", "linestyle": ":", "marker": "^"},
    "random": {"color": "#8c8c8c", "linestyle": "-", "marker": "x"},
    "random_init": {"color": "#8c8c8c", "linestyle": "--", "marker": "+"},
}
DENSE: Any = {"color": "#b0b0b0", "linewidth": 1.0, "linestyle": (0, (1, 1.5))}
MOST_PANELS = 96  # of one kind of curves, over all tracks, e.g. sixteen blocks in six tracks: these take two minutes to draw
SUMMARIES = ("ranks", "scoring")  # kinds of pictures without a panel for each block
WIDE = 3.6  # inches of one panel
HIGH = 2.7
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


@dataclass(frozen=True)
class Track:
    """One leaderboard: `rows` that ran, without ablations (a failure has accuracy 0 and no other value), and the `dense` rows."""

    name: str
    slug: str
    rows: pd.DataFrame
    board: pd.DataFrame
    dense: pd.DataFrame


def figures(
    table: pd.DataFrame, board: pd.DataFrame, wanted: Callable[[str, str], bool] = lambda kind, slug: True
) -> Iterator[tuple[str, str, Figure]]:
    """(kind, slug of the track, figure) of every picture that is wanted.

    Args:
        table: the rows, as `tracks.frame` returns them.
        board: their leaderboard.
        wanted: is asked with kind and slug of each picture; the others are not drawn.
    """
    made = table.assign(value=tracks.accuracy)
    drawn = (made["status"] != "unsupported") & (made["track"] != "") & (made["ablation"] == "none")
    styles = _styles(made.loc[drawn, "method"])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for track in _tracks(made, board):
            for kind, make in _figures(track, styles):
                if wanted(kind, track.slug):
                    yield kind, track.slug, make()


def draw(table: pd.DataFrame, board: pd.DataFrame) -> dict[str, bytes]:
    """File name -> contents of every picture; without those with a panel for each block, if these are too many.

    Args:
        table: the rows, as `tracks.frame` returns them.
        board: their leaderboard.
    """
    files: dict[str, bytes] = {}
    many = are_many(table)
    for kind, slug, figure in figures(table, board, lambda kind, _: kind in SUMMARIES or not many):
        vector, pixels = io.BytesIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # laid out: the second format keeps it
        FigureCanvasAgg(figure).print_png(pixels)  # type: ignore[no-untyped-call]  # `savefig` would draw twice, to lay it out
        files |= {f"{kind}-{slug}.svg": vector.getvalue(), f"{kind}-{slug}.png": pixels.getvalue()}
    return files


def are_many(table: pd.DataFrame) -> bool:
    """Whether curves would need too many panels, one for each track and block of it. `table`: the rows."""
    return len(table.loc[table["track"] != "", ["track", "tuning", *BLOCK]].drop_duplicates()) > MOST_PANELS


def drawn_by(content: bytes) -> str:
    """The release that drew an SVG or PNG, e.g. 'Matplotlib v3.10.0'; '' if the file does not contain it."""
    found = re.search(rb"Matplotlib (?:v|version)\s?([0-9][0-9A-Za-z.+]*)", content[:4000])
    return f"Matplotlib v{found[1].decode()}" if found else ""


def _tracks(table: pd.DataFrame, board: pd.DataFrame) -> Iterator[Track]:
    """The tracks one after the other: a copy of all rows would need much memory."""
    ran = (table["status"] != "unsupported") & (table["ablation"] == "none")
    for (name, tuning), lines in board.groupby(["track", "tuning"], sort=False):
        part = table[ran & (table["track"] == name) & (table["tuning"] == tuning)]
        if part.empty:
            continue
        dense = tracks.dense_rows(table, part)
        dense = dense[dense["status"] != "unsupported"]
        title = name if tuning == "default" else f"{name}, tuned"
        yield Track(title, slug(title), part, lines, dense)


def slug(title: str) -> str:
    """The title of a track as part of a file's name: "one-shot after training, tuned" -> "one-shot-after-training-tuned"."""
    return re.sub(r"[^a-z0-9]+", "-", title)


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> colour, line and marker. Controls have fixed ones, other methods get theirs in alphabetical order."""
    others = sorted(set(methods) - CONTROLS.keys())
    made = {
        name: {"color": COLOURS[k % len(COLOURS)], "linestyle": LINES[k // len(COLOURS) % len(LINES)], "marker": MARKERS[k % len(MARKERS)]}
        for k, name in enumerate(others)
    }
    return CONTROLS | made


def _figures(track: Track, styles: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(kind, what makes the figure) of every picture of a track."""
    curves = partial(_curves, track, styles)
    accuracy = partial(curves, "value", "test accuracy")
    yield "accuracy", partial(accuracy, _against_sparsity, spread=True)
    yield "ranks", lambda: diagrams.ranks(track.name, track.board, pd.concat([track.rows, track.dense]))
    yield "flops", partial(accuracy, _against_share("flops_kept", "flops", "FLOPs / dense FLOPs"))
    if track.rows["latency_ms"].notna().any():
        yield "latency", partial(accuracy, _against_share("latency_ms", "dense_latency_ms", "latency / dense latency"))
    yield "nll", partial(curves, "nll", "NLL, nats per sample", _against_sparsity, logarithmic=True)
    yield "ece", partial(curves, "ece", "expected calibration error", _against_sparsity)
    cost = track.board["scoring_epochs"].astype(float)
    if (cost > 0).any():
        yield "scoring", partial(diagrams.scoring, track.name, track.board)


Place = Callable[[Axes, pd.DataFrame], pd.Series]


def _against_sparsity(axes: Axes, rows: pd.DataFrame) -> pd.Series:
    """Positions on the sparsity axis, -log10 of the share of kept weights; ticks show the sparsity."""
    values = sorted(rows["sparsity"].unique())
    ticks = _apart([(-math.log10(1 - s), as_percent(s)) for s in values], 0.09 * max(1e-9, _position(values[-1]) - _position(values[0])))
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sparsity, %")
    return -np.log10(1 - rows["sparsity"].astype(float))


def _smallest_gap(sparsities: pd.Series) -> float:
    """Smallest distance of two sparsities on the axis, at most 0.25. Distance 1 is a factor of 10 in kept weights."""
    places = sorted(_position(s) for s in sparsities.unique())
    return min([0.25, *np.diff(places).tolist()])


def _position(sparsity: float) -> float:
    return -math.log10(1 - sparsity)


def _apart(ticks: Sequence[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """Ticks that are at least `least` apart, chosen from the right, because the highest sparsities matter most."""
    kept: list[tuple[float, str]] = []
    for x, text in reversed(ticks):
        if not kept or kept[-1][0] - x >= least:
            kept.append((x, text))
    return kept[::-1]


def _against_share(part: str, whole: str, label: str) -> Place:
    def place(axes: Axes, rows: pd.DataFrame) -> pd.Series:
        """Positions on a logarithmic axis: cost relative to the dense network."""
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(PERCENT)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        return rows[part].astype(float) / rows[whole].astype(float)

    return place


def _make_logarithmic(axes: Axes) -> None:
    """A logarithmic y-axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curves(
    track: Track, styles: dict[str, dict[str, Any]], column: str, label: str, place: Place, *, spread: bool = False,
    logarithmic: bool = False,
) -> Figure:  # fmt: skip
    """One panel per block and one line per method: means over seeds, with 95 % intervals if `spread`."""
    dense = track.dense.groupby(BLOCK)["value"].mean()
    blocks = list(dict.fromkeys(track.rows[BLOCK].itertuples(index=False, name=None)))
    there = set(track.rows["method"].unique())
    methods = [m for m in track.board["method"] if m in there]
    wide = min(len(blocks), 2 if len(blocks) <= 4 else 3)
    high = math.ceil(len(blocks) / wide)
    legend = max(0.28 * len(methods) + 0.6, HIGH)  # the legend is at the right
    figure = Picture(figsize=(WIDE * wide + 2.2, max(HIGH * high, legend)), layout="constrained")
    panels = figure.subplots(high, wide, squeeze=False).ravel()
    step = _smallest_gap(track.rows["sparsity"]) * 0.6 / max(1, len(methods))  # intervals are drawn next to each other
    places = track.rows.groupby(BLOCK, sort=False).indices
    for axes, block in zip(panels, blocks, strict=False):
        rows = track.rows.iloc[places[block]]
        points = _points(rows.assign(x=place(axes, rows), y=rows[column].astype(float)))
        for k, method in enumerate(methods):
            if method in points:
                _line(axes, points[method], styles[method], (k - (len(methods) - 1) / 2) * step if spread else 0.0, spread)
        if column == "value" and block in dense.index:
            axes.axhline(dense[block], zorder=1, **DENSE)
        axes.set_title(" · ".join(block))
        if logarithmic:
            _make_logarithmic(axes)
        if column == "value":
            axes.yaxis.set_major_formatter(PERCENT)
    for axes in panels[len(blocks) :]:
        axes.set_visible(False)
    for axes in panels[::wide]:
        axes.set_ylabel(label)
    handles = [Line2D([], [], label=m, **styles[m]) for m in methods] + [Line2D([], [], label="dense", **DENSE)] * (column == "value")
    # With one panel the title would run into a legend at the top.
    where: Literal["outside right upper", "outside right center"] = "outside right upper" if wide > 1 else "outside right center"
    figure.legend(handles=handles, loc=where, title="sorted by area", alignment="left", handlelength=3.2)
    of = "mean and 95 % interval over seeds" if spread else "mean over seeds"
    figure.suptitle(f"{track.name}:{' ' if wide > 1 else chr(10)}{of}", x=0.01, ha="left", fontsize=11)
    return figure


def _points(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> for each sparsity: means of `x` and `y` over seeds, half the `width` of the t-interval of `y`."""
    groups = rows.dropna(subset=["x", "y"]).groupby(["method", "sparsity"])
    points = groups[["x", "y"]].mean().reset_index()
    points["width"] = statistics.half_width(groups["y"].std().to_numpy(), groups.size().to_numpy())
    return dict(iter(points.groupby("method")))


def _line(axes: Axes, points: pd.DataFrame, style: dict[str, Any], shift: float, spread: bool) -> None:
    """Means of one method at each sparsity, with t-intervals over seeds."""
    x, y = points["x"].to_numpy() + shift, points["y"].to_numpy()
    axes.plot(x, y, **style, zorder=3)
    if spread:
        half = points["width"].to_numpy()
        low, high = np.minimum(half, y), np.minimum(half, 1 - y)
        axes.errorbar(x, y, yerr=np.nan_to_num([low, high]), fmt="none", ecolor=style["color"], elinewidth=0.8, alpha=0.55, zorder=2)
