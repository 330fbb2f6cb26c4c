"""Schedules against targets computed by hand, and what holds for all of them."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods import Gradual
from methods.core.schedule import SHAPES, cubic, exponential


def test_the_linear_schedule_by_hand() -> None:
    released = Gradual(shape="linear", start=0.1, begin=0.2, end=1.0, every=3, persistent=False)
    # E = 10: burn-in of 2 epochs, steps of 3, three of them in the whole; 0.1 + 0.8 k/3, and the last epoch.
    assert released.targets(10, 0.9) == pytest.approx({3: 0.1 + 0.8 / 3, 6: 0.1 + 1.6 / 3, 9: 0.9, 10: 0.9})
    # U divides E: the last step of the line is the last epoch.
    assert released.targets(9, 0.9) == pytest.approx({3: 0.1 + 0.8 / 3, 6: 0.1 + 1.6 / 3, 9: 0.9})


def test_the_released_settings_by_hand() -> None:
    """A hundred epochs, a cut in ten, after a burn-in of twenty: 0.1 + 0.89 ⌊t/10⌋/10."""
    released = Gradual(shape="linear", start=0.1, begin=0.2, end=1.0, every=10, persistent=False)
    wanted = {20: 0.278, 30: 0.367, 40: 0.456, 50: 0.545, 60: 0.634, 70: 0.723, 80: 0.812, 90: 0.901, 100: 0.99}
    assert released.targets(100, 0.99) == pytest.approx(wanted)


def test_the_cubic_schedule_by_hand() -> None:
    gradual = Gradual(shape="cubic", start=0.2, begin=0.2, end=0.8, every=2)
    # E = 10: from epoch 2 to epoch 8, progress 0, 1/3, 2/3, 1; 1 - p cubed is 1, 8/27, 1/27, 0.
    assert gradual.targets(10, 0.8) == pytest.approx({2: 0.2, 4: 0.8 - 0.6 * 8 / 27, 6: 0.8 - 0.6 / 27, 8: 0.8})
    # Multiples of 3 from epoch 2 on, and the end.
    assert Gradual(begin=0.2, end=0.8, every=3).targets(10, 0.8) == pytest.approx({3: 0.8 - 0.8 * (5 / 6) ** 3, 6: 0.8 - 0.8 / 27, 8: 0.8})


def test_from_the_first_epoch_where_there_is_no_burn_in() -> None:
    assert Gradual(begin=0.0, end=1.0).targets(2, 0.8) == pytest.approx({1: 0.7, 2: 0.8})


def test_a_target_below_the_start_is_where_it_starts() -> None:
    for shape in SHAPES:
        assert set(Gradual(shape=shape, start=0.5, begin=0.0, end=1.0).targets(4, 0.3).values()) == {0.3}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("epochs", "last"), [(1, 1), (2, 2), (3, 2)])
def test_short_trainings_have_their_last_cut(shape: str, epochs: int, last: int) -> None:
    targets = Gradual(shape=shape, every=50).targets(epochs, 0.9)
    assert targets == {last: 0.9}


@given(
    shape=st.sampled_from(SHAPES),
    start=st.floats(0, 1, exclude_max=True),
    target=st.floats(0, 1, exclude_max=True),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda f: f[0] != f[1]).map(sorted),
    every=st.integers(1, 40),
    epochs=st.integers(1, 200),
)
def test_every_schedule_rises_to_its_target(
    shape: str, start: float, target: float, fractions: list[float], every: int, epochs: int
) -> None:
    begin, end = fractions
    targets = Gradual(shape=shape, start=start, begin=begin, end=end, every=every).targets(epochs, target)
    assert list(targets) == sorted(targets)
    assert 1 <= min(targets) <= max(targets) <= epochs
    assert abs(max(targets) - max(1.0, end * epochs)) <= 0.5
    assert all(t >= begin * epochs - 0.5 and t % every == 0 for t in list(targets)[:-1])
    values = list(targets.values())
    assert values == sorted(values)
    assert values[-1] == target
    assert all(max(0.0, min(start, target) - 1e-12) <= s < 1 for s in values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": "cosine"}, "shape 'cosine' is not one of linear, cubic"),
        ({"start": 1.0}, r"start=1.0 is not a sparsity in \[0, 1\)"),
        ({"start": -0.1}, "start=-0.1"),
        ({"start": float("nan")}, "start=nan"),
        ({"begin": 0.8, "end": 0.8}, "begin=0.8 and end=0.8 are not fractions with 0 <= begin < end <= 1"),
        ({"begin": -0.1}, "begin=-0.1"),
        ({"end": 1.1}, "end=1.1"),
        ({"end": float("nan")}, "end=nan"),
        ({"every": 0}, "every=0 is not a whole number of epochs, at least 1"),
        ({"every": 1.5}, "every=1.5"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gradual(**fields)


@pytest.mark.parametrize(
    ("epochs", "target", "message"), [(0, 0.5, "at least one epoch, got 0"), (3, 1.0, r"sparsity 1.0"), (3, -0.1, "-0.1")]
)
def test_targets_that_cannot_be_reached_are_refused(epochs: int, target: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gradual().targets(epochs, target)


def test_it_says_in_words_what_it_does() -> None:
    assert str(Gradual()) == "cubic from 0, every epoch between 33% and 75% of training, cut weights stay at zero"
    online = Gradual(shape="linear", start=0.1, begin=0.5, end=1.0, every=2, persistent=False)
    assert str(online) == "linear from 0.1, every 2 epochs between 50% and 100% of training, cut weights may regrow until the last cut"


@pytest.mark.parametrize("way", [exponential, cubic])
@given(ends=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)).map(sorted), rounds=st.integers(1, 100))
def test_rounds_rise_to_the_target(way: Callable[[float, float, int], tuple[float, ...]], ends: list[float], rounds: int) -> None:
    start, target = ends
    steps = way(start, target, rounds)
    assert len(steps) == rounds
    assert steps[-1] == target
    assert list(steps) == sorted(steps)
    assert steps[0] >= start - 1e-12


def test_rounds_by_hand() -> None:
    assert exponential(0.0, 0.875, 3) == pytest.approx((0.5, 0.75, 0.875))  # densities halve
    assert cubic(0.0, 0.8, 2) == pytest.approx((0.7, 0.8))
