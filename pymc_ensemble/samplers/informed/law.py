"""The learned law: a Gaussian prior and the information of linearized outputs, of low rank."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_ensemble.samplers.ensemble import Array

INFORMED = 1.0  # information at which data have halved the variance of the prior


@dataclass(frozen=True)
class InformedLaw:
    """Gaussian law ``N(m, (1 + F^T F)^-1)`` in coordinates in which the prior is ``N(0, 1)``.

    No matrix of the size of the covariance is ever formed.

    Attributes
    ----------
    center : ndarray of shape (d,)
        Mean m of the law.
    factor : ndarray of shape (K, d)
        Factor F of the information: the slope of the outputs, each row times the square root of the
        curvature of the loss in this output.
    """

    center: Array
    factor: Array

    @cached_property
    def _modes(self) -> tuple[Array, Array]:
        """Directions, shape (r, d), and singular values, shape (r,), from the smaller Gram matrix.

        Directions without information, to working precision, are left out. Along them the law is
        the prior.
        """
        K, d = self.factor.shape
        if d > K:
            values, left = np.linalg.eigh(self.factor @ self.factor.T)
        else:
            values, right = np.linalg.eigh(self.factor.T @ self.factor)
        order = np.flatnonzero(values > max(K, d) * np.finfo(float).eps * values[-1])[::-1]
        s = np.sqrt(values[order])
        V = left[:, order].T @ self.factor / s[:, None] if d > K else right[:, order].T
        return V, s

    @property
    def directions(self) -> Array:
        """Directions that the outputs inform about, shape (r, d), the most informed first."""
        return self._modes[0]

    @property
    def information(self) -> Array:
        """Information of the outputs along each direction, in units of the prior's, shape (r,)."""
        return self._modes[1] ** 2

    @property
    def informed(self) -> Array:
        """Directions with at least as much information from data as from the prior, (r, d)."""
        return self.directions[self.information >= INFORMED]

    @property
    def degrees(self) -> float:
        """Effective number of directions that the data determine."""
        return float((self.information / (1 + self.information)).sum())

    def contract(self, vectors: Array) -> Array:
        """Product of vectors, shape (..., d), with the covariance of the law."""
        shrink = self.information / (1 + self.information)
        return vectors - (vectors @ self.directions.T) * shrink @ self.directions

    def noise(self, size: int, rng: np.random.Generator, power: float | Array = 1.0) -> Array:
        """Draw deviations from the center, shape (size, d), with a power of the likelihood.

        Draws may have different powers, shape (size, 1).
        """
        xi = rng.standard_normal((size, len(self.center)))
        shrink = 1 - 1 / np.sqrt(1 + power * self.information)
        return xi - (xi @ self.directions.T) * shrink @ self.directions  # eq. (F4)

    def draw(self, size: int, rng: np.random.Generator) -> Array:
        """Draw points, shape (size, d)."""
        return self.center + self.noise(size, rng)

    @cached_property
    def log_determinant(self) -> float:
        """Logarithm of the determinant of the precision."""
        return float(np.log1p(self.information).sum())

    def log_density(self, x: Array) -> Array:
        """Normalized log density at `x`, shape (n, d) to (n,)."""
        constant = self.log_determinant - len(self.center) * np.log(2 * np.pi)
        return 0.5 * (constant - self.distance(x))  # eq. (F5)

    def distance(self, x: Array, power: float | Array = 1.0) -> Array:
        """Squared distance from the center, in the metric of the law, shape (n, d) to (n,).

        The likelihood is raised to a power. Points may have different powers, shape (n, 1).
        """
        deviations = x - self.center
        along = deviations @ self.directions.T
        return (deviations**2).sum(1) + (power * along**2) @ self.information

    def newton_step(self, gradient: Array, damping: float) -> Array:
        """Damped step against a gradient of shape (d,): damping adds to the prior's precision."""
        shrink = self.information / (1 + damping + self.information)
        along = (self.directions @ gradient) * shrink
        return -(gradient - along @ self.directions) / (1 + damping)  # eq. (F6)
