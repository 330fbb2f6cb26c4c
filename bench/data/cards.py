"""What planning needs to know of a data set, in a small file of the cache, so that the data are not opened for it.

The name of the file is a hash of all that decides its content: name and options of the data set, path, size and time of its files, and
the versions of the code and packages that read and split them. The content of the files is not compared: files that change without a
change of size and time are not noticed.
"""

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import methods
from bench.data.files import write
from bench.spec.digest import digest

Moments = tuple[Sequence[float], Sequence[float]]
PACKAGES = ("scikit-learn", "numpy", "pillow", "torchvision", "torch")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a data set is split and standardised.

    Attributes:
        validation: fraction of the training examples for validation, stratified by class; 0 for none. Not used if the data set has a
            validation split.
        split_seed: seed of the validation split.
        train_limit: number of training examples to keep, stratified by class; None for all.
        moments: mean and standard deviation of each channel or feature, of pixels in [0, 1] for images in bytes; None for those of the
            remaining training examples.
    """

    validation: float = 0.15
    split_seed: int = 0
    train_limit: int | None = None
    moments: Moments | None = None


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts about a data set and its splits.

    Attributes:
        name, classes, input_shape, fingerprint, pixel_range: as in `Dataset`.
        train, validation, test: numbers of examples.
        mean, std: numbers of each channel or feature, in the units of the raw examples.
    """

    name: str
    classes: int
    input_shape: tuple[int, ...]
    train: int
    validation: int
    test: int
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_range: tuple[float, float] | None


def place(name: str, cache: Path | None, options: Options, stamp: str | None) -> Path | None:
    """The file of a card; None if there is no cache, or if it is not known which files decide the content of the data set.

    Args:
        name: name of the data set.
        cache: directory of cards.
        options: how the data set is split and standardised.
        stamp: the result of `bench.data.sources.stamp`.
    """
    if cache is None or stamp is None:
        return None
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    code = methods.source_hash(sys.modules["bench.data.dataset"])
    decided = {"name": name, "files": stamp, "options": dataclasses.asdict(options), "packages": versions, "code": code}
    return cache / f"card-{digest(decided)[:40]}.json"


def read(file: Path | None) -> Card | None:
    """The card in a file; None if it is missing or damaged."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8")) if file is not None else None
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        card = Card(**values)
        return card if _is_sound(card) else None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None


def store(file: Path | None, card: Card) -> None:
    """Write a card, if that is possible."""
    if file is not None:
        with suppress(OSError):
            write(file, lambda target: target.write_text(json.dumps(dataclasses.asdict(card)), encoding="utf-8"))


def _is_sound(card: Card) -> bool:
    """Whether the values have their types."""
    numbers = (card.classes, card.train, card.validation, card.test, *card.input_shape)
    channels = card.input_shape[:1]
    return (
        all(isinstance(text, str) for text in (card.name, card.fingerprint))
        and all(type(number) is int for number in numbers)
        and all((len(values),) == channels and all(isinstance(v, float) for v in values) for values in (card.mean, card.std))
        and (card.pixel_range is None or len(card.pixel_range) == 2)
    )
