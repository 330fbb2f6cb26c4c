"""Channels of real architectures: masked and made smaller, a network computes the same; with LayerNorms, it still learns."""

import copy
from dataclasses import replace

import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.nn import functional

import methods
from bench.networks import build
from methods import Problem, Scores
from methods.granularity.channel import Channel, coupling_of

CHANNEL = Channel()
COLOUR = (3, 32, 32)


def small_mixer() -> nn.Module:
    """Sixteen tokens of sixteen channels: nothing but the order of dimensions tells them apart."""
    return MlpMixer(num_classes=10, img_size=32, patch_size=8, num_blocks=2, embed_dim=16)


def trained_like(name: str, shape: tuple[int, ...]) -> Problem:
    """A network whose biases, norms and their statistics are those of no initialisation; float64, so that equal means equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_mixer() if name == "mixer" else build.create(name, shape, 10)
        model = model.eval().double()
    with torch.no_grad():
        for p in model.parameters():
            spread = (2 / p[0].numel()) ** 0.5 if p.dim() > 1 else 0.3
            p.copy_(spread * torch.randn(p.shape, generator=generator) + (p if p.dim() == 1 else 0))
        for key, b in model.named_buffers():
            if key.endswith("running_mean"):
                b.copy_(0.3 * torch.randn(b.shape, generator=generator))
            elif key.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    return Problem(model, [(x, torch.arange(4))])


def outputs(model: nn.Module, problem: Problem) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(next(iter(problem.batches))[0])
    return out


def masked(problem: Problem) -> nn.Module:
    model = copy.deepcopy(problem.model)
    methods.apply_mask(model, problem.mask)
    return model


def cut(problem: Problem, sparsity: float) -> Problem:
    scores = Scores({n: w.detach().square() for n, w in problem.weights.items()})
    found = replace(problem, mask=CHANNEL.cut(problem, scores, sparsity))
    CHANNEL.check(found, sparsity)
    return found


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (30,)),
        ("mlp", COLOUR),
        ("lenet5", (1, 28, 28)),
        ("lenet5", (1, 8, 8)),
        ("resnet20", COLOUR),
        ("resnet20", (1, 8, 8)),
        ("wrn16_4", COLOUR),
        ("vgg11_bn", COLOUR),
        ("resnet18", COLOUR),
        ("mobilenetv3_small_050", COLOUR),
        ("test_efficientnet", COLOUR),
        ("mixer", COLOUR),
    ],
    ids=str,
)
def test_masked_and_smaller_networks_compute_the_same(name: str, shape: tuple[int, ...]) -> None:
    problem = trained_like(name, shape)
    dense = outputs(problem.model, problem)
    for sparsity in (0.3, 0.5 if name == "mixer" else 0.8):  # of a small mixer, more than half is not hidden units
        pruned = cut(problem, sparsity)
        small = CHANNEL.compact(pruned).model
        assert sum(w.numel() for w in methods.prunable(small).values()) == methods.kept_weights(pruned.mask)[0]
        found = outputs(small, problem)
        torch.testing.assert_close(found, outputs(masked(pruned), problem), rtol=1e-9, atol=1e-9)
        assert (found - dense).abs().max() > 1e-3
    assert torch.equal(dense, outputs(problem.model, problem))


def learns(small: nn.Module, problem: Problem) -> None:
    x, y = next(iter(problem.batches))
    small.train()
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = functional.cross_entropy(small(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize(("name", "shape"), [("vit_micro_patch4", (1, 8, 8)), ("test_vit", COLOUR), ("test_convnext", COLOUR)], ids=str)
def test_networks_with_layer_norms_get_smaller_and_learn(name: str, shape: tuple[int, ...]) -> None:
    problem = trained_like(name, shape)
    pruned = cut(problem, 0.5)
    small = CHANNEL.compact(pruned).model
    assert sum(w.numel() for w in methods.prunable(small).values()) == methods.kept_weights(pruned.mask)[0]
    assert outputs(small, problem).shape == (4, 10)
    learns(small, problem)


@pytest.mark.parametrize(("name", "inner"), [("vit_micro_patch4", ("fc1", "qkv")), ("test_convnext", ("fc1",))])
def test_hidden_units_and_heads_go_without_a_trace(name: str, inner: tuple[str, ...]) -> None:
    problem = trained_like(name, COLOUR)
    coupling = coupling_of(problem)
    kept = torch.ones_like(coupling.free)
    for key, (rows, _) in coupling.lines.items():
        if key.split(".")[-2] in inner:
            units = rows.unique()
            assert coupling.free[units].all()
            kept[units[1::2]] = False
    pruned = replace(problem, mask=coupling.mask(kept))
    small = CHANNEL.compact(pruned).model
    torch.testing.assert_close(outputs(small, problem), outputs(masked(pruned), problem), rtol=1e-9, atol=1e-9)
    if name == "vit_micro_patch4":
        attention = small.get_submodule("blocks.0.attn")
        assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 12, 24)
    learns(small, problem)


def test_the_units_of_a_transformer() -> None:
    coupling = coupling_of(trained_like("vit_micro_patch4", COLOUR))
    # The embedding; 4 heads and 192 hidden units; 10 classes, which stay.
    assert sorted(coupling.pools.bincount().tolist()) == [4, 10, 48, 192]
    assert int((~coupling.free).sum()) == 10
    # A head: 3 · 12 rows of 48, and 12 columns of 48.
    assert coupling.sizes[coupling.lines["blocks.0.attn.qkv.weight"][0]].unique().tolist() == [4 * 12 * 48]


def test_mixers_lose_hidden_units_only() -> None:
    problem = trained_like("mixer", COLOUR)
    coupling = coupling_of(problem)
    free = {n.split(".", 2)[-1] for n, (rows, _) in coupling.lines.items() if coupling.free[rows].all()}
    assert free == {"mlp_tokens.fc1.weight", "mlp_channels.fc1.weight"}


def test_flops_can_be_what_is_cut() -> None:
    problem = trained_like("resnet20", (1, 8, 8))

    def flops(model: nn.Module) -> float:
        from bench.trial.flops import layer_flops

        return float(layer_flops(copy.deepcopy(model).float(), (1, 8, 8))[0])

    scores = Scores({n: w.detach().square() for n, w in problem.weights.items()})
    pruned = replace(problem, mask=CHANNEL.cut(problem, scores, 0.5, flops))
    CHANNEL.check(pruned, 0.5, flops)
    small = CHANNEL.compact(pruned).model
    assert flops(small) / flops(problem.model) == pytest.approx(0.5, abs=0.01)
    assert methods.sparsity_of(pruned.mask) != pytest.approx(0.5, abs=0.01)
