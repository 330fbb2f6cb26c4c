"""What seeds can show: the smallest difference between two methods that the leaderboard's test finds in four boards of five.

    python benchmarks/power.py [--boards 20000]        (half a minute)

Simulated boards: noise of standard deviation 1 over seeds, the same in all blocks, independent between methods; one method is better
than all others, which are equal. Prints the difference, in standard deviations over seeds, at which it is found to be better than a
given other with 80 % power, by the test of `bench.ranking.statistics.compare`: paired t-tests with the variance of each block, Holm's
correction over all pairs, 5 %. For two methods on one block this is the power of a t-test and is computed, not simulated.
"""

import argparse
import itertools
import math

import numpy as np
from scipy import stats

from bench.ranking.statistics import ALPHA, POWER, family_df, noncentrality, welch_df

SEEDS, BLOCKS, METHODS = (3, 5, 10), (1, 4, 10), (2, 10)
BATCH = 1000  # boards at a time


def smallest(methods: int, blocks: int, seeds: int, boards: int) -> float:
    """The gain from which method 0 is found to be better than method 1 on `POWER` of the boards."""
    if (methods, blocks) == (2, 1):
        return noncentrality(1, seeds - 1) * math.sqrt(2 / seeds)
    rng = np.random.default_rng([methods, blocks, seeds])
    return float(np.quantile([gain for _ in range(math.ceil(boards / BATCH)) for gain in _gains(rng, methods, blocks, seeds)], POWER))


def _gains(rng: np.random.Generator, methods: int, blocks: int, seeds: int) -> np.ndarray:
    """For each of a batch of boards, the gain of method 0 from which it is found to be better than method 1."""
    areas = rng.normal(size=(BATCH, methods, blocks, seeds))
    first, second = np.triu_indices(methods, 1)  # the pairs of method 0 come first, that with method 1 before all
    differences = areas[:, first] - areas[:, second]
    variances = differences.var(-1, ddof=1) / seeds
    means, errors = differences.mean((-2, -1)), np.sqrt(variances.sum(-1)) / blocks
    df = family_df(welch_df(variances, np.full(blocks, seeds - 1)), seeds - 1)
    critical = stats.t.isf(ALPHA / np.arange(len(first), 0, -1) / 2, df[:, None])  # of Holm's steps, the strictest first
    moved = np.arange(len(first)) < methods - 1
    low, high = np.zeros(BATCH), np.full(BATCH, 1e4)
    for _ in range(40):
        gain = (low + high) / 2
        t = np.abs(means + gain[:, None] * moved) / errors
        sure = (means[:, 0] + gain > 0) & _rejected_first(t, critical)
        low, high = np.where(sure, low, gain), np.where(sure, gain, high)
    return high


def _rejected_first(t: np.ndarray, critical: np.ndarray) -> np.ndarray:
    """Whether Holm's procedure gets as far as the first pair of each board: every step up to it is significant."""
    place = (t > t[:, :1]).sum(1)
    passed = np.logical_and.accumulate(-np.sort(-t, axis=1) > critical, axis=1)
    found: np.ndarray = passed[np.arange(len(t)), place]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=20000)
    boards = parser.parse_args().boards
    print("| methods | blocks |" + "".join(f" {seeds} seeds |" for seeds in SEEDS))
    print("|---:" * (2 + len(SEEDS)) + "|")
    for methods, blocks in itertools.product(METHODS, BLOCKS):
        cells = [f" {smallest(methods, blocks, seeds, boards):.2f} |" for seeds in SEEDS]
        print(f"| {methods} | {blocks} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
