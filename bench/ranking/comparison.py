"""Comparison of two methods: paired differences of areas and accuracies, with confidence interval and p-value."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.ranking import tracks
from bench.ranking.over_blocks import signed_rank_test
from bench.ranking.statistics import ALPHA, EXACT, Estimate, estimate
from bench.ranking.tracks import BLOCK
from bench.spec.row import Row

COLUMNS = ("track", "tuning", "dataset", "architecture", "seeds", "first", "second", "difference", "low", "high", "p")
ALL = "all"


@dataclass(frozen=True)
class Difference:
    """The difference of two methods on one block (data set and architecture), or on all blocks (`dataset` is "all").

    `first`, `second`: mean areas. `area`: estimate of first - second. `at`: sparsity -> estimate of the difference in accuracy.
    """

    dataset: str
    architecture: str
    seeds: int
    first: float
    second: float
    area: Estimate
    at: dict[float, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Two methods in one track. `differences`: one per block, then one for all blocks if there are several; empty without common rows."""

    track: str
    tuning: str
    first: str
    second: str
    differences: tuple[Difference, ...]

    @property
    def verdict(self) -> str:
        """The result of the test on all blocks, in one sentence; '' if the methods have no common rows."""
        if not self.differences:
            return ""
        found = self.differences[-1].area
        if math.isnan(found.p):
            return "With one seed nothing can be tested over seeds."
        better, worse = (self.first, self.second) if found.mean > 0 else (self.second, self.first)
        said = f"{better} is better than {worse}" if found.p < ALPHA else f"{self.first} and {self.second} do not differ significantly"
        return f"{said} (p-value not corrected for multiple comparisons; the leaderboard's ranks are corrected)."

    @property
    def over_blocks(self) -> str:
        """What the blocks, as a sample of data sets and architectures, say about others; '' if they are too few to say anything."""
        apart = [d.area.mean for d in self.differences[:-1]]
        p = signed_rank_test(apart)
        if math.isnan(p):
            return ""
        shown = "they differ on data sets and architectures of this kind" if p < ALPHA else "nothing is shown about other blocks"
        larger = f"{self.first} has the larger area on {sum(d > EXACT for d in apart)} of {len(apart)} blocks"
        return f"{larger}; Wilcoxon's signed-rank test over blocks has p = {p:.2g}: {shown}."


def compare(rows: Iterable[Row], first: str, second: str) -> list[Comparison]:
    """Compare two methods in each track that contains both.

    The areas under their accuracy-sparsity curves are compared, seed by seed within each block. A sparsity or seed that only one
    method has is left out, and so is a block whose dense network did not train.

    Args:
        rows: all results, those of the dense networks included.
        first: name of a method.
        second: name of the other method.

    Returns:
        One comparison per track and tuning. Areas and accuracies are fractions in [0, 1].
    """
    table = tracks.frame(rows)
    found = []
    for (track, tuning), part in table[table["track"] != ""].groupby(["track", "tuning"], sort=False):
        if {first, second} <= set(part["method"]):
            trained = _trained(part, table)
            found.append(Comparison(str(track), str(tuning), first, second, tuple(_differences(trained, first, second))))
    return found


def _trained(part: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a track without the blocks that `tracks.warnings` names."""
    bad = tracks.untrained(tracks.dense_rows(table, part))
    return part[[block not in bad for block in zip(part["dataset"], part["architecture"], strict=True)]]


def table_of(comparisons: Iterable[Comparison]) -> pd.DataFrame:
    """The differences in area as a table with the columns `COLUMNS`; `low` and `high`: the 95 % confidence interval, limited to [-1, 1]."""
    lines = [
        (c.track, c.tuning, d.dataset, d.architecture, d.seeds, d.first, d.second, d.area.mean, *interval(d.area), d.area.p)
        for c in comparisons
        for d in c.differences
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def interval(found: Estimate) -> tuple[float, float]:
    """The 95 % confidence interval of a difference, limited to [-1, 1]; not a number with one seed."""
    low, high = np.clip([found.low, found.high], -1, 1)
    return float(low), float(high)


def _differences(part: pd.DataFrame, first: str, second: str) -> Iterator[Difference]:
    measured = tracks.curves(part)
    nothing = pd.DataFrame(index=part.set_index([*BLOCK, "seed"]).index[:0])
    one, other = (measured.get(name, nothing) for name in (first, second))
    one, other = one.align(other, join="inner")
    one, other = one.where(other.notna()), other.where(one.notna())  # only where both have a value
    areas = pd.DataFrame({"first": tracks.areas(one), "second": tracks.areas(other)})
    if areas.empty:
        return
    apart = one - other
    parts = [(block, part.index) for block, part in areas.groupby(level=BLOCK, sort=False)]
    for (dataset, architecture), index in [*parts, *([((ALL, f"{len(parts)} blocks"), areas.index)] if len(parts) > 1 else [])]:
        lines = areas.loc[index]
        means = lines.groupby(level=BLOCK).mean().mean()
        yield Difference(
            str(dataset), str(architecture), lines.index.get_level_values("seed").nunique(), float(means["first"]), float(means["second"]),
            estimate(lines["first"] - lines["second"]), {float(s): estimate(apart.loc[index, s]) for s in sorted(apart.columns)},
        )  # fmt: skip
