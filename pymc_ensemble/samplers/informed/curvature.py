"""What outputs differ by from a line: regression in the directions that the data inform about."""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array

LEAST_INFORMATION = 0.05  # of a direction that the correction depends on
LENGTHS = np.array([0.5, 0.75, 1.1, 1.6, 2.5, 4.0, 6.0])  # of the kernel, over sqrt(r)
NOISES = 10.0 ** np.arange(-6, 1)  # share of what directions left out contribute
RECENT = 200  # proposals whose differences make moves: earlier ones were off
CLIP = 100.0  # residual, in units of the noise of data, beyond which a point is out of question


@dataclass(frozen=True)
class Curvature:
    """Correction of linearized outputs: a Gaussian process in a few coordinates.

    Attributes
    ----------
    basis : ndarray of shape (r, d)
        Orthonormal directions that it depends on.
    origin : ndarray of shape (d,)
        Point of the linearization.
    sites : ndarray of shape (N, r)
        Where it was learned.
    weights : ndarray of shape (N, K)
        Of the kernels at the sites.
    length : float
        Length of the kernel, in prior standard deviations.
    starts : ndarray of shape (n, d)
        Points that the corrected posterior has led to.
    law_acceptance : float
        Acceptance of proposals without it.
    """

    basis: Array
    origin: Array
    sites: Array
    weights: Array
    length: float
    starts: Array
    law_acceptance: float

    @classmethod
    def of(
        cls,
        basis: Array,
        origin: Array,
        x: Array,
        residuals: Array,
        units: Array,
        starts: Array,
        law_acceptance: float,
    ) -> "Curvature":
        """Learn from residuals.

        Parameters
        ----------
        basis, origin, starts, law_acceptance
            As the attributes.
        x : ndarray of shape (N, d)
            Points.
        residuals : ndarray of shape (N, K)
            What the outputs there differ by from their linearization.
        units : ndarray of shape (K,)
            Inverse noise of the data, in which outputs are comparable: they share a kernel.
        """
        units = np.where(units > 0, units, 1.0)
        Y = np.clip(residuals * units, -CLIP, CLIP)
        sites = (x - origin) @ basis.T
        distances = _distances(sites, sites)
        N, K = Y.shape
        best, length, noise = -np.inf, 1.0, 1.0
        for candidate in LENGTHS * np.sqrt(len(basis)):
            values, vectors = np.linalg.eigh(_kernel(distances, candidate))
            energy = ((vectors.T @ Y) ** 2).sum(1)
            for share in NOISES:
                variances = np.maximum(values, 0.0) + share
                scale = (energy / variances).sum() / (N * K)
                evidence = -K * np.log(variances).sum() - N * K * np.log(scale or 1.0)  # eq. (F13)
                if evidence > best:
                    best, length, noise = evidence, float(candidate), share
        covariance = _kernel(distances, length) + noise * np.eye(N)
        weights = linalg.solve(covariance, Y, assume_a="pos") / units
        return cls(basis, origin, sites, weights, length, starts, law_acceptance)

    def __call__(self, x: Array) -> Array:
        """Corrections at `x`, shape (n, d) to (n, K)."""
        along = (x - self.origin) @ self.basis.T
        corrections: Array = _kernel(_distances(along, self.sites), self.length) @ self.weights
        return corrections

    def last(self, n: int) -> Array:
        """Last n of the starts, again and again if there are fewer."""
        return self.starts[-1 - np.arange(n) % len(self.starts)]

    def move(self, x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Moves of `x`, shape (n, d), and the logarithm of their proposal ratio, shape (n,).

        Along the basis they go by differences of what was drawn before, which is frozen; across it
        they are preconditioned Crank-Nicolson moves of the prior.
        """
        V = self.basis
        along, partners = x @ V.T, self.starts @ V.T
        across = x - along @ V
        moved = proposals.differential_evolution(along, partners, np.eye(len(V)), rng)
        size = rng.choice((1.0, 0.5, 0.2))
        xi = rng.standard_normal(x.shape)
        new = np.sqrt(1 - size**2) * across + size * (xi - (xi @ V.T) @ V)
        return moved @ V + new, 0.5 * ((new**2).sum(1) - (across**2).sum(1))


def _distances(s: Array, t: Array) -> Array:
    """Squared distances, shapes (n, r) and (N, r) to (n, N)."""
    squares = (s**2).sum(1)[:, None] + (t**2).sum(1) - 2 * s @ t.T
    return np.maximum(squares, 0.0)


def _kernel(distances: Array, length: float) -> Array:
    values: Array = np.exp(-0.5 * distances / length**2)
    return values
