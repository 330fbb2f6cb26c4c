"""Data sets: reading, splitting, batches."""

from bench.data.augmentation import check_augmentation, training_batches
from bench.data.dataset import AUGMENTATIONS, Batches, Dataset, Split, describe, load, names
from bench.data.own import version

__all__ = [
    "AUGMENTATIONS", "Batches", "Dataset", "Split", "check_augmentation", "describe", "load", "names", "training_batches", "version",
]  # fmt: skip
