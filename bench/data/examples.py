"""Turn examples of any source into whole tensors, and check them. Every error names the data set and the part."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.data.picture import memory, refuse_too_many, resized, upright_rgb
from bench.spec.errors import UserError
from bench.spec.own_file import one_line

PARTS = ("train", "validation", "test")


class Part(NamedTuple):
    """A part of a data set: inputs, uint8 or float (n, c, h, w), or float (n, features); labels int64 (n,)."""

    inputs: Tensor
    targets: Tensor


def stacked(title: str, items: Iterable[tuple[Any, Any]], size: tuple[int, int] | None = None, fit: bool = False) -> tuple[Part, bool]:
    """The examples of a part, stacked.

    Args:
        title: the part in messages.
        items: pairs of an input (PIL image, array (h, w) or (h, w, c), tensor (c, h, w) or (h, w), or row of features) and a label.
        size: size of all images as (width, height); None: that of the first one.
        fit: whether images of another size are scaled, which works for PIL images only; otherwise they are an error.

    Returns:
        The part, and whether all inputs are PIL images.

    Raises:
        UserError: an example is not as it must be.
    """
    inputs: list[Tensor] = []
    labels: list[int] = []
    pictures = True
    for index, item in enumerate(items):
        where = f"{title}: example {index}"
        try:
            value, label = item
        except (TypeError, ValueError):
            raise UserError(f"{where} is {_kind(item)}, not a pair of an input and a label") from None
        picture = hasattr(value, "convert")
        if picture and fit:
            value = resized(upright_rgb(value), size)
            size = size or value.size
            refuse_too_many(title, index + 1, size, 6, memory())  # three bytes each, and again while they are stacked
        pictures &= picture
        inputs.append(_input(where, value))
        if inputs[-1].shape != inputs[0].shape or inputs[-1].dtype != inputs[0].dtype:
            raise UserError(f"{where} is {_described(inputs[-1])}, the first one is {_described(inputs[0])}; all inputs must be alike")
        labels.append(_label(where, label))
    if not inputs:
        raise UserError(f"{title} is empty")
    return Part(torch.stack(inputs), torch.tensor(labels)), pictures


def paired(title: str, inputs: Any, targets: Any) -> Part:
    """A part from whole tensors or arrays; raises UserError if these cannot be inputs and labels."""
    found = []
    for name, value in (("inputs", inputs), ("labels", targets)):
        try:
            found.append(value.detach().cpu().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C")))
        except (TypeError, ValueError) as error:
            raise UserError(f"{title}: the {name} are {_kind(value)}, not a tensor or an array: {one_line(error)}") from None
    x, y = found
    if y.ndim != 1:
        raise UserError(f"{title}: the labels have shape {tuple(y.shape)}; they must be one integer for each example, (n,)")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"{title}: the labels are {_type(y)}; they must be integers")
    if not x.ndim or len(x) != len(y):
        raise UserError(f"{title}: there are {len(x) if x.ndim else 0} inputs and {len(y)} labels")
    return Part(x, y.long())


def checked(name: str, parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts of a data set, after checking that they fit together.

    Args:
        name: name of the data set, for messages.
        parts: "train", "test" and perhaps "validation".

    Raises:
        UserError: an input has another form than those of `Part`, is not finite, or differs between parts; or labels of train are not
            0 to classes - 1, or another part has a class that train does not have.
    """
    check_inputs(name, parts)
    check_labels(name, parts)
    return {part: Part(x if x.dtype == torch.uint8 else x.float() if x.ndim == 4 else x.double(), y) for part, (x, y) in parts.items()}


def check_inputs(name: str, parts: Mapping[str, Part]) -> None:
    """Raise UserError if inputs of a part have another form than those of `Part`, are not finite, or differ in size from train's."""
    for part, (inputs, _) in parts.items():
        _check_inputs(f"dataset '{name}': {part}", inputs)
    first = parts["train"].inputs
    for part, (inputs, _) in parts.items():
        if inputs.shape[1:] != first.shape[1:] or inputs.dtype != first.dtype:
            raise UserError(f"dataset '{name}': {part} has inputs of {_described(inputs[0])}, train of {_described(first[0])}")


def check_labels(name: str, parts: Mapping[str, Part]) -> None:
    """Raise UserError if the labels of train are not 0 to classes - 1, or another part has a label that train does not have."""
    for part, (_, targets) in parts.items():
        if int(targets.min()) < 0:
            raise UserError(f"dataset '{name}': {part} has the label {int(targets.min())}; labels are 0 to classes - 1")
    known = set(parts["train"].targets.tolist())
    missing = next((label for label in range(max(known)) if label not in known), None)
    if missing is not None:
        raise UserError(f"dataset '{name}': train has labels up to {max(known)}, but no example with the label {missing}")
    for part, (_, targets) in parts.items():
        strange = sorted(set(targets.tolist()) - known)
        if strange:
            raise UserError(f"dataset '{name}': {part} has the label {strange[0]}, which no example of train has")


def coloured(parts: Mapping[str, Part], pictures: bool) -> dict[str, Part]:
    """The parts, with one channel if they are pictures and all of them are grey."""
    if not pictures:
        return dict(parts)
    grey = all(torch.equal(part.inputs[:, :1].expand_as(part.inputs), part.inputs) for part in parts.values())
    return {name: Part(x[:, :1].contiguous() if grey else x, targets) for name, (x, targets) in parts.items()}


def _check_inputs(title: str, inputs: Tensor) -> None:
    if not len(inputs):
        raise UserError(f"{title} is empty")
    if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
        raise UserError(f"{title}: the inputs are {_type(inputs)}; they must be uint8 images or floating-point numbers")
    images = inputs.ndim == 4
    if not images and not (inputs.ndim == 2 and inputs.is_floating_point()):
        hint = "; add the axis of the channels: inputs[:, None]" * (inputs.ndim == 3)
        forms = "images (n, channels, height, width) or floating-point rows (n, features)"
        raise UserError(f"{title}: the inputs are {_type(inputs)} of shape {tuple(inputs.shape)}, not {forms}{hint}")
    height, width, last = inputs.shape[1:] if images else (0, 0, 0)
    if min(height, width) > 4 and (last == 3 or (last in (1, 4) and height == width)):
        raise UserError(
            f"{title}: inputs of shape {tuple(inputs.shape)} have their channels last; images are (n, channels, height, width):"
            " inputs.transpose(0, 3, 1, 2) of an array, inputs.permute(0, 3, 1, 2) of a tensor"
        )
    if not inputs.numel():
        raise UserError(f"{title}: inputs of shape {tuple(inputs.shape)} have no values")
    if inputs.is_floating_point() and not inputs.isfinite().all():
        index = int((~inputs.isfinite()).flatten(1).any(1).nonzero()[0])
        raise UserError(f"{title}: example {index} has values that are NaN or infinite")


def _input(where: str, value: Any) -> Tensor:
    """One input as a tensor, images with their channels first."""
    if hasattr(value, "convert"):
        try:
            value = np.asarray(upright_rgb(value))
        except (OSError, ValueError) as error:
            raise UserError(f"{where} cannot be read as an image: {one_line(error)}") from None
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise UserError(f"{where} is an array of {value.dtype}, not of numbers")
        array = torch.from_numpy(np.array(value, order="C"))
        if array.ndim in (1, 2, 3):
            return array.permute(2, 0, 1).contiguous() if array.ndim == 3 else array[None] if array.ndim == 2 else array
    if isinstance(value, Tensor) and value.ndim in (1, 2, 3):
        return (value[None] if value.ndim == 2 else value).detach().cpu()
    raise UserError(f"{where} is {_kind(value)}, not a PIL image, an array (h, w) or (h, w, c), a tensor (c, h, w) or a row of features")


def _label(where: str, label: Any) -> int:
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise UserError(f"{where}: its label is {label!r}, not an integer")
    return int(label)


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def _described(tensor: Tensor) -> str:
    return f"{_type(tensor)} {tuple(tensor.shape)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
