"""Read data from scikit-learn, torchvision, timm and Hugging Face (`bench.data.hub`), and from a user's own images (`bench.data.images`)
or function (`bench.data.own`).

All functions return whole, decoded tensors. `bench.data.dataset` splits and standardises them.
"""

import re
import shutil
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.data import decoded, hub, images, own
from bench.data.examples import Part
from bench.data.files import line, write
from bench.spec import own_file
from bench.spec.errors import UserError, nearest

_TORCHVISION = {  # our name -> torchvision's class, and its files
    "mnist": ("MNIST", "MNIST/raw/*"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/*"),
    "kmnist": ("KMNIST", "KMNIST/raw/*"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/*"),
    "cifar100": ("CIFAR100", "cifar-100-python/*"),
    "svhn": ("SVHN", "*_32x32.mat"),
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
    "timm:NAME": "any data set of timm.data.create_dataset, e.g. timm:torch/cifar100, in --data-root",
    "hf:NAME": "images of the Hugging Face Hub, hf:OWNER/NAME, or of a folder, through the package datasets",
    own_file.FORM: "your own: a function that returns (train, test) or (train, validation, test)",
}
_SCHEMES = {form.partition(":")[0]: form for form in _DESCRIPTIONS if ":" in form and form != own_file.FORM}


def names() -> list[str]:
    """The data sets that `load` accepts; the patterns, such as `folder:PATH`, come last, before the entry points."""
    return [*_DESCRIPTIONS, *own_file.entry_names(own.KIND)]


def describe(name: str) -> str:
    """A short description of a data set; raises UserError for an unknown name, or a file that cannot be imported."""
    if not name.isprintable():  # bytes that are not UTF-8, and line breaks, cannot be written to results.csv
        raise UserError(f"the name of a dataset has characters that cannot be printed: {name!a}; rename the folder")
    scheme, colon, _ = name.partition(":")
    key = _SCHEMES.get(scheme, name) if colon else name
    if own.is_own(name) and name != own_file.FORM:
        if key in _DESCRIPTIONS:
            raise UserError(f"{name!r} names two data sets: one of razorbench, and an entry point of {own_file.GROUPS[own.KIND]}")
        about = next(iter((own_file.function(own.KIND, name).__doc__ or "").strip().splitlines()), "")
        return about.rstrip(".") or "a data set of your own"
    if key not in _DESCRIPTIONS:
        raise UserError(f"unknown dataset {name!r}: choose from {', '.join(names())}{nearest(name, names())}")
    return _DESCRIPTIONS[key]


class Raw(NamedTuple):
    """A data set before splitting: images uint8 or float32 (n, c, h, w), or features float64 (n, f); targets int64 (n,).

    Without validation examples, some of train are held out. `content` is the SHA-256 of the first four tensors if these are
    memory-mapped, otherwise None.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    validation: Part | None = None
    content: str | None = None


def read(name: str, root: Path | None, cache: Path | None, stamped: str | None = None) -> Raw:
    """Read a data set with its published test split.

    Args:
        name: name of the data set.
        root: directory with torchvision's data sets.
        cache: directory for decoded images; None to decode them each time.
        stamped: the result of `stamp`, if it is known.

    Raises:
        UserError: if the data are missing, unreadable or cannot be downloaded.
    """
    if name in _TORCHVISION:
        return _read_torchvision(name, root)
    if own.is_own(name):
        return _of_parts(own.read(name, root))
    if ":" not in name:
        return _read_sklearn(name)
    parts = _image_parts(name, root)
    if parts is None:
        return _of_parts(hub.read_timm(name, root, cache) if name.startswith("timm:") else hub.read_hf(name, root, cache))
    found = decoded.decode(name, parts, describe(name), cache, stamped)
    return Raw(found.train_inputs, found.train_targets, found.test_inputs, found.test_targets, content=found.content)


def stamp(name: str, root: Path | None) -> str | None:
    """A hash of path, size and time of the files that decide the content of a data set. None if they are not known.

    They are not known for data sets of timm, of the Hugging Face Hub, and of the user's own functions.

    Raises:
        UserError: the data are missing or unreadable.
    """
    if own.is_own(name):
        return None
    if name in _TORCHVISION:
        files = [] if root is None else sorted(file for file in root.glob(_TORCHVISION[name][1]) if file.is_file())
        return decoded.stamped(files) if files else None
    if ":" not in name:
        return ""  # inside scikit-learn
    parts = _image_parts(name, root)
    return None if parts is None else decoded.key(name, parts)


def place(name: str, root: Path | None) -> Path | None:
    """The folder whose files `read` would open because the name of the data set contains its path; None for other names."""
    scheme, colon, path = name.partition(":")
    if colon and scheme in ("folder", "tar"):
        return _located(Path(path).expanduser(), root)
    which = re.sub("^timm:hfds/", "hf:", name, flags=re.IGNORECASE)
    return hub.local_folder(which.removeprefix("hf:"), root) if which.startswith("hf:") else None


def _of_parts(parts: Mapping[str, Part]) -> Raw:
    return Raw(*parts["train"], *parts["test"], parts.get("validation"))


def _located(path: Path, root: Path | None) -> Path:
    """The path itself if it exists, otherwise the path inside `root`."""
    return path if root is None or path.exists() else root / path


def _read_sklearn(name: str) -> Raw:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    inputs, targets = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target).long()
    if name == "digits":
        inputs = inputs.to(torch.uint8).view(-1, 1, 8, 8)
    kept, held = hold_out(name, targets, 0.2, 0)  # no test split is published: use our own, the same for every seed
    return Raw(inputs[kept], targets[kept], inputs[held], targets[held])


def _read_torchvision(name: str, root: Path | None) -> Raw:
    if root is None:
        raise UserError(f"dataset {name!r} needs a directory: pass --data-root DIR")
    try:
        return _torchvision(name, root, download=False)
    except Exception:  # torchvision raises exceptions of any type for damaged files
        pass  # missing or damaged: download it again
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds; without a timeout torchvision may wait forever behind a firewall
    try:
        with TemporaryDirectory() as scratch:  # a failed download leaves nothing in `root`
            raw = _torchvision(name, Path(scratch), download=True)
            for file in Path(scratch).rglob("*"):
                if file.is_file() and file.suffix != ".gz":  # torchvision reads the unpacked files
                    write(root / file.relative_to(scratch), partial(shutil.copyfile, file))
    except Exception as error:
        raise UserError(
            f"dataset {name!r} is missing or incomplete in {root} and cannot be downloaded ({line(error)}):"
            " pass --data-root DIR, where DIR contains it in torchvision's layout"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return raw


def _torchvision(name: str, root: Path, *, download: bool) -> Raw:
    from torchvision import datasets

    tensors = []
    for part in ("train", "test"):
        which: dict[str, Any] = {"split": part} if name == "svhn" else {"train": part == "train"}
        source = getattr(datasets, _TORCHVISION[name][0])(root, download=download, **which)
        pixels = torch.as_tensor(source.data)
        if pixels.ndim == 3:  # MNIST and similar: (n, h, w)
            pixels = pixels[:, None]
        elif pixels.shape[-1] == 3:  # CIFAR: channels last
            pixels = pixels.permute(0, 3, 1, 2)
        targets = torch.as_tensor(source.labels if name == "svhn" else source.targets)
        tensors += [pixels.contiguous(), targets.long()]
    train, labels, test, test_labels = tensors
    return Raw(train, labels, test, test_labels)


def _image_parts(name: str, root: Path | None) -> list[Path] | None:
    """The folders or archives of train and test of a user's images; None for other data sets."""
    scheme, _, path = name.partition(":")
    if scheme not in ("folder", "tar"):
        return hub.image_folders(name, root) if scheme == "timm" else None
    place = _located(Path(path).expanduser(), root)
    parts = [place / (f"{part}.tar" if scheme == "tar" else part) for part in ("train", "test")]
    for part in parts:
        if not (part.is_file() if scheme == "tar" else part.is_dir()):
            raise UserError(f"dataset {name!r}: {images.shown(part)} is missing; expected {describe(name)}")
    return parts


def hold_out(name: str, targets: Tensor, size: float | int, seed: int) -> tuple[Tensor, Tensor]:
    """Split examples into two parts, stratified by class.

    Args:
        name: name of the data set, for messages.
        targets: class labels (n,).
        size: size of the second part: a number, or a fraction if float.
        seed: seed of the split.

    Returns:
        (indices of the first part, indices of the second part).

    Raises:
        UserError: if there are too few examples.
    """
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(np.arange(len(targets)), test_size=size, random_state=seed, stratify=targets.numpy())
    except ValueError as error:
        raise UserError(f"dataset {name!r}: too few examples to split off {size}: {line(error)}") from error
    return torch.from_numpy(kept), torch.from_numpy(held)
