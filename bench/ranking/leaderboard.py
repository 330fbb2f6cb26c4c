"""Rows to tables: one ranking per track, never mixed.

A track is what may be compared (protocol, rule 6): one-shot after training, while training, at initialisation, and fine-tuned.
Within a track the response of a method in a block (data set, architecture) and seed is the area under its accuracy-sparsity curve.
Results at declared defaults and tuned results are two tables (rule 4), and so two families of tests.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.ranking import statistics
from bench.ranking.tracks import BLOCK, Track, accuracy, areas, difference, frame, split
from bench.spec.row import Row

BASELINE = "magnitude"
AT = (0.9, 0.95, 0.99)  # sparsities with a column of accuracy
CALIBRATION_AT = 0.95
MARGIN = 0.01  # "within one point of dense"
# A board whose smallest detectable difference in relative area is not below this has no ranks: dense is at 1, accuracy 0 at 0, random
# pruning about half-way (0.25 to 0.64 on the published boards), so it could not even tell the best method there can be from chance.
COARSEST = 0.5
COLUMNS = (
    "track", "tuning", "rank", "rank_low", "rank_high", "method", "relative_area", "relative_area_low", "relative_area_high",
    "relative_area_std", "sparsity_within_one_point", "accuracy_90", "accuracy_95", "accuracy_99", "nll_95", "ece_95",
    "scoring_epochs", "wins", "ties", "losses", "blocks", "seeds", "rows", "failed", "collapsed", "unsupported", "epochs",
)  # fmt: skip


def leaderboard(rows: Iterable[Row]) -> pd.DataFrame:
    """The leaderboard of all tracks: one line a method, track and tuning, by falling `relative_area`, with the columns `COLUMNS`.

    Areas and accuracies are means over seeds, then over blocks. A failed row counts as accuracy 0. `relative_area` is the area over
    the block's dense accuracy (see `bench.tracks`); `relative_area_low` and `relative_area_high` are its 95 % interval over new seeds,
    cut to what is possible, the dense accuracy being taken as known, and `relative_area_std` its sample standard deviation over seeds,
    pooled within blocks (`bench.statistics.estimate`); these are missing where a block has one seed. Missing sparsities leave their
    columns empty. `blocks` are those that the area is a mean of: not those whose dense network did not train (`bench.tracks.warnings`).

    `rank_low` is 1 + the number of ranked methods that are significantly better, `rank_high` the number of ranked methods less those
    that are significantly worse (see `_compared`), `rank` the former. Shown without a rank: an unsupported method, one that trains for
    more epochs than the dense networks do, ablations, and all methods where seeds and blocks are too few (see `Resolution`).

    Raises ValueError where a method has rows in a block and there is no dense accuracy to divide them by.
    """
    boards = [_board(found) for found in split(frame(rows))]
    return pd.concat(boards, ignore_index=True) if boards else pd.DataFrame(columns=list(COLUMNS))


@dataclass(frozen=True)
class Resolution:
    """What a board can show. `difference`: the smallest that is detected reliably, in relative area, between methods without failed rows;
    NaN where there are no two that can be tested."""

    seeds: int
    blocks: int
    methods: int
    difference: float

    @property
    def ranks(self) -> bool:
        """Whether there are ranks: a method like the dense network can be told from random pruning, or there is one method alone."""
        return self.methods == 1 or (self.seeds > 1 and not self.difference >= COARSEST)

    @property
    def meaning(self) -> str:
        """What the ranks say, and how small a difference the seeds can show; '' where there is nothing to rank."""
        if self.methods < 2:
            return ""
        if self.seeds < 2:
            return "With one seed nothing can be tested; methods are sorted by area and have no ranks."
        have = f"{self.seeds} seeds and {self.blocks} {'block' if self.blocks == 1 else 'blocks'}"
        least = f"about {self.difference:.2g}" if self.difference >= 0.001 else "0.001"
        shown = f"With {have}, a difference smaller than {least} in area cannot be detected reliably (power {100 * statistics.POWER:g} %)"
        if not self.ranks:
            return f"{shown}. To rank methods it must be below {COARSEST:g}: they are sorted by area and have no ranks."
        ranks = (
            "Methods are sorted by area. The rank is a range: from 1 + the number of methods that are significantly better to the number "
            "of methods - those that are significantly worse (paired t-tests, Holm-corrected)."
        )
        return ranks if math.isnan(self.difference) else f"{ranks} {shown}."


def resolutions(table: pd.DataFrame) -> dict[tuple[str, str], Resolution]:
    """(track, tuning) -> what that board can show, from rows as `frame` has them."""
    return {(found.name, found.tuning): _compared(found)[1] for found in split(table)}


def _board(track: Track) -> pd.DataFrame:
    ranks, _ = _compared(track)
    lines = [_line(str(method), rows, track) for method, rows in track.rows.groupby("method", sort=False)]
    board = pd.DataFrame(lines).reindex(columns=[*COLUMNS, "order"])
    board["track"], board["tuning"] = track.name, track.tuning
    for name, end in (("rank", 0), ("rank_low", 0), ("rank_high", 1)):
        board[name] = pd.Series([ranks[m][end] if m in ranks else pd.NA for m in board["method"]], board.index, dtype="Int64")
    board["order"] = -board["relative_area"].astype(float).round(10)  # what differs beyond is rounding: equal areas come by name
    return board.sort_values(["order", "method"], na_position="last")[list(COLUMNS)]


def _compared(track: Track) -> tuple[dict[str, tuple[int, int]], Resolution]:
    """The ranges of ranks, and what the board can show.

    Better is: a larger relative area, significantly so by the paired tests of `bench.statistics.compare`. What did not fail is also
    better than a method with failed rows and a smaller area, unless the test says the opposite on what both have: a failure is a result,
    not noise, and the spread that it brings must not earn a place among the best.
    """
    ranked = {method: curve for method, curve in track.curves.items() if method not in track.unranked and len(curve)}
    pairs = list(itertools.combinations(ranked, 2))
    found = statistics.compare({(a, b): difference(ranked[a], ranked[b]) for a, b in pairs})
    means = {method: statistics.estimate(areas(curve)).mean for method, curve in ranked.items()}
    failed = set(track.rows.loc[track.rows["status"] == "failed", "method"])
    better = set(found.significant_pairs)
    for worse, good in itertools.product(failed & ranked.keys(), ranked.keys() - failed):
        if means[good] > means[worse] and (worse, good) not in better:
            better.add((good, worse))
    sizes = [(curve.index.get_level_values("seed").nunique(), len(curve.index.droplevel("seed").unique())) for curve in ranked.values()]
    seeds, blocks = max(sizes, key=lambda size: (sizes.count(size), size), default=(0, 0))  # of most methods: some decline a block
    resolution = Resolution(seeds, blocks, len(ranked), found.detectable(pair for pair in pairs if not failed.intersection(pair)))
    return (statistics.rank_ranges(ranked, better) if resolution.ranks else {}), resolution


def _line(method: str, rows: pd.DataFrame, track: Track) -> dict[str, Any]:
    line: dict[str, Any] = {
        "method": method,
        "blocks": 0,
        "seeds": 0,
        "rows": len(rows),
        "epochs": float((rows["epochs"] + rows["finetune_epochs"]).mean()),
        **{status: int((rows["status"] == status).sum()) for status in ("failed", "collapsed", "unsupported")},
    }
    ran = rows[rows["status"] != "unsupported"].assign(value=accuracy)
    if ran.empty:
        return line
    dense = track.dense[method]
    relative = statistics.estimate(areas(track.curves[method]))
    return line | {
        "blocks": len(dense),
        "seeds": ran["seed"].nunique(),
        "relative_area": relative.mean,
        "relative_area_low": np.clip(relative.low, 0, None),
        "relative_area_high": np.clip(relative.high, None, (1 / dense).mean()),
        "relative_area_std": relative.std,
        "sparsity_within_one_point": _largest_sparsity(ran, dense),
        **{f"accuracy_{round(s * 100)}": _mean_at(ran, "value", s) for s in AT},
        "nll_95": _mean_at(ran, "nll", CALIBRATION_AT),
        "ece_95": _mean_at(ran, "ece", CALIBRATION_AT),
        "scoring_epochs": _scoring_epochs(ran),
        **_versus_baseline(track.curves[method], track.curves),
    }


def _mean_at(ran: pd.DataFrame, column: str, sparsity: float) -> float:
    """Mean of a column at one sparsity, over seeds and then over blocks."""
    rows = ran[np.isclose(ran["sparsity"], sparsity)]
    return float(rows.groupby(BLOCK)[column].mean().mean())


def _largest_sparsity(ran: pd.DataFrame, dense: pd.Series) -> float:
    """Mean over blocks of the largest sparsity whose interpolated mean accuracy stays within one point of dense.

    The curve starts at (0, dense accuracy) and is left where it first falls below.
    """
    reached = []
    for block, rows in ran.groupby(BLOCK):
        if block not in dense.index:
            continue
        curve = rows.groupby("sparsity")["value"].mean()
        floor = dense[block] - MARGIN - statistics.EXACT
        x, y = [0.0, *curve.index], [dense[block], *curve.to_numpy()]
        last = x[-1]
        for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
            if y1 < floor:
                last = x0 + (x1 - x0) * (y0 - floor) / (y0 - y1)
                break
        reached.append(last)
    return float(np.mean(reached)) if reached else np.nan


def _scoring_epochs(ran: pd.DataFrame) -> float:
    """Median cost of scoring in epochs of training, the training being the row's own."""
    seconds = ran["train_seconds"] / (ran["epochs"] + ran["finetune_epochs"])
    return float((ran["score_seconds"].astype(float) / seconds.astype(float)).median())


def _versus_baseline(mine: pd.DataFrame, measured: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Blocks and seeds in which the area is larger than magnitude's, equal to it, smaller."""
    if BASELINE not in measured:
        return {}
    signs = np.sign(difference(mine, measured[BASELINE]).round(12))
    return {"wins": int((signs > 0).sum()), "ties": int((signs == 0).sum()), "losses": int((signs < 0).sum())}
