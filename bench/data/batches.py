"""Batches of a split: order and augmentation. An augmentation is one gather of a whole batch."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from bench.data.split import Split
from bench.spec.errors import UserError, nearest
from methods import derive

AUGMENTATIONS = ("crop", "flip")


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
            if split.raw.ndim != 4:
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
        return self.split.input_shape

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = str(self.epoch), self.epoch + 1
        order = torch.arange(len(self.split))
        if self.shuffle:
            order = torch.randperm(len(self.split), generator=self._generator("order", epoch))
        examples = self.split.at(order)
        batches = zip(examples.batches(self._sizes), torch.split(examples.targets, self._sizes), strict=True)
        if not self.augment:
            yield from batches
            return
        pad, draws = self._draw(epoch)
        for (inputs, targets), draw in zip(batches, torch.split(draws, self._sizes), strict=True):
            yield _window(inputs, pad, draw), targets

    def _generator(self, *purpose: str) -> torch.Generator:
        # On the CPU, because the generator of a GPU gives other numbers.
        return torch.Generator().manual_seed(derive(self.seed, *purpose))

    def _draw(self, epoch: str) -> tuple[int, Tensor]:
        """(padding, (row offset, column offset, flipped) of each example in an epoch, int64 (n, 3))."""
        height, width = self.split.raw.shape[2:]
        pad = max(1, min(height, width) // 8) if "crop" in self.augment else 0
        draws = torch.zeros(len(self.split), 3, dtype=torch.int64)
        draws[:, :2] = torch.randint(2 * pad + 1, (len(draws), 2), generator=self._generator("crop", epoch))
        if "flip" in self.augment:
            draws[:, 2] = torch.randint(2, (len(draws),), generator=self._generator("flip", epoch))
        return pad, draws.to(self.split.device)


def _window(images: Tensor, pad: int, draws: Tensor) -> Tensor:
    """Crop and flip a batch (b, c, h, w) by one gather with the addresses of the pixels."""
    height, width = images.shape[2:]
    rows = draws[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = draws[:, 1:2] + torch.where(draws[:, 2:] == 1, columns.flip(0), columns)
    address = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)
    padded = functional.pad(images, [pad] * 4).flatten(2)
    return padded.gather(2, address[:, None].expand(-1, images.shape[1], -1)).view_as(images)
