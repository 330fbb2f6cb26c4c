"""Networks: the classic ones as published, any timm name fitted to small images, and the errors' wording."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.networks import build, classics
from bench.networks.build import accepts, create, describe, fitted_patch, names, timm_names
from bench.planning.trained import protocol_of
from bench.spec.errors import UserError
from bench.spec.suite import load_suite

FIXUP = [(16, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]  # (inputs, outputs) of the blocks
RESNET = [(64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def seeded(name: str, shape: tuple[int, ...], classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create(name, shape, classes)


# --- the classic networks


@pytest.mark.parametrize("shape", [*SHAPES, (1, 16, 16), (2, 27, 20), (30,)], ids=str)
@pytest.mark.parametrize("name", names())
def test_every_classic_network_learns_on_every_suitable_shape(name: str, shape: tuple[int, ...]) -> None:
    if not accepts(name, shape):
        assert name not in ("mlp", "mlp_256")
        with pytest.raises(UserError, match=f"{name}.*takes images.*mlp and mlp_256") as error:
            create(name, shape, 5)
        assert "\n" not in str(error.value)
        return
    model = seeded(name, shape, 5)
    assert model.training
    inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    loss = functional.cross_entropy(model(inputs), torch.tensor([0, 1, 2, 3]))
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("mlp", (1, 28, 28), 10, 89_610),
        ("mlp", (30,), 2, 13_402),
        ("mlp_256", (1, 28, 28), 10, 203_530),
        ("lenet5", (1, 28, 28), 10, 61_706),
        ("lenet5", (1, 32, 32), 10, 61_706),
        ("resnet20", (3, 32, 32), 10, 269_722),
        ("wrn16_4", (3, 32, 32), 10, 2_748_890),
        ("vgg11_bn", (3, 32, 32), 10, 9_228_362),
        ("vgg16_bn", (3, 32, 32), 10, 14_724_042),
        ("vit_micro_patch4", (1, 8, 8), 10, 29_962),
        ("fixup_wrn16_4", (3, 32, 32), 10, 16 * 27 + sum(9 * (a * b + b * b) for a, b in FIXUP) + 16 * 64 + 64 * 128 + 128 * 256 + 2_602),
        ("fixup_resnet18", (3, 32, 32), 10, 64 * 27 + sum(9 * (a * b + b * b) for a, b in RESNET) + 1 + 8 * 5 + 1 + 5_130),
        ("residual_mlp", (1, 28, 28), 10, 784 * 785 + 2 * (256 * 785 + 784 * 257) + 7_850),
        ("vit_plain_patch7", (1, 28, 28), 10, 49 * 128 + 4 * 512 * 128 + 2 * 128 * 256 + 128 + 1_280),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, ...], classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(create(name, shape, classes)) == count


def test_layer_counts_are_those_in_the_names() -> None:
    with torch.device("meta"):
        for name, layers in [("resnet20", 20), ("vgg11_bn", 8 + 1), ("vgg16_bn", 13 + 1), ("lenet5", 5)]:
            model = create(name, (3, 32, 32), 10)
            assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == layers
        wide = create("wrn16_4", (3, 32, 32), 10)  # its authors count convolutions, 1x1 shortcuts included
        assert sum(isinstance(module, nn.Conv2d) for module in wide.modules()) == 16


def test_the_resnet_shortcut_pads_with_zeros() -> None:
    block = classics._BasicBlock(4, 6, 2).eval()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    residual = block.bn2(block.conv2(functional.relu(block.bn1(block.conv1(x)))))
    padded = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))
    torch.testing.assert_close(block(x), functional.relu(residual + padded))


def test_timm_knows_the_classic_networks() -> None:
    model = timm.create_model("lenet5", num_classes=7, in_chans=3, img_size=32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert timm.create_model("lenet5")(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert timm.create_model("vit_micro_patch4", img_size=(8, 12))(torch.zeros(2, 1, 8, 12)).shape == (2, 10)
    with pytest.raises(TypeError, match=r"lenet5.*'drop_rate'"):
        timm.create_model("lenet5", drop_rate=0.1)
    with pytest.raises(ValueError, match="no pretrained weights"):
        timm.create_model("lenet5", pretrained=True)


def test_vgg_is_ours_on_small_images_and_timms_on_large_ones() -> None:
    with torch.device("meta"):
        small, large = create("vgg11_bn", (3, 64, 64), 10), create("vgg11_bn", (3, 65, 65), 10)
    assert isinstance(small, nn.Sequential)
    assert parameters(small) < 10e6
    assert type(large).__module__.startswith("timm.")
    assert "vgg11_bn" in timm_names()


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "test_resnet", "mixer_s32_224"])
def test_weights_come_from_the_global_generator_alone(name: str) -> None:
    first, same, other = (seeded(name, (3, 8, 8), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_fitting_draws_no_random_numbers_of_its_own() -> None:
    fitted = seeded("test_resnet", (3, 32, 32)).state_dict()
    torch.manual_seed(0)
    direct = timm.create_model("test_resnet", num_classes=10, in_chans=3).state_dict()
    assert all(torch.equal(fitted[key], direct[key]) for key in direct)


# --- any timm name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "patched"),
    [
        ("test_resnet", False),
        ("test_efficientnet", False),
        ("test_byobnet", False),
        ("test_nfnet", False),
        ("test_convnext", False),
        ("test_mambaout", False),
        ("convnext_atto", False),
        ("mobilenetv3_small_050", False),
        ("resnet18", False),
        ("test_vit", True),
        ("test_vit2", True),
        ("vit_tiny_patch16_224", True),
        ("pit_ti_224", True),
        ("mixer_s32_224", True),
        ("gmlp_ti16_224", True),
    ],
)
def test_timm_networks_fit_small_images(name: str, patched: bool, shape: tuple[int, int, int]) -> None:
    model = seeded(name, shape, 3).eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    output: Tensor = model(images)
    assert output.shape == (2, 3)
    assert output.isfinite().all()
    if patched:
        assert build._own_patch(model) == {8: 2, 28: 4, 32: 4}[shape[-1]]


def test_a_mixers_stem_is_initialised_like_the_rest() -> None:
    weight = seeded("gmlp_ti16_224", (3, 8, 8)).get_parameter("stem.proj.weight").detach()
    assert weight.shape == (128, 3, 2, 2)
    assert 0.8 < float(weight.std()) * (3 * 2 * 2) ** 0.5 < 1.2  # LeCun: 1 / sqrt(inputs)


@pytest.mark.parametrize(
    ("size", "own", "patch"),
    [
        ((8, 8), 16, 2),
        ((28, 28), 16, 4),
        ((28, 28), 14, 4),
        ((32, 32), 16, 4),
        ((32, 32), 4, 4),
        ((32, 32), 2, 2),
        ((64, 64), 16, 8),
        ((224, 224), 16, 16),
        ((224, 224), 32, 32),
        ((224, 224), 14, 14),
        ((100, 100), 16, 10),
        ((29, 29), 16, 1),
        ((5, 5), 16, 1),
        ((1, 1), 16, 1),
        ((32, 48), 16, 4),
    ],
)
def test_the_patch_rule(size: tuple[int, int], own: int, patch: int) -> None:
    assert fitted_patch(size, own) == patch


def test_large_images_keep_the_networks_own_patch() -> None:
    with torch.device("meta"):
        assert build._own_patch(create("vit_tiny_patch16_224", (3, 224, 224), 10)) == 16
        assert build._own_patch(create("vit_micro_patch4", (1, 28, 28), 10)) == 4


# --- what a user can get wrong


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lenet", "'?lenet5"),
        ("resnet2O", "resnet"),
        ("resnet18.nope", "resnet18"),
        ("lenet5.nope", "lenet5"),
        ("hf-hub:someone/something", "any timm name"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(name: str, said: str) -> None:
    for call in (lambda: create(name, (3, 32, 32), 10), lambda: describe(name)):
        with pytest.raises(UserError, match=f"unknown architecture '{name}'.*{said}") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet5", (1, 3, 3)),
        ("densenet121", (3, 8, 8)),
        ("inception_v3", (3, 28, 28)),
        ("levit_128s", (3, 8, 8)),
    ],
)
def test_a_shape_that_does_not_fit_is_one_line(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"{name}.*cannot take inputs of shape") as error:
        create(name, shape, 10)
    assert "\n" not in str(error.value)


def test_a_network_whose_output_is_not_one_score_per_class_is_refused() -> None:
    for layer, said in [(nn.Linear(4, 3), r"\(2, 3\), but the expected shape is \(2, 5\)"), (nn.LSTM(4, 5), "tuple")]:
        with pytest.raises(ValueError, match=said):
            build._verified(layer, (4,), 5)
    broken = nn.Linear(4, 5)
    nn.init.constant_(broken.bias, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        build._verified(broken, (4,), 5)


def test_a_pretrained_network_that_is_not_trained_gets_its_own_moments_and_classes() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert build.moments("resnet18") == imagenet
    suite = load_suite("imagenet").model_copy(update={"epochs": 0})
    protocol = protocol_of(suite, "folder:imagenet", "resnet50")
    assert (protocol.mean, protocol.std) == imagenet
    assert protocol_of(load_suite("imagenet"), "folder:imagenet", "resnet50").mean is None, "with training the data's own"
    own = suite.model_copy(update={"mean": (0.5,), "std": (0.2,)})
    assert protocol_of(own, "folder:imagenet", "resnet50").mean == (0.5,)
    build.check_head("resnet18", 1000)
    with pytest.raises(UserError, match="have 1000 classes and the data 10, so its last layer is random"):
        build.check_head("resnet18", 10)
    with pytest.raises(UserError, match="'lenet5' has no pretrained weights"):
        build.moments("lenet5")


def test_pretrained_weights_that_cannot_be_had_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lenet5.*no pretrained weights"):
        create("lenet5", (1, 28, 28), 10, pretrained=True)
    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route\nto host")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"test_resnet.*no pretrained weights: no route$"):
        create("test_resnet", (3, 32, 32), 10, pretrained=True)


def test_every_name_has_one_line() -> None:
    assert {"mlp", "mlp_256", "lenet5", "resnet20", "vgg11_bn", "vgg16_bn", "wrn16_4"} < set(names())
    assert len(timm_names()) > 1000
    assert "lenet5" not in timm_names()
    for name in [*names(), "resnet18", "resnet18.a1_in1k"]:
        assert describe(name)
        assert "\n" not in describe(name)


# --- networks without norms


@pytest.mark.parametrize(("name", "branches"), [("fixup_wrn16_4", 6), ("fixup_resnet18", 8)])
def test_fixup_starts_with_scaled_convolutions_and_empty_branches(name: str, branches: int) -> None:
    model = seeded(name, (3, 16, 16))
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    first = {n: m for n, m in convs.items() if n.endswith("conv1")}
    assert len(first) == branches
    for conv in first.values():
        wanted = (2 / (9 * conv.out_channels)) ** 0.5 * branches**-0.5
        assert conv.weight.std().item() == pytest.approx(wanted, rel=0.05)
    assert not any(bool(m.weight.any()) for n, m in convs.items() if n.endswith("conv2"))
    x = torch.randn(2, 3, 16, 16)
    assert not bool(model(x).any())
    with torch.no_grad():  # with empty branches, the features are those of the stem and the shortcuts alone
        for conv in first.values():
            conv.weight.normal_()
        before = model[:-1](x)
        for conv in first.values():
            conv.weight.zero_()
    assert torch.equal(before, model[:-1](x))


def test_the_plain_vit_is_plain_loops() -> None:
    model = seeded("vit_plain_patch7", (2, 8, 15)).eval()
    x = torch.randn(1, 2, 8, 15)
    padded = torch.zeros(2, 14, 21)
    padded[:, :8, :15] = x[0]
    with torch.no_grad():
        tokens = []
        for r, c in ((r, c) for r in range(2) for c in range(3)):
            patch = padded[:, 7 * r : 7 * r + 7, 7 * c : 7 * c + 7]
            place = []
            for value, wave in ((c, "sin"), (c, "cos"), (r, "sin"), (r, "cos")):
                place += [getattr(torch.tensor(value * 1e-4 ** (k / 31)), wave)() for k in range(32)]
            tokens.append((model.embed.weight * patch).sum((1, 2, 3)) + torch.stack(place))
        h = torch.stack(tokens)
        q, k, v = (model.attention.layers[0].qkv.weight[512 * i : 512 * i + 512] for i in range(3))
        heads = []
        for n in range(8):
            own = slice(64 * n, 64 * n + 64)
            weights = ((h @ q[own].T) @ (h @ k[own].T).T / 8.0).softmax(1)
            heads.append(weights @ (h @ v[own].T))
        h = h + torch.cat(heads, 1) @ model.attention.layers[0].proj.weight.T
        first, _, last = model.mlp.layers
        h = h + functional.gelu(h @ first.weight.T) @ last.weight.T + last.bias
        torch.testing.assert_close(model(x)[0], h.mean(0) @ model.head.weight.T, rtol=1e-4, atol=1e-5)
