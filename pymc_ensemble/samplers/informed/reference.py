"""Coordinates in which a prior is independent standard normal, or nearly so."""

from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array, EnsembleFailure, PriorAndLoss
from pymc_ensemble.samplers.phases import default_ensemble_size

QUARTILES = (0.25, 0.75)
CONSTANT = 1e-6  # a second derivative with less relative variation counts as constant


@dataclass(frozen=True)
class GaussianReference:
    """Gaussian law ``N(mean, L L^T)``: the prior, or an approximation if it is not Gaussian.

    Attributes
    ----------
    mean : ndarray of shape (d,)
    scale : ndarray of shape (d,)
        Units of the coordinates.
    gaussian : ndarray of bool, shape (d,)
        Coordinates in which the prior is Gaussian, given all others.
    root : ndarray of shape (d, d) or None
        Lower triangular factor R of the precision of ``u / scale``, so that
        ``L = diag(scale) R^-T``. None if the coordinates are independent.
    """

    mean: Array
    scale: Array
    gaussian: Array
    root: Array | None = None

    def points(self, x: Array) -> Array:
        """Points with the reference coordinates `x`, shape (n, d)."""
        if self.root is not None:
            x = scipy.linalg.solve_triangular(self.root, x.T, lower=True, trans=1).T
        return self.mean + self.scale * x  # eq. (F7)

    def coordinates(self, U: Array) -> Array:
        """Reference coordinates of points `U`, shape (n, d)."""
        x = (U - self.mean) / self.scale
        return x if self.root is None else x @ self.root

    def pull_back(self, gradients: Array) -> Array:
        """Gradients by the reference coordinates, from those by `U`, shape (n, d)."""
        scaled = gradients * self.scale
        if self.root is None:
            return scaled
        return scipy.linalg.solve_triangular(self.root, scaled.T, lower=True).T

    @property
    def log_volume(self) -> float:
        """Logarithm of the determinant of L."""
        volume = float(np.log(self.scale).sum())
        return volume if self.root is None else volume - float(np.log(np.diag(self.root)).sum())


def reference_of(problem: PriorAndLoss, rng: np.random.Generator) -> GaussianReference:
    """Gaussian reference of a prior, from its gradient and draws, without forward evaluations.

    A Gaussian prior is its own reference, up to rounding, as its gradient is affine. For any other
    prior, the reference has the mean second derivatives over draws. In coordinates whose second
    derivatives are not constant, it has the medians and scales of draws.

    Parameters
    ----------
    problem : InverseProblem
    rng : numpy.random.Generator
        For draws of the prior.

    Raises
    ------
    EnsembleFailure
        If the gradient is not finite at draws of the prior, or the prior is improper.
    """
    d = problem.dimension
    U = problem.sample_prior(default_ensemble_size(problem.dimension), rng)
    center = np.median(U, axis=0)
    normal = np.ptp(scipy.special.ndtri(QUARTILES))
    scale = np.ptp(np.quantile(U, QUARTILES, axis=0), axis=0) / normal
    if not (scale > 0).all():
        raise EnsembleFailure(
            f"Draws of the prior do not spread in the coordinate number {int(scale.argmin())}, so "
            "there is no scale to begin with.",
            "Check its prior.",
        )
    signs = rng.choice([-1.0, 1.0], (2, d)) * scale
    ones = np.array([scale, *signs])
    slopes = _products(problem, center, ones)
    diagonal = slopes[0] / scale
    if np.allclose(slopes[1:], diagonal * signs, rtol=CONSTANT, atol=CONSTANT / scale.max()):
        return _independent(problem, U, center, scale, diagonal)
    return _correlated(problem, U, center, scale)


def _products(problem: PriorAndLoss, point: Array, directions: Array) -> Array:
    """Second derivatives of the prior potential along rows, by central differences.

    They are exact if the gradient is affine.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ahead = problem.prior_gradient(point + 0.5 * directions)
        behind = problem.prior_gradient(point - 0.5 * directions)
    products = ahead - behind
    if not np.isfinite(products).all():
        k = int(np.argwhere(~np.isfinite(products))[0, 1])
        raise EnsembleFailure(
            f"The gradient of the log prior is not finite in the coordinate number {k}.",
            "Check its prior.",
        )
    return products


def _independent(
    problem: PriorAndLoss, U: Array, center: Array, scale: Array, diagonal: Array
) -> GaussianReference:
    """Reference of coordinates that do not interact."""
    elsewhere = [_products(problem, u, scale[None])[0] / scale for u in U[:8]]
    gaussian = (np.abs(elsewhere - diagonal) <= CONSTANT * np.abs(diagonal)).all(0)
    gaussian &= diagonal > 0
    variance = np.where(gaussian, 1 / np.where(gaussian, diagonal, 1.0), scale**2)
    newton = center - variance * problem.prior_gradient(center[None])[0]
    return GaussianReference(np.where(gaussian, newton, center), np.sqrt(variance), gaussian)


def _correlated(problem: PriorAndLoss, U: Array, center: Array, scale: Array) -> GaussianReference:
    """Reference of coordinates that interact: a matrix of second derivatives, in units `scale`."""
    steps = np.diag(scale)
    matrices = [_products(problem, u, steps) * scale for u in (center, *U[:8])]
    spread = np.abs(np.diff(matrices, axis=0)).max((0, 2))
    precision = np.mean(matrices, axis=0)
    precision = (precision + precision.T) / 2
    gaussian = spread <= CONSTANT * np.abs(precision).max(1)
    values = np.linalg.eigvalsh(precision)
    if values[0] <= 0:
        if gaussian.all():
            raise EnsembleFailure(
                "The prior is improper, as its precision is singular.",
                "Give each variable a proper prior.",
            )
        precision = np.where(np.outer(gaussian, gaussian), precision, 0.0)
        precision[np.diag_indices_from(precision)] += ~gaussian
    variances = np.diag(
        scipy.linalg.cho_solve(scipy.linalg.cho_factor(precision, lower=True), np.eye(len(U.T)))
    )
    units = np.where(gaussian, 1.0, 1 / np.sqrt(variances))
    mean = center.copy()
    if gaussian.any():
        inside = precision[np.ix_(gaussian, gaussian)]
        force = (problem.prior_gradient(center[None])[0] * scale)[gaussian]
        mean[gaussian] -= scale[gaussian] * scipy.linalg.solve(inside, force, assume_a="pos")
    root = scipy.linalg.cholesky(precision / np.outer(units, units), lower=True)
    return GaussianReference(mean, scale, gaussian, root)
