"""Build a network by name and fit it to a data set; the only use of timm for networks.

Importing this module registers the small classic networks of the pruning literature with timm, so `timm.create_model("lenet5")`
works. `create` fits these and any timm architecture to a data set, and calls a network of the user's own (`bench.networks.own`).
"""

import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

import methods
from bench.networks import (
    own,
    plugins,
    without_norms,  # noqa: F401 (registers its networks)
)
from bench.networks.classics import CLASSICS, SMALL_VGG, SMALL_VGG_SIDE, TABULAR, Size, small_vgg
from bench.networks.own import OFFERED
from bench.spec import own_file
from bench.spec.errors import UserError, nearest

__all__ = [
    "OFFERED", "accepts", "built", "check_head", "create", "describe", "fitted_patch", "moments", "names", "timm_names", "version",
]  # fmt: skip
KIND = "architecture"


def names() -> list[str]:
    """The classic networks defined here."""
    return [*CLASSICS, *SMALL_VGG]


def timm_names() -> list[str]:
    """All architectures of timm."""
    return [name for name in timm.list_models() if name not in CLASSICS]


def describe(name: str) -> str:
    """A short description of an architecture; raises UserError for an unknown name, or a file that cannot be imported."""
    _check_known(name)
    if own_file.is_own(KIND, name):
        about = next(iter((own_file.function(KIND, name).__doc__ or "").strip().splitlines()), "")
        return about.rstrip(".") or "a network of your own"
    if name in SMALL_VGG:
        return f"VGG-{name[3:5]}, batch norm, one linear layer, up to {SMALL_VGG_SIDE} pixels; the network of timm for larger images"
    if name in CLASSICS:
        return (CLASSICS[name].__doc__ or "").splitlines()[0].rstrip(".")
    return f"from timm {timm.__version__}"


def accepts(name: str, input_shape: tuple[int, ...]) -> bool:
    """Whether an architecture accepts examples of this shape: images (c, h, w); the MLPs also rows (features,).

    A network of the user's own is tried on both.
    """
    return own_file.is_own(KIND, name) or len(input_shape) == 3 or (len(input_shape) == 1 and name in TABULAR)


def create(name: str, input_shape: tuple[int, ...], classes: int, pretrained: bool = False) -> nn.Module:
    """Build a network, in training mode.

    Channels, image size and patch size are fitted to the examples if the architecture allows it. Initial weights are drawn from
    torch's global generator.

    Args:
        name: a name from `names()`, any timm name, with or without its tag, `FILE.py:NAME`, or the name of an entry point.
        input_shape: shape of one example, (channels, height, width) or (features,).
        classes: number of outputs.
        pretrained: whether to load the pretrained weights of timm.

    Raises:
        UserError: if the name is unknown, the network does not accept the shape (tested by a forward pass on zeros), or there are no
            pretrained weights.
    """
    _check_known(name)
    if own_file.is_own(KIND, name):
        if pretrained:
            raise UserError(f"architecture '{name}' has no pretrained weights of timm; give a checkpoint by --weights")
        return built(own_file.function(KIND, name), f"architecture '{name}'", input_shape, classes)
    if not accepts(name, input_shape):
        raise UserError(
            f"architecture {name!r} takes images, not inputs of shape {input_shape}; {' and '.join(TABULAR)} accept rows of features"
        )
    # A row of features is treated as an image of one pixel with one channel per feature.
    channels, *size = input_shape if len(input_shape) == 3 else (*input_shape, 1, 1)
    shape = (channels, size[0], size[1])
    if pretrained and (name in CLASSICS or _is_small_vgg(name, shape)):
        raise UserError(f"architecture {name!r} has no pretrained weights at shape {input_shape}")
    reason = ""
    for options in _options(name, shape, classes):
        try:
            model = _verified(_build(name, shape, classes, False, options), input_shape, classes)
            break
        except Exception as error:  # networks raise all kinds of exceptions
            if not reason or not isinstance(error, TypeError):  # usually an unknown keyword
                reason = _line(error)
    else:
        raise UserError(f"architecture {name!r} cannot take inputs of shape {input_shape}: {reason}")
    if pretrained:
        try:
            model = _build(name, shape, classes, True, options)
        except Exception as error:
            raise UserError(f"architecture {name!r}: no pretrained weights: {_line(error)}") from error
    return model.train()


def moments(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels in [0, 1], that the pretrained weights of an architecture expect.

    Raises:
        UserError: the architecture has no pretrained weights.
    """
    known = _pretrained_cfg(name)
    return tuple(known.mean), tuple(known.std)


def check_head(name: str, classes: int) -> None:
    """Raise UserError if the pretrained weights of an architecture are for another number of classes, so that its last layer is random."""
    known = _pretrained_cfg(name)
    if known.num_classes != classes:
        raise UserError(
            f"the pretrained weights of {name!r} have {known.num_classes} classes and the data {classes}, so its last layer is random: "
            "train with epochs of 1 or more, or give weights of your own"
        )


def _pretrained_cfg(name: str) -> Any:
    _check_known(name)
    known = timm.get_pretrained_cfg(name)
    if known is None:
        raise UserError(f"architecture {name!r} has no pretrained weights")
    return known


def built(function: Callable[..., Any], title: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network that a user's function makes for a data set, in training mode.

    Args:
        function: see `bench.networks.own.made_by`.
        title: the network in messages.
        input_shape: shape of one example.
        classes: number of outputs.

    Raises:
        UserError: the function or its result is not as it must be; the outputs for two examples are computed as a test.
    """
    model = own.made_by(function, title, input_shape, classes)
    try:
        return _verified(model, input_shape, classes).train()
    except Exception as error:  # networks raise all kinds of exceptions
        raise UserError(f"{title} cannot take inputs of shape {tuple(input_shape)}: {_line(error)}") from error


def version(name: str) -> str:
    """The hash of the code of a network that is not timm's or razorbench's; '' for these, whose code the versions of packages fix.

    Args:
        name: a name that `create` accepts. A file that has changed is imported again.
    """
    if own_file.is_own(KIND, name):
        return own_file.version(KIND, name)
    module = plugins.module_of(name)
    try:
        return "" if module is None else methods.source_hash(module)
    except (OSError, TypeError):  # registered without a file, e.g. in a notebook
        return ""


def fitted_patch(size: Size, own: int) -> int:
    """The patch size for images of a size.

    Args:
        size: (height, width) in pixels.
        own: patch size of the network in pixels.

    Returns:
        `own` if it divides the image and gives at least 7 patches per side. Otherwise the largest divisor up to `own` that gives 7
        patches per side, or half the side for images below 14 pixels: 2 for 8 pixels, 4 for 28 and 32, 16 for 224.
    """
    common, side = math.gcd(*size), min(size)
    if common % own == 0 and side // own >= 7:
        return own
    divisors = [patch for patch in range(1, min(own, common) + 1) if common % patch == 0]
    return max(patch for patch in divisors if patch == 1 or side // patch >= min(7, side // 2))


def _check_known(name: str) -> None:
    known = timm.is_model(name) and ("." not in name or name in timm.list_models(include_tags=True)) and not plugins.is_stale(name)
    if own_file.is_own(KIND, name):
        if known:
            raise UserError(f"'{name}' names two networks: one of timm or razorbench, and an entry point of {own_file.GROUPS[KIND]}")
    elif not known:
        form = " (a network of your own is written FILE.py:NAME, with the name of the function)" * name.endswith(".py")
        entries = own_file.entry_names(KIND)
        hint = f"any timm name or {own_file.FORM}" + nearest(name, [*names(), *entries, *timm_names()]) + form
        raise UserError(f"unknown architecture {name!r}: choose from {', '.join([*names(), *entries])} or {hint}")


def _is_small_vgg(name: str, shape: tuple[int, int, int]) -> bool:
    return name in SMALL_VGG and max(shape[1:]) <= SMALL_VGG_SIDE


def _options(name: str, shape: tuple[int, int, int], classes: int) -> list[dict[str, Any]]:
    """Arguments for timm to try for examples of (channels, height, width), in order of preference."""
    size = shape[1:]
    if name in CLASSICS or _is_small_vgg(name, shape):
        return [{"img_size": size}]
    plain: list[dict[str, Any]] = [{"img_size": size}, {}]  # most convolutional networks have no img_size
    try:
        with torch.device("meta"):  # uses no memory and no random numbers
            probe = timm.create_model(name, num_classes=classes, in_chans=shape[0])
    except Exception:  # a network of a plug-in may need the size; `create` reports what it raises then
        return plain
    own = _own_patch(probe)
    if own is None:  # the patches of a convolutional stem, e.g. of ConvNeXt, may be too large
        return [*plain, {"patch_size": 2}, {"patch_size": 1}]
    patch = fitted_patch(size, own)
    if patch == own:
        return plain
    if isinstance(probe, MlpMixer):  # the same number of patches of its own size; `_build` then replaces the stem
        return [{"img_size": (size[0] // patch * own, size[1] // patch * own)}]
    fitted: list[dict[str, Any]] = [{"img_size": size, "patch_size": patch}, {"patch_size": patch}]
    return [*fitted, *plain] if min(size) >= own else fitted


def _own_patch(model: nn.Module) -> int | None:
    """The patch size of a transformer or mixer; None for other networks."""
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
        # Mixers of timm do not accept `patch_size`, but after the stem only the number of patches matters.
        patch = size[0] // model.stem.grid_size[0]
        model.stem = PatchEmbed(size, patch, channels, model.embed_dim)
        if not pretrained:
            model.init_weights()
    return model


def _verified(model: nn.Module, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The model, after checking that its outputs for two examples are finite and have shape (2, classes); raises ValueError."""
    zeros = torch.zeros(2, *input_shape, device=next(model.parameters()).device)
    with torch.no_grad():
        output = model.eval()(zeros)
    if not isinstance(output, Tensor) or output.shape != (2, classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"its output for 2 examples is {found}, but the expected shape is {(2, classes)}")
    if not output.is_meta and not output.isfinite().all():
        raise ValueError("its output for zeros is not finite")
    return model


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
