"""Bayesian regression of a slope from differences of outputs, which remembers and forgets.

All outputs share the covariance of their rows. The less outputs change along a column, the smaller
is its prior variance. A linear map is never forgotten. A curved one is forgotten to the extent that
innovations show.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import REPEATABLE, Array

from .covariance import Covariance, covariance_of

EM_STEPS = 15
BLEND = 0.05  # share of the energy that is spread over all columns alike
ROUNDING = 1e-8  # relative noise of differences, from rounding and curvature
POWERS = 2  # of the covariance, for the directions in which most is unknown


@dataclass(frozen=True)
class SlopeTracker:
    """Slope of the outputs, and its uncertainty.

    Attributes
    ----------
    slope : ndarray of shape (K, d)
        Posterior mean A of the slope.
    covariance : Covariance
        Covariance S of each of its rows, shape (d, d).
    energies : ndarray of shape (d,)
        Mean square of each column, as far as it is known.
    forgotten : float
        Share of the energies that was added to the covariance in the last round.
    """

    slope: Array
    covariance: Covariance
    energies: Array
    forgotten: float = 0.0

    @classmethod
    def of_ensemble(cls, X: Array, Z: Array) -> "SlopeTracker":
        """First fit, to draws of the prior.

        Parameters
        ----------
        X : ndarray of shape (J, d)
            Points, in coordinates in which the prior is ``N(0, 1)``.
        Z : ndarray of shape (J, K)
            Their outputs.
        """
        dX, dZ = X - X.mean(0), Z - Z.mean(0)
        n, d = dX.shape
        K, total = dZ.shape[1], float((dZ**2).mean())
        if total == 0:  # outputs that do not change
            return cls(np.zeros((K, d)), covariance_of(np.zeros(d), np.zeros((0, d))), np.zeros(d))
        energies = np.full(d, n * total / (dX**2).sum())
        residual = total
        for _ in range(EM_STEPS):  # eq. (F2)
            slope, known = _ridge(dX, dZ, energies, residual)
            variances = np.maximum(energies - (known**2).sum(0), 0.0)
            energies = (slope**2).mean(0) + variances
            energies = np.maximum(energies, 1e-12 * energies.max())
            # a smaller residual would take curvature for slope
            residual = max(((dZ - dX @ slope.T) ** 2).mean(), REPEATABLE * total)
        slope, known = _ridge(dX, dZ, energies, residual)
        spread = BLEND * energies.mean()
        return cls(
            slope,
            covariance_of(energies + spread, known),
            (1 - BLEND) * energies + spread,
        )

    @property
    def unknown(self) -> float:
        """Share of the energy of the slope that is unknown."""
        total = self.energies.sum()
        return float(self.covariance.diagonal.sum() / total) if total else 0.0

    def updated(self, X: Array, dZ: Array) -> "SlopeTracker":
        """Tracker after short steps.

        Parameters
        ----------
        X : ndarray of shape (n, d)
            Steps from one point.
        dZ : ndarray of shape (n, K)
            Changes of the outputs along them.
        """
        if not len(X):
            return self
        noise = ROUNDING * float((dZ**2).mean()) + np.finfo(float).tiny
        innovations = ((dZ - X @ self.slope.T) ** 2).mean(1)
        expected = np.einsum("nd,nd->n", self.covariance.times(X), X) + noise
        scale = X**2 @ self.energies
        excess = np.median((innovations - expected) / np.maximum(scale, np.finfo(float).tiny))
        forgotten = float(np.clip(excess, 0.0, 1.0))  # eq. (F3)
        covariance = self.covariance
        if forgotten > 0:
            covariance = covariance.plus(forgotten * self.energies)
        tracker = replace(self, covariance=covariance)._observe(X, dZ, np.full(len(X), noise))
        energies = (tracker.slope**2).mean(0) + np.maximum(tracker.covariance.diagonal, 0.0)
        energies = (1 - BLEND) * energies + BLEND * energies.mean()
        return replace(tracker, energies=energies, forgotten=forgotten)

    def along(self, step: Array, dz: Array) -> "SlopeTracker":
        """Tracker after one long step (d,), along which the outputs changed by `dz`, shape (K,).

        The part that the slope does not explain counts as curvature. Half of it is then an error of
        the slope in the middle of the step, and the other half noise.
        """
        innovation = dz - self.slope @ step
        noise = float(((innovation / 2) ** 2).mean()) + np.finfo(float).tiny
        return self._observe(step[None], dz[None], np.array([noise]))

    def _observe(self, X: Array, dZ: Array, noise: Array) -> "SlopeTracker":
        covariance, gain = self.covariance.reduced(X, noise)
        slope = self.slope + (dZ - X @ self.slope.T).T @ gain  # eq. (F1)
        return replace(self, slope=slope, covariance=covariance)

    def directions(self, size: int, rng: np.random.Generator) -> Array:
        """Orthonormal directions about which least is known, shape (n, d) with n at most d.

        They span the leading eigenvectors of the covariance, by power iterations from random
        vectors. Steps along them lower the trace of the covariance most.
        """
        n = min(size, self.slope.shape[1])
        X = rng.standard_normal((n, self.slope.shape[1]))
        for _ in range(POWERS):
            X = np.linalg.qr(self.covariance.times(X).T)[0].T
        return X


def _ridge(dX: Array, dZ: Array, energies: Array, residual: float) -> tuple[Array, Array]:
    """Slope (K, d) and what is known (n, d): ``S = diag(energies) - known^T known``."""
    scaled = dX * energies
    M = scaled @ dX.T
    M[np.diag_indices_from(M)] += residual
    root = scipy.linalg.cholesky(M, lower=True)
    known = scipy.linalg.solve_triangular(root, scaled, lower=True)
    return scipy.linalg.solve_triangular(root, dZ, lower=True).T @ known, known
