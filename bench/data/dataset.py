"""From a name to train, validation and test tensors, and from a split to batches.

A dataset is held as whole tensors; a batch is an `index_select`, augmentation one gather.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from bench.data import sources
from bench.data.sources import describe, names
from bench.spec.errors import UserError, nearest
from methods import derive

__all__ = ["AUGMENTATIONS", "Batches", "Dataset", "Split", "describe", "load", "names"]

AUGMENTATIONS = ("crop", "flip")


@dataclass(frozen=True)
class Split:
    """Examples as tensors: `inputs` float32, standardised, (n, features) or (n, channels, height, width);
    `targets` int64 (n,)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on `device`."""
        return Split(self.inputs.to(device), self.targets.to(device))

    def shuffled(self, seed: int) -> "Split":
        """The same examples in an order drawn from the seed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).to(self.inputs.device)
        return Split(self.inputs[order], self.targets[order])


@dataclass(frozen=True)
class Dataset:
    """Three splits of one dataset; an example has `input_shape`, (features,) or (channels, height, width).

    `mean` and `std`, of the raw values, are what the inputs were standardised by, (features,) or (channels, 1, 1).
    `fingerprint` is a SHA-256 (hex) over the shapes and bytes of all six tensors. The held-out examples are
    read through the property `test` only, so that a test can put one that raises in its place.
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

    @property
    def test(self) -> Split:
        """The test split: read once for a row, never by tuning or scoring."""
        return self.held_out

    def to(self, device: torch.device | str) -> "Dataset":
        """The same dataset with all three splits on `device`."""
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
) -> Dataset:
    """Dataset `name` as standardised tensors on the CPU.

    `root` is where torchvision's datasets lie or are downloaded to; `cache`, a directory, keeps the decoded
    images of `folder:` and `tar:`. A stratified share `validation` is held out of train by `split_seed`; the
    test split stays as published; `train_limit` keeps that many training examples, stratified too. Mean and
    standard deviation, per channel or feature, are those of the training split that remains. Raises UserError
    for an unknown name, data that are missing or unreadable, and shares that cannot be held out.
    """
    describe(name)  # an unknown name stops here
    if not 0 < validation < 1:
        raise UserError(f"validation share {validation} is not between 0 and 1")
    raw = sources.read(name, root, cache)
    classes = int(raw.train_targets.max()) + 1
    if classes < 2:
        raise UserError(f"dataset {name!r} has one class only: at least two are needed")
    kept, held = sources.hold_out(name, raw.train_targets, validation, split_seed)
    if train_limit is not None and train_limit < len(kept):
        kept = kept[sources.hold_out(name, raw.train_targets[kept], train_limit, split_seed)[1]]

    train = raw.train_inputs[kept]
    mean, std = _moments(train)

    def split(inputs: Tensor, targets: Tensor) -> Split:
        return Split(inputs.to(torch.float32, copy=True).sub_(mean).div_(std), targets)

    splits = (
        split(train, raw.train_targets[kept]),
        split(raw.train_inputs[held], raw.train_targets[held]),
        split(raw.test_inputs, raw.test_targets),
    )
    fingerprint = sources.digest(tensor for part in splits for tensor in (part.inputs, part.targets))
    return Dataset(name, classes, tuple(train.shape[1:]), *splits, fingerprint, mean, std)


class Batches:
    """Re-iterable (inputs, targets) batches of a split, on the split's device.

    Each iteration is one epoch and advances `epoch`; (seed, epoch) alone decide it, so that equal seeds give
    equal sequences on every device. `augment` is any of "crop" (a random window of the image padded with
    zeros, an eighth of the side: 4 pixels at 32) and "flip" (horizontal); order and augmentation draw from
    separate streams, so that one leaves the other as it was. A last batch of one joins the batch before.
    Raises UserError for an unknown augmentation, one of tabular data, or a batch size below 1.
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
        if rest == 1 and whole:  # batch norm cannot train on a single example
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
        # Always on the CPU: a GPU's generator would give other epochs than a CPU's.
        return torch.Generator().manual_seed(derive(self.seed, *purpose))

    def _draw(self, epoch: str) -> tuple[int, Tensor]:
        """The padding, and an epoch's (row offset, column offset, flipped) for each example, int64 (n, 3)."""
        height, width = self.split.inputs.shape[2:]
        pad = max(1, min(height, width) // 8) if "crop" in self.augment else 0
        draws = torch.zeros(len(self.split), 3, dtype=torch.int64)
        draws[:, :2] = torch.randint(2 * pad + 1, (len(draws), 2), generator=self._generator("crop", epoch))
        if "flip" in self.augment:
            draws[:, 2] = torch.randint(2, (len(draws),), generator=self._generator("flip", epoch))
        return pad, draws.to(self.split.inputs.device)


def _window(images: Tensor, pad: int, draws: Tensor) -> Tensor:
    """Crop and flip a batch (b, c, h, w) at once: one gather, with the pixel's address drawn per example."""
    height, width = images.shape[2:]
    rows = draws[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = draws[:, 1:2] + torch.where(draws[:, 2:] == 1, columns.flip(0), columns)
    address = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)
    padded = functional.pad(images, [pad] * 4).flatten(2)
    return padded.gather(2, address[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, float32, per channel (c, 1, 1) or feature (f,); 1 as deviation of a constant."""
    if inputs.dtype == torch.uint8:
        # From counts, which no number of threads can change: the fingerprint is to be the same on every machine.
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in inputs.unbind(1)])
        weights = counts.double() / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64)
        mean = weights @ levels
        std = (weights * (levels - mean[:, None]).square()).sum(1).sqrt()
        mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    else:
        mean, std = inputs.double().mean(0), inputs.double().std(0, correction=0)
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    return mean.float(), std.float()
