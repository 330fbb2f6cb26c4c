"""Open one image of an unknown origin: only as one of `FORMATS`, found by its content, and within the memory of this machine."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bench.spec.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
# Formats that Pillow only writes, and formats of other programs that are often renamed.
_OTHERS = {b"%PDF": "PDF", b"PK\x03\x04": "ZIP", b"\x1f\x8b": "GZIP", b"<svg": "SVG", b"<?xml": "XML", b"<!DOC": "HTML", b"<html": "HTML"}
_START = 16  # bytes that Pillow needs to recognise a format
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # versions 2 and 1


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which Pillow does not warn of large images below its limit, which are decoded. Not for threads: see `decode_rgb`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_rgb(stream: IO[bytes]) -> Any:
    """An image as viewers show it, see `upright_rgb`.

    Args:
        stream: the content of the file, which can be sought.

    Raises:
        ValueError: it is not an image of `FORMATS`, or cannot be decoded. The message is one line.
    """
    with quiet():
        return decode_rgb(stream)


def decode_rgb(stream: IO[bytes]) -> Any:
    """`read_rgb` for threads: what they warn of is decided by the thread that starts them, see `quiet`."""
    try:
        with Image.open(stream, formats=FORMATS) as image:
            return upright_rgb(image)
    except UnidentifiedImageError:
        raise ValueError(_other_content(stream)) from None
    except Exception as error:  # Pillow raises exceptions of any type for damaged files
        message = " ".join(str(error).split())
        raise ValueError(message or type(error).__name__) from error


def open_file(file: Path) -> IO[bytes]:
    """A file opened for reading; raises OSError for what is not a regular file, because reading a pipe would wait forever."""
    if file.exists() and not file.is_file():
        raise OSError("it is not a file")
    return file.open("rb")


def _other_content(stream: IO[bytes]) -> str:
    """Why content is refused, with its format if that is known. Nothing is decoded: only the first bytes are compared."""
    stream.seek(0)
    start = stream.read(_START)
    if not start:
        return "the file is empty"
    Image.init()
    known = [kind for kind, (_, accept) in Image.OPEN.items() if accept is not None and _accepts(accept, start)]
    known += [kind for magic, kind in _OTHERS.items() if start.lower().startswith(magic.lower())]
    allowed = ", ".join(FORMATS)
    kinds = [kind for kind in known if kind not in FORMATS]
    if known and not kinds:
        return f"it is a damaged {known[0]} file"
    return f"its content is {kinds[0]}, not one of {allowed}" if kinds else f"its content is none of the formats {allowed}"


def _accepts(accept: Any, start: bytes) -> bool:
    try:
        return accept(start) is True
    except Exception:  # of a plug-in of Pillow, for bytes that it does not expect
        return False


def upright_rgb(image: Any) -> Any:
    """An image as viewers show it, in 8-bit RGB: turned by its EXIF tag, on white where it is transparent, 16 bits scaled to 8.

    Raises:
        ValueError: if it has several frames, or values that are not 1, 8 or 16 bits.
    """
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # the further images of an MPO, a photograph, are previews
        raise ValueError(f"it has {image.n_frames} frames; save one of them as an image of its own")
    kind = image.format
    if kind == "TIFF" and (bits := image.tag_v2.get(258)) and max(bits) not in (1, 2, 4, 8, 16, 32):  # BitsPerSample
        raise ValueError(f"its values have {max(bits)} bits; convert it to 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if (kind == "TIFF" and image.mode == "I") or values.min() < 0 or values.max() > 65535:
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


def resized(image: Any, size: tuple[int, int] | None) -> Any:
    """A PIL image scaled to (width, height); None leaves it as it is."""
    return image if size is None or image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def refuse_too_many(title: str, count: int, size: tuple[int, int], per_pixel: int, limit: int, what: str = "memory") -> None:
    """Refuse images for which there is not enough space, before it is used.

    Args:
        title: the data set, for messages.
        count: number of images.
        size: (width, height) of the first image; all others are scaled to it.
        per_pixel: bytes that one pixel needs.
        limit: bytes that there are.
        what: of what, for messages.

    Raises:
        UserError: the images need more.
    """
    needed = count * size[0] * size[1] * per_pixel
    if needed > limit:
        raise UserError(
            f"{title}: {count:,} images of {size[0]} x {size[1]} pixels need {needed / 1e9:,.1f} GB of {what}, but"
            f" {limit / 1e9:,.1f} GB are available; all images are scaled to the size of the first one: make that one smaller"
        )


@cache
def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its control group."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    for file in map(Path, _CGROUPS):
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # there is no control group, or it has no limit ("max")
            continue
    return min((limit for limit in limits if limit > 0), default=2**63)
