"""Decoded images in a file of the cache: written image by image, read through a memory map.

So the images may be larger than memory. The file has the format safetensors, which holds only numbers, and it contains the SHA-256 of its
tensors. As hashing takes minutes for hundreds of gigabytes, they are compared once: a small JSON file then notes size and time of change.
A file with the noted size and time is trusted, as the user's own images with a known path, size and time are.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from bench.data import images, picture
from bench.data.ahead import computed
from bench.data.files import digest, line, write
from bench.data.statistics import BLOCK
from bench.spec.errors import UserError
from bench.spec.own_file import one_line

# Counts the changes of what this module, `bench.data.images` and `bench.data.picture` make of files: a cache from before is not used.
DECODING = 4
THREADS = min(8, os.cpu_count() or 1)
Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Decoded(NamedTuple):
    """Images uint8 (n, channels, height, width) and labels int64 (n,) of train and test, and the SHA-256 of these four tensors."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    content: str


FIELDS = Decoded._fields[:4]


def decode(name: str, parts: Sequence[Path], expected: str, cache: Path | None = None, stamp: str | None = None) -> Decoded:
    """All images of train and test, memory-mapped.

    Args:
        name: name of the data set, for messages.
        parts: the two folders or tar archives.
        expected: the layout that is expected, for messages.
        cache: folder for decoded images; None: they are decoded each time, into a temporary file.
        stamp: the result of `key`, if it is known.

    Returns:
        The images. All have the size of the first one; one channel if all are grey, otherwise three. Classes are numbered in the order
        of their names, in which numbers count as numbers.

    Raises:
        UserError: a file cannot be read as an image, the folders are not classes, or the images do not fit on the disk.
    """
    if cache is None:
        with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            return _decoded(name, parts, expected, Path(scratch) / "images")
    stored = cache / f"images-{(stamp or key(name, parts))[:20]}.safetensors"
    return _mapped(stored) or _decoded(name, parts, expected, stored)


def key(name: str, parts: Sequence[Path]) -> str:
    """A hash of the path, size and time of every image file or archive, and of how they are decoded.

    Raises:
        UserError: a folder cannot be read.
    """
    folders = filter(Path.is_dir, parts)
    return _hash_of(chain(((str(p.absolute()), p.stat()) for p in parts), *(images.file_stats(name, folder) for folder in folders)))


def stamped(files: Iterable[Path]) -> str:
    """A hash of the path, size and time of files."""
    return _hash_of((str(file.absolute()), file.stat()) for file in files)


def _hash_of(stats: Iterable[tuple[str, os.stat_result]]) -> str:
    lines = sorted(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in stats)
    return hashlib.sha256("\n".join([f"decoded by rule {DECODING}", *lines]).encode(errors="surrogateescape")).hexdigest()


def _decoded(name: str, parts: Sequence[Path], expected: str, stored: Path) -> Decoded:
    with ExitStack() as archives:
        found = images.labelled(name, parts, expected, archives)
        try:
            write(stored, partial(_write, name, found))
        except OSError as error:
            raise UserError(f"decoded images cannot be stored in {stored.parent}: {line(error)}") from error
    read = _mapped(stored, fresh=True)
    if read is None:
        raise UserError(f"decoded images in {stored} cannot be read again")
    return read


def _mapped(file: Path, fresh: bool = False) -> Decoded | None:
    """The decoded images in a file; None if it is missing or damaged. `fresh`: this process has just written it."""
    from safetensors import SafetensorError, safe_open

    try:
        stat = file.stat()
        with safe_open(file, framework="pt") as stored:
            train, labels, test, test_labels = tensors = [stored.get_tensor(field) for field in FIELDS]
            content = (stored.metadata() or {}).get("sha256", "")
    except (OSError, SafetensorError):
        return None
    note, compared = file.with_suffix(".json"), {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": content}
    if _noted(note) != compared:
        if not fresh and digest(tensors) != content:
            return None
        with suppress(OSError):  # it is compared again next time
            write(note, lambda target: target.write_text(json.dumps(compared)))
    return Decoded(train, labels, test, test_labels, content)


def _noted(note: Path) -> Any:
    try:
        return json.loads(note.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _write(name: str, found: images.Labelled, target: Path) -> None:
    """Decode all images into a file."""
    files, grey = [*found.train, *found.test], True
    with picture.quiet():
        first = _pixels(name, None, files[0])
        channels, height, width = first.shape
        needed = channels + _is_grey(first)  # bytes per pixel; if all images are grey, a second file with one channel follows
        free = shutil.disk_usage(target.parent).free
        picture.refuse_too_many(f"dataset {name!r}, first image {files[0].label}", len(files), (width, height), needed, free, "disk space")

        def decoded() -> Iterator[Array]:
            nonlocal grey
            others = computed(partial(_pixels, name, (width, height)), files[1:], THREADS, 4 * THREADS)
            for pixels in chain([first], others):
                grey = grey and _is_grey(pixels)
                yield pixels

        _save(target, found, (channels, height, width), decoded())
    if grey:
        coloured = target.rename(target.with_suffix(".rgb"))
        _save(target, found, (1, height, width), _first_channels(coloured))
        coloured.unlink()
    _sign(target)


def _pixels(name: str, size: tuple[int, int] | None, file: images.File) -> Array:
    """An image (3, h, w) in `size` (width, height), or in its own size."""
    try:
        with file.open() as stream:
            colour = picture.decode_rgb(stream)
    except images.UNREADABLE as error:
        raise UserError(f"dataset {name!r}: {file.label} cannot be read as an image: {one_line(error)}") from error
    return np.ascontiguousarray(np.asarray(picture.resized(colour, size)).transpose(2, 0, 1))


def _is_grey(pixels: Array) -> bool:
    return bool((pixels[1:] == pixels[0]).all())


def _save(target: Path, found: images.Labelled, shape: tuple[int, ...], pixels: Iterable[Array]) -> None:
    """Write a file of safetensors with labels and images, which come one or several at a time; its SHA-256 is still missing."""
    counts = len(found.train), len(found.test)
    header: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64}}
    start = 0
    for field, dtype, shapes, size in (
        *((f"{part}_targets", "I64", [n], 8 * n) for part, n in zip(("train", "test"), counts, strict=True)),
        *((f"{part}_inputs", "U8", [n, *shape], n * int(np.prod(shape))) for part, n in zip(("train", "test"), counts, strict=True)),
    ):
        header[field] = {"dtype": dtype, "shape": shapes, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for targets in (found.train_targets, found.test_targets):
            file.write(targets.numpy().astype("<i8").tobytes())
        for block in pixels:
            file.write(block.data)


def _opened(file: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        return {field: stored.get_tensor(field) for field in FIELDS}


def _first_channels(file: Path) -> Iterator[Array]:
    """The first channel of all images in a file, in blocks."""
    tensors = _opened(file)
    for part in ("train_inputs", "test_inputs"):
        for block in tensors[part].split(max(1, BLOCK // tensors[part][:1].nbytes)):
            yield block[:, :1].contiguous().numpy()


def _sign(file: Path) -> None:
    """Write the SHA-256 of the tensors into the header."""
    content = digest(_opened(file).values()).encode()
    with file.open("r+b") as target:
        start = target.read(2**12).index(b"0" * 64)
        target.seek(start)
        target.write(content)
