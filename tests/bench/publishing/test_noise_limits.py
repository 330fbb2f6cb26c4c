"""The limits of a re-computed row at their boundaries, for made-up noise: each rule of `row_comparison` by its formula."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bench.publishing import row_comparison
from bench.publishing.noise import MEASURES, Measure, Noise, Spread
from bench.publishing.row_comparison import compare, judge, shifts
from bench.spec.row import Row
from tests.bench.publishing.test_row_comparison import row

ACCURACY = MEASURES[0]
NLL = next(measure for measure in MEASURES if measure.column == "nll")
PUBLISHED = row("m", 0.5, 0, 0.5)


class Made:
    """Noise whose spread is given."""

    def __init__(self, **spread: float) -> None:
        self.made = Spread(**{"variance": 1.0, "df": 4.0, "mean": 0.5, "count": 5, "deviation": 1.0, "step": 0.0} | spread)  # type: ignore[arg-type]

    def spread(self, row: Row, got: Row, measure: Measure) -> Spread | None:
        return None if measure.value(row) is None or measure.value(got) is None else self.made


def values(y: float, again: float) -> tuple[Row, Row]:
    return replace(PUBLISHED, accuracy=y), replace(PUBLISHED, accuracy=again, torch="2.14.1", nll=0.9)


def test_a_row_is_rejected_exactly_where_one_of_the_two_tests_rejects_it() -> None:
    draw, seen = random.Random(0), Counter[tuple[bool, bool]]()
    for _ in range(3000):
        y, again, mean = (draw.uniform(0.2, 0.8) for _ in range(3))
        y *= draw.random() < 0.98
        s, df, k, rows = draw.choice([0.002, 0.02, 0.08]), draw.choice([2.0, 4.8, 20.0]), draw.choice([1, 2, 5]), draw.choice([1, 10])
        step = draw.choice([0.0, 0.001, 0.1])
        again = y + (again - y) * draw.choice([0.1, 0.3, 1.0])
        spread = Spread(s * s, df, mean, k, s, step)
        fault, allows = row_comparison._by_seeds(*values(y, again), spread, ACCURACY, rows)
        q = stats.t.ppf(1 - 0.025 / rows / 2 / 2, df)
        first = abs(again - y) > max(q * s * math.sqrt(2), step)
        alone = abs(again - y) > max(stats.t.ppf(0.975, df) * s * math.sqrt(2), step)
        second = abs(y - mean) > q * s * math.sqrt(1 + 1 / k) and alone
        assert bool(fault) == (first or second), (y, again, spread, rows)
        assert ("from the mean of" in fault) == (second and not first)
        limit = 100 * max(q * s * math.sqrt(2), step)
        assert allows == f"this cell allows {limit:.3g} points ({k} {'seed' if k == 1 else 'seeds'})"
        seen[first, second] += 1
    assert len(seen) == 4
    assert min(seen.values()) > 50


def test_one_step_always_agrees() -> None:
    """Also where the mean of the other seeds is far away, and where the difference of two fractions is rounded up."""
    for y, again, step in ((0.5, 0.75, 0.25), (100 / 114, 101 / 114, 1 / 114), (0.3, 0.1, 0.2), (0.7, 0.8, 0.1), (0.8, 0.9, 0.1)):
        spread = Spread(0.0, 4.0, 0.0, 5, 0.0, step)
        assert row_comparison._by_seeds(*values(y, again), spread, ACCURACY, 1)[0] == ""
        assert row_comparison._by_seeds(*values(y, again + 1e-6 * (again - y)), spread, ACCURACY, 1)[0] != ""


def test_one_row_is_the_default() -> None:
    noise = Made(variance=1e-4)
    for gain in np.linspace(0.01, 0.08, 15):
        expected, got = values(0.5, 0.5 + float(gain))
        assert judge(expected, got, noise) == judge(expected, got, noise, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("deviation", "relative", "witness"),
    [
        (1.0, 0.9e-5, "nll"), (1.0, 1.1e-5, ""), (0.1, 0.9e-5, "nll"), (0.1, 1.1e-5, ""), (0.01, 0.9e-6, "nll"), (0.01, 1.1e-6, ""),
        (1e-6, 0.0, ""), (1.1e-6, 0.0, "nll"), (0.0, 0.0, ""),
    ],
)  # fmt: skip
def test_a_witness_is_equal_up_to_rounding(deviation: float, relative: float, witness: str) -> None:
    got = replace(PUBLISHED, nll=(PUBLISHED.nll or 0) * math.exp(relative))
    assert row_comparison._witness(PUBLISHED, got, Made(deviation=deviation), ACCURACY) == witness  # type: ignore[arg-type]


def standardised(y: float | None, again: float | None, **spread: float) -> float | None:
    expected, got = replace(PUBLISHED, accuracy=y), replace(PUBLISHED, accuracy=again)
    return row_comparison._standardised(expected, got, Made(**spread), ACCURACY)  # type: ignore[arg-type]


def test_standardised_differences_are_limited_and_small_ones_are_none() -> None:
    """In units of s sqrt(2), from -3 to 3, and 0 below 0.001."""
    variance = 0.01**2 / 2
    assert standardised(0.5, 0.51, variance=variance) == pytest.approx(1)
    assert standardised(0.5, 0.485, variance=variance) == pytest.approx(-1.5)
    assert standardised(0.5, 0.6, variance=variance) == 3
    assert standardised(0.5, 0.4, variance=variance) == -3
    assert standardised(0.5, 0.5 + 1.01e-5, variance=variance) == pytest.approx(1.01e-3)
    assert standardised(0.5, 0.5 - 0.99e-5, variance=variance) == 0
    assert standardised(0.5, 0.5 + 0.99e-5, variance=variance) == 0
    assert standardised(0.5, 0.5, variance=variance) == 0
    assert standardised(0.5, 0.5, variance=0.0) == 0
    assert (standardised(0.5, 0.6, variance=0.0), standardised(0.6, 0.5, variance=0.0)) == (3, -3)
    assert standardised(None, 0.5) is None
    assert standardised(0.5, None) is None
    alone = replace(PUBLISHED, accuracy=0.6)
    assert row_comparison._standardised(PUBLISHED, alone, Noise([PUBLISHED]), ACCURACY) == 0, "no noise is known"


def test_shifts_are_of_rows_computed_elsewhere_with_both_values() -> None:
    """Two networks of four rows: their means are 1 and -2, in units of s sqrt(2)."""
    noise = Made(variance=0.01**2 / 2)
    gains = {0: (0.005, 0.015), 1: (-0.02, -0.02)}
    pairs = [values(0.5, 0.5 + gain) for seed in gains for gain in gains[seed]]
    pairs = [(replace(a, seed=k // 2), replace(b, seed=k // 2)) for k, (a, b) in enumerate(pairs)]
    same = replace(PUBLISHED, accuracy=0.9, seed=7)
    pairs += [(replace(PUBLISHED, seed=7), same), values(0.5, 0.5)]
    pairs[-1] = (replace(pairs[-1][0], seed=8, accuracy=None), replace(pairs[-1][1], seed=8))
    accuracy, nll = shifts(pairs, noise)  # type: ignore[arg-type]
    assert (accuracy.column, accuracy.networks) == ("accuracy", 2)
    assert accuracy.mean == pytest.approx(-0.5)
    assert accuracy.p == pytest.approx(1, abs=0.02), "|1 - 2| is the smaller of the two sums that signs can make"
    assert (nll.column, nll.networks, nll.mean) == ("nll", 3, 3.0)
    assert nll.p == pytest.approx(2 / 8, abs=0.03), "all signs equal"
    assert shifts(pairs[4:5], noise) == []  # type: ignore[arg-type]


def test_random_signs_have_the_p_value_of_all_signs() -> None:
    """Of 2^10 sign vectors, those whose sum is at least as large; 5 standard errors of 9999 draws."""
    draw = np.random.default_rng(3)
    every = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1).T
    for shift in (0.0, 0.3, 0.8, 2.0):
        means = draw.normal(size=10) + shift
        exact = float((np.abs(every @ means) >= abs(means.sum()) - 1e-9).mean())
        assert row_comparison._sign_flips(means) == pytest.approx(exact, abs=5 * math.sqrt(exact / 9999) + 1e-4)
    assert row_comparison._sign_flips(np.full(60, 1.0)) == pytest.approx(1 / 10_000), "the observed one is one of 10,000"


@pytest.mark.parametrize(("apart", "agrees"), [(0.0, True), (0.0625, True), (0.07, False)])
def test_a_tolerance_is_the_largest_difference(apart: float, agrees: bool) -> None:
    for y, again in ((0.5, 0.5 + apart), (0.5 + apart, 0.5)):
        (verdict,) = compare([values(y, again)], Noise([]), 0.0625)
        assert (verdict.differences == []) == (agrees or apart == 0)
        assert verdict.allowed == "--tolerance allows 6.25 points"


@pytest.mark.parametrize(
    ("published", "computed", "differs"),
    [
        ("ok", "ok", False), ("ok", "collapsed", False), ("collapsed", "ok", False), ("ok", "failed", True), ("failed", "ok", True),
        ("failed", "collapsed", True), ("unsupported", "failed", True), ("collapsed", "collapsed", False),
    ],
)  # fmt: skip
def test_only_ok_and_collapsed_may_be_exchanged(published: str, computed: str, differs: bool) -> None:
    expected, got = replace(PUBLISHED, status=published), replace(PUBLISHED, status=computed, kept_weights=501)
    found = row_comparison._miscounted(expected, got)
    assert found == [f"status: expected {published}, got {computed}"] * differs + ["kept_weights: expected 500, got 501"]


def test_the_level_is_shared_by_the_rows_that_were_computed_elsewhere() -> None:
    noise, here = Made(variance=1e-4), (PUBLISHED, PUBLISHED)
    for gain in np.linspace(0.02, 0.12, 26):
        pair = values(0.5, 0.5 + float(gain))
        found = compare([here, pair, here, pair, pair], noise)  # type: ignore[arg-type]
        wanted = judge(*pair, noise, 3)  # type: ignore[arg-type]
        assert [verdict.differences for verdict in found] == [[], wanted.differences, [], wanted.differences, wanted.differences]


def test_the_allowed_difference_is_that_of_accuracy_also_where_it_is_equal() -> None:
    limit = 100 * stats.t.ppf(1 - 0.025 / 4, 4) * 0.01 * math.sqrt(2)
    found = judge(*values(0.5, 0.5), Made(variance=1e-4))  # type: ignore[arg-type]
    assert found.allowed == f"this cell allows {limit:.3g} points (5 seeds)"


def test_the_same_likelihood_has_the_same_accuracy() -> None:
    for name, likelihood in (("accuracy", "nll"), ("dense_accuracy", "dense_nll")):
        expected = replace(PUBLISHED, **{name: 0.5, likelihood: 0.3})  # type: ignore[arg-type]
        got = replace(expected, **{name: 0.5001}, torch="2.14.1")  # type: ignore[arg-type]
        line = f"{name}: expected 0.5, got 0.5001, although {likelihood} is bit-identical"
        assert judge(expected, got, Made()).differences == [line]  # type: ignore[arg-type]
        (verdict,) = compare([(expected, got)], Noise([]), 0.1)
        assert verdict.differences == [line]
    (verdict,) = compare([(replace(PUBLISHED, accuracy=None), replace(PUBLISHED, nll=0.9))], Noise([]), 0.1)
    assert verdict.differences == []
