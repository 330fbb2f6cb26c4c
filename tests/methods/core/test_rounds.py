"""Iterative pruning and rewinding: laps by hand, and loops written by hand in plain PyTorch."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import methods
from methods import Iterative, Lap, Method, Posterior, Problem, Pruner, Recipe, Rewinding, Schedule, Stage, fit, mask_holds
from methods.core.schedule import WAYS
from methods.training.map import Map

Data = list[tuple[Tensor, Tensor]]
WEIGHT = methods.make("granularities", "weight", {})
MAGNITUDE = methods.make("criteria", "magnitude", {})


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def pruner(schedule: Schedule, sparsity: float) -> Pruner:
    return Pruner(MAGNITUDE, WEIGHT, schedule, sparsity)


# --- laps


def test_iterative_laps_by_hand() -> None:
    laps = Iterative(rounds=3).laps(7, 0.0, 0.875)  # densities 1/2, 1/4, 1/8; 7 epochs are 2 + 2 + 3
    assert [(lap.first, lap.last) for lap in laps] == [(1, 2), (1, 2), (1, 3)]
    assert [lap.cuts for lap in laps] == [{0: pytest.approx(0.5)}, {0: pytest.approx(0.75)}, {0: 0.875}]
    assert not any(lap.rewind for lap in laps)


def test_iterative_without_epochs_scores_and_cuts_in_rounds() -> None:
    laps = Iterative(rounds=2, shape="cubic").laps(0, 0.0, 0.8)
    assert [(lap.first, lap.last, lap.cuts) for lap in laps] == [(1, 0, {0: pytest.approx(0.7)}), (1, 0, {0: 0.8})]
    assert Iterative().epochs(0, 0.8) == 0


def test_rewinding_laps_by_hand() -> None:
    """64 % at a rate of 40 %: two rounds of density 0.6; ten epochs, rewound to the second."""
    laps = Rewinding(rate=0.4, to=0.2).laps(10, 0.0, 0.64)
    assert laps == (
        Lap(1, 10, {10: pytest.approx(0.4)}),
        Lap(3, 10, {10: 0.64}, rewind=True),
        Lap(3, 10, {}, rewind=True),
    )
    assert Rewinding(rate=0.4, to=0.2).epochs(10, 0.64) == 10 + 2 * 8
    assert len(Rewinding(rate=0.4).laps(10, 0.0, 0.65)) == 4, "one weight more is one round more"
    assert Rewinding().laps(10, 0.0, 0.0) == (Lap(1, 10),)


@given(
    epochs=st.integers(1, 50),
    target=st.floats(0, 0.999),
    schedule=st.one_of(
        st.builds(Iterative, rounds=st.integers(1, 12), shape=st.sampled_from(sorted(WAYS))),
        st.builds(Rewinding, rate=st.floats(0.05, 0.9), to=st.floats(0, 1, exclude_max=True), weights=st.booleans()),
    ),
)
def test_every_schedule_ends_at_its_target(epochs: int, target: float, schedule: Schedule) -> None:
    laps = schedule.laps(epochs, 0.0, target)
    sparsities = [s for lap in laps for s in lap.cuts.values()]
    assert sparsities == sorted(sparsities)
    assert not sparsities or sparsities[-1] == target
    if isinstance(schedule, Iterative):
        assert schedule.epochs(epochs, target) == epochs, "the same epochs, divided"
    else:
        assert [lap.rewind for lap in laps] == [False] + [schedule.weights] * (len(laps) - 1)  # type: ignore[attr-defined]
        densities = [1.0, *(1.0 - s for s in sparsities)]
        assert all(b >= a * (1.0 - schedule.rate) - 1e-9 for a, b in itertools.pairwise(densities))  # type: ignore[attr-defined]
        assert all(lap.last == epochs and 1 <= lap.first <= epochs for lap in laps)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Iterative, {"rounds": 0}, "Iterative: rounds=0 is not a whole number"),
        (Iterative, {"shape": "linear"}, "Iterative: shape 'linear' is not one of exponential, cubic"),
        (Rewinding, {"rate": 1.0}, r"Rewinding: rate=1.0 is not a fraction in \(0, 1\)"),
        (Rewinding, {"to": 1.0}, "Rewinding: to=1.0"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(cls: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**fields)


# --- against loops written by hand


def step_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, batch: tuple[Tensor, Tensor], masks: list[Tensor]) -> None:
    """One step of SGD with weight decay, weights masked after it."""
    optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    with torch.no_grad():
        for w, m in zip([model[0].weight, model[3].weight], masks, strict=True):  # type: ignore[index]
            w.mul_(m)


def cut_by_hand(model: nn.Module, sparsity: float) -> list[Tensor]:
    weights = [model[0].weight, model[3].weight]  # type: ignore[index]
    flat = torch.cat([w.detach().abs().flatten() for w in weights]).sort().values
    threshold = flat[round(sparsity * len(flat))]
    masks = [(w.detach().abs() >= threshold).float() for w in weights]
    with torch.no_grad():
        for w, m in zip(weights, masks, strict=True):
            w.mul_(m)
    return masks


def same(model: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(p, q, atol=1e-5), name


@pytest.mark.parametrize("weights", [True, False])
def test_rewinding_is_a_loop_written_by_hand(batches: Data, weights: bool) -> None:
    """Train 5 epochs, keep the network of epoch 1; cut 25 %, rewind it or only the rate, train 4 epochs; cut to 43.75 %, train 4."""
    problem = Problem(network(), batches)
    fit(problem, Map(), Recipe(epochs=5), pruner=pruner(Rewinding(rate=0.25, to=0.2, weights=weights), 0.4375))

    model, recipe, n = network(), Recipe(epochs=5), len(batches)
    masks = [torch.ones_like(model[0].weight), torch.ones_like(model[3].weight)]
    early: dict[str, Tensor] = {}
    for first, sparsity in ((0, 0.25), (1, 0.4375), (1, None)):
        if early:
            if weights:
                model.load_state_dict(early)
            with torch.no_grad():
                model[0].weight.mul_(masks[0])
                model[3].weight.mul_(masks[1])
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-3)
        model.train()
        for epoch in range(first, 5):
            if epoch == 1 and not early:
                early = {name: v.clone() for name, v in model.state_dict().items()}
            for i, batch in enumerate(batches):
                step_by_hand(model, optimizer, 0.1 * recipe.factor((epoch * n + i + 1) / (5 * n + 1)), batch, masks)
        if sparsity is not None:
            masks = cut_by_hand(model, sparsity)
    same(problem.model, model)
    assert [m.tolist() for m in problem.mask.values()] == [m.bool().tolist() for m in masks]


def test_iterative_pruning_is_a_loop_written_by_hand(batches: Data) -> None:
    """A trained network: cut to 50 %, one epoch; cut to 75 %, two epochs, each with a learning rate of its own."""
    problem = Problem(network(), batches)
    posterior = fit(problem, Map(), Recipe(epochs=2))
    model = network()
    model.load_state_dict(problem.model.state_dict())
    fit(problem, Map(), Recipe(epochs=3), previous=posterior, pruner=pruner(Iterative(rounds=2), 0.75))

    recipe, n = Recipe(epochs=3), len(batches)
    for sparsity, epochs in ((0.5, 1), (0.75, 2)):
        model.eval()
        masks = cut_by_hand(model, sparsity)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-3)
        for step in range(epochs * n):
            step_by_hand(model, optimizer, 0.1 * recipe.factor((step + 1) / (epochs * n + 1)), batches[step % n], masks)
    same(problem.model, model)
    assert mask_holds(problem.model, problem.mask)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("training", ["map", "spam"])
@pytest.mark.parametrize("schedule", [Rewinding(rate=0.5, to=0.0), Rewinding(rate=0.3, to=0.4), Iterative(rounds=3)])
def test_masks_hold_and_counts_are_exact_at_every_cut(batches: Data, schedule: Schedule, training: str, optimizer: str) -> None:
    problem, n = Problem(network(), batches), 6 * 8 + 8 * 3
    trained: Posterior | None = None
    made, recipe = methods.make("trainings", training, {}), Recipe(epochs=4, optimizer=optimizer)
    if schedule.stage is Stage.AFTER:
        trained = fit(problem, made, recipe)
    seen: list[int] = []

    def look(_: object) -> None:
        assert mask_holds(problem.model, problem.mask)
        seen.append(sum(int((~m).sum()) for m in problem.mask.values()))

    fit(problem, made, recipe, previous=trained, pruner=pruner(schedule, 0.9), callbacks=[look])
    wanted = {round(s * n) for lap in schedule.laps(4, 0.0, 0.9) for s in lap.cuts.values()}
    assert set(seen) <= wanted | {0}
    assert seen == sorted(seen)
    assert seen[-1] == round(0.9 * n)


def test_the_posterior_of_a_network_not_yet_moved_is_scored_with(batches: Data) -> None:
    """The first cut of iterative pruning takes SpaM's own curvature; the second one, after training, fits it anew."""
    problem = Problem(network(), batches)
    posterior = fit(problem, methods.make("trainings", "spam", {}), Recipe(epochs=3))
    seen: list[bool] = []

    class Watches(type(MAGNITUDE)):  # type: ignore[misc]
        def score(self, problem: Problem) -> methods.Scores:
            assert problem.posterior is not None
            seen.append(bool(problem.posterior.curvature))
            return super().score(problem)  # type: ignore[no-any-return]

    chosen = Pruner(Watches(), WEIGHT, Iterative(rounds=2), 0.5)
    fit(problem, methods.make("trainings", "spam", {}), Recipe(epochs=2), previous=posterior, pruner=chosen)
    assert seen == [True, False]


# --- by name


def test_schedules_by_name() -> None:
    imp = methods.get("imp")
    assert (imp.stage, imp.schedule, imp.costly) == (Stage.DURING, Rewinding(), True)
    assert methods.get("magnitude(schedule=rewinding)") is imp
    assert methods.get("magnitude(schedule=gradual)") is methods.get("magnitude_gradual")
    made = methods.get("obd(schedule=iterative,curvature=mc)")
    assert (made.stage, made.schedule, dict(made.options)) == (Stage.AFTER, Iterative(), {"curvature": "mc"})
    assert methods.get(made.name) == made
    crossed = methods.get("obd(schedule=iterative)@spam")
    assert (crossed.training, crossed.schedule, methods.get(crossed.name)) == ("spam", Iterative(), crossed)
    with pytest.raises(ValueError, match=r"unknown schedule 'iterativ' \(did you mean 'iterative'\?\)"):
        methods.get("obd(schedule=iterativ)")
    with pytest.raises(ValueError, match="a schedule 'iterative' is for stage 'after', not 'init'"):
        Method("m", "snip", stage=Stage.INIT, schedule=Iterative())


def test_the_call_for_iterative_pruning_wants_a_trained_network(batches: Data) -> None:
    model = network()
    with pytest.raises(ValueError, match="prunes a trained network: call posterior"):
        methods.train_pruned(model, batches, method="magnitude_iterative", sparsity=0.5)
    posterior = methods.train(model, batches, epochs=1)
    mask, _ = methods.train_pruned(model, batches, method="magnitude_iterative", sparsity=0.5, posterior=posterior, epochs=2)
    assert methods.kept_weights(mask) == (36, 72)
    assert mask_holds(model, mask)
