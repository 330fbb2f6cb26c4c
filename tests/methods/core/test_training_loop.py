"""The training loop: masks that hold, a prior that is what it says, streams of randomness that do not mix."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, TensorDataset

import methods
from methods import Posterior, Problem, Recipe, Training, fit, mask_holds
from methods.core.hyperparameters import Choice
from methods.core.recipe import OPTIMIZERS
from methods.training.map import Map

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]

WEIGHT = methods.make("granularities", "weight", {})
MAGNITUDE = methods.make("criteria", "magnitude", {})
configuration = dataclass(frozen=True, kw_only=True)


def noisy(seed: int = 0) -> nn.Sequential:
    """A network with batch norm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


# --- masks


@torch.no_grad()
def zero_where_masked(model: nn.Module, mask: methods.Mask) -> bool:
    """Are the masked weights zero as the forward pass sees them, also while a training has them re-parametrised?"""
    return all(not model.get_submodule(name.rpartition(".")[0]).weight[~m].any() for name, m in mask.items())


@dataclass
class Watching:
    """Batches that look at the network before each step."""

    batches: Data
    model: nn.Module
    mask: methods.Mask
    steps: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            assert zero_where_masked(self.model, self.mask)
            self.steps += 1
            yield batch

    def __len__(self) -> int:
        return len(self.batches)


@pytest.mark.parametrize(
    ("optimizer", "training"),
    [(o, t) for o in OPTIMIZERS for t in methods.names("trainings") if o != "adamw" or t == "decoupled"],  # adamw refuses the others
)
def test_masked_weights_are_zero_at_every_step_and_every_epoch(batches: Data, optimizer: str, training: str) -> None:
    problem = Problem(noisy(), batches)
    chosen = methods.make("trainings", training, {})
    recipe = Recipe(epochs=3, optimizer=optimizer)
    # Trained dense first: afterwards the cut meets weights, gradients and a penalty that all pull.
    dense = fit(problem, chosen, recipe)
    mask = WEIGHT.cut(problem, methods.score(problem, MAGNITUDE), 0.7)
    problem = replace(problem, mask=mask)
    for previous in (None, dense):
        watching = Watching(batches, problem.model, mask)
        after: list[bool] = []

        def look(_: methods.EpochRecord, after: list[bool] = after) -> None:
            after.append(zero_where_masked(problem.model, mask))

        fit(problem, chosen, recipe, batches=watching, previous=previous, callbacks=[look])
        assert after == [True, True, True]
        assert watching.steps == 12
        assert mask_holds(problem.model, mask)


def half_and_sliced() -> tuple[nn.Linear, nn.Linear, dict[str, Tensor]]:
    """A layer whose last three inputs are masked, and the smaller layer that it then is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masked, small = nn.Linear(6, 3), nn.Linear(3, 3)
    mask = {"weight": torch.arange(6).lt(3).expand(3, 6).clone()}
    with torch.no_grad():
        small.weight.copy_(masked.weight[:, :3])
        small.bias.copy_(masked.bias)
    return masked, small, mask


@pytest.mark.parametrize(
    ("training", "options"),
    [
        ("map", {"weight_decay": 0.01}),
        ("spam", {"weight_decay": 0.01, "curvature": "ef", "frequency": 1, "prior": "parameter"}),
        ("spam", {"weight_decay": 0.01, "curvature": "ef", "frequency": 1, "prior": "layer"}),
        ("spam", {"weight_decay": 0.01, "curvature": "ef", "frequency": 1, "prior": "scalar"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_masked_network_trains_as_the_smaller_one_it_is(batches: Data, optimizer: str, training: str, options: dict[str, Any]) -> None:
    masked, small, mask = half_and_sliced()
    chosen, recipe = methods.make("trainings", training, options), Recipe(epochs=5, optimizer=optimizer)
    fit(Problem(masked, batches, mask=mask), chosen, recipe)
    fit(Problem(small, [(x[:, :3], y) for x, y in batches]), chosen, recipe)
    assert torch.allclose(masked.weight[:, :3], small.weight, atol=1e-6)
    assert torch.allclose(masked.bias, small.bias, atol=1e-6)
    assert not masked.weight[:, 3:].any()


# --- the prior in the loss


@pytest.mark.parametrize("weight_decay", [1e-4, 3e-2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_spam_with_a_frozen_prior_is_map_to_the_bit(batches: Data, optimizer: str, weight_decay: float) -> None:
    networks = {}
    for name, options in {"map": {}, "frozen": {"burn_in": 1.0}, "spam": {"burn_in": 0.0, "frequency": 1}}.items():
        training = methods.make("trainings", "map" if name == "map" else "spam", {"weight_decay": weight_decay, **options})
        problem = Problem(noisy(), batches)
        fit(problem, training, Recipe(epochs=4, optimizer=optimizer))
        networks[name] = problem.model
    assert same(networks["frozen"], networks["map"])
    assert not same(networks["spam"], networks["map"])


def test_the_penalty_of_map_is_the_weight_decay_of_sgd(batches: Data, mlp: Make) -> None:
    ours, theirs = mlp(), mlp()
    recipe = Recipe(epochs=5)
    fit(Problem(ours, batches), Map(lr=0.2, weight_decay=0.03), recipe)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.2, momentum=0.9, weight_decay=0.03)
    for step in range(20):
        x, y = batches[step % 4]
        optimizer.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        optimizer.param_groups[0]["lr"] = 0.2 * recipe.factor((step + 1) / 21)
        optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
    assert not torch.allclose(ours[0].weight, mlp()[0].weight, atol=1e-2)


def posterior_of(model: nn.Module, seed: int = 0) -> Posterior:
    """A prior with a precision for each weight, and one scalar for each bias."""
    generator = torch.Generator().manual_seed(seed)
    prior = {
        n: torch.rand(p.shape if p.dim() > 1 else (), generator=generator, dtype=torch.float64).to(p.dtype) * 50
        for n, p in model.named_parameters()
    }
    return Posterior(prior, samples=40, temperature=0.3)


def plain(parameters: Mapping[str, Tensor], posterior: Posterior) -> Tensor:
    return sum(0.5 * (posterior.prior[n] * p**2).sum() for n, p in parameters.items()) * posterior.temperature / posterior.samples


@configuration
class Prior(Training):
    """A prior that differs from weight to weight and covers a part of the parameters: by the loop, or as a penalty in the loss."""

    written: bool = Choice(False, False, True)

    def prepare(self, problem: Problem) -> Posterior:
        full = posterior_of(problem.model)
        return replace(full, prior={} if self.written else {n: d for n, d in full.prior.items() if n != "0.bias"})

    def penalty(self, parameters: Any, state: Posterior) -> Tensor | None:
        if not self.written:
            return None
        full = posterior_of(noisy())
        return plain({n: p for n, p in parameters.items() if n != "0.bias"}, full)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_prior_of_the_state_is_the_plain_penalty_in_the_loss(batches: Data, optimizer: str) -> None:
    networks = []
    for written in (False, True):
        problem = Problem(noisy(), batches)
        fit(problem, Prior(written=written, lr=0.01), Recipe(epochs=3, optimizer=optimizer))
        networks.append(dict(problem.model.named_parameters()))
    start = dict(noisy().named_parameters())
    for n, p in networks[0].items():
        assert torch.allclose(p, networks[1][n], rtol=1e-4, atol=1e-6)
        assert n == "0.bias" or not torch.equal(p, start[n])


@pytest.mark.parametrize("training", methods.names("trainings"))
def test_frozen_parameters_stay_and_have_no_prior(batches: Data, mlp: Make, training: str) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    posterior = fit(Problem(model, batches), methods.make("trainings", training, {}), Recipe(epochs=3))
    assert torch.equal(model[0].weight, mlp()[0].weight)
    assert not torch.equal(model[2].weight, mlp()[2].weight)
    assert posterior.prior.keys() == (set() if training == "decoupled" else {"2.weight", "2.bias"})


# --- streams of randomness


@dataclass
class Shuffling:
    """Batches in a new order each time they are read; remembers what it handed out."""

    batches: Data
    seed: int = 5

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.handed: list[int] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in torch.randperm(len(self.batches), generator=self.generator).tolist():
            self.handed.append(i)
            yield self.batches[i]


def test_a_training_that_looks_at_the_data_more_often_takes_its_steps_on_the_same_batches(batches: Data, mlp: Make) -> None:
    orders = []
    for training in (Map(), methods.make("trainings", "spam", {"burn_in": 0.0, "frequency": 1})):
        shuffling = Shuffling(batches)
        fit(Problem(mlp(), batches), training, Recipe(epochs=4), batches=shuffling)
        orders.append(shuffling.handed)
    assert orders[0] == orders[1]
    epochs = [orders[0][i : i + 4] for i in range(0, len(orders[0]), 4)]
    assert len({tuple(epoch) for epoch in epochs}) > 1


@configuration
class Looks(Map):
    """MAP, with a pass over the problem's own batches after each epoch."""

    def after_epoch(self, problem: Problem, state: Posterior, epoch: int, epochs: int) -> Posterior:
        list(problem.batches)
        return state


def shuffled_by_itself(batches: Data) -> Shuffling:
    return Shuffling(batches)


def shuffled_by_torch(batches: Data) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True))), 16, shuffle=True)


@pytest.mark.parametrize("source", [shuffled_by_itself, shuffled_by_torch])
def test_hooks_that_read_the_problems_batches_change_no_step(batches: Data, source: Callable[[Data], Any]) -> None:
    networks = []
    for training in (Map(), Looks()):
        problem = Problem(noisy(), source(batches))
        fit(problem, training, Recipe(epochs=3), batches=Shuffling(batches, seed=9))
        networks.append(problem.model)
    assert same(*networks)


@pytest.mark.parametrize("training", methods.names("trainings"))
def test_the_callers_random_state_is_left_as_it_was(batches: Data, training: str) -> None:
    before = torch.get_rng_state(), random.getstate()
    fit(Problem(noisy(), batches), methods.make("trainings", training, {}), Recipe(epochs=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("training", methods.names("trainings"))
def test_dropout_repeats_with_the_seed_and_not_with_another(batches: Data, training: str) -> None:
    networks = []
    for seed, drawn_before in ((0, 1), (0, 2), (1, 1)):
        torch.rand(drawn_before)
        problem = Problem(noisy(), batches, seed=seed)
        fit(problem, methods.make("trainings", training, {}), Recipe(epochs=3))
        networks.append(problem.model)
    assert same(networks[0], networks[1])
    assert not same(networks[0], networks[2])


# --- hooks, fine-tuning, failures


@configuration
class Recorded(Map):
    """Notes every call of a hook in the posterior."""

    def prepare(self, problem: Problem) -> Posterior:
        return replace(super().prepare(problem), marginal_likelihood=(0.0,))

    def after_epoch(self, problem: Problem, state: Posterior, epoch: int, epochs: int) -> Posterior:
        return replace(state, marginal_likelihood=(*state.marginal_likelihood, epoch + epochs / 10))

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        return replace(state, marginal_likelihood=(*state.marginal_likelihood, -1.0))


def test_hooks_are_called_in_order_and_not_while_fine_tuning(batches: Data, mlp: Make) -> None:
    problem = Problem(mlp(), batches)
    posterior = fit(problem, Recorded(), Recipe(epochs=3))
    assert posterior.marginal_likelihood == (0.0, 1.3, 2.3, 3.3, -1.0)
    assert fit(problem, Recorded(), Recipe(epochs=3), previous=posterior) is posterior


@pytest.mark.parametrize("training", [name for name in methods.names("trainings") if name != "decoupled"])  # which has no penalty
def test_fine_tuning_keeps_the_posterior_and_trains_under_its_penalty(batches: Data, mlp: Make, training: str) -> None:
    problem, chosen = Problem(mlp(), batches), methods.make("trainings", training, {"lr": 0.1})
    posterior = fit(problem, chosen, Recipe(epochs=4))
    # One weight alone is held by d·T/N = 5, all others are free: fine-tuning must draw that one towards zero, and only where held.
    reached = []
    for rate in (5.0, 0.0):
        precision = torch.zeros_like(problem.model[0].weight)
        precision[2, 3] = rate * posterior.samples / posterior.temperature
        learned = replace(posterior, prior={n: precision if n == "0.weight" else torch.zeros(()) for n in posterior.prior})
        tuned = replace(problem, model=copy.deepcopy(problem.model))
        with torch.no_grad():
            tuned.model[0].weight[2, 3] = 1.0
        assert fit(tuned, chosen, Recipe(epochs=10), previous=learned) is learned
        reached.append(abs(float(tuned.model[0].weight[2, 3].detach())))
    assert reached[0] < 0.3
    assert reached[1] > 0.6


@configuration
class Reparametrised(Map):
    """Trains each weight as the product with a constant, and collapses the product at the end."""

    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

        def right_inverse(self, w: Tensor) -> Tensor:
            return w / 2

    def prepare(self, problem: Problem) -> Posterior:
        for m in [m for m in problem.model.modules() if isinstance(m, nn.Linear)]:
            parametrize.register_parametrization(m, "weight", self.Doubled())
        return super().prepare(problem)

    def finish(self, problem: Problem, state: Posterior) -> Posterior:
        for m in [m for m in problem.model.modules() if isinstance(m, nn.Linear)]:
            parametrize.remove_parametrizations(m, "weight")
        return state


@configuration
class WeightNormed(Reparametrised):
    """Trains direction and length of each unit's weights; only the direction has the weight's shape."""

    def prepare(self, problem: Problem) -> Posterior:
        for m in [m for m in problem.model.modules() if isinstance(m, nn.Linear)]:
            parametrizations.weight_norm(m)
        return Map.prepare(self, problem)


@pytest.mark.parametrize("training", [Reparametrised, WeightNormed])
def test_a_training_may_reparametrise_the_model(batches: Data, mlp: Make, training: type[Training]) -> None:
    model = mlp()
    names = list(model.state_dict())
    mask = methods.prune(model, sparsity=0.6)
    fit(Problem(model, batches, mask=mask), training(), Recipe(epochs=2))
    assert sorted(model.state_dict()) == sorted(names)
    assert mask_holds(model, mask)
    assert model[0].weight[mask["0.weight"]].all()


@pytest.mark.parametrize("training", methods.names("trainings"))
def test_a_loss_that_is_not_finite_is_an_error_that_says_when(batches: Data, mlp: Make, training: str) -> None:
    x, y = batches[1]
    before = torch.get_rng_state()
    with pytest.raises(FloatingPointError, match=r"the training loss is nan in epoch 1 of 3, batch 2"):
        fit(Problem(mlp(), [batches[0], (x * torch.nan, y)]), methods.make("trainings", training, {}), Recipe(epochs=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_modules_own_mode_comes_back(batches: Data) -> None:
    model = noisy().eval()
    model[3].train()
    modes = [m.training for m in model.modules()]
    statistics = model[1].running_mean.clone()
    fit(Problem(model, batches), methods.make("trainings", "spam", {"burn_in": 0.0, "frequency": 1}), Recipe(epochs=3))
    assert [m.training for m in model.modules()] == modes
    # Every step of every epoch was taken in train mode, also after a pass for curvature in eval mode.
    assert not torch.equal(model[1].running_mean, statistics)
    assert int(model[1].num_batches_tracked) == 12
    assert all(p.grad is None for p in model.parameters())


def test_no_epochs_leave_the_weights_and_apply_the_mask(batches: Data, mlp: Make) -> None:
    model, untouched = mlp(), mlp()
    mask = methods.full_mask(model)
    mask["0.weight"][0] = False
    posterior = fit(Problem(model, batches, mask=mask), Map(weight_decay=0.01), Recipe(epochs=0))
    assert {n: float(d) for n, d in posterior.prior.items()} == pytest.approx({n: 0.64 for n, _ in model.named_parameters()})
    with torch.no_grad():
        untouched[0].weight[0] = 0.0
    assert same(model, untouched)


def test_training_without_batches_is_refused(mlp: Make) -> None:
    with pytest.raises(ValueError, match="batch"):
        fit(Problem(mlp(), []), Map(), Recipe(epochs=1))


# --- the recipe


def test_a_training_is_a_configuration_with_a_learning_rate() -> None:
    for name in methods.names("trainings"):
        training = methods.make("trainings", name, {"lr": 0.5})
        assert isinstance(training, Training)
        assert training.lr == 0.5


class Root(nn.Module):
    """The root of the absolute value: finite outputs with gradients that are not finite at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).abs().sqrt()


def test_weights_that_are_not_finite_after_finite_losses_are_an_error() -> None:
    with pytest.raises(FloatingPointError, match=r"'layer.weight' is no longer finite after a step in epoch 1 of 1"):
        methods.train(Root(), [(torch.zeros(8, 3), torch.arange(8) % 4)], epochs=1)


def test_a_batch_whose_loss_is_nan_is_named_wherever_it_comes() -> None:
    x = torch.randn(16, 3, 6, 6)
    y = torch.randint(4, (16, 6, 6))
    ignored = torch.full_like(y[:8], -100)
    for data, number in (([(x[:8], y[:8]), (x[8:], ignored)], 2), ([(x[:8], ignored), (x[8:], y[8:])], 1)):
        with pytest.raises(FloatingPointError, match=f"the training loss is nan in epoch 1 of 2, batch {number}"):
            methods.train(nn.Conv2d(3, 4, 1), data, epochs=2)


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))


def statistics_move(model: nn.Sequential) -> bool:
    before = model[1].running_mean.clone()
    methods.train(model, [(torch.randn(32, 6) + 3.0, torch.arange(32) % 3)], epochs=1)
    return not torch.equal(before, model[1].running_mean)


def test_frozen_norms_stay_frozen() -> None:
    model = normed().train()
    model[1].eval()
    assert not statistics_move(model)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    model = normed().eval()
    model[1].requires_grad_(False)
    assert not statistics_move(model)
    assert statistics_move(normed().eval())  # a network that was just evaluated is trained as a whole
    assert statistics_move(normed().train())


def test_nothing_to_train_is_said(batches: Data, mlp: Make) -> None:
    for training in ("map", "spam"):
        with pytest.raises(ValueError, match=r"^no parameter of the model requires a gradient, so there is nothing to train$"):
            methods.train(mlp().requires_grad_(False), batches, training, epochs=1)


def test_bfloat16_casts_forward_passes_and_keeps_weights_and_gradients(batches: Data, mlp: Make) -> None:
    seen = []
    model = mlp()
    model[2].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    methods.train(model, batches, epochs=1, precision="bfloat16")
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    seen.clear()
    methods.train(model, batches, epochs=1)
    assert set(seen) == {torch.float32}
    with pytest.raises(ValueError, match="precision 'half' is not one of full, bfloat16"):
        methods.train(mlp(), batches, precision="half")


class Levit(nn.Module):
    """Batch norm whose gradient lies in memory with channels last, as after `flatten(2).transpose(1, 2)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2).contiguous()
        logits: Tensor = self.head(torch.tanh(tokens)).mean(1)
        return logits


def test_a_step_on_a_single_sample_follows_its_gradient() -> None:
    """One step of plain SGD on one sample is that on the sample twice, whose batch statistics and mean gradient are the same."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 3, 5, 5, generator=generator), torch.tensor([1])
    after = []
    for copies in (1, 2):
        torch.manual_seed(0)
        model = Levit()
        methods.train(model, [(x.repeat(copies, 1, 1, 1), y.repeat(copies))], epochs=1, weight_decay=0.0, lr=0.1)
        after.append(model.conv.weight.detach())
    torch.manual_seed(0)
    assert not torch.allclose(after[1], Levit().conv.weight)
    torch.testing.assert_close(after[0], after[1])
