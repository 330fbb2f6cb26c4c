"""The small classic networks of the pruning literature, registered with timm: `timm.create_model("lenet5")` works."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

Size = tuple[int, int]  # height, width in pixels
Builder = Callable[[int, int, Size], nn.Module]  # (classes, channels, size) -> network

TABULAR = ("mlp", "mlp_256")  # these also accept rows of features
SMALL_VGG = {"vgg11_bn": (1, 1, 2, 2, 2), "vgg16_bn": (2, 2, 3, 3, 3)}  # convolutions per block
SMALL_VGG_SIDE = 64  # pixels; for larger images the network of timm is used
CLASSICS: dict[str, Builder] = {}


def classic(*, in_chans: int, img_size: int) -> Callable[[Builder], Builder]:
    """Register a builder with timm under its name; the arguments are the default channels and image size."""

    def register(build: Builder) -> Builder:
        def entry(
            pretrained: bool = False,
            *,
            num_classes: int = 10,
            in_chans: int = in_chans,
            img_size: int | Size = img_size,
            **passed_by_timm: Any,
        ) -> nn.Module:
            others = passed_by_timm.keys() - {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
            if others:
                raise TypeError(f"{build.__name__}() got an unexpected keyword argument {min(others)!r}")
            if pretrained:
                raise ValueError(f"{build.__name__} has no pretrained weights")
            size = (img_size, img_size) if isinstance(img_size, int) else img_size
            return build(num_classes, in_chans, size)

        entry.__name__, entry.__module__, entry.__doc__ = build.__name__, build.__module__, build.__doc__
        register_model(entry)
        CLASSICS[build.__name__] = build
        return build

    return register


def _dense(*widths: int) -> nn.Sequential:
    """Linear layers of these widths on flattened inputs, with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@classic(in_chans=1, img_size=28)
def mlp(classes: int, channels: int, size: Size) -> nn.Module:
    """Two hidden layers of 100, ReLU; images or tabular data."""
    return _dense(channels * size[0] * size[1], 100, 100, classes)


@classic(in_chans=1, img_size=28)
def mlp_256(classes: int, channels: int, size: Size) -> nn.Module:
    """One hidden layer of 256, ReLU; images or tabular data."""
    return _dense(channels * size[0] * size[1], 256, classes)


@classic(in_chans=1, img_size=28)
def lenet5(classes: int, channels: int, size: Size) -> nn.Module:
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998), 61,706 parameters on 28x28.

    For 32x32 it is as published. From 28x28 the first convolution pads to 32x32; for smaller images both convolutions pad, so
    that only the two poolings reduce the size (at least 4x4).
    """
    side = min(size)
    if side < 4:
        raise ValueError("LeNet-5 needs images of at least 4x4 pixels")
    first, second = 2 if side < 32 else 0, 2 if side < 28 else 0
    height, width = (((s + 2 * first - 4) // 2 + 2 * second - 4) // 2 for s in size)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=first),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5, padding=second),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * height * width, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, classes),
        )
    )


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def initialised(model: nn.Module) -> nn.Module:
    """Initialise convolutions as He et al. (2015) for ReLU; other parameters keep the default of torch."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class _BasicBlock(nn.Module):
    """The residual block of He et al. (2016), with shortcut option A if the shape changes: no parameters, every second pixel, zeros
    for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride == 1:
            return functional.relu(x + y)
        # Equal to a shortcut padded with zeros, but channels can be removed from it.
        old, new = torch.split(y, [x.shape[1], y.shape[1] - x.shape[1]], dim=1)
        return functional.relu(torch.cat([old + x[:, :, :: self.stride, :: self.stride], new], dim=1))


def _resnet20(width: int, classes: int, channels: int) -> nn.Module:
    """ResNet-20 whose three stages have `width`, 2 · `width` and 4 · `width` channels."""
    a, b, c = width, 2 * width, 4 * width
    shapes = [(a, a, 1)] * 3 + [(a, b, 2)] + [(b, b, 1)] * 2 + [(b, c, 2)] + [(c, c, 1)] * 2
    stem = [conv3(channels, a), nn.BatchNorm2d(a), nn.ReLU()]
    blocks = [_BasicBlock(*shape) for shape in shapes]
    return initialised(_convolutional([*stem, *blocks], c, classes))


@classic(in_chans=3, img_size=32)
def resnet20(classes: int, channels: int, size: Size) -> nn.Module:
    """The CIFAR ResNet-20 (He et al. 2016), widths 16-32-64, parameter-free shortcuts, 0.27 M parameters."""
    return _resnet20(16, classes, channels)


@classic(in_chans=3, img_size=32)
def resnet20_narrow(classes: int, channels: int, size: Size) -> nn.Module:
    """ResNet-20 of half the width, 8-16-32, 68,000 parameters."""
    return _resnet20(8, classes, channels)


class _WideBlock(nn.Module):
    """The pre-activation block of Zagoruyko & Komodakis (2016), without dropout; a 1x1 shortcut if the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x))
        residual: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


@classic(in_chans=3, img_size=32)
def wrn16_4(classes: int, channels: int, size: Size) -> nn.Module:
    """Wide ResNet 16-4 (Zagoruyko & Komodakis 2016), 2.7 M parameters."""
    shapes = [(16, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    blocks = [_WideBlock(*shape) for shape in shapes]
    layers = [conv3(channels, 16), *blocks, nn.BatchNorm2d(256), nn.ReLU()]
    return initialised(_convolutional(layers, 256, classes))


def _convolutional(features: list[nn.Module], width: int, classes: int) -> nn.Module:
    """Feature layers with `width` output channels, the mean over the image, and a linear classifier."""
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(width, classes),
        )
    )


def small_vgg(depths: tuple[int, ...], classes: int, channels: int, size: Size) -> nn.Module:
    """VGG (Simonyan & Zisserman 2015) with batch norm and one linear layer; there is no pooling of a single pixel."""
    layers: list[nn.Module] = []
    side = min(size)
    for width, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
        for _ in range(depth):
            layers += [conv3(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        if side >= 2:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return initialised(_convolutional(layers, channels, classes))


@classic(in_chans=3, img_size=32)
def vgg_narrow(classes: int, channels: int, size: Size) -> nn.Module:
    """Like VGG: four 3x3 convolutions of 16, 32, 64 and 64 channels with batch norm, each with ReLU and pooling; 61,000 parameters."""
    layers: list[nn.Module] = []
    side = min(size)
    for inputs, width in pairwise((channels, 16, 32, 64, 64)):
        layers += [conv3(inputs, width), nn.BatchNorm2d(width), nn.ReLU()]
        if side >= 2:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return initialised(_convolutional(layers, 64, classes))


@classic(in_chans=1, img_size=8)
def vit_micro_patch4(classes: int, channels: int, size: Size) -> nn.Module:
    """A vision transformer of one block, width 48, 4 heads, patches of 4x4, class token.

    Weights are initialised by Xavier's rule (`moco` in timm); the default standard deviation of 0.02 is too small for this width.
    """
    return VisionTransformer(
        img_size=size,
        patch_size=4,
        in_chans=channels,
        num_classes=classes,
        embed_dim=48,
        depth=1,
        num_heads=4,
        mlp_ratio=4,
        weight_init="moco",
    )
