"""After a refusal nothing is half changed: parameters, buffers, gradients, modes, flags and the class of each module are as before."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import methods

Data = list[tuple[Tensor, Tensor]]
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


class Counting(nn.Module):
    """Counts its forward passes in a buffer, like an observer of quantisation."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def network(*, symmetric: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), Counting(), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 3))
    if symmetric:
        parametrize.register_parametrization(model[0], "weight", Symmetric())
    model[5].weight.grad = torch.ones(3, 6)
    model[5].bias.requires_grad_(False)
    model[1].eval()
    return model


def state(model: nn.Module) -> list[Any]:
    tensors = {n: t.tolist() for n, t in (*model.named_parameters(), *model.named_buffers())}
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    modules = [(n, type(m), m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for n, m in model.named_modules()]
    return [tensors, gradients, flags, modules, list(map(id, model.parameters())), torch.get_rng_state().tolist()]


def failing_late() -> Data:
    return [(X[:8], Y[:8]), (X[8:], Y[8:] + 7)]


def diverging(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y) * 1e30


CALLS: dict[str, tuple[Callable[[nn.Module], Any], bool]] = {
    "map, late batch": (lambda m: methods.train(m, failing_late(), epochs=2), False),
    "spam, late batch": (lambda m: methods.train(m, failing_late(), "spam", epochs=2), False),
    "dwf, late batch": (lambda m: methods.train(m, failing_late(), "dwf", epochs=2), False),
    "not finite": (lambda m: methods.train(m, [(X, Y)], "dwf", epochs=9, loss=diverging), False),
    "online": (lambda m: methods.train_pruned(m, failing_late(), sparsity=0.5, epochs=4), False),
    "online, transformed": (lambda m: methods.train_pruned(m, [(X, Y)], sparsity=0.5, epochs=4), True),
    "obd, late batch": (lambda m: methods.prune(m, failing_late(), method="obd", sparsity=0.5), False),
    "obd, transformed": (lambda m: methods.prune(m, [(X, Y)], method="obd", sparsity=0.5), True),
    "magnitude, transformed": (lambda m: methods.prune(m, [(X, Y)], sparsity=0.5), True),
    "channels": (lambda m: methods.prune(m, [(X, Y + 7)], method="snip", sparsity=0.5, granularity="channel"), False),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_refused_call_changes_nothing(name: str) -> None:
    call, symmetric = CALLS[name]
    model = network(symmetric=symmetric)
    before = state(model)
    with pytest.raises((ValueError, FloatingPointError)) as refused:
        call(model)
    assert "\n" not in str(refused.value)
    assert state(model) == before


def test_a_refusal_in_a_later_round_undoes_the_earlier_ones() -> None:
    seen = 0

    def loss(f: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return F.cross_entropy(f, y if seen < 8 else y + 7)

    model = network()
    before = state(model)
    with pytest.raises(ValueError, match="labels must be 0, 1"):
        methods.prune(model, [(X, Y)], method="snip", n_rounds=50, sparsity=0.9, loss=loss)
    assert seen >= 8
    assert state(model) == before


@pytest.mark.parametrize("method", ["magnitude", "obd", "snip"])
def test_scores_leave_buffers_that_count_or_observe(method: str) -> None:
    model = network()
    methods.scores(model, [(X, Y)], method=method)
    assert float(model[2].calls) == 0.0


def test_a_transformed_weight_is_refused_before_it_is_trained() -> None:
    model = network(symmetric=True)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(model.training))
    with pytest.raises(ValueError, match="remove_parametrizations"):
        methods.train_pruned(model, [(X, Y)], sparsity=0.5, epochs=4)
    assert True not in seen
