"""Which channels a traced network couples: networks of every kind of wiring, compared with the removal of single units by hand."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods import Problem
from methods.granularity.channel import changes_outputs, coupling_of
from methods.structure.channel_groups import removed
from methods.structure.graph_trace import traced


class Net(nn.Module):
    """Named layers of a function."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def conv(*sizes: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(*sizes, **options)  # type: ignore[arg-type]


class Attention(nn.Module):
    """Self-attention of four heads of two channels, as timm writes it, by matrix products, with a bias for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 2
        self.qkv, self.proj = nn.Linear(6, 24), nn.Linear(8, 6)
        self.bias = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("places", torch.arange(25).view(5, 5) % 9, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias[self.places.flatten()].view(n, n, -1).permute(2, 0, 1)  # type: ignore[operator]
        y = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, n, -1))
        return out


def with_class_token(m: Net, x: Tensor) -> Tensor:
    """Patches with a class token and positions, a residual block, and a scale of each channel."""
    x = m.stem(x).flatten(2).transpose(1, 2)
    x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.positions
    x = x + m.scale * m.b(F.gelu(m.a(x)))
    out: Tensor = m.head(x[:, 0])
    return out


def windows(m: Net, x: Tensor) -> Tensor:
    """Partition into windows of 2x2, roll, and back, between two layers."""
    b, _, h, w = x.shape
    x = m.stem(x).permute(0, 2, 3, 1).roll((1, 1), (1, 2))
    x = x.view(b, h // 2, 2, w // 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, x.shape[-1])
    x = m.a(x).relu().view(b, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
    out: Tensor = m.head(x.mean((1, 2)))
    return out


def space_to_depth(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    out: Tensor = m.head(mean(m.a(x).relu()))
    return out


def written_in_place(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = torch.zeros(len(x), x.shape[1] + 3, *x.shape[2:], dtype=x.dtype)
    y[:, : x.shape[1]] = x
    y[:, x.shape[1] :] = m.b(x)
    out: Tensor = m.head(mean(y.relu_()))
    return out


# name -> (network, shape of an input, free units, whether outputs are exactly those of the masked network)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, bool]] = {
    "gate": (
        lambda: Net(lambda m, x: m.head(mean((y := m.stem(x)) * torch.sigmoid(m.up(m.down(y.mean((2, 3), keepdim=True)).relu())))),
                    stem=conv(2, 6, 3), down=conv(6, 3, 1), up=conv(3, 6, 1), head=nn.Linear(6, 3)),
        (2, 4, 4), 6 + 3, True),
    "spatial gate": (
        lambda: Net(lambda m, x: m.head(mean((y := m.stem(x)) * torch.sigmoid(m.gate(torch.cat([y.mean(1, True), y.amax(1, True)], 1))))),
                    stem=conv(2, 6, 3), gate=conv(2, 1, 1), head=nn.Linear(6, 3)),
        (2, 4, 4), 6, False),
    "class token": (
        lambda: Net(with_class_token, stem=conv(2, 6, 2, stride=2), token=nn.Parameter(torch.randn(1, 1, 6)),
                    positions=nn.Parameter(torch.randn(1, 5, 6)), scale=nn.Parameter(torch.randn(6)), a=nn.Linear(6, 8), b=nn.Linear(8, 6),
                    head=nn.Linear(6, 3)),
        (2, 4, 4), 6 + 8, True),
    "windows": (lambda: Net(windows, stem=conv(2, 6, 1), a=nn.Linear(6, 5), head=nn.Linear(5, 3)), (2, 4, 4), 6 + 5, True),
    "space to depth": (lambda: Net(space_to_depth, stem=conv(2, 3, 1), a=conv(12, 5, 1), head=nn.Linear(5, 3)), (2, 4, 4), 3 + 5, True),
    "written in place": (lambda: Net(written_in_place, stem=conv(2, 4, 1), b=conv(4, 3, 1), head=nn.Linear(7, 3)), (2, 4, 4), 4, True),
    "resized": (
        lambda: Net(lambda m, x: m.head(mean(m.a(F.interpolate(F.max_pool2d(m.stem(x), 2), scale_factor=2.0, mode="bilinear")).relu())),
                    stem=conv(2, 6, 1), a=conv(6, 5, 3), head=nn.Linear(5, 3)),
        (2, 4, 4), 6 + 5, True),
    "shuffled": (
        lambda: Net(lambda m, x: m.head(F.pixel_shuffle(m.stem(x), 2).relu().mean((2, 3))), stem=conv(2, 8, 1), head=nn.Linear(2, 3)),
        (2, 4, 4), 2, True),
    "transposed": (
        lambda: nn.Sequential(conv(2, 6, 1), nn.ConvTranspose2d(6, 5, 2), nn.BatchNorm2d(5), nn.ConvTranspose2d(5, 5, 3, groups=5),
                              nn.ConvTranspose2d(5, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        (2, 4, 4), 6 + 5 + 4, True),
    "two filters for each channel": (
        lambda: nn.Sequential(conv(2, 6, 1), conv(6, 12, 3, groups=6), conv(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              nn.Linear(5, 3)),
        (2, 4, 4), 6 + 5, True),
    "one group": (
        lambda: nn.Sequential(conv(2, 6, 1), nn.GroupNorm(1, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        (2, 4, 4), 6, False),
    "two groups": (
        lambda: nn.Sequential(conv(2, 6, 1), nn.GroupNorm(2, 6), conv(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
        (2, 4, 4), 5, True),
    "heads": (
        lambda: Net(lambda m, x: m.head(m.attention(m.stem(x)).mean(1)), stem=nn.Linear(3, 6), attention=Attention(), head=nn.Linear(6, 3)),
        (5, 3), 6 + 4 + 6, True),
    "a raw matrix": (
        lambda: Net(lambda m, x: m.head(m.b(F.relu(m.stem(x) @ m.matrix))), stem=nn.Linear(4, 6), matrix=nn.Parameter(torch.randn(6, 5)),
                    b=nn.Linear(5, 7), head=nn.Linear(7, 3)),
        (4,), 7, True),
    "sum of parts": (
        lambda: Net(lambda m, x: m.head((y := m.stem(x)).view(-1, 2, y.shape[1] // 2).sum(1).relu()), stem=nn.Linear(3, 8),
                    head=nn.Linear(4, 3)),
        (3,), 4, True),
    "layer norm without parameters": (
        lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 5), nn.Linear(5, 3)), (3,), 5, True),
    "softmax over channels": (
        lambda: Net(lambda m, x: m.head(m.b(m.stem(x).softmax(1))), stem=nn.Linear(3, 6), b=nn.Linear(6, 5), head=nn.Linear(5, 3)),
        (3,), 5, True),
    "attention of torch": (
        lambda: Net(lambda m, x: m.head(m.b((y := m.stem(x)) + m.mha(y, y, y)[0]).relu().mean(1)), stem=nn.Linear(3, 8),
                    mha=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 5), head=nn.Linear(5, 3)),
        (4, 3), 5, True),
    "recurrent": (
        lambda: Net(lambda m, x: m.head(m.b(m.rnn(m.stem(x))[0][:, -1]).relu()), stem=nn.Linear(3, 6), rnn=nn.GRU(6, 8, batch_first=True),
                    b=nn.Linear(8, 5), head=nn.Linear(5, 3)),
        (4, 3), 5, True),
    "bilinear": (
        lambda: Net(lambda m, x: m.head(m.b(m.pair((y := m.stem(x)), y)).relu()), stem=nn.Linear(3, 6), pair=nn.Bilinear(6, 6, 4),
                    b=nn.Linear(4, 5), head=nn.Linear(5, 3)),
        (3,), 5, True),
    "an operation without a rule": (
        lambda: Net(lambda m, x: m.head(m.b(torch.sort(m.stem(x)).values).relu()), stem=nn.Linear(3, 6), b=nn.Linear(6, 5),
                    head=nn.Linear(5, 3)),
        (3,), 5, True),
}  # fmt: skip


def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in double precision whose parameters are those of no initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape) * 0.5 + 0.3)
            for name, b in model.named_buffers():
                if name.endswith(("mean", "var")):
                    b.copy_(torch.rand(b.shape) + 0.5)
    return model


def problem_of(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Problem:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Problem(drawn(make), [(x, torch.arange(3))])


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_each_unit_can_be_removed_alone(name: str) -> None:
    make, shape, free, exact = NETS[name]
    problem = problem_of(make, shape)
    coupling = coupling_of(problem)
    assert int(coupling.free.sum()) == free
    x = next(iter(problem.batches))[0]
    for unit in coupling.removable.nonzero().squeeze(1).tolist():
        kept = torch.arange(len(coupling.free)) != unit
        small, masked = removed(problem.model, coupling, kept), copy.deepcopy(problem.model)
        parameters = dict(masked.named_parameters())
        for weight, (first, second) in coupling.lines.items():
            parameters[weight][first == unit] = 0.0
            parameters[weight][:, second == unit] = 0.0
        found, wanted = small(x), masked(x)
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=0, atol=1e-10) == exact
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("name", NETS)
def test_the_layers_whose_removal_changes_outputs_are_known(name: str) -> None:
    make, shape, _, exact = NETS[name]
    assert changes_outputs(problem_of(make, shape)) == ([] if exact else ["stem.weight" if name == "spatial gate" else "0.weight"])


class RmsScale(nn.Module):
    """A root mean square over channels, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


class L2Scale(nn.Module):
    """Division by the Euclidean norm over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


# layer between two linear layers -> whether outputs stay equal (with a bias before it, without one), by the formulas
BETWEEN = {
    "relu": (nn.ReLU, True, True),
    "sigmoid": (nn.Sigmoid, True, True),
    "batch norm": (lambda: nn.BatchNorm1d(6), True, True),
    "layer norm": (lambda: nn.LayerNorm(6), False, False),
    "root mean square": (lambda: nn.RMSNorm(6), False, False),
    "root mean square by hand": (RmsScale, False, False),
    "one group": (lambda: nn.GroupNorm(1, 6), False, False),
    "Euclidean norm": (L2Scale, False, True),  # zeros do not change it
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BETWEEN)
@torch.no_grad()
def test_when_outputs_stay_equal(name: str, bias: bool) -> None:
    between, with_bias, without = BETWEEN[name]
    problem = problem_of(lambda: nn.Sequential(nn.Linear(4, 6, bias=bias), between(), nn.Linear(6, 3)), (4,))
    coupling = coupling_of(problem)
    assert coupling.free.tolist() == [True] * 6 + [False] * 3
    small, masked = removed(problem.model, coupling, torch.arange(9) != 2), copy.deepcopy(problem.model)
    masked[0].weight[2], masked[2].weight[:, 2] = 0.0, 0.0  # type: ignore[index, union-attr]
    x = next(iter(problem.batches))[0]
    equal = with_bias if bias else without
    assert torch.allclose(small(x), masked(x), rtol=0, atol=1e-10) == equal
    # `changes_outputs` draws its own parameters, so it does not depend on the bias's value, only on whether there is one.
    assert (changes_outputs(problem) == []) == equal


def test_a_pool_of_few_units_is_tried_like_a_large_one() -> None:
    """Layers of three channels with the number written into the network, each next to a layer of 100."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.ModuleList(nn.Linear(6, 3) for _ in range(8))
            self.back = nn.ModuleList(nn.Linear(3, 6) for _ in range(8))
            self.wide = nn.ModuleList(nn.Linear(6, 100) for _ in range(8))
            self.down = nn.ModuleList(nn.Linear(100, 6) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            for narrow, back, wide, down in zip(self.narrow, self.back, self.wide, self.down, strict=True):
                x = x + back(narrow(x).reshape(-1, 3).relu())
                x = x + down(wide(x).relu())
            return x

    coupling = coupling_of(problem_of(Blocks, (6,)))
    assert not any(bool(coupling.free[coupling.lines[f"narrow.{i}.weight"][0]].any()) for i in range(8))
    assert all(bool(coupling.free[coupling.lines[f"wide.{i}.weight"][0]].all()) for i in range(8))


def test_channels_that_are_divided_into_a_fixed_number_of_parts_stay() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        out: Tensor = m.head(m.b(m.a(x).view(len(x), 4, -1).cumsum(2).flatten(1)).relu())
        return out

    coupling = coupling_of(problem_of(lambda: Net(forward, a=nn.Linear(6, 16), b=nn.Linear(16, 5), head=nn.Linear(5, 3)), (6,)))
    assert coupling.free.tolist() == [False] * 16 + [True] * 5 + [False] * 3


def test_a_message_names_what_stays() -> None:
    problem = problem_of(NETS["an operation without a rule"][0], (3,))
    # Four of the five units of b, of 6 + 3 weights, out of 3 * 6 + 6 * 5 + 5 * 3.
    why = r"\(no channel of 'stem.weight' can be removed; channels read by sort stay\)"
    with pytest.raises(ValueError, match=rf"the largest possible is {4 * 9 / 63:.4g} {why}"):
        methods.prune(problem.model, problem.batches, sparsity=0.9, granularity="channel")
    with pytest.raises(ValueError, match=r"without changing its inputs or outputs \(no channel of 'weight' can be removed\)"):
        coupling_of(problem_of(lambda: nn.Linear(3, 3), (3,)))


def test_a_head_takes_its_bias_with_it() -> None:
    problem = problem_of(NETS["heads"][0], (5, 3))
    coupling = coupling_of(problem)
    unit = int(coupling.lines["attention.qkv.weight"][0][0])
    small = removed(problem.model, coupling, torch.arange(len(coupling.free)) != unit)
    assert small.attention.num_heads == 3  # type: ignore[union-attr]
    assert torch.equal(small.attention.bias, problem.model.attention.bias[:, 1:])  # type: ignore[union-attr, index]
    assert coupling.sizes[unit] == 6 * 6 + 2 * 6


def test_the_same_attributes_with_another_meaning_are_no_attention() -> None:
    """A module with the attributes of attention that multiplies heads with each other keeps its heads."""

    class Pooled(Attention):
        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 8).unbind(2)
            out: Tensor = self.proj(q * k.flip(2) * v)
            return out

    problem = problem_of(
        lambda: Net(lambda m, x: m.head(m.b(m.a(x).relu()).mean(1)), a=Pooled(), b=nn.Linear(6, 5), head=nn.Linear(5, 3)), (5, 6)
    )
    coupling = coupling_of(problem)
    assert not coupling.free[coupling.lines["a.qkv.weight"][0]].any()
    assert coupling.free[coupling.lines["b.weight"][0]].all()


def test_channels_of_weights_that_are_not_pruned_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    shapes = {n: p.shape for n, p in model.named_parameters() if n in ("0.weight", "4.weight", "6.weight")}
    coupling = traced(model, shapes, (4,))
    assert list(coupling.shapes) == ["0.weight", "4.weight", "6.weight"]
    assert coupling.free.tolist() == [False] * 6 + [False] * 5 + [True] * 7 + [False] * 3
    assert coupling.sizes[-10:-3].tolist() == [5 + 3] * 7
    kept = torch.ones_like(coupling.free)
    kept[12] = False
    assert torch.equal(coupling.kept_units(coupling.mask(kept)), kept)


def test_matrices_of_other_modules_count_and_have_no_units() -> None:
    model = NETS["recurrent"][0]()
    shapes = {n: p.shape for n, p in model.named_parameters() if p.dim() > 1}
    coupling = traced(model, shapes, (4, 3))
    assert coupling.weights == 3 * 6 + 24 * 6 + 24 * 8 + 8 * 5 + 5 * 3
    assert (coupling.lines["rnn.weight_ih_l0"][0] == -1).all()
    assert (coupling.lines["rnn.weight_hh_l0"][1] == -1).all()
    assert int(coupling.free.sum()) == 5


def test_inputs_may_be_integers() -> None:
    """A table whose columns are read by a layer and, as its weight, by the output layer."""
    layers = {"table": nn.Embedding(7, 4), "a": nn.Linear(4, 5), "b": nn.Linear(5, 4), "out": nn.Linear(4, 7, bias=False)}
    model = Net(lambda m, x: m.out(m.table(x) + m.b(m.a(m.table(x)).relu())), **layers)
    model.out.weight = model.table.weight  # type: ignore[assignment, union-attr]
    coupling = coupling_of(Problem(model, [(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2))]))
    assert coupling.free[coupling.lines["a.weight"][0]].all()
    assert int(coupling.free.sum()) == 5


def test_all_outputs_of_a_network_stay() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, object]:
            y = self.b(self.a(x))
            return {"features": [y], "logits": self.d(self.c(y))}

    shapes = {n: p.shape for n, p in Several().named_parameters() if p.dim() > 1}
    coupling = traced(Several(), shapes, (3,))
    assert coupling.free.tolist() == [True] * 6 + [False] * 5 + [True] * 4 + [False] * 3


class Products(nn.Module):
    """A network of raw parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w @ self.v


def test_networks_without_layers_and_networks_that_cannot_be_copied_are_refused_with_the_reason() -> None:
    data = [(torch.randn(4, 3), torch.arange(4) % 2)]
    with pytest.raises(ValueError, match=r"^no channel of this network can be removed: it calls no Linear or Conv layer$"):
        methods.prune(Products(), data, sparsity=0.5, granularity="channel", include="*")
    with pytest.raises(ValueError, match=r"^'synflow' does not support this network: it has no layer with weights$"):
        methods.prune(Products(), data, "synflow", sparsity=0.5, include="*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    normed(data[0][0])  # the weight is now the result of a computation
    with pytest.raises(ValueError, match=r"^the network cannot be copied, because the weight of layer '0' .*remove_weight_norm"):
        methods.prune(normed, data, sparsity=0.3, granularity="channel")


@pytest.mark.parametrize("pack", [lambda f: (f,), lambda f: [f, f + 1], lambda f: {"out": f, "both": (f, None)}])
def test_outputs_inside_other_things_are_compared_tensor_by_tensor(pack: Callable[[Tensor], Any]) -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return pack(self.h(self.a(x).relu()))

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs["out"] if isinstance(outputs, dict) else outputs[0], targets)

    model, x = Packs(), torch.randn(8, 6)
    mask = methods.prune(model, [(x, torch.arange(8) % 3)], "snip", sparsity=0.5, granularity="channel", loss=loss)
    small = methods.compact(model, mask, input_shape=(6,))
    kept = int(mask["a.weight"].any(1).sum())
    assert kept in (4, 5)
    assert small.a.weight.shape == (kept, 6)
    unpacked = [out["out"] if isinstance(out, dict) else out[0] for out in (model(x), small(x))]
    torch.testing.assert_close(*unpacked)
