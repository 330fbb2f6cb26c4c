"""Whether what was computed again agrees with what is published: row by row, and for all rows together.

Everything but costs and provenance is compared. In the same environment a computation repeats itself bit for bit, and the rows must
be equal. Elsewhere sums are rounded differently and training carries that on. Then counts must be equal, and the numbers of
`noise.MEASURES` are judged by the noise of their cell. H0: an honest re-run differs from its row at most as another seed would.
With s², df and the mean m of k values (the other seeds and the re-run) from `noise.Spread`, a row y with the re-run y' is rejected if

    |y' - y| > q s √2    or    |y - m| > q s √(1 + 1/k), where |y' - y| is too large at 5 % for a single row as well,

q: the quantile of Student's t at (level of the column) / (rows of the call) / 2 for each of the two tests (Bonferroni). The second
test is the sharper one where a single row was changed, the first where all seeds of its cell were. Then one test for all rows: the
signs of honest differences are coin tosses, see `shifts`. All levels together are 5 %: an honest call passes with 95 % at least.

Where a likelihood repeats itself to the last bit, so has the computation: its accuracy must be equal, whatever the devices are called.
Where one of its witnesses does but for rounding (`NEAR`), the network is the same: its accuracy may differ by one test sample, its other
scores by a hundredth, however noisy the cell. Of 390 rows of small networks computed with the plainest instructions, or with AVX2, in
place of AVX-512, more than eight in ten do, all with the same accuracy and scores within 0.0003 of themselves. The others, and all that
were trained on MNIST, differ by up to one deviation of their cell.
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
REPEATED = {"accuracy": "nll", "dense_accuracy": "dense_nll"}  # accuracy -> the likelihood of the same network
SAME = 0.01  # of a score of the same network, relative
SHIFT_LEVEL = {"accuracy": 0.004, "nll": 0.004}
UNLIKELY = 0.05
NEAR = (1e-5, 1e-4)  # of a likelihood: relative, and in deviations over seeds, for networks at chance all have the same
EXACT = 1e-9  # below this, a relative difference of two distances is rounding
FLIPS = 9999

Pair = tuple[Row, Row]  # published, computed


@dataclass(frozen=True)
class Verdict:
    """What differs in a row, as 'column: expected ..., got ...', and how far its accuracy was allowed to differ."""

    differences: list[str] = field(default_factory=list)
    allowed: str = ""


@dataclass(frozen=True)
class Shift:
    """The mean of (computed - published) over the independent networks of a sample, in deviations of such a difference."""

    column: str
    mean: float
    networks: int
    p: float

    @property
    def significant(self) -> bool:
        """Whether honest rows would show so large a shift too rarely."""
        return self.p < SHIFT_LEVEL[self.column]


def same_environment(first: Row, second: Row) -> bool:
    """Whether both rows are of one release of torch, one device and, where rows say it, one environment: they must be equal."""
    return all(getattr(first, name) == getattr(second, name) for name in WHERE)


def compare(pairs: Sequence[Pair], noise: Noise, tolerance: float | None = None) -> list[Verdict]:
    """The verdict on each (published, computed). `noise`: of the board. `tolerance`: of accuracies, in place of every other rule."""
    elsewhere = sum(not same_environment(*pair) for pair in pairs)
    verdicts = []
    for expected, got in pairs:
        if tolerance is not None:
            verdicts.append(_within(expected, got, tolerance))
        elif same_environment(expected, got):
            verdicts.append(Verdict(unequal(expected, got)))
        else:
            verdicts.append(judge(expected, got, noise, elsewhere))
    return verdicts


def judge(expected: Row, got: Row, noise: Noise, rows: int = 1) -> Verdict:
    """The verdict by what the row's cell shows over seeds, as one of so many rows that are judged together."""
    found, allowed = _miscounted(expected, got), ""
    for measure in MEASURES:
        a, b = getattr(expected, measure.column), getattr(got, measure.column)
        if a is None or b is None or _repeated(expected, got, measure.column):
            found += unequal(expected, got, (measure.column,))
            continue
        if a == b and measure is not MEASURES[0]:  # of accuracy it is said what was allowed
            continue
        spread = noise.spread(expected, got, measure)
        if spread is None:
            fault, allows = "no other seed or cell shows how much to allow (--tolerance does)" * (a != b), ""
        elif witness := _witness(expected, got, noise, measure):
            fault, allows = _by_rounding(expected, got, spread, measure, witness)
        else:
            fault, allows = _by_seeds(expected, got, spread, measure, rows)
        found += [f"{measure.column}: expected {_text(a)}, got {_text(b)}: {fault}"] * bool(fault)
        allowed = allowed or allows
    return Verdict(found, allowed)


def _by_seeds(expected: Row, got: Row, spread: Spread, measure: Measure, rows: int) -> tuple[str, str]:
    """(what is wrong with a value, '' where nothing is; what its cell allows), by the two tests above."""
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
    """As `_by_seeds`, where the witness says that the network is the same."""
    apart, limit = _apart(expected, got, measure), SAME if measure.positive else spread.step
    allows = f"{_distance(limit, measure)} allowed, for {witness} is the same but for rounding"
    return (f"differs by {_distance(apart, measure)}, {allows}" if apart > limit * (1 + EXACT) else ""), allows


def _witness(expected: Row, got: Row, noise: Noise, measure: Measure) -> str:
    """The first score beside this one that is the same but for rounding; '' where there is none."""
    judged = DECLARED[measure.column].judged
    for likelihood in MEASURES:
        if judged is not None and likelihood.column in judged.witnesses:
            spread = noise.spread(expected, got, likelihood)
            enough = min(NEAR[0], NEAR[1] * spread.deviation) if spread and spread.deviation > FLOOR else 0.0
            if enough and _apart(expected, got, likelihood) <= enough:
                return likelihood.column
    return ""


def _apart(expected: Row, got: Row, measure: Measure) -> float:
    """The distance of two values that are there, on the scale on which they are judged."""
    a, b = measure.value(expected), measure.value(got)
    assert a is not None
    assert b is not None
    return abs(a - b)


def shifts(pairs: Sequence[Pair], noise: Noise) -> list[Shift]:
    """Tests of a shift that all rows share, for each column of `SHIFT_LEVEL`; rows of the same environment are left out.

    If published and computed values are honest they are exchangeable: each sign of their difference is a coin toss, whatever the
    distribution (Fisher's randomisation test). Rows that prune the same dense network share its toss. p: how often random signs give
    a sum of standardised differences at least as large, among `FLIPS` draws and the signs that there are.
    """
    judged = [pair for pair in pairs if not same_environment(*pair)]
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
    """(computed - published) in deviations of such a difference; None where there is nothing to compare.

    At most 3, so that no row decides alone; 0 below 0.001, for the rounding of two releases may well lean to one side.
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
    """What rows share whose re-runs are no independent ones: the dense network, or their own where each is trained apart."""
    training = Setting(decoded(row.hyperparameters).training).encoded()
    own = (row.method, row.tuning, row.ablation, row.sparsity) if row.stage not in ("", "after") else ()
    return row.dataset, row.architecture, row.seed, row.training, training, *own


def _within(expected: Row, got: Row, tolerance: float) -> Verdict:
    """The verdict where accuracies may differ by a tolerance."""
    found = _miscounted(expected, got)
    for name in ACCURACIES:
        a, b = getattr(expected, name), getattr(got, name)
        if a is not None and (_repeated(expected, got, name) or b is None or abs(a - b) > tolerance):
            found += unequal(expected, got, (name,))
    return Verdict(found, f"--tolerance allows {100 * tolerance:.3g} points")


def _miscounted(expected: Row, got: Row) -> list[str]:
    """What must be equal everywhere and is not. Whether a layer keeps a last weight may hang on rounding."""
    found = unequal(expected, got, ("status", *COUNTED))
    return found[1:] if {expected.status, got.status} == {"ok", "collapsed"} else found


def unequal(expected: Row, got: Row, names: Sequence[str] = ("status", *MEASURED)) -> list[str]:
    """The columns that are not equal; a measurement that `expected` lacks is not asked for."""
    found = []
    for name in names:
        a, b = getattr(expected, name), getattr(got, name)
        if a is not None and a != b:
            though = f", though {REPEATED[name]} is the same to the last bit" if _repeated(expected, got, name) else ""
            found.append(f"{name}: expected {_text(a)}, got {_text(b)}{though}")
    return found


def _repeated(expected: Row, got: Row, name: str) -> bool:
    """Whether the likelihood beside an accuracy is the same to the last bit."""
    likelihood = REPEATED.get(name)
    return (
        likelihood is not None and getattr(expected, likelihood) is not None and getattr(expected, likelihood) == getattr(got, likelihood)
    )


def _distance(value: float, measure: Measure) -> str:
    """A distance in words: points of a fraction, a factor of a number on a logarithmic scale."""
    return f"a factor of {math.exp(value):.3g}" if measure.positive else f"{100 * value:.3g} points"


def _text(value: Any) -> str:
    return "nothing" if value is None else repr(value) if isinstance(value, float) else str(value)
