"""Decoupled weight decay: equal to torch's AdamW and to a loop of SGDW, step by step; no prior; what is refused."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Problem, Recipe, fit
from methods.curvature.loss_factors import half_squared_error
from methods.training.decoupled import Decoupled
from methods.training.map import Map

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]


@dataclass
class Recording:
    """Batches that record the weights before each step."""

    batches: Data
    model: nn.Module
    seen: list[list[Tensor]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            self.seen.append([p.detach().clone() for p in self.model.parameters()])
            yield batch

    def __len__(self) -> int:
        return len(self.batches)


def mask_of(model: nn.Sequential, masked: bool) -> dict[str, Tensor]:
    """Every third weight of each layer masked, or none."""
    return {n: torch.arange(w.numel()).view(w.shape) % 3 != 0 for n, w in methods.prunable(model).items()} if masked else {}


def by_hand(model: nn.Sequential, batches: Data, optimizer: str, lr: float, decay: float, recipe: Recipe, mask: Any) -> list[list[Tensor]]:
    """The weights before each step of torch's AdamW, or of the update equations of SGDW."""
    with torch.no_grad():
        for n, m in mask.items():
            model.get_parameter(n).mul_(m)
    steps, seen, memory = recipe.epochs * len(batches), [], [torch.zeros_like(p) for p in model.parameters()]
    adamw = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=decay)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        seen.append([p.detach().clone() for p in model.parameters()])
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for n, m in mask.items():
            model.get_parameter(n).grad.mul_(m)  # type: ignore[union-attr]
        rate = lr * recipe.factor((step + 1) / (steps + 1))
        if optimizer != "sgd":
            adamw.param_groups[0]["lr"] = rate
            adamw.step()
            continue
        with torch.no_grad():
            for p, v in zip(model.parameters(), memory, strict=True):
                assert p.grad is not None
                v.copy_(0.9 * v + p.grad)
                p.copy_(p - rate * v - rate * decay * p)
    return seen


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize(("optimizer", "lr", "decay"), [("sgd", 0.1, 0.3), ("adam", 0.01, 2.0), ("adamw", 0.01, 2.0)])
def test_every_step_is_that_of_adamw_or_sgdw(
    batches: Data, mlp: Make, optimizer: str, lr: float, decay: float, schedule: str, masked: bool
) -> None:
    ours, theirs = mlp(), mlp()
    mask, recipe = mask_of(ours, masked), Recipe(epochs=4, optimizer=optimizer, schedule=schedule)
    watched = Recording(batches, ours)
    training = recipe.with_lr(Decoupled(weight_decay=decay), lr)
    fit(Problem(ours, batches, mask=mask), training, recipe, batches=watched)
    wanted = by_hand(theirs, batches, optimizer, lr, decay, recipe, mask)
    assert len(watched.seen) == len(wanted) == 16
    for a, b in zip([*watched.seen, list(ours.parameters())], [*wanted, list(theirs.parameters())], strict=True):
        for p, q in zip(a, b, strict=True):
            assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)
    plain = mlp()
    fit(Problem(plain, batches, mask=mask), recipe.with_lr(Decoupled(weight_decay=0.0), lr), recipe)
    assert not torch.allclose(plain[0].weight, ours[0].weight, atol=1e-2), "the decay has no effect"


def test_adam_and_adamw_take_the_same_steps_and_do_not_change_without_decay(batches: Data, mlp: Make) -> None:
    networks = []
    for optimizer, training in (
        ("adam", Decoupled()),
        ("adamw", Decoupled()),
        ("adam", Decoupled(weight_decay=0.0)),
        ("adam", Map(weight_decay=0.0)),
    ):
        networks.append(mlp())
        fit(Problem(networks[-1], batches), training, Recipe(epochs=2, optimizer=optimizer))
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[0], weights[2])


def test_sgdw_rests_where_map_with_a_tenth_of_the_decay_does(mlp: Make) -> None:
    """The docstring's prior: d = (1 - μ) λ N. A quadratic loss, whose optimum under an L2 penalty c has a closed form."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    training = Decoupled(weight_decay=1.0, lr=0.02)
    fit(Problem(model, [(x, y)], half_squared_error), training, Recipe(epochs=3000, schedule="constant", warmup=0.0))
    c = (1 - 0.9) * 1.0
    wanted = torch.linalg.solve(x.T @ x / 40 + c * torch.eye(3, dtype=torch.float64), x.T @ y / 40)
    assert torch.allclose(model.weight.T, wanted, atol=1e-8)


def test_fine_tuning_keeps_the_decay_and_adds_no_other(batches: Data, mlp: Make) -> None:
    networks = []
    for earlier in (
        fit(Problem(mlp(), batches), Decoupled(), Recipe(epochs=1)),
        fit(Problem(mlp(), batches), Map(), Recipe(epochs=1)),
        None,
    ):
        networks.append(mlp())
        fit(Problem(networks[-1], batches), Decoupled(weight_decay=0.5), Recipe(epochs=3), previous=earlier)
    assert torch.equal(networks[0][0].weight, networks[2][0].weight)
    assert torch.equal(networks[1][0].weight, networks[2][0].weight)


def test_opd_scores_as_on_a_network_without_a_posterior(batches: Data, mlp: Make) -> None:
    model = mlp()
    posterior = methods.train(model, batches, training="decoupled", optimizer="adamw", epochs=2)
    assert posterior.prior == {}
    assert posterior.samples == sum(len(y) for _, y in batches)
    after = methods.scores(model, batches, "opd", posterior=posterior)
    without = methods.scores(model, batches, "opd")
    assert all(torch.equal(after[n], without[n]) for n in without)
    mask = methods.prune(model, batches, "opd", sparsity=0.5, posterior=posterior)
    methods.train(model, batches, training="decoupled", optimizer="adamw", epochs=1, mask=mask, posterior=posterior)
    assert methods.mask_holds(model, mask)


@pytest.mark.parametrize("training", ["map", "spam", "dwf"])
def test_adamw_with_decay_in_the_loss_is_refused_in_one_line_and_the_model_is_unchanged(batches: Data, mlp: Make, training: str) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=f"'{training}' has it in the loss: use training='decoupled'") as caught:
        methods.train(model, batches, training=training, optimizer="adamw", epochs=1)
    assert "\n" not in str(caught.value)
    assert torch.equal(model[0].weight, mlp()[0].weight)
    with pytest.raises(ValueError, match="'map' has it in the loss"):
        methods.train_pruned(model, batches, sparsity=0.5, optimizer="adamw", epochs=4)


def test_train_pruned_prunes_under_adamw(batches: Data, mlp: Make) -> None:
    model = mlp()
    mask, _ = methods.train_pruned(
        model, batches, "magnitude_gradual@decoupled", sparsity=0.5, optimizer="adamw", lr_schedule="step", epochs=6
    )
    assert methods.sparsity_of(mask) == pytest.approx(0.5, abs=0.02)
    assert methods.mask_holds(model, mask)
