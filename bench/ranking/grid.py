"""Means over seeds of the rows of one method, for each block (data set and architecture) and sparsity."""

import numpy as np
import pandas as pd

from bench.ranking.tracks import BLOCK


class Grid:
    """Means over seeds for each block and sparsity.

    `blocks`: the B blocks, sorted. `sparsities`: the S sparsities, sorted. `rows`: (B, S) number of rows.

    Args:
        ran: rows with the columns `BLOCK` and `sparsity`.
    """

    def __init__(self, ran: pd.DataFrame) -> None:
        (dataset, datasets), (architecture, architectures) = (pd.factorize(ran[name], sort=True) for name in BLOCK)
        numbers, block = np.unique(dataset * len(architectures) + architecture, return_inverse=True)
        self.blocks = [(datasets[k // len(architectures)], architectures[k % len(architectures)]) for k in numbers]
        self.sparsities, place = np.unique(ran["sparsity"].to_numpy(float), return_inverse=True)
        self._ran, self._cell = ran, block * len(self.sparsities) + place
        self.rows = self._counted(self._cell)
        self._sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def _counted(self, cell: np.ndarray) -> np.ndarray:
        return np.bincount(cell, minlength=len(self.blocks) * len(self.sparsities)).reshape(len(self.blocks), len(self.sparsities))

    def sums(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the values of a column, and their numbers: two arrays of shape (B, S). Missing values are left out."""
        if column not in self._sums:
            self._sums[column] = self._summed(column)
        return self._sums[column]

    def _summed(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        values = self._ran[column].to_numpy(float)
        summed, sums = pd.Series(values).groupby(self._cell).sum(), np.zeros(self.rows.size)  # a sum of pandas is compensated
        sums[summed.index] = summed
        return sums.reshape(self.rows.shape), self._counted(self._cell[~np.isnan(values)])
