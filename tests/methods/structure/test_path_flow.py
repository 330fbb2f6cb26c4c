"""Weights on a path from an input to an output: by hand, by enumeration of all paths, and where paths are not defined."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import methods
from bench.networks import build
from methods import Mask, effective_sparsity, full_mask
from methods.structure.path_flow import Connections, Flow, undefined


def cut(model: nn.Module, **positions: list[tuple[int, ...]]) -> Mask:
    """The full mask without these entries; `a__weight` stands for `a.weight`."""
    mask = full_mask(model)
    for name, entries in positions.items():
        for entry in entries:
            mask[name.replace("__", ".")][entry] = False
    return mask


def dead(model: nn.Module, mask: Mask, shape: tuple[int, ...]) -> int:
    """How many weights effective sparsity counts as gone."""
    found = effective_sparsity(model, mask, shape)
    assert found is not None
    total = sum(m.numel() for m in mask.values())
    assert found * total == pytest.approx(round(found * total))
    return round(found * total)


class Net(nn.Module):
    """Named layers of a function."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


ACTIVATIONS = [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.ReLU6(), nn.Softplus(), nn.PReLU()]


def mlp(activation: nn.Module | None = None) -> nn.Module:
    """3 -> 4 -> 4 -> 2: 12 + 16 + 8 weights."""
    a = activation or nn.ReLU()
    return Net(lambda m, x: m.c(m.act(m.b(m.act(m.a(x))))), a=nn.Linear(3, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2), act=a)


# --- by hand


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_a_unit_without_inputs_takes_its_outputs_with_it(activation: nn.Module) -> None:
    model = mlp(activation)
    mask = cut(model, a__weight=[(1, 0), (1, 1), (1, 2)])
    assert dead(model, mask, (3,)) == 3 + 4


def test_a_unit_without_outputs_takes_its_inputs_with_it() -> None:
    model = mlp()
    mask = cut(model, c__weight=[(0, 2), (1, 2)])
    assert dead(model, mask, (3,)) == 2 + 4


def test_one_weight_left_keeps_the_unit() -> None:
    model = mlp()
    assert dead(model, cut(model, a__weight=[(1, 0), (1, 1)], c__weight=[(0, 2)]), (3,)) == 3


def test_death_spreads_over_several_layers() -> None:
    model = mlp()
    mask = full_mask(model)
    mask["b.weight"][:] = False
    mask["b.weight"][0, 0] = True  # one path is left: unit 0, unit 0
    assert dead(model, mask, (3,)) == 36 - (3 + 1 + 2)


def test_a_collapsed_layer_takes_a_sequential_network_with_it() -> None:
    model = mlp()
    mask = full_mask(model)
    mask["b.weight"][:] = False
    assert effective_sparsity(model, mask, (3,)) == 1.0


def test_nothing_dead_is_the_direct_sparsity() -> None:
    model = mlp()
    mask = cut(model, a__weight=[(0, 0), (2, 1)], b__weight=[(3, 3)])
    assert dead(model, mask, (3,)) == 3
    assert effective_sparsity(model, full_mask(model), (3,)) == 0.0


def residual(width: int = 3) -> nn.Module:
    """head(h + b(relu(a(h)))), h = stem(x)."""
    return Net(
        lambda m, x: m.head(m.stem(x) + m.b(torch.relu(m.a(m.stem(x))))),
        stem=nn.Linear(2, width), a=nn.Linear(width, width), b=nn.Linear(width, width), head=nn.Linear(width, 2),
    )  # fmt: skip


def test_a_skip_keeps_a_path_alive_and_only_the_branch_dies() -> None:
    model = residual()
    mask = full_mask(model)
    mask["a.weight"][:] = False
    assert dead(model, mask, (2,)) == 9 + 9
    mask["stem.weight"][:] = False
    assert effective_sparsity(model, mask, (2,)) == 1.0


def test_a_unit_that_the_branch_alone_feeds_dies_with_it() -> None:
    model = residual()
    # h_0 has no inputs: the head's column 0 lives by the branch, until b's row 0 is gone too.
    assert dead(model, cut(model, stem__weight=[(0, 0), (0, 1)]), (2,)) == 2 + 3
    assert dead(model, cut(model, stem__weight=[(0, 0), (0, 1)], b__weight=[(0, 0), (0, 1), (0, 2)]), (2,)) == 2 + 3 + 3 + 2


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(2), nn.Identity()])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4), nn.Identity()])
def test_a_channel_without_inputs_takes_its_filters_with_it(pool: nn.Module, norm: nn.Module) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(inplace=True), pool, nn.Conv2d(4, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    mask = full_mask(model)
    mask["0.weight"][1] = False
    assert dead(model, mask, (2, 4, 4)) == 18 + 5 * 9
    mask["7.weight"][:, 2] = False
    assert dead(model, mask, (2, 4, 4)) == 18 + 5 * 9 + 3 + 3 * 9


@pytest.mark.parametrize("pool", [nn.MaxPool2d(4), nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1)])
def test_max_pooling_hides_no_path(pool: nn.Module) -> None:
    """One kernel entry at a time, on a map with a border of padding: whichever pixel is the largest, all entries are on paths."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), pool, nn.Flatten(), nn.Linear(1, 1))
    for k in itertools.product(range(3), repeat=2):
        mask = cut(model, **{"0__weight": [(0, 0, *k)]})
        assert dead(model, mask, (1, 4, 4)) == 1


def test_a_global_maximum_by_amax_hides_no_path() -> None:
    model = Net(lambda m, x: m.head(m.conv(x).amax((2, 3))), conv=nn.Conv2d(1, 2, 2), head=nn.Linear(2, 1))
    assert dead(model, full_mask(model), (1, 4, 4)) == 0
    assert dead(model, cut(model, head__weight=[(0, 1)]), (1, 4, 4)) == 1 + 4


def test_grouped_and_transposed_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.ConvTranspose2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    mask = full_mask(model)
    mask["0.weight"][:2] = False  # the first group
    assert dead(model, mask, (2, 3, 3)) == 2 + 2 * 3 * 4


def test_a_kernel_entry_that_meets_only_padding_is_on_no_path() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 2))
    assert dead(model, full_mask(model), (2, 1, 1)) == 2 * 3 * 8
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(12, 2))
    assert dead(model, full_mask(model), (2, 2, 2)) == 0


def test_a_constant_is_no_input() -> None:
    """A unit that only its bias reaches: what follows is a constant."""
    model = mlp(nn.Sigmoid())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    assert dead(model, cut(model, b__weight=[(0, k) for k in range(4)]), (3,)) == 4 + 2


def test_values_play_no_part() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    mask = cut(model, **{"0__weight": [(1, 0, i, j) for i in range(3) for j in range(3)]})
    wanted = dead(model, mask, (1, 4, 4))
    for value in (0.0, -1e30, 1e-30):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(value)
            model[1].running_var.fill_(1e8)
        assert dead(model, mask, (1, 4, 4)) == wanted == 9 + 2 * 4


def test_depth_neither_vanishes_nor_overflows() -> None:
    """Up to 64⁶⁰⁰ paths pass a unit of a network of 600 layers, or a single one."""
    wide = nn.Sequential(*(nn.Linear(64, 64) for _ in range(600)))
    mask = full_mask(wide)
    mask["300.weight"][0] = False
    assert dead(wide, mask, (64,)) == 64 + 64
    thin = {n: torch.eye(64).bool() for n in mask}
    thin["0.weight"][0, 0] = False
    assert dead(wide, thin, (64,)) == 600 * (64 * 64 - 63)


def test_a_layer_that_is_not_used_is_on_no_path() -> None:
    model = Net(lambda m, x: m.body(x), body=nn.Linear(3, 2), spare=nn.Linear(4, 4))
    assert dead(model, full_mask(model), (3,)) == 16


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2)
    ).train()
    model[0].requires_grad_(False)
    before, state, mask = copy.deepcopy(model.state_dict()), torch.get_rng_state(), full_mask(model)
    effective_sparsity(model, mask, (1, 4, 4))
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.all() and m.dtype is torch.bool and not m.requires_grad for m in mask.values())


# --- by enumeration


def on_paths(edges: list[tuple[str, int, int, str, int]], inputs: list[int], outputs: set[tuple[str, int]]) -> set[int]:
    """The numbers of the edges (from layer, from unit, number, to layer, to unit) on any path, each path walked to its end."""
    following: dict[tuple[str, int], list[tuple[int, tuple[str, int]]]] = {}
    for source, i, number, target, j in edges:
        following.setdefault((source, i), []).append((number, (target, j)))
    found: set[int] = set()

    def walk(node: tuple[str, int], taken: tuple[int, ...]) -> None:
        if node in outputs:
            found.update(taken)
        for number, target in following.get(node, []):
            walk(target, (*taken, number))

    for i in inputs:
        walk(("in", i), ())
    return found


def drawn(model: nn.Module, seed: int, density: float) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(w.shape, generator=generator) < density for n, w in methods.prunable(model).items()}


def edges_of(mask: Mask, places: dict[str, tuple[str, str]]) -> list[tuple[str, int, int, str, int]]:
    """One edge for each kept weight; `places`: name -> (layer it reads, layer it writes)."""
    numbers = itertools.count()
    return [
        (places[n][0], i, next(numbers), places[n][1], j)
        for n, m in mask.items()
        for j in range(m.shape[0])
        for i in range(m.shape[1])
        if m[j, i]
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.1, 0.9), skip=st.booleans())
def test_it_is_the_enumeration_of_all_paths(seed: int, density: float, skip: bool) -> None:
    model = residual() if skip else mlp()
    mask = drawn(model, seed, density)
    if skip:
        places = {"stem.weight": ("in", "h"), "a.weight": ("h", "r"), "b.weight": ("r", "sum"), "head.weight": ("sum", "out")}
        around = [("h", i, -1, "sum", i) for i in range(3)]
    else:
        places, around = {"a.weight": ("in", "1"), "b.weight": ("1", "2"), "c.weight": ("2", "out")}, []
    inputs = list(range(2 if skip else 3))
    live = on_paths(edges_of(mask, places) + around, inputs, {("out", k) for k in range(2)}) - {-1}
    total = sum(m.numel() for m in mask.values())
    assert dead(model, mask, (len(inputs),)) == total - len(live)


# --- where there are no paths


def gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def stacked(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *inner, nn.Flatten(), nn.Linear(64, 2))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


BROKEN = {
    "layer_norm": lambda: stacked(nn.LayerNorm(4)),
    "group_norm": lambda: stacked(nn.GroupNorm(2, 4)),
    "mul": lambda: stacked(Net(lambda m, x: gate(x))),
    "softmax": lambda: stacked(Net(lambda m, x: x.softmax(1))),
    "add": lambda: stacked(Position()),
    "weights": lambda: stacked(Standardised(4, 4, 1)),
    "negative": lambda: stacked(Net(lambda m, x: m.conv(-x), conv=nn.Conv2d(4, 4, 1))),
    "real numbers": lambda: nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)),
}


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 4, 1, 1) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("view", [Flow, Connections])
def test_networks_without_paths_are_named(name: str, view: type[Flow]) -> None:
    model = BROKEN[name]()
    reason = undefined(model, (2, 6, 6), view)
    assert reason is not None
    assert name in reason
    assert "\n" not in reason
    assert effective_sparsity(model, full_mask(model), (2, 6, 6)) is None


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.ReLU6(), nn.Hardswish(), nn.Softplus(), nn.Mish()]
)
def test_activations_that_bend_on_positive_numbers_have_connections_and_no_flow(activation: nn.Module) -> None:
    model = mlp(activation)
    assert undefined(model, (3,)) is not None
    assert undefined(model, (3,), Connections) is None


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.Identity()])
def test_activations_that_are_straight_on_positive_numbers_have_both(activation: nn.Module) -> None:
    model = mlp(activation)
    assert undefined(model, (3,)) is undefined(model, (3,), Connections) is None


def test_a_maximum_that_is_not_replaced_has_no_connections() -> None:
    model = Net(lambda m, x: m.head(m.a(x).max(1, keepdim=True).values), a=nn.Linear(3, 4), head=nn.Linear(1, 2))
    assert undefined(model, (3,)) is None
    assert undefined(model, (3,), Connections) is not None


def test_batch_norm_over_the_batch_has_no_flow() -> None:
    assert undefined(stacked(nn.BatchNorm2d(4)), (2, 6, 6)) is None
    reason = undefined(stacked(nn.BatchNorm2d(4, track_running_stats=False)), (2, 6, 6))
    assert reason is not None
    assert "batch_norm" in reason


def test_the_answer_does_not_depend_on_the_weights() -> None:
    model = stacked(nn.LayerNorm(4))
    nn.init.zeros_(model[3].weight)
    assert undefined(model, (2, 6, 6)) is not None


def test_a_changed_network_is_asked_again() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert undefined(model, (3,)) is None
    model[1] = nn.GELU()
    assert undefined(model, (3,)) is not None


SHAPES = {"mlp": (1, 8, 8), "lenet5": (1, 8, 8), "vit_micro_patch4": (1, 8, 8)}


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet20", "vgg11_bn", "resnet18", "regnetx_002", "densenet121"])
def test_networks_of_relu_have_flow_and_connections(name: str) -> None:
    shape = SHAPES.get(name, (3, 32, 32))
    model = build.create(name, shape, 10)
    assert undefined(model, shape) is undefined(model, shape, Connections) is None


@pytest.mark.parametrize(
    ("name", "found", "connected"),
    [
        ("vit_micro_patch4", "layer_norm, scaled_dot_product_attention, gelu", False),
        ("convnext_atto", "layer_norm, gelu", False),
        ("mobilenetv3_small_100", "hardswish, hardsigmoid, mul", False),
        ("efficientnet_b0", "silu, sigmoid, mul", False),
        ("mobilenetv2_100", "hardtanh", True),
    ],
)
def test_networks_that_gate_normalise_or_attend_have_no_flow(name: str, found: str, connected: bool) -> None:
    shape = SHAPES.get(name, (3, 32, 32))
    model = build.create(name, shape, 10)
    reason = undefined(model, shape)
    assert reason is not None
    assert reason.endswith(found)
    assert (undefined(model, shape, Connections) is None) == connected
