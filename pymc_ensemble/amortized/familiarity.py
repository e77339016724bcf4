"""Test whether data look like those of any simulation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MOST = 2000  # largest number of simulations on each side: a rank of 0.99 has an error of 0.002
NEIGHBOURS = 5  # neighbours for a mean distance, which shows holes: with one, chance is too large
FLATTEST = 1e-6  # relative variance below which a direction is only rounding


@dataclass(frozen=True)
class Familiarity:
    """Distance of data from simulated data, compared with the distances of other simulations.

    There are two distances: the Mahalanobis distance from the mean, and the distance from the
    nearest simulations, which shows holes and curved sheets. No simulation is on both sides. So the
    rank of a fresh simulation among the others is uniform.

    Attributes
    ----------
    fitted : ndarray of shape (m, K)
        Standardized data of the simulations from which distances are measured.
    others : ndarray of shape (k, K)
        Standardized data of the other simulations.
    """

    fitted: FloatArray
    others: FloatArray

    @classmethod
    def of(cls, X: FloatArray, rng: np.random.Generator) -> "Familiarity":
        """Familiarity with standardized data of simulations, shape (n, K)."""
        half = min(len(X) // 2, MOST)
        order = rng.permutation(len(X))
        return cls(X[order[:half]], X[order[half : 2 * half]])

    @cached_property
    def _whitening(self) -> tuple[FloatArray, FloatArray]:
        center = self.fitted.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(self.fitted.T)))
        return center, vectors / np.sqrt(np.maximum(values, FLATTEST * values.max()))

    def _white(self, X: FloatArray) -> FloatArray:
        center, root = self._whitening
        return (X - center) @ root

    @cached_property
    def _tree(self) -> "scipy.spatial.KDTree":
        return scipy.spatial.KDTree(self._white(self.fitted))

    def _distances(self, X: FloatArray) -> FloatArray:
        """Both distances of the data, shape (2, n)."""
        Z = self._white(X)
        near, _ = self._tree.query(Z, min(NEIGHBOURS, len(self.fitted)))
        return np.stack([(Z**2).sum(1), near.reshape(len(Z), -1).mean(1)])

    @cached_property
    def _known(self) -> tuple[FloatArray, FloatArray]:
        """Sorted distances of the others, shape (2, k), and the larger ones of their ranks."""
        distances = self._distances(self.others)
        known = np.sort(distances, axis=1)
        return known, np.sort(_ranks(known, distances).max(0))

    def surprise(self, X: FloatArray) -> FloatArray:
        """Share of simulations that are nearer than standardized data (n, K), shape (n,)."""
        known, larger = self._known
        return _ranks(larger[None], _ranks(known, self._distances(X)).max(0)[None])[0]

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays to be saved."""
        return {"fitted": self.fitted, "others": self.others}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray]) -> "Familiarity":
        """Restore saved arrays."""
        return cls(arrays["fitted"], arrays["others"])


def _ranks(known: FloatArray, values: FloatArray) -> FloatArray:
    """Share of sorted rows that is below values, row by row."""
    below = [np.searchsorted(row, of_row) for row, of_row in zip(known, values, strict=True)]
    return np.array(below) / known.shape[1]
