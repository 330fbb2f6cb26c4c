"""What only the steps of training see: RandAugment, mixup and label smoothing, on whole batches.

Scoring and the hooks of a training (curvature, marginal likelihood) read the plain training data instead. Each transform draws from a
stream of its own, derived from (seed, purpose, epoch, batch): none of them changes the order of the examples, another transform's draws,
or the dropout of the network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.data.batches import Batches
from bench.data.cards import Card
from bench.data.dataset import Dataset
from bench.spec.errors import UserError
from bench.spec.protocol import Protocol
from methods import derive

RANDAUGMENT = "randaugment"


def training_batches(dataset: Dataset, protocol: Protocol, seed: int) -> "Batches | TrainingBatches":
    """The batches of the training steps: shuffled, augmented and with the targets of a protocol.

    Args:
        dataset: the data set.
        protocol: batch size, augmentation, mixup and label smoothing.
        seed: seed of order, augmentation and mixup.

    Raises:
        UserError: if the augmentation does not fit the data.
    """
    check_augmentation(dataset, protocol.augment)
    simple = tuple(name for name in protocol.augment if name != RANDAUGMENT)
    batches = Batches(dataset.train, protocol.batch_size, seed=seed, shuffle=True, augment=simple)
    if RANDAUGMENT not in protocol.augment and not protocol.mixup and not protocol.label_smoothing:
        return batches
    return TrainingBatches(batches, dataset, protocol)


def check_augmentation(dataset: Dataset | Card, augment: tuple[str, ...]) -> None:
    """Raise UserError if an augmentation does not fit the data: no images, or for RandAugment no known range of pixel values."""
    for name in augment:
        if len(dataset.input_shape) != 3:
            raise UserError(f"augmentation {name!r} needs images, not tabular data: dataset {dataset.name!r} has none")
    if RANDAUGMENT not in augment:
        return
    if dataset.pixel_range is None:
        raise UserError(
            f"augmentation {RANDAUGMENT!r} needs images in uint8 or floats in [0, 1]: those of dataset {dataset.name!r} are neither"
        )
    if dataset.input_shape[0] not in (1, 3):
        raise UserError(
            f"augmentation {RANDAUGMENT!r} needs 1 (grey) or 3 (RGB) channels: dataset {dataset.name!r} has {dataset.input_shape[0]}"
        )


class TrainingBatches:
    """Batches with RandAugment, mixup and label smoothing.

    Targets are the labels (n,), or with mixup or label smoothing ε probabilities float32 (n, classes): (1 - ε) y + ε / classes, y the
    one-hot labels or their mixture (Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision").

    Mixup with λ ~ Beta(α, α), one draw per batch: inputs and targets become λ · each + (1 - λ) · the one before it in the batch, the
    last one before the first (Zhang et al. 2018, "mixup: Beyond empirical risk minimization").

    RandAugment with 2 operations of magnitude 9 of 30, the default of torchvision, for pixels in [0, 1] (Cubuk et al. 2020,
    "RandAugment: Practical automated data augmentation with a reduced search space"). All images of a batch get the same operations.
    Pixels that a rotation, shear or shift brings in from outside have the mean of the training images, as those of "crop".

    Args:
        batches: shuffled and cropped batches of the training split.
        dataset: their data set.
        protocol: which transforms.
    """

    def __init__(self, batches: Batches, dataset: Dataset, protocol: Protocol) -> None:
        self.batches, self.classes = batches, dataset.classes
        self.mixup, self.label_smoothing = protocol.mixup, protocol.label_smoothing
        self._randaugment = _RandAugment(dataset) if RANDAUGMENT in protocol.augment else None
        self._mix = _mixer(protocol.mixup, dataset.classes) if protocol.mixup else None

    @property
    def samples(self) -> int:
        """Examples in an epoch."""
        return self.batches.samples

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.batches.input_shape

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.batches.epoch
        for k, (inputs, targets) in enumerate(self.batches):
            if self._randaugment is not None:
                with _stream(self.batches.seed, RANDAUGMENT, epoch, k):
                    inputs = self._randaugment(inputs)
            if self._mix is not None:
                with _stream(self.batches.seed, "mixup", epoch, k):
                    inputs, targets = self._mixed(inputs, targets)
            yield inputs, self._smoothed(targets)

    def _mixed(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images = inputs if inputs.ndim == 4 else inputs.flatten(1)[..., None, None]  # torchvision mixes images only
        mixed, targets = self._mix(images, targets)  # type: ignore[misc]
        return mixed.view_as(inputs), targets

    def _smoothed(self, targets: Tensor) -> Tensor:
        if not self.label_smoothing:
            return targets
        soft = targets if targets.is_floating_point() else functional.one_hot(targets, self.classes).float()
        return (1.0 - self.label_smoothing) * soft + self.label_smoothing / self.classes


class _RandAugment:
    """RandAugment of standardised images (n, c, h, w)."""

    def __init__(self, dataset: Dataset) -> None:
        from torchvision.transforms import v2

        assert dataset.pixel_range is not None
        device = dataset.train.device
        low, high = dataset.pixel_range
        # x · scale + shift is in [0, 1].
        self.shift, self.scale = ((dataset.mean - low) / (high - low)).to(device), (dataset.std / (high - low)).to(device)
        self.transform = v2.RandAugment(fill=self.shift.flatten().tolist())

    def __call__(self, inputs: Tensor) -> Tensor:
        pixels = (inputs * self.scale + self.shift).clamp_(0.0, 1.0)
        changed: Tensor = self.transform(pixels)
        return (changed - self.shift) / self.scale


def _mixer(alpha: float, classes: int) -> Any:
    from torchvision.transforms import v2

    return v2.MixUp(alpha=alpha, num_classes=classes)


@contextmanager
def _stream(seed: int, purpose: str, epoch: int, batch: int) -> Iterator[None]:
    """Context in which torch's global generator of the CPU, the only one that the transforms draw from, is that of one purpose."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, purpose, str(epoch), str(batch)))
        yield
