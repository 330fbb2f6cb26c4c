"""How trials are spent and when a candidate is believed, against plain loops and simulated searches whose answers are known."""

import math

import numpy as np
import pytest

from bench.ranking.tracks import area
from bench.tuning.selection import Gain, Measured, Rounds, gain, rounds, weights


@pytest.mark.parametrize("trials", range(1, 60))
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_no_trial_is_lost_and_half_of_them_screen(trials: int, seeds: int) -> None:
    plan = rounds(trials, seeds)
    assert plan.trials == trials
    assert plan.screened >= min(trials, max(2, trials / 2))
    assert plan.further < seeds
    assert (plan.finalists == 0) == (plan.further == 0)


def test_what_ten_trials_are() -> None:
    plan = rounds(10, 3)
    assert (plan.screened, plan.finalists, plan.further) == (6, 1, 2), "six candidates, then the best and the defaults on two more seeds"


@pytest.mark.parametrize(
    ("trials", "seeds", "plan"),
    [
        (1, 3, (1, 0, 0)), (3, 3, (3, 0, 0)),  # screening two leaves too few for a second seed
        (4, 2, (2, 1, 1)), (4, 3, (2, 1, 1)), (7, 3, (5, 1, 1)), (8, 3, (4, 1, 2)), (10, 5, (6, 1, 2)), (12, 4, (6, 1, 3)),
        (19, 3, (15, 1, 2)), (20, 3, (14, 2, 2)), (29, 2, (26, 2, 1)), (30, 2, (26, 3, 1)), (99, 2, (89, 9, 1)), (10, 1, (10, 0, 0)),
    ],
)  # fmt: skip
def test_trials_are_divided_as_by_hand(trials: int, seeds: int, plan: tuple[int, int, int]) -> None:
    assert rounds(trials, seeds) == Rounds(*plan)
    assert isinstance(rounds(trials, seeds).finalists, int)


def test_weights_are_those_of_the_area() -> None:
    for sparsities in ([0.9], [0.5, 0.9], [0.8, 0.9, 0.95, 0.99], [0.99, 0.2, 0.7]):
        weight = weights(sparsities)
        accuracy = {s: math.cos(7 * s) for s in sparsities}
        assert sum(weight.values()) == pytest.approx(1)
        assert sum(weight[s] * a for s, a in accuracy.items()) == pytest.approx(area(list(accuracy), list(accuracy.values())))


def measured(samples: list[float]) -> Measured:
    return Measured(sum(samples) / len(samples), np.array(samples))


def test_the_gain_and_its_error_by_plain_loops() -> None:
    candidate = [[1.0, 1.0, 0.0, 1.0], [1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 0.5, 0.0]]
    defaults = [[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.5], [0.5, 1.0, 0.0, 0.0]]
    found = gain([measured(c) for c in candidate], [measured(d) for d in defaults])
    by_seed = [sum(c) / 4 - sum(d) / 4 for c, d in zip(candidate, defaults, strict=True)]
    mean = (by_seed[1] + by_seed[2]) / 2
    center = sum(by_seed) / 3
    s2 = sum((d - center) ** 2 for d in by_seed) / 2
    by_sample = [((candidate[1][i] - defaults[1][i]) + (candidate[2][i] - defaults[2][i])) / 2 for i in range(4)]
    v = sum((d - mean) ** 2 for d in by_sample) / 3
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx(math.sqrt(s2 / 2 + v / 4))
    assert found.believed == (mean > 2 * math.sqrt(s2 / 2 + v / 4))


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_samples_that_differ_over_all_seeds_are_noise_too(seeds: int) -> None:
    """Of every seed the samples gain 0.5, 0, -0.25 and 0.25, and the k-th seed k / 8 more: the first one is not in the mean."""
    own = [0.5, 0.0, -0.25, 0.25]
    candidate = [measured([1 + v + k / 8 for v in own]) for k in range(seeds)]
    found = gain(candidate, [measured([1.0] * 4)] * seeds)
    further = seeds - 1
    by_seed = [0.125 + k / 8 for k in range(seeds)]
    mean = sum(by_seed[1:]) / further
    s2 = sum((d - sum(by_seed) / seeds) ** 2 for d in by_seed) / further
    v = sum((x - 0.125) ** 2 for x in own) / 3
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx(math.sqrt(s2 / further + v / 4))


def test_what_equals_the_defaults_or_has_one_sample_is_not_believed() -> None:
    same = [measured([1.0, 0.0, 1.0])] * 3
    assert not gain(same, same).believed
    for seeds in (1, 2):
        found = gain([measured([1.0])] * seeds, [measured([0.0])] * seeds)
        assert (found.mean, found.error) == (1.0, math.inf)
        assert not found.believed
    pair = gain([measured([1.0, 0.5])], [measured([0.5, 0.25])])
    assert pair.error == pytest.approx(math.sqrt(2 * 0.03125 / 2)), "two samples have a variance: 2 x 0.125^2"


def test_a_gain_is_believed_from_two_standard_errors_on() -> None:
    assert Gain(0.21, 0.1).believed
    assert not Gain(0.2, 0.1).believed
    assert not Gain(0.15, 0.1).believed


def test_one_seed_alone_needs_more() -> None:
    """Nothing is known of the noise of seeds then: it is taken to be as large as that of samples."""
    one, other = measured([1.0] * 60 + [0.0] * 40), measured([1.0] * 50 + [0.0] * 50)
    found = gain([one], [other])
    v = np.var([0.0] * 50 + [1.0] * 10 + [0.0] * 40, ddof=1)
    assert found.mean == pytest.approx(0.1)
    assert found.error == pytest.approx(math.sqrt(2 * v / 100))


def search(rng: np.random.Generator, truth: list[float], n: int, noise: float) -> int:
    """The candidate that a search of ten trials chooses: networks scatter by `noise` over seeds, hits are drawn for each sample."""
    plan = rounds(10, 3)

    def trial(candidate: int) -> Measured:
        return measured((rng.random(n) < truth[candidate] + noise * rng.normal()).astype(float).tolist())

    screened = [trial(k) for k in range(plan.screened)]
    finalist = max(range(1, plan.screened), key=lambda k: screened[k].value)
    sequences = [[screened[k], *(trial(k) for _ in range(plan.further))] for k in (0, finalist)]
    return finalist if gain(sequences[1], sequences[0]).believed else 0


def test_noise_is_seldom_chosen_and_a_real_gain_mostly_is() -> None:
    """300 searches each: six candidates that are all alike, and five that are alike beside one that is ten points better."""
    rng = np.random.default_rng(7)
    alike = sum(search(rng, [0.7] * 6, 300, 0.02) != 0 for _ in range(300))
    better = sum(search(rng, [0.7] * 3 + [0.8] + [0.7] * 2, 300, 0.02) == 3 for _ in range(300))
    assert alike / 300 < 0.08
    assert better / 300 > 0.6
