"""Networks without normalisation, registered with timm: those of the released code of SpaM (Dhahri et al. 2024).

Kronecker-factored curvature is defined for them in every layer. Fixup initialisation (Zhang, Dauphin, Ma 2019, "Fixup initialization:
residual learning without normalization") takes the place of batch norm in residual networks: with L residual branches of two
convolutions, the first one has He's initialisation times L^(-1/2), the second one and the classifier start at zero, and scalars
shift the inputs of activations and convolutions and scale each branch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.networks.classics import Size, classic, conv3


class Shift(nn.Module):
    """x + b with one number b, at first 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """The shifted activations."""
        return x + self.bias


class Scale(nn.Module):
    """a · x with one number a, at first 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """The scaled activations."""
        return x * self.weight


@torch.no_grad()
def _he(conv: nn.Conv2d, factor: float = 1.0) -> None:
    """He's initialisation for ReLU (fan-out), times a factor."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    conv.weight.mul_(factor)


class _FixupBlock(nn.Module):
    """Two convolutions, a scale, and a shortcut of every `stride`-th pixel with zeros for the new channels; `branches`: L."""

    def __init__(self, inputs: int, outputs: int, stride: int, branches: int) -> None:
        super().__init__()
        self.shift1, self.conv1, self.shift2 = Shift(), conv3(inputs, outputs, stride), Shift()
        self.shift3, self.conv2, self.scale, self.shift4 = Shift(), conv3(outputs, outputs), Scale(), Shift()
        self.stride = stride
        _he(self.conv1, branches**-0.5)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """relu(shortcut + branch)."""
        shifted = self.shift1(x)
        y: Tensor = self.conv1(shifted)
        y = self.shift4(self.scale(self.conv2(self.shift3(functional.relu(self.shift2(y))))))
        if self.stride == 1:
            return functional.relu(x + y)
        old, new = torch.split(y, [x.shape[1], y.shape[1] - x.shape[1]], dim=1)
        return functional.relu(torch.cat([old + shifted[:, :, :: self.stride, :: self.stride], new], dim=1))


class _WideFixupBlock(nn.Module):
    """The pre-activation block of a wide ResNet; a 1x1 shortcut if the width changes. `branches`: L."""

    def __init__(self, inputs: int, outputs: int, stride: int, branches: int) -> None:
        super().__init__()
        self.shift1, self.conv1, self.shift2 = Shift(), conv3(inputs, outputs, stride), Shift()
        self.shift3, self.conv2, self.scale, self.shift4 = Shift(), conv3(outputs, outputs), Scale(), Shift()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        _he(self.conv1, branches**-0.5)
        nn.init.zeros_(self.conv2.weight)
        if self.shortcut is not None:
            _he(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Shortcut + branch."""
        active = functional.relu(self.shift1(x))
        y: Tensor = self.shift3(functional.relu(self.shift2(self.conv1(active))))
        y = self.shift4(self.scale(self.conv2(y)))
        return y + (x if self.shortcut is None else self.shortcut(active))


def _fixup(stem: list[nn.Module], blocks: list[nn.Module], width: int, classes: int) -> nn.Module:
    """A network of a stem, residual blocks, the mean over the image, a shift, and a classifier that starts at zero."""
    classifier = nn.Linear(width, classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return nn.Sequential(nn.Sequential(*stem, *blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Shift(), classifier)


def _fixup_wrn16(stem_width: int, width: int, classes: int, channels: int) -> nn.Module:
    """Wide ResNet 16 with Fixup: a stem, and three stages of `width`, 2 · `width` and 4 · `width` channels."""
    a, b, c = width, 2 * width, 4 * width
    shapes = [(stem_width, a, 1), (a, a, 1), (a, b, 2), (b, b, 1), (b, c, 2), (c, c, 1)]
    stem = conv3(channels, stem_width)
    _he(stem)
    blocks = [_WideFixupBlock(*shape, branches=len(shapes)) for shape in shapes]
    return _fixup([stem, Shift()], [*blocks, nn.ReLU()], c, classes)


@classic(in_chans=3, img_size=32)
def fixup_wrn16_4(classes: int, channels: int, size: Size) -> nn.Module:
    """Wide ResNet 16-4 with Fixup instead of batch norm (Zhang et al. 2019), 2.7 M parameters."""
    return _fixup_wrn16(16, 64, classes, channels)


@classic(in_chans=3, img_size=32)
def fixup_wrn16_narrow(classes: int, channels: int, size: Size) -> nn.Module:
    """Wide ResNet 16 with Fixup instead of batch norm, stages of 8, 16 and 32 channels, 44,000 parameters."""
    return _fixup_wrn16(8, 8, classes, channels)


@classic(in_chans=3, img_size=32)
def fixup_resnet18(classes: int, channels: int, size: Size) -> nn.Module:
    """ResNet-18 for small images with Fixup instead of batch norm, widths 64 to 512, 11 M parameters."""
    shapes = [(64, 64, 1)] * 2 + [(64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    stem = conv3(channels, 64)
    _he(stem)
    blocks: list[nn.Module] = [_FixupBlock(*shape, branches=len(shapes)) for shape in shapes]
    return _fixup([stem, Shift(), nn.ReLU()], blocks, 512, classes)


class _Residual(nn.Module):
    """x + the layers' output."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        made: Tensor = self.layers(x)
        return x + made


@classic(in_chans=1, img_size=28)
def residual_mlp(classes: int, channels: int, size: Size) -> nn.Module:
    """Two residual blocks of 256 hidden units, GELU, on flattened images; called MLPMixer in SpaM's code, though it mixes no patches."""
    width = channels * size[0] * size[1]
    blocks = [_Residual(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, width)) for _ in range(2)]
    return nn.Sequential(nn.Flatten(), nn.Linear(width, width), *blocks, nn.Linear(width, classes))


class _Attention(nn.Module):
    """Multi-head attention without biases."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same shape."""
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        made: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))
        return made


class _PlainViT(nn.Module):
    """Patches, fixed sine positions, one block of attention and MLP without norms, the mean over tokens, a classifier without bias."""

    def __init__(self, classes: int, channels: int, size: Size, patch: int, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(channels, width, patch, patch, bias=False)
        rows, columns = (math.ceil(side / patch) for side in size)
        self.register_buffer("positions", _sines(rows, columns, width), persistent=False)
        self.attention = _Residual(_Attention(width, heads, head_dim))
        self.mlp = _Residual(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width))
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, height, width) -> logits (n, classes). Images are padded with zeros to whole patches."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.mlp(self.attention(tokens)).mean(1))
        return logits


def _sines(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the row and the column of each token, (tokens, width), at width / 4 frequencies from 1 to 1e-4."""
    frequencies = 1e-4 ** torch.linspace(0.0, 1.0, width // 4)
    row, column = (
        place.flatten()[:, None] * frequencies for place in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)


@classic(in_chans=1, img_size=28)
def vit_plain_patch7(classes: int, channels: int, size: Size) -> nn.Module:
    """The vision transformer of SpaM's MNIST experiment: one block without norms, width 128, 8 heads of 64, patches of 7x7."""
    return _PlainViT(classes, channels, size, patch=7, width=128, heads=8, head_dim=64, hidden=256)
