"""Tests that take the blocks of a board as a sample of data sets and architectures: do methods differ on others, too?

scipy is imported inside the functions because it takes a second, also for commands that do not need it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.ranking.statistics import ALPHA, DIGITS

LEAST_BLOCKS = 10  # fewer are too few for a conclusion (protocol, rule 9)


@dataclass(frozen=True)
class CriticalDifference:
    """The content of a critical-difference diagram.

    `mean_ranks`: mean rank of each method over blocks, 1 is best. `distance`: methods differ significantly if their mean ranks differ by
    more. `p`: p-value of Friedman's test that all methods are equal; unless it is small, no pair differs significantly.
    """

    mean_ranks: pd.Series
    distance: float
    p: float


def critical_difference(areas: pd.DataFrame) -> CriticalDifference | None:
    """Friedman's test and Nemenyi's critical difference over blocks.

    distance = q / sqrt(2) * sqrt(k (k + 1) / (6 N)) for k methods and N blocks; q: 95 % quantile of the studentised range for k groups and
    infinite degrees of freedom. Reference: Demšar 2006, "Statistical comparisons of classifiers over multiple data sets", JMLR 7,
    section 3.2.2.

    Args:
        areas: (N, k) areas, larger is better; methods with a missing value are left out. Equal areas get the mean of their ranks.

    Returns:
        None for fewer than 10 blocks or 3 methods, which are too few for a conclusion.
    """
    complete = areas.dropna(axis="columns").round(DIGITS)
    blocks, methods = complete.shape
    if blocks < LEAST_BLOCKS or methods < 3:
        return None
    from scipy import stats

    q = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf)
    return CriticalDifference(
        mean_ranks=complete.rank(axis="columns", ascending=False).mean().sort_values(kind="stable"),
        distance=float(q / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * blocks))),
        p=float(stats.friedmanchisquare(*complete.to_numpy().T).pvalue),
    )


def signed_rank_test(differences: Sequence[float]) -> float:
    """The p-value of Wilcoxon's signed-rank test (two-sided) that the differences of two methods are symmetric about 0 over blocks.

    Other methods do not matter to it, as they do to mean ranks. Reference: Demšar 2006, section 3.1.3; Benavoli et al. 2016, "Should we
    really use post-hoc tests based on mean-ranks?", JMLR 17.

    Args:
        differences: one number for each block. Those that are 0 are left out.

    Returns:
        p in [0, 1]; NaN for fewer than 10 blocks.
    """
    if len(differences) < LEAST_BLOCKS:
        return math.nan
    found = [d for d in np.round(differences, DIGITS) if d]
    if not found:
        return 1.0
    from scipy import stats

    return float(stats.wilcoxon(found).pvalue)
