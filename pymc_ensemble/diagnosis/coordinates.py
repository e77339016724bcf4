"""Coordinates in which parameters between bounds have no bounds.

What a sampler has seen are unconstrained coordinates; what a result holds are the model's own
variables. How far the one are stretched against the other is a stat of the draws, the sum of the
logarithmic Jacobians of all transforms. It tells which of the variables have bounds, and where.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr
from scipy.optimize import least_squares

FloatArray = NDArray[np.float64]

SAMPLE = 1000  # draws from which bounds are told
ROUNDING = 1e-8  # share of a parameter that others leave open, if it is a function of them
EXACT = 1e-8  # share of the variance of the Jacobian that is left where everything is explained
TRIALS = 200  # from each start
STARTS = (-1.0, 1.0, -4.0)  # logarithms of distances from draws to a bound, in their range
NEAREST, DROPPED, FARTHEST = -14.0, 6.0, 8.0  # the same


@dataclass(frozen=True)
class Bounds:
    """Lower and upper bounds of p parameters, infinite where there is none.

    Attributes
    ----------
    lower, upper : ndarray of shape (p,)
    """

    lower: FloatArray
    upper: FloatArray

    @classmethod
    def logarithmic(cls, chosen: NDArray[np.bool_]) -> "Bounds":
        """Zero as lower bound of the chosen parameters, whose coordinates are logarithms."""
        return cls(np.where(chosen, 0.0, -np.inf), np.full(len(chosen), np.inf))

    def __getitem__(self, some: NDArray[np.int64]) -> "Bounds":
        """Bounds of some of the parameters."""
        return Bounds(self.lower[some], self.upper[some])

    def contain(self, X: FloatArray) -> NDArray[np.bool_]:
        """Whether parameters `X`, shape (n, p), are between the bounds; shape (n,)."""
        return ((self.lower < X) & (self.upper > X)).all(1)

    def coordinates(self, X: FloatArray) -> FloatArray:
        """Unbounded coordinates of parameters, both of shape (n, p): log or logit or neither."""
        below, above = self._logs(X)
        return np.where(self._free, X, below - above)

    def parameters(self, Y: FloatArray) -> FloatArray:
        """Parameters with the unbounded coordinates `Y`, both of shape (n, p)."""
        below, above, width = (np.where(np.isfinite(v), v, 0.0) for v in self._edges)
        with np.errstate(over="ignore"):
            rising = below + np.exp(np.where(np.isfinite(self.lower), Y, 0.0))
            falling = above - np.exp(np.where(np.isfinite(self.upper), -Y, 0.0))
            between = below + width / (1 + np.exp(np.where(self._double, -Y, 0.0)))
        one_sided = np.where(np.isfinite(self.lower), rising, falling)
        return np.where(self._free, Y, np.where(self._double, between, one_sided))

    def log_jacobian(self, X: FloatArray) -> FloatArray:
        """Logarithm of how much `parameters` stretches at `X`, shape (n,)."""
        below, above = self._logs(X)
        width = np.where(self._double, self._edges[2], 1.0)
        return (below + above - np.log(width)).sum(1)

    @property
    def _free(self) -> NDArray[np.bool_]:
        return np.isinf(self.lower) & np.isinf(self.upper)

    @property
    def _double(self) -> NDArray[np.bool_]:
        return np.isfinite(self.lower) & np.isfinite(self.upper)

    @property
    def _edges(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        return self.lower, self.upper, self.upper - self.lower

    def _logs(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Logarithms of the distances to the bounds, 0 where there is none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            below = np.log(np.where(np.isfinite(self.lower), X - self.lower, 1.0))
            above = np.log(np.where(np.isfinite(self.upper), self.upper - X, 1.0))
        return below, above


@dataclass(frozen=True)
class Redundancy:
    """Parameters that are affine functions of others, such as the last one of a simplex.

    Attributes
    ----------
    kept : ndarray of int, shape (r,)
        Numbers of the parameters that are not.
    origin, slope : ndarray of shape (p,) and (r, p)
        All parameters are ``origin + kept @ slope``.
    """

    kept: NDArray[np.int64]
    origin: FloatArray
    slope: FloatArray

    @classmethod
    def of(cls, X: FloatArray) -> "Redundancy":
        """Found in draws, shape (n, p)."""
        mean, sd = X.mean(0), np.maximum(X.std(0), np.finfo(float).tiny)
        Z = (X - mean) / sd
        _, R, order = qr(Z, mode="economic", pivoting=True)
        size = np.abs(np.diag(R))
        kept = np.sort(order[: int((size > ROUNDING * size[0]).sum())])
        slope = np.linalg.lstsq(Z[:, kept], Z, rcond=None)[0] / sd[kept, None] * sd
        slope[:, kept] = np.eye(len(kept))
        return cls(kept, mean - mean[kept] @ slope, slope)

    def __call__(self, kept: FloatArray) -> FloatArray:
        """All parameters, shape (n, p), from those that are kept, shape (n, r)."""
        return self.origin + kept @ self.slope


def bounds_of(X: FloatArray, log_jacobian: FloatArray) -> Bounds:
    """Bounds of parameters, told by the Jacobian of the transforms that take them away.

    Bounds at a and b contribute log(x - a) + log(b - x), and the farther away they are the less
    does that vary. So bounds are sought for all parameters, and those at great distances dropped.

    Parameters
    ----------
    X : ndarray of shape (n, p)
        Draws.
    log_jacobian : ndarray of shape (n,)
        Logarithms of the Jacobians there.

    Returns
    -------
    Bounds
        Where transforms are of another kind, ordering ones for example, bounds that the draws keep
        all the same.
    """
    n, p = X.shape
    low, high = X.min(0), X.max(0)
    width = np.where(high > low, high - low, 1.0)
    some = slice(None, None, max(1, n // SAMPLE))
    J = log_jacobian[some] - log_jacobian[some].mean()
    if not J.any():
        return Bounds.logarithmic(np.zeros(p, dtype=bool))
    gaps = np.concatenate([(X[some] - low) / width, (high - X[some]) / width], axis=1)

    def misfit(distances: FloatArray) -> FloatArray:
        term = np.log(gaps + np.exp(distances)).sum(1)
        return term - term.mean() - J

    def slopes(distances: FloatArray) -> FloatArray:
        slope = np.exp(distances) / (gaps + np.exp(distances))
        return slope - slope.mean(0)

    starts = [np.full(2 * p, distance) for distance in STARTS]
    starts += list(np.random.default_rng(0).choice(STARTS, (len(STARTS), 2 * p)))
    best, least = starts[0], np.inf
    for start in starts:
        found = least_squares(misfit, start, slopes, bounds=(NEAREST, FARTHEST), max_nfev=TRIALS)
        if found.cost < least:
            best, least = found.x, found.cost
        if least < EXACT * (J @ J):
            break
    below, above = np.where(best < DROPPED, np.exp(best), np.inf).reshape(2, p)
    return Bounds(low - below * width, high + above * width)
