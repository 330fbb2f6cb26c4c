"""The tests between methods, on simulated results whose answers are known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.ranking.statistics import (
    Comparison,
    compare,
    estimate,
    family_df,
    half_width,
    holm,
    noncentrality,
    rank_ranges,
    welch_df,
)


def sample(values: object) -> pd.Series:
    """A line for each block, a column for each seed; NaN is missing."""
    table = np.array(values, float)
    return pd.Series(table.ravel(), pd.MultiIndex.from_product([range(n) for n in table.shape], names=["block", "seed"]))


def board(
    rng: np.random.Generator, methods: int, blocks: int, seeds: int, gains: tuple[float, ...] = (), noise: object = 1.0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Areas of methods that differ by noise, of standard deviation `noise` (a number, or one for each block), and by gains; blocks and
    seeds have effects that all share."""
    common = 10 * rng.normal(size=(blocks, 1)) + 3 * rng.normal(size=(blocks, seeds))
    gains = gains + (0.0,) * (methods - len(gains))
    deviations = np.broadcast_to(np.reshape(np.array(noise, float), (-1, 1)), (blocks, seeds))
    return {f"m{i}": common + deviations * rng.normal(size=(blocks, seeds)) + gain for i, gain in enumerate(gains)}


def compared(areas: dict[str, np.ndarray]) -> Comparison:
    return compare({(a, b): sample(areas[a] - areas[b]) for a, b in itertools.combinations(areas, 2)})


def share(simulations: int, *arguments: int, found: tuple[str, str] | None = None, **more: object) -> float:
    """Share of simulated boards on which the pair differs significantly, or any pair."""
    rng = np.random.default_rng(0)
    results = [compared(board(rng, *arguments, **more)).significant_pairs for _ in range(simulations)]
    return float(np.mean([found in pairs if found else bool(pairs) for pairs in results]))


def test_one_block_is_the_t_test() -> None:
    values = [0.3, -0.1, 0.4, 0.2, 0.6]
    e = estimate(sample([values]))
    test = stats.ttest_1samp(values, 0)
    interval = test.confidence_interval()
    assert (e.mean, e.std, e.df) == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))
    assert (e.p, e.low, e.high) == pytest.approx((test.pvalue, interval.low, interval.high))
    assert half_width(e.std, 5) == pytest.approx(e.high - e.mean)
    assert math.isnan(half_width(math.nan, 1))


def test_a_sample_below_zero_mirrors_the_one_above() -> None:
    up, down = estimate(sample([[0.3, -0.1, 0.4, 0.2]])), estimate(sample([[-0.3, 0.1, -0.4, -0.2]]))
    assert (down.mean, down.low, down.high) == pytest.approx((-up.mean, -up.high, -up.low))
    assert (down.p, down.std, down.df) == pytest.approx((up.p, up.std, up.df))
    assert down.p == pytest.approx(stats.ttest_1samp([-0.3, 0.1, -0.4, -0.2], 0).pvalue)


def test_half_widths_by_the_table_of_students_quantiles() -> None:
    """97.5 % quantiles for 1, 2 and 4 degrees of freedom: 12.7062, 4.30265, 2.77645."""
    found = half_width(np.array([1.0, 1.0, 2.0, math.nan]), np.array([2, 3, 5, 1]))
    wanted = [12.7062 / math.sqrt(2), 4.30265 / math.sqrt(3), 2 * 2.77645 / math.sqrt(5), math.nan]
    assert found == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_degrees_of_freedom_of_many_at_once_are_those_of_each() -> None:
    variances, freedoms = np.array([[1.0, 3.0], [2.0, 2.0], [5.0, 0.0]]), np.array([[2, 4], [2, 2], [3, 1]])
    assert welch_df(variances, freedoms) == pytest.approx([16 / (1 / 2 + 9 / 4), 16 / (4 / 2 + 4 / 2), 3])
    dfs = np.array([[2.0, 4.0, 4.0], [3.0, 6.0, 2.0]])
    assert family_df(dfs, 2) == pytest.approx([3.5 / (1 / 2 + 1 / 4 + 1 / 4 + 0.25), 3.5 / (1 / 3 + 1 / 6 + 1 / 2 + 0.25)])


def test_two_blocks_are_welchs_test() -> None:
    """mu = (mean of a + mean of b) / 2 is half the difference of a and -b, which Welch's two-sample test is about."""
    a, b = [0.3, -0.1, 0.4, 0.2, 0.6], [2.0, -3.0, 4.5]
    e = estimate(sample([a, [*b, math.nan, math.nan]]))
    test = stats.ttest_ind(a, [-v for v in b], equal_var=False)
    interval = test.confidence_interval()
    assert (e.p, e.df) == pytest.approx((test.pvalue, test.df))
    assert (2 * e.low, 2 * e.high) == pytest.approx((interval.low, interval.high))


def test_four_blocks_by_plain_loops() -> None:
    rng = np.random.default_rng(3)
    table = [list(rng.normal(b, s, n)) for b, (s, n) in enumerate([(1, 3), (6, 5), (0.5, 2), (2, 4)])]
    e = estimate(sample([row + [math.nan] * (5 - len(row)) for row in table]))
    parts, squares = [], 0.0
    for row in table:
        middle = sum(row) / len(row)
        s2 = sum((v - middle) ** 2 for v in row) / (len(row) - 1)
        squares += s2 * (len(row) - 1)
        parts.append((s2 / len(row), len(row) - 1))
    error = math.sqrt(sum(v for v, _ in parts)) / 4
    df = sum(v for v, _ in parts) ** 2 / sum(v * v / f for v, f in parts)
    mean = sum(sum(row) / len(row) for row in table) / 4
    assert (e.mean, e.df, e.std) == pytest.approx((mean, df, math.sqrt(squares / 10)))
    assert e.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, df))
    assert (e.low, e.high) == pytest.approx((mean - stats.t.ppf(0.975, df) * error, mean + stats.t.ppf(0.975, df) * error))


def test_blocks_by_hand() -> None:
    """Block means 2, 5, 1, each with s^2 = 2 from two seeds: the variance of mu is 3 * (2 / 2) / 9, and all blocks count: df 3."""
    e = estimate(sample([[1, 3], [4, 6], [0, 2]]))
    error = math.sqrt(1 / 3)
    assert (e.mean, e.std, e.df) == pytest.approx((8 / 3, math.sqrt(2), 3))
    assert e.p == pytest.approx(2 * stats.t.sf(8 / 3 / error, 3))
    assert e.high - e.mean == pytest.approx(stats.t.ppf(0.975, 3) * error)


def test_block_effects_are_no_noise() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(4, 3))
    plain, spread = estimate(sample(noise)), estimate(sample(noise + np.array([[9.0], [-9.0], [5.0], [-5.0]])))
    assert (spread.mean, spread.p, spread.std) == pytest.approx((plain.mean, plain.p, plain.std))
    areas = board(rng, 3, 4, 3)
    moved = {name: table + np.array([[5.0], [1.0], [-2.0], [100.0]]) for name, table in areas.items()}
    for a, b in itertools.combinations(areas, 2):
        assert estimate(sample(moved[a] - moved[b])).p == pytest.approx(estimate(sample(areas[a] - areas[b])).p, rel=1e-6)


@pytest.mark.parametrize("table", [[[0.1], [0.4], [0.2]], [[0.1, 0.2, 0.3], [0.4, math.nan, math.nan]]])
def test_one_seed_tells_nothing(table: list[list[float]]) -> None:
    """Of a block with one seed the noise is not known, so neither is that of the mean over blocks."""
    e = estimate(sample(table))
    assert e.mean == pytest.approx(np.nanmean(np.array(table), axis=1).mean())
    assert all(math.isnan(v) for v in (e.p, e.low, e.high, e.std, e.df))


def test_a_family_of_one_seed_tells_nothing() -> None:
    assert compared(board(np.random.default_rng(0), 3, 4, 1, gains=(1000.0,))).significant_pairs == frozenset()
    assert math.isnan(compared(board(np.random.default_rng(0), 3, 4, 1)).detectable([("m0", "m1")]))
    assert math.isnan(estimate(sample([[math.nan]])).mean)


@pytest.mark.parametrize(("values", "p"), [([[0.0, 0.0], [0.0, 0.0]], 1.0), ([[0.1, 0.1], [0.1, 0.1 + 1e-16]], 0.0)])
def test_without_noise_the_answer_is_exact(values: list[list[float]], p: float) -> None:
    e = estimate(sample(values))
    assert (e.p, e.std) == (p, 0.0)
    assert e.low == e.high == e.mean
    found = compare({("a", "b"): sample(values)})
    assert found.significant_pairs == ({("a", "b")} if p == 0 else set())
    assert found.detectable([("a", "b")]) == 0


def test_the_better_one_comes_first_in_a_significant_pair() -> None:
    loss = sample([[-1.0, -1.01, -0.99], [-2.0, -2.02, -1.99]])
    assert compare({("a", "b"): loss, ("b", "c"): -loss}).significant_pairs == {("b", "a"), ("b", "c")}
    assert compare({("a", "b"): sample([[-0.1, -0.1]])}).significant_pairs == {("b", "a")}


def test_the_least_degrees_of_freedom_are_those_of_the_smallest_block_of_any_pair() -> None:
    """Pairs of one block with 2 and 4 seeds: 1 and 3 degrees of freedom, and 1 is the least."""
    found = compare({("a", "b"): sample([[0.0, 0.2, 0.1, 0.4]]), ("a", "c"): sample([[0.0, 0.3, math.nan, math.nan]])})
    assert found.df == pytest.approx(2.5 / (1 / 3 + 1 / 1 + 0.5 / 1))
    assert found.errors == pytest.approx({("a", "b"): math.sqrt(0.0875 / 3 / 4), ("a", "c"): 0.15})


def test_blocks_are_told_apart_by_all_levels_of_the_index() -> None:
    """Three data sets with two architectures are six blocks."""
    table = np.random.default_rng(4).normal(size=(6, 3)) + np.arange(6)[:, None]
    index = pd.MultiIndex.from_product([["x", "y", "z"], ["a", "b"], [0, 1, 2]], names=["dataset", "architecture", "seed"])
    assert estimate(pd.Series(table.ravel(), index)) == estimate(sample(table))
    assert estimate(sample(table)).df <= 12


def test_without_noise_the_sign_does_not_matter_and_all_seeds_count() -> None:
    assert estimate(sample([[-0.1, -0.1, -0.1], [-0.1, -0.1, -0.1]])).p == 0
    assert estimate(sample([[0.1, 0.1, 0.1], [-0.1, -0.1, -0.1]])).p == 1
    assert estimate(sample([[-0.1, -0.1, -0.1], [-0.1, -0.1, -0.1]])).df == 4


def test_a_pair_with_two_blocks_in_common_has_the_degrees_of_freedom_of_both() -> None:
    """Its t of 5 is significant among 3 pairs on 4 degrees of freedom (limit 3.96), and not on 2 (limit 7.65)."""
    rng, values = np.random.default_rng(0), np.array([-1.0, 0.0, 1.0])
    differences = {pair: sample(rng.normal(size=(20, 3))) for pair in (("a", "b"), ("b", "c"))}
    error = math.sqrt(2 / 3) / 2
    for t, significant in ((5.0, True), (3.9, False)):
        found = compare({**differences, ("a", "c"): sample([values + t * error, values + t * error])})
        assert found.df > 4
        assert (("a", "c") in found.significant_pairs) == significant


def test_the_least_degrees_of_freedom_are_of_the_smallest_block_of_a_pair() -> None:
    pair = sample([[0.0, 0.2, 0.1, 0.4], [0.0, 0.3, math.nan, math.nan]])
    assert compare({("a", "b"): pair}).df == pytest.approx(1.5 / (1 / estimate(pair).df + 0.5 / 1))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]), "3 x 0.01; 2 x 0.03; and 0.04 no smaller than 0.06"
    assert holm([math.nan, 0.02, 0.5]) == pytest.approx([math.nan, 0.04, 0.5], nan_ok=True), "what cannot be tested is no test"
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]).tolist() == []


def test_ranks_are_ranges() -> None:
    """d is worse than all; a is better than c; b is not shown to differ from a or c."""
    assert rank_ranges("abcd", {("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}) == {"a": (1, 2), "b": (1, 3), "c": (2, 3), "d": (4, 4)}
    assert rank_ranges("ab", set()) == {"a": (1, 2), "b": (1, 2)}
    assert rank_ranges(iter("ab"), iter([("b", "a"), ("b", "a")])) == {"a": (2, 2), "b": (1, 1)}


def test_a_family_by_plain_loops() -> None:
    """Three methods: the degrees of freedom are the harmonic mean of the pairs' own, the least possible counting as half a pair."""
    areas = board(np.random.default_rng(5), 3, 4, 5, gains=(6.0, 0.0), noise=(1, 1, 2, 6))
    estimates = {(a, b): estimate(sample(areas[a] - areas[b])) for a, b in itertools.combinations(areas, 2)}
    df = 3.5 / (sum(1 / e.df for e in estimates.values()) + 0.5 / 4)
    errors = {pair: (e.high - e.mean) / stats.t.ppf(0.975, e.df) for pair, e in estimates.items()}
    p = {pair: 2 * stats.t.sf(abs(e.mean) / errors[pair], df) for pair, e in estimates.items()}
    significant = set()
    for k, pair in enumerate(sorted(p, key=p.get)):
        if p[pair] >= 0.05 / (3 - k):
            break
        significant.add(pair if estimates[pair].mean > 0 else pair[::-1])
    found = compared(areas)
    assert found.significant_pairs == significant == {("m0", "m1"), ("m0", "m2")}
    for pairs, error in ((errors, sorted(errors.values())[1]), ([("m0", "m2")], errors["m0", "m2"])):
        assert stats.nct.sf(stats.t.ppf(1 - 0.05 / 6, df), df, found.detectable(pairs) / error) == pytest.approx(0.8)


def test_a_pair_with_one_block_in_common_is_tested_by_its_seeds() -> None:
    """Its t of 7 on 2 degrees of freedom, p = 0.0198, is not significant among 3 pairs; on those that the family has it would be."""
    rng, values = np.random.default_rng(0), np.array([-1.0, 0.0, 1.0])
    differences = {pair: sample(rng.normal(size=(20, 3))) for pair in (("a", "b"), ("b", "c"))}
    family = 3.5 / (sum(1 / estimate(d).df for d in differences.values()) + 1 / 2 + 0.5 / 2)
    differences["a", "c"] = sample([values + 7 / math.sqrt(3)])
    assert stats.ttest_1samp(differences["a", "c"], 0).statistic == pytest.approx(7)
    assert 2 * stats.t.sf(7, family) < 0.05 / 3 < 2 * stats.t.sf(7, 2)
    assert ("a", "c") not in compare(differences).significant_pairs


SIXFOLD = [(1, 1, 1, 6), (1, 2, 4, 6), (1, 1, 6, 6), (1, 6, 6, 6), (1, 1, 1, 1)]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", SIXFOLD, ids=str)
def test_equal_methods_differ_on_one_board_in_twenty_at_most(noise: tuple[float, ...], seeds: int) -> None:
    """Whatever the noise of the blocks: five methods, bound is 5 % and three standard errors of 200 simulated boards."""
    assert share(200, 5, 4, seeds, noise=noise) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def vectorised(rng: np.random.Generator, boards: int, methods: int, noise: np.ndarray, seeds: int) -> float:
    """The share of boards of equal methods with a significant pair, by the formulas, all boards at once."""
    x = rng.normal(size=(boards, methods, noise.shape[-1], seeds)) * noise[..., None]
    a, b = np.triu_indices(methods, 1)
    d = x[:, a] - x[:, b]
    v = d.var(-1, ddof=1)
    t = np.abs(d.mean((-2, -1))) / np.sqrt(v.sum(-1) / seeds) * noise.shape[-1]
    inverse = (v**2).sum(-1) / v.sum(-1) ** 2 / (seeds - 1)  # 1 / degrees of freedom of each pair
    df = (len(a) + 0.5) / (inverse.sum(1) + 0.5 / (seeds - 1))
    return float((t.max(1) > stats.t.isf(0.05 / len(a) / 2, df)).mean())


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("methods", [2, 3, 5, 14])
def test_the_level_holds_by_thousands_of_boards(methods: int, seeds: int) -> None:
    """5 % within 0.7 points: three standard errors of 8000 boards. Of the plain Welch-Satterthwaite test it would be up to 20 %."""
    rng = np.random.default_rng(11)
    for noise in SIXFOLD:
        assert vectorised(rng, 8000 if methods < 14 else 2000, methods, np.array(noise, float), seeds) <= 0.058, noise
    own = np.exp(rng.uniform(0, math.log(6), size=(2000, methods, 4)))  # every method noisy on blocks of its own
    assert vectorised(rng, 2000, methods, own, seeds) <= 0.065


def test_the_vectorised_simulation_is_of_the_same_test() -> None:
    rng, again = np.random.default_rng(2), np.random.default_rng(2)
    noise = np.array([1.0, 1.0, 1.0, 6.0])
    x = again.normal(size=(300, 3, 4, 3)) * noise[:, None]
    found = [bool(compared({f"m{i}": table for i, table in enumerate(one)}).significant_pairs) for one in x]
    assert vectorised(rng, 300, 3, noise, 3) == np.mean(found) > 0


def test_a_better_method_is_found_given_seeds_and_blocks_enough() -> None:
    """A gain of 1.5 standard deviations over seeds, among five methods."""
    gain, pair = (1.5,), ("m0", "m3")
    assert share(100, 5, 4, 5, gains=gain, found=pair) > 0.8
    assert share(100, 5, 10, 5, gains=gain, found=pair) > 0.9
    assert share(100, 5, 4, 3, gains=gain, found=pair) < 0.5
    assert share(100, 5, 1, 3, gains=gain, found=pair) < 0.1


@pytest.mark.parametrize(("pairs", "df"), [(1, 2.0), (1, 16.0), (36, 7.3), (91, 2.0), (1000, 1.0)])
def test_what_is_detectable_has_the_power_it_says(pairs: int, df: float) -> None:
    """The power of a t-test by its definition: noise over an independent chi."""
    shift = noncentrality(pairs, df)
    rng = np.random.default_rng(0)
    t = (rng.normal(size=200_000) + shift) / np.sqrt(rng.chisquare(df, 200_000) / df)
    assert np.mean(t > stats.t.isf(0.05 / pairs / 2, df)) == pytest.approx(0.8, abs=0.003)


def test_two_methods_on_one_block_have_the_exact_power() -> None:
    """4.62 and 2.38 standard deviations over seeds for three and five seeds: Student's test of one sample."""
    exact = [noncentrality(1, seeds - 1) * math.sqrt(2 / seeds) for seeds in (3, 5)]
    assert exact == pytest.approx([4.616, 2.379], abs=5e-4)
    for seeds, gain in zip((3, 5), exact, strict=True):
        assert share(400, 2, 1, seeds, gains=(gain,), found=("m0", "m1")) == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 400))
