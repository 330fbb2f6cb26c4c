"""Schedules of online pruning: after which epochs of a training to cut, and to which sparsity."""

from dataclasses import dataclass

SHAPES = ("linear", "cubic")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to cut while the network trains for E epochs, and how far: data, which `methods.fit` executes.

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

    shape: str = "cubic"
    start: float = 0.0
    begin: float = 1 / 3
    end: float = 3 / 4
    every: int = 1
    persistent: bool = True

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"Schedule: shape '{self.shape}' is not one of {', '.join(SHAPES)}")
        if not 0.0 <= self.start < 1.0:
            raise ValueError(f"Schedule: start={self.start!r} is not a sparsity in [0, 1)")
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise ValueError(f"Schedule: begin={self.begin!r} and end={self.end!r} are not fractions with 0 <= begin < end <= 1")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"Schedule: every={self.every!r} is not a whole number of epochs, at least 1")

    def __str__(self) -> str:
        fate = "cut for good" if self.persistent else "free to regrow until the last cut"
        steps = f"every {self.every} epochs" if self.every > 1 else "every epoch"
        return f"{self.shape} from {self.start:g}, {steps} between {self.begin:.0%} and {self.end:.0%} of training, {fate}"

    def targets(self, epochs: int, target: float) -> dict[int, float]:
        """Epoch (from 1) -> sparsity to cut to after it, in order: non-decreasing, the last one the target itself.

        Raises ValueError where the target is not in [0, 1), or there is no epoch to cut after.
        """
        if not 0.0 <= target < 1.0:
            raise ValueError(f"sparsity {target!r} is not in [0, 1)")
        if epochs < 1:
            raise ValueError(f"pruning while training needs at least one epoch, got {epochs}")
        first, last = round(self.begin * epochs), max(1, round(self.end * epochs))
        before = [t for t in range(max(1, first), last) if t % self.every == 0]
        return {t: self._sparsity(t, first, last, target) for t in before} | {last: target}

    def _sparsity(self, t: int, first: int, last: int, target: float) -> float:
        start = min(self.start, target)
        if self.shape == "cubic":
            return target + (start - target) * (1.0 - (t - first) / (last - first)) ** 3
        # Rounding may lift the end of the line above the target by a bit.
        return min(target, start + (target - start) * (t // self.every) / (last // self.every))


def exponential(present: float, target: float, rounds: int) -> tuple[float, ...]:
    """Rising sparsities, the target last: densities shrink by an equal factor each round (Tanaka et al. 2020, section 6)."""
    density, ratio = 1.0 - present, (1.0 - target) / (1.0 - present)
    return *(min(target, 1.0 - density * ratio ** (k / rounds)) for k in range(1, rounds)), target


def cubic(present: float, target: float, rounds: int) -> tuple[float, ...]:
    """Rising sparsities, the target last: s_f + (s₀ - s_f)(1 - k/n)³ (Zhu and Gupta 2017, equation 1)."""
    return *(min(target, target + (present - target) * (1.0 - k / rounds) ** 3) for k in range(1, rounds)), target
