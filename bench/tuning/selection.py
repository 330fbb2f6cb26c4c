"""How the trials of a search are spent, and when a candidate is believed to beat the defaults.

A trial measures one candidate on one tuning seed. First candidates are screened on the first seed; then the best few, and the defaults,
are measured again on further seeds, within the same number of trials. The defaults stay unless beaten beyond the noise: the best of
several noisy measurements is mostly the luckiest, and a tuned baseline that is worse than its defaults makes every victory over it false.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ERRORS = 2.0  # standard errors by which the defaults must be beaten


@dataclass(frozen=True)
class Rounds:
    """`screened` candidates on the first seed, the defaults among them; `finalists` of them, and the defaults, on `further` seeds."""

    screened: int
    finalists: int
    further: int

    @property
    def trials(self) -> int:
        """All measurements."""
        return self.screened + (self.finalists + 1) * self.further


def rounds(trials: int, seeds: int) -> Rounds:
    """How to spend so many trials when there are so many tuning seeds: at least half of them, and two, screen.

    One finalist in ten trials; where the rest is too small for all further seeds, fewer are used.
    """
    finalists = max(1, trials // 10)
    for further in range(seeds - 1, 0, -1):
        screened = trials - (finalists + 1) * further
        if screened >= max(2, trials / 2):
            return Rounds(screened, finalists, further)
    return Rounds(trials, 0, 0)


@dataclass(frozen=True)
class Measured:
    """One trial: its value, and what each sample of the validation data adds to it: `samples` (n), whose mean is the value."""

    value: float
    samples: np.ndarray


@dataclass(frozen=True)
class Gain:
    """By how much a candidate is better than the defaults, and the standard error of that."""

    mean: float
    error: float

    @property
    def believed(self) -> bool:
        """Whether it is beyond the noise."""
        return self.mean > ERRORS * self.error


def gain(candidate: Sequence[Measured], defaults: Sequence[Measured]) -> Gain:
    """The gain over the seeds that both were measured on, in one order, the one that screened first.

    The mean is over the further seeds, where there are any: the first one has chosen the candidate, and flatters it. There are two
    sources of noise, seeds and validation samples, which all seeds share:

        error² = s² / k + v / n,    s² the variance over all seeds of the differences, k the number of seeds in the mean,
                                    v the variance over the n samples of their mean differences over these k seeds.

    With one seed s² is not known, and s² / k is taken to be as large as v / n.
    """
    differences = [c.value - d.value for c, d in zip(candidate, defaults, strict=True)]
    used = slice(1, None) if len(differences) > 1 else slice(0, 1)
    mean = float(np.mean(differences[used]))
    by_sample = np.mean([c.samples - d.samples for c, d in zip(candidate[used], defaults[used], strict=True)], axis=0)
    of_samples = float(np.var(by_sample, ddof=1)) / len(by_sample) if len(by_sample) > 1 else math.inf
    of_seeds = float(np.var(differences, ddof=1)) / len(differences[used]) if len(differences) > 1 else of_samples
    return Gain(mean, math.sqrt(of_seeds + of_samples))


def weights(sparsities: Sequence[float]) -> dict[float, float]:
    """Sparsity -> the weight of its accuracy in the area under the accuracy-sparsity curve: the trapezoids' over their range."""
    x = sorted(set(sparsities))
    if len(x) == 1:
        return {x[0]: 1.0}
    halves = [(b - a) / 2 / (x[-1] - x[0]) for a, b in itertools.pairwise(x)]
    return {s: left + right for s, left, right in zip(x, [0.0, *halves], [*halves, 0.0], strict=True)}
