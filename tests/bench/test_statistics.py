"""The tests between methods, on simulated results whose answers are known."""

import gc
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.statistics import critical_difference, detectable, estimate, holm, shared_ranks, told_apart


def sample(values: object) -> pd.Series:
    """A line for each block, a column for each seed; NaN is missing."""
    table = np.array(values, float)
    return pd.Series(table.ravel(), pd.MultiIndex.from_product([range(n) for n in table.shape], names=["block", "seed"]))


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> Iterator[None]:
    """statsmodels collects garbage at every correction, which takes thousands of simulations a minute where torch is loaded."""
    holm([1.0])  # imports it
    gc.freeze()
    yield
    gc.unfreeze()


def board(rng: np.random.Generator, methods: int, blocks: int, seeds: int, gains: tuple[float, ...] = ()) -> dict[str, np.ndarray]:
    """Areas of methods that differ by noise of standard deviation 1, and by gains; blocks and seeds have effects that all share."""
    common = 10 * rng.normal(size=(blocks, 1)) + 3 * rng.normal(size=(blocks, seeds))
    gains = gains + (0.0,) * (methods - len(gains))
    return {f"m{i}": common + rng.normal(size=(blocks, seeds)) + gain for i, gain in enumerate(gains)}


def better(areas: dict[str, np.ndarray]) -> set[tuple[str, str]]:
    return told_apart({(a, b): sample(areas[a] - areas[b]) for a, b in itertools.combinations(areas, 2)})


def share(simulations: int, *arguments: int, gains: tuple[float, ...] = (), found: tuple[str, str] | None = None) -> float:
    """Share of simulated boards on which the pair was told apart, or any pair."""
    rng = np.random.default_rng(0)
    results = [better(board(rng, *arguments, gains=gains)) for _ in range(simulations)]
    return float(np.mean([found in pairs if found else bool(pairs) for pairs in results]))


def test_one_block_is_the_t_test() -> None:
    values = [0.3, -0.1, 0.4, 0.2, 0.6]
    e = estimate(sample([values]))
    test = stats.ttest_1samp(values, 0)
    interval = test.confidence_interval()
    assert (e.mean, e.std, e.df) == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))
    assert (e.p, e.low, e.high) == pytest.approx((test.pvalue, interval.low, interval.high))


def test_blocks_by_hand() -> None:
    """Block means 2, 5, 1; squared deviations 2, 2, 2 over 6 - 3 degrees of freedom: s = sqrt(2), standard error s / sqrt(6)."""
    e = estimate(sample([[1, 3], [4, 6], [0, 2]]))
    error = math.sqrt(2) / math.sqrt(6)
    assert (e.mean, e.std, e.df) == pytest.approx((8 / 3, math.sqrt(2), 3))
    assert e.p == pytest.approx(2 * stats.t.sf(8 / 3 / error, 3))
    assert e.high - e.mean == pytest.approx(stats.t.ppf(0.975, 3) * error)


def test_every_block_weighs_the_same_whatever_its_seeds() -> None:
    e = estimate(sample([[0.0, 2.0, math.nan, math.nan], [6.0, 8.0, 9.0, 9.0]]))
    assert e.mean == pytest.approx((1 + 8) / 2)
    assert e.df == 4
    error = math.sqrt((2 + 6) / 4) * math.sqrt(1 / 2 + 1 / 4) / 2
    assert e.high - e.low == pytest.approx(2 * stats.t.ppf(0.975, 4) * error)


def test_block_effects_are_no_noise() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(4, 3))
    plain, spread = estimate(sample(noise)), estimate(sample(noise + np.array([[9.0], [-9.0], [5.0], [-5.0]])))
    assert (spread.mean, spread.p, spread.std) == pytest.approx((plain.mean, plain.p, plain.std))
    areas = board(rng, 3, 4, 3)
    moved = {name: table + np.array([[5.0], [1.0], [-2.0], [100.0]]) for name, table in areas.items()}
    for a, b in itertools.combinations(areas, 2):
        assert estimate(sample(moved[a] - moved[b])).p == pytest.approx(estimate(sample(areas[a] - areas[b])).p, rel=1e-6)


def test_one_seed_tells_nothing() -> None:
    e = estimate(sample([[0.1], [0.4], [0.2]]))
    assert e.mean == pytest.approx(0.7 / 3)
    assert all(math.isnan(v) for v in (e.p, e.low, e.high, e.std))
    assert better(board(np.random.default_rng(0), 3, 4, 1, gains=(1000.0,))) == set()
    assert math.isnan(estimate(sample([[math.nan]])).mean)


@pytest.mark.parametrize(("values", "p"), [([[0.0, 0.0], [0.0, 0.0]], 1.0), ([[0.1, 0.1], [0.1, 0.1 + 1e-16]], 0.0)])
def test_without_noise_the_answer_is_exact(values: list[list[float]], p: float) -> None:
    e = estimate(sample(values))
    assert (e.p, e.std) == (p, 0.0)
    assert e.low == e.high == e.mean


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]), "3 x 0.01; 2 x 0.03; and 0.04 no smaller than 0.06"
    assert holm([math.nan, 0.02, 0.5]) == pytest.approx([math.nan, 0.04, 0.5], nan_ok=True), "what cannot be tested is no test"
    assert holm([]).tolist() == []


def test_rank_is_one_more_than_the_number_that_are_better() -> None:
    assert shared_ranks("abcd", {("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}) == {"a": 1, "b": 1, "c": 2, "d": 4}


def test_equal_methods_share_the_first_rank() -> None:
    """Holm keeps the chance of any false distinction at 5 %: bounds are three standard errors of 300 simulated boards."""
    error = 3 * math.sqrt(0.05 * 0.95 / 300)
    assert share(300, 5, 4, 3) <= 0.05 + error
    assert 0.05 - error <= share(300, 2, 4, 3) <= 0.05 + error, "two methods are one test, at its level exactly"


def test_a_better_method_is_told_apart_given_seeds_and_blocks_enough() -> None:
    """A gain of 1.5 standard deviations over seeds, among five methods."""
    gain, pair = (1.5,), ("m0", "m3")
    assert share(100, 5, 4, 5, gains=gain, found=pair) > 0.9
    assert share(100, 5, 10, 5, gains=gain, found=pair) > 0.9
    assert share(100, 5, 4, 3, gains=gain, found=pair) < 0.6
    assert share(100, 5, 1, 3, gains=gain, found=pair) < 0.1


def test_what_is_detectable_is_detected_in_four_cases_of_five() -> None:
    gap = detectable(5, 4, 2)
    assert share(300, 2, 4, 5, gains=(gap,), found=("m0", "m1")) == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 300))
    assert detectable(5, 4, 10) > gap > detectable(10, 4, 2) > detectable(10, 10, 2)
    assert math.isnan(detectable(1, 4, 2))
    assert math.isnan(detectable(3, 4, 1))


def test_critical_difference_is_that_of_the_published_table() -> None:
    """Demšar 2006, table 5a: q of 5 methods is 2.728, of 3 methods 2.343, at the level 0.05."""
    rng = np.random.default_rng(0)
    for methods, q in ((3, 2.343), (5, 2.728)):
        areas = pd.DataFrame(rng.normal(size=(12, methods)) + np.arange(methods), columns=list("abcde"[:methods]))
        found = critical_difference(areas)
        assert found is not None
        assert found.distance == pytest.approx(q * math.sqrt(methods * (methods + 1) / (6 * 12)), abs=1e-3)
        assert found.p == pytest.approx(stats.friedmanchisquare(*areas.to_numpy().T).pvalue)
        assert found.mean_ranks.sum() == pytest.approx(methods * (methods + 1) / 2)
        assert found.mean_ranks.index[-1] == "a", "the smallest areas have the last rank"


def test_no_critical_difference_from_few_blocks_or_methods() -> None:
    areas = pd.DataFrame(np.random.default_rng(0).normal(size=(10, 3)), columns=list("abc"))
    assert critical_difference(areas.iloc[:9]) is None
    assert critical_difference(areas[["a", "b"]]) is None
    areas.loc[0, "c"] = math.nan
    assert critical_difference(areas) is None, "who lacks a block is left out"
