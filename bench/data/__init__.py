"""Data sets: reading, splitting, batches."""

from bench.data.dataset import AUGMENTATIONS, Batches, Dataset, Split, describe, load, names
from bench.data.own import version

__all__ = ["AUGMENTATIONS", "Batches", "Dataset", "Split", "describe", "load", "names", "version"]
