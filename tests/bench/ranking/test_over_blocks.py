"""The tests over blocks, against published quantiles and against sums over all signs."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.ranking.over_blocks import critical_difference, signed_rank_test
from tests.bench.recomputed import signed_rank_p


def test_critical_difference_is_that_of_the_published_table() -> None:
    """Demšar 2006, table 5a: q of 5 methods is 2.728, of 3 methods 2.343, at the level 0.05."""
    rng = np.random.default_rng(0)
    for methods, q in ((3, 2.343), (5, 2.728)):
        areas = pd.DataFrame(rng.normal(size=(12, methods)) + np.arange(methods), columns=list("abcde"[:methods]))
        found = critical_difference(areas)
        assert found is not None
        assert found.distance == pytest.approx(q * math.sqrt(methods * (methods + 1) / (6 * 12)), abs=1e-3)
        placed = [[1 + sum(other > mine for other in line) for mine in line] for line in areas.to_numpy()]
        means = [sum(column) / 12 for column in zip(*placed, strict=True)]
        assert list(found.mean_ranks[list(areas)]) == pytest.approx(means)
        chi = 12 * 12 / (methods * (methods + 1)) * (sum(m * m for m in means) - methods * (methods + 1) ** 2 / 4)  # Demšar's formula
        assert found.p == pytest.approx(stats.chi2.sf(chi, methods - 1))
        assert found.mean_ranks.index[-1] == "a", "the smallest areas have the last rank"


def test_a_method_without_all_blocks_is_left_out_of_the_critical_difference() -> None:
    areas = pd.DataFrame(np.random.default_rng(0).normal(size=(12, 4)), columns=list("abcd"))
    areas.loc[3, "b"] = math.nan
    found, wanted = critical_difference(areas), critical_difference(areas[["a", "c", "d"]])
    assert found is not None
    assert wanted is not None
    assert (found.distance, found.p) == (wanted.distance, wanted.p)
    assert found.mean_ranks.equals(wanted.mean_ranks)
    assert found.distance == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 12)), abs=1e-3)


def test_rounding_breaks_no_tie() -> None:
    up, down = (0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3)
    assert up != down
    areas = pd.DataFrame({"a": [up] * 10, "b": [down] * 10, "c": [0.1 * k for k in range(10)]})
    found = critical_difference(areas)
    assert found is not None
    assert found.mean_ranks["a"] == found.mean_ranks["b"] == (6 * 1.5 + 2 + 3 * 2.5) / 10, "all three are equal once"
    steps = [0.01, -0.01, 0.02, -0.02, 0.03, -0.03, 0.04, 0.05, 0.06, 0.07]
    assert signed_rank_test(steps) == signed_rank_test([s + (up - down) / 4 for s in steps])


def test_no_critical_difference_from_few_blocks_or_methods() -> None:
    areas = pd.DataFrame(np.random.default_rng(0).normal(size=(10, 3)), columns=list("abc"))
    assert critical_difference(areas) is not None
    assert critical_difference(areas.iloc[:9]) is None
    assert critical_difference(areas[["a", "b"]]) is None
    areas.loc[0, "c"] = math.nan
    assert critical_difference(areas) is None, "who lacks a block is left out"


@pytest.mark.parametrize("shift", [0.0, 0.6, -1.5])
def test_the_signed_rank_test_counts_all_signs(shift: float) -> None:
    found = np.random.default_rng(3).normal(shift, size=11)
    assert signed_rank_test(list(found)) == pytest.approx(signed_rank_p(list(found)))


def test_the_signed_rank_test_needs_ten_blocks_and_leaves_out_equal_ones() -> None:
    found = [0.01 * (k + 1) for k in range(10)]
    assert signed_rank_test(found) == pytest.approx(2 / 2**10)
    assert math.isnan(signed_rank_test(found[:9]))
    assert signed_rank_test([*found[:8], 0.0, 1e-17]) == pytest.approx(2 / 2**8)
    assert signed_rank_test([0.0] * 10) == 1.0
