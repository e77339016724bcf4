"""Gaussian-process regression of noisy values: mean function integrated out, inducing points.

Inputs are expected in whitened coordinates, in which an ensemble has unit covariance: the prior
laws of the hyperparameters, and above all the shortest lengthscale, are stated in these units.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array

from .basis import Basis, basis_gradient, basis_values, farthest_points, quadratic_hessian
from .hyperparameters import (
    BASIS_VARIANCE,
    JITTER,
    NOISE_FLOOR,
    Hyperparameters,
    HyperPrior,
    Levels,
    _kernel,
    most_probable,
)

SUBSAMPLE = 150  # points for the hyperparameters


@dataclass(frozen=True)
class Function:
    """Coefficients of one function of the process, or of one for each particle.

    Attributes
    ----------
    kernel : ndarray of shape (M, k) or (j, M, k)
        Coefficients of the kernels at the inducing points. Of j functions, each one is evaluated at
        every j-th point.
    basis : ndarray of shape (q, k) or (j, q, k)
        Coefficients of the mean function.
    """

    kernel: Array
    basis: Array

    def __getitem__(self, index: Array) -> "Function":
        """Functions of some particles. A common function belongs to all of them."""
        if self.kernel.ndim == 2:
            return self
        return Function(self.kernel[index], self.basis[index])


def _combine(features: Array, coefficients: Array) -> Array:
    """Contract features (n, m) with coefficients (m, k), or (j, m, k) of j points in turn."""
    if coefficients.ndim == 2:
        return features @ coefficients
    return _in_turn(_by_function(features, len(coefficients)) @ coefficients)


def _by_function(rows: Array, j: int) -> Array:
    """Rows (n, m), whose functions 1 to j come in turn, as (j, n / j, m)."""
    return rows.reshape(-1, j, rows.shape[1]).swapaxes(0, 1)


def _in_turn(parts: Array) -> Array:
    """The same back: (j, n / j, m) to (n, m)."""
    return parts.swapaxes(0, 1).reshape(-1, parts.shape[2])


def _expand(weights: Array, coefficients: Array) -> Array:
    """Contract weights (n, k) with coefficients (m, k) or (j, m, k), to (n, m)."""
    if coefficients.ndim == 2:
        return weights @ coefficients.T
    return _in_turn(_by_function(weights, len(coefficients)) @ coefficients.swapaxes(1, 2))


@dataclass(frozen=True)
class Precision:
    """Precisions ``information / noise + 1`` of coefficients, for several levels of the noise.

    Attributes
    ----------
    information : ndarray of shape (m,)
        Eigenvalues of the information that data of unit noise give.
    vectors : ndarray of shape (m, m)
        Its eigenvectors.
    noise : ndarray of shape (k,)
        Variances of the noise.
    """

    information: Array
    vectors: Array
    noise: Array

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues, shape (m, k)."""
        return np.maximum(self.information, 0)[:, None] / self.noise + 1

    def solve(self, projected: Array) -> Array:
        """Means of the coefficients, shape (m, k), for projected data of unit noise."""
        return self.vectors @ ((self.vectors.T @ projected) / self.noise / self.eigenvalues)

    def variance(self, features: Array) -> Array:
        """Variances of combinations with features (m, n) of the coefficients, shape (n, k)."""
        return (self.vectors.T @ features).T ** 2 @ (1 / self.eigenvalues)

    def draw(self, size: int, rng: np.random.Generator) -> Array:
        """Deviations of the coefficients from their mean, shape (m, size, k)."""
        m, k = self.eigenvalues.shape
        noise = rng.standard_normal((m, size, k)) / np.sqrt(self.eigenvalues)[:, None, :]
        return (self.vectors @ noise.reshape(m, -1)).reshape(m, size, k)

    def with_information(self, information: Array) -> "Precision":
        """Precision after more data, which have the information (m, m) with unit noise."""
        before = (self.vectors * np.maximum(self.information, 0)) @ self.vectors.T
        values, vectors = np.linalg.eigh(before + information)
        return Precision(values, vectors, self.noise)


@dataclass(frozen=True)
class GaussianProcess:
    """Posterior of Gaussian processes with one kernel for several values.

    Attributes
    ----------
    basis : {"constant", "linear", "quadratic"}
        Mean function.
    hyperparameters : Hyperparameters
    center : ndarray of shape (k,)
        Means of the values.
    scale : float
        Unit of the standardized values, the same for all of them.
    inducing : ndarray of shape (M, d)
    inducing_factor : ndarray of shape (M, M)
        Cholesky factor of the covariance at the inducing points.
    precision : Precision
        Posterior precision of the coefficients.
    mean : Function
        Posterior mean.
    noise_correlation : ndarray of shape (k, k)
        Correlation of the residuals of the values.
    """

    basis: Basis
    hyperparameters: Hyperparameters
    center: Array
    scale: float
    inducing: Array
    inducing_factor: Array
    precision: "Precision"
    mean: Function
    noise_correlation: Array

    @classmethod
    def fit(
        cls,
        x: Array,
        values: Array,
        basis: Basis,
        rng: np.random.Generator,
        *,
        relative_noise: Array | None = None,
        guards: Array | None = None,
        warm: Hyperparameters | None = None,
        max_inducing: int | None = None,
    ) -> "GaussianProcess":
        """Fit to noisy values.

        Parameters
        ----------
        x : ndarray of shape (n, d)
            Points in whitened coordinates.
        values : ndarray of shape (n, k)
        basis : {"constant", "linear", "quadratic"}
        rng : numpy.random.Generator
            Chooses the points for the hyperparameters.
        relative_noise : ndarray of shape (n,), optional
            Variances of the noise relative to one another, equal by default.
        guards : ndarray of bool of shape (n,), optional
            Points of little weight, which only keep the process from running away.
        warm : Hyperparameters, optional
            Those of a fit to similar data.
        max_inducing : int, optional
            Number of inducing points, by default 150 in up to three dimensions and 225 in more.
        """
        n, d = x.shape
        trusted = np.ones(n, dtype=bool) if guards is None else ~guards
        center = values[trusted].mean(0)
        scale = float(values[trusted].std(0).max())
        scale = scale if scale > 0 else 1.0
        Y = (values - center) / scale
        relative = np.ones(n) if relative_noise is None else relative_noise
        sample = np.flatnonzero(trusted)
        if len(sample) > SUBSAMPLE:
            sample = rng.choice(sample, SUBSAMPLE, replace=False)
        theta = most_probable(x[sample], Y[sample], relative[sample], basis, warm)
        if max_inducing is None:
            max_inducing = SUBSAMPLE if d <= 3 else 225
        inducing = x[farthest_points(x / np.exp(theta.lengths), max_inducing)]
        unit = replace(theta, amplitude=0.0)
        covariance = _kernel(inducing, inducing, unit)
        covariance[np.diag_indices(len(inducing))] += JITTER
        factor = scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
        cross = _kernel(inducing, x, unit)
        cross = scipy.linalg.solve_triangular(factor, cross, lower=True, check_finite=False)
        H = basis_values(x, basis).T
        if len(sample) < trusted.sum():
            rows = np.ones(n, dtype=bool) if guards is None else trusted
            levels = Levels.of(cross[:, rows], H[:, rows], Y[rows], relative[rows], HyperPrior())
            theta = levels.most_probable(theta)
        theta = replace(theta, noise=np.broadcast_to(theta.noise, Y.shape[1]))
        amplitude, root = np.exp(0.5 * theta.amplitude), np.sqrt(BASIS_VARIANCE)
        features = np.vstack([root * H, amplitude * cross])
        factor, q = amplitude * factor, len(H)
        noise = np.exp(2 * theta.noise) + NOISE_FLOOR
        extra = np.where(trusted, 0.0, (0.3 * np.abs(Y).max(1)) ** 2 / noise.mean())
        scaled = features / (relative + extra)
        information, vectors = np.linalg.eigh(scaled @ features.T)  # eq. (G4)
        precision = Precision(information, vectors, noise)
        w = precision.solve(scaled @ Y)
        residual = (Y - features.T @ w) / np.sqrt(relative + extra)[:, None]
        covariance = residual.T @ residual + np.finfo(float).tiny * np.eye(len(noise))
        inverse_sd = 1 / np.sqrt(np.diag(covariance))
        mean = Function(
            scipy.linalg.solve_triangular(factor, w[q:], lower=True, trans="T", check_finite=False),
            root * w[:q],
        )
        return cls(
            basis,
            theta,
            center,
            scale,
            inducing,
            factor,
            precision,
            mean,
            covariance * inverse_sd * inverse_sd[:, None],
        )

    @property
    def noise(self) -> Array:
        """Standard deviations of the noise of the values, shape (k,)."""
        return self.scale * np.exp(self.hyperparameters.noise)

    @property
    def curvature(self) -> Array:
        """Hessians of the quadratic part of the mean function, shape (k, d, d)."""
        d = self.inducing.shape[1]
        if self.basis != "quadratic":
            return np.zeros((len(self.center), d, d))
        return quadratic_hessian(self.scale * self.mean.basis.T, d)

    def evaluate(
        self, x: Array, function: Function | None = None
    ) -> tuple[Array, Callable[[Array], Array]]:
        """Values at points, and a function that pulls gradients back to the points.

        Parameters
        ----------
        x : ndarray of shape (n, d)
        function : Function, optional
            By default the posterior mean. Otherwise one or more functions of `draw`, which the
            points use in turn.

        Returns
        -------
        values : ndarray of shape (n, k)
        pull_back : callable
            Maps weights (n, k) to the gradients (n, d) of the weighted values.
        """
        there = self.at(x)
        return there.values(function), lambda weights: there.pull_back(weights, function)

    def at(self, x: Array) -> "Place":
        """Kernels at points (n, d), which are computed once, and what follows from them."""
        K = _kernel(x, self.inducing, self.hyperparameters)
        return Place(self, x, K, basis_values(x, self.basis))

    def _features(self, x: Array) -> tuple[Array, Array]:
        """Features, shape (q + M, n), and the variance that they do not explain, shape (n,)."""
        cross = scipy.linalg.solve_triangular(
            self.inducing_factor,
            _kernel(self.inducing, x, self.hyperparameters),
            lower=True,
            check_finite=False,
        )
        missing = np.exp(self.hyperparameters.amplitude) - (cross**2).sum(0)  # eq. (G5)
        root = np.sqrt(BASIS_VARIANCE)
        features = np.vstack([root * basis_values(x, self.basis).T, cross])
        return features, np.maximum(missing, 0.0)

    def sd(self, x: Array) -> Array:
        """Posterior standard deviations of the noise-free values at points, shape (n, k)."""
        return self.at(x).sd()

    @cached_property
    def _rotation(self) -> tuple[Array, Array]:
        """From mean functions and kernels to the eigenvectors of the precision."""
        q = len(self.precision.vectors) - len(self.inducing)
        kernel = scipy.linalg.solve_triangular(
            self.inducing_factor,
            self.precision.vectors[q:],
            lower=True,
            trans="T",
            check_finite=False,
        )
        return np.sqrt(BASIS_VARIANCE) * self.precision.vectors[:q], kernel

    def sd_with(self, design: Array, x: Array, relative_noise: Array | None = None) -> Array:
        """Standard deviations at `x`, shape (n, k), if values at `design` were known, too."""
        new, missing = self._features(design)
        features, rest = self._features(x)
        relative = np.ones(len(design)) if relative_noise is None else relative_noise
        # at the design, variance that the features do not explain counts as noise
        relative = relative + missing / self.precision.noise.mean()
        precision = self.precision.with_information((new / relative) @ new.T)
        return self.scale * np.sqrt(precision.variance(features) + rest[:, None])

    def draw(self, size: int, rng: np.random.Generator) -> Function:
        """Draw functions from the posterior.

        Returns
        -------
        Function
            With coefficients of shape (size, M, k) and (size, q, k).
        """
        q, k = self.mean.basis.shape
        w = self.precision.draw(size, rng).reshape(-1, size * k)
        kernel = scipy.linalg.solve_triangular(
            self.inducing_factor, w[q:], lower=True, trans="T", check_finite=False
        )
        kernel = np.moveaxis(kernel.reshape(-1, size, k), 0, 1) + self.mean.kernel
        basis = np.sqrt(BASIS_VARIANCE) * np.moveaxis(w[:q].reshape(q, size, k), 0, 1)
        basis = basis + self.mean.basis
        return Function(kernel, basis)


@dataclass(frozen=True)
class Place:
    """Kernels and mean functions at points: values, gradients and standard deviations there.

    Attributes
    ----------
    process : GaussianProcess
    x : ndarray of shape (n, d)
    kernels : ndarray of shape (n, M)
        Covariances with the inducing points.
    basis : ndarray of shape (n, q)
    """

    process: GaussianProcess
    x: Array
    kernels: Array
    basis: Array

    def values(self, function: Function | None = None) -> Array:
        """Values of the posterior mean or of another function, shape (n, k)."""
        process = self.process
        function = process.mean if function is None else function
        standardized = _combine(self.kernels, function.kernel)
        standardized += _combine(self.basis, function.basis)
        return process.center + process.scale * standardized

    def pull_back(self, weights: Array, function: Function | None = None) -> Array:
        """Gradients (n, d) of the values that are weighted by (n, k)."""
        process, x = self.process, self.x
        function = process.mean if function is None else function
        weights = process.scale * weights
        T = self.kernels * _expand(weights, function.kernel)
        gradient = T @ process.inducing - x * T.sum(1)[:, None]
        gradient *= np.exp(-2 * process.hyperparameters.lengths)
        return gradient + basis_gradient(x, _expand(weights, function.basis), process.basis)

    def sd(self) -> Array:
        """Posterior standard deviations of the noise-free values, shape (n, k)."""
        process = self.process
        by_basis, by_kernel = process._rotation
        projected = self.basis @ by_basis + self.kernels @ by_kernel
        squares = projected * projected
        known = squares.sum(1) - BASIS_VARIANCE * np.vecdot(self.basis, self.basis)
        missing = np.maximum(np.exp(process.hyperparameters.amplitude) - known, 0.0)
        variance = squares @ (1 / process.precision.eigenvalues) + missing[:, None]
        return process.scale * np.sqrt(variance)
