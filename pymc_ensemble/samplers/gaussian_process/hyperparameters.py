"""Hyperparameters of a Gaussian process, and their most probable values."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array

from .basis import Basis, basis_values, squared_distances

BASIS_VARIANCE = 100.0  # prior variance of the coefficients of the mean function
JITTER = 1e-6  # share of the amplitude, on the diagonal of the inducing covariance
NOISE_FLOOR = 1e-7  # variance of the noise of standardized values that is always there
FIRST_ITERATIONS, WARM_ITERATIONS = 40, 12  # of L-BFGS
SEPARATE_NOISE = 3  # so many outputs have a noise level each; more share one
SHORTEST_LENGTH = 0.5  # ensemble sd: a shorter one would take roughness for signal
SMALLEST_AMPLITUDE = -14.0  # logarithm, for standardized values


@dataclass(frozen=True)
class Hyperparameters:
    """Logarithms of the hyperparameters, for standardized values in whitened coordinates.

    Attributes
    ----------
    amplitude : float
        Log variance of the process beside its mean function.
    lengths : ndarray of shape (d,)
        Log lengthscales.
    noise : ndarray of shape (k,) or (1,)
        Log standard deviations of the noise of each value, or of all of them.
    """

    amplitude: float
    lengths: Array
    noise: Array

    def vector(self) -> Array:
        """All in one vector."""
        return np.concatenate([[self.amplitude], self.lengths, self.noise])

    @classmethod
    def of(cls, vector: Array, dimension: int) -> "Hyperparameters":
        """Hyperparameters from one vector."""
        return cls(float(vector[0]), vector[1 : dimension + 1], vector[dimension + 1 :])


@dataclass(frozen=True)
class HyperPrior:
    """Prior laws of the hyperparameters, and the box that bounds them.

    The log amplitude and the log noise are normal, the lengths have a Gamma law.

    Attributes
    ----------
    amplitude, noise : (float, float)
        Mean and sd of the logarithms.
    lengths : (float, float)
        Shape and rate.
    shortest : float
        Lower bound of the lengths.
    """

    amplitude: tuple[float, float] = (-2.0, 2.0)
    noise: tuple[float, float] = (float(np.log(0.1)), 2.0)
    lengths: tuple[float, float] = (3.0, 1.0)
    shortest: float = SHORTEST_LENGTH

    def bounds(self, dimension: int, n_noise: int) -> tuple[Array, Array]:
        """Lower and upper bounds of the vector of hyperparameters."""
        lower = [
            SMALLEST_AMPLITUDE,
            *[np.log(self.shortest)] * dimension,
            *[np.log(1e-5)] * n_noise,
        ]
        upper = [8.0, *[np.log(50.0)] * dimension, *[np.log(5.0)] * n_noise]
        return np.array(lower), np.array(upper)

    def negative_log(self, theta: Hyperparameters) -> tuple[float, Array]:
        """Negative log density (up to a constant) and its gradient."""
        mean, sd = self.amplitude
        a = (theta.amplitude - mean) / sd
        noise_mean, noise_sd = self.noise
        e = (theta.noise - noise_mean) / noise_sd
        shape, rate = self.lengths
        lengths = np.exp(theta.lengths)
        value = 0.5 * a**2 + 0.5 * (e**2).sum() - (shape * theta.lengths - rate * lengths).sum()
        gradient = np.concatenate([[a / sd], rate * lengths - shape, e / noise_sd])
        return float(value), gradient


@dataclass(frozen=True)
class MarginalPosterior:
    """Negative log marginal posterior density of hyperparameters, with its gradient.

    Parameters
    ----------
    x : ndarray of shape (n, d)
    values : ndarray of shape (n, k)
        Standardized values.
    relative_noise : ndarray of shape (n,)
        Variances of the noise relative to one another.
    basis : {"constant", "linear", "quadratic"} or None
        Mean function; None for a process of mean zero.
    prior : HyperPrior
    isotropic : bool, default False
        One length for all coordinates.
    """

    x: Array
    values: Array
    relative_noise: Array
    basis: Basis | None
    prior: HyperPrior
    isotropic: bool = False

    @cached_property
    def _squares(self) -> Array:
        """Squared distances along the coordinates (or all together), shape (n n, d)."""
        squares = (self.x[:, None, :] - self.x[None, :, :]) ** 2
        squares = squares.sum(2, keepdims=True) if self.isotropic else squares
        return squares.reshape(len(self.x) ** 2, -1)

    @cached_property
    def _mean(self) -> Array:
        """Covariance that comes from the mean function, shape (n, n)."""
        if self.basis is None:
            return np.zeros((len(self.x), len(self.x)))
        H = basis_values(self.x, self.basis)
        return BASIS_VARIANCE * H @ H.T

    def __call__(self, vector: Array) -> tuple[float, Array]:
        """Value and gradient at a vector of hyperparameters."""
        squares, mean = self._squares, self._mean
        n = len(self.values)
        theta = Hyperparameters.of(vector, squares.shape[1])
        inverse_squares = np.exp(-2 * theta.lengths)
        R = np.exp(theta.amplitude - 0.5 * (squares @ inverse_squares).reshape(n, n))
        value, gradient = self.prior.negative_log(theta)
        S = np.zeros((n, n))
        noise_gradient = np.zeros(len(theta.noise))
        for j, log_noise in enumerate(theta.noise):
            Y = self.values if len(theta.noise) == 1 else self.values[:, [j]]
            variances = np.exp(2 * log_noise) * self.relative_noise
            covariance = R + mean
            covariance[np.diag_indices(n)] += variances + NOISE_FLOOR
            try:
                L = scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
            except scipy.linalg.LinAlgError:
                return 1e10, np.zeros_like(vector)
            alpha = scipy.linalg.cho_solve((L, True), Y, check_finite=False)
            inverse, _ = scipy.linalg.lapack.dpotri(L, lower=1)
            inverse = np.tril(inverse) + np.tril(inverse, -1).T
            value += 0.5 * (Y * alpha).sum() + Y.shape[1] * np.log(np.diag(L)).sum()  # eq. (G2)
            Sj = alpha @ alpha.T - Y.shape[1] * inverse
            noise_gradient[j] = -(np.diag(Sj) * variances).sum()
            S += Sj
        S *= R
        gradient[0] -= 0.5 * S.sum()
        gradient[1 : 1 + squares.shape[1]] -= 0.5 * (S.ravel() @ squares) * inverse_squares
        gradient[1 + squares.shape[1] :] += noise_gradient
        return value, gradient


def most_probable(
    x: Array,
    values: Array,
    relative_noise: Array,
    basis: Basis,
    warm: Hyperparameters | None,
    prior: HyperPrior | None = None,
) -> Hyperparameters:
    """Maximum of the marginal posterior by L-BFGS.

    Parameters
    ----------
    x, values, relative_noise, basis
        See `MarginalPosterior`.
    warm : Hyperparameters or None
        Start of the search. Without it there are two starts, with long and with short lengths.
    prior : HyperPrior, optional
    """
    prior = HyperPrior() if prior is None else prior
    d, k = x.shape[1], values.shape[1]
    n_noise = k if k <= SEPARATE_NOISE else 1
    objective = MarginalPosterior(x, values, relative_noise, basis, prior)
    lower, upper = prior.bounds(d, n_noise)

    def start(length: float, noise: float) -> Array:
        return np.concatenate([[0.0], np.full(d, np.log(length)), np.full(n_noise, np.log(noise))])

    starts, iterations = [start(2.0, 0.3), start(0.7, 0.03)], FIRST_ITERATIONS
    if warm is not None and (n_noise == 1 or len(warm.noise) == n_noise):
        noise = warm.noise
        if n_noise == 1:  # the same for all outputs here
            noise = 0.5 * np.log(np.mean(np.exp(2 * warm.noise), keepdims=True))
        vector = np.clip(replace(warm, noise=noise).vector(), lower + 1e-6, upper - 1e-6)
        # another start only if it is better already
        least = objective(vector)[0]
        starts = [vector, *[other for other in starts if objective(other)[0] < least]]
        iterations = WARM_ITERATIONS
    results = [
        scipy.optimize.minimize(
            objective,
            np.clip(vector, lower + 1e-6, upper - 1e-6),
            jac=True,
            method="L-BFGS-B",
            bounds=np.column_stack([lower, upper]),
            options={"maxiter": iterations},
        )
        for vector in starts
    ]
    return Hyperparameters.of(min(results, key=lambda result: result.fun).x, d)


@dataclass(frozen=True)
class Levels:
    """Evidence of all points for amplitude and noise, given the lengths.

    A sample of the points is enough for the lengths. The levels of amplitude and noise need all
    points, as only these show a weak signal beside the mean function. With the features of the
    inducing points, the evidence is a sum over eigenvalues.

    Attributes
    ----------
    eigenvalues : ndarray of shape (M,)
        Eigenvalues of the information about the kernel's coefficients, without the mean function.
    explained : ndarray of shape (M, k)
        Squares of the data along the eigenvectors.
    residual : ndarray of shape (k,)
        Squares of the data that the mean function leaves.
    degrees : int
        Number of points less the number of functions of the mean.
    prior : HyperPrior
    """

    eigenvalues: Array
    explained: Array
    residual: Array
    degrees: int
    prior: HyperPrior

    @classmethod
    def of(cls, cross: Array, H: Array, Y: Array, relative: Array, prior: HyperPrior) -> "Levels":
        """Evidence for features (M, n) and (q, n) and standardized values (n, k)."""
        weight = 1 / np.sqrt(relative)
        Q, _ = np.linalg.qr((H * weight).T)
        cross, Y = cross * weight, Y * weight[:, None]
        Y = Y - Q @ (Q.T @ Y)
        rest = cross @ Q
        values, vectors = np.linalg.eigh(cross @ cross.T - rest @ rest.T)
        explained = (vectors.T @ (cross @ Y)) ** 2
        return cls(
            np.maximum(values, 0.0), explained, (Y**2).sum(0), max(len(Y) - len(H), 1), prior
        )

    def negative_log(self, vector: Array, lengths: Array) -> tuple[float, Array]:
        """Negative log posterior density at log amplitude and log noise, and its gradient."""
        theta = Hyperparameters(float(vector[0]), lengths, vector[1:])
        value, prior_gradient = self.prior.negative_log(theta)
        gradient = np.concatenate([prior_gradient[:1], prior_gradient[1 + len(lengths) :]])
        # all points inform the amplitude: a prior would keep it above zero without a signal
        mean, sd = self.prior.amplitude
        value -= 0.5 * ((vector[0] - mean) / sd) ** 2
        gradient[0] = 0.0
        amplitude, noise = np.exp(vector[0]), np.exp(2 * vector[1:])
        total = noise + amplitude * self.eigenvalues[:, None]  # (M, k)
        taken = amplitude * self.explained / total
        left = self.residual - taken.sum(0)
        free = self.degrees - len(total)
        # eq. (G3)
        value += 0.5 * (free * 2 * vector[1:] + np.log(total).sum(0) + left / noise).sum()
        by_amplitude = amplitude * self.eigenvalues[:, None] / total - taken / total
        gradient[0] += 0.5 * by_amplitude.sum()
        gradient[1:] += free + (noise / total).sum(0) + (taken / total).sum(0) - left / noise
        return float(value), gradient

    def most_probable(self, theta: Hyperparameters) -> Hyperparameters:
        """Hyperparameters with the most probable amplitude and noise for the lengths of `theta`."""
        noise = np.broadcast_to(theta.noise, len(self.residual))
        lower, upper = self.prior.bounds(len(theta.lengths), len(noise))
        keep = np.r_[0, 1 + len(theta.lengths) : len(lower)]
        bounds = np.column_stack([lower, upper])[keep]
        lower_amplitude = theta.amplitude - 2 * self.prior.amplitude[1]
        results = [
            scipy.optimize.minimize(
                self.negative_log,
                np.clip(np.append(start, noise), *bounds.T),
                args=(theta.lengths,),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
            )
            for start in (theta.amplitude, lower_amplitude)
        ]
        best = min(results, key=lambda result: result.fun).x
        return Hyperparameters(float(best[0]), theta.lengths, best[1:])


def _kernel(a: Array, b: Array, theta: Hyperparameters) -> Array:
    """Covariances between points by the kernel in eq. (G1), shape (n, m)."""
    scale = np.exp(-theta.lengths)
    K = squared_distances(a * scale, b * scale)
    K *= -0.5
    K += theta.amplitude
    return np.exp(K, out=K)
