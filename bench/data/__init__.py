"""Data sets: reading, splitting, batches."""

from bench.data.dataset import AUGMENTATIONS, Batches, Dataset, Split, describe, load, names

__all__ = ["AUGMENTATIONS", "Batches", "Dataset", "Split", "describe", "load", "names"]
