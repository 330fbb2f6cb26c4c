"""Load a data set by name, in train, validation and test splits.

The raw examples are loaded once: images as bytes, in memory or memory-mapped. A split is the list of its rows in them. Batches are
standardised on their device, see `bench.data.split`.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.data import cards, sources
from bench.data.cards import Card, Moments, Options
from bench.data.files import digest
from bench.data.sources import describe, names
from bench.data.split import Split, on_device
from bench.data.statistics import given, statistics
from bench.spec.digest import digest as digest_of_json
from bench.spec.errors import UserError

__all__ = ["Dataset", "card_of", "describe", "known_card", "load", "names"]


@dataclass(frozen=True)
class Dataset:
    """A data set in three splits.

    The test examples are read through the property `test` only, so that a test can replace it by one that raises.

    Attributes:
        name: name of the data set.
        classes: number of classes.
        input_shape: shape of one example, (features,) or (channels, height, width).
        train, validation: splits for training, and for tuning.
        held_out: the test split.
        fingerprint: SHA-256 (hex) of the raw examples, of their labels, of the rows of each split, and of `mean` and `std`.
        mean, std: mean and standard deviation of the raw training inputs, used to standardise all inputs, (features,) or
            (channels, 1, 1).
        pixel_range: smallest and largest possible value of the raw images: 0 and the largest value that occurs in training for uint8,
            (0, 1) for floats between them; None for other data.
    """

    name: str
    classes: int
    input_shape: tuple[int, ...]
    train: Split
    validation: Split
    held_out: Split
    fingerprint: str
    mean: Tensor
    std: Tensor
    pixel_range: tuple[float, float] | None = None

    @property
    def test(self) -> Split:
        """The test split. It is read once per result, never for tuning or scoring."""
        return self.held_out

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; those that several splits share count once, memory-mapped ones do not count."""
        splits = (self.train, self.validation, self.held_out)
        raws = {id(split.raw): split.raw.nbytes for split in splits if not split.mapped}
        return sum(raws.values()) + sum(split.index.nbytes + split.targets.nbytes for split in splits)

    def to(self, device: torch.device | str) -> "Dataset":
        """The data set with all three splits on a device; the raw examples too, if they fit there."""
        train, validation, held_out = on_device([self.train, self.validation, self.held_out], torch.device(device))
        return replace(self, train=train, validation=validation, held_out=held_out)


def load(
    name: str,
    root: Path | None,
    *,
    validation: float = 0.15,
    split_seed: int = 0,
    cache: Path | None = None,
    train_limit: int | None = None,
    moments: Moments | None = None,
) -> Dataset:
    """Load a data set, on the CPU.

    Args:
        name: a name from `names()`, with a path or name in place of the pattern.
        root: directory where torchvision's data sets are, or are downloaded to.
        cache: directory for decoded images of `folder:` and `tar:`, and for cards, see `bench.data.cards`.
        validation, split_seed, train_limit, moments: see `bench.data.cards.Options`.

    Returns:
        The data set. The test split is the published one.

    Raises:
        UserError: if the name is unknown, the data are missing or unreadable, or there are too few examples for the splits.
    """
    options = Options(validation, split_seed, train_limit, moments)
    stamp = _stamp(name, root, cache, options)
    raw = sources.read(name, root, cache, stamp)
    classes = int(raw.train_targets.max()) + 1
    if classes < 2:
        raise UserError(f"dataset {name!r} has only one class; at least two are needed")
    rows = _rows(name, raw, options)
    content = raw.content or digest([*raw[:4], *(raw.validation or ())])
    file = cards.place(name, cache, options, stamp)
    card = cards.read(file)
    fingerprint = partial(_fingerprint, content, rows)
    if card is not None and raw.content is not None and fingerprint(card.mean, card.std) == card.fingerprint:
        # Reading memory-mapped images for their moments may take many minutes.
        mean, std, pixels = _shaped(card.mean), _shaped(card.std), card.pixel_range
    else:
        mean, std, pixels = statistics(raw.train_inputs, rows[0])
        mean, std = (mean, std) if moments is None else given(name, moments, raw.train_inputs)
    shape, (train, held_out, test) = tuple(raw.train_inputs.shape[1:]), _splits(raw, rows, mean, std)
    loaded = Dataset(name, classes, shape, train, held_out, test, fingerprint(_numbers(mean), _numbers(std)), mean, std, pixels)
    if card_of(loaded) != card:
        cards.store(file, card_of(loaded))
    return loaded


def known_card(name: str, root: Path | None, cache: Path | None, options: Options) -> Card | None:
    """The card of a data set, if the cache has one for the files as they are. The data are not opened.

    Args:
        name, root, cache: as in `load`.
        options: how the data set is split and standardised.

    Raises:
        UserError: the name is unknown, or the data are missing or unreadable.
    """
    return cards.read(cards.place(name, cache, options, _stamp(name, root, cache, options)))


def card_of(dataset: Dataset) -> Card:
    """The facts about a data set that planning needs."""
    return Card(
        dataset.name, dataset.classes, dataset.input_shape, len(dataset.train), len(dataset.validation), len(dataset.held_out),
        dataset.fingerprint, _numbers(dataset.mean), _numbers(dataset.std), dataset.pixel_range,
    )  # fmt: skip


def _stamp(name: str, root: Path | None, cache: Path | None, options: Options) -> str | None:
    """The stamp of the files of a data set, for a cache, after checking its name and options."""
    describe(name)  # raises for an unknown name
    if not 0 <= options.validation < 1:
        raise UserError(f"validation share {options.validation} is not in [0, 1)")
    return None if cache is None else sources.stamp(name, root)


def _rows(name: str, raw: sources.Raw, options: Options) -> tuple[Tensor, Tensor]:
    """The rows of the raw training examples for training, and for validation if the data set has no validation split."""
    kept, chosen = torch.arange(len(raw.train_targets)), torch.arange(0)
    if raw.validation is None and options.validation:
        kept, chosen = sources.hold_out(name, raw.train_targets, options.validation, options.split_seed)
    if options.train_limit is not None and options.train_limit < len(kept):
        kept = kept[sources.hold_out(name, raw.train_targets[kept], options.train_limit, options.split_seed)[1]]
    return kept, chosen


def _fingerprint(content: str, rows: tuple[Tensor, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    return digest_of_json({"content": content, "rows": digest(rows), "mean": mean, "std": std})


def _numbers(moment: Tensor) -> tuple[float, ...]:
    return tuple(moment.flatten().tolist())


def _shaped(numbers: tuple[float, ...]) -> Tensor:
    """A moment of images, (c, 1, 1)."""
    return torch.tensor(numbers).view(-1, 1, 1)


def _splits(raw: sources.Raw, rows: tuple[Tensor, Tensor], mean: Tensor, std: Tensor) -> list[Split]:
    """The splits for training, validation and test."""
    mapped = raw.content is not None

    def whole(inputs: Tensor, targets: Tensor) -> Split:
        inputs = inputs if inputs.dtype == torch.uint8 else inputs.float()
        return Split(inputs, torch.arange(len(targets)), targets, mean, std, mapped)

    every = whole(raw.train_inputs, raw.train_targets)
    held_out = every.at(rows[1]) if raw.validation is None else whole(*raw.validation)
    return [every.at(rows[0]), held_out, whole(raw.test_inputs, raw.test_targets)]
