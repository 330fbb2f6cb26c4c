"""Networks trained together are those that are trained one by one."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import methods
from bench.networks import build
from methods.core.population import NotAlike, fit_together
from methods.core.recipe import Recipe
from methods.core.training_run import TrainingRun

N, CLASSES = 40, 4


def data(seed: int = 0, channels: int = 1, side: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(N, channels, side, side, generator=generator), torch.randint(CLASSES, (N,), generator=generator)
    return list(zip(x.split(16), y.split(16), strict=True))


def convolutional(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(24, CLASSES),
    )  # fmt: skip


def run(
    make: object, k: int, training: str = "map", *, seed: int | None = None, pruner: methods.Pruner | None = None, **options: float
) -> TrainingRun:
    """The k-th training: weights, data order, mask and hyperparameters of its own, unless a seed is given."""
    torch.manual_seed(k)
    model: nn.Module = make()  # type: ignore[operator]
    problem = methods.Problem(model, data(), seed=k if seed is None else seed)
    if k and pruner is None:
        mask = methods.cut(problem, methods.make("criteria", "random", {}), methods.get_granularity("weight"), 0.2 * k)
        problem = replace(problem, mask=mask)
    own = methods.make("trainings", training, options)
    return TrainingRun(problem, own, Recipe(epochs=3), batches=data(seed=k), pruner=pruner)


def one_by_one(runs: Sequence[TrainingRun]) -> list[methods.Posterior]:
    return [
        methods.fit(r.problem, r.training, r.recipe, batches=r.batches, previous=r.previous, pruner=r.pruner) for r in runs
    ]  # fmt: skip


def check(together: Sequence[TrainingRun], alone: Sequence[TrainingRun]) -> None:
    states, expected = fit_together(together), one_by_one(alone)
    for a, b in zip(together, alone, strict=True):
        for name, tensor in b.problem.model.state_dict().items():
            torch.testing.assert_close(a.problem.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        for name, mask in b.problem.mask.items():
            assert torch.equal(a.problem.mask[name], mask), name
    for state, other in zip(states, expected, strict=True):
        assert len(state.marginal_likelihood) == len(other.marginal_likelihood)
        for name, precision in other.prior.items():
            torch.testing.assert_close(state.prior[name], precision, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", ["map", "spam", "dwf", "decoupled"])
def test_seeds_masks_and_hyperparameters_of_their_own(training: str) -> None:
    options = [{"lr": 0.05}, {"lr": 0.02}, {"lr": 0.1}]
    check(*([run(convolutional, k, training, **options[k]) for k in range(3)] for _ in range(2)))


def test_dropout_with_one_seed() -> None:
    check(*([run(lambda: convolutional(0.3), k, seed=7) for k in range(3)] for _ in range(2)))


def test_dropout_with_several_seeds_is_refused_and_nothing_changes() -> None:
    runs = [run(lambda: convolutional(0.3), k) for k in range(2)]
    before = [copy.deepcopy(r.problem.model.state_dict()) for r in runs]
    with pytest.raises(NotAlike, match="cannot be stacked"):
        fit_together(runs)
    for r, state in zip(runs, before, strict=True):
        assert all(torch.equal(state[n], t) for n, t in r.problem.model.state_dict().items())
        assert r.problem.model.training


def test_cuts_during_training() -> None:
    def runs() -> list[TrainingRun]:
        gradual, magnitude = methods.Gradual(), methods.make("criteria", "magnitude", {})
        weight = methods.get_granularity("weight")
        return [run(convolutional, k, pruner=methods.Pruner(magnitude, weight, gradual, s)) for k, s in enumerate((0.5, 0.8))]

    check(runs(), runs())


@pytest.mark.parametrize("name", ["vit_micro_patch4", "test_resnet", "test_convnext", "lenet5"])
def test_architectures(name: str) -> None:
    def make() -> nn.Module:
        return build.create(name, (1, 8, 8), CLASSES)

    check(*([run(make, k, lr=0.01) for k in range(2)] for _ in range(2)))


@pytest.mark.parametrize(
    "other",
    [
        lambda r: replace_model(r, nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))),
        lambda r: TrainingRun(r.problem, r.training, Recipe(epochs=2), batches=r.batches),
        lambda r: TrainingRun(r.problem, r.training, replace(r.recipe, precision="bfloat16"), batches=r.batches),
        lambda r: TrainingRun(r.problem, r.training, r.recipe, batches=data()[:2]),
        lambda r: replace_model(r, convolutional(0.3)),
    ],
)
def test_what_differs_is_refused(other: object) -> None:
    first = run(convolutional, 0)
    with pytest.raises(NotAlike, match="different"):
        fit_together([first, other(run(convolutional, 1))])  # type: ignore[operator]


def replace_model(r: TrainingRun, model: nn.Module) -> TrainingRun:
    return TrainingRun(methods.Problem(model, data(), seed=1), r.training, r.recipe, batches=r.batches)


def test_networks_with_hooks_are_refused() -> None:
    """The hook of one network would be called for all of them."""
    runs = [run(convolutional, k) for k in range(2)]
    for k, r in enumerate(runs):
        r.problem.model.get_submodule("0").register_forward_hook(lambda module, inputs, output, k=k: output * (k + 1))
    with pytest.raises(NotAlike, match="hooks"):
        fit_together(runs)


class Noisy(type(methods.make("trainings", "map", {}))):  # type: ignore[misc]
    """A training that draws from torch's global generator before its first step."""

    def prepare(self, problem: methods.Problem) -> methods.Posterior:
        with torch.no_grad():
            for weight in problem.weights.values():
                weight += 0.01 * torch.randn_like(weight)
        return super().prepare(problem)  # type: ignore[no-any-return]


def test_each_training_draws_as_if_it_was_alone() -> None:
    def runs() -> list[TrainingRun]:
        made = [run(convolutional, k) for k in range(3)]
        return [TrainingRun(r.problem, Noisy(), r.recipe, batches=r.batches) for r in made]

    check(runs(), runs())


def test_an_optimiser_that_does_not_fit_the_training_is_refused() -> None:
    r = run(convolutional, 0)
    with pytest.raises(ValueError, match="decouples weight decay"):
        TrainingRun(r.problem, r.training, Recipe(epochs=1, optimizer="adamw"), batches=r.batches)


def test_a_network_that_fails_leaves_the_others_as_they_were() -> None:
    runs = [run(convolutional, 0), run(convolutional, 1, lr=1e6)]
    before = copy.deepcopy(runs[0].problem.model.state_dict())
    with pytest.raises(FloatingPointError):
        fit_together(runs)
    assert all(torch.equal(before[n], t) for n, t in runs[0].problem.model.state_dict().items())
