"""Masks that move: exact counts, what drops and grows against plain loops, and how the training loop steps around a move."""

import copy
import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import methods
from methods import Gradual, Move, Problem, Pruner, Recipe, Regrowing, Regrowth, Scores, Values, count_masked, fit, mask_holds
from methods.core.layer_scaling import raw_density
from methods.core.regrowth import moved
from methods.core.training_run import TrainingRun
from methods.training.map import Map

Data = list[tuple[Tensor, Tensor]]
WEIGHT = methods.make("granularities", "weight", {})
configuration = dataclass(frozen=True, kw_only=True)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def batches() -> Data:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=draws)
    return [(part, part[:, :3].argmax(1)) for part in x.split(8)]  # five steps in an epoch


def problem_at(sparsity: float, data: Data) -> Problem:
    problem = Problem(network(), data)
    problem.mask = methods.cut(problem, methods.make("criteria", "magnitude", {}), WEIGHT, sparsity)
    return problem


def gradients_of(problem: Problem) -> Values:
    x, y = problem.batches[0]  # type: ignore[index]
    loss = F.cross_entropy(problem.model(x), y)
    return dict(zip(problem.weights, torch.autograd.grad(loss, list(problem.weights.values())), strict=True))


# --- one move


@pytest.mark.parametrize("name", ["rigl", "granet"])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_a_move_is_that_of_plain_loops(batches: Data, name: str, sparsity: float, share: float) -> None:
    problem = problem_at(sparsity, batches)
    gradients = gradients_of(problem)
    found = moved(problem, methods.make("criteria", name, {}), gradients, share, step=3)
    for layer, w in problem.weights.items():
        kept = [tuple(i) for i in problem.mask[layer].nonzero().tolist()]
        all_ = [tuple(i) for i in torch.ones_like(w).nonzero().tolist()]
        count = math.floor(share * len(kept))
        dropped = sorted(kept, key=lambda i: abs(w[i].item()))[:count]
        stay = set(kept) - set(dropped)
        grown = sorted(set(all_) - stay, key=lambda i: -abs(float(gradients[layer][i])))[:count]
        assert {tuple(i) for i in found[layer].nonzero().tolist()} == stay | set(grown)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(["rigl", "set", "granet"]), sparsity=st.floats(0, 0.97), share=st.floats(0, 1), step=st.integers(0, 9))
def test_every_layer_keeps_its_count(name: str, sparsity: float, share: float, step: int) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, generator=draws)
    problem = problem_at(sparsity, [(x, x[:, :3].argmax(1))])
    criterion = methods.make("criteria", name, {})
    found = moved(problem, criterion, gradients_of(problem), share, step)
    assert {n: int(m.sum()) for n, m in found.items()} == {n: int(m.sum()) for n, m in problem.mask.items()}
    again = moved(problem, criterion, gradients_of(problem), share, step)
    assert all(torch.equal(found[n], again[n]) for n in again)


def test_set_grows_at_random_and_anew_in_every_step(batches: Data) -> None:
    """Each removed weight of a layer grows as often as the others."""
    problem, criterion = problem_at(0.5, batches), methods.make("criteria", "set", {})
    name = "0.weight"
    with torch.no_grad():  # what is kept is far from zero, so that the dropped ones are known
        order = problem.mask[name].nonzero()
        for k, place in enumerate(order.tolist()):
            problem.weights[name][tuple(place)] = 1.0 + k
    kept = int(problem.mask[name].sum())
    count = math.floor(0.3 * kept)
    lowest = {tuple(i) for i in order[:count].tolist()}
    times = torch.zeros(8, 6)
    for step in range(2000):
        times += moved(problem, criterion, gradients_of(problem), 0.3, step)[name]
    stay = problem.mask[name].clone()
    for place in lowest:
        stay[place] = False
    assert bool((times[stay] == 2000).all())
    wanted = 2000 * count / int((~stay).sum())
    assert float((times[~stay] - wanted).abs().max()) < 5 * math.sqrt(wanted)


# --- when


def test_the_times_and_shares_by_hand() -> None:
    rigl = methods.make("criteria", "rigl", {"updates": 3, "until": 0.75, "fraction": 0.4})
    # T = 20: moves below step 15, every ⌊15/3⌋ = 5 steps; α/2 (1 + cos(π t/15)) at t = 5, 10.
    found = rigl.moves(20, 0.9)
    assert found == {0: Move(0.9), 5: Move(0.9, pytest.approx(0.2 * (1 + 0.5))), 10: Move(0.9, pytest.approx(0.2 * (1 - 0.5)))}
    granet = methods.make("criteria", "granet", {"updates": 3, "until": 0.75, "fraction": 0.4})
    assert granet.moves(20, 0.9) == {
        5: Move(pytest.approx(0.9 - 0.9 * (2 / 3) ** 3), pytest.approx(0.3)),
        10: Move(pytest.approx(0.9 - 0.9 / 27), pytest.approx(0.1)),
        15: Move(0.9),
    }
    half = methods.make("criteria", "granet", {"updates": 3, "initial": 0.5})
    assert half.moves(20, 0.9)[0] == Move(0.5)
    assert half.moves(20, 0.3) == {0: Move(0.3), 5: Move(0.3, half.share(5, 20)), 10: Move(0.3, half.share(10, 20)), 15: Move(0.3)}


@pytest.mark.parametrize("name", ["rigl", "set"])
@pytest.mark.parametrize("start", ["erk", "layer"])
def test_the_start_has_the_densities_of_the_layers(name: str, start: str) -> None:
    """ERK: the density of a layer is ε r, and 1 where this is larger; found here by bisection of ε."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16 * 4, 10))
    problem = Problem(model, ())
    problem.input_shape = (3, 6, 6)
    mask = methods.cut(problem, methods.make("criteria", name, {"start": start}), WEIGHT, 0.8)
    shapes = {n: w.shape for n, w in problem.weights.items()}
    wanted = dict.fromkeys(shapes, 0.2)
    if start == "erk":
        total = sum(s.numel() for s in shapes.values())
        low, high = 0.0, 1e6
        for _ in range(200):
            scale = (low + high) / 2
            wanted = {n: min(1.0, scale * raw_density(s)) for n, s in shapes.items()}
            kept = sum(wanted[n] * s.numel() for n, s in shapes.items())
            low, high = (scale, high) if kept < 0.2 * total else (low, scale)
        assert wanted["0.weight"] > 2 * wanted["1.weight"]
    assert {n: int(m.sum()) for n, m in mask.items()} == {n: pytest.approx(wanted[n] * s.numel(), abs=1) for n, s in shapes.items()}


def test_two_seeds_start_from_two_masks() -> None:
    masks = []
    for seed in (0, 0, 1):
        problem = Problem(network(), (), seed=seed)
        problem.input_shape = (6,)
        masks.append(methods.cut(problem, methods.make("criteria", "rigl", {}), WEIGHT, 0.5)["0.weight"])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


# --- the training loop


def trained(data: Data, criterion: Any, epochs: int = 4, sparsity: float = 0.7, schedule: Any = None, **more: Any) -> Problem:
    problem = Problem(network(), data)
    pruner = Pruner(criterion, WEIGHT, schedule or Regrowth(), sparsity)
    fit(problem, Map(), Recipe(epochs=epochs, warmup=0.0, schedule="constant"), pruner=pruner, **more)
    return problem


@pytest.mark.parametrize("name", ["rigl", "set", "granet"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_count_holds_after_every_epoch_and_the_mask_moves(batches: Data, name: str, optimizer: str) -> None:
    problem, seen = Problem(network(), batches), []

    def look(record: methods.EpochRecord) -> None:
        assert mask_holds(problem.model, problem.mask)
        seen.append((record.sparsity, {n: m.clone() for n, m in problem.mask.items()}))

    pruner = Pruner(methods.make("criteria", name, {"updates": 10}), WEIGHT, Regrowth(), 0.7)
    fit(problem, Map(lr=0.3), Recipe(epochs=8, optimizer=optimizer), pruner=pruner, callbacks=[look])
    assert seen[-1][0] == count_masked(0.7, 72) / 72
    if name != "granet":
        assert {s for s, _ in seen} == {count_masked(0.7, 72) / 72}
    changed = [not torch.equal(a["0.weight"], b["0.weight"]) for (_, a), (_, b) in itertools.pairwise(seen)]
    assert any(changed[:5])  # three quarters of eight epochs
    assert not any(changed[6:])


@configuration
class Recorder(Regrowing):
    """Moves as told: swaps a known weight for another one."""

    def moves(self, steps: int, target: float) -> dict[int, Move]:
        return {0: Move(target), 3: Move(target, 0.2)}

    def score(self, problem: Problem) -> Scores:
        return Scores({n: w.detach().abs() for n, w in problem.weights.items()})

    def grow(self, problem: Problem, gradients: Values, draws: torch.Generator) -> Values:
        return {n: g.abs() for n, g in gradients.items()}


def test_training_with_one_move_is_plain_loops(batches: Data) -> None:
    """SGD with momentum by hand: two steps, a move in place of the third, two more steps."""
    problem = Problem(network(), batches)
    fit(problem, Map(lr=0.1, weight_decay=0.0), Recipe(epochs=1, warmup=0.0, schedule="constant"),
        pruner=Pruner(Recorder(), WEIGHT, Regrowth(), 0.5))  # fmt: skip

    model = network()
    model.train()
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    flat = torch.cat([w.detach().abs().flatten() for w in weights.values()])
    least = flat.sort().values[count_masked(0.5, 72)]
    mask = {n: w.detach().abs() >= least for n, w in weights.items()}
    momentum = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for step, (x, y) in enumerate(batches, 1):
        with torch.no_grad():
            for n, w in weights.items():
                w *= mask[n]
        loss = F.cross_entropy(model(x), y)
        gradient = dict(zip(momentum, torch.autograd.grad(loss, list(model.parameters())), strict=True))
        if step == 3:
            for n, w in weights.items():
                count = math.floor(0.2 * int(mask[n].sum()))
                drop = torch.where(mask[n], w.detach().abs(), torch.inf).flatten().argsort()[:count]
                left = mask[n].flatten().clone()
                left[drop] = False
                grow = torch.where(left, -torch.inf, gradient[n].abs().flatten()).argsort(descending=True)[:count]
                left[grow] = True
                mask[n] = left.view(w.shape)
                momentum[n] *= mask[n]
            continue
        with torch.no_grad():
            for n, p in model.named_parameters():
                g = gradient[n] * mask[n] if n in mask else gradient[n]
                momentum[n] = g if step == 1 else 0.9 * momentum[n] + g
                p -= 0.1 * momentum[n]
    with torch.no_grad():
        for n, w in weights.items():
            w *= mask[n]
    assert all(torch.equal(problem.mask[n], mask[n]) for n in mask)
    for n, p in model.named_parameters():
        torch.testing.assert_close(dict(problem.model.named_parameters())[n], p)


def test_adams_memory_of_grown_weights_starts_at_zero(batches: Data) -> None:
    problem = Problem(network(), batches)
    run = TrainingRun(problem, Map(), Recipe(epochs=1, optimizer="adam"), batches, None, Pruner(Recorder(), WEIGHT, Regrowth(), 0.5))
    memories = []
    original = run._move

    def watched(step: int, lap: methods.Lap) -> None:
        before = {n: m.clone() for n, m in problem.mask.items()}
        original(step, lap)
        if step:
            for n, w in problem.weights.items():
                changed = before[n] != problem.mask[n]
                memories.append((n, bool(changed.any()), float(w.detach()[changed].abs().sum())))
                for value in run.optimizer.state[w].values():
                    if value.shape == w.shape:
                        memories.append((n, bool(changed.any()), float(value[changed].abs().sum())))

    run._move = watched  # type: ignore[method-assign]
    for step in run.steps():
        if step is not None:
            run.differentiate(step)
    assert any(moved_ for _, moved_, _ in memories)
    assert [rest for _, _, rest in memories] == [0.0] * len(memories)


def test_without_moves_gradual_pruning_by_steps_is_that_by_epochs(batches: Data) -> None:
    """A cut after every fifth step of five-step epochs is a cut after every epoch."""
    magnitude = methods.make("criteria", "magnitude", {})
    by_epochs = trained(batches, magnitude, epochs=8, schedule=Gradual(begin=0.25, end=0.75))
    by_steps = trained(batches, magnitude, epochs=8, schedule=Gradual(begin=0.25, end=0.75, every=5, unit="steps"))
    assert all(torch.equal(a, b) for a, b in zip(by_epochs.model.parameters(), by_steps.model.parameters(), strict=True))


def test_cuts_between_steps_reach_the_target_within_one_epoch(batches: Data) -> None:
    problem = trained(batches, methods.make("criteria", "magnitude", {}), epochs=1, schedule=Gradual(begin=0.2, end=0.8, unit="steps"))
    assert sum(int((~m).sum()) for m in problem.mask.values()) == count_masked(0.7, 72)
    assert mask_holds(problem.model, problem.mask)


def test_an_earlier_mask_may_be_given(batches: Data) -> None:
    model = network()
    mask = methods.prune(model, sparsity=0.3)
    found, _ = methods.train_pruned(model, batches, "rigl", sparsity=0.7, epochs=4, mask=mask)
    assert sum(int((~m).sum()) for m in found.values()) == count_masked(0.7, 72)
    with pytest.raises(ValueError, match=r"^sparsity 0.3 is lower than the sparsity of the current mask"):
        methods.train_pruned(copy.deepcopy(model), batches, "rigl", sparsity=0.3, epochs=4, mask=found)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^'rigl' regrows weights between steps, so its schedule is 'regrowth'$"):
        methods.get("rigl(schedule=gradual)")
    with pytest.raises(ValueError, match=r"^'magnitude' does not regrow weights, so its schedule cannot be 'regrowth'$"):
        methods.train_pruned(network(), [(torch.randn(4, 6), torch.arange(4) % 3)], "magnitude", schedule=Regrowth(), sparsity=0.5)
    with pytest.raises(ValueError, match=r"^Gradual: unit 'hours' is not one of epochs, steps$"):
        Gradual(unit="hours")


# --- work


def test_the_work_of_an_epoch_is_counted(batches: Data) -> None:
    """Two steps of eight samples, one with the gradient of all weights, two more with another mask of the same counts."""
    seen: list[methods.EpochRecord] = []
    trained(batches, Recorder(), epochs=2, sparsity=0.5, callbacks=[seen.append])
    kept = [{n: k for n, (k, _) in part.masked.items()} for part in seen[0].work]
    assert [(part.samples, part.dense) for part in seen[0].work] == [(16, False), (8, True), (16, False)]
    assert [sum(k.values()) for k in kept] == [36, 36, 36]
    assert [(part.samples, part.dense) for part in seen[1].work] == [(40, False)]


def test_nothing_moves_where_nothing_is_removed(batches: Data) -> None:
    dense = trained(batches, methods.make("criteria", "magnitude", {}), sparsity=0.0, schedule=Gradual())
    rigl = trained(batches, methods.make("criteria", "rigl", {}), sparsity=0.0)
    assert all(torch.equal(a, b) for a, b in zip(dense.model.parameters(), rigl.model.parameters(), strict=True))


def test_a_move_that_empties_a_row_under_weight_norm_is_refused(batches: Data) -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="is divided by a norm, which would be zero"):
        methods.train_pruned(model, batches, "rigl(fraction=1)", sparsity=0.6, epochs=4)
