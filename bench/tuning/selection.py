"""Rules of a search: how to divide its trials, and when a candidate replaces the default hyperparameters.

A trial measures one candidate on one tuning seed. First, candidates are screened on the first seed. Then the best candidates (finalists)
and the defaults are measured again on further seeds, within the same number of trials. A candidate replaces the defaults only if it is
better beyond the noise: the maximum of several noisy measurements is biased upwards, and comparing against a tuned baseline that is worse
than its defaults would be unfair.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ERRORS = 2.0  # standard errors by which a candidate must be better than the defaults


@dataclass(frozen=True)
class Rounds:
    """Division of trials: `screened` candidates (with the defaults) on the first seed, then `finalists` + defaults on `further` seeds."""

    screened: int
    finalists: int
    further: int

    @property
    def trials(self) -> int:
        """Total number of measurements."""
        return self.screened + (self.finalists + 1) * self.further

    @property
    def least(self) -> int:
        """Number of measurements if every candidate is the defaults again, so that only these are measured on further seeds."""
        return self.screened + self.further


def rounds(trials: int, seeds: int) -> Rounds:
    """Divide the trials of a search. At least half of the trials, and at least two, are for screening.

    One finalist per ten trials. If the remaining trials are not enough for all seeds, fewer seeds are used.

    Args:
        trials: number of trials.
        seeds: number of tuning seeds.
    """
    finalists = max(1, trials // 10)
    for further in range(seeds - 1, 0, -1):
        screened = trials - (finalists + 1) * further
        if screened >= max(2, trials / 2):
            return Rounds(screened, finalists, further)
    return Rounds(trials, 0, 0)


@dataclass(frozen=True)
class Measured:
    """One trial: its value, and `samples` (n): the contribution of each validation sample. The value is their mean."""

    value: float
    samples: np.ndarray


@dataclass(frozen=True)
class Gain:
    """The gain of a candidate over the defaults, and its standard error."""

    mean: float
    error: float

    @property
    def believed(self) -> bool:
        """Whether the gain is larger than `ERRORS` standard errors."""
        return self.mean > ERRORS * self.error


def gain(candidate: Sequence[Measured], defaults: Sequence[Measured]) -> Gain:
    """The gain of a candidate over the defaults.

    The mean is over the further seeds, if there are any: on the first seed the candidate was selected, so its value there is biased
    upwards. There are two sources of noise, the seeds and the validation samples (the same for all seeds):

        error² = s² / k + v / n

    s²: variance of the differences over all seeds. k: number of seeds in the mean. v: variance, over the n samples, of each sample's
    mean difference over these k seeds. With one seed s² is unknown, and s² / k is assumed to be equal to v / n.

    Args:
        candidate: its trials, one per seed, the seed of screening first.
        defaults: the trials of the defaults on the same seeds, in the same order.

    Returns:
        Gain in the unit of the values.
    """
    differences = [c.value - d.value for c, d in zip(candidate, defaults, strict=True)]
    used = slice(1, None) if len(differences) > 1 else slice(0, 1)
    mean = float(np.mean(differences[used]))
    by_sample = np.mean([c.samples - d.samples for c, d in zip(candidate[used], defaults[used], strict=True)], axis=0)
    of_samples = float(np.var(by_sample, ddof=1)) / len(by_sample) if len(by_sample) > 1 else math.inf
    of_seeds = float(np.var(differences, ddof=1)) / len(differences[used]) if len(differences) > 1 else of_samples
    return Gain(mean, math.sqrt(of_seeds + of_samples))


def weights(sparsities: Sequence[float]) -> dict[float, float]:
    """Sparsity -> weight of its accuracy in the area under the accuracy-sparsity curve (trapezoidal rule); weights sum to 1."""
    x = sorted(set(sparsities))
    if len(x) == 1:
        return {x[0]: 1.0}
    halves = [(b - a) / 2 / (x[-1] - x[0]) for a, b in itertools.pairwise(x)]
    return {s: left + right for s, left, right in zip(x, [0.0, *halves], [*halves, 0.0], strict=True)}
