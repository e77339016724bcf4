"""Curvature of the outputs: a regression in the directions that the data inform about."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from operator import attrgetter

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array

LEAST_INFORMATION = 0.05  # the correction depends on directions with more information
LENGTHS = 2.0 ** np.arange(-1, 4)  # of the kernel, in units of what is usual along each direction
NOISES = 10.0 ** np.arange(-6, 1)  # share of what directions left out contribute
SIZES = 2.0 ** -np.arange(3)  # of free moves: each has one of these, at random
CHOOSING = 300  # newest proposals that choose the kernel
MOST = 2000  # newest proposals that it learns from: its time grows like their third power
RECENT = 200  # proposals whose differences make moves: earlier ones were off
CLIP = 100.0  # residual, in units of the noise of the data: a larger one is out of the question


@dataclass(frozen=True)
class Kernel:
    """Covariance of corrections, eq. (F14).

    Attributes
    ----------
    rows : ndarray of shape (r, d)
        Directions, whose lengths are their weights.
    single : ndarray of bool, shape (d,)
        Coordinates of variables that are single numbers.
    length : float
        Length along the directions.
    single_length : float or None
        Length in the single coordinates, if the map is a line for given values of them.
    """

    rows: Array
    single: Array
    length: float
    single_length: float | None = None

    def __call__(self, x: Array, sites: Array) -> Array:
        """Covariances (n, N) of points (n, d) and (N, d), from the point of linearization."""
        s, t = x @ self.rows.T, sites @ self.rows.T
        if self.single_length is None:
            return np.asarray(np.exp(-0.5 * _distances(s, t) / self.length**2))
        apart = _distances(x[:, self.single], sites[:, self.single])
        line = (1 + s @ t.T / self.length**2) / (1 + 1 / self.length**2)
        return np.asarray(line * np.exp(-0.5 * apart / self.single_length**2))

    @classmethod
    def candidates(cls, basis: Array, information: Array, single: Array) -> Iterator["Kernel"]:
        """Kernels to try.

        In the first kind, a direction of the basis counts as far as the data determine it. In the
        second, it counts as far as outputs change along it: where a line is steep, it changes most.
        """
        rows = np.sqrt(information / (1 + information))[:, None] * basis
        for length in LENGTHS * np.sqrt(len(rows)):
            yield cls(rows, single, float(length))
        if single.any():
            rows = np.sqrt(information / information.max())[:, None] * basis
            for length, other in product(LENGTHS, LENGTHS):
                yield cls(rows, single, float(length), float(other))


@dataclass(frozen=True)
class Curvature:
    """Correction of linearized outputs: a Gaussian process in a few coordinates.

    Attributes
    ----------
    basis : ndarray of shape (r, d)
        Orthonormal directions that it depends on.
    origin : ndarray of shape (d,)
        Point of the linearization.
    sites : ndarray of shape (N, d)
        Points from which it was learned, relative to the origin.
    weights : ndarray of shape (N, K)
        Weights of the kernels at the sites.
    kernel : Kernel
    starts : ndarray of shape (n, d)
        Draws of the corrected posterior.
    law_acceptance : float
        Acceptance of proposals without the correction.
    """

    basis: Array
    origin: Array
    sites: Array
    weights: Array
    kernel: Kernel
    starts: Array
    law_acceptance: float

    @classmethod
    def of(
        cls,
        basis: Array,
        information: Array,
        single: Array,
        origin: Array,
        x: Array,
        residuals: Array,
        units: Array,
        law_acceptance: float,
    ) -> "Curvature":
        """Learn from residuals.

        Parameters
        ----------
        basis, origin, law_acceptance
            See the attributes.
        information : ndarray of shape (r,)
            Information of the data along each direction of the basis.
        single : ndarray of bool, shape (d,)
            Coordinates of variables that are single numbers.
        x : ndarray of shape (N, d)
            Points.
        residuals : ndarray of shape (N, K)
            Differences of the outputs from their linearization.
        units : ndarray of shape (K,)
            Inverse noise of the data. In these units outputs are comparable, as they share a
            kernel.
        """
        x, residuals = x[-MOST:], residuals[-MOST:]
        units = np.where(units > 0, units, 1.0)
        Y = np.clip(residuals * units, -CLIP, CLIP)
        sites = x - origin
        candidates = Kernel.candidates(basis, information, single)
        chosen = [_Fit.of(one, sites[-CHOOSING:], Y[-CHOOSING:]) for one in candidates]
        fit = max(chosen, key=attrgetter("evidence"))
        if len(sites) > CHOOSING:
            fit = _Fit.of(fit.kernel, sites, Y)
        return cls(
            basis,
            origin,
            sites,
            fit.weights / units,
            fit.kernel,
            x[-RECENT:],
            law_acceptance,
        )

    def __call__(self, x: Array) -> Array:
        """Corrections at `x`, shape (n, d) to (n, K)."""
        corrections: Array = self.kernel(x - self.origin, self.sites) @ self.weights
        return corrections

    def last(self, n: int) -> Array:
        """Last n of the starts, repeated if there are fewer."""
        return self.starts[-1 - np.arange(n) % len(self.starts)]

    def move(self, x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Moves of `x`, shape (n, d), and the logarithm of their proposal ratio, shape (n,).

        Along the basis they use differences of earlier draws, which are frozen. Across it they are
        preconditioned Crank-Nicolson moves of the prior.
        """
        V = self.basis
        along, partners = x @ V.T, self.starts @ V.T
        across = x - along @ V
        moved = proposals.differential_evolution(along, partners, np.eye(len(V)), rng)
        size = rng.choice(SIZES, (len(x), 1))
        xi = rng.standard_normal(x.shape)
        new = np.sqrt(1 - size**2) * across + size * (xi - (xi @ V.T) @ V)
        return moved @ V + new, 0.5 * ((new**2).sum(1) - (across**2).sum(1))


@dataclass(frozen=True)
class _Fit:
    """Fit of one kernel to residuals, with the noise of the largest evidence."""

    kernel: Kernel
    evidence: float
    weights: Array

    @classmethod
    def of(cls, kernel: Kernel, sites: Array, Y: Array) -> "_Fit":
        """Fit to residuals `Y` of shape (N, K) at sites of shape (N, d)."""
        N, K = Y.shape
        values, vectors = np.linalg.eigh(kernel(sites, sites))
        along = vectors.T @ Y
        energy = (along**2).sum(1)
        best: tuple[float, Array] | None = None
        for noise in NOISES:
            variances = np.maximum(values, 0.0) + noise
            scale = (energy / variances).sum() / (N * K)
            # eq. (F13)
            evidence = float(-K * np.log(variances).sum() - N * K * np.log(scale or 1.0))
            if best is None or evidence > best[0]:
                best = evidence, variances
        assert best is not None
        evidence, variances = best
        return cls(kernel, evidence, vectors @ (along / variances[:, None]))


def _distances(s: Array, t: Array) -> Array:
    """Squared distances, shapes (n, r) and (N, r) to (n, N)."""
    squares = (s**2).sum(1)[:, None] + (t**2).sum(1) - 2 * s @ t.T
    return np.maximum(squares, 0.0)
