"""Pruning while training: cuts as by hand, masks that hold or regrow as asked, and a training that scoring does not disturb."""

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import methods
from methods import (
    Criterion,
    Gradual,
    Mask,
    Posterior,
    Problem,
    Pruner,
    Recipe,
    Schedule,
    Scores,
    Stage,
    Training,
    count_masked,
    fit,
    mask_holds,
)
from methods.core.recipe import OPTIMIZERS
from methods.training.map import Map

Data = list[tuple[Tensor, Tensor]]
configuration = dataclass(frozen=True, kw_only=True)

WEIGHT = methods.make("granularities", "weight", {})
MAGNITUDE = methods.make("criteria", "magnitude", {})
GRADUAL = Gradual(begin=0.0, end=0.7)  # of 6 epochs: cuts after 1, 2, 3 and 4
DYNAMIC = replace(GRADUAL, persistent=False)
TRAININGS = {
    "map": Map(),
    "spam": methods.make("trainings", "spam", {"burn_in": 0.0, "frequency": 2}),
}


def noisy(seed: int = 0) -> nn.Sequential:
    """A network with batch norm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def pruner(schedule: Schedule = GRADUAL, sparsity: float = 0.8, criterion: Criterion = MAGNITUDE) -> Pruner:
    return Pruner(criterion, WEIGHT, schedule, sparsity)


def masked(mask: Mask) -> int:
    return sum(int((~m).sum()) for m in mask.values())


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][n], states[1][n]) for n in states[0])


# --- against a loop written by hand


def by_hand(batches: Data, optimizer: str, epochs: int, cuts: dict[int, float], persistent: bool) -> nn.Sequential:
    """Plain PyTorch: batch norm, dropout, an optimiser with weight decay, magnitudes sorted, masks multiplied."""
    model, recipe = noisy(), Recipe(epochs=epochs)
    weights = [model[0].weight, model[4].weight]
    masks = [torch.ones_like(w) for w in weights]
    total = sum(w.numel() for w in weights)
    if optimizer == "adam":
        made: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), weight_decay=1e-3)
    else:
        made = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-3)
    step = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(methods.derive(0, "training"))
        for epoch in range(1, epochs + 1):
            for x, y in batches:
                step += 1
                made.param_groups[0]["lr"] = 0.1 * OPTIMIZERS[optimizer] * recipe.factor(step / (4 * epochs + 1))
                made.zero_grad()
                F.cross_entropy(model(x), y).backward()
                made.step()
                with torch.no_grad():
                    for w, m in zip(weights, masks, strict=True):
                        w.mul_(m)
            if epoch in cuts:
                smallest = torch.cat([w.detach().abs().flatten() for w in weights]).sort().values
                threshold = smallest[round(cuts[epoch] * total)]
                kept = [(w.detach().abs() >= threshold).float() for w in weights]
                with torch.no_grad():
                    for w, m in zip(weights, kept, strict=True):
                        w.mul_(m)
                        if persistent or epoch == max(cuts):
                            for memory in made.state[w].values():
                                if memory.shape == w.shape:
                                    memory.mul_(m)
                if persistent or epoch == max(cuts):
                    masks = kept
    return model


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_cuts_while_training_are_those_of_a_loop_written_by_hand(batches: Data, optimizer: str, persistent: bool) -> None:
    problem = Problem(noisy(), batches)
    schedule = replace(GRADUAL, persistent=persistent)
    fit(problem, Map(), Recipe(epochs=6, optimizer=optimizer), pruner=pruner(schedule))
    wanted = by_hand(batches, optimizer, 6, {1: 0.8 - 0.8 * 27 / 64, 2: 0.7, 3: 0.8 - 0.8 / 64, 4: 0.8}, persistent)
    for (name, p), q in zip(problem.model.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.allclose(p, q, atol=1e-5), name
    assert {n: (w != 0).tolist() for n, w in problem.weights.items()} == {n: m.tolist() for n, m in problem.mask.items()}


# --- masks


@dataclass
class Watching:
    """Batches that look at the network before each step."""

    batches: Data
    problem: Problem

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            assert mask_holds(self.problem.model, self.problem.mask)
            yield batch

    def __len__(self) -> int:
        return len(self.batches)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_persistent_masks_are_nested_and_hold_at_every_step(batches: Data, optimizer: str, training: str) -> None:
    problem = Problem(noisy(), batches)
    seen: list[Mask] = []
    fit(
        problem, TRAININGS[training], Recipe(epochs=6, optimizer=optimizer), batches=Watching(batches, problem), pruner=pruner(),
        callbacks=[lambda _: seen.append(problem.mask)],
    )  # fmt: skip
    n = 6 * 8 + 8 * 3
    assert [masked(m) for m in seen] == [round(s * n) for s in (0.4625, 0.7, 0.7875, 0.8, 0.8, 0.8)]
    for earlier, later in itertools.pairwise(seen):
        assert all((earlier[n] | ~later[n]).all() for n in later)
    assert mask_holds(problem.model, problem.mask)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_under_dynamic_masks_weights_regrow_until_the_last_cut(batches: Data, optimizer: str, training: str) -> None:
    problem = Problem(noisy(), batches)
    at_zero: list[dict[str, Tensor]] = []

    def look(record: methods.EpochRecord) -> None:
        at_zero.append({n: w.detach() == 0 for n, w in problem.weights.items()})
        assert (masked(problem.mask) == 0) == (record.epoch < 4), "what may regrow is not masked"

    recipe = Recipe(epochs=6, optimizer=optimizer, lr_scale={"sgd": 1.0, "adam": 100.0}[optimizer])
    fit(problem, TRAININGS[training], recipe, batches=Watching(batches, problem), pruner=pruner(DYNAMIC, 0.5), callbacks=[look])
    counts = [sum(int(z.sum()) for z in zero.values()) for zero in at_zero]
    assert counts == [count_masked(s, 72) for s in (0.2890625, 0.4375, 0.4921875, 0.5, 0.5, 0.5)]
    assert any(bool((at_zero[0][n] & m).any()) for n, m in problem.mask.items()), "nothing that was cut first lives in the end"
    for zero in at_zero[3:]:
        assert all(torch.equal(zero[n], ~problem.mask[n]) for n in zero)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("sparsity", [0.013, 0.5, 0.99])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_count_is_exact_in_the_shortest_trainings(batches: Data, epochs: int, sparsity: float, persistent: bool) -> None:
    problem = Problem(noisy(), batches)
    fit(problem, Map(), Recipe(epochs=epochs), pruner=pruner(Gradual(persistent=persistent), sparsity))
    assert masked(problem.mask) == round(sparsity * 72)
    assert mask_holds(problem.model, problem.mask)


@pytest.mark.parametrize("schedule", [GRADUAL, DYNAMIC])
def test_a_mask_there_was_before_holds_throughout(batches: Data, schedule: Schedule) -> None:
    problem = Problem(noisy(), batches)
    first = WEIGHT.cut(problem, methods.score(problem, methods.make("criteria", "random", {})), 0.5)
    mine = {n: m.clone() for n, m in first.items()}
    problem.mask = first
    seen: list[Mask] = []
    fit(
        problem,
        Map(),
        Recipe(epochs=6),
        batches=Watching(batches, problem),
        pruner=pruner(schedule),
        callbacks=[lambda _: seen.append(problem.mask)],
    )
    assert masked(seen[0]) == 36, "0.4625 is behind it"
    assert masked(problem.mask) == count_masked(0.8, 72)
    assert all(not (problem.mask[n] & ~first[n]).any() for n in first)
    assert all(torch.equal(mine[n], first[n]) for n in first), "the caller's mask is the caller's"


# --- a training that is not disturbed


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", [GRADUAL, DYNAMIC, Gradual(shape="linear", start=0.1)])
def test_a_target_of_zero_is_the_same_training_to_the_bit(batches: Data, schedule: Schedule, optimizer: str, training: str) -> None:
    networks, posteriors = [], []
    for chosen in (None, pruner(schedule, 0.0)):
        problem = Problem(noisy(), batches)
        posteriors.append(fit(problem, TRAININGS[training], Recipe(epochs=4, optimizer=optimizer), pruner=chosen))
        networks.append(problem.model)
    assert same(*networks)
    assert all(torch.equal(posteriors[0].prior[n], posteriors[1].prior[n]) for n in posteriors[0].prior)


@configuration
class Careless(methods.lookup("criteria", "magnitude")):  # type: ignore[misc]
    """Magnitude that draws from every global stream and reads the data, to no effect on its scores."""

    def score(self, problem: Problem) -> Scores:
        torch.rand(3), random.random(), np.random.rand()
        for x, _ in problem.batches:
            problem.model(x)
        return super().score(problem)


@pytest.mark.parametrize("schedule", [GRADUAL, DYNAMIC])
def test_what_a_criterion_draws_or_reads_is_not_missing_from_the_training(batches: Data, schedule: Schedule) -> None:
    networks = []
    for criterion in (MAGNITUDE, Careless()):
        problem = Problem(noisy(), batches)
        fit(problem, Map(), Recipe(epochs=6), pruner=pruner(schedule, criterion=criterion))
        networks.append(problem.model)
    assert same(*networks)


# --- what hooks and criteria are told

LOG: list[Any] = []


@configuration
class Telling(Map):
    """MAP whose state counts its updates and whose hooks write down how many weights they find masked."""

    def after_epoch(self, problem: Problem, state: Posterior, epoch: int, epochs: int) -> Posterior:
        assert mask_holds(problem.model, problem.mask)
        LOG.append(("hook", epoch, masked(problem.mask)))
        return replace(state, marginal_likelihood=(*state.marginal_likelihood, float(epoch)))

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        LOG.append(("finish", masked(problem.mask)))
        return state


@configuration
class Told(methods.lookup("criteria", "magnitude")):  # type: ignore[misc]
    """Magnitude that writes down what it was told."""

    stages: ClassVar = (Stage.DURING,)

    def score(self, problem: Problem) -> Scores:
        assert not problem.model.training
        assert problem.posterior is not None
        LOG.append(("score", len(problem.posterior.marginal_likelihood), round(problem.target, 4), masked(problem.mask)))
        return super().score(problem)


@pytest.mark.parametrize("persistent", [True, False])
def test_hooks_see_the_mask_and_criteria_the_state_and_the_target(batches: Data, persistent: bool) -> None:
    LOG.clear()
    problem = Problem(noisy(), batches)
    schedule = Gradual(begin=0.0, end=0.5, persistent=persistent)
    fit(problem, Telling(), Recipe(epochs=4), pruner=pruner(schedule, 0.5, Told()))
    between = 32 if persistent else 0
    told = [
        ("hook", 1, 0), ("score", 1, 0.4375, 0), ("hook", 2, between), ("score", 2, 0.5, between),
        ("hook", 3, 36), ("hook", 4, 36), ("finish", 36),
    ]  # fmt: skip
    assert told == LOG
    assert (problem.target, problem.posterior) == (0.0, None), "a problem is given back with another mask, and no more"


def test_spam_takes_cut_weights_out_of_its_curvature(batches: Data) -> None:
    problem = Problem(noisy(), batches)
    posterior = fit(problem, TRAININGS["spam"], Recipe(epochs=6), pruner=pruner())
    assert all(not posterior.curvature[n][~m].any() for n, m in problem.mask.items())
    assert any(bool(posterior.curvature[n][m].any()) for n, m in problem.mask.items())


def test_a_trained_network_is_pruned_while_it_is_fine_tuned_and_scored_where_it_is(batches: Data) -> None:
    problem = Problem(noisy(), batches)
    dense = fit(problem, TRAININGS["spam"], Recipe(epochs=4))
    assert dense.curvature

    @configuration
    class Fresh(methods.lookup("criteria", "opd")):  # type: ignore[misc]
        """Curvature of weights that have moved would be no curvature."""

        def score(self, problem: Problem) -> Scores:
            assert problem.posterior is not None
            assert not problem.posterior.curvature
            assert problem.posterior.prior is dense.prior
            return super().score(problem)

    assert fit(problem, TRAININGS["spam"], Recipe(epochs=4), previous=dense, pruner=pruner(criterion=Fresh())) is dense
    assert masked(problem.mask) == count_masked(0.8, 72)
    assert mask_holds(problem.model, problem.mask)


def test_what_compensates_does_so_at_every_cut(batches: Data) -> None:
    @configuration
    class Doubling(methods.lookup("criteria", "magnitude")):  # type: ignore[misc]
        """Doubles the kept weights."""

        def compensate(self, problem: Problem, mask: Mask, state: Any) -> None:
            with torch.no_grad():
                for n, w in problem.weights.items():
                    w[mask[n]] *= 2

    models = []
    for criterion in (MAGNITUDE, Doubling()):
        problem = Problem(noisy(), batches)
        fit(problem, Map(), Recipe(epochs=1), pruner=pruner(criterion=criterion))
        models.append(problem.model)
    assert torch.equal(models[1][0].weight, 2 * models[0][0].weight)
    assert mask_holds(models[1], problem.mask)


OF_WEIGHTS = [n for n in methods.names("criteria") if not methods.make("criteria", n, {}).granularities]


@pytest.mark.parametrize("name", [n for n in OF_WEIGHTS if Stage.DURING in methods.lookup("criteria", n).stages])
@pytest.mark.parametrize("training", TRAININGS)
def test_every_criterion_for_this_stage_prunes_under_every_training(batches: Data, training: str, name: str) -> None:
    for schedule in (GRADUAL, DYNAMIC):
        networks = []
        for _ in range(2):
            problem = Problem(noisy(), batches)
            fit(problem, TRAININGS[training], Recipe(epochs=3), pruner=pruner(schedule, criterion=methods.make("criteria", name, {})))
            networks.append(problem.model)
            assert masked(problem.mask) == count_masked(0.8, 72)
            assert mask_holds(problem.model, problem.mask)
            assert all(p.grad is None for p in problem.model.parameters())
        assert same(*networks), "the same seed, the same network"


# --- what cannot be done


@configuration
class Reparametrised(Map):
    """Trains direction and length."""

    def prepare(self, problem: Problem) -> Posterior:
        parametrizations.weight_norm(problem.model[0])
        return super().prepare(problem)


@configuration
class Declines(methods.lookup("criteria", "magnitude")):  # type: ignore[misc]
    """Supports nothing."""

    def unsupported(self, problem: Problem) -> str | None:
        return "not today"


@pytest.mark.parametrize(
    ("training", "epochs", "chosen", "message"),
    [
        (Map(), 0, pruner(), "needs at least one epoch, got 0"),
        (Map(), 3, pruner(sparsity=1.0), r"sparsity 1.0 is not in \[0, 1\)"),
        (Map(), 3, pruner(sparsity=0.3), "sparsity 0.3 is lower than the sparsity of the current mask, 0.5"),
        (Map(), 3, pruner(criterion=Declines()), "does not support this network: not today"),
        (Reparametrised(), 3, pruner(), "re-parametrises the weights, so they cannot be pruned during training"),
    ],
)
def test_what_a_pruner_cannot_do_is_said_before_the_first_step(
    batches: Data, training: Training, epochs: int, chosen: Pruner, message: str
) -> None:
    problem = Problem(noisy(), batches)
    problem.mask = WEIGHT.cut(problem, methods.score(problem, MAGNITUDE), 0.5)
    before = copy.deepcopy(problem.model[4].state_dict())
    with pytest.raises(ValueError, match=message):
        fit(problem, training, Recipe(epochs=epochs), pruner=chosen)
    assert all(torch.equal(before[n], v) for n, v in problem.model[4].state_dict().items())


# --- the call for anybody's own code


@pytest.mark.parametrize("method", ["magnitude_gradual", "magnitude_gradual@spam", "spam_gradual", "spam_online"])
def test_train_pruned_returns_mask_and_posterior_to_go_on_with(batches: Data, method: str) -> None:
    model = noisy()
    mask, posterior = methods.train_pruned(model, batches, method, sparsity=0.75, epochs=6, optimizer="adam", lr=0.2)
    assert masked(mask) == 54
    assert mask_holds(model, mask)
    assert bool(posterior.curvature) == (method != "magnitude_gradual")
    training = methods.get(method).training
    assert methods.train(model, batches, training, epochs=2, mask=mask, posterior=posterior) is posterior
    assert mask_holds(model, mask)


def test_a_schedule_of_ones_own_for_any_criterion_with_hyperparameters_of_both(batches: Data) -> None:
    def run(**arguments: Any) -> nn.Module:
        model = noisy()
        mask, _ = methods.train_pruned(model, batches, "magnitude@spam", sparsity=0.5, epochs=4, schedule=DYNAMIC, **arguments)
        assert masked(mask) == 36
        return model

    assert same(run(), run())
    assert not same(run(), run(options={"scope": "layer"}))
    assert not same(run(), run(weight_decay=0.05))
    assert not same(run(), run(seed=1))


Call = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"method": "magnitude"},
            "'magnitude' has no schedule .* pass schedule=..., or use one of imp, magnitude_gradual, spam_gradual",
        ),
        ({"method": "snipp"}, r"unknown method 'snipp' \(did you mean 'snip'\?\)"),
        ({"scope": "layer"}, "'map' has no hyperparameter 'scope'"),
        ({"options": {"scop": "layer"}}, "'magnitude' has no hyperparameter 'scop'"),
        ({"sparsity": 1.5}, "sparsity 1.5 is not in"),
        ({"epochs": 0}, "at least one epoch"),
        ({"granularity": "weights"}, "unknown granularity 'weights'"),
        ({"batches": iter([])}, "re-iterable"),
    ],
)
def test_what_train_pruned_cannot_do_is_one_line(batches: Data, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        methods.train_pruned(noisy(), **{"batches": batches, "sparsity": 0.5, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call", [lambda *a: methods.prune(*a, sparsity=0.5), methods.scores])
def test_prune_and_scores_refuse_what_prunes_while_training(batches: Data, call: Call) -> None:
    """Iterative pruning too: cut once by `prune`, it would be one-shot under another name."""
    for method in ("magnitude_gradual", "spam_online", "magnitude_iterative", "imp"):
        with pytest.raises(ValueError, match=rf"'{method}' prunes by a schedule.*: call .*train_pruned\(.*'{method}'"):
            call(noisy(), batches, method)
