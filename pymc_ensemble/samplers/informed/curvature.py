"""What outputs differ by from a line: regression in the directions that the data inform about."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from operator import attrgetter

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array

LEAST_INFORMATION = 0.05  # of a direction that the correction depends on
LENGTHS = 2.0 ** np.arange(-1, 4)  # of the kernel, in units of what is usual along each direction
NOISES = 10.0 ** np.arange(-6, 1)  # share of what directions left out contribute
SIZES = 2.0 ** -np.arange(3)  # of free moves: each has one of these, at random
CHOOSING = 300  # newest proposals that choose the kernel
MOST = 2000  # newest proposals that it learns from: its time grows like their third power
RECENT = 200  # proposals whose differences make moves: earlier ones were off
CLIP = 100.0  # residual, in units of the noise of data, beyond which a point is out of question


@dataclass(frozen=True)
class Kernel:
    """Covariance of corrections, eq. (F14).

    Attributes
    ----------
    rows : ndarray of shape (r, d)
        Directions, each as long as it counts.
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
        """Kernels that are tried.

        A direction of the basis counts as far as the data determine it, which tells where the
        posterior is. What changes a line changes it the more the steeper it is.
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
        Where it was learned, from the origin.
    weights : ndarray of shape (N, K)
        Of the kernels at the sites.
    kernel : Kernel
    starts : ndarray of shape (n, d)
        Points that the corrected posterior has led to.
    law_acceptance : float
        Acceptance of proposals without it.
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
            As the attributes.
        information : ndarray of shape (r,)
            What the data tell along each direction of the basis.
        single : ndarray of bool, shape (d,)
            Coordinates of variables that are single numbers.
        x : ndarray of shape (N, d)
            Points.
        residuals : ndarray of shape (N, K)
            What the outputs there differ by from their linearization.
        units : ndarray of shape (K,)
            Inverse noise of the data, in which outputs are comparable: they share a kernel.
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
