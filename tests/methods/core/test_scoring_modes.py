"""Norms while a network is scored at initialisation, and the warning of ties."""

import copy
import re
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Problem, Scores
from methods.core.configurations import Criterion
from methods.core.ties import warn_of_ties

Data = list[tuple[Tensor, Tensor]]


class Residual(nn.Module):
    """A convolution, one residual branch with batch norm and dropout, a group norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(c, 4, 3, padding=1, bias=False) for c in (2, 4, 4))
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.norm2(self.second(self.drop(torch.relu(self.norm1(self.first(x))))))
        logits: Tensor = self.head(self.norm3(x).mean((2, 3)))
        return logits


def network(zero: bool = False) -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual().double()
    if zero:
        nn.init.zeros_(model.norm2.weight)
        nn.init.zeros_(model.norm3.weight)
    return model


def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    return [(1.0 + torch.randn(12, 2, 5, 5, generator=generator).double(), torch.arange(12) % 3)]


def gradients(model: Residual, training: bool, power: int) -> dict[str, Tensor]:
    """|g ⊙ w|, or w ⊙ Hg at T = 1, with batch norm in one mode, by plain autograd on a copy."""
    model = copy.deepcopy(model).eval()
    for norm in (model.norm1, model.norm2):
        norm.train(training)
    (x, y), weights = data()[0], dict(methods.prunable(model))
    g = torch.autograd.grad(F.cross_entropy(model(x), y), list(weights.values()), create_graph=True)
    if power == 1:
        return {n: (w * v).abs().detach() for (n, w), v in zip(weights.items(), g, strict=True)}
    hg = torch.autograd.grad(torch.stack([(v.detach() * v).sum() for v in g]).sum(), list(weights.values()))
    return {n: (w * v).detach() for (n, w), v in zip(weights.items(), hg, strict=True)}


@pytest.mark.parametrize("zero", [False, True], ids=["γ=1", "γ=0"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("name", "power", "options"), [("snip", 1, {}), ("grasp", 2, {"temperature": 1.0})])
def test_scores_are_those_of_the_mode_and_of_gamma_one(name: str, power: int, options: dict[str, Any], mode: str, zero: bool) -> None:
    model = network(zero)
    before = copy.deepcopy(model.state_dict())
    found = methods.scores(model, data(), name, mode=mode, **options)
    wanted = gradients(network(), mode == "train", power)
    other = gradients(network(), mode != "train", power)
    for n, s in found.items():
        assert torch.allclose(s, wanted[n], rtol=1e-8, atol=1e-14), n
        assert not torch.allclose(s, other[n], rtol=1e-2), n
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert model.norm1.track_running_stats


def test_the_mode_is_restored_after_an_error() -> None:
    model = network(zero=True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        methods.scores(model, [(torch.randn(1, 2, 1, 1).double(), torch.tensor([1]))], "snip", mode="train")
    assert model.norm1.training
    assert model.norm1.track_running_stats
    assert not model.norm2.weight.any()


def test_defaults_are_those_of_the_released_codes_and_are_not_tuned() -> None:
    modes = {name: methods.ranges(methods.lookup("criteria", name))["mode"] for name in ("snip", "grasp")}
    assert not any(allowed.tuned for allowed in modes.values())
    assert [methods.get(name).make_criterion().mode for name in modes] == ["eval", "train"]  # type: ignore[attr-defined]


# --- ties


@dataclass(frozen=True, kw_only=True)
class Stepped(Criterion):
    """Scores that are equal for a share of the weights of each layer."""

    def score(self, problem: Problem) -> Scores:
        return Scores({n: torch.linspace(-1, 1, w.numel()).sub(0.02).clamp_min(0).view(w.shape) for n, w in problem.weights.items()})


class Fewer(Stepped):
    def score(self, problem: Problem) -> Scores:
        return Scores({n: torch.linspace(-1, 1, w.numel()).add(0.02).clamp_min(0).view(w.shape) for n, w in problem.weights.items()})


def messages(problem: Problem, criterion: Criterion, times: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(times):
            methods.score(problem, criterion)
    return [str(w.message) for w in seen]


def test_most_scores_being_equal_is_warned_of_once_for_a_model() -> None:
    problem = Problem(nn.Linear(50, 10), data())
    assert messages(replace(problem, batches=[(torch.randn(4, 50), torch.arange(4))]), Stepped(), times=3) == [
        "'' gives 51% of the weights the same score; ties are broken at random"
    ]


def test_fewer_ties_masked_weights_and_equal_weights_are_not_warned_of() -> None:
    batches = [(torch.randn(4, 50), torch.arange(4))]
    assert messages(Problem(nn.Linear(50, 10), batches), Fewer()) == []
    halved = Problem(nn.Linear(50, 10), batches, mask={"weight": torch.arange(500).view(10, 50) >= 100})
    assert messages(halved, Stepped()) == []
    regrowing = nn.Linear(50, 10)
    with torch.no_grad():
        regrowing.weight[:6] = 0.0
    assert messages(Problem(regrowing, batches), Stepped()) == []
    layer = nn.Linear(50, 10)
    nn.init.ones_(layer.weight)
    assert messages(Problem(layer, batches), Stepped()) == []


def test_a_dead_branch_is_warned_of() -> None:
    """The last layer of this network is zero: no gradient passes it."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    nn.init.zeros_(model[2].weight)
    batches = [(torch.randn(8, 6), torch.arange(8) % 3)]
    with pytest.warns(UserWarning, match="'snip' gives 100% of the weights the same score; ties are broken at random"):
        methods.prune(model, batches, "snip", sparsity=0.5)


@pytest.mark.parametrize(("tied", "warns"), [(0.45, False), (0.6, True)])
def test_a_sample_of_a_large_network_tells_ties(tied: float, warns: bool) -> None:
    model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 10))
    problem = Problem(model, ())
    scores = Scores({n: torch.rand(w.shape) for n, w in problem.weights.items()})
    for s in scores.values.values():
        s.flatten()[: round(tied * s.numel())] = 0.5
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn_of_ties(problem, "mine", scores)
    assert len(seen) == warns
    assert not warns or 0.57 < int(re.findall(r"(\d+)%", str(seen[0].message))[0]) / 100 < 0.63
