"""How much a number varies between the seeds of its cell, and so how far an honest re-run elsewhere may be from what is published.

A cell is all that is published of one configuration: rows that differ in their seed alone. Rounding differences grow while a network
trains, so a re-run on another machine or release is at most as far from the published row as another seed would be.

The variance of a cell is pooled from two sources. Neither the judged row nor its re-run is in them, so neither can widen the limits:

    s² = (w u + f v) / (w + f),    with w + f degrees of freedom

v: variance over the published rows of the other seeds, f = their number - 1.
u: mean variance of the `MATCHED` cells of the block whose means are nearest to the cell's. Noise depends on the height: networks near
the dense accuracy are quiet, half-broken ones are not. The cell's mean is taken over all its runs, for without the judged row an
honest outlier would be matched with cells that are quieter than its own.
w: `WEIGHT` for each matched cell: less than its own degrees of freedom, for cells of one height still differ. With this weight the tests
reject about as often as they should on published boards with another seed's row in place of the re-run (with 1 they rejected one
call in five of ten rows of LeNet-5 on MNIST). In a sample of ten rows one point is then caught nearly always where seeds deviate by
0.1 points, three times in four at 0.15. Five seeds without matched cells would say too little: the 0.1 % quantile of Student's t with
three degrees of freedom is 12.9.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.spec.row import DECLARED, Row

MATCHED = 10
WEIGHT = 0.4  # degrees of freedom of a matched cell
FLOOR = 1e-6  # of a number on a logarithmic scale: what is nearer is the same


@dataclass(frozen=True)
class Measure:
    """A column that is judged by the noise of its cell.

    `level`: the probability that any of the honest rows of a call is rejected for it. `pool`: the column whose cells are matched, if not
    its own. `positive`: compared on a logarithmic scale; otherwise it is a fraction, and values that differ by the smallest step there
    is always agree.
    """

    column: str
    level: float
    pool: str = ""
    positive: bool = False

    def value(self, row: Row, column: str = "") -> float | None:
        """The number on the scale on which it is judged; None where it is missing."""
        value = getattr(row, column or self.column)
        if value is None:
            return None
        return math.log(max(value, 1e-12)) if self.positive else float(value)


# The probability that an honest call is rejected for one of these columns; the other measures share what is left.
LEVELS = {"accuracy": 0.025, "accuracy_before_finetune": 0.003, "dense_accuracy": 0.003}
OTHERS = 0.0105
_JUDGED = {column.name: column.judged for column in DECLARED.values() if column.judged is not None}
MEASURES = tuple(  # accuracy first
    Measure(name, LEVELS.get(name, OTHERS / (len(_JUDGED) - len(LEVELS))), _JUDGED[name].pool, _JUDGED[name].positive)
    for name in (*LEVELS, *(name for name in _JUDGED if name not in LEVELS))
)


@dataclass(frozen=True)
class Spread:
    """What a cell shows beside the row that is judged.

    `deviation`: of the other seeds alone. `mean` and `count`: of the other seeds and the re-run. `step`: values no further apart agree
    whatever the variance.
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
    height: float  # its mean, on the scale on which cells are matched
    variance: float


class Noise:
    """The noise of a board's cells; `rows`: all that is published."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._blocks: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = {}
        self._pools: dict[tuple[Any, ...], tuple[list[_Cell], float]] = {}
        for row in rows:
            self._blocks.setdefault(_block(row), {}).setdefault(_cell(row), []).append(row)

    def spread(self, row: Row, got: Row, measure: Measure) -> Spread | None:
        """The spread to judge a published row by; `got`: its re-run. None where nothing is known: one seed, no other cell."""
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
        """The cells of a block with two seeds or more, in the column that this measure's are matched in, and the column's step."""
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
    """The mean, as log odds where it is a fraction."""
    mean = sum(values) / len(values)
    return mean if measure.positive else math.log((mean + 1e-4) / (1 - mean + 1e-4))


def _variance(values: list[float], step: float = 0.0) -> float:
    """Sample variance, with the step²/12 by which rounding to multiples of a step varies; of fewer than two values that alone."""
    mean = sum(values) / max(len(values), 1)
    return sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1) + step**2 / 12


def _step(values: Iterable[float]) -> float:
    """The smallest step between two values that nearly all are multiples of: one test sample, of accuracies. 0 where all are the same.

    Nearly: a value that was changed by hand must not make the step smaller for all others.
    """
    rounded = [round(v, 12) for v in values]
    gaps = sorted({b - a for a, b in itertools.pairwise(sorted(set(rounded)))})
    for gap in gaps[:20]:
        counts = [v / gap for v in rounded]
        if sum(abs(c - round(c)) < 0.01 for c in counts) > 0.9 * len(counts):
            return gap
    return min(gaps, default=0.0)
