"""Compare published rows with computed ones: each row, and all rows together.

Costs and provenance are not compared. In the same environment, a computation is bit-identical and the rows must be equal. In another
environment sums are rounded differently, and the differences grow during training. Then counts must be equal, and the numbers of
`bench.publishing.noise.MEASURES` are tested against the noise of their cell (the rows that differ only in their seed). H0: a computed row
differs from its published row at most as much as another seed would. `bench.publishing.noise.Spread` provides s², df and the mean m of k
values (the other seeds and the computed row). A published row y with the computed row y' is rejected if

    |y' - y| > q s √2, or
    |y - m| > q s √(1 + 1/k) and |y' - y| is too large at the level 5 % for a single row.

q: quantile of Student's t with df degrees of freedom at the level (level of the column) / (number of rows) / 2 for each of the two tests
(Bonferroni). The second test has more power if a single row was changed, the first one if all seeds of its cell were changed. A third test
uses all rows: without a systematic shift, each difference is positive or negative with equal probability, see `shifts`. All levels add up
to 5 %: an unchanged leaderboard passes with a probability of at least 95 %.

If a likelihood is bit-identical, the computation was too: the accuracy must be equal, in any environment. If a likelihood or Brier score
(the `witnesses` of a column) is equal up to rounding (`NEAR`), the network is the same: then the accuracy may differ by one test sample and
the other scores by 1 %, however large the noise of the cell is. Measured on 390 rows of small networks, computed with the basic
instruction set or with AVX2 instead of AVX-512: more than 80 % were equal up to rounding, with the same accuracy and scores within
0.0003. The other rows, and all rows trained on MNIST, differed by up to one standard deviation of their cell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.publishing.noise import FLOOR, MEASURES, Measure, Noise, Spread
from bench.spec.columns import Role
from bench.spec.row import DECLARED, Row, columns_of
from bench.spec.setting import Setting, decoded

WHERE = columns_of(Role.WHERE)
MEASURED = tuple(name for name in columns_of(Role.COUNT, Role.MEASURE) if name != "status")
COUNTED = tuple(name for name in columns_of(Role.COUNT) if name != "status")
ACCURACIES = ("accuracy", "accuracy_before_finetune", "dense_accuracy")
REPEATED = {"accuracy": "nll", "dense_accuracy": "dense_nll"}  # accuracy -> likelihood of the same network
SAME = 0.01  # largest relative difference of a score of the same network
SHIFT_LEVEL = {"accuracy": 0.004, "nll": 0.004}
UNLIKELY = 0.05
NEAR = (1e-5, 1e-4)  # equal up to rounding: relative difference, and in standard deviations over seeds (small at chance accuracy)
EXACT = 1e-9  # smaller relative differences of two distances are rounding errors
FLIPS = 9999  # number of random signs

Pair = tuple[Row, Row]  # published, computed


@dataclass(frozen=True)
class Verdict:
    """The differences of a row, as 'column: expected ..., got ...', and the allowed difference of its accuracy, in words."""

    differences: list[str] = field(default_factory=list)
    allowed: str = ""


@dataclass(frozen=True)
class Shift:
    """The test of one column for a shift that all rows share.

    `mean`: mean of (computed - published) over `networks` independent networks, in standard deviations. `p`: p-value.
    """

    column: str
    mean: float
    networks: int
    p: float

    @property
    def significant(self) -> bool:
        """Whether the shift is significant at the level of its column."""
        return self.p < SHIFT_LEVEL[self.column]


def same_environment(first: Row, second: Row) -> bool:
    """Whether the torch release, the device, the number of threads and the versions of packages of two rows are equal."""
    return all(getattr(first, name) == getattr(second, name) for name in WHERE)


def must_be_equal(first: Row, second: Row) -> bool:
    """Whether the measurements of two rows must be equal. With `--stack`, rounding depends on the networks that were trained as one."""
    return same_environment(first, second) and '"stack"' not in first.environment


def compare(pairs: Sequence[Pair], noise: Noise, tolerance: float | None = None) -> list[Verdict]:
    """Compare published with computed rows.

    Args:
        pairs: (published row, computed row).
        noise: the noise of the leaderboard.
        tolerance: largest allowed difference of accuracies, a fraction, instead of the tests; None: use the tests.

    Returns:
        One verdict per pair.
    """
    elsewhere = sum(not must_be_equal(*pair) for pair in pairs)
    verdicts = []
    for expected, got in pairs:
        if tolerance is not None:
            verdicts.append(_within(expected, got, tolerance))
        elif must_be_equal(expected, got):
            verdicts.append(Verdict(unequal(expected, got)))
        else:
            verdicts.append(judge(expected, got, noise, elsewhere))
    return verdicts


def judge(expected: Row, got: Row, noise: Noise, rows: int = 1) -> Verdict:
    """Compare two rows with the tests above.

    Args:
        expected: the published row.
        got: the computed row.
        noise: the noise of the leaderboard.
        rows: number of rows that are tested together.
    """
    found, allowed = _miscounted(expected, got), ""
    for measure in MEASURES:
        a, b = getattr(expected, measure.column), getattr(got, measure.column)
        if a is None or b is None or _repeated(expected, got, measure.column):
            found += unequal(expected, got, (measure.column,))
            continue
        if a == b and measure is not MEASURES[0]:  # the allowed difference is reported for accuracy even if it is equal
            continue
        spread = noise.spread(expected, got, measure)
        if spread is None:
            fault, allows = "no other seed or cell shows how much noise to allow (use --tolerance)" * (a != b), ""
        elif witness := _witness(expected, got, noise, measure):
            fault, allows = _by_rounding(expected, got, spread, measure, witness)
        else:
            fault, allows = _by_seeds(expected, got, spread, measure, rows)
        found += [f"{measure.column}: expected {_text(a)}, got {_text(b)}: {fault}"] * bool(fault)
        allowed = allowed or allows
    return Verdict(found, allowed)


def _by_seeds(expected: Row, got: Row, spread: Spread, measure: Measure, rows: int) -> tuple[str, str]:
    """(error message or '', allowed difference), by the two tests above."""
    from scipy import stats  # late: a second of import

    apart, off = _apart(expected, got, measure), abs((measure.value(expected) or 0.0) - spread.mean)
    q, unlikely = (float(stats.t.isf(level, spread.df)) for level in (measure.level / rows / 4, UNLIKELY / 2))
    between = math.sqrt(2 * spread.variance)  # deviation of the difference of two runs
    limit, limit_off = max(q * between, spread.step), q * math.sqrt(spread.variance * (1 + 1 / spread.count))
    seeds = f"({spread.count} {'seed' if spread.count == 1 else 'seeds'})"
    allows = f"this cell allows {_distance(limit, measure)} {seeds}"
    if apart > limit * (1 + EXACT):
        return f"differs by {_distance(apart, measure)}, {allows}", allows
    if apart > max(unlikely * between, spread.step * (1 + EXACT)) and off > limit_off:
        where = f"this re-run and the other seeds, {_distance(limit_off, measure)} allowed {seeds}"
        return f"{_distance(off, measure)} from the mean of {where}", allows
    return "", allows


def _by_rounding(expected: Row, got: Row, spread: Spread, measure: Measure, witness: str) -> tuple[str, str]:
    """The same as `_by_seeds`, if a witness shows that the network is the same."""
    apart, limit = _apart(expected, got, measure), SAME if measure.positive else spread.step
    allows = f"{_distance(limit, measure)} allowed, because {witness} is equal up to rounding"
    return (f"differs by {_distance(apart, measure)}, {allows}" if apart > limit * (1 + EXACT) else ""), allows


def _witness(expected: Row, got: Row, noise: Noise, measure: Measure) -> str:
    """The first witness of a column that is equal up to rounding; '' if there is none."""
    judged = DECLARED[measure.column].judged
    for likelihood in MEASURES:
        if judged is not None and likelihood.column in judged.witnesses:
            spread = noise.spread(expected, got, likelihood)
            enough = min(NEAR[0], NEAR[1] * spread.deviation) if spread and spread.deviation > FLOOR else 0.0
            if enough and _apart(expected, got, likelihood) <= enough:
                return likelihood.column
    return ""


def _apart(expected: Row, got: Row, measure: Measure) -> float:
    """The absolute difference of two values on the scale of the test; both values must exist."""
    a, b = measure.value(expected), measure.value(got)
    assert a is not None
    assert b is not None
    return abs(a - b)


def shifts(pairs: Sequence[Pair], noise: Noise) -> list[Shift]:
    """Test for a shift that all rows share, for each column of `SHIFT_LEVEL` (Fisher's randomisation test).

    Under H0 published and computed values are exchangeable: each sign of their difference has probability 1/2, for any distribution. Rows
    that prune the same dense network have one common sign. p: fraction of sign vectors with a sum of standardised differences at least as
    large in absolute value, among `FLIPS` random ones and the observed one. Rows that must be equal are left out.

    Args:
        pairs: (published row, computed row).
        noise: the noise of the leaderboard.

    Returns:
        One shift per column with differences to test.
    """
    judged = [pair for pair in pairs if not must_be_equal(*pair)]
    found = []
    for measure in MEASURES:
        if measure.column in SHIFT_LEVEL:
            by_network: dict[tuple[Any, ...], list[float]] = {}
            for pair in judged:
                difference = _standardised(*pair, noise, measure)
                if difference is not None:
                    by_network.setdefault(_network(pair[0]), []).append(difference)
            means = np.array([sum(values) / len(values) for values in by_network.values()])
            if len(means):
                found.append(Shift(measure.column, float(means.mean()), len(means), _sign_flips(means)))
    return found


def _sign_flips(values: np.ndarray) -> float:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, len(values)))
    as_large = np.abs(signs @ values) >= abs(values.sum()) - 1e-12
    return float((1 + as_large.sum()) / (1 + FLIPS))


def _standardised(expected: Row, got: Row, noise: Noise, measure: Measure) -> float | None:
    """(computed - published) / standard deviation of such a difference; None if a value is missing.

    Limited to ±3, so that no single row decides. Values below 0.001 count as 0, because rounding may be biased to one side.
    """
    y, again = measure.value(expected), measure.value(got)
    if y is None or again is None:
        return None
    spread = noise.spread(expected, got, measure)
    if spread is None or again == y:
        return 0.0
    between = math.sqrt(2 * spread.variance)
    size = min(abs(again - y) / between, 3.0) if between else 3.0
    return math.copysign(size, again - y) if size >= 1e-3 else 0.0


def _network(row: Row) -> tuple[Any, ...]:
    """Rows with the same value are not independent: they prune the same dense network, or are the same trained network."""
    training = Setting(decoded(row.hyperparameters).training).encoded()
    own = (row.method, row.tuning, row.ablation, row.sparsity) if row.stage not in ("", "after") else ()
    return row.dataset, row.architecture, row.seed, row.training, training, *own


def _within(expected: Row, got: Row, tolerance: float) -> Verdict:
    """The verdict if accuracies may differ by a tolerance."""
    found = _miscounted(expected, got)
    for name in ACCURACIES:
        a, b = getattr(expected, name), getattr(got, name)
        if a is not None and (_repeated(expected, got, name) or b is None or abs(a - b) > tolerance):
            found += unequal(expected, got, (name,))
    return Verdict(found, f"--tolerance allows {100 * tolerance:.3g} points")


def _miscounted(expected: Row, got: Row) -> list[str]:
    """Differences in status and counts. ok and collapsed may be exchanged: rounding can decide whether a layer keeps a last weight."""
    found = unequal(expected, got, ("status", *COUNTED))
    return found[1:] if {expected.status, got.status} == {"ok", "collapsed"} else found


def unequal(expected: Row, got: Row, names: Sequence[str] = ("status", *MEASURED)) -> list[str]:
    """The columns that are not equal; columns that are empty in `expected` are ignored.

    Args:
        expected: the published row.
        got: the computed row.
        names: columns to compare.

    Returns:
        'column: expected ..., got ...' of each difference.
    """
    found = []
    for name in names:
        a, b = getattr(expected, name), getattr(got, name)
        if a is not None and a != b:
            though = f", although {REPEATED[name]} is bit-identical" if _repeated(expected, got, name) else ""
            found.append(f"{name}: expected {_text(a)}, got {_text(b)}{though}")
    return found


def _repeated(expected: Row, got: Row, name: str) -> bool:
    """Whether the likelihood of the same network is bit-identical."""
    likelihood = REPEATED.get(name)
    return (
        likelihood is not None and getattr(expected, likelihood) is not None and getattr(expected, likelihood) == getattr(got, likelihood)
    )


def _distance(value: float, measure: Measure) -> str:
    """A distance in words: percentage points of a fraction, or a factor on a logarithmic scale."""
    return f"a factor of {math.exp(value):.3g}" if measure.positive else f"{100 * value:.3g} points"


def _text(value: Any) -> str:
    return "nothing" if value is None else repr(value) if isinstance(value, float) else str(value)
