"""What seeds can tell: the smallest difference between two methods that the leaderboard's test finds in four boards of five.

    python benchmarks/power.py [--boards 400]        (nine minutes)

Simulated boards: noise of standard deviation 1 over seeds, independent between methods, blocks of any height; one method is better
than all others, which are equal. Prints the difference, in standard deviations over seeds, at which it is told apart from a given
other with 80 % power (`bench.statistics.told_apart`: paired t with block effects, Holm over all pairs, 5 %), and in brackets what
`bench.statistics.detectable` computes, which takes every pair at Holm's strictest step.
"""

import argparse
import gc
import itertools

import numpy as np
import pandas as pd
from scipy import optimize, stats

from bench.statistics import ALPHA, detectable, estimate, holm

POWER = 0.8
SEEDS, BLOCKS, METHODS = (3, 5, 10), (1, 4, 10), (2, 10)


def turns(rng: np.random.Generator, methods: int, blocks: int, seeds: int) -> float:
    """The gain of method 0 from which it is told apart from method 1 on one simulated board.

    A gain moves the means of the pairs of method 0, which come first, and no standard error.
    """
    areas = rng.normal(size=(methods, blocks * seeds))
    index = pd.MultiIndex.from_product([range(blocks), range(seeds)])
    pairs = itertools.combinations(range(methods), 2)
    board = [estimate(pd.Series(areas[a] - areas[b], index)) for a, b in pairs]
    means, df = np.array([e.mean for e in board]), board[0].df
    errors = np.array([e.high - e.mean for e in board]) / stats.t.isf(ALPHA / 2, df)
    moves = np.arange(len(board)) < methods - 1

    def found(gain: float) -> float:
        moved = means + gain * moves
        return float(holm(2 * stats.t.sf(np.abs(moved) / errors, df))[0] < ALPHA and moved[0] > 0) - 0.5

    return float(optimize.bisect(found, -1000, 1000, xtol=0.005))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=400)
    boards = parser.parse_args().boards
    holm([1.0])
    gc.freeze()  # statsmodels, imported by now, collects garbage at every correction
    print("| methods | blocks |" + "".join(f" {seeds} seeds |" for seeds in SEEDS))
    print("|---:" * (2 + len(SEEDS)) + "|")
    for methods, blocks in itertools.product(METHODS, BLOCKS):
        cells = []
        for seeds in SEEDS:
            rng = np.random.default_rng([methods, blocks, seeds])
            smallest = np.quantile([turns(rng, methods, blocks, seeds) for _ in range(boards)], POWER)
            cells.append(f" {smallest:.1f} ({detectable(seeds, blocks, methods):.1f}) |")
        print(f"| {methods} | {blocks} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
