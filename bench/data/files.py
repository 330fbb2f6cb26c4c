"""Write a file of the cache at once, and the digest of tensors."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor


def write(file: Path, content: Callable[[Path], object]) -> None:
    """Call `content` with a temporary name, then rename: readers see the whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".partial-") as scratch:
        content(Path(scratch) / file.name)
        os.replace(Path(scratch) / file.name, file)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 (hex) of the dtypes, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(-1).numpy().data)
    return found.hexdigest()


def line(error: BaseException) -> str:
    """The first line of the message of an error, or its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
