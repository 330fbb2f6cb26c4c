"""Limits of whole channels: floor, multiples, protected layers, ratios of single layers."""

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from methods import Problem, Scores
from methods.granularity.channel import Channel, coupling_of

WIDTHS = {"0.weight": 24, "2.weight": 16, "4.weight": 10}


class Attends(nn.Module):
    """One block of attention with four heads of two dimensions, and hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.num_heads, self.head_dim = 4, 2
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        logits: Tensor = self.head(self.proj(x).mean(1))
        return logits


def chain(seed: int = 0) -> Problem:
    """6 -> 24 -> 16 -> 10 -> 3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3))
    return Problem(model.eval(), [(torch.randn(4, 6), torch.arange(4) % 3)], seed=seed)


def squares(problem: Problem) -> Scores:
    return Scores({n: w.detach().square() for n, w in problem.weights.items()})


def left(mask: dict[str, Tensor]) -> dict[str, int]:
    """The number of output channels that are left of each layer."""
    return {n: int(m.flatten(1).any(1).sum()) for n, m in mask.items() if n in WIDTHS}


def parameters(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("ranking", ["global", "layer"])
@pytest.mark.parametrize("options", [{"floor": 0.1}, {"floor": 0.34}, {"round_to": 4}, {"round_to": 8, "floor": 0.3}, {"round_to": 7}])
@pytest.mark.parametrize("cost", [None, parameters], ids=["weights", "parameters"])
def test_every_layer_keeps_its_floor_and_multiples(ranking: str, options: dict[str, Any], cost: Any) -> None:
    granularity, touched = Channel(ranking=ranking, **options), 0
    floor, step = options.get("floor", 0.0), options.get("round_to", 1)
    for seed in range(4):
        problem = chain(seed)
        for sparsity in (0.0, 0.2, 0.4, 0.55):
            mask = granularity.cut(problem, squares(problem), sparsity, cost)
            granularity.check(replace(problem, mask=mask), sparsity, cost)
            for name, count in left(mask).items():
                assert count >= max(1, floor * WIDTHS[name])
                assert count == WIDTHS[name] or count % step == 0
                touched += count < WIDTHS[name]
    assert touched > 20


@pytest.mark.parametrize("step", [2, 4, 8])
def test_multiples_reach_the_sparsity_to_half_a_step(step: int) -> None:
    problem = chain()
    # The largest step: `step` units of the second layer's inputs, 6 + 16 weights each, or of its outputs, 24 + 10.
    largest = step * 34 / sum(w.numel() for w in problem.weights.values())
    for sparsity in (0.1, 0.3, 0.5, 0.7):
        mask = Channel(round_to=step).cut(problem, squares(problem), sparsity)
        assert abs(methods.sparsity_of(mask) - sparsity) <= largest / 2


def test_without_limits_the_masks_are_those_of_before() -> None:
    problem = chain()
    plain = Channel().cut(problem, squares(problem), 0.6)
    for same in (Channel(floor=0.0, round_to=1), Channel(protect="", ratios="")):
        found = same.cut(problem, squares(problem), 0.6)
        assert all(torch.equal(found[n], plain[n]) for n in plain)
    assert any(not torch.equal(m, plain[n]) for n, m in Channel(round_to=4).cut(problem, squares(problem), 0.6).items())


def test_masks_under_multiples_are_nested() -> None:
    problem, granularity = chain(), Channel(round_to=4, floor=0.1)
    masks = [granularity.cut(problem, squares(problem), s) for s in (0.2, 0.4, 0.6)]
    for outer, inner in itertools.pairwise(masks):
        assert all(not (inner[n] & ~outer[n]).any() for n in outer)
    later = granularity.cut(replace(problem, mask=masks[0]), squares(problem), 0.6)
    assert all(not (later[n] & ~masks[0][n]).any() for n in later)
    granularity.check(replace(problem, mask=later), 0.6)


@pytest.mark.parametrize("pattern", ["2", "2.weight", "[2]*"])
def test_protected_layers_keep_all_channels(pattern: str) -> None:
    problem = chain()
    granularity = Channel(protect=pattern)
    mask = granularity.cut(problem, squares(problem), 0.5)
    granularity.check(replace(problem, mask=mask), 0.5)
    assert left(mask)["2.weight"] == 16
    assert left(mask)["0.weight"] < 24
    assert left(Channel().cut(problem, squares(problem), 0.5))["2.weight"] < 16
    both = Channel(protect="0|2").cut(problem, squares(problem), 0.15)
    assert [left(both)[n] for n in WIDTHS][:2] == [24, 16]


def test_layers_with_a_ratio_lose_it_and_the_others_fill_up() -> None:
    problem = chain()
    granularity = Channel(ratios="0:0.25|4:0")
    for sparsity in (0.3, 0.45, 0.6):
        mask = granularity.cut(problem, squares(problem), sparsity)
        granularity.check(replace(problem, mask=mask), sparsity)
        assert (left(mask)["0.weight"], left(mask)["4.weight"]) == (18, 10)
    assert left(Channel(ratios="0:0.25", round_to=4).cut(problem, squares(problem), 0.4))["0.weight"] in (16, 20)
    assert left(Channel(ratios="0:0.9", floor=0.5).cut(problem, squares(problem), 0.4))["0.weight"] == 12
    units = squares(problem).values["0.weight"].sum(1) + squares(problem).values["2.weight"].sum(0)
    assert mask["0.weight"].any(1).tolist() == (units >= units.sort().values[6]).tolist(), "the lowest scores go"


def test_heads_are_several_channels() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Attends().eval()
    problem = Problem(model, [(torch.randn(4, 5, 3), torch.arange(4) % 3)])
    pool = int(coupling_of(problem).pools[coupling_of(problem).lines["qkv.weight"][0][0]])
    for round_to, heads in ((2, 1), (4, 2), (8, 4)):
        assert Channel(round_to=round_to)._limits(coupling_of(problem)).steps[pool] == heads


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ({}, {"floor": 0.5}, r"the mask keeps \d+ of \d+ channels of '\d.weight', which is below the floor of 0.5"),
        ({}, {"round_to": 8}, r"the mask keeps \d+ channels of '\d.weight', which is not a multiple of 8"),
        ({}, {"protect": "2"}, "the mask removes channels of a protected layer"),
        ({}, {"ratios": "0:0.25"}, r"the mask keeps \d+ channels of '0.weight', but its ratio keeps 18 of 24"),
    ],
)
def test_check_refuses_masks_outside_the_limits(wrong: dict[str, Any], right: dict[str, Any], message: str) -> None:
    problem = chain()
    mask = Channel(**wrong).cut(problem, squares(problem), 0.7)
    Channel(**wrong).check(replace(problem, mask=mask), 0.7)
    with pytest.raises(RuntimeError, match=message):
        Channel(**right).check(replace(problem, mask=mask), 0.7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("channel(floor=1.5)", r"floor=1.5 is not a number in \[0, 1\]"),
        ("channel(round_to=0)", "round_to=0 is not an integer >= 1"),
        ("channel(protect=a||b)", r"protect='a\|\|b' must be patterns of layers with \| between them"),
        ("channel(protect=3)", "protect=3 is not a text"),
        ("channel(ratios=0)", "ratios=0 is not a text"),
        ("channel(ratios=fc1)", "ratios: 'fc1' must be a pattern of layers and a fraction"),
        ("channel(ratios=fc1:1.0)", "ratios: 'fc1:1.0' must be a pattern of layers and a fraction"),
        ("channel(ratios=a:0.1|a:0.2)", "ratios: 'a' is given twice"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        methods.get_granularity(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("granularity", "sparsity", "message"),
    [
        ("channel(protect=stem.*)", 0.5, r"protect: 'stem.\*' matches no layer with output channels; there are 0, 2, 4 and others"),
        ("channel(ratios=layer1:0.3)", 0.5, "ratios: 'layer1' matches no layer with output channels"),
        (
            "channel(floor=0.6)",
            0.9,
            "sparsity 0.9 cannot be reached without emptying a layer; the largest possible is .* within the limits",
        ),
        ("channel(ratios=0:0.5|2:0.5)", 0.2, "sparsity 0.2 is lower than the sparsity of the ratios alone, 0.6"),
        ("channel(ratios=6:0.5)", 0.2, "ratios: no output channel of '6.weight' can be removed"),
    ],
)
def test_limits_that_do_not_fit_a_network_are_one_line(granularity: str, sparsity: float, message: str) -> None:
    problem = chain()
    with pytest.raises(ValueError, match=message) as error:
        methods.prune(problem.model, problem.batches, "magnitude", sparsity=sparsity, granularity=granularity)
    assert "\n" not in str(error.value)


def test_added_layers_cannot_have_different_ratios() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.relu(self.a(x) + self.b(x)))
            return logits

    data = [(torch.randn(4, 6), torch.arange(4) % 3)]
    with pytest.raises(ValueError, match=r"ratios: 'a.weight' and 'b.weight' lose the same channels, but have the ratios 0.2 and 0.5"):
        methods.prune(Adds(), data, sparsity=0.5, granularity="channel(ratios=a:0.2|b:0.5)")
    mask = methods.prune(Adds(), data, sparsity=0.5, granularity="channel(ratios=*:0.5)")
    assert int(mask["b.weight"].any(1).sum()) == 4


def test_the_limited_network_becomes_smaller_and_computes_the_same() -> None:
    problem = chain()
    model = copy.deepcopy(problem.model)
    mask = methods.prune(model, problem.batches, sparsity=0.5, granularity="channel(floor=0.1,round_to=4)")
    small = methods.compact(model, mask, problem.batches)
    x = problem.example[0]
    torch.testing.assert_close(small(x), model(x))
    assert all(layer.out_features % 4 == 0 or layer.out_features in (10, 3) for layer in small if isinstance(layer, nn.Linear))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("round_to", "sparsity"), [(100, 0.3), (16, 0.4), (8, 0.5)])
def test_a_sparsity_that_multiples_do_not_allow_is_refused(round_to: int, sparsity: float) -> None:
    """Layers with fewer channels than the multiple lose none, and others only part of their channels."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 16, 3),
    )
    model = nn.Sequential(*layers)
    batches = [(torch.randn(4, 1, 4, 4), torch.arange(4) % 3)]
    with pytest.raises(ValueError, match="cannot be reached"):
        methods.prune(model, batches, "filter_norm", sparsity=sparsity, granularity=f"channel(round_to={round_to})")
