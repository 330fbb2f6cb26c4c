"""What the seeds can tell: paired tests between methods, Holm's correction, shared ranks, critical differences.

A sample is a series whose last index level is the seed, and whose other levels name the block. The model of a sample is

    y[block, seed] = mu + block effect + noise,    block effects sum to zero,    noise independent, of one variance,

so mu is the mean over blocks of the means over seeds, whatever the number of seeds in each, and the noise is what varies between
the seeds of a block. Blocks are fixed: conclusions are about these data sets and architectures and new seeds, not about others.

scipy and statsmodels are imported inside the functions: they cost a second that listing and mistyped names need not wait for.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

ALPHA = 0.05
EXACT = 1e-12  # below this, differences of accuracies are rounding: those of two networks differ by a test sample or not at all
BLOCKS_FOR_RANKS = 10  # from here on a critical-difference diagram says something (protocol, rule 9)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Estimate:
    """mu of a sample: its 95 % interval, the two-sided p-value of mu = 0, the standard deviation of the noise, the degrees of freedom.

    All but `mean` are NaN where there are no degrees of freedom: one seed a block says nothing about noise.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    std: float = math.nan
    df: int = 0


def estimate(sample: pd.Series) -> Estimate:
    """mu of the model above by least squares, with t-based interval and test; NaN values are left out.

    `std` is the sample standard deviation over seeds, pooled within blocks: its square is the sum of squared deviations from the block
    means over df = values - blocks. A sample without noise is exact: p is 1 where mu is 0, else 0.
    """
    sample = sample.dropna()
    if sample.empty:
        return Estimate(math.nan)
    y = sample.to_numpy(float)
    codes, names = pd.factorize(sample.index.droplevel(-1))
    of_block = np.eye(len(names))[codes]
    block_means = of_block.T @ y / of_block.sum(0)
    mean, df = float(block_means.mean()), len(y) - len(names)
    if df == 0:
        return Estimate(mean)
    if np.abs(y - block_means[codes]).max() < EXACT:
        return Estimate(mean, mean, mean, float(abs(mean) < EXACT), 0.0, df)

    from statsmodels.regression.linear_model import OLS

    sum_coded = np.column_stack([np.ones(len(y)), of_block[:, :-1] - of_block[:, -1:]])  # the intercept is mu
    fit = OLS(y, sum_coded).fit()
    low, high = fit.conf_int(ALPHA)[0]
    return Estimate(float(fit.params[0]), float(low), float(high), float(fit.pvalues[0]), float(fit.mse_resid) ** 0.5, df)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for the size of their family (Holm 1979). NaN, a test that could not be made, is no member and stays NaN."""
    from statsmodels.stats.multitest import multipletests

    p = np.array(p_values, float)
    made = ~np.isnan(p)
    if made.any():
        p[made] = multipletests(p[made], method="holm")[1]
    return p


def told_apart(differences: Mapping[Pair, pd.Series]) -> set[Pair]:
    """The pairs (better, worse) of a family whose difference is not 0 at the level ALPHA, after Holm's correction.

    `differences`: (a, b) -> the paired differences a - b, larger being better, for every pair of the family, each once.
    """
    estimates = [estimate(sample) for sample in differences.values()]
    adjusted = holm([e.p for e in estimates])
    return {(a, b) if e.mean > 0 else (b, a) for (a, b), e, p in zip(differences, estimates, adjusted, strict=True) if p < ALPHA}


def shared_ranks(names: Iterable[str], better: Iterable[Pair]) -> dict[str, int]:
    """rank(m) = 1 + the number of methods that are better than m: who cannot be told apart from the best has rank 1 as well."""
    better = set(better)
    return {name: 1 + sum(worse == name for _, worse in better) for name in names}


def detectable(seeds: int, blocks: int, methods: int, power: float = 0.8) -> float:
    """The smallest true difference between two methods that is told apart with this power, among so many methods.

    In units of the standard deviation over seeds of one method, the noise of the methods being independent: sharing the seed's
    network and batches can only help. Every pair is held to the first, strictest step of Holm's correction. NaN for one seed.
    """
    from scipy import optimize, stats

    df, pairs = blocks * (seeds - 1), methods * (methods - 1) / 2
    if df == 0 or pairs == 0:
        return math.nan
    critical = stats.t.isf(ALPHA / pairs / 2, df)
    shift = optimize.brentq(lambda s: stats.nct.sf(critical, df, s) - power, 0, 100 * critical)
    return float(shift * math.sqrt(2 / (seeds * blocks)))


@dataclass(frozen=True)
class CriticalDifference:
    """What a critical-difference diagram shows: mean ranks (1 is best) and the distance from which two of them differ.

    `p` is Friedman's test of all methods being equal: where it is not small, no two are told apart.
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
