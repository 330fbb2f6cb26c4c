"""Statistics over seeds: paired tests between methods, Holm's correction, ranges of ranks.

A sample is a series of values. The last level of its index is the seed; the other levels name the block (data set and architecture).
The model of a sample is

    y[block, seed] = mean of the block + noise,    independent noise, with a separate variance for each block.

The tests are about mu, the mean of the block means; each block has the same weight, whatever its number of seeds. Blocks are fixed
effects: the conclusions hold for new seeds on these data sets and architectures, not for other data sets.

scipy is imported inside the functions because it takes a second, also for commands that do not need it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

ALPHA = 0.05
POWER = 0.8  # probability of detecting a difference that is called detectable
EXACT = 1e-12  # smaller differences are rounding errors: accuracies of two networks differ by at least one test sample, or not at all
DIGITS = 12  # decimals of values that are sorted or ranked, so that no rounding error breaks a tie
CAUTION = 0.5  # weight of the smallest degrees of freedom of a family, in numbers of pairs: see `family_df`

Pair = tuple[str, str]


@dataclass(frozen=True)
class Estimate:
    """Estimate of mu from a sample.

    `mean`: mu. `low`, `high`: its 95 % confidence interval. `p`: two-sided p-value of mu = 0. `df`: degrees of freedom. `std`: standard
    deviation over seeds, pooled within blocks: std^2 = (sum of squared deviations from the block means) / (values - blocks). All except
    `mean` are NaN if a block has only one seed.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    std: float = math.nan
    df: float = math.nan


@dataclass(frozen=True)
class _Moments:
    """For each block: mean, sample variance, degrees of freedom (seeds - 1). `error`: standard error of mu; NaN if a block has one seed."""

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
    """The number of each value's block, from 0; pandas' own functions would take longer than the test."""
    numbers = np.zeros(len(index), int)
    for codes, level in zip(index.codes[:-1], index.levels[:-1], strict=True):
        numbers = numbers * len(level) + codes
    return np.unique(numbers, return_inverse=True)[1]


def welch_df(variances: np.ndarray, freedoms: np.ndarray) -> Any:
    """Welch-Satterthwaite degrees of freedom of a sum of independent means: (sum v)^2 / sum(v^2 / f).

    References: Satterthwaite 1946, "An approximate distribution of estimates of variance components"; Welch 1947, "The generalization of
    Student's problem when several different population variances are involved".

    Args:
        variances: (..., B) variances v of the B means, up to a common factor.
        freedoms: (..., B) degrees of freedom f of these variances.

    Returns:
        (...) degrees of freedom of the sum.
    """
    return variances.sum(-1) ** 2 / (variances**2 / freedoms).sum(-1)


def family_df(dfs: np.ndarray, least: float) -> Any:
    """The common degrees of freedom for testing all pairs of a family: a weighted harmonic mean of those of the P pairs.

    1 / df = (sum_p 1 / df_p + CAUTION / least) / (P + CAUTION)

    Why not each pair's own df_p: it is estimated from the same few deviations as the pair's standard error. If one block is noisier than
    the others, a pair whose deviations in this block happen to be small gets a large t and, at the same time, too many degrees of
    freedom. In the tail that Holm's correction uses, this inflates the error rate: with 14 equal methods, 3 seeds and 4 blocks, one of
    them with six times the noise, 20 % of the leaderboards would report a difference. The mean over all pairs estimates better which
    block is noisy. The term with `least` keeps the level also for two and three methods. With one block all df_p are equal, and this
    is their value.

    Args:
        dfs: (..., P) degrees of freedom of the pairs.
        least: smallest possible degrees of freedom of a pair.

    Returns:
        (...) degrees of freedom of the family.
    """
    inverse = ((1 / dfs).sum(-1) + CAUTION / least) / (dfs.shape[-1] + CAUTION)
    return 1 / inverse


def estimate(sample: pd.Series) -> Estimate:
    """Estimate mu of the model above, with confidence interval and t-test. NaN values are ignored.

    With s_b the standard deviation over the n_b seeds of block b, and B blocks, the variance of mu is sum_b(s_b^2 / n_b) / B^2. The
    degrees of freedom are those of Welch and Satterthwaite; for one block this is the one-sample t-test. For a sample without any noise
    p is 1 if mu is 0, otherwise 0.
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
    """Half width of the 95 % confidence interval (Student's t) of a mean over seeds.

    Args:
        std: standard deviation over seeds, a number or an array; NaN for one seed.
        seeds: number of seeds, of the same shape.

    Returns:
        The half width, in the unit and shape of `std`.
    """
    from scipy import stats

    return stats.t.isf(ALPHA / 2, np.maximum(seeds - 1, 1)) * std / np.sqrt(np.maximum(seeds, 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm-corrected p-values (Holm 1979). NaN, for a test that was not possible, is not counted and stays NaN."""
    p = np.array(p_values, float)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    p[order] = np.minimum(adjusted, 1.0)
    return p


@dataclass(frozen=True)
class Comparison:
    """The tests of all pairs of a family.

    `significant_pairs`: the pairs (better, worse) that differ significantly at the level `ALPHA` after Holm's correction. `errors`:
    pair -> standard error, for the pairs that can be tested. `df`: degrees of freedom of the family.
    """

    significant_pairs: frozenset[Pair] = frozenset()
    errors: Mapping[Pair, float] = field(default_factory=dict)
    df: float = math.nan

    def detectable(self, pairs: Iterable[Pair]) -> float:
        """The smallest true difference that is detected with power `POWER`, in the unit of the samples.

        It is computed for a pair with the median standard error of `pairs`, in the first and strictest step of Holm's correction over the
        whole family. NaN if none of these pairs can be tested.
        """
        errors = [self.errors[pair] for pair in pairs if pair in self.errors]
        return noncentrality(len(self.errors), self.df) * float(np.median(errors)) if errors else math.nan


def compare(differences: Mapping[Pair, pd.Series]) -> Comparison:
    """Test a family. `differences`: (a, b) -> sample of paired differences a - b, each pair once; a positive mean means: a is better."""
    samples = {pair: _moments(sample) for pair, sample in differences.items()}
    tested = {pair: s for pair, s in samples.items() if not math.isnan(s.error)}
    if not tested:
        return Comparison()
    least = float(min(s.freedoms.min() for s in tested.values()))
    dfs = np.array([s.df for s in tested.values() if s.error > 0])
    df = float(family_df(dfs, least)) if len(dfs) else least
    from scipy import stats

    means, errors = np.array([s.mean for s in tested.values()]), np.array([s.error for s in tested.values()])
    own = np.minimum(df, [s.freedoms.sum() for s in tested.values()])  # a pair with fewer blocks has at most these
    noisy = errors > 0
    p = (np.abs(means) < EXACT).astype(float)
    p[noisy] = 2 * stats.t.sf(np.abs(means[noisy]) / errors[noisy], own[noisy])
    found = holm(p.tolist()) < ALPHA
    significant = frozenset((a, b) if mean > 0 else (b, a) for (a, b), mean, f in zip(tested, means, found, strict=True) if f)
    return Comparison(significant, {pair: s.error for pair, s in tested.items()}, df)


def noncentrality(pairs: int, df: float) -> float:
    """The smallest difference with power `POWER` in the first step of Holm's correction.

    Args:
        pairs: number of pairs in the family.
        df: degrees of freedom of the family.

    Returns:
        The difference, in standard errors.
    """
    from scipy import optimize, stats

    critical = stats.t.isf(ALPHA / pairs / 2, df)
    share = (1 + POWER) / 2  # quantile of noise and of standard error: both are below with probability >= POWER
    most = critical * math.sqrt(stats.chi2.ppf(share, df) / df) + stats.norm.ppf(share)
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, df, shift) - POWER, 0, most))


def rank_ranges(names: Iterable[str], better: Iterable[Pair]) -> dict[str, tuple[int, int]]:
    """The range of ranks of each method.

    Args:
        names: the M ranked methods.
        better: pairs (better, worse).

    Returns:
        Method -> (1 + number of better methods, M - number of worse methods).
    """
    names, better = list(names), set(better)
    return {name: (1 + sum(worse == name for _, worse in better), len(names) - sum(good == name for good, _ in better)) for name in names}
