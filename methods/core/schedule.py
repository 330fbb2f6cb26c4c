"""Schedules: when to cut, how far, and what to train between, as data that `methods.fit` executes."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from methods.core.interface import Stage

SHAPES = ("linear", "cubic")


@dataclass(frozen=True)
class Lap:
    """Epochs `first` to `last` under a learning rate that comes to its end after `last` epochs.

    `cuts`: epoch -> sparsity to cut to after it, or before the lap for epoch `first` - 1. `rewind`: weights and the training's
    state are brought back first to what they were after epoch `first` - 1 of the first lap; the mask stays. `persistent`:
    what is cut stays at zero; otherwise only the last cut of all holds.
    """

    first: int
    last: int
    cuts: dict[int, float] = field(default_factory=dict)
    rewind: bool = False
    persistent: bool = True


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A way to reach a sparsity in several cuts. `stage`: where it applies."""

    kind: ClassVar[str] = ""
    stage: ClassVar[Stage] = Stage.DURING

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """What to do, in order, with so many epochs at hand, from the present sparsity to the target.

        ValueError where it cannot be done.
        """
        raise NotImplementedError

    def epochs(self, epochs: int, target: float) -> int:
        """How many epochs that trains in all, on a network with nothing cut yet."""
        return sum(lap.last - lap.first + 1 for lap in self.laps(epochs, 0.0, target))

    def as_dict(self) -> dict[str, Any]:
        """The kind and the fields: what a row records."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def _check(epochs: int, target: float) -> None:
    if not 0.0 <= target < 1.0:
        raise ValueError(f"sparsity {target!r} is not in [0, 1)")
    if epochs < 1:
        raise ValueError(f"pruning while training needs at least one epoch, got {epochs}")


@dataclass(frozen=True, kw_only=True)
class Gradual(Schedule):
    """Cuts while the network trains for E epochs.

    Cuts follow the epochs t that are multiples of U = `every` with t₀ <= t < t₁, and the epoch t₁; t₀ = `begin` · E and
    t₁ = `end` · E, rounded to whole epochs, t₁ >= 1. The sparsity after the cut at t < t₁, towards the target s_f, is

        linear  s(t) = s₀ + (s_f - s₀) ⌊t/U⌋ / ⌊t₁/U⌋      (Dhahri et al. 2024, released code; E for t₁ there)
        cubic   s(t) = s_f + (s₀ - s_f) (1 - (t - t₀)/(t₁ - t₀))³      (Zhu and Gupta 2017, equation 1)

    with s₀ = min(`start`, s_f), and s(t₁) = s_f exactly. From then on the mask is held and the training goes on.

    `begin`, `end`: fractions of the training; `every`: epochs; `start`: a sparsity. `persistent`: what is cut stays at zero, so
    that masks are nested. Otherwise masks are dynamic: a cut sets weights to zero, no more, and they may regrow, also by the
    optimiser's momentum; the next cut ranks all weights anew, and only the last one holds.

    Raises ValueError naming the field that cannot be followed.
    """

    kind: ClassVar = "gradual"
    stage: ClassVar = Stage.DURING

    shape: str = "cubic"
    start: float = 0.0
    begin: float = 1 / 3
    end: float = 3 / 4
    every: int = 1
    persistent: bool = True

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"Gradual: shape '{self.shape}' is not one of {', '.join(SHAPES)}")
        if not 0.0 <= self.start < 1.0:
            raise ValueError(f"Gradual: start={self.start!r} is not a sparsity in [0, 1)")
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise ValueError(f"Gradual: begin={self.begin!r} and end={self.end!r} are not fractions with 0 <= begin < end <= 1")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"Gradual: every={self.every!r} is not a whole number of epochs, at least 1")

    def __str__(self) -> str:
        fate = "cut for good" if self.persistent else "free to regrow until the last cut"
        steps = f"every {self.every} epochs" if self.every > 1 else "every epoch"
        return f"{self.shape} from {self.start:g}, {steps} between {self.begin:.0%} and {self.end:.0%} of training, {fate}"

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """One lap with all the cuts."""
        return (Lap(1, epochs, self.targets(epochs, target), persistent=self.persistent),)

    def targets(self, epochs: int, target: float) -> dict[int, float]:
        """Epoch (from 1) -> sparsity to cut to after it, in order: non-decreasing, the last one the target itself.

        Raises ValueError where the target is not in [0, 1), or there is no epoch to cut after.
        """
        _check(epochs, target)
        first, last = round(self.begin * epochs), max(1, round(self.end * epochs))
        before = [t for t in range(max(1, first), last) if t % self.every == 0]
        return {t: self._sparsity(t, first, last, target) for t in before} | {last: target}

    def _sparsity(self, t: int, first: int, last: int, target: float) -> float:
        start = min(self.start, target)
        if self.shape == "cubic":
            return target + (start - target) * (1.0 - (t - first) / (last - first)) ** 3
        # Rounding may lift the end of the line above the target by a bit.
        return min(target, start + (target - start) * (t // self.every) / (last // self.every))


@dataclass(frozen=True, kw_only=True)
class Iterative(Schedule):
    """Cuts of a trained network in `rounds` rounds, fine-tuned after each: the F epochs of fine-tuning, divided among them.

    Densities shrink by an equal factor each round ("exponential": Han et al. 2015 prune and retrain in turn) or along the cubic
    polynomial of Zhu and Gupta 2017. Each round's share of the epochs has a learning rate of its own, from warm-up to zero;
    what is left over falls to the last rounds. With fewer epochs than rounds the first ones score and cut without training between.
    """

    kind: ClassVar = "iterative"
    stage: ClassVar = Stage.AFTER

    rounds: int = 3
    shape: str = "exponential"

    def __post_init__(self) -> None:
        if self.shape not in WAYS:
            raise ValueError(f"Iterative: shape '{self.shape}' is not one of {', '.join(WAYS)}")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"Iterative: rounds={self.rounds!r} is not a whole number, at least 1")

    def __str__(self) -> str:
        return f"{self.rounds} rounds of cutting and fine-tuning, {self.shape}"

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """One lap a round, cut before it."""
        _check(epochs + 1, target)
        targets = WAYS[self.shape](present, target, self.rounds)
        return tuple(Lap(1, (epochs + k) // self.rounds, {0: s}) for k, s in enumerate(targets))


@dataclass(frozen=True, kw_only=True)
class Rewinding(Schedule):
    """Train, cut, rewind, and again: iterative magnitude pruning as in the lottery-ticket papers, for any criterion.

    A network trains for E epochs, is cut after the last one by at most the fraction `rate` of its weights, brought back to the
    weights of epoch k = `to` · E and trained to epoch E again, with the learning rate of those epochs; until the target is
    reached, and once more. n = ⌈log(1 - s) / log(1 - rate)⌉ rounds of an equal factor of density reach s exactly. It trains
    E + n (E - k) epochs: many times what other methods have.

    References: Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019 (rate 0.2, to = 0); Frankle et al., "Linear
    mode connectivity and the lottery ticket hypothesis", ICML 2020, for rewinding to an early epoch.
    """

    kind: ClassVar = "rewinding"
    stage: ClassVar = Stage.DURING

    rate: float = 0.2
    to: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"Rewinding: rate={self.rate!r} is not a fraction in (0, 1)")
        if not 0.0 <= self.to < 1.0:
            raise ValueError(f"Rewinding: to={self.to!r} is not a fraction of the training in [0, 1)")

    def __str__(self) -> str:
        return f"cuts {self.rate:.0%} after training, rewinds to {self.to:.0%} of it and trains again, until the target"

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """The first training, and one a round."""
        _check(epochs, target)
        start = min(round(self.to * epochs), epochs - 1)
        rounds = math.ceil(math.log((1.0 - target) / (1.0 - present)) / math.log(1.0 - self.rate) - 1e-9)
        targets = exponential(present, target, rounds) if rounds > 0 else ()
        laps = [Lap(1, epochs)] + [Lap(start + 1, epochs, rewind=True)] * len(targets)
        cuts = [*({epochs: s} for s in targets), {}]
        return tuple(dataclasses.replace(lap, cuts=c) for lap, c in zip(laps, cuts, strict=True))


def exponential(present: float, target: float, rounds: int) -> tuple[float, ...]:
    """Rising sparsities, the target last: densities shrink by an equal factor each round (Tanaka et al. 2020, section 6)."""
    density, ratio = 1.0 - present, (1.0 - target) / (1.0 - present)
    return *(min(target, 1.0 - density * ratio ** (k / rounds)) for k in range(1, rounds)), target


def cubic(present: float, target: float, rounds: int) -> tuple[float, ...]:
    """Rising sparsities, the target last: s_f + (s₀ - s_f)(1 - k/n)³ (Zhu and Gupta 2017, equation 1)."""
    return *(min(target, target + (present - target) * (1.0 - k / rounds) ** 3) for k in range(1, rounds)), target


WAYS = {"exponential": exponential, "cubic": cubic}
