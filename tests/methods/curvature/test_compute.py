"""Curvature against dense Jacobians: every layer that is captured, every one that falls back, diagonal and Kronecker-factored."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from timm.layers import LayerNorm2d as TimmNorm2d
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods import Problem
from methods.curvature import accumulators, passes
from methods.curvature.blocks import Diagonal, Kronecker
from methods.curvature.compute import curvature
from methods.curvature.loss_factors import sample_labels, softmax_factor
from methods.curvature.per_sample import sample_gradients

Data = list[tuple[Tensor, Tensor]]
Values = dict[str, Tensor]
Make = Callable[[], nn.Module]

engine = importlib.import_module("methods.curvature.compute")  # not the function of the package
CLASSES = 3


def build(make: Make, seed: int = 0) -> nn.Module:
    """In double precision and eval mode, no parameter and no statistic at a special value such as 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
            for m in model.modules():
                if isinstance(m, nn.modules.batchnorm._BatchNorm):
                    m.running_mean.normal_()
                    m.running_var.uniform_(0.5, 2.0)
    return model


def inputs(*shape: int, sizes: tuple[int, ...] = (3, 2), seed: int = 0) -> Data:
    """Batches of the given sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, *shape, generator=generator, dtype=torch.float64), torch.randint(0, CLASSES, (n,), generator=generator))
        for n in sizes
    ]


def together(data: Data) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    return x, y


def jacobians(model: nn.Module, x: Tensor) -> tuple[Tensor, Values]:
    """Outputs (n, classes), and name -> (n, classes, *shape): one sample and one output at a time."""
    parameters = dict(model.named_parameters())
    frozen = [p for p in parameters.values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    outputs, rows = [], []
    for n in range(len(x)):
        f = model(x[n : n + 1])[0]
        outputs.append(f.detach())
        rows.append(
            [torch.autograd.grad(z, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True) for z in f]
        )
    for p in frozen:
        p.requires_grad_(False)
    return torch.stack(outputs), {
        name: torch.stack([torch.stack([row[k] for row in sample]) for sample in rows]) for k, name in enumerate(parameters)
    }


def cotangents(kind: str, f: Tensor, y: Tensor, loss: Any = F.cross_entropy) -> Tensor:
    """The matrix between Jᵀ and J, (n, classes, classes), of "ef" and "ggn"."""
    if kind == "ggn":
        p = f.softmax(1)
        return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    g = []
    for a, b in zip(f, y, strict=True):
        leaf = a.clone().requires_grad_()
        g.append(torch.autograd.grad(loss(leaf.unsqueeze(0), b.unsqueeze(0)), leaf)[0])
    return torch.stack([torch.outer(v, v) for v in g])


def dense_diagonal(model: nn.Module, data: Data, kind: str, loss: Any = F.cross_entropy) -> Values:
    """Σ_n diag(Jᵀ C J)."""
    x, y = together(data)
    f, j = jacobians(model, x)
    c = cotangents(kind, f, y, loss)
    return {name: torch.einsum("na...,nab,nb...->...", v, c, v) for name, v in j.items()}


def dense_block(model: nn.Module, data: Data, kind: str, name: str) -> Tensor:
    """Σ_n Jᵀ C J of one parameter."""
    x, y = together(data)
    f, j = jacobians(model, x)
    flat = j[name].flatten(2)
    return torch.einsum("nai,nab,nbj->ij", flat, cotangents(kind, f, y), flat)


def close(found: Values, wanted: Values, rtol: float = 1e-9) -> bool:
    return found.keys() == wanted.keys() and all(near(found[n], wanted[n], rtol) for n in wanted)


def near(found: Tensor, wanted: Tensor, rtol: float = 1e-9) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=rtol, atol=rtol * 1e-3 * float(wanted.abs().max()) + 1e-300)


@pytest.fixture
def fallen(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of parameters that were taken through vmap."""
    names: set[str] = set()
    real = passes.add_directly

    def spy(model: nn.Module, x: Tensor, columns: list[Tensor], rest: Values, totals: Any) -> None:
        names.update(rest)
        real(model, x, columns, rest, totals)

    monkeypatch.setattr(passes, "add_directly", spy)
    return names


# --- layers of every type


class Flow(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def conv(layer: nn.Module, channels: int, *between: nn.Module) -> nn.Module:
    """The layer under a smooth network with a head."""
    pool: dict[Any, nn.Module] = {nn.Conv1d: nn.AdaptiveAvgPool1d(2), nn.Conv3d: nn.AdaptiveAvgPool3d((2, 1, 1))}
    halves = pool.get(type(layer), nn.AdaptiveAvgPool2d((2, 1)))
    return nn.Sequential(layer, *between, nn.Tanh(), halves, nn.Flatten(), nn.Linear(2 * channels, CLASSES))


CONVOLUTIONS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "strides": lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 3), padding=(2, 0)),
    "dilation": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "dilations": lambda: nn.Conv2d(4, 6, (2, 3), dilation=(3, 1), stride=(2, 1)),
    "same": lambda: nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "grouped without bias": lambda: nn.Conv2d(4, 6, 2, groups=2, bias=False, stride=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "depthwise, two for each": lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2, dilation=2, padding=3),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "1x1, stride 2": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "1x1, padded": lambda: nn.Conv2d(4, 6, 1, padding=1),
    "1x1, grouped": lambda: nn.Conv2d(4, 6, 1, groups=2),
    "1x5": lambda: nn.Conv2d(4, 6, (1, 5), padding=(0, 2)),
    "one position": lambda: nn.Conv2d(4, 6, (7, 6)),
    "rest beyond the last stride": lambda: nn.Conv2d(4, 6, 2, stride=4),
    "wide for its channels": lambda: nn.Conv2d(4, 4, (5, 1), groups=4, padding=(2, 3)),
}


@pytest.mark.parametrize("kind", ["ef", "ggn"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_captured(name: str, form: torch.memory_format, kind: str, fallen: set[str]) -> None:
    layer = CONVOLUTIONS[name]
    model = build(lambda: conv(layer(), layer().out_channels)).to(memory_format=form)
    data = [(x.contiguous(memory_format=form), y) for x, y in inputs(4, 7, 6)]
    assert close(curvature(Problem(model, data), kind).diagonal, dense_diagonal(model, data, kind))
    assert not fallen


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_same_padding_that_is_not_even_falls_back(fallen: set[str]) -> None:
    model = build(lambda: conv(nn.Conv2d(2, 4, 2, padding="same"), 4))
    data = inputs(2, 4, 4)
    assert close(curvature(Problem(model, data), "ggn").diagonal, dense_diagonal(model, data, "ggn"))
    assert fallen == {"0.weight", "0.bias"}


def mean_of_tokens(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.layer(x)).mean(1))


def residual(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    x += torch.tanh(m.second(torch.tanh(x)))
    return m.head(F.relu_(m.norm(x)))


def class_token(m: Any, x: Tensor) -> Tensor:
    x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.position
    return m.head(torch.tanh(m.layer(x))[:, 0] + torch.tanh(x).mean(1)[:, :4])


def split_heads(m: Any, x: Tensor) -> Tensor:
    h = m.qkv(x)
    q, k, v = h[..., :3], h[..., 3:6], h[..., 6:]
    q *= 0.5
    return m.head((q @ k.mT).softmax(-1).matmul(v)[:, 0])


def twice(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.layer(torch.tanh(m.layer(x)))))


def tied(m: Any, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(m.layer(x)), m.layer.weight)[:, :CLASSES] + m.layer.bias[:CLASSES] * 0.5


def scaled(m: Any, x: Tensor) -> Tensor:
    x = m.gain * m.layer(x * m.factor + m.shift) + m.offset
    return m.head(torch.tanh(torch.mul(x, m.whole) + m.constant))


def maps(m: Any, x: Tensor) -> Tensor:
    x = m.layer(x)
    x = x * m.channel + m.plane
    return m.head((m.row * torch.tanh(x + m.spot)).flatten(1))


def by_keyword(m: Any, x: Tensor) -> Tensor:
    x = F.conv2d(input=x, weight=m.conv.weight, bias=m.conv.bias, padding=1)
    x = F.batch_norm(input=x, running_mean=m.bn.running_mean, running_var=m.bn.running_var, weight=m.bn.weight, bias=m.bn.bias)
    x = F.group_norm(input=x, num_groups=2, weight=m.gn.weight, bias=m.gn.bias)
    x = F.layer_norm(input=x.mean((2, 3)), normalized_shape=[4], weight=m.ln.weight, bias=m.ln.bias)
    return torch.add(input=F.linear(input=torch.tanh(x), weight=m.head.weight), other=m.head.bias)


def windows(m: Any, x: Tensor) -> Tensor:
    """(n, 6, 4) in three windows of two tokens, each a sample of its own to the layers."""
    x = torch.tanh(m.norm(m.layer(x.reshape(-1, 2, 4)))) + m.position
    return m.head(x.reshape(-1, 6, 4).mean(1))


def attention(m: Any, x: Tensor) -> Tensor:
    return m.head(m.layer(x, x, x, need_weights=False)[0][:, 0])


def frequency(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(torch.add(m.layer(x), m.shift, alpha=2.0)))


def unbatched(m: Any, x: Tensor) -> Tensor:
    """A linear map of a parameter, not of data: of a vector, and of a matrix with as many rows as samples."""
    return m.head(torch.tanh(x + m.layer(m.key) + m.layer(m.keys).mean(0)))


def time_first(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.layer(x.transpose(0, 1))).mean(0))


def both(m: Any, x: Tensor) -> Tensor:
    """What `linear` shows is not all the weight does."""
    x = torch.tanh(m.layer(x))
    return m.head(torch.tanh(x @ m.layer.weight + m.norm(x) * m.norm.weight.sin()))


def hidden_bias(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.layer(x)) * m.layer.bias.exp())


def forked(m: Any, x: Tensor) -> Tensor:
    m.side(x)
    return m.head(torch.tanh(m.layer(x)))


LAYERS: dict[str, tuple[Make, tuple[int, ...], set[str] | None]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, CLASSES)), (4,), set()),
    "tokens": (lambda: Flow(mean_of_tokens, layer=nn.Linear(4, 5), head=nn.Linear(5, CLASSES)), (6, 4), set()),
    "grid of tokens": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(30, CLASSES)), (2, 3, 4), set()),
    "conv1d": (lambda: conv(nn.Conv1d(2, 4, 3, padding=1), 4), (2, 5), {"0.weight", "0.bias"}),
    "conv3d": (lambda: conv(nn.Conv3d(2, 4, 2), 4), (2, 3, 3, 3), {"0.weight", "0.bias"}),
    "transposed": (lambda: conv(nn.ConvTranspose2d(2, 4, 3, stride=2), 4), (2, 4, 3), {"0.weight", "0.bias"}),
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)), (4,), set()),
    "batch norm of sequences": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(15, CLASSES)), (3, 5), set()),
    "batch norm, in-place": (lambda: conv(nn.Conv2d(2, 4, 3), 4, nn.BatchNorm2d(4), nn.ReLU(inplace=True)), (2, 5, 6), set()),
    "batch norm without affine": (lambda: conv(nn.Conv2d(2, 4, 3), 4, nn.BatchNorm2d(4, affine=False)), (2, 5, 6), set()),
    "batch norm with activation": (lambda: conv(nn.Conv2d(2, 4, 3), 4, BatchNormAct2d(4)), (2, 5, 6), set()),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)), (3, 4), set()),
    "layer norm of two": (lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Tanh(), nn.Flatten(), nn.Linear(24, CLASSES)), (2, 3, 4), set()),
    "group norm": (lambda: conv(nn.Conv2d(2, 4, 3), 4, nn.GroupNorm(2, 4)), (2, 5, 6), set()),
    "layer norm 2d": (lambda: conv(nn.Conv2d(2, 4, 3), 4, TimmNorm2d(4)), (2, 5, 6), set()),
    "in-place relu on a linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(True), nn.Linear(6, CLASSES)), (4,), set()),
    "in-place residual": (
        lambda: Flow(residual, first=nn.Linear(4, 5), second=nn.Linear(5, 5), norm=nn.LayerNorm(5), head=nn.Linear(5, CLASSES)),
        (4,),
        set(),
    ),
    "tokens and positions": (
        lambda: Flow(class_token, token=weight(1, 1, 4), position=weight(1, 4, 4), layer=nn.Linear(4, 4), head=nn.Linear(4, CLASSES)),
        (3, 4),
        set(),
    ),
    "views of an output": (lambda: Flow(split_heads, qkv=nn.Linear(4, 9), head=nn.Linear(3, CLASSES)), (3, 4), set()),
    "called twice": (lambda: Flow(twice, layer=nn.Linear(4, 4), head=nn.Linear(4, CLASSES)), (4,), set()),
    "called twice on tokens": (
        lambda: Flow(lambda m, x: twice(m, x).mean(1), layer=nn.Linear(4, 4), head=nn.Linear(4, CLASSES)), (3, 4), set()
    ),
    "tied": (lambda: Flow(tied, layer=nn.Linear(4, 4)), (4,), {"layer.bias"}),
    "factors and addends": (
        lambda: Flow(
            scaled, factor=weight(4), shift=weight(1, 4), gain=weight(3, 5), offset=weight(1, 3, 5), whole=weight(),
            constant=weight(1, 1, 5), layer=nn.Linear(4, 5), head=nn.Sequential(nn.Flatten(), nn.Linear(15, CLASSES)),
        ),
        (3, 4),
        set(),
    ),
    "factors over maps": (
        lambda: Flow(
            maps, layer=nn.Conv2d(2, 3, 2), channel=weight(3, 1, 1), plane=weight(1, 3, 2), row=weight(1, 3, 1, 2), spot=weight(3, 3, 2),
            head=nn.Linear(18, CLASSES),
        ),
        (2, 4, 3),
        set(),
    ),
    "by keyword": (
        lambda: Flow(
            by_keyword, conv=nn.Conv2d(2, 4, 3), bn=nn.BatchNorm2d(4), gn=nn.GroupNorm(2, 4), ln=nn.LayerNorm(4), head=nn.Linear(4, CLASSES)
        ),
        (2, 4, 3),
        set(),
    ),
    "windows": (
        lambda: Flow(windows, layer=nn.Linear(4, 4), norm=nn.LayerNorm(4), position=weight(2, 4), head=nn.Linear(4, CLASSES)), (6, 4), set()
    ),
    "attention of torch": (
        lambda: Flow(attention, layer=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, CLASSES)),
        (3, 4),
        {"layer.in_proj_weight", "layer.in_proj_bias", "layer.out_proj.weight", "layer.out_proj.bias"},
    ),
    "encoder of torch": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, CLASSES)), (3, 4), None
    ),
    "addition with a rate": (lambda: Flow(frequency, layer=nn.Linear(4, 5), shift=weight(5), head=nn.Linear(5, CLASSES)), (4,), {"shift"}),
    "a map of a parameter": (
        lambda: Flow(unbatched, layer=nn.Linear(4, 4), key=weight(4), keys=weight(6, 4), head=nn.Linear(4, CLASSES)),
        (4,),
        {"layer.weight", "layer.bias", "key", "keys"},
    ),
    "time first": (lambda: Flow(time_first, layer=nn.Linear(4, 5), head=nn.Linear(5, CLASSES)), (6, 4), {"layer.weight", "layer.bias"}),
    "more than is captured": (
        lambda: Flow(both, layer=nn.Linear(4, 4), norm=nn.LayerNorm(4), head=nn.Linear(4, CLASSES)), (4,), {"layer.weight", "norm.weight"}
    ),
    "a bias in another place": (lambda: Flow(hidden_bias, layer=nn.Linear(4, 4), head=nn.Linear(4, CLASSES)), (4,), {"layer.bias"}),
    "unused": (lambda: Flow(mean_of_tokens, layer=nn.Linear(4, 5), head=nn.Linear(5, CLASSES), spare=nn.Linear(2, 2)), (2, 4), set()),
    "used to no end": (lambda: Flow(forked, layer=nn.Linear(4, 5), head=nn.Linear(5, CLASSES), side=nn.Linear(4, 2)), (4,), set()),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["ef", "ggn"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_agrees_with_dense_autograd(name: str, kind: str, fallen: set[str]) -> None:
    make, shape, expected = LAYERS[name]
    model, data = build(make), inputs(*shape)
    wanted = dense_diagonal(model, data, kind)
    assert close(curvature(Problem(model, data), kind).diagonal, wanted)
    assert expected is None or fallen == expected
    idle = {n for n, h in wanted.items() if not h.any()}
    assert all(n.startswith(("spare", "side")) for n in idle)  # no reference that is zero for want of a signal


def gathered(problem: Problem, **options: Any) -> Values:
    """Name -> the gradients of all pieces, one after the other."""
    found: dict[str, list[Tensor]] = {}
    for name, g in sample_gradients(problem, [n for n, _ in problem.model.named_parameters()], **options):
        found.setdefault(name, []).append(g)
    return {n: torch.cat(pieces) for n, pieces in found.items()}


def gradients_in_turn(model: nn.Module, data: Data, m: int) -> Values:
    """Name -> the gradient of the mean loss of m consecutive samples, by autograd."""
    x, y = together(data)
    parameters = dict(model.named_parameters())
    rows = [
        torch.autograd.grad(
            F.cross_entropy(model(x[k : k + m]), y[k : k + m]), list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        for k in range(0, len(y) - m + 1, m)
    ]
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(parameters)}


@pytest.mark.parametrize("formed", [1, 1 << 27])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_single_samples_are_those_of_autograd(name: str, formed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "FORMED", formed)
    make, shape, _ = LAYERS[name]
    model, data = build(make), inputs(*shape)
    wanted = gradients_in_turn(model, data, 1)
    assert close(gathered(Problem(model, data)), wanted)
    assert close(gathered(Problem(model, data), samples=4), {n: g[:4] for n, g in wanted.items()})
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("formed", [1, 1 << 27])
@pytest.mark.parametrize("m", [2, 5, 7])
def test_gradients_of_mini_batches_do_not_depend_on_the_loader(m: int, formed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "FORMED", formed)
    make, shape, _ = LAYERS["tokens"]
    model = build(make)
    data = inputs(*shape, sizes=(3, 2, 1, 5))
    x, y = together(data)
    wanted = gradients_in_turn(model, data, m)
    model.layer.weight.requires_grad_(False)
    for batches in (data, [(x, y)], list(zip(x.split(1), y.split(1), strict=True))):
        assert close(gathered(Problem(model, batches), mini_batch=m), wanted)
    assert not model.layer.weight.requires_grad


def test_pieces_of_gradients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "FORMED", 50)
    model = build(LAYERS["tokens"][0])  # weights of 20 and 15
    pieces = list(sample_gradients(Problem(model, inputs(6, 4, sizes=(5,))), ["layer.weight", "head.weight"]))
    assert [(n, len(g)) for n, g in pieces] == [(n, k) for k in (2, 2, 1) for n in ("layer.weight", "head.weight")]
    with pytest.raises(ValueError, match="no batches"):
        list(sample_gradients(Problem(model, []), ["layer.weight"]))


NETWORKS: dict[str, tuple[Make, tuple[int, ...], set[str]]] = {
    "vit": (
        lambda: VisionTransformer(
            img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=CLASSES, init_values=0.1, qkv_bias=True
        ),
        (3, 8, 8),
        set(),
    ),
    "mixer": (lambda: MlpMixer(img_size=8, patch_size=4, num_blocks=1, embed_dim=8, num_classes=CLASSES), (3, 8, 8), set()),
    "swin": (
        lambda: SwinTransformer(
            img_size=16, patch_size=2, window_size=2, embed_dim=4, depths=(2, 1), num_heads=(1, 2), num_classes=CLASSES, mlp_ratio=2.0
        ),
        (3, 16, 16),
        {f"layers.{place}.attn.relative_position_bias_table" for place in ("0.blocks.0", "0.blocks.1", "1.blocks.0")},
    ),
    "convnext": (
        lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 4, 4), num_classes=CLASSES, ls_init_value=0.5),
        (3, 32, 32),
        {f"stages.{k}.blocks.0.gamma" for k in range(4)},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timm_agree_with_dense_autograd(name: str, fallen: set[str]) -> None:
    make, shape, expected = NETWORKS[name]
    model, data = build(make), inputs(*shape, sizes=(2, 1))
    found, wanted = curvature(Problem(model, data), "ggn").diagonal, dense_diagonal(model, data, "ggn")
    idle = {n for n, h in wanted.items() if h.max() < 1e-24}  # biases that the next norm takes away again
    assert idle == {n for n, h in found.items() if h.max() < 1e-24}
    assert close({n: h for n, h in found.items() if n not in idle}, {n: h for n, h in wanted.items() if n not in idle})
    assert fallen == expected


# --- what is trusted


def gated(m: Any, x: Tensor) -> Tensor:
    """Samples whose first feature is negative see nothing of the branch."""
    branch = m.branch(x.unsqueeze(1)).flatten(1) * (x[:, :1] > 0)
    return m.head(torch.tanh(m.layer(x)) + branch)


def test_a_parameter_without_a_gradient_on_the_first_samples_is_not_lost(fallen: set[str]) -> None:
    model = build(lambda: Flow(gated, layer=nn.Linear(4, 4), branch=nn.Conv1d(1, 1, 3, padding=1), head=nn.Linear(4, CLASSES)))
    data = inputs(4, sizes=(5,))
    data[0][0][:, 0] = torch.tensor([-1.0, -1.0, 1.0, 2.0, -1.0])
    wanted = dense_diagonal(model, data, "ef")
    assert wanted["branch.weight"].all()
    assert close(curvature(Problem(model, data), "ef").diagonal, wanted)
    assert fallen == {"branch.weight", "branch.bias"}


def test_a_branch_that_is_switched_off_stays_captured(fallen: set[str]) -> None:
    """As where the last norm of a residual branch starts at zero: no gradient, and no reason for the slow path."""
    make = NETWORKS["vit"][0]
    model, data = build(make), inputs(3, 8, 8, sizes=(2,))
    with torch.no_grad():
        model.blocks[0].ls1.gamma.zero_()
    found = curvature(Problem(model, data), "ef").diagonal
    assert close(found, dense_diagonal(model, data, "ef"))
    assert not found["blocks.0.attn.qkv.weight"].any()
    assert not fallen


def test_a_first_batch_of_one_does_not_hide_that_samples_lie_along_another_dimension() -> None:
    make, shape, _ = LAYERS["time first"]
    model, data = build(make), inputs(*shape, sizes=(1, 3, 2))
    assert close(curvature(Problem(model, data), "ef").diagonal, dense_diagonal(model, data, "ef"))


def overwriting(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    f = m.second(h)
    h.mul_(0.0)
    return m.head(torch.tanh(f + h))


def test_an_input_that_is_overwritten_is_an_error() -> None:
    model = build(lambda: Flow(overwriting, first=nn.Linear(4, 5), second=nn.Linear(5, 5), head=nn.Linear(5, CLASSES)))
    model.second.bias.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="torch cannot differentiate this network"):
        curvature(Problem(model, inputs(4)), "ef")
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before


class Fragile(nn.Module):
    """Fails in the first pass where a parameter requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer.weight.requires_grad:
            raise ValueError("fragile")
        return self.layer(x)


def test_flags_come_back_after_a_failure() -> None:
    model = Fragile().double()
    model.layer.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="fragile"):
        curvature(Problem(model, inputs(4)), "ef", names=["layer.weight", "layer.bias"])
    assert [p.requires_grad for p in model.parameters()] == [True, False]


# --- the interface


def test_nothing_of_the_network_is_touched() -> None:
    model, data = build(LAYERS["batch norm, in-place"][0]), inputs(2, 5, 6)
    model[2].train(True)
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        for kind in ("ef", "mc", "ggn"):
            for structure in ("diagonal", "kronecker"):
                found = curvature(Problem(model, data), kind, structure=structure)
                assert set(found.blocks) == {n for n, _ in model.named_parameters()} - {"0.bias"}
                assert not any(h.requires_grad for h in found.diagonal.values())
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model] == [False, False, True, False, False, False, False]
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"0.bias"}
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["0.weight"]
    assert (model[0].weight.grad == 1).all()
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_names_choose_parameters_frozen_ones_too(fallen: set[str]) -> None:
    model, data = build(LAYERS["group norm"][0]), inputs(2, 5, 6)
    wanted = dense_diagonal(model, data, "ggn")
    model.requires_grad_(False)
    names = ["1.weight", "0.weight"]
    found = curvature(Problem(model, data), "ggn", names=names).diagonal
    assert list(found) == names
    assert close(found, {n: wanted[n] for n in names})
    assert not any(p.requires_grad for p in model.parameters())
    assert not fallen


@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss])
def test_the_empirical_fisher_takes_any_loss(loss: Any) -> None:
    model = build(LAYERS["tokens"][0])
    data = [(x, torch.randn(len(y), CLASSES, generator=torch.Generator().manual_seed(len(y)), dtype=x.dtype)) for x, y in inputs(6, 4)]
    assert close(curvature(Problem(model, data, loss=loss), "ef").diagonal, dense_diagonal(model, data, "ef", loss))


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_fewer_samples_stand_for_all(structure: str) -> None:
    model, data = build(LAYERS["tokens"][0]), inputs(6, 4, sizes=(3, 2, 4))
    part, first = (curvature(Problem(model, d), "ggn", structure=structure, samples=s).diagonal for d, s in ((data, 4), (data[:2], None)))
    assert close(part, {n: h * 9 / 5 for n, h in first.items()})
    assert not close(part, curvature(Problem(model, data), "ggn", structure=structure).diagonal, 1e-3)


def test_more_columns_than_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TOGETHER", 2)
    monkeypatch.setattr("methods.curvature.layer_calls.HELD", 60)
    model = build(lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 7)))
    data = inputs(2, 4, 3)
    wanted = dense_diagonal(model, data, "ggn")
    assert close(curvature(Problem(model, data), "ggn").diagonal, wanted)
    held = curvature(Problem(model, data), "ggn", structure="kronecker")
    monkeypatch.undo()
    free = curvature(Problem(model, data), "ggn", structure="kronecker")
    assert close(held.diagonal, free.diagonal)


def test_single_precision_agrees_with_double() -> None:
    model, data = build(NETWORKS["vit"][0]), inputs(3, 8, 8)
    wanted = dense_diagonal(model, data, "ggn")
    found = curvature(Problem(model.float(), [(x.float(), y) for x, y in data]), "ggn").diagonal
    assert close({n: h.double() for n, h in found.items()}, wanted, 2e-3)


# --- labels drawn from the network's own predictions


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", ["tokens", "conv1d", "batch norm, in-place"])
def test_monte_carlo_is_the_empirical_fisher_of_labels_drawn(name: str, draws: int) -> None:
    make, shape, _ = LAYERS[name]
    model, data = build(make), inputs(*shape)
    problem = Problem(model, data)
    generator = problem.generator("here")
    with torch.no_grad():
        labels = [sample_labels(model(x).softmax(1), draws, generator) for x, _ in data]
    runs = [dense_diagonal(model, [(x, y[:, k]) for (x, _), y in zip(data, labels, strict=True)], "ef") for k in range(draws)]
    wanted = {n: sum(run[n] for run in runs) / draws for n in runs[0]}
    assert close(curvature(problem, "mc", draws=draws, purpose="here").diagonal, wanted)


@pytest.mark.parametrize("draws", [1, 4])
def test_monte_carlo_is_unbiased_and_its_variance_falls_with_the_draws(draws: int) -> None:
    model, data = build(lambda: nn.Linear(3, CLASSES)), inputs(3, sizes=(20,))
    exact = dense_diagonal(model, data, "ggn")["weight"]
    found = torch.stack([curvature(Problem(model, data, seed=s), "mc", draws=draws).diagonal["weight"] for s in range(300)])
    error = found.std(0) / 300**0.5
    assert ((found.mean(0) - exact).abs() / error).max() < 4.5
    # Var of one sample's squared gradient, by enumeration of the labels: Σ_c p_c (p - e_c)⁴ x⁴ - (Σ_c p_c (p - e_c)² x²)².
    x = data[0][0]
    p = model(x).softmax(1).detach()
    g = (p.unsqueeze(1) - torch.eye(CLASSES, dtype=p.dtype)).square()  # (sample, label, output)
    mean = torch.einsum("nc,nco->no", p, g)
    variance = torch.einsum("no,ni->oi", torch.einsum("nc,nco->no", p, g.square()) - mean.square(), x**4) / draws
    spread = ((found - found.mean(0)) ** 4).mean(0) - found.var(0).square()
    assert ((found.var(0) - variance).abs() / (spread / 300) ** 0.5).max() < 4.5


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**20), st.floats(0.1, 300.0))
def test_the_factor_of_the_softmax(classes: int, seed: int, scale: float) -> None:
    p = (torch.randn(4, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).softmax(1)
    factor = softmax_factor(p)
    assert factor.shape == (4, classes, classes - 1)
    wanted = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    got = factor @ factor.mT
    assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-15)  # p - p² itself is no better
    # 1 - p cancels where p is nearly 1; the factor does not: p_c Σ_{j≠c} p_j.
    others = torch.stack([p[:, [j for j in range(classes) if j != c]].sum(1) for c in range(classes)], 1)
    assert torch.allclose(got.diagonal(dim1=1, dim2=2), p * others, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("p", [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.25, 0.0, 0.75], [1.0, 0.0, 0.0]])
def test_the_factor_of_probabilities_that_are_zero(p: list[float]) -> None:
    row = torch.tensor([p], dtype=torch.float64)
    factor = softmax_factor(row)[0]
    assert torch.allclose(factor @ factor.mT, torch.diag(row[0]) - torch.outer(row[0], row[0]), atol=1e-15)


def test_labels_are_drawn_as_often_as_their_probabilities() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    labels = sample_labels(p, 20_000, torch.Generator().manual_seed(0))
    found = F.one_hot(labels, 3).double().mean(1)
    assert (found - p).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    assert (found[p == 0] == 0).all()


# --- Kronecker factors


def samples_of(model: nn.Module, layer: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's input, and the gradient of Σ v·f by its output, from a module hook of its own."""
    kept: dict[str, Tensor] = {}

    def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        kept["a"] = args[0].detach()
        kept["out"] = out
        return out.clone()

    handle = layer.register_forward_hook(hook)
    f = model(x)
    handle.remove()
    return kept["a"], torch.autograd.grad((f * v).sum(), kept["out"])[0]


def dense_factors(model: nn.Module, layer: Any, x: Tensor, columns: list[Tensor], sharing: str) -> tuple[Tensor, Tensor, Tensor]:
    """(B, A, block of the bias) with loops over samples, and patches by `unfold`."""
    is_conv = isinstance(layer, nn.Conv2d)
    groups = layer.groups if is_conv else 1
    out, inner = layer.weight.shape[0] // groups, layer.weight[0].numel()
    b, a = torch.zeros(groups, out, out).double(), torch.zeros(groups, inner, inner).double()
    bias, count = torch.zeros(groups, out, out).double(), 0
    for first, v in enumerate(columns):
        given, g = samples_of(model, layer, x, v)
        for n in range(len(x)):
            if is_conv:
                patches = F.unfold(given[n : n + 1], layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].T
                a_n, g_n = patches.view(-1, groups, inner), g[n].flatten(1).T.reshape(-1, groups, out)
            else:
                a_n, g_n = given[n].reshape(-1, 1, inner), g[n].reshape(-1, 1, out)
            total = g_n.sum(0, keepdim=True)
            bias += torch.einsum("tgi,tgj->gij", total, total)
            if sharing == "reduce":
                a_n, g_n = a_n.mean(0, keepdim=True), total
            b += torch.einsum("tgi,tgj->gij", g_n, g_n)
            if first == 0:
                a += torch.einsum("tgi,tgj->gij", a_n, a_n)
                count += len(a_n)
    return b, a / count, bias


FACTORED = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)), (4,)),
    "tokens": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(30, CLASSES)), (6, 4)),
    **{
        name: (lambda make=make: conv(make(), make().out_channels), (4, 7, 6))
        for name, make in CONVOLUTIONS.items()
        if name not in ("same", "valid", "circular")
    },
}


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", FACTORED)
def test_factors_are_those_of_loops_over_samples(name: str, sharing: str, form: torch.memory_format, fallen: set[str]) -> None:
    make, shape = FACTORED[name]
    model, data = build(make), inputs(*shape)
    x, _ = together(data)
    if x.dim() == 4:
        model, data = model.to(memory_format=form), [(x.contiguous(memory_format=form), y) for x, y in data]
    p = model(x).softmax(1).detach()
    columns = list((torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)).unbind(2))  # another root of diag(p) - ppᵀ
    blocks = curvature(Problem(model, data), "ggn", structure="kronecker", sharing=sharing).blocks
    layer = model[0]
    b, a, bias = dense_factors(model, layer, x, columns, sharing)
    found = blocks["0.weight"]
    assert isinstance(found, Kronecker)
    assert found.shape == layer.weight.shape
    assert near(found.outer, b)
    assert near(found.inner, a)
    if layer.bias is not None:
        block = blocks["0.bias"]
        assert isinstance(block, Kronecker)
        assert near(torch.block_diag(*bias), block.outer[0] * torch.block_diag(*torch.ones_like(bias)))
        assert (block.inner == 1).all()
        assert block.shape == layer.bias.shape
        exact = dense_block(model, data, "ggn", "0.bias")
        assert near(block.outer[0], exact)
    assert not fallen


@pytest.mark.parametrize("name", ["linear", "one position", "one position, grouped", "one position, dilated"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_one_sample_without_sharing_has_an_exact_block(name: str, form: torch.memory_format) -> None:
    """B ⊗ A is Jᵀ v vᵀ J itself, which fixes the order of rows and columns: that of the flattened weight."""
    made = {
        **FACTORED,
        "one position, grouped": (lambda: conv(nn.Conv2d(4, 6, (2, 3), groups=2), 6), (4, 2, 3)),
        "one position, dilated": (lambda: conv(nn.Conv2d(4, 6, (2, 3), dilation=(2, 1)), 6), (4, 3, 3)),
    }
    make, shape = made[name]
    model, data = build(make), inputs(*shape, sizes=(1,))
    if len(shape) == 3:
        model, data = model.to(memory_format=form), [(x.contiguous(memory_format=form), y) for x, y in data]
    block = curvature(Problem(model, data), "ef", structure="kronecker").blocks["0.weight"]
    assert isinstance(block, Kronecker)
    whole = torch.block_diag(*(torch.kron(b, a) for b, a in zip(block.outer, block.inner, strict=True)))
    exact = dense_block(model, data, "ef", "0.weight")
    same_group = torch.block_diag(*(torch.ones_like(torch.kron(b, a)) for b, a in zip(block.outer, block.inner, strict=True)))
    assert near(whole, exact * same_group)
    assert near(block.diagonal(), dense_diagonal(model, data, "ef")["0.weight"])


def test_only_products_have_factors(fallen: set[str]) -> None:
    """Norms, tokens, embeddings and what falls back keep the diagonal that they have without factors."""
    for make, shape, _ in (LAYERS["tokens and positions"], LAYERS["group norm"], LAYERS["conv1d"], LAYERS["batch norm"], LAYERS["tied"]):
        model, data = build(make), inputs(*shape)
        blocks = curvature(Problem(model, data), "ggn", structure="kronecker").blocks
        products = {f"{n}.{part}" for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) for part in ("weight", "bias")}
        assert {n for n, b in blocks.items() if isinstance(b, Kronecker)} == products - fallen
        diagonal = dense_diagonal(model, data, "ggn")
        assert all(near(b.h, diagonal[n]) for n, b in blocks.items() if isinstance(b, Diagonal))
        fallen.clear()


def test_a_bias_used_twice_has_its_exact_block() -> None:
    for name in ("called twice", "called twice on tokens"):
        make, shape, _ = LAYERS[name]
        model, data = build(make), inputs(*shape)
        block = curvature(Problem(model, data), "ggn", structure="kronecker").blocks["layer.bias"]
        assert near(block.outer[0], dense_block(model, data, "ggn", "layer.bias"))


def test_uses_of_a_weight_are_positions_of_one_another() -> None:
    """A weight that meets 2 tokens and then 6 is one that meets 8."""

    def apart(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.cat([torch.tanh(m.layer(x[:, :2])), torch.tanh(m.layer(x[:, 2:]))], 1).flatten(1))

    def at_once(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.tanh(m.layer(x)).flatten(1))

    found = []
    for forward in (apart, at_once):
        model = build(lambda forward=forward: Flow(forward, layer=nn.Linear(4, 5), head=nn.Linear(40, CLASSES)))
        found.append(curvature(Problem(model, inputs(8, 4)), "ggn", structure="kronecker").blocks["layer.weight"])
    assert near(found[0].outer, found[1].outer)
    assert near(found[0].inner, found[1].inner)


@pytest.mark.parametrize("name", ["unused", "used to no end"])
def test_a_weight_without_effect_has_no_curvature(name: str) -> None:
    make, shape, _ = LAYERS[name]
    model, data = build(make), inputs(*shape)
    found = curvature(Problem(model, data), "ggn", structure="kronecker").diagonal
    assert [n for n, h in found.items() if not h.any()] == [n for n in found if n.startswith(("spare", "side"))] != []


@pytest.mark.parametrize("side", [5, 35, 36])
def test_factors_that_would_be_too_large_are_not_formed(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulators, "MAX_SIDE", side)
    model, data = build(lambda: conv(nn.Conv2d(4, 6, 3), 6)), inputs(4, 5, 4)
    blocks = curvature(Problem(model, data), "ggn", structure="kronecker").blocks
    factored = {n for n, b in blocks.items() if isinstance(b, Kronecker)}
    assert factored == {5: {"4.bias"}, 35: {"0.bias", "4.bias", "4.weight"}, 36: {"0.weight", "0.bias", "4.weight", "4.bias"}}[side]
    diagonal = dense_diagonal(model, data, "ggn")
    assert all(near(b.h, diagonal[n]) for n, b in blocks.items() if isinstance(b, Diagonal))


@pytest.mark.parametrize("name", ["tokens", "plain", "strides", "grouped", "1x1, stride 2", "wide for its channels"])
def test_some_positions_stand_for_all(name: str) -> None:
    """Unbiased, each run different, and B as without."""
    make, shape = FACTORED[name]
    model, data = build(make), inputs(*shape, sizes=(4, 4))
    full = curvature(Problem(model, data), "ef", structure="kronecker").blocks["0.weight"]
    runs = [curvature(Problem(model, data, seed=s), "ef", structure="kronecker", positions=4).blocks["0.weight"] for s in range(60)]
    assert all(near(run.outer, full.outer) for run in runs)
    draws = torch.stack([run.inner for run in runs])
    error = draws.std(0) / len(runs) ** 0.5
    assert error.max() > 0
    assert ((draws.mean(0) - full.inner).abs() <= 5.0 * error + 1e-9).all()


def test_positions_of_uses_that_differ_in_size_weigh_as_much_as_they_are_many() -> None:
    """100 tokens of ones and 4 of zeros: A = 100/104, whichever of them are drawn."""

    def apart(m: Any, x: Tensor) -> Tensor:
        return m.layer(x[:, :100]).mean(1) + m.layer(x[:, 100:]).mean(1)

    model = build(lambda: Flow(apart, layer=nn.Linear(1, CLASSES)))
    x = torch.cat([torch.ones(3, 100, 1), torch.zeros(3, 4, 1)], 1).double()
    block = curvature(Problem(model, [(x, torch.tensor([0, 1, 2]))]), "ef", structure="kronecker", positions=10).blocks["layer.weight"]
    assert float(block.inner) == pytest.approx(100 / 104)
