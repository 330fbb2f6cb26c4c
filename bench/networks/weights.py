"""Initial weights from a checkpoint of the user: a safetensors file with the names and shapes of the network."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.spec.errors import UserError, nearest

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
CONVERT = "safetensors.torch.save_file(torch.load('{file}', weights_only=True), '{stem}.safetensors')"


def digest(path: str) -> str:
    """SHA-256 (hex) of the content of a checkpoint.

    Raises:
        UserError: it is missing, or its name does not end in .safetensors.
    """
    file = _checked(path)
    stat = file.stat()
    return _digest(file, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=64)
def _digest(file: Path, *_: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load(model: nn.Module, path: str, title: str) -> None:
    """Set the weights and buffers of a network to those of a checkpoint, in place.

    Args:
        model: the network.
        path: a safetensors file with every tensor of the network's state dict, under its name. Numbers are converted to the network's
            type.
        title: the network in messages.

    Raises:
        UserError: the file is missing or not in this format, or the names or shapes of its tensors differ from the network's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = _checked(path)
    try:
        given = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"weights '{path}' cannot be read as safetensors: {' '.join(str(error).split())}") from None
    wanted = model.state_dict()
    _check_names(path, title, wanted, given)
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, in {title} it is {tuple(wanted[name].shape)}"
            raise UserError(f"weights '{path}': the shape of '{name}' is {shapes}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"weights '{path}': '{name}' has values that are not finite")
    model.load_state_dict(given, strict=False)  # names are checked: only further names of shared tensors are missing


def _checked(path: str) -> Path:
    """The file, if it may be a safetensors file."""
    file = Path(path).expanduser()
    if file.suffix.lower() in PICKLED:
        how = CONVERT.format(file=path, stem=file.with_suffix("").name)
        raise UserError(f"weights '{path}': this format can run code and is not read; convert the state dict once: {how}")
    if not file.is_file():
        there = [p.name for p in file.parent.glob("*.safetensors")] if file.parent.is_dir() else []
        raise UserError(f"weights '{path}': there is no such file{nearest(file.name, there)}")
    if file.suffix != ".safetensors":
        raise UserError(f"weights '{path}': only a .safetensors file is read")
    return file


def _check_names(path: str, title: str, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Refuse missing and unexpected tensors. One of several names of a shared tensor is enough, as safetensors stores it."""
    there = {_storage(wanted[name]) for name in given if name in wanted}
    missing = next((name for name, tensor in wanted.items() if name not in given and _storage(tensor) not in there), None)
    if missing is not None:
        raise UserError(f"weights '{path}': the tensor '{missing}' of {title} is missing{nearest(missing, given)}")
    unexpected = next((name for name in given if name not in wanted), None)
    if unexpected is not None:
        raise UserError(f"weights '{path}': {title} has no tensor '{unexpected}'{nearest(unexpected, wanted)}")


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    """What equal tensors share; the number of elements keeps empty tensors, which have no address, apart."""
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.storage_offset()
