"""Load a data set by name as train, validation and test tensors, and make batches of a split.

A data set is stored as whole tensors. A batch is one `index_select`, augmentation one gather.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from bench.data import sources
from bench.data.examples import Part
from bench.data.sources import describe, names
from bench.spec.errors import UserError, nearest
from methods import derive

__all__ = ["AUGMENTATIONS", "Batches", "Dataset", "Split", "describe", "load", "names"]

AUGMENTATIONS = ("crop", "flip")


@dataclass(frozen=True)
class Split:
    """Examples as tensors.

    Attributes:
        inputs: float32, standardised, (n, features) or (n, channels, height, width).
        targets: int64 class labels (n,).
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Split":
        """The split on a device."""
        return Split(self.inputs.to(device), self.targets.to(device))

    def shuffled(self, seed: int, most: int | None = None) -> "Split":
        """The examples in a random order, which `seed` decides; only the first `most`, if given."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most].to(self.inputs.device)
        return Split(self.inputs[order], self.targets[order])


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
        fingerprint: SHA-256 (hex) of the shapes and bytes of all six tensors.
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

    def to(self, device: torch.device | str) -> "Dataset":
        """The data set with all three splits on a device."""
        splits = {part: getattr(self, part).to(device) for part in ("train", "validation", "held_out")}
        return replace(self, **splits)


def load(
    name: str,
    root: Path | None,
    *,
    validation: float = 0.15,
    split_seed: int = 0,
    cache: Path | None = None,
    train_limit: int | None = None,
    moments: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Dataset:
    """Load a data set as standardised tensors on the CPU.

    Args:
        name: a name from `names()`, with a path or name in place of the pattern.
        root: directory where torchvision's data sets are, or are downloaded to.
        validation: fraction of the training examples for validation, stratified by class; 0 for none. Not used if the data set has a
            validation split.
        split_seed: seed of the validation split.
        cache: directory for decoded images of `folder:` and `tar:`.
        train_limit: number of training examples to keep, stratified by class; None for all.
        moments: mean and standard deviation of each channel or feature, of pixels in [0, 1] for images in bytes; None for those of
            the remaining training examples.

    Returns:
        The data set. The test split is the published one.

    Raises:
        UserError: if the name is unknown, the data are missing or unreadable, or there are too few examples for the splits.
    """
    describe(name)  # raises for an unknown name
    if not 0 <= validation < 1:
        raise UserError(f"validation share {validation} is not in [0, 1)")
    raw = sources.read(name, root, cache)
    classes = int(raw.train_targets.max()) + 1
    if classes < 2:
        raise UserError(f"dataset {name!r} has only one class; at least two are needed")
    kept, held = torch.arange(len(raw.train_targets)), raw.validation
    if held is None:
        chosen = torch.arange(0)
        if validation:
            kept, chosen = sources.hold_out(name, raw.train_targets, validation, split_seed)
        held = Part(raw.train_inputs[chosen], raw.train_targets[chosen])
    if train_limit is not None and train_limit < len(kept):
        kept = kept[sources.hold_out(name, raw.train_targets[kept], train_limit, split_seed)[1]]

    train = raw.train_inputs[kept]
    mean, std = _moments(train) if moments is None else _given(name, moments, train)

    def split(inputs: Tensor, targets: Tensor) -> Split:
        return Split(inputs.to(torch.float32, copy=True).sub_(mean).div_(std), targets)

    splits = (
        split(train, raw.train_targets[kept]),
        split(*held),
        split(raw.test_inputs, raw.test_targets),
    )
    fingerprint = sources.digest(tensor for part in splits for tensor in (part.inputs, part.targets))
    return Dataset(name, classes, tuple(train.shape[1:]), *splits, fingerprint, mean, std, _pixel_range(train))


class Batches:
    """Re-iterable (inputs, targets) batches of a split, on the device of the split.

    Each iteration is one epoch and increases `epoch`. Order and augmentation depend only on (seed, epoch), so they are the same on
    every device. They have separate random streams, so one does not change the other. A last batch of one example is added to the
    batch before it.

    Args:
        split: the examples.
        batch_size: examples per batch.
        seed: seed of order and augmentation.
        shuffle: whether the order is random.
        augment: any of "crop" (a random window of the image padded with zeros by an eighth of its side, 4 pixels for 32) and "flip"
            (random horizontal flip).

    Raises:
        UserError: if an augmentation is unknown or the data are not images, or the batch size is below 1.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: tuple[str, ...] = (),
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is below 1")
        for name in augment:
            if name not in AUGMENTATIONS:
                hint = ", ".join(AUGMENTATIONS) + nearest(name, AUGMENTATIONS)
                raise UserError(f"unknown augmentation {name!r}: choose from {hint}")
            if split.inputs.ndim != 4:
                raise UserError(f"augmentation {name!r} needs images, not tabular data")
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.shuffle, self.augment = shuffle, augment
        self.epoch = 0
        whole, rest = divmod(len(split), batch_size)
        self._sizes = [batch_size] * whole + [rest] * (rest > 0)
        if rest == 1 and whole:  # batch norm cannot be trained with a single example
            self._sizes[-2:] = [batch_size + 1]

    @property
    def samples(self) -> int:
        """Examples in an epoch."""
        return len(self.split)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.split.inputs.shape[1:])

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = str(self.epoch), self.epoch + 1
        inputs, targets = self.split.inputs, self.split.targets
        order = torch.arange(len(self.split))
        if self.shuffle:
            order = torch.randperm(len(self.split), generator=self._generator("order", epoch))
        chunks = torch.split(order.to(inputs.device), self._sizes)
        if not self.augment:
            for chunk in chunks:
                yield inputs.index_select(0, chunk), targets.index_select(0, chunk)
            return
        pad, draws = self._draw(epoch)
        for chunk, draw in zip(chunks, torch.split(draws, self._sizes), strict=True):
            yield _window(inputs.index_select(0, chunk), pad, draw), targets.index_select(0, chunk)

    def _generator(self, *purpose: str) -> torch.Generator:
        # On the CPU, because the generator of a GPU gives other numbers.
        return torch.Generator().manual_seed(derive(self.seed, *purpose))

    def _draw(self, epoch: str) -> tuple[int, Tensor]:
        """(padding, (row offset, column offset, flipped) of each example in an epoch, int64 (n, 3))."""
        height, width = self.split.inputs.shape[2:]
        pad = max(1, min(height, width) // 8) if "crop" in self.augment else 0
        draws = torch.zeros(len(self.split), 3, dtype=torch.int64)
        draws[:, :2] = torch.randint(2 * pad + 1, (len(draws), 2), generator=self._generator("crop", epoch))
        if "flip" in self.augment:
            draws[:, 2] = torch.randint(2, (len(draws),), generator=self._generator("flip", epoch))
        return pad, draws.to(self.split.inputs.device)


def _window(images: Tensor, pad: int, draws: Tensor) -> Tensor:
    """Crop and flip a batch (b, c, h, w) by one gather with the addresses of the pixels."""
    height, width = images.shape[2:]
    rows = draws[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = draws[:, 1:2] + torch.where(draws[:, 2:] == 1, columns.flip(0), columns)
    address = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)
    padded = functional.pad(images, [pad] * 4).flatten(2)
    return padded.gather(2, address[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def _given(name: str, moments: tuple[Sequence[float], Sequence[float]], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Given mean and standard deviation in the units of the inputs, (c, 1, 1) or (f,).

    Grey images get the mean of three numbers: networks for colours see them in all three channels.
    """
    channels, images = inputs.shape[1], inputs.dim() == 4
    if images and channels == 1:
        moments = tuple([sum(numbers) / len(numbers)] if len(numbers) == 3 else numbers for numbers in moments)  # type: ignore[assignment]
    for numbers in moments:
        if len(numbers) != channels:
            said = "channels" if images else "features"
            raise UserError(f"dataset {name!r} has {channels} {said}, but mean and std have {len(numbers)} numbers")
    scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
    mean, std = (torch.tensor(numbers, dtype=torch.float32).mul(scale) for numbers in moments)
    return (mean.view(-1, 1, 1), std.view(-1, 1, 1)) if images else (mean, std)


def _pixel_range(inputs: Tensor) -> tuple[float, float] | None:
    if inputs.ndim != 4:
        return None
    low, high = float(inputs.min()), float(inputs.max())
    if inputs.dtype == torch.uint8:
        return 0.0, max(high, 1.0)
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else None


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float32, per channel (c, 1, 1) or feature (f,); the deviation of a constant is set to 1."""
    if inputs.dtype == torch.uint8:
        # Computed from counts, so that the number of threads cannot change the result and the fingerprint.
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in inputs.unbind(1)])
        weights = counts.double() / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64)
        mean = weights @ levels
        std = (weights * (levels - mean[:, None]).square()).sum(1).sqrt()
        mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    elif inputs.ndim == 4:
        # By numpy, which uses one thread, for the same reason.
        channels = [channel.double().numpy() for channel in inputs.unbind(1)]
        mean, std = (torch.tensor([getattr(c, which)() for c in channels]).view(-1, 1, 1) for which in ("mean", "std"))
    else:
        mean, std = inputs.double().mean(0), inputs.double().std(0, correction=0)
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    return mean.float(), std.float()
