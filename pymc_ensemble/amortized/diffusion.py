"""Conditional diffusion without a network: an archive turns Gaussian noise into draws.

An archive has points with weights, for example parameters of simulations, weighted by the distance
of their data from the data of interest. With more and more noise its law becomes normal. The score
has a closed form. Backwards in time, noise ends at points of the archive, at each with the
probability of its weight. This module uses arrays only. The page *Mathematics* has the equations.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LARGEST_NOISE = 40.0  # in sd of the archive: the difference to a Gaussian is then below 1e-4
SMALLEST_NOISE = 3e-4  # below a tenth of the width of modes that are 300 widths apart
STEPS = 60  # shares of 20 points have an error of 0.001; with half the steps 0.005
NEIGHBOURS = 50  # number of possible ends; with 20 or 100 one of two data sets was worse
AT_ONCE = 2_000_000  # number of distances computed together, in about 20 MB
BANDWIDTHS = np.geomspace(0.1, 30.0, 25)  # in units of the distance to the next points
ROUNDS = 3  # rounds of the fit of a kernel, until it covers one mode instead of several


# --- the reverse equation -------------------------------------------------------------------------


def denoised(
    x: FloatArray, noise: float, points: FloatArray, log_weights: FloatArray
) -> FloatArray:
    """Mean of the possible points behind noised ones, eq. (A2).

    Parameters
    ----------
    x : ndarray of shape (m, d)
        Noised points.
    noise : float
        Standard deviation of the noise.
    points : ndarray of shape (n, d) or (m, n, d)
        One archive for all noised points, or one for each.
    log_weights : ndarray of shape (n,) or (m, n)

    Returns
    -------
    ndarray of shape (m, d)
    """
    if points.ndim == 2:
        products, squares = x @ points.T, (points**2).sum(1)
    else:
        products, squares = np.einsum("md,mnd->mn", x, points), (points**2).sum(2)
    share = products  # in place, as arrays of this size cost more to get than to fill
    share -= 0.5 * squares
    share /= noise**2
    share += log_weights
    share -= share.max(1, keepdims=True)
    np.exp(share, out=share)
    share /= share.sum(1, keepdims=True)
    return share @ points if points.ndim == 2 else np.einsum("mn,mnd->md", share, points)


def noise_levels(steps: int = STEPS) -> FloatArray:
    """Standard deviations of the noise in eq. (A1), from the largest one to the smallest."""
    return np.geomspace(LARGEST_NOISE, SMALLEST_NOISE, steps + 1)


def reverse(
    z: FloatArray,
    points: FloatArray,
    log_weights: FloatArray,
    levels: FloatArray | None = None,
) -> FloatArray:
    """Follow the probability flow from noise to points of an archive.

    Parameters
    ----------
    z : ndarray of shape (m, d)
        Standard normal latents.
    points : ndarray of shape (n, d) or (m, n, d)
        One archive for all latents, or one for each, with a standard deviation of about one.
    log_weights : ndarray of shape (n,) or (m, n)
    levels : ndarray of shape (steps + 1,), optional
        Decreasing geometric sequence of noise levels; by default `noise_levels`.

    Returns
    -------
    ndarray of shape (m, d)
        Ends of the paths: points of the archive, if their distances exceed the smallest noise.
    """
    levels = noise_levels() if levels is None else levels
    ends = np.empty_like(z)
    at_once = max(1, AT_ONCE // points.shape[-2])
    for first in range(0, len(z), at_once):
        rows = slice(first, first + at_once)
        own = (points, log_weights) if points.ndim == 2 else (points[rows], log_weights[rows])
        x = flow(z[rows], *own, levels)
        ends[rows] = denoised(x, float(levels[-1]), *own)
    return ends


def flow(
    z: FloatArray, points: FloatArray, log_weights: FloatArray, levels: FloatArray
) -> FloatArray:
    """Noised points at the last noise level, eq. (A3), from latents as in `reverse`."""
    ratio = float(levels[1] / levels[0])
    center, spread = moments(points, log_weights)
    # at the largest noise the archive is nearly a Gaussian, which has a known flow
    x = center + np.sqrt(levels[0] ** 2 + spread**2) * z
    before = None
    for noise in levels[:-1]:
        now = denoised(x, float(noise), points, log_weights)
        # by the line through the last two, half a step ahead
        ahead = now if before is None else 1.5 * now - 0.5 * before
        x, before = ahead + ratio * (x - ahead), now  # eq. (A4)
    return x


def moments(points: FloatArray, log_weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted mean and standard deviation of points (..., n, d), each of shape (..., d)."""
    total = scipy.special.logsumexp(log_weights, axis=-1, keepdims=True)
    share = np.exp(log_weights - total)[..., None]
    center = (share * points).sum(-2)
    return center, np.sqrt((share * (points - center[..., None, :]) ** 2).sum(-2))


# --- any data -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """Pairs of parameters and data from simulations.

    Attributes
    ----------
    theta : ndarray of shape (n, d)
        Standardized parameters.
    X : ndarray of shape (n, K)
        Standardized data.
    neighbours : int
        Number of nearest data; only their parameters get weights.
    """

    theta: FloatArray
    X: FloatArray
    neighbours: int = NEIGHBOURS

    def given(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Parameters (m, k, d) of the nearest data and their log weights (m, k), eq. (A5)."""
        k = min(self.neighbours, len(self.X))
        distance, nearest = scipy.spatial.KDTree(self.X).query(X, k)
        distance, nearest = distance.reshape(len(X), k), nearest.reshape(len(X), k)
        width = np.maximum(0.5 * distance[:, -1:], 1e-12)
        return self.theta[nearest], -0.5 * (distance / width) ** 2

    def labelled(self, X: FloatArray, z: FloatArray) -> FloatArray:
        """Parameters (m, d) to which data (m, K) and latents (m, d) lead."""
        return reverse(z, *self.given(X))


# --- one data set ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelDensity:
    """Normal kernels around points, with the shape of neighbourhoods and a fitted size.

    Attributes
    ----------
    points : ndarray of shape (n, d)
    root : ndarray of shape (d, d)
        Lower Cholesky factor of the covariance of a kernel.
    """

    points: FloatArray
    root: FloatArray

    @classmethod
    def of(cls, points: FloatArray, wider: float = 1.0) -> "KernelDensity":
        """Kernels of the size with the best leave-one-out likelihood, times `wider`."""
        d = points.shape[1]
        root = _root(np.atleast_2d(np.cov(points.T)))
        for _ in range(ROUNDS):  # the covariance of all points would connect modes
            squares = _squares_of_others(root, points)
            nearest = np.argpartition(squares, d + 1, axis=1)[:, : d + 1]
            apart = (points[nearest] - points[:, None]).reshape(-1, d)
            root = _root(apart.T @ apart / len(apart))
        squares = _squares_of_others(root, points)
        least = squares.min(axis=1)  # that of the largest term
        excess, kernels, fits = -0.5 * (squares - least[:, None]), np.empty_like(squares), []
        for h in BANDWIDTHS:
            np.exp(np.divide(excess, h**2, out=kernels), out=kernels)
            levels = np.log(kernels.sum(axis=1)) - 0.5 * least / h**2
            fits.append(levels.mean() - d * np.log(h))
        return cls(points, wider * BANDWIDTHS[int(np.argmax(fits))] * root)

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Draws (n, d)."""
        about = self.points[rng.integers(len(self.points), size=n)]
        return about + rng.standard_normal(about.shape) @ self.root.T

    def log_density(self, U: FloatArray) -> FloatArray:
        """Log densities of points (m, d), shape (m,)."""
        n, d = self.points.shape
        solve = scipy.linalg.solve_triangular
        centers, z = (solve(self.root, x.T, lower=True).T for x in (self.points, U))
        volume = np.log(np.diag(self.root)).sum() + 0.5 * d * np.log(2 * np.pi) + np.log(n)
        return scipy.special.logsumexp(-0.5 * _squares(z, centers), axis=1) - volume


def _root(covariance: FloatArray) -> FloatArray:
    """Lower Cholesky factor. It also exists if points lie in a plane up to rounding."""
    least = 1e-10 * np.diag(np.diag(covariance)) + 1e-300 * np.eye(len(covariance))
    return np.linalg.cholesky(covariance + least)


def _squares_of_others(root: FloatArray, points: FloatArray) -> FloatArray:
    """Squared distances (n, n) in a metric, infinite on the diagonal."""
    z = scipy.linalg.solve_triangular(root, points.T, lower=True).T
    squares = _squares(z, z)
    np.fill_diagonal(squares, np.inf)
    return squares


def _squares(a: FloatArray, b: FloatArray) -> FloatArray:
    """Squared distances of points (m, d) and (n, d)."""
    return scipy.spatial.distance.cdist(a, b, "sqeuclidean")
