"""Places with many draws where the posterior has almost none of its mass.

The law of the draws need not be known, and no density is fitted to them.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

from pymc_ensemble.samplers.linearization import FOR_EACH

from .ensembles import LOST

FloatArray = NDArray[np.float64]

CELLS = round(1 / LOST)  # a coordinate is cut into so many cells, with equally many draws
EMPTY = 5.0  # log: a cell has less than a hundredth of the mass that its share of draws claims


@dataclass(frozen=True)
class Misplaced:
    """Draws in slices along a coordinate where the posterior has almost none of its mass.

    Attributes
    ----------
    share : float
        Share of these draws among all draws.
    shift : ndarray of shape (p,)
        Shift of the means by these draws, in standard deviations of the other draws.
    sd_ratio : ndarray of shape (p,)
        Factor by which they change standard deviations.
    """

    share: float
    shift: FloatArray
    sd_ratio: FloatArray

    @classmethod
    def of(cls, U: FloatArray, lp: FloatArray, X: FloatArray) -> "Misplaced | None":
        """Find them along the coordinate where they change moments most.

        Parameters
        ----------
        U : ndarray of shape (C, S, J, d)
            Unconstrained coordinates of the draws: chains, sweeps, particles.
        lp : ndarray of shape (C, S, J)
            Their log densities.
        X : ndarray of shape (C, S, J, p)
            Parameters whose moments are compared.

        Returns
        -------
        Misplaced or None
            None if there are too few draws for a cell.
        """
        *shape, d = U.shape
        n = int(np.prod(shape))
        if n < CELLS * FOR_EACH * (d + 2) or not np.isfinite(lp).all():
            return None
        flat = U.reshape(n, d)
        z = (flat - flat.mean(0)) / np.maximum(flat.std(0), 1e-300)
        parameters, values = X.reshape(n, -1), lp.reshape(n)
        found = []
        for k in range(d):
            cell = np.empty(n, dtype=int)
            cells = np.array_split(np.argsort(z[:, k], kind="stable"), CELLS)
            for b, draws in enumerate(cells):
                cell[draws] = b
            log_mass = np.full(CELLS, np.nan)
            often = _visits(cell.reshape(shape)) > d  # fewer do not span the space
            for b, draws in enumerate(cells):
                if often[b]:
                    log_mass[b] = values[draws].mean() + _entropy(z[draws], k)  # eq. (D12)
            known = np.isfinite(log_mass)
            if 2 * known.sum() >= CELLS:
                empty = known & (log_mass < np.median(log_mass[known]) - EMPTY)
                found.append(cls._of_draws(parameters, empty[cell]))
        return max(found, key=lambda one: one.far) if found else None

    @classmethod
    def _of_draws(cls, parameters: FloatArray, misplaced: NDArray[np.bool_]) -> "Misplaced":
        left = parameters[~misplaced]
        sd = np.maximum(left.std(0), 1e-300)
        shift = (parameters.mean(0) - left.mean(0)) / sd
        return cls(float(misplaced.mean()), shift, parameters.std(0) / sd)

    @property
    def far(self) -> float:
        """Largest change of a moment: sds of a mean, or doublings of an sd."""
        return float(np.abs([self.shift, np.log2(np.maximum(self.sd_ratio, 1e-300))]).max())


def _visits(cell: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of times that particles, shape (C, S, J), have entered each cell."""
    come = np.ones(cell.shape, dtype=bool)
    come[:, 1:] = cell[:, 1:] != cell[:, :-1]
    return np.bincount(cell[come], minlength=CELLS)


def _entropy(z: FloatArray, k: int) -> float:
    """Entropy of draws, shape (n, d), in a slice of coordinate k, up to a constant.

    It is the entropy of the coordinate plus that of the other coordinates given it. The second is
    that of a Gaussian law with their covariance, or of a law with elliptic contours and their
    radii, whichever is less. Neither is less than the true one. NaN if draws are in a subspace.
    """
    n, d = z.shape
    along = spacing_entropy(z[:, k])
    if d == 1:
        return along
    centered, p, dof = z - z.mean(0), d - 1, n - 2
    try:
        root = np.linalg.cholesky(centered.T @ centered / dof)
    except np.linalg.LinAlgError:
        return np.nan
    variance = (root[k] ** 2).sum()
    # given coordinate k, the determinant has one factor less, and squared radii one term less
    log_det = 2 * np.log(np.diag(root)).sum() - np.log(variance)
    squared = (np.linalg.solve(root, centered.T) ** 2).sum(0) - centered[:, k] ** 2 / variance
    log_r = 0.5 * np.log(np.maximum(squared, 1e-300))
    bias = scipy.special.digamma((dof - np.arange(p)) / 2).sum() + p * np.log(2 / dof)  # of log_det
    gaussian = 0.5 * p * np.log(2 * np.pi * math.e)
    sphere = np.log(2) + 0.5 * p * np.log(np.pi) - scipy.special.gammaln(p / 2)
    radial = sphere + spacing_entropy(log_r) + p * log_r.mean()
    return float(along + 0.5 * (log_det - bias) + min(gaussian, radial))


def spacing_entropy(x: FloatArray) -> float:
    """Entropy of a number by the spacings of its values (Vasicek 1976), shape (n,)."""
    x, n = np.sort(x), len(x)
    m, i = int(np.sqrt(n)), np.arange(n)
    high, low = np.minimum(i + m, n - 1), np.maximum(i - m, 0)
    return float(np.log(np.maximum(x[high] - x[low], 1e-300) * n / (high - low)).mean())
