"""Data sets: reading, splitting, batches."""

from bench.data.augmentation import check_augmentation, training_batches
from bench.data.batches import AUGMENTATIONS, Batches
from bench.data.cards import Card, Options
from bench.data.dataset import Dataset, card_of, describe, known_card, load, names
from bench.data.own import version
from bench.data.split import Split

__all__ = [
    "AUGMENTATIONS", "Batches", "Card", "Dataset", "Options", "Split", "card_of", "check_augmentation", "describe", "known_card", "load",
    "names", "training_batches", "version",
]  # fmt: skip
