"""What the plots of a leaderboard show, computed a second time from its results.csv."""

import csv
import io
import math
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from scipy import stats

from bench.publishing import board_folder
from bench.publishing.plots import curves
from bench.ranking import leaderboard, tracks

BOARD = Path(__file__).resolve().parents[3] / "leaderboards" / "digits"
TRACK = "fine-tuned-2-epochs"
Y = {"accuracy": "accuracy", "nll": "nll", "flops": "accuracy"}


def expected(kind: str) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Block -> method -> (x, y, half of the interval) at each sparsity, by plain loops."""
    values = defaultdict(list)
    for path in (BOARD / "results").glob("*.csv"):
        for r in csv.DictReader(path.open(newline="")):
            if not r["criterion"] or (r["tuning"], r["ablation"], r["finetune_epochs"]) != ("default", "none", "2"):
                continue
            if r["status"] == "unsupported":
                continue
            s = float(r["sparsity"])
            x = float(r["flops_kept"]) / float(r["flops"]) if kind == "flops" else -math.log10(1 - s)
            values[f"{r['dataset']} · {r['architecture']}", r["method"], s].append((x, float(r[Y[kind]])))
    found: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for (block, method, _), points in sorted(values.items()):
        n = len(points)
        y = [value for _, value in points]
        half = stats.t.ppf(0.975, n - 1) * statistics.stdev(y) / math.sqrt(n)
        found[block][method].append((sum(x for x, _ in points) / n, sum(y) / n, half))
    return found


@pytest.mark.parametrize("kind", sorted(Y))
def test_every_point_and_interval_of_a_plot_is_that_of_the_rows(kind: str) -> None:
    rows = tracks.frame(board_folder.read(BOARD).rows)
    ((_, _, figure),) = curves.figures(rows, leaderboard.ranked(rows)[0], lambda *names: names == (kind, TRACK))
    wanted = expected(kind)
    names = [text.get_text() for text in figure.legends[0].get_texts() if text.get_text() != "dense"]
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert {axes.get_title(loc="left") for axes in panels} == set(wanted)
    for axes in panels:
        block = wanted[axes.get_title(loc="left")]
        lines = [line for line in axes.lines if len(line.get_xdata()) == len(next(iter(block.values()))) and line.get_marker() != "None"]
        drawn = [name for name in names if name in block]
        assert len(lines) == len(drawn) == len(block) > 10
        bars = [c for c in axes.collections if isinstance(c, LineCollection)]
        assert len(bars) == (len(drawn) if kind == "accuracy" else 0)
        for k, (name, line) in enumerate(zip(drawn, lines, strict=True)):
            x, y, half = np.array(sorted(block[name])).T
            order = np.argsort(line.get_xdata())
            shown = np.asarray(line.get_xdata())[order]
            assert np.allclose(np.asarray(line.get_ydata())[order], y, rtol=1e-12)
            if kind == "accuracy":  # moved a little, so that intervals stand next to each other
                assert np.ptp(shown - x) < 1e-12
                assert abs(shown[0] - x[0]) < 0.15
                ends = np.array([segment[:, 1] for segment in bars[k].get_segments()])
                assert np.allclose(ends, np.transpose([y - np.minimum(half, y), y + np.minimum(half, 1 - y)]), rtol=1e-12)
            else:
                assert np.allclose(shown, x, rtol=1e-12)


def test_both_formats_are_those_of_matplotlib() -> None:
    rows = tracks.frame(board_folder.read(BOARD).rows)
    rows = rows[(rows["track"].isin(["", "one-shot after training"])) & (rows["architecture"] == "mlp")]
    board = leaderboard.ranked(rows)[0]
    files = curves.draw(rows, board)
    for kind, slug, figure in curves.figures(rows, board, lambda kind, _: kind in ("accuracy", "ranks")):
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            file = io.BytesIO()
            figure.savefig(file, format=suffix, metadata=metadata)
            figure.set_layout_engine("none")
            assert files[f"{kind}-{slug}.{suffix}"] == file.getvalue()
