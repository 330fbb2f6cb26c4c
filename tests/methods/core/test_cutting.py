"""Masks: exact to the weight, nested, seeded where scores are equal, and held by the network that was cut."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import methods
from methods import Criterion, Mask, Problem, Scores, count_masked, kept_weights
from methods.core.cutting import Pruner, faults, scored_once
from methods.core.schedule import Gradual, Lap, Move, Schedule, exponential

WEIGHT = methods.make("granularities", "weight", {})

configuration = dataclass(frozen=True, kw_only=True)
fast = settings(max_examples=150, deadline=None)


@dataclass
class Case:
    """A network of bare weight matrices, and scores with few or many different values."""

    shapes: list[tuple[int, int]]
    levels: int
    seed: int
    problem: Problem = field(init=False)
    scores: Scores = field(init=False)

    def __post_init__(self) -> None:
        self.problem = Problem(nn.ModuleList(nn.Linear(i, o, bias=False) for o, i in self.shapes), (), seed=self.seed)
        self.scores = self.draw(0)

    def draw(self, number: int) -> Scores:
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        return Scores({n: torch.randint(0, self.levels, w.shape, generator=generator) / 4 - 1.0 for n, w in self.problem.weights.items()})

    @property
    def total(self) -> int:
        return sum(o * i for o, i in self.shapes)


cases = st.builds(
    Case,
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    levels=st.sampled_from([1, 2, 4, 100_000]),
    seed=st.integers(0, 99),
)
sparsities = st.floats(0.0, 1.0, exclude_max=True)
pairs = st.tuples(sparsities, sparsities).map(sorted)


def inside(inner: Mask, outer: Mask) -> bool:
    return all(bool((outer[n] | ~m).all()) for n, m in inner.items())


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([v.flatten() for v in values.values()])


# --- one cut


@fast
@given(cases, sparsities)
def test_counts_are_exact(case: Case, sparsity: float) -> None:
    mask = WEIGHT.cut(case.problem, case.scores, sparsity)
    assert {n: (m.shape, m.dtype) for n, m in mask.items()} == {n: (w.shape, torch.bool) for n, w in case.problem.weights.items()}
    assert int(flat(mask).sum()) == case.total - round(sparsity * case.total)


@fast
@given(cases, sparsities)
def test_no_removed_weight_scores_higher_than_a_kept_one(case: Case, sparsity: float) -> None:
    mask, scores = flat(WEIGHT.cut(case.problem, case.scores, sparsity)), flat(case.scores.values)
    if mask.any() and not mask.all():
        assert scores[~mask].max() <= scores[mask].min()


@pytest.mark.parametrize(("sparsity", "masked"), [(0.0, 0), (0.04, 0), (0.25, 2), (0.26, 3), (0.5, 5), (0.94, 9), (0.96, 10)])
def test_the_count_is_the_rounded_product(sparsity: float, masked: int) -> None:
    assert count_masked(sparsity, 10) == masked


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_a_sparsity_outside_its_interval_is_refused(sparsity: float) -> None:
    case = Case([(2, 3)], 4, 0)
    with pytest.raises(ValueError, match=r"sparsity .* is not in \[0, 1\)"):
        count_masked(sparsity, 6)
    with pytest.raises(ValueError, match=r"sparsity .* is not in \[0, 1\)"):
        WEIGHT.cut(case.problem, case.scores, sparsity)


# --- several cuts


@fast
@given(cases, pairs)
def test_masks_of_the_same_scores_are_nested(case: Case, pair: list[float]) -> None:
    low, high = (WEIGHT.cut(case.problem, case.scores, s) for s in pair)
    assert inside(high, low)


@fast
@given(cases, pairs)
def test_a_cut_inside_an_earlier_mask_is_exact_and_revives_nothing(case: Case, pair: list[float]) -> None:
    earlier = WEIGHT.cut(case.problem, case.draw(1), pair[0])
    later = WEIGHT.cut(replace(case.problem, mask=earlier), case.scores, pair[1])
    assert inside(later, earlier)
    assert int(flat(later).sum()) == case.total - round(pair[1] * case.total)
    alive, kept, scores = flat(earlier), flat(later), flat(case.scores.values)
    if kept.any() and (alive & ~kept).any():
        assert scores[alive & ~kept].max() <= scores[kept].min()


@fast
@given(cases, pairs)
def test_two_cuts_with_the_same_scores_are_one(case: Case, pair: list[float]) -> None:
    earlier = WEIGHT.cut(case.problem, case.scores, pair[0])
    twice = WEIGHT.cut(replace(case.problem, mask=earlier), case.scores, pair[1])
    once = WEIGHT.cut(case.problem, case.scores, pair[1])
    assert torch.equal(flat(twice), flat(once))


def test_more_weights_than_are_alive_cannot_be_kept() -> None:
    case = Case([(5, 2)], 4, 0)
    earlier = WEIGHT.cut(case.problem, case.scores, 0.5)
    with pytest.raises(ValueError, match=r"sparsity 0\.4 keeps 6 weights, but the current mask has only 5 left"):
        WEIGHT.cut(replace(case.problem, mask=earlier), case.scores, 0.4)


# --- equal scores


def test_lots_decide_among_equal_scores_by_seed_and_not_by_position() -> None:
    equal = [Case([(100, 10), (100, 10)], 1, seed) for seed in (0, 0, 1)]
    first, again, other = (WEIGHT.cut(c.problem, c.scores, 0.5) for c in equal)
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(other))
    # Among 2000 equal weights the kept 1000 fall on each half as draws without replacement do: 500 ± 11.2.
    for half in first.values():
        assert abs(int(half.sum()) - 500) < 5 * 11.2
    kept = flat(first).nonzero().squeeze(1)
    assert abs(float(kept.double().mean()) - 999.5) < 5 * 12.9


def test_each_of_the_tied_weights_is_kept_equally_often() -> None:
    kept = sum(flat(WEIGHT.cut(c.problem, c.scores, 0.75)).int() for c in (Case([(2, 4)], 1, seed) for seed in range(800)))
    # Binomial with p = 1/4: 200 ± 12.2 for each of the 8 weights.
    assert int((kept - 200).abs().max()) < 5 * 12.2


# --- the network that is cut


@configuration
class Overwrites(Criterion):
    """s = |w|; `compensate` sets every weight, masked or not, to what the state says."""

    data_free: ClassVar[bool] = True

    def score(self, problem: Problem) -> Scores:
        return Scores({n: w.detach().abs() for n, w in problem.weights.items()}, state=7.0)

    def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
        with torch.no_grad():
            for w in problem.weights.values():
                w.fill_(state)


@configuration
class Rounds(Criterion):
    """s = |w| in four rounds; `seen` records what each round was given."""

    nested: ClassVar = False
    data_free: ClassVar = True
    seen: ClassVar[list[tuple[float, int, bool]]] = []

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        return exponential(present, target, 4)

    def score(self, problem: Problem) -> Scores:
        self.seen.append((problem.target, kept_weights(problem.mask)[0], methods.mask_holds(problem.model, problem.mask)))
        return Scores({n: w.detach().abs() for n, w in problem.weights.items()})


def test_masked_weights_are_zero_and_the_others_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    mask = methods.cut(Problem(model, ()), methods.make("criteria", "magnitude", {}), WEIGHT, 0.6)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name] * mask[name] if name in mask else before[name])
    assert kept_weights(mask) == (22, 55)


class Noisy(nn.Linear):
    """Draws from the global generator in every forward pass, also in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.0 * torch.rand(1)


@pytest.mark.parametrize("batches", [(), [(torch.ones(4, 5), torch.zeros(4, dtype=torch.long))]], ids=["no data", "data"])
def test_the_check_of_a_network_before_it_is_scored_leaves_the_global_generator(batches: Any) -> None:
    problem, before = Problem(Noisy(5, 4), batches), torch.get_rng_state()
    methods.cut(problem, Overwrites(), WEIGHT, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_compensation_may_set_kept_weights_and_cannot_revive_masked_ones() -> None:
    model = nn.Linear(5, 4)
    mask = methods.cut(Problem(model, ()), Overwrites(), WEIGHT, 0.5)
    assert torch.equal(model.weight, 7.0 * mask["weight"])
    assert methods.mask_holds(model, mask)


def test_scores_handed_over_are_not_computed_again() -> None:
    Rounds.seen.clear()
    model = nn.Linear(5, 4)
    scores = Scores({"weight": torch.arange(20.0).view(4, 5)})
    mask = methods.cut(Problem(model, ()), Rounds(), WEIGHT, 0.5, scores)
    assert Rounds.seen == []
    assert torch.equal(mask["weight"], scores.values["weight"] >= 10)


def test_rounds_shrink_the_density_by_an_equal_factor_and_see_the_mask_of_the_one_before() -> None:
    Rounds.seen.clear()
    mask = methods.cut(Problem(nn.Linear(100, 10), ()), Rounds(), WEIGHT, 1 - 0.5**4)
    assert [target for target, _, _ in Rounds.seen] == pytest.approx([0.5, 0.75, 0.875, 0.9375])
    assert [kept for _, kept, _ in Rounds.seen] == [1000, 500, 250, 125]
    assert all(zero for _, _, zero in Rounds.seen)
    assert kept_weights(mask)[0] == 1000 - round(0.9375 * 1000)


def test_rounds_start_from_the_mask_that_is_there() -> None:
    Rounds.seen.clear()
    problem = Problem(nn.Linear(100, 10), ())
    half = methods.cut(problem, methods.make("criteria", "magnitude", {}), WEIGHT, 0.5)
    mask = methods.cut(replace(problem, mask=half), Rounds(), WEIGHT, 0.9)
    assert kept_weights(mask) == (100, 1000)
    assert inside(mask, half)


def test_kept_weights_counts_the_mask_and_not_non_zero_values() -> None:
    model = nn.Linear(5, 4)
    nn.init.zeros_(model.weight)
    mask = methods.cut(Problem(model, ()), methods.make("criteria", "random", {}), WEIGHT, 0.25)
    assert kept_weights(mask) == (15, 20)
    assert methods.sparsity_of(mask) == 0.25


def test_held_sees_a_single_revived_weight() -> None:
    model = nn.Linear(5, 4)
    mask = methods.cut(Problem(model, ()), methods.make("criteria", "random", {}), WEIGHT, 0.25)
    assert methods.mask_holds(model, mask)
    with torch.no_grad():
        model.weight[~mask["weight"]] += torch.tensor([0.0, 0.0, 1e-30, 0.0, 0.0])
    assert not methods.mask_holds(model, mask)


@pytest.mark.parametrize("scope", ["global", "layer", "erk", "lamp"])
@pytest.mark.parametrize("name", ["magnitude", "obd", "opd", "kfac_obs", "woodfisher"])
def test_scores_that_are_not_finite_never_become_a_mask(mlp: Any, batches: Any, name: str, scope: str) -> None:
    model = mlp()
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite") as error:
        methods.prune(model, batches, name, sparsity=0.9, scope=scope)
    assert "\n" not in str(error.value)


# --- what is refused, and what of a schedule changes nothing


NAMES = "must score exactly the prunable weights; missing or extra: "
ROWS = "must give rows of prunable Linear or convolutional weights only; extra: "
DENSE = "must give 'a.weight' {} that are a dense tensor on the device of the weight"
A, B = torch.ones(3, 2), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (Scores({"a.weight": A, "b.weight": B}), ""),
        ({"a.weight": A, "b.weight": B}, "must return methods.Scores of a dict: name -> tensor"),
        (Scores([A, B]), "must return methods.Scores of a dict: name -> tensor"),  # type: ignore[arg-type]
        (Scores({}, rows=[A]), "must return methods.Scores of a dict: name -> tensor"),  # type: ignore[arg-type]
        (Scores({}), NAMES + "a.weight, b.weight"),
        (Scores({"a.weight": A}), NAMES + "b.weight"),
        (Scores({"a.weight": A, "b.weight": B, "c": B}), NAMES + "c"),
        (Scores({"a.weight": [1.0], "b.weight": B}), DENSE.format("scores")),  # type: ignore[dict-item]
        (Scores({"a.weight": A.to_sparse(), "b.weight": B}), DENSE.format("scores")),
        (Scores({"a.weight": A.to("meta"), "b.weight": B}), DENSE.format("scores")),
        (Scores({"a.weight": B, "b.weight": B}), "must give 'a.weight' scores of shape (3, 2), not (2, 3)"),
        (Scores({"a.weight": A.int(), "b.weight": B}), "must give 'a.weight' scores that are a floating-point tensor without gradient"),
        (Scores({"a.weight": A, "b.weight": B.clone().requires_grad_()}),
         "must give 'b.weight' scores that are a floating-point tensor without gradient"),
        (Scores({"a.weight": A, "b.weight": B * torch.inf}), "gives 'b.weight' scores that are not finite"),
        (Scores({}, rows={"a.weight": A[:, 0]}), ""),
        (Scores({}, rows={"a.weight": A[:, 0], "b.weight": B[:, 0]}), ""),
        (Scores({}, rows={}), ROWS + "none, but there are no rows"),
        (Scores({}, rows={"a.weight": A[:, 0], "x": B[:, 0]}), ROWS + "x"),
        (Scores({}, rows={"a.weight": A[0]}), "must give 'a.weight' rows of shape (3,), not (2,)"),
        (Scores({}, rows={"a.weight": A[:, 0] * torch.nan}), "gives 'a.weight' rows that are not finite"),
        (Scores({}, rows={"a.weight": [1.0]}), DENSE.format("rows")),  # type: ignore[dict-item]
        (Scores({"a.weight": A}, rows={"a.weight": A[:, 0]}), NAMES + "b.weight"),
        (Scores({"a.weight": A, "b.weight": B}, rows={"a.weight": A[:, 0]}), ""),
    ],
)  # fmt: skip
def test_the_first_fault_of_scores_is_named(scores: Any, said: str) -> None:
    problem = Problem(nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 2)}), ())
    assert faults(problem, scores) == said


def test_scores_serve_all_sparsities_only_if_nothing_in_them_depends_on_the_target() -> None:
    assert scored_once(methods.make("criteria", "magnitude", {}))
    assert not scored_once(Rounds())  # several rounds
    assert not scored_once(OneRound())  # one round, but the scores depend on the target


@configuration
class OneRound(Rounds):
    """Scores that depend on the target."""

    def rounds(self, present: float, target: float) -> tuple[float, ...]:
        return (target,)


@configuration
class Steps(Schedule):
    """Cuts and moves that are given."""

    def laps(self, epochs: int, present: float, target: float) -> tuple[Lap, ...]:
        return (Lap(1, 2, {0: 0.1, 1: 0.2}), Lap(3, epochs, {2: 0.3, 3: present, epochs: target}))

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        return {1: Move(0.2), 2: Move(0.2, 0.5), 3: Move(0.3), 4: Move(0.25), steps: Move(target)}


def pruner(sparsity: float) -> Pruner:
    return Pruner(methods.make("criteria", "magnitude", {}), WEIGHT, Steps(), sparsity)


def test_cuts_and_moves_that_change_nothing_are_left_out() -> None:
    """Of twenty weights five are masked: 0.1, 0.2 and 0.25 remove nothing more, 0.3 is the first that does."""
    mask = {"weight": torch.arange(20).view(4, 5) >= 5}
    problem = Problem(nn.Linear(5, 4), (), mask=mask)
    first, second = pruner(0.5).laps(problem, 6)
    assert (first.first, first.last, first.cuts) == (1, 2, {})
    assert (second.first, second.last, second.cuts) == (3, 6, {2: 0.3, 6: 0.5})
    assert pruner(0.5).moves(problem, 9) == {2: Move(0.2, 0.5), 3: Move(0.3), 9: Move(0.5)}
    assert pruner(0.02).moves(problem, 9) == {}, "0.02 of twenty weights is none"
    assert pruner(0.25).laps(problem, 6)[1].cuts == {2: 0.3}
    with pytest.raises(ValueError, match=r"^sparsity 0\.2 is lower than the sparsity of the current mask, 0\.25$"):
        pruner(0.2).laps(problem, 6)
    dense = Problem(nn.Linear(5, 4), ())
    assert [lap.cuts for lap in pruner(0.5).laps(dense, 6)] == [{0: 0.1, 1: 0.2}, {2: 0.3, 6: 0.5}]
    assert Pruner(methods.make("criteria", "magnitude", {}), WEIGHT, Gradual(), 0.5).moves(dense, 9) == {}
