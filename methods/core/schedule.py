"""Schedules: when to cut, to which sparsity, and what to train between cuts. `methods.fit` executes them."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from methods.core.interface import Stage

SHAPES = ("linear", "cubic")
UNITS = ("epochs", "steps")


class Move(NamedTuple):
    """A change of the mask between two steps of training.

    Attributes:
        sparsity: sparsity to cut to.
        share: fraction of the kept weights of each layer that is then dropped, and replaced by as many removed ones; 0 for none.
    """

    sparsity: float
    share: float = 0.0


@dataclass(frozen=True)
class Lap:
    """One part of a schedule: epochs `first` to `last`, with a learning-rate schedule that ends after epoch `last`.

    Attributes:
        first: first epoch, counted from 1.
        last: last epoch.
        cuts: epoch -> sparsity to cut to after it; epoch `first` - 1 means before the lap.
        rewind: whether the lap starts from the weights and the training's state after epoch `first` - 1 of the first lap, with
            the current mask.
        persistent: whether cut weights stay at zero; otherwise only the last cut of the schedule is final.
    """

    first: int
    last: int
    cuts: dict[int, float] = field(default_factory=dict)
    rewind: bool = False
    persistent: bool = True


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A way to reach a sparsity in several cuts.

    Attributes:
        kind: name of the class of schedules.
        stage: the stage at which it applies.
    """

    kind: ClassVar[str] = ""
    stage: ClassVar[Stage] = Stage.DURING

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """The laps to train, in order.

        Args:
            epochs: number of epochs that are available.
            present: sparsity of the current mask.
            target: sparsity to reach.

        Raises:
            ValueError: if the schedule does not fit the number of epochs, or the target is not in [0, 1).
        """
        raise NotImplementedError

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        """Cuts between the steps of a training, for schedules of one lap: number of finished steps -> what changes then, in order."""
        return {}

    def epochs(self, epochs: int, target: float) -> int:
        """The total number of epochs that are trained, starting from a dense network."""
        return sum(lap.last - lap.first + 1 for lap in self.laps(epochs, 0.0, target))

    def as_dict(self) -> dict[str, Any]:
        """The kind and the fields, as results record them."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def _check(epochs: int, target: float) -> None:
    if not 0.0 <= target < 1.0:
        raise ValueError(f"sparsity {target!r} is not in [0, 1)")
    if epochs < 1:
        raise ValueError(f"pruning during training needs at least one epoch, got {epochs}")


@dataclass(frozen=True, kw_only=True)
class Gradual(Schedule):
    """Prune gradually during a training of E epochs.

    Cuts come after the epochs t that are multiples of U = `every` with t₀ <= t < t₁, and after epoch t₁, where t₀ = `begin` · E and
    t₁ = `end` · E are rounded to whole epochs and t₁ >= 1. The sparsity after the cut at t < t₁ is, for the target s_f,

        linear  s(t) = s₀ + (s_f - s₀) ⌊t/U⌋ / ⌊t₁/U⌋      (Dhahri et al. 2024, released code; E for t₁ there)
        cubic   s(t) = s_f + (s₀ - s_f) (1 - (t - t₀)/(t₁ - t₀))³      (Zhu and Gupta 2017, equation 1)

    with s₀ = min(`start`, s_f), and s(t₁) = s_f exactly. After t₁ the mask stays and training continues. With `unit` = "steps", t, E and
    U are counted in steps of the optimiser instead.

    Attributes:
        shape: "linear" or "cubic".
        start: initial sparsity s₀.
        begin: fraction of the training before the first cut.
        end: fraction of the training before the last cut.
        every: U, epochs or steps between cuts.
        persistent: True: cut weights stay at zero and masks are nested. False: masks are dynamic; cut weights are set to zero but may
            grow again (also by the optimiser's momentum), the next cut ranks all weights anew, and only the last mask is final.
        unit: what t is counted in: "epochs" or "steps".

    Raises:
        ValueError: if a field is outside its range; the message names it.
    """

    kind: ClassVar = "gradual"
    stage: ClassVar = Stage.DURING

    shape: str = "cubic"
    start: float = 0.0
    begin: float = 1 / 3
    end: float = 3 / 4
    every: int = 1
    persistent: bool = True
    unit: str = "epochs"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"Gradual: unit '{self.unit}' is not one of {', '.join(UNITS)}")
        if self.shape not in SHAPES:
            raise ValueError(f"Gradual: shape '{self.shape}' is not one of {', '.join(SHAPES)}")
        if not 0.0 <= self.start < 1.0:
            raise ValueError(f"Gradual: start={self.start!r} is not a sparsity in [0, 1)")
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise ValueError(f"Gradual: begin={self.begin!r} and end={self.end!r} are not fractions with 0 <= begin < end <= 1")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"Gradual: every={self.every!r} is not a whole number of {self.unit}, at least 1")

    def __str__(self) -> str:
        fate = "cut weights stay at zero" if self.persistent else "cut weights may regrow until the last cut"
        steps = f"every {self.every} {self.unit}" if self.every > 1 else f"every {self.unit.removesuffix('s')}"
        return f"{self.shape} from {self.start:g}, {steps} between {self.begin:.0%} and {self.end:.0%} of training, {fate}"

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """One lap with all the cuts, if they come after epochs."""
        cuts = self.targets(epochs, target)
        return (Lap(1, epochs, cuts if self.unit == "epochs" else {}, persistent=self.persistent),)

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        """All the cuts, if they come after steps."""
        return {t: Move(s) for t, s in self.targets(steps, target).items()} if self.unit == "steps" else {}

    def targets(self, epochs: int, target: float) -> dict[int, float]:
        """The sparsities of the cuts.

        Args:
            epochs: number of epochs (or steps, see `unit`) E.
            target: final sparsity.

        Returns:
            Epoch (from 1) -> sparsity to cut to after it, in order; non-decreasing, the last one is the target.

        Raises:
            ValueError: if the target is not in [0, 1), or there are no epochs.
        """
        _check(epochs, target)
        first, last = round(self.begin * epochs), max(1, round(self.end * epochs))
        before = [t for t in range(max(1, first), last) if t % self.every == 0]
        return {t: self._sparsity(t, first, last, target) for t in before} | {last: target}

    def _sparsity(self, t: int, first: int, last: int, target: float) -> float:
        start = min(self.start, target)
        if self.shape == "cubic":
            return target + (start - target) * (1.0 - (t - first) / (last - first)) ** 3
        # Rounding may make the end of the line slightly larger than the target.
        return min(target, start + (target - start) * (t // self.every) / (last // self.every))


@dataclass(frozen=True, kw_only=True)
class Regrowth(Schedule):
    """Train under a mask that moves between steps, as a criterion that regrows weights says (see `methods.Regrowing`)."""

    kind: ClassVar = "regrowth"
    stage: ClassVar = Stage.DURING

    def __str__(self) -> str:
        return "the mask moves between steps of training"

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """One lap; the criterion has the cuts."""
        _check(epochs, target)
        return (Lap(1, epochs),)


@dataclass(frozen=True, kw_only=True)
class Iterative(Schedule):
    """Prune a trained network in several rounds, with fine-tuning after each round.

    The epochs of fine-tuning are divided among the rounds; the last rounds get the remainder. In each round the learning rate
    starts with a warm-up and decays to zero. With fewer epochs than rounds, the first rounds score and cut without training.

    Attributes:
        rounds: number of rounds.
        shape: "exponential": the density shrinks by the same factor in each round (Han et al. 2015 prune and retrain in turn);
            "cubic": sparsities on the cubic polynomial of Zhu and Gupta 2017.

    Raises:
        ValueError: if a field is outside its range.
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
        return f"{self.rounds} rounds of pruning and fine-tuning, {self.shape} sparsities"

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """One lap per round, each after a cut."""
        _check(epochs + 1, target)
        targets = WAYS[self.shape](present, target, self.rounds)
        return tuple(Lap(1, (epochs + k) // self.rounds, {0: s}) for k, s in enumerate(targets))


@dataclass(frozen=True, kw_only=True)
class Rewinding(Schedule):
    """Train, cut, rewind and train again, in rounds: iterative magnitude pruning as in the lottery-ticket papers, for any criterion.

    A network is trained for E epochs. Each of the n = ⌈log(1 - s) / log(1 - rate)⌉ rounds cuts it, sets the remaining weights back to
    those of epoch k = `to` · E and trains it to epoch E again, with the learning rate of those epochs. Each round reduces the density
    by the same factor, and the last one reaches the sparsity s exactly. In total E + n (E - k) epochs are trained, many times more
    than with other methods. With `weights` = False only the learning rate is rewound, and the weights stay as they are.

    Attributes:
        rate: fraction of the remaining weights that a round removes, at most.
        to: fraction of the training to rewind to.
        weights: whether the weights are set back, or only the learning rate.

    Raises:
        ValueError: if a field is outside its range.

    References: Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019 (rate 0.2, to = 0); Frankle et al., "Linear
    mode connectivity and the lottery ticket hypothesis", ICML 2020, for rewinding to an early epoch; Renda, Frankle and Carbin,
    "Comparing rewinding and fine-tuning in neural network pruning", ICLR 2020, for learning-rate rewinding (to = 0).
    """

    kind: ClassVar = "rewinding"
    stage: ClassVar = Stage.DURING

    rate: float = 0.2
    to: float = 0.1
    weights: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"Rewinding: rate={self.rate!r} is not a fraction in (0, 1)")
        if not 0.0 <= self.to < 1.0:
            raise ValueError(f"Rewinding: to={self.to!r} is not a fraction of the training in [0, 1)")

    def __str__(self) -> str:
        what = "rewinds" if self.weights else "rewinds the learning rate"
        return f"cuts {self.rate:.0%} after training, {what} to {self.to:.0%} of the training and trains again, until the target"

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        """The first training, then one lap per round."""
        _check(epochs, target)
        start = min(round(self.to * epochs), epochs - 1)
        rounds = math.ceil(math.log((1.0 - target) / (1.0 - present)) / math.log(1.0 - self.rate) - 1e-9)
        targets = exponential(present, target, rounds) if rounds > 0 else ()
        laps = [Lap(1, epochs)] + [Lap(start + 1, epochs, rewind=self.weights)] * len(targets)
        cuts = [*({epochs: s} for s in targets), {}]
        return tuple(dataclasses.replace(lap, cuts=c) for lap, c in zip(laps, cuts, strict=True))


def exponential(present: float, target: float, rounds: int) -> tuple[float, ...]:
    """Rising sparsities, the last one the target; the density shrinks by the same factor in each round (Tanaka et al. 2020, section 6)."""
    density, ratio = 1.0 - present, (1.0 - target) / (1.0 - present)
    return *(min(target, 1.0 - density * ratio ** (k / rounds)) for k in range(1, rounds)), target


def cubic(present: float, target: float, rounds: int) -> tuple[float, ...]:
    """Rising sparsities, the last one the target: s_f + (s₀ - s_f)(1 - k/n)³ for k = 1..n (Zhu and Gupta 2017, equation 1)."""
    return *(min(target, target + (present - target) * (1.0 - k / rounds) ** 3) for k in range(1, rounds)), target


WAYS = {"exponential": exponential, "cubic": cubic}
