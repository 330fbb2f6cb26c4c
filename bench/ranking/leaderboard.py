"""The leaderboard: rows of results to one ranking per track.

A track is a group of rows that may be compared (protocol, rule 6; see `bench.ranking.tracks`). A block is a data set with an
architecture. In each block and for each seed, a method has one value: the area under its accuracy-sparsity curve. Default and tuned
hyperparameters are ranked in separate tables (rule 4), and tested as separate families.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.ranking import statistics
from bench.ranking.columns import COLUMNS, BoardColumn, Entry, board_of, line
from bench.ranking.tracks import Track, areas, difference, frame, split
from bench.spec.row import Row

# Methods are not ranked if the smallest detectable difference in relative area is this large. A method as good as the dense network has
# relative area 1, and random pruning has 0.25 to 0.64 on the published leaderboards: not even these two could be distinguished.
COARSEST = 0.5


def leaderboard(rows: Iterable[Row]) -> pd.DataFrame:
    """The leaderboard of all tracks: one line per method, track and tuning, sorted by decreasing `relative_area`.

    Areas and accuracies are means over seeds, then over blocks. Failed rows count as accuracy 0.

    - `relative_area`: the area divided by the dense accuracy of the block (see `bench.ranking.tracks`).
    - `relative_area_low`, `relative_area_high`: its 95 % confidence interval for new seeds, limited to possible values. The dense
      accuracy is treated as exact. `relative_area_std`: its standard deviation over seeds, pooled within blocks (see
      `bench.ranking.statistics.estimate`). These three are missing if a block has only one seed.
    - `blocks`: the number of blocks in the mean. Blocks whose dense network did not train are excluded (see
      `bench.ranking.tracks.warnings`).
    - `rank_low`: 1 + the number of ranked methods that are significantly better. `rank_high`: the number of ranked methods - the number
      of those that are significantly worse. `rank`: the same as `rank_low`.

    The following have no rank: unsupported methods, methods that train for more epochs than the dense networks, ablations, and all
    methods if there are too few seeds and blocks (see `Resolution`).

    Args:
        rows: all results, those of the dense networks included.

    Returns:
        A table with the columns `COLUMNS`, `accuracy_...` for each further sparsity of the rows, and `area_...` for each metric of a
        plug-in. A sparsity without results leaves its columns empty.

    Raises:
        ValueError: a method has rows in a block without any dense accuracy.
    """
    return ranked(frame(rows))[0]


def ranked(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[tuple[str, str], "Resolution"]]:
    """The leaderboard of a table, and what each of its tracks can show.

    Args:
        table: all results as `bench.ranking.tracks.frame` returns them.

    Returns:
        (what `leaderboard` returns, what `resolutions` returns).
    """
    columns, boards, found = board_of(table), [], {}
    for track in split(table):
        ranks, found[track.name, track.tuning] = _compared(track)
        boards.append(_board(track, ranks, columns))
    return pd.concat(boards, ignore_index=True) if boards else pd.DataFrame(columns=list(COLUMNS)), found


@dataclass(frozen=True)
class Resolution:
    """Which differences the results of one track can show.

    `difference`: the smallest difference in relative area between methods without failed rows that is detected with power
    `statistics.POWER`. NaN if no two methods can be tested.
    """

    seeds: int
    blocks: int
    methods: int
    difference: float

    @property
    def ranks(self) -> bool:
        """Whether methods get ranks: differences of `COARSEST` can be detected, or there is only one method."""
        return self.methods == 1 or (self.seeds > 1 and not self.difference >= COARSEST)

    @property
    def meaning(self) -> str:
        """The meaning of the ranks and the smallest detectable difference, in sentences; '' for fewer than two methods."""
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
    """(track, tuning) -> which differences its results can show. `table`: the rows, as `tracks.frame` returns them."""
    return {(found.name, found.tuning): _compared(found)[1] for found in split(table)}


def _board(track: Track, ranks: dict[str, tuple[int, int]], columns: Sequence[BoardColumn]) -> pd.DataFrame:
    lines = [line(Entry(str(method), rows, track), columns) for method, rows in track.rows.groupby("method", sort=False)]
    board = pd.DataFrame(lines).reindex(columns=[*(c.name for c in columns), "order"])
    board["track"], board["tuning"] = track.name, track.tuning
    for name, end in (("rank", 0), ("rank_low", 0), ("rank_high", 1)):
        board[name] = pd.Series([ranks[m][end] if m in ranks else pd.NA for m in board["method"]], board.index, dtype="Int64")
    board["order"] = -board["relative_area"].astype(float).round(10)  # equal up to rounding: sorted by name
    return board.sort_values(["order", "method"], na_position="last")[[c.name for c in columns]]


def _compared(track: Track) -> tuple[dict[str, tuple[int, int]], Resolution]:
    """The ranges of ranks, and the resolution.

    A method is better if its relative area is significantly larger in the paired tests of `bench.ranking.statistics.compare`. A method
    without failed rows is also better than a method with failed rows and a smaller area, unless the test finds the opposite. Reason:
    failures increase the standard deviation, and without this rule they would make a bad method indistinguishable from the best ones.
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
    seeds, blocks = max(sizes, key=lambda size: (sizes.count(size), size), default=(0, 0))  # of most methods: some skip a block
    resolution = Resolution(seeds, blocks, len(ranked), found.detectable(pair for pair in pairs if not failed.intersection(pair)))
    return (statistics.rank_ranges(ranked, better) if resolution.ranks else {}), resolution
