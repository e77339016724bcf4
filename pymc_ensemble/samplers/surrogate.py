"""Gaussian-process regression of noisy values: mean function integrated out, inducing points.

Inputs are expected in whitened coordinates, in which an ensemble has unit covariance: the prior
laws of the hyperparameters, and above all the shortest lengthscale, are stated in these units.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from .ensemble import Array

Basis = Literal["constant", "linear", "quadratic"]

BASIS_VARIANCE = 100.0  # prior variance of the coefficients of the mean function
JITTER = 1e-6  # of the amplitude, on the diagonal of the inducing covariance
NOISE_FLOOR = 1e-7  # variance of the noise of standardized values that is always there
SEPARATE_NOISE = 3  # so many outputs have a noise level each; more share one
SHORTEST_LENGTH = 0.5  # ensemble sd: a shorter one would take roughness for signal
SMALLEST_AMPLITUDE = -14.0  # logarithm, for standardized values
SUBSAMPLE = 150  # points for the hyperparameters
FIRST_ITERATIONS, WARM_ITERATIONS = 40, 12  # of L-BFGS


def squared_distances(a: Array, b: Array) -> Array:
    """Squared distances between the rows of `a` and those of `b`, shape (n, m)."""
    D = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.maximum(D, 0, out=D)


def basis_size(basis: Basis, dimension: int) -> int:
    """Number q of functions of a basis of the mean function."""
    sizes = {"constant": 1, "linear": dimension + 1}
    return sizes.get(basis, (dimension + 1) * (dimension + 2) // 2)


def basis_values(x: Array, basis: Basis) -> Array:
    """Functions of the mean at points (n, d): 1, x_i and, if quadratic, x_i x_j; shape (n, q)."""
    columns = [np.ones((len(x), 1))]
    if basis != "constant":
        columns.append(x)
    if basis == "quadratic":
        i, j = np.triu_indices(x.shape[1])
        columns.append(x[:, i] * x[:, j])
    return np.hstack(columns)


def basis_gradient(x: Array, coefficients: Array, basis: Basis) -> Array:
    """Gradients, shape (n, d), of combinations with `coefficients` (n, q) of the functions."""
    n, d = x.shape
    if basis == "constant":
        return np.zeros((n, d))
    gradient = coefficients[:, 1 : d + 1]
    if basis == "quadratic":
        i, j = np.triu_indices(d)
        Q = np.zeros((n, d, d))
        Q[:, i, j] = coefficients[:, d + 1 :]
        gradient = gradient + ((Q + Q.swapaxes(1, 2)) @ x[..., None])[..., 0]
    return gradient


def farthest_points(x: Array, size: int) -> Array:
    """Indices of `size` points, each farthest from those before it; the first is the innermost."""
    if len(x) <= size:
        return np.arange(len(x))
    chosen = np.empty(size, dtype=int)
    chosen[0] = ((x - x.mean(0)) ** 2).sum(1).argmin()
    distance = ((x - x[chosen[0]]) ** 2).sum(1)
    for i in range(1, size):
        chosen[i] = distance.argmax()
        np.minimum(distance, ((x - x[chosen[i]]) ** 2).sum(1), out=distance)
    return chosen


# -- hyperparameters ------------------------------------------------------------------------------


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
                L = cholesky(covariance, lower=True, check_finite=False)
            except LinAlgError:
                return 1e10, np.zeros_like(vector)
            alpha = cho_solve((L, True), Y, check_finite=False)
            inverse, _ = dpotri(L, lower=1)
            inverse = np.tril(inverse) + np.tril(inverse, -1).T
            value += 0.5 * (Y * alpha).sum() + Y.shape[1] * np.log(np.diag(L)).sum()
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
        Where to start; without it the search starts twice, from long and from short lengths.
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
        # another start only where it is better already
        least = objective(vector)[0]
        starts = [vector, *[other for other in starts if objective(other)[0] < least]]
        iterations = WARM_ITERATIONS
    results = [
        minimize(
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
    """Evidence of all points for amplitude and noise, when the lengths are given.

    The lengths can be read off a sample of the points. The levels cannot: whether there is any
    signal beside the mean function, under noise, only all points together can tell. With the
    features of the inducing points the evidence is a sum over eigenvalues.

    Attributes
    ----------
    eigenvalues : ndarray of shape (M,)
        Of the information about the kernel's coefficients that is left after the mean function.
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
        # all points speak for the amplitude: a prior would hold it up where there is none
        mean, sd = self.prior.amplitude
        value -= 0.5 * ((vector[0] - mean) / sd) ** 2
        gradient[0] = 0.0
        amplitude, noise = np.exp(vector[0]), np.exp(2 * vector[1:])
        total = noise + amplitude * self.eigenvalues[:, None]  # (M, k)
        taken = amplitude * self.explained / total
        left = self.residual - taken.sum(0)
        free = self.degrees - len(total)
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
        results = [
            minimize(
                self.negative_log,
                np.clip(np.append(start, noise), *bounds.T),
                args=(theta.lengths,),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
            )
            for start in (theta.amplitude, theta.amplitude - 4.0)
        ]
        best = min(results, key=lambda result: result.fun).x
        return Hyperparameters(float(best[0]), theta.lengths, best[1:])


# -- regression -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """Coefficients of one function of the process, or of one for each particle.

    Attributes
    ----------
    kernel : ndarray of shape (M, k) or (n, M, k)
        Coefficients of the kernels at the inducing points.
    basis : ndarray of shape (q, k) or (n, q, k)
        Coefficients of the mean function.
    """

    kernel: Array
    basis: Array

    def __getitem__(self, index: Array) -> "Function":
        """Functions of some particles; a common function is that of all of them."""
        if self.kernel.ndim == 2:
            return self
        return Function(self.kernel[index], self.basis[index])


def _combine(features: Array, coefficients: Array) -> Array:
    """Contract features (n, m) with coefficients (m, k) or (n, m, k)."""
    if coefficients.ndim == 2:
        return features @ coefficients
    return (features[:, None, :] @ coefficients)[:, 0]


def _expand(weights: Array, coefficients: Array) -> Array:
    """Contract weights (n, k) with coefficients (m, k) or (n, m, k), to (n, m)."""
    if coefficients.ndim == 2:
        return weights @ coefficients.T
    return (coefficients @ weights[..., None])[..., 0]


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
            Points of little weight: they keep the process from running away, no more.
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
            max_inducing = 150 if d <= 3 else 225
        inducing = x[farthest_points(x / np.exp(theta.lengths), max_inducing)]
        unit = replace(theta, amplitude=0.0)
        covariance = _kernel(inducing, inducing, unit)
        covariance[np.diag_indices(len(inducing))] += JITTER
        factor = cholesky(covariance, lower=True, check_finite=False)
        cross = _kernel(inducing, x, unit)
        cross = solve_triangular(factor, cross, lower=True, check_finite=False)
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
        information, vectors = np.linalg.eigh(scaled @ features.T)
        precision = Precision(information, vectors, noise)
        w = precision.solve(scaled @ Y)
        residual = (Y - features.T @ w) / np.sqrt(relative + extra)[:, None]
        covariance = residual.T @ residual + np.finfo(float).tiny * np.eye(len(noise))
        inverse_sd = 1 / np.sqrt(np.diag(covariance))
        mean = Function(
            solve_triangular(factor, w[q:], lower=True, trans="T", check_finite=False), root * w[:q]
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
        d, k = self.inducing.shape[1], len(self.center)
        Q = np.zeros((k, d, d))
        if self.basis == "quadratic":
            i, j = np.triu_indices(d)
            Q[:, i, j] = self.scale * self.mean.basis[d + 1 :].T
        return Q + Q.swapaxes(1, 2)

    def evaluate(
        self, x: Array, function: Function | None = None
    ) -> tuple[Array, Callable[[Array], Array]]:
        """Values at points, and a function that pulls gradients back to the points.

        Parameters
        ----------
        x : ndarray of shape (n, d)
        function : Function, optional
            By default the posterior mean; else one of `draw`, common or one for each point.

        Returns
        -------
        values : ndarray of shape (n, k)
        pull_back : callable
            Maps weights (n, k) to the gradients (n, d) of the weighted values.
        """
        function = self.mean if function is None else function
        K = _kernel(x, self.inducing, self.hyperparameters)
        H = basis_values(x, self.basis)
        standardized = _combine(K, function.kernel) + _combine(H, function.basis)

        def pull_back(weights: Array) -> Array:
            weights = self.scale * weights
            T = K * _expand(weights, function.kernel)
            gradient = (T @ self.inducing - x * T.sum(1)[:, None]) * np.exp(
                -2 * self.hyperparameters.lengths
            )
            return gradient + basis_gradient(x, _expand(weights, function.basis), self.basis)

        return self.center + self.scale * standardized, pull_back

    def _features(self, x: Array) -> tuple[Array, Array]:
        """Features, shape (q + M, n), and the variance that they do not explain, shape (n,)."""
        cross = solve_triangular(
            self.inducing_factor,
            _kernel(self.inducing, x, self.hyperparameters),
            lower=True,
            check_finite=False,
        )
        missing = np.exp(self.hyperparameters.amplitude) - (cross**2).sum(0)
        root = np.sqrt(BASIS_VARIANCE)
        features = np.vstack([root * basis_values(x, self.basis).T, cross])
        return features, np.maximum(missing, 0.0)

    def sd(self, x: Array) -> Array:
        """Posterior standard deviations of the noise-free values at points, shape (n, k)."""
        by_basis, by_kernel = self._rotation
        H = basis_values(x, self.basis)
        rotated = H @ by_basis + _kernel(x, self.inducing, self.hyperparameters) @ by_kernel
        squares = rotated**2
        known = squares.sum(1) - BASIS_VARIANCE * (H**2).sum(1)
        missing = np.maximum(np.exp(self.hyperparameters.amplitude) - known, 0.0)
        variance = squares @ (1 / self.precision.eigenvalues) + missing[:, None]
        return self.scale * np.sqrt(variance)

    @cached_property
    def _rotation(self) -> tuple[Array, Array]:
        """From mean functions and kernels to the eigenvectors of the precision."""
        q = len(self.precision.vectors) - len(self.inducing)
        kernel = solve_triangular(
            self.inducing_factor,
            self.precision.vectors[q:],
            lower=True,
            trans="T",
            check_finite=False,
        )
        return np.sqrt(BASIS_VARIANCE) * self.precision.vectors[:q], kernel

    def sd_with(self, design: Array, x: Array, relative_noise: Array | None = None) -> Array:
        """Standard deviations at `x`, shape (n, k), if values were known at `design` too."""
        new, missing = self._features(design)
        features, rest = self._features(x)
        relative = np.ones(len(design)) if relative_noise is None else relative_noise
        # what the features do not explain at the design is noise there
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
        kernel = solve_triangular(
            self.inducing_factor, w[q:], lower=True, trans="T", check_finite=False
        )
        kernel = np.moveaxis(kernel.reshape(-1, size, k), 0, 1) + self.mean.kernel
        basis = np.sqrt(BASIS_VARIANCE) * np.moveaxis(w[:q].reshape(q, size, k), 0, 1)
        basis = basis + self.mean.basis
        return Function(kernel, basis)


def _kernel(a: Array, b: Array, theta: Hyperparameters) -> Array:
    """Covariances between points, shape (n, m)."""
    scale = np.exp(-theta.lengths)
    K = squared_distances(a * scale, b * scale)
    K *= -0.5
    K += theta.amplitude
    return np.exp(K, out=K)
