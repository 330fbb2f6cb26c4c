"""From a name to a network that fits the data: the timm door.

The small classic networks of the pruning literature are registered with timm, so that importing this module
makes `timm.create_model("lenet5")` work; `create` fits these and any timm architecture to a dataset.
"""

import math
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from bench.networks.classics import CLASSICS, SMALL_VGG, SMALL_VGG_SIDE, TABULAR, Size, small_vgg
from bench.spec.errors import UserError, nearest

__all__ = ["accepts", "create", "describe", "fitted_patch", "names", "timm_names"]


def names() -> list[str]:
    """The classic networks defined here."""
    return [*CLASSICS, *SMALL_VGG]


def timm_names() -> list[str]:
    """Every architecture timm itself brings."""
    return [name for name in timm.list_models() if name not in CLASSICS]


def describe(name: str) -> str:
    """One short line about architecture `name`. Raises UserError for an unknown one."""
    _check_known(name)
    if name in SMALL_VGG:
        return f"VGG-{name[3:5]}, batch norm, one linear layer, up to {SMALL_VGG_SIDE} pixels; timm's above"
    if name in CLASSICS:
        return (CLASSICS[name].__doc__ or "").splitlines()[0].rstrip(".")
    return f"from timm {timm.__version__}"


def accepts(name: str, input_shape: tuple[int, ...]) -> bool:
    """Is `name` meant for examples of this shape: images (c, h, w); the MLPs also rows (features,)?"""
    return len(input_shape) == 3 or (len(input_shape) == 1 and name in TABULAR)


def create(name: str, input_shape: tuple[int, ...], classes: int, pretrained: bool = False) -> nn.Module:
    """Architecture `name` with `classes` outputs for examples of `input_shape`, in training mode.

    Any timm name will do, with its tag or without; channels, image size and patch size are fitted where the
    network has them. Initial weights are drawn from torch's global generator. Raises UserError for an unknown
    name, a shape the network cannot take (a forward pass on zeros decides) and weights that cannot be had.
    """
    _check_known(name)
    if not accepts(name, input_shape):
        raise UserError(
            f"architecture {name!r} takes images, not inputs of shape {input_shape}: {' and '.join(TABULAR)} take rows of features"
        )
    # A row of features is an image of one pixel with as many channels.
    channels, *size = input_shape if len(input_shape) == 3 else (*input_shape, 1, 1)
    shape = (channels, size[0], size[1])
    if pretrained and (name in CLASSICS or _is_small_vgg(name, shape)):
        raise UserError(f"architecture {name!r} has no pretrained weights at shape {input_shape}")
    reason = ""
    for options in _options(name, shape, classes):
        try:
            model = _verified(_build(name, shape, classes, False, options), input_shape, classes)
            break
        except Exception as error:  # each network refuses in its own way; here it only matters that it does
            if not reason or not isinstance(error, TypeError):  # mostly a keyword it does not have
                reason = _line(error)
    else:
        raise UserError(f"architecture {name!r} cannot take inputs of shape {input_shape}: {reason}")
    if pretrained:
        try:
            model = _build(name, shape, classes, True, options)
        except Exception as error:
            raise UserError(f"architecture {name!r}: no pretrained weights: {_line(error)}") from error
    return model.train()


def fitted_patch(size: Size, own: int) -> int:
    """The side in pixels of the patches to cut an image of `size` into, where the network's own are `own`.

    Its own where these give at least 7 a side and nothing is left over; otherwise the largest divisor up to
    `own` that gives 7, or half the side on images below 14: 2 on 8 pixels, 4 on 28 and 32, 16 on 224.
    """
    common, side = math.gcd(*size), min(size)
    if common % own == 0 and side // own >= 7:
        return own
    divisors = [patch for patch in range(1, min(own, common) + 1) if common % patch == 0]
    return max(patch for patch in divisors if patch == 1 or side // patch >= min(7, side // 2))


def _check_known(name: str) -> None:
    if not timm.is_model(name) or ("." in name and name not in timm.list_models(include_tags=True)):
        hint = "any timm name" + nearest(name, [*names(), *timm_names()])
        raise UserError(f"unknown architecture {name!r}: choose from {', '.join(names())} or {hint}")


def _is_small_vgg(name: str, shape: tuple[int, int, int]) -> bool:
    return name in SMALL_VGG and max(shape[1:]) <= SMALL_VGG_SIDE


def _options(name: str, shape: tuple[int, int, int], classes: int) -> list[dict[str, Any]]:
    """Arguments by which timm may build the network for (channels, height, width), the best fitted first."""
    size = shape[1:]
    if name in CLASSICS or _is_small_vgg(name, shape):
        return [{"img_size": size}]
    with torch.device("meta"):  # costs neither memory nor random numbers
        probe = timm.create_model(name, num_classes=classes, in_chans=shape[0])
    plain: list[dict[str, Any]] = [{"img_size": size}, {}]  # most convolutional networks know no img_size
    own = _own_patch(probe)
    if own is None:  # a convolutional stem of patches, as ConvNeXt's, may be too coarse
        return [*plain, {"patch_size": 2}, {"patch_size": 1}]
    patch = fitted_patch(size, own)
    if patch == own:
        return plain
    if isinstance(probe, MlpMixer):  # as many patches of its own side; `_build` then gives it a stem of ours
        return [{"img_size": (size[0] // patch * own, size[1] // patch * own)}]
    fitted: list[dict[str, Any]] = [{"img_size": size, "patch_size": patch}, {"patch_size": patch}]
    return [*fitted, *plain] if min(size) >= own else fitted


def _own_patch(model: nn.Module) -> int | None:
    """The side of the patches a transformer or mixer cuts its images into; None for other networks."""
    for stem in ("patch_embed", "stem"):
        patch = getattr(getattr(model, stem, None), "patch_size", None)
        if patch is not None:
            return int(patch[0] if isinstance(patch, tuple) else patch)
    return None


def _build(name: str, shape: tuple[int, int, int], classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    channels, size = shape[0], shape[1:]
    if _is_small_vgg(name, shape):
        return small_vgg(SMALL_VGG[name], classes, channels, size)
    model = timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels, **options)
    if isinstance(model, MlpMixer) and model.stem.img_size != size:
        # timm's mixers refuse `patch_size`; past the stem, though, only the number of patches matters.
        patch = size[0] // model.stem.grid_size[0]
        model.stem = PatchEmbed(size, patch, channels, model.embed_dim)
        if not pretrained:
            model.init_weights()
    return model


def _verified(model: nn.Module, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The model, if it turns two examples into finite (2, classes); raises ValueError, or what it raises."""
    zeros = torch.zeros(2, *input_shape, device=next(model.parameters()).device)
    with torch.no_grad():
        output = model.eval()(zeros)
    if not isinstance(output, Tensor) or output.shape != (2, classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"its output for 2 examples is {found}, not {(2, classes)}")
    if not output.is_meta and not output.isfinite().all():
        raise ValueError("its output for zeros is not finite")
    return model


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
