"""What seeds can tell: the smallest difference between two methods that the leaderboard's test finds in four boards of five.

    python benchmarks/power.py [--boards 400]

Simulated boards: noise of standard deviation 1 over seeds, independent between methods, blocks of any height; one method is better
than all others, which are equal. Prints the difference, in standard deviations over seeds, at which it is told apart from a given
other with 80 % power (`bench.statistics.told_apart`: paired t with block effects, Holm over all pairs, 5 %), and in brackets what
`bench.statistics.detectable` computes, which takes every pair at Holm's strictest step.
"""

import argparse
import gc
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import optimize, stats

from bench.statistics import ALPHA, Estimate, detectable, estimate, holm

POWER = 0.8
SEEDS, BLOCKS, METHODS = (3, 5, 10), (1, 4, 10), (2, 10)


def simulate(rng: np.random.Generator, methods: int, blocks: int, seeds: int) -> list[Estimate]:
    """All pairs of one board of equal methods, (0, 1) first; pairs of method 0 are its areas less the other's."""
    areas = rng.normal(size=(methods, blocks * seeds))
    index = pd.MultiIndex.from_product([range(blocks), range(seeds)])
    return [estimate(pd.Series(areas[a] - areas[b], index)) for a, b in itertools.combinations(range(methods), 2)]


def found(board: list[Estimate], methods: int, gain: float) -> bool:
    """Whether 0 is told apart from 1 where 0 is better by the gain: that moves the means of its pairs and no standard error."""
    moved = [replace(e, mean=e.mean + gain, p=shifted(e, gain)) for e in board[: methods - 1]] + board[methods - 1 :]
    return bool(holm([e.p for e in moved])[0] < ALPHA and moved[0].mean > 0)


def shifted(e: Estimate, gain: float) -> float:
    """The p-value after the mean has moved."""
    error = (e.high - e.mean) / stats.t.isf(ALPHA / 2, e.df)
    return float(2 * stats.t.sf(abs(e.mean + gain) / error, e.df))


def smallest(boards: list[list[Estimate]], methods: int) -> float:
    """The gain at which the share of boards reaches the power: the quantile of the gains at which each board turns."""
    turns = [optimize.bisect(lambda g, b=board: found(b, methods, g) - 0.5, -1000, 1000, xtol=0.005) for board in boards]
    return float(np.quantile(turns, POWER))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=400)
    boards = parser.parse_args().boards
    gc.freeze()  # statsmodels collects garbage at every correction
    print("| methods | blocks |" + "".join(f" {seeds} seeds |" for seeds in SEEDS))
    print("|---:" * (2 + len(SEEDS)) + "|")
    for methods, blocks in itertools.product(METHODS, BLOCKS):
        cells = []
        for seeds in SEEDS:
            rng = np.random.default_rng([methods, blocks, seeds])
            simulated = [simulate(rng, methods, blocks, seeds) for _ in range(boards)]
            cells.append(f" {smallest(simulated, methods):.1f} ({detectable(seeds, blocks, methods):.1f}) |")
        print(f"| {methods} | {blocks} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
