"""What the seeds can tell: paired tests between methods, Holm's correction, ranges of ranks, critical differences.

A sample is a series whose last index level is the seed, and whose other levels name the block. The model of a sample is

    y[block, seed] = mean of the block + noise,    noise independent, of a variance of its own in each block,

and mu, what is estimated and tested, is the mean of the block means, whatever the number of seeds in each. Blocks are fixed:
conclusions are about these data sets and architectures and new seeds, not about others.

scipy is imported inside the functions: it costs a second that listing and mistyped names need not wait for.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

ALPHA = 0.05
POWER = 0.8  # of what is called detectable
EXACT = 1e-12  # below this, differences of accuracies are rounding: those of two networks differ by a test sample or not at all
CAUTION = 0.5  # weight, in pairs, of the least degrees of freedom in those of a family: see `family_df`
BLOCKS_FOR_RANKS = 10  # from here on a critical-difference diagram says something (protocol, rule 9)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Estimate:
    """mu of a sample, its 95 % interval, the two-sided p-value of mu = 0, the standard deviation over seeds, the degrees of freedom.

    `std` is pooled within blocks: its square is the sum of squared deviations from the block means over (values - blocks). All but
    `mean` are NaN where a block has one seed, which says nothing about noise.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    std: float = math.nan
    df: float = math.nan


@dataclass(frozen=True)
class _Moments:
    """For each block: mean, sample variance and degrees of freedom (seeds - 1). `error`: standard error of mu; NaN if one seed."""

    means: np.ndarray
    variances: np.ndarray
    freedoms: np.ndarray
    error: float

    @property
    def mean(self) -> float:
        """mu."""
        return float(self.means.mean()) if len(self.means) else math.nan

    @property
    def df(self) -> float:
        """Degrees of freedom of mu's standard error."""
        return float(welch_df(self.variances / (self.freedoms + 1), self.freedoms))


def _moments(sample: pd.Series) -> _Moments:
    sample = sample.dropna()
    blocks = _numbered(sample.index)
    y, seeds = sample.to_numpy(float), np.bincount(blocks)
    means = np.bincount(blocks, y) / seeds
    deviations = y - means[blocks]
    if len(y) == 0 or seeds.min() < 2:
        return _Moments(means, np.full(len(seeds), np.nan), seeds - 1, math.nan)
    if np.abs(deviations).max() < EXACT:
        return _Moments(means, np.zeros(len(seeds)), seeds - 1, 0.0)
    variances = np.bincount(blocks, deviations**2) / (seeds - 1)
    return _Moments(means, variances, seeds - 1, math.sqrt((variances / seeds).sum()) / len(seeds))


def _numbered(index: pd.MultiIndex) -> np.ndarray:
    """The block of each value as a number from 0 on: pandas' own ways take longer than the test itself."""
    numbers = np.zeros(len(index), int)
    for codes, level in zip(index.codes[:-1], index.levels[:-1], strict=True):
        numbers = numbers * len(level) + codes
    return np.unique(numbers, return_inverse=True)[1]


def welch_df(variances: np.ndarray, freedoms: np.ndarray) -> Any:
    """Welch-Satterthwaite degrees of freedom of a sum of independent means: (sum v)^2 / sum(v^2 / f), over the last axis.

    `variances`: v, those of the means, up to a common factor; `freedoms`: f, of their estimates (Satterthwaite 1946, "An approximate
    distribution of estimates of variance components"; Welch 1947).
    """
    return variances.sum(-1) ** 2 / (variances**2 / freedoms).sum(-1)


def family_df(dfs: np.ndarray, least: float) -> Any:
    """The degrees of freedom at which all pairs of a family are tested: a harmonic mean of theirs, over the last axis.

    A pair's own Welch-Satterthwaite degrees of freedom are estimated from the same few deviations as its standard error: where one
    block is noisier than the others, a pair whose deviations there happen to be small gets too many of them just when its t is large.
    Far out in the tail, where Holm's correction looks, that is wrong by far: of boards of 14 equal methods on 4 blocks, one of them
    sixfold as noisy, one in five (3 seeds) would be said to differ. The mean over all pairs knows better where the noise is.

    `least`: the fewest degrees of freedom that any of them could have. They count as `CAUTION` of a pair, which keeps the level for two
    and three methods as well, and changes nothing on one block, where all are equal.
    """
    inverse = ((1 / dfs).sum(-1) + CAUTION / least) / (dfs.shape[-1] + CAUTION)
    return 1 / inverse


def estimate(sample: pd.Series) -> Estimate:
    """mu of the model above, with t-based interval and test; NaN values are left out.

    With s_b the standard deviation over the n_b seeds of block b of B, the variance of mu is sum_b(s_b^2 / n_b) / B^2 and its degrees of
    freedom are those of Welch and Satterthwaite; for one block this is the t-test. A sample without noise is exact: p is 1 where
    mu is 0, else 0.
    """
    found = _moments(sample)
    mean, error = found.mean, found.error
    if math.isnan(error):
        return Estimate(mean)
    total = int(found.freedoms.sum())
    if error == 0:
        return Estimate(mean, mean, mean, float(abs(mean) < EXACT), 0.0, total)
    from scipy import stats

    df = found.df
    half = float(stats.t.isf(ALPHA / 2, df)) * error
    std = math.sqrt((found.variances * found.freedoms).sum() / total)
    return Estimate(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, df)), std, df)


def half_width(std: Any, seeds: Any) -> Any:
    """Half of the t-based 95 % interval of a mean, of numbers or arrays: NaN for one seed, whose `std` is NaN."""
    from scipy import stats

    return stats.t.isf(ALPHA / 2, np.maximum(seeds - 1, 1)) * std / np.sqrt(np.maximum(seeds, 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for the size of their family (Holm 1979). NaN, a test that could not be made, is no member and stays NaN."""
    p = np.array(p_values, float)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    p[order] = np.minimum(adjusted, 1.0)
    return p


@dataclass(frozen=True)
class Comparison:
    """All pairs of a family, tested.

    `significant_pairs`: the (better, worse) whose difference is not 0 at the level `ALPHA`, after Holm's correction. `errors`: the
    standard errors of the pairs that can be tested. `df`: the degrees of freedom of the family.
    """

    significant_pairs: frozenset[Pair] = frozenset()
    errors: Mapping[Pair, float] = field(default_factory=dict)
    df: float = math.nan

    def detectable(self, pairs: Iterable[Pair]) -> float:
        """The smallest true difference, in units of the samples, that is found with power `POWER`; NaN where none of these pairs is tested.

        For a pair whose standard error is the median of these, held to Holm's first, strictest step over the whole family.
        """
        errors = [self.errors[pair] for pair in pairs if pair in self.errors]
        return noncentrality(len(self.errors), self.df) * float(np.median(errors)) if errors else math.nan


def compare(differences: Mapping[Pair, pd.Series]) -> Comparison:
    """Test a family. `differences`: (a, b) -> the paired differences a - b, larger being better, for every pair, each once."""
    samples = {pair: _moments(sample) for pair, sample in differences.items()}
    tested = {pair: s for pair, s in samples.items() if not math.isnan(s.error)}
    if not tested:
        return Comparison()
    least = float(min(s.freedoms.min() for s in tested.values()))
    dfs = np.array([s.df for s in tested.values() if s.error > 0])
    df = float(family_df(dfs, least)) if len(dfs) else least
    from scipy import stats

    means, errors = np.array([s.mean for s in tested.values()]), np.array([s.error for s in tested.values()])
    own = np.minimum(df, [s.freedoms.sum() for s in tested.values()])  # a pair with fewer blocks cannot have more than these
    noisy = errors > 0
    p = (np.abs(means) < EXACT).astype(float)
    p[noisy] = 2 * stats.t.sf(np.abs(means[noisy]) / errors[noisy], own[noisy])
    found = holm(p.tolist()) < ALPHA
    significant = frozenset((a, b) if mean > 0 else (b, a) for (a, b), mean, f in zip(tested, means, found, strict=True) if f)
    return Comparison(significant, {pair: s.error for pair, s in tested.items()}, df)


def noncentrality(pairs: int, df: float) -> float:
    """How many standard errors a difference has to be for power `POWER` in the first step of Holm's correction over so many pairs."""
    from scipy import optimize, stats

    critical = stats.t.isf(ALPHA / pairs / 2, df)
    share = (1 + POWER) / 2  # noise below its quantile, and the error below its own: together at least POWER
    most = critical * math.sqrt(stats.chi2.ppf(share, df) / df) + stats.norm.ppf(share)
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, df, shift) - POWER, 0, most))


def rank_ranges(names: Iterable[str], better: Iterable[Pair]) -> dict[str, tuple[int, int]]:
    """The ranks that are possible: from 1 + the methods that are better to all methods - those that are worse."""
    names, better = list(names), set(better)
    return {name: (1 + sum(worse == name for _, worse in better), len(names) - sum(good == name for good, _ in better)) for name in names}


@dataclass(frozen=True)
class CriticalDifference:
    """What a critical-difference diagram shows: mean ranks (1 is best) and the distance from which two of them differ.

    `p` is Friedman's test of all methods being equal: where it is not small, no two differ significantly.
    """

    mean_ranks: pd.Series
    distance: float
    p: float


def critical_difference(areas: pd.DataFrame) -> CriticalDifference | None:
    """Friedman's test and Nemenyi's critical difference over blocks; None below 10 blocks or 3 methods, where they say nothing.

    `areas`: a line for each block, a column for each method, larger being better; a method that lacks a block is left out. Equal areas
    share the mean of their ranks. distance = q / sqrt(2) * sqrt(k (k + 1) / (6 N)) for k methods and N blocks, q the studentised range's
    95 % point (Demšar 2006, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, section 3.2.2).
    """
    complete = areas.dropna(axis="columns")
    blocks, methods = complete.shape
    if blocks < BLOCKS_FOR_RANKS or methods < 3:
        return None
    from scipy import stats

    q = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf)
    return CriticalDifference(
        mean_ranks=complete.rank(axis="columns", ascending=False).mean().sort_values(kind="stable"),
        distance=float(q / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * blocks))),
        p=float(stats.friedmanchisquare(*complete.to_numpy().T).pvalue),
    )
