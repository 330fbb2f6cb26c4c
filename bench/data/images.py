"""Read a user's own images from folders or tar archives, one folder per class.

The class is the first folder below `train/` or `test/`; deeper folders only order the images. Files are opened as one of `FORMATS`, by
their content and never as anything else. Every file that is neither read nor hidden nor a note is named and refused: what is left out
without a word changes a result.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.spec.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
# Left out without a word: hidden files, what systems leave in folders, and notes. No image has such a name.
LITTER = ("thumbs.db", "desktop.ini", "__macosx")
NOTES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf")
# Raised by Pillow, tarfile and the system for files that are missing, truncated or of another type; a broken PNG is a SyntaxError.
UNREADABLE = (OSError, RuntimeError, ValueError, IndexError, EOFError, AssertionError, SyntaxError, tarfile.TarError)


class File(NamedTuple):
    """An image: its path below `train/` or `test/`, its name in messages, and how to open it."""

    path: PurePosixPath
    label: str
    open: Callable[[], IO[bytes]]


def decode(name: str, parts: Sequence[Path], expected: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode all images of train and test.

    Args:
        name: name of the data set, for messages.
        parts: the two folders or tar archives.
        expected: the layout that is expected, for messages.

    Returns:
        Images of train, uint8 (n, channels, height, width), their labels int64 (n,), and those of test. All images have the size of
        the first one; one channel if all are grey, otherwise three. Classes are numbered in the order of their names, in which
        numbers count as numbers.

    Raises:
        UserError: if a file cannot be read as an image, or the folders are not classes.
    """
    with ExitStack() as archives:
        found = []
        for part in parts:
            try:
                found.append(_files(part, archives))
            except UNREADABLE as error:
                raise UserError(f"dataset {name!r}: no images can be read from {part}: {_line(error)}") from error
        return _decoded(name, parts, found, expected)


def _decoded(name: str, parts: Sequence[Path], found: list[list[File]], expected: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    for part, files in zip(parts, found, strict=True):
        if not files:
            raise UserError(f"dataset {name!r}: no images can be read: {part} has none")
        _refuse_others(name, files, expected)
    classes = [{file.path.parts[0] for file in files} for files in found]
    if classes[0] != classes[1]:
        odd = ", ".join(sorted(classes[0] ^ classes[1])[:5])
        raise UserError(f"dataset {name!r}: train and test must have the same classes; only one of them has {odd}")
    numbers = {c: k for k, c in enumerate(sorted(classes[0], key=_natural))}
    labels = [torch.tensor([numbers[file.path.parts[0]] for file in files]) for files in found]
    train = _pixels(name, found[0], None)
    test = _pixels(name, found[1], (train.shape[3], train.shape[2]))
    train, test = grey_if_all_are([train, test])
    return train, labels[0], test, labels[1]


def _natural(text: str) -> list[tuple[int, int | str]]:
    """A key for sorting: numbers inside names count as numbers, so that 2 comes before 10."""
    return [(0, int(t)) if t.isdecimal() else (1, t) for t in re.split(r"(\d+)", text.lower()) if t]


def _files(part: Path, archives: ExitStack) -> list[File]:
    """The files of a part that are not hidden, in the order of their names."""
    listed = _in_folders(part) if part.is_dir() else _archived(archives.enter_context(tarfile.open(part)), part)  # noqa: SIM115
    found = [f for f in listed if not _is_litter(f.path)]
    return sorted(found, key=lambda f: [_natural(p) for p in f.path.parts])


def _in_folders(part: Path) -> Iterator[File]:
    seen = set()
    for folder, inner, names in os.walk(part, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link to a folder above it
            inner.clear()
            continue
        seen.add(place)
        for file in [Path(folder, name) for name in names]:
            yield File(PurePosixPath(file.relative_to(part).as_posix()), str(file), partial(_opened, file))


def _opened(file: Path) -> IO[bytes]:
    if file.exists() and not file.is_file():  # reading a pipe would wait forever
        raise OSError("it is not a file")
    return file.open("rb")


def _archived(archive: tarfile.TarFile, part: Path) -> Iterator[File]:
    """The files of a tar archive; a folder that holds all the others is left out of their paths.

    If a path occurs twice, as after `tar --update`, the last file counts. Links count as the files that they point to.
    """
    members = list({m.name: m for m in archive if m.isfile() or m.islnk() or m.issym()}.values())
    outside = next((m.name for m in members if ".." in PurePosixPath(m.name).parts), None)
    if outside is not None:
        raise ValueError(f"the path {outside} contains '..': make the archive inside the folder of the classes")
    paths = [PurePosixPath(*(p for p in PurePosixPath(m.name).parts if p not in (".", "/"))) for m in members]
    inside = [p for p in paths if not _is_litter(p)]
    while inside and len({p.parts[0] for p in inside}) == 1 and all(len(p.parts) > 2 for p in inside):
        paths = [PurePosixPath(*p.parts[1:]) if len(p.parts) > 1 else p for p in paths]
        inside = [PurePosixPath(*p.parts[1:]) for p in inside]
    for member, path in zip(members, paths, strict=True):
        yield File(path, f"{part}: {member.name}", partial(_member, archive, member))


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    try:
        stream = archive.extractfile(member)
    except KeyError:
        stream = None
    if stream is None:
        raise OSError(f"it is a link to {member.linkname}, which is not a file in the archive")
    return stream


def _is_litter(path: PurePosixPath) -> bool:
    hidden = any(p.startswith(".") or p.lower() in LITTER for p in path.parts)
    return hidden or path.suffix.lower() in NOTES


def _refuse_others(name: str, files: list[File], expected: str) -> None:
    """Refuse files that are outside the class folders or whose names are not those of images."""
    for file in files:
        if file.path.suffix.lower() not in ENDINGS:
            kinds = ", ".join(e.removeprefix(".") for e in ENDINGS)
            raise UserError(f"dataset {name!r}: {file.label} is not one of the images that are read ({kinds}): convert or remove it")
        if len(file.path.parts) < 2:
            raise UserError(f"dataset {name!r} has images outside the class folders, e.g. {file.label}; expected {expected}")


def _pixels(name: str, files: list[File], size: tuple[int, int] | None) -> Tensor:
    """Images uint8 (n, 3, h, w), all in `size` (width, height), or in the size of the first one."""
    from PIL import Image

    pixels = np.empty(0, np.uint8)
    for index, file in enumerate(files):
        try:
            with file.open() as stream, Image.open(stream, formats=FORMATS) as image:
                colour = upright_rgb(image)
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            raise UserError(f"dataset {name!r}: {file.label} cannot be read as an image: {_line(error)}") from error
        size = size or colour.size
        if index == 0:
            pixels = np.empty((len(files), 3, size[1], size[0]), np.uint8)
        pixels[index] = np.asarray(resized(colour, size)).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def grey_if_all_are(parts: Sequence[Tensor]) -> list[Tensor]:
    """Images (n, 3, h, w) with one channel if all of them are grey, otherwise as they are."""
    grey = all(torch.equal(images[:, :1].expand_as(images), images) for images in parts)
    return [images[:, :1].contiguous() if grey else images for images in parts]


def resized(image: Any, size: tuple[int, int] | None) -> Any:
    """A PIL image scaled to (width, height); None leaves it as it is."""
    from PIL import Image

    return image if size is None or image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def upright_rgb(image: Any) -> Any:
    """An image as viewers show it, in 8-bit RGB: turned by its EXIF tag, on white where it is transparent, 16 bits scaled to 8.

    Raises:
        ValueError: if it has several frames, or values that are not 1, 8 or 16 bits.
    """
    from PIL import Image, ImageOps

    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # the further images of an MPO, a photograph, are previews
        raise ValueError(f"it has {image.n_frames} frames; save one of them as an image of its own")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values have more than 16 bits; convert it to 8 or 16 bits")
        scaled = ((values + 128) // 257).astype(np.uint8)
        return Image.fromarray(np.where(values == image.info.get("transparency", -1), np.uint8(255), scaled)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
