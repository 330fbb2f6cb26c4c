"""Data sets: where they come from, how they are split and batched."""

from bench.data.dataset import AUGMENTATIONS, Batches, Dataset, Split, describe, load, names

__all__ = ["AUGMENTATIONS", "Batches", "Dataset", "Split", "describe", "load", "names"]
