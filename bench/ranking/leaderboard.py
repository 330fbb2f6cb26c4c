"""Rows to tables: one ranking per track, never mixed.

A track is what may be compared (protocol, rule 6): one-shot after training, while training, at initialisation, and fine-tuned.
Within a track the response of a method in a block (data set, architecture) and seed is the area under its accuracy-sparsity curve.
Results at declared defaults and tuned results are two tables (rule 4), and so two families of tests.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from bench.ranking import statistics
from bench.ranking.columns import COLUMNS, Entry, line
from bench.ranking.tracks import Track, areas, difference, frame, split
from bench.spec.row import Row

# A board whose smallest detectable difference in relative area is not below this has no ranks: dense is at 1, accuracy 0 at 0, random
# pruning about half-way (0.25 to 0.64 on the published boards), so it could not even tell the best method there can be from chance.
COARSEST = 0.5


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
    lines = [line(Entry(str(method), rows, track)) for method, rows in track.rows.groupby("method", sort=False)]
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
