"""Check the files of an exported network before anything is built: what the card says, and the names and shapes of all tensors."""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError
from torch import Tensor, nn

from bench.spec import strict_json

FORMAT = "razorbench.network.v1"
LARGEST_CARD = 10_000_000  # bytes
LARGEST_INPUT = 2**23  # numbers of one example: a network is tried on two of them
Whole = Annotated[int, Strict(), Field(ge=1, le=2**53)]
Shapes = dict[str, tuple[int, ...]]


class _Read(BaseModel):
    """Further keys of a card are for readers; `load` returns them as they are."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Architecture(_Read):
    """The network: its name, the shape of one example and the number of outputs."""

    name: str = Field(min_length=1, max_length=1000)
    input_shape: list[Whole] = Field(min_length=1, max_length=4)
    classes: Whole


class Card(_Read):
    """What `load` needs of card.json."""

    format: Literal["razorbench.network.v1"]
    architecture: Architecture
    granularity: str = Field(max_length=1000)
    compact: Annotated[bool, Strict()]
    sha256: str


def read(folder: Path) -> tuple[Card, dict[str, Any]]:
    """Read card.json, and check that the weights are those of the card.

    Args:
        folder: folder of an exported network.

    Returns:
        The checked part of the card, and its whole content.

    Raises:
        ValueError: a file is missing or is not what it must be. The message is one line.
    """
    with _opened(folder / "card.json") as file:
        text = file.read(LARGEST_CARD + 1)
    if len(text) > LARGEST_CARD:
        raise ValueError(f"card.json has more than {LARGEST_CARD} bytes")
    try:
        content = strict_json.loads_object(text)
    except ValueError as error:
        raise ValueError(f"card.json: {error}") from None
    try:
        card = Card.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"card.json: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    if math.prod(card.architecture.input_shape) > LARGEST_INPUT:
        raise ValueError(f"card.json: architecture.input_shape: an example has more than {LARGEST_INPUT} numbers")
    with _opened(folder / "model.safetensors") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != card.sha256:
            raise ValueError("model.safetensors is not the file that the card is for")
    return card, content


def _opened(path: Path) -> Any:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is not a plain file")
    return path.open("rb")


def shapes(path: Path) -> Shapes:
    """Name -> shape of each tensor of a safetensors file. Only its header is read.

    Raises:
        ValueError: it is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    _opened(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a safetensors file: {' '.join(str(error).split())}") from None


def check_weights(given: Shapes, model: nn.Module, compact: bool) -> None:
    """Check the names and shapes of weights against the dense network, which may be on the device meta.

    Args:
        given: name -> shape of each weight and buffer.
        model: the dense network.
        compact: whether the weights are those of a smaller network.

    Raises:
        ValueError: a tensor is missing, unexpected, or has another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    different = sorted(wanted.keys() ^ given.keys())
    if different:
        where = "the file has no" if different[0] in wanted else "the network has no"
        raise ValueError(f"{where} tensor '{different[0]}'")
    for name, shape in given.items():
        fits = shape == wanted[name]
        if compact:
            fits = len(shape) == len(wanted[name]) and all(a <= b for a, b in zip(shape, wanted[name], strict=True))
        if not fits:
            raise ValueError(f"the shape of '{name}' is {shape}, in the dense network it is {wanted[name]}")


def check_mask(kept: dict[str, Tensor], model: nn.Module) -> None:
    """Check the rows and columns that are left of each weight of the dense network.

    Args:
        kept: "rows.NAME" and "columns.NAME" -> bool tensor.
        model: the dense network, which may be on the device meta.

    Raises:
        ValueError: a tensor is missing, unexpected, or has another shape or type.
    """
    parameters = dict(model.named_parameters())
    for key, tensor in kept.items():
        part, _, name = key.partition(".")
        weight = parameters.get(name)
        pair = {f"rows.{name}", f"columns.{name}"} <= kept.keys()
        if part not in ("rows", "columns") or not pair or weight is None or weight.dim() < 2:
            raise ValueError(f"mask.safetensors: '{key}' is not the rows or columns of a weight")
        size = weight.shape[part == "columns"]
        if str(tensor.dtype) != "torch.bool" or tuple(tensor.shape) != (size,):
            raise ValueError(f"mask.safetensors: '{key}' must be {size} truth values, got {tensor.dtype} {tuple(tensor.shape)}")
