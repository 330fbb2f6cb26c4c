"""Criteria that score output channels against plain loops, gates and finite differences; what of them a granularity uses."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Mask, Problem
from methods.core.filters import filters
from methods.granularity.channel import Channel, coupling_of

Data = list[tuple[Tensor, Tensor]]
NAMES = ("filter_norm", "fpgm", "bn_scale", "taylor")


class Residual(nn.Module):
    """conv a + batch norm, added to conv b + batch norm of it; conv c without norm; head. Gates multiply the channels of each norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.bn_b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c, self.head = nn.Conv2d(4, 5, 1), nn.Linear(5, 3)
        self.gates: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gates or [torch.ones(1, dtype=x.dtype)] * 3
        y = torch.relu(self.bn_a(self.a(x)) * gate[0].view(-1, 1, 1))
        y = torch.relu(y + self.bn_b(self.b(y)) * gate[1].view(-1, 1, 1))
        logits: Tensor = self.head(torch.relu(self.c(y) * gate[2].view(-1, 1, 1)).mean((2, 3)))
        return logits


@pytest.fixture
def problem() -> Problem:
    """A network in double precision whose norms have parameters and statistics of their own; three batches."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual().double()
    for bn in (model.bn_a, model.bn_b):
        for tensor in (bn.weight.data, bn.bias.data, bn.running_mean, bn.running_var):
            assert isinstance(tensor, Tensor)
            tensor.copy_(torch.randn(4, generator=draw, dtype=torch.float64))
        assert bn.running_var is not None
        bn.running_var.abs_().add_(0.5)
    data = [(torch.randn(6, 2, 5, 5, generator=draw, dtype=torch.float64), torch.arange(6) % 3) for _ in range(3)]
    return Problem(model.eval(), data)


def rows(problem: Problem, name: str, **options: Any) -> dict[str, Tensor]:
    found = methods.score(problem, methods.make("criteria", name, options))
    assert found.rows is not None
    assert found.values == {}
    return found.rows


def units(problem: Problem, found: dict[str, Tensor]) -> Tensor:
    return coupling_of(problem).row_sums(found)[0]


# --- filters


def by_loop(layer: nn.Module) -> list[Tensor]:
    """What one output channel reads, found by zeroing everything else: the entries of the weight that its outputs depend on."""
    weight: Any = layer.weight
    x = torch.rand(2, *((weight.shape[1],) if isinstance(layer, nn.Linear) else (layer.in_channels, 6, 6)), dtype=torch.float64)
    found = []
    outputs = layer(x)
    for j in range(outputs.shape[1]):
        gradient = torch.autograd.grad(outputs[:, j].sum(), weight, retain_graph=True)[0]
        found.append(weight.detach()[gradient != 0])
    return found


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3),
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
    ],
)
def test_a_filter_is_what_one_output_channel_depends_on(layer: nn.Module) -> None:
    model = nn.Sequential(layer).double()
    found = filters(model, {"0.weight": model[0].weight.detach()})["0.weight"]  # type: ignore[dict-item, operator, union-attr]
    wanted = by_loop(model[0])
    assert len(found) == len(wanted)
    for row, entries in zip(found, wanted, strict=True):
        assert torch.equal(row.sort().values, entries.sort().values)


def test_weights_of_other_modules_have_no_filters() -> None:
    model = nn.ModuleDict({"rnn": nn.GRU(3, 4), "two": nn.Bilinear(2, 3, 4), "last": nn.Linear(4, 2)})
    assert list(filters(model, dict(methods.prunable(model)))) == ["last.weight"]


# --- formulas


@pytest.mark.parametrize("norm", [1, 2])
def test_filter_norm_is_the_norm_of_each_filter(problem: Problem, norm: int) -> None:
    for name, found in rows(problem, "filter_norm", norm=norm).items():
        wanted = [float((f.abs() ** norm).sum() ** (1 / norm)) for f in problem.weights[name].detach()]
        assert found.tolist() == pytest.approx(wanted, rel=1e-12)


def test_fpgm_is_the_sum_of_distances_by_loops(problem: Problem) -> None:
    found = rows(problem, "fpgm")
    assert found.keys() == problem.weights.keys()
    for name, w in problem.weights.items():
        f = w.detach().flatten(1).tolist()
        wanted = [sum(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5 for y in f) for x in f]
        assert found[name].tolist() == pytest.approx(wanted, rel=1e-10)


def test_equal_filters_are_at_distance_zero_and_cut_filters_are_not_counted() -> None:
    layer = nn.Linear(50, 4).double()
    layer.weight.data[:] = layer.weight.data[0] * 1000.0  # rounding of 1e6 must not look like a distance
    model = nn.Sequential(layer, nn.Linear(4, 2).double())
    assert rows(Problem(model, ()), "fpgm")["0.weight"].tolist() == [0.0] * 4
    layer.weight.data[3] = 0.0
    mask: Mask = {"0.weight": torch.tensor([True, True, True, False]).unsqueeze(1).expand(4, 50)}
    found = rows(Problem(model, (), mask=mask), "fpgm")["0.weight"]
    assert found[:3].tolist() == [0.0] * 3
    assert found[3] > 0


def test_bn_scale_adds_the_scales_of_a_channel(problem: Problem) -> None:
    model: Any = problem.model
    found = units(problem, rows(problem, "bn_scale"))
    wanted = model.bn_a.weight.abs() + model.bn_b.weight.abs()  # a + b: one channel
    assert found[:4].tolist() == pytest.approx(wanted.tolist(), rel=1e-12)
    assert not found[4:].any()


def test_channels_without_a_norm_stay(problem: Problem) -> None:
    mask = methods.cut(replace(problem, model=copy.deepcopy(problem.model)), methods.make("criteria", "bn_scale", {}), Channel(), 0.4)
    assert mask["c.weight"].any(1).all()
    assert not mask["a.weight"].flatten(1).any(1).all()
    with pytest.raises(ValueError, match=r"sparsity 0.99 cannot be reached without emptying a layer; the largest possible is"):
        methods.cut(problem, methods.make("criteria", "bn_scale", {}), Channel(), 0.99)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,), "it has no batch norm with a scale"),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)), (6,), "it has no batch norm with a scale"),
        (
            nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
            (6,),
            "no channel that can be removed has a batch norm",
        ),
    ],
)
def test_bn_scale_refuses_networks_without_norms_of_channels(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    data = [(torch.randn(4, *shape), torch.arange(4) % 3)]
    with pytest.raises(ValueError, match=f"^'bn_scale' does not support this network: {message}$"):
        methods.prune(model, data, "bn_scale", sparsity=0.2, granularity="channel")


def squared_gate_derivatives(problem: Problem, step: float | None) -> list[Tensor]:
    """The mean over batches of (∂L/∂z)² of the three sets of gates, by autograd or by central differences."""
    model: Any = problem.model
    total = [torch.zeros(4), torch.zeros(4), torch.zeros(5)]

    def loss(gates: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        model.gates = gates
        value = F.cross_entropy(model(x), y)
        model.gates = []
        return value

    for x, y in problem.batches:
        ones = [torch.ones(n, dtype=torch.float64, requires_grad=True) for n in (4, 4, 5)]
        if step is None:
            found = list(torch.autograd.grad(loss(ones, x, y), ones))
        else:
            found = [torch.zeros(len(z)) for z in ones]
            with torch.no_grad():
                for k, z in enumerate(ones):
                    for c in range(len(z)):
                        ends = []
                        for sign in (1.0, -1.0):
                            moved = [g.detach().clone() for g in ones]
                            moved[k][c] += sign * step
                            ends.append(float(loss(moved, x, y)))
                        found[k][c] = (ends[0] - ends[1]) / (2 * step)
        total = [t + g.square() for t, g in zip(total, found, strict=True)]
    return [t / len(list(problem.batches)) for t in total]


@pytest.mark.parametrize(("step", "tolerance"), [(None, 1e-9), (1e-5, 1e-4)])
def test_taylor_is_the_squared_effect_of_a_gate(problem: Problem, step: float | None, tolerance: float) -> None:
    a, b, c = squared_gate_derivatives(problem, step)
    # The gate of c stands behind weights and bias, so their sum of θ g is its derivative.
    found = units(problem, rows(problem, "taylor"))
    assert found[:9].tolist() == pytest.approx([*(a + b).tolist(), *c.tolist()], rel=tolerance)


def test_taylor_squares_every_batch_and_reads_as_many_as_it_says(problem: Problem) -> None:
    one = [units(replace(problem, batches=[batch]), rows(replace(problem, batches=[batch]), "taylor")) for batch in problem.batches]
    both = units(problem, rows(problem, "taylor", n_batches=2))
    assert both.tolist() == pytest.approx(((one[0] + one[1]) / 2).tolist(), rel=1e-9)


def test_the_sum_of_absolute_effects_is_that_of_single_weights(problem: Problem) -> None:
    wanted = {n: torch.zeros_like(w) for n, w in problem.weights.items()}
    for x, y in problem.batches:
        gradients = torch.autograd.grad(F.cross_entropy(problem.model(x), y), list(problem.weights.values()))
        for (n, w), g in zip(problem.weights.items(), gradients, strict=True):
            wanted[n] += (w.detach() * g).abs() / 3
    found = methods.score(problem, methods.make("criteria", "taylor", {"form": "sum_abs"}))
    assert found.rows is None
    for name, value in found.values.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-14)


def test_frozen_norms_are_scored_and_stay_frozen(problem: Problem) -> None:
    wanted = rows(problem, "taylor")
    for p in problem.model.parameters():
        p.requires_grad_(False)
    found = rows(problem, "taylor")
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert not any(p.requires_grad for p in problem.model.parameters())


# --- where they may be used


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("granularity", ["weight", "2:4"])
def test_another_granularity_is_refused_in_one_line(problem: Problem, name: str, granularity: str) -> None:
    line = f"^'{name}' is defined for granularity 'channel', not '{granularity}'$"
    with pytest.raises(ValueError, match=line):
        methods.prune(problem.model, problem.batches, name, sparsity=0.5, granularity=granularity)
    with pytest.raises(ValueError, match=line):
        methods.train_pruned(
            problem.model, problem.batches, name, sparsity=0.5, granularity=granularity, schedule=methods.Gradual(), epochs=4
        )


def test_scores_of_weights_may_be_used_everywhere(problem: Problem) -> None:
    mask = methods.prune(copy.deepcopy(problem.model), problem.batches, "taylor", form="sum_abs", sparsity=0.5)
    assert methods.sparsity_of(mask) == pytest.approx(0.5, abs=0.01)
    assert methods.scores(problem.model, problem.batches, "fpgm")["c.weight"].shape == (5,)


@pytest.mark.parametrize("name", NAMES)
def test_the_channels_of_lowest_score_go_first(problem: Problem, name: str) -> None:
    found = units(problem, rows(problem, name))
    model = copy.deepcopy(problem.model)
    mask = methods.cut(replace(problem, model=model), methods.make("criteria", name, {}), Channel(ranking="layer"), 0.5)
    kept = coupling_of(problem).kept_units(mask)
    for pool in (slice(0, 4), slice(4, 9)):
        gone = ~kept[pool]
        if gone.any():
            assert float(found[pool][gone].max()) <= float(found[pool][~gone].min())
    assert not kept[:9].all()


def make_chain() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("name", NAMES)
def test_torch_pruning_gets_the_same_importance(name: str) -> None:
    import torch_pruning as tp

    model = make_chain()
    assert isinstance(model[1], nn.BatchNorm2d)
    model[1].weight.data = torch.tensor([0.1, -0.5, 0.2, 0.9, -0.3, 0.4])
    data = [(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3)]
    graph = tp.DependencyGraph().build_dependency(model, data[0][0][:1], verbose=False)
    groups = {group[0].dep.target.module: group for group in graph.get_all_groups(ignored_layers=[model[5]])}
    problem = Problem(model, data)
    wanted = units(problem, rows(problem, name))[:6]
    assert len(wanted.unique()) == 6
    torch.testing.assert_close(methods.Importance(model, data, name)(groups[model[0]]), wanted.double(), rtol=1e-5, atol=0)
