"""The variation of results between seeds: it limits how much a row computed on another machine may differ from the published row.

A cell is the set of published rows of one configuration, which differ only in their seed. Rounding differences grow during training, so
a row computed on another machine or with another release differs from the published row at most as much as another seed would.

The variance of a cell is pooled from two sources. Neither the tested row nor the computed one is part of them, so that a wrong row cannot
widen its own limits:

    s² = (w u + f v) / (w + f),    with w + f degrees of freedom

v: variance over the published rows of the other seeds, f = their number - 1.
u: mean variance of the `MATCHED` cells with the nearest mean, on the same data set and architecture. Reason: the noise depends on the
mean; it is small near the dense accuracy and large for half-destroyed networks. The mean of the cell includes the tested row and the
computed one: without them, an honest outlier would be matched with cells of smaller noise.
w: `WEIGHT` times the number of matched cells. The weight is less than the cells' own degrees of freedom, because cells with the same mean
differ in their variance. It was chosen so that the tests keep their level on published leaderboards, with the row of another seed instead
of a computed row; with the weight 1, 20 % of samples of ten rows of LeNet-5 on MNIST were rejected. In a sample of ten rows, a change by
one percentage point is then found almost always if the standard deviation over seeds is 0.1 points, and in 75 % of cases if it is 0.15.
Without matched cells, five seeds are too few: the 0.1 % quantile of Student's t with three degrees of freedom is 12.9.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.spec.row import DECLARED, Row

MATCHED = 10  # number of cells
WEIGHT = 0.4  # degrees of freedom of a matched cell
FLOOR = 1e-6  # smaller differences on a logarithmic scale count as equal


@dataclass(frozen=True)
class Measure:
    """A column that is tested against the noise of its cell.

    `level`: probability that any row of an unchanged leaderboard is rejected because of this column. `pool`: the column that provides the
    matched cells, if it is not this one. `positive`: compared on a logarithmic scale; otherwise it is a fraction, and values that differ by
    one step (one test sample) always agree.
    """

    column: str
    level: float
    pool: str = ""
    positive: bool = False

    def value(self, row: Row, column: str = "") -> float | None:
        """The value of a row on the scale of the test.

        Args:
            row: the row.
            column: another column than this one.

        Returns:
            The value, or its logarithm if the measure is positive; None if it is missing.
        """
        value = getattr(row, column or self.column)
        if value is None:
            return None
        return math.log(max(value, 1e-12)) if self.positive else float(value)


# The level of each of these columns; the other columns share the level `OTHERS` equally.
LEVELS = {"accuracy": 0.025, "accuracy_before_finetune": 0.003, "dense_accuracy": 0.003}
OTHERS = 0.0105
_JUDGED = {column.name: column.judged for column in DECLARED.values() if column.judged is not None}
MEASURES = tuple(  # accuracy first
    Measure(name, LEVELS.get(name, OTHERS / (len(_JUDGED) - len(LEVELS))), _JUDGED[name].pool, _JUDGED[name].positive)
    for name in (*LEVELS, *(name for name in _JUDGED if name not in LEVELS))
)


@dataclass(frozen=True)
class Spread:
    """The noise of a cell, without the tested row.

    `variance`, `df`: pooled variance and its degrees of freedom. `mean`, `count`: mean and number of the other seeds and the computed row.
    `deviation`: standard deviation of the other seeds only. `step`: values whose difference is at most this always agree.
    """

    variance: float
    df: float
    mean: float
    count: int
    deviation: float
    step: float


@dataclass(frozen=True)
class _Cell:
    key: tuple[Any, ...]
    height: float  # mean, on the scale for matching cells
    variance: float


class Noise:
    """The noise of all cells of a leaderboard. `rows`: its published rows."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._blocks: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = {}
        self._pools: dict[tuple[Any, ...], tuple[list[_Cell], float]] = {}
        for row in rows:
            self._blocks.setdefault(_block(row), {}).setdefault(_cell(row), []).append(row)

    def spread(self, row: Row, got: Row, measure: Measure) -> Spread | None:
        """The noise to test a published row against.

        Args:
            row: the published row.
            got: the computed row.
            measure: the column.

        Returns:
            None if a value is missing, or if there is neither another seed nor another cell.
        """
        cells = self._blocks.get(_block(row), {})
        seeds = [v for v in (measure.value(r) for r in cells.get(_cell(row), []) if r.seed != row.seed) if v is not None]
        own, again = (measure.value(r) for r in (row, got))
        if own is None or again is None:
            return None
        pool, step = self._pool(_block(row), measure)
        height = _height([*seeds, own, again], measure)
        near = sorted((c for c in pool if c.key != _cell(row)), key=lambda c: abs(c.height - height))[:MATCHED]
        w, f = WEIGHT * len(near), max(len(seeds) - 1, 0)
        if w + f == 0:
            return None
        matched = sum(c.variance for c in near) / max(len(near), 1)
        variance = (w * matched + f * _variance(seeds, step)) / (w + f)
        mean = (sum(seeds) + again) / (len(seeds) + 1)
        return Spread(variance, w + f, mean, len(seeds) + 1, math.sqrt(_variance(seeds)), step)

    def _pool(self, block: tuple[Any, ...], measure: Measure) -> tuple[list[_Cell], float]:
        """(cells with at least two seeds, step) of a block, in the column that provides the matched cells of this measure."""
        column = measure.pool or measure.column
        if (block, column) not in self._pools:
            found = {
                key: [v for v in (measure.value(row, column) for row in rows) if v is not None]
                for key, rows in self._blocks.get(block, {}).items()
            }
            step = FLOOR if measure.positive else _step(v for values in found.values() for v in values)
            cells = [_Cell(key, _height(v, measure), _variance(v, step)) for key, v in found.items() if len(v) > 1]
            self._pools[block, column] = cells, step
        return self._pools[block, column]


def _block(row: Row) -> tuple[Any, ...]:
    return row.dataset, row.architecture, row.granularity, row.match


def _cell(row: Row) -> tuple[Any, ...]:
    return row.method, row.tuning, row.ablation, row.sparsity, row.epochs, row.finetune_epochs


def _height(values: list[float], measure: Measure) -> float:
    """The mean; of fractions its log odds."""
    mean = sum(values) / len(values)
    return mean if measure.positive else math.log((mean + 1e-4) / (1 - mean + 1e-4))


def _variance(values: list[float], step: float = 0.0) -> float:
    """Sample variance + step²/12, the variance of rounding to multiples of a step; for fewer than two values only step²/12."""
    mean = sum(values) / max(len(values), 1)
    return sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1) + step**2 / 12


def _step(values: Iterable[float]) -> float:
    """The smallest difference of two values such that at least 90 % of the values are multiples of it; 0 if all values are equal.

    For accuracies this is one test sample. Not all values must be multiples, so that one wrong value cannot change the step.
    """
    rounded = [round(v, 12) for v in values]
    gaps = sorted({b - a for a, b in itertools.pairwise(sorted(set(rounded)))})
    for gap in gaps[:20]:
        counts = [v / gap for v in rounded]
        if sum(abs(c - round(c)) < 0.01 for c in counts) > 0.9 * len(counts):
            return gap
    return min(gaps, default=0.0)
