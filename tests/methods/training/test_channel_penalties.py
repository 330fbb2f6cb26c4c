"""Trainings that switch off channels: their penalties against formulas by hand, where they act, and what they leave."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Problem, Recipe, fit

Data = list[tuple[Tensor, Tensor]]


def network(groups: int = 2) -> nn.Sequential:
    """conv, norm, transposed conv in groups, norm, linear; 2 x 4 x 4 inputs, 3 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, groups=groups), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Flatten(), nn.Linear(36, 3),
        )  # fmt: skip


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 2, 4, 4, generator=generator)
    y = (x.flatten(1) @ torch.randn(32, 3, generator=generator)).argmax(1)
    return list(zip(x.split(16), y.split(16), strict=True))


def slimming_by_hand(model: nn.Module) -> dict[str, Tensor]:
    """sign(γ) of the two norms."""
    return {n: p.detach().sign() for n, p in model.named_parameters() if n in ("1.weight", "4.weight")}


def group_lasso_by_hand(model: Any) -> dict[str, Tensor]:
    """√|g| w / ‖w‖ of every output channel, by loops; zero where the norm is zero."""
    found = {}
    for index in (0, 3, 7):
        w = model[index].weight.detach().double()
        gradient = torch.zeros_like(w)
        for j in range(4 if index == 3 else len(w)):
            where = torch.zeros_like(w, dtype=torch.bool)
            if index == 3:  # (in, out/groups, 2, 2): outputs 0 and 1 read inputs 0 to 3, the others 4 to 7
                where[4 * (j // 2) : 4 * (j // 2) + 4, j % 2] = True
            else:
                where[j] = True
            norm = math.sqrt(float((w[where] ** 2).sum()))
            gradient[where] = math.sqrt(int(where.sum())) * w[where] / norm if norm else 0.0
        found[f"{index}.weight"] = gradient.float()
    return found


@pytest.mark.parametrize(("name", "by_hand"), [("slimming", slimming_by_hand), ("group_lasso", group_lasso_by_hand)])
def test_the_gradient_of_the_penalty_is_the_formula(data: Data, name: str, by_hand: Any) -> None:
    model = network()
    model[1].weight.data[:] = torch.tensor([0.3, -0.2, 0.0, 1.0, 2.0, -1.0, 0.5, 0.1])  # type: ignore[union-attr, operator, index]
    model[0].weight.data[2] = 0.0  # type: ignore[union-attr, operator, index]
    problem = Problem(model, data)
    training = methods.make("trainings", name, {"lam": 0.7})
    value = training.penalty(dict(model.named_parameters()), training.prepare(problem))
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    found = {n: g for (n, _), g in zip(model.named_parameters(), gradients, strict=True) if g is not None}
    wanted = by_hand(model)
    assert found.keys() == wanted.keys()
    for n, g in found.items():
        torch.testing.assert_close(g, 0.7 * wanted[n], rtol=1e-5, atol=1e-7)


def test_the_value_of_the_penalties(data: Data) -> None:
    model: Any = network()
    problem, named = Problem(model, data), dict(model.named_parameters())
    slimming, lasso = (methods.make("trainings", n, {"lam": 2.0}) for n in ("slimming", "group_lasso"))
    model[1].weight.data.fill_(-0.5)
    assert float(slimming.penalty(named, slimming.prepare(problem)).detach()) == pytest.approx(2.0 * (8 * 0.5 + 4 * 1.0))
    norms = [
        math.sqrt(18) * sum(float(f.norm()) for f in model[0].weight.detach()),
        math.sqrt(36) * sum(float(f.norm()) for f in model[7].weight.detach()),
    ]
    norms += [math.sqrt(16) * float(model[3].weight.detach()[g : g + 4, j].norm()) for g in (0, 4) for j in (0, 1)]
    assert float(lasso.penalty(named, lasso.prepare(problem)).detach()) == pytest.approx(2.0 * sum(norms), rel=1e-5)


@pytest.mark.parametrize("name", ["slimming", "group_lasso"])
def test_one_step_takes_loss_decay_and_penalty(data: Data, name: str) -> None:
    """A step of plain SGD by hand: θ - lr (∂L/∂θ + weight_decay θ + λ ∂penalty)."""
    model, by_hand = network(), slimming_by_hand if name == "slimming" else group_lasso_by_hand
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    penalty = by_hand(model)
    training = methods.make("trainings", name, {"lam": 0.05, "weight_decay": 0.01, "lr": 0.1})
    twin = network().train()
    x, y = data[0]
    gradients = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
    recipe = Recipe(epochs=1)
    fit(Problem(model, [data[0]]), training, recipe)
    rate = 0.1 * recipe.factor(1 / 2)
    for (n, p), g in zip(model.named_parameters(), gradients, strict=True):
        wanted = before[n] - rate * (g + 0.01 * before[n] + 0.05 * penalty.get(n, torch.tensor(0.0)))
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_slimming_drives_scales_to_zero_and_its_channels_go_first(data: Data) -> None:
    plain, slim = network(groups=1), network(groups=1)
    methods.train(plain, data, "map", epochs=40)
    posterior = methods.train(slim, data, "slimming", epochs=40, lam=0.1)
    small = [[int((m.weight.detach().abs() < 0.02).sum()) for m in model if isinstance(m, nn.BatchNorm2d)] for model in (plain, slim)]
    assert sum(small[0]) == 0
    assert sum(small[1]) >= 2
    assert type(posterior) is methods.Posterior
    scales = slim[1].weight.detach().abs()  # type: ignore[union-attr, operator]
    mask = methods.prune(slim, data, "bn_scale", posterior=posterior, sparsity=0.3, granularity="channel(normalisation=none)")
    gone = ~mask["0.weight"].flatten(1).any(1)
    assert gone.any()
    assert scales[gone].max() <= scales[~gone].min()


def test_group_lasso_makes_the_norms_of_filters_small(data: Data) -> None:
    models = {name: network() for name in ("map", "group_lasso")}
    for name, model in models.items():
        methods.train(model, data, name, epochs=40, **({"lam": 0.03} if name == "group_lasso" else {}))
    norms = {name: torch.cat([model[i].weight.detach().flatten(1).norm(dim=1) for i in (0, 7)]) for name, model in models.items()}  # type: ignore[union-attr, operator]
    small = {name: int((n < 0.2 * n.max()).sum()) for name, n in norms.items()}
    assert small["map"] <= 1
    assert small["group_lasso"] >= 4


@pytest.mark.parametrize("name", ["slimming", "group_lasso"])
def test_fine_tuning_has_no_penalty(data: Data, name: str) -> None:
    """Fine-tuning under a large λ is that under none."""
    ends = []
    for lam in (0.0, 1.0):
        model = network()
        posterior = methods.train(model, data, "map", epochs=2)
        methods.train(model, data, name, epochs=2, posterior=posterior, lam=lam)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_without_batch_norm_slimming_is_map(data: Data) -> None:
    ends = []
    for name in ("map", "slimming"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 3))
        methods.train(model, data, name, epochs=2)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_the_named_methods() -> None:
    slimming, lasso = methods.get("slimming"), methods.get("group_lasso")
    assert (slimming.criterion, slimming.training, methods.get("bn_scale@slimming")) == ("bn_scale", "slimming", slimming)
    assert (lasso.criterion, lasso.training, lasso.options) == ("filter_norm", "group_lasso", {"norm": 2})
