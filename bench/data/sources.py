"""Where data come from: scikit-learn, torchvision, and a user's own images through timm's readers.

All of it leaves here as whole tensors, decoded once; splits and standardisation are `bench.data`'s.
"""

import hashlib
import os
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.spec.errors import UserError, nearest

_TORCHVISION = {  # our name -> torchvision's class
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
_DESCRIPTIONS = {
    "digits": "1,797 handwritten digits, 8x8 grey, 10 classes (inside scikit-learn)",
    "breast_cancer": "569 tumours, 30 features, 2 classes (inside scikit-learn)",
    "mnist": "70,000 handwritten digits, 28x28 grey, 10 classes",
    "fashion_mnist": "70,000 pieces of clothing, 28x28 grey, 10 classes",
    "kmnist": "70,000 Kuzushiji characters, 28x28 grey, 10 classes",
    "cifar10": "60,000 photographs, 32x32 colour, 10 classes",
    "cifar100": "60,000 photographs, 32x32 colour, 100 classes",
    "svhn": "99,289 house-number digits, 32x32 colour, 10 classes",
    "folder:PATH": "your images: PATH/train/ and PATH/test/, one sub-folder per class; PATH may lie in --data-root",
    "tar:PATH": "your images: PATH/train.tar and PATH/test.tar, one folder per class",
}
# What torchvision, timm's readers and Pillow raise on files that are missing, cut short or something else.
_UNREADABLE = (OSError, RuntimeError, ValueError, IndexError, EOFError, AssertionError, tarfile.TarError)


def names() -> list[str]:
    """Every dataset `load` knows, the two patterns `folder:PATH` and `tar:PATH` last."""
    return list(_DESCRIPTIONS)


def describe(name: str) -> str:
    """One short line about dataset `name`. Raises UserError where `load` does not know it."""
    scheme, colon, _ = name.partition(":")
    key = f"{scheme}:PATH" if colon else name
    if key not in _DESCRIPTIONS:
        raise UserError(f"unknown dataset {name!r}: choose from {', '.join(names())}{nearest(name, names())}")
    return _DESCRIPTIONS[key]


class Raw(NamedTuple):
    """A dataset as read: images uint8 (n, c, h, w) or features float64 (n, f); targets int64 (n,)."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def read(name: str, root: Path | None, cache: Path | None) -> Raw:
    """Data set `name`, undivided but for its published test split. Raises UserError where it cannot be had."""
    if name in _TORCHVISION:
        return _read_torchvision(name, root)
    scheme, colon, path = name.partition(":")
    return _read_images(name, scheme, _located(Path(path).expanduser(), root), cache) if colon else _read_sklearn(name)


def _located(path: Path, root: Path | None) -> Path:
    """A folder as it was named, or else the one of that name in `root`."""
    return path if root is None or path.exists() else root / path


def _read_sklearn(name: str) -> Raw:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    inputs, targets = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target).long()
    if name == "digits":
        inputs = inputs.to(torch.uint8).view(-1, 1, 8, 8)
    kept, held = hold_out(name, targets, 0.2, 0)  # none is published: our own, the same for every seed
    return Raw(inputs[kept], targets[kept], inputs[held], targets[held])


def _read_torchvision(name: str, root: Path | None) -> Raw:
    if root is None:
        raise UserError(f"dataset {name!r} needs a directory: pass --data-root DIR")
    try:
        return _torchvision(name, root, download=False)
    except _UNREADABLE:
        pass  # missing, or cut short: fetch it anew
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds; torchvision sets none and would hang behind a silent firewall
    try:
        with TemporaryDirectory() as scratch:  # nothing is left in `root` by a download that fails
            raw = _torchvision(name, Path(scratch), download=True)
            for file in Path(scratch).rglob("*"):
                if file.is_file() and file.suffix != ".gz":  # torchvision reads the unpacked ones
                    _write(root / file.relative_to(scratch), partial(shutil.copyfile, file))
    except _UNREADABLE as error:
        raise UserError(
            f"dataset {name!r} is not (or not whole) in {root} and cannot be downloaded ({line(error)}):"
            " pass --data-root DIR, where DIR holds it in torchvision's layout"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return raw


def _torchvision(name: str, root: Path, *, download: bool) -> Raw:
    from torchvision import datasets

    tensors = []
    for part in ("train", "test"):
        which: dict[str, Any] = {"split": part} if name == "svhn" else {"train": part == "train"}
        source = getattr(datasets, _TORCHVISION[name])(root, download=download, **which)
        images = torch.as_tensor(source.data)
        if images.ndim == 3:  # MNIST and its kin: (n, h, w)
            images = images[:, None]
        elif images.shape[-1] == 3:  # CIFAR: channels last
            images = images.permute(0, 3, 1, 2)
        targets = torch.as_tensor(source.labels if name == "svhn" else source.targets)
        tensors += [images.contiguous(), targets.long()]
    return Raw(*tensors)


def _read_images(name: str, scheme: str, path: Path, cache: Path | None) -> Raw:
    """A user's images, through the cache where there is one."""
    parts = [path / (f"{part}.tar" if scheme == "tar" else part) for part in ("train", "test")]
    for part in parts:
        if not (part.is_file() if scheme == "tar" else part.is_dir()):
            raise UserError(f"dataset {name!r}: {part} is missing; expected {describe(name)}")
    if cache is None:
        return _decode(name, parts)
    stored = cache / f"images-{_sources_key(parts)[:20]}.safetensors"
    raw = _read_cache(stored)
    if raw is None:
        raw = _decode(name, parts)
        _write_cache(stored, raw)
    return raw


def _sources_key(parts: list[Path]) -> str:
    """A hash of the path, size and time of every file that decides the decoded images."""
    files = list(parts)
    for part in parts:
        files += [Path(at, file) for at, _, found in os.walk(part, followlinks=True) for file in found]
    stats = [(str(file.absolute()), file.stat()) for file in files if file.exists()]  # a link may lead nowhere
    lines = sorted(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in stats)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_cache(file: Path) -> Raw | None:
    """The decoded images in `file`, or None where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            raw = Raw(*(stored.get_tensor(field) for field in Raw._fields))
            return raw if (stored.metadata() or {}).get("sha256") == digest(raw) else None
    except (OSError, SafetensorError):
        return None


def _write_cache(file: Path, raw: Raw) -> None:
    from safetensors.torch import save_file

    try:
        _write(file, lambda target: save_file(raw._asdict(), target, metadata={"sha256": digest(raw)}))
    except OSError as error:
        raise UserError(f"decoded images cannot be kept in {file.parent}: {line(error)}") from error


def _decode(name: str, parts: list[Path]) -> Raw:
    """Every image of train and test, in timm's order; grey where all are, of the first image's size."""
    from timm.data.readers.reader_factory import create_reader

    try:
        readers = [create_reader("", root=str(part)) for part in parts]
    except _UNREADABLE as error:
        raise UserError(f"dataset {name!r}: no images can be read: {line(error)}") from error
    labels = [set(getattr(reader, "class_to_idx", None) or reader.class_name_to_idx) for reader in readers]
    if "" in labels[0] | labels[1]:
        raise UserError(f"dataset {name!r} has images outside the class folders; expected {describe(name)}")
    if labels[0] != labels[1]:
        odd = ", ".join(sorted(labels[0] ^ labels[1])[:5])
        raise UserError(f"dataset {name!r}: train and test differ in classes, only one of them has {odd}")
    train, train_targets = _pixels(name, readers[0], None)
    test, test_targets = _pixels(name, readers[1], (train.shape[3], train.shape[2]))
    if all(torch.equal(images[:, :1].expand_as(images), images) for images in (train, test)):
        train, test = train[:, :1].contiguous(), test[:, :1].contiguous()
    return Raw(train, train_targets, test, test_targets)


def _pixels(name: str, reader: Any, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """A reader's images, uint8 (n, 3, h, w), all of `size` (width, height) or the first one's; targets."""
    from PIL import Image

    broken = (*_UNREADABLE, SyntaxError, Image.DecompressionBombError)  # a broken PNG is a SyntaxError
    pixels, targets = np.empty(0, np.uint8), np.empty(len(reader), np.int64)
    for index in range(len(reader)):
        try:
            stream, targets[index] = reader[index]
            with stream, Image.open(stream) as image:
                colour = image.convert("RGB")
        except broken as error:
            file = reader.filename(index)
            raise UserError(f"dataset {name!r}: {file} is no readable image: {line(error)}") from error
        size = size or colour.size
        if index == 0:
            pixels = np.empty((len(reader), 3, size[1], size[0]), np.uint8)
        if colour.size != size:
            colour = colour.resize(size, Image.Resampling.BILINEAR)
        pixels[index] = np.asarray(colour).transpose(2, 0, 1)
    if hasattr(reader, "tar_state"):  # timm leaves the archive open
        reader.tar_state.tf.close()
    return torch.from_numpy(pixels), torch.from_numpy(targets)


def hold_out(name: str, targets: Tensor, size: float | int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of those that stay and of those held out: `size` of them (a share if float), stratified."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(np.arange(len(targets)), test_size=size, random_state=seed, stratify=targets.numpy())
    except ValueError as error:
        raise UserError(f"dataset {name!r}: too few examples to hold {size} out: {line(error)}") from error
    return torch.from_numpy(kept), torch.from_numpy(held)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 (hex) of the dtypes, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def _write(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make `file` under another name first: readers see all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".partial-") as scratch:
        write(Path(scratch) / file.name)
        os.replace(Path(scratch) / file.name, file)


def line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
