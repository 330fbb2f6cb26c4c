"""SynFlow: against products of |weights| along enumerated paths, its conservation laws, and without collapse."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from bench.networks import build
from methods import Mask, Problem, effective_sparsity, kept_weights

Values = dict[str, Tensor]


class Shape:
    """Inputs of which only the shape may be asked."""

    def __init__(self, *shape: int) -> None:
        self.input_shape = shape

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("synflow read the data")
        yield


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def scores(model: nn.Module, *shape: int, **options: Any) -> Values:
    return methods.scores(model, Shape(*shape), "synflow", **options)


def pruned(model: nn.Module, shape: tuple[int, ...], sparsity: float, rounds: int) -> Mask:
    return methods.prune(copy.deepcopy(model), Shape(*shape), "synflow", sparsity=sparsity, n_rounds=rounds)


def deep(depth: int = 7, width: int = 40, inputs: int = 200) -> nn.Module:
    """The first layer is the largest; R flows evenly through all."""
    inner = [m for _ in range(depth - 2) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), *inner, nn.Linear(width, 10))


def close(found: Values, wanted: Values, rtol: float = 1e-12) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[n], wanted[n].double(), rtol=rtol, atol=0.0) for n in wanted)


class Residual(nn.Module):
    """head(h + b(relu(a(h)))), h = stem(x), with biases that R leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + self.b(torch.relu(self.a(h))))


# --- the formula


def test_the_score_is_the_sum_over_all_paths_through_the_weight() -> None:
    model = seeded(Residual).double()
    w = {n: p.detach().abs() for n, p in methods.prunable(model).items()}
    through = {n: torch.zeros_like(v) for n, v in w.items()}
    total = 0.0
    for i, h, k, o in itertools.product(range(2), range(3), range(3), range(2)):
        branches = [[("a.weight", (r, h)), ("b.weight", (k, r))] for r in range(4)] + ([[]] if h == k else [])
        for branch in branches:
            path = [("stem.weight", (h, i)), *branch, ("head.weight", (o, k))]
            product = math.prod(float(w[n][at]) for n, at in path)
            total += product
            for n, at in path:
                through[n][at] += product
    assert close(scores(model, 2), {n: v / total for n, v in through.items()})


def test_a_convolution_counts_the_paths_through_every_pixel() -> None:
    """One 2x2 filter of two entries on 3x3 ones: 4 pixels, then weights 1, -2, 3, -4 on them."""
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[[2.0, -1.0], [0.0, 5.0]]]]))
        model[3].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    found = scores(model, 1, 3, 3)
    assert found["0.weight"].flatten().tolist() == pytest.approx([2 / 8, 1 / 8, 0.0, 5 / 8])
    assert found["3.weight"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_biases_signs_and_the_scale_of_layers_do_not_change_the_shares() -> None:
    model = seeded(deep)
    plain = scores(model, 200)
    with torch.no_grad():
        for layer in model[::2]:
            layer.bias.normal_(std=100.0)
            layer.weight.mul_(-3.0)
    assert close(scores(model, 200), plain, rtol=1e-6)


def test_layers_and_units_conserve_the_flow() -> None:
    """Every path passes every layer: the scores of each sum to R. Into a unit flows what flows out of it."""
    found = list(scores(seeded(deep), 200).values())
    assert [float(s.sum()) for s in found] == pytest.approx([1.0] * 7, rel=1e-12)
    for before, after in itertools.pairwise(found):
        assert torch.allclose(before.sum(1), after.sum(0), rtol=1e-12)


def normed(momentum: bool = False) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if momentum:
        norm = net[1]
        norm.weight.data.normal_()
        norm.bias.data.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3.0)
    return net


def folded(net: nn.Module, factor: Tensor) -> Values:
    """Scores with the norm taken out and its factor on the filters."""
    same = copy.deepcopy(net).double()
    with torch.no_grad():
        same[0].weight.mul_(factor.view(-1, 1, 1, 1))
    same[1] = nn.Identity()
    return scores(same, 2, 6, 6)


def test_batch_norm_of_an_initial_network_is_none() -> None:
    net = seeded(normed)
    assert close(scores(net, 2, 6, 6), folded(net, torch.ones(4)), rtol=1e-9)


def test_batch_norm_of_a_trained_network_is_a_factor_of_the_channel() -> None:
    net = seeded(lambda: normed(True))
    factor = net[1].weight.detach().abs().double() / (net[1].running_var.double() + net[1].eps).sqrt()
    assert close(scores(net, 2, 6, 6), folded(net, factor), rtol=1e-9)
    assert not close(scores(net, 2, 6, 6), folded(net, torch.ones(4)), rtol=0.1)


def test_one_zero_scale_is_a_dead_channel_and_all_are_a_branch_that_waits() -> None:
    net = seeded(normed)
    with torch.no_grad():
        net[1].weight[2] = 0.0
    assert not scores(net, 2, 6, 6)["0.weight"][2].any()
    plain = scores(seeded(normed), 2, 6, 6)
    nn.init.zeros_(net[1].weight)
    assert close(scores(net, 2, 6, 6), plain)


@pytest.mark.filterwarnings("ignore:'synflow' gives")  # at 1x1 pixels the rim of a kernel sees padding only
def test_residual_branches_that_start_at_zero_are_scored() -> None:
    """timm's ResNets start the last γ of every branch at zero."""
    model = seeded(lambda: build.create("resnet18", (3, 32, 32), 10))
    assert not model.layer1[0].bn2.weight.any()
    assert all(s.any() for s in scores(model, 3, 32, 32).values())


def test_masked_weights_carry_nothing() -> None:
    model = seeded(deep)
    mask = methods.full_mask(model)
    mask["2.weight"][:, 5] = False
    methods.apply_mask(model, mask)
    found = scores(model, 200)
    assert not found["2.weight"][:, 5].any()
    assert not found["0.weight"][5].any(), "what leads there leads nowhere"


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_products_beyond_the_range_of_doubles(value: float) -> None:
    """Products of 18 weights of 1e±30 would be 1e±540; the shares are those of weights of one."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(18)))
    for p in model.parameters():
        nn.init.constant_(p, value)
    model[0].weight.data[0, 0] *= 2
    found = scores(model, 3)
    assert all(s.isfinite().all() for s in found.values())
    assert found["0.weight"].flatten().tolist() == pytest.approx([0.2] + [0.1] * 8, rel=1e-6)
    assert found["17.weight"].flatten().tolist() == pytest.approx([1 / 9] * 9, rel=1e-6)


def test_beyond_what_a_factor_can_mend_is_an_error() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(60)))
    for p in model.parameters():
        nn.init.constant_(p, 1e30)
    with pytest.raises(ValueError, match="cannot be represented in double precision"):
        scores(model, 3)


def test_a_network_without_a_path_left_scores_zero() -> None:
    model = seeded(deep)
    nn.init.zeros_(model[4].weight)
    with pytest.warns(UserWarning, match="'synflow' gives 100% of the weights the same score"):
        assert not any(s.any() for s in scores(model, 200).values())


# --- rounds


def test_densities_shrink_by_an_equal_factor() -> None:
    rounds = methods.make("criteria", "synflow", {}).rounds(0.0, 0.99)
    assert len(rounds) == 100
    assert rounds[-1] == 0.99
    assert [1 - s for s in rounds] == pytest.approx([0.01 ** (k / 100) for k in range(1, 101)])


@pytest.mark.filterwarnings("ignore:'synflow' gives")  # a single round leaves no path
def test_a_second_round_scores_the_network_that_the_first_has_left() -> None:
    model, weight = seeded(deep), methods.make("granularities", "weight", {})
    step = copy.deepcopy(model)
    half = weight.cut(Problem(step, ()), methods.Scores(scores(step, 200)), 1 - 0.1**0.5)
    methods.apply_mask(step, half)
    wanted = weight.cut(Problem(step, (), mask=half), methods.Scores(scores(step, 200)), 0.9)
    found, once = pruned(model, (200,), 0.9, 2), pruned(model, (200,), 0.9, 1)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert any(not torch.equal(once[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("sparsity", [0.9, 0.99, 0.997])
def test_one_round_collapses_a_deep_network_and_a_hundred_do_not(sparsity: float) -> None:
    model = seeded(deep)
    once, often = (pruned(model, (200,), sparsity, n) for n in (1, 100))
    assert not once["0.weight"].any(), "the largest layer has the smallest scores"
    assert effective_sparsity(model, once, (200,)) == 1.0
    assert all(m.any() for m in often.values())
    kept, total = kept_weights(often)
    alive = 1 - effective_sparsity(model, often, (200,))  # type: ignore[operator]
    assert alive * total > 0.9 * kept


def test_a_hundred_rounds_leave_a_convolutional_network_connected() -> None:
    model = seeded(lambda: build.create("lenet5", (1, 8, 8), 10))
    assert effective_sparsity(model, pruned(model, (1, 8, 8), 0.9, 1), (1, 8, 8)) == 1.0
    assert effective_sparsity(model, pruned(model, (1, 8, 8), 0.99, 100), (1, 8, 8)) == pytest.approx(0.99, abs=1e-3)


# --- what it may be asked of


def test_networks_that_are_no_sum_over_paths_are_refused_in_one_line() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"'synflow' does not support this network: .*: it contains layer_norm, gelu$") as error:
        methods.prune(model, Shape(4), "synflow", sparsity=0.5)
    assert "\n" not in str(error.value)


def test_double_and_single_precision_networks_agree() -> None:
    model = seeded(deep)
    single, twice = scores(model, 200), scores(copy.deepcopy(model).double(), 200)
    assert close(single, twice)
    assert {s.dtype for s in single.values()} == {torch.float64}
