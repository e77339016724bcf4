"""What the log densities of draws say about the posterior that they are meant to be."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import gammaln, logsumexp
from threadpoolctl import threadpool_limits

from pymc_ensemble.samplers.gaussian_process.basis import basis_size
from pymc_ensemble.samplers.gaussian_process.regression import Function, GaussianProcess

from .weights import Weights

FloatArray = NDArray[np.float64]

MOST_PARAMETERS = 35
TRAINING_DRAWS = 1000
ENOUGH_DRAWS = 4000  # where these are too few for a fit
VAGUE, NOISY = 0.1, 0.3  # error of a moment by the fit, and noise about it, that ask for more
FUNCTIONS, SAMPLE = 50, 1000  # that a fit leaves open, and the points at which they are compared
PROPOSALS = 4000  # of each round of adaptive importance sampling
ROUNDS = 5
N_KERNELS, KERNEL_ROUNDS = 300, 2
MOST_FOR_KERNELS = 10  # parameters
CLOSE = 0.2  # posterior sd, within which a smooth function changes little
HORIZON = 3.0  # distance from the draws that a fit may reach, in those between neighbors


@dataclass(frozen=True)
class Regression:
    """Posterior that a regression of the log density on the draws stands for.

    A Gaussian process with a quadratic mean is fitted to the values of the log density that the
    draws carry, and sampled in place of the posterior. Wherever the draws are, their frequencies
    play no role in it: so it can tell how far they are from what they should be.

    Attributes
    ----------
    mean, sd : ndarray of shape (p,)
        Moments of the posterior by the fit.
    shift : ndarray of shape (p,)
        Error of the means of the draws, in posterior standard deviations.
    sd_ratio : ndarray of shape (p,)
        Ratio of the standard deviations of the draws to those of the posterior.
    shift_error, sd_ratio_error : ndarray of shape (p,)
        Their standard errors, as far as the fit is uncertain; those of `sd_ratio` are relative.
    khat, efficiency : float
        Reliability of the sample from the fit.
    uncertainty : float
        Standard deviation of the log density by the fit, on average over the posterior.
    noise : float
        Standard deviation of the log density about the fit: the roughness of the forward map.
    u_shift, u_sd_ratio : ndarray of shape (d,)
        Errors of the moments of the unconstrained coordinates, which no tail of the fit enlarges.
    """

    mean: FloatArray
    sd: FloatArray
    shift: FloatArray
    sd_ratio: FloatArray
    shift_error: FloatArray
    sd_ratio_error: FloatArray
    khat: float
    efficiency: float
    uncertainty: float
    noise: float
    u_shift: FloatArray
    u_sd_ratio: FloatArray

    @classmethod
    def of(
        cls,
        U: FloatArray,
        lp: FloatArray,
        shown: Callable[[FloatArray], FloatArray],
        rng: np.random.Generator,
        others: tuple[FloatArray, FloatArray] | None = None,
    ) -> "Regression | None":
        """Fit to draws `U`, shape (n, d), with log densities `lp`, shape (n,).

        Parameters
        ----------
        U : ndarray of shape (n, d)
            Draws in unconstrained coordinates, in which the fit is made.
        lp : ndarray of shape (n,)
            Log densities in these coordinates, NaN where they are not known.
        shown : callable
            Gives the parameters whose moments are compared, shape (m, p), at points (m, d).
        rng : numpy.random.Generator
        others : tuple of ndarray, optional
            Points that are no draws, shape (m, d), with their log densities, shape (m,).

        Returns
        -------
        Regression or None
            None where there are too few different draws for a fit.
        """
        if not (U.std(0) > 0).all() or not np.isfinite(U).all():
            return None
        X, Y, p = shown(U), U, U.shape[1]
        center, scale = U.mean(0), U.std(0)
        values, vectors = np.linalg.eigh(np.corrcoef(U.T).reshape(p, p))
        root = scale[:, None] * vectors * np.sqrt(np.maximum(values, 1e-10))
        if others is not None:
            Y, lp = np.concatenate([U, others[0]]), np.concatenate([lp, others[1]])
        x = np.linalg.solve(root, (Y - center).T).T
        _, different = np.unique(x.round(10), axis=0, return_index=True)
        different = different[np.isfinite(lp[different])]
        x, lp = x[different], lp[different]
        if others is not None and len(lp):  # most of them may be of no use
            high = lp > np.quantile(lp, 0.99) - 50 - 10 * p
            x, lp = x[high], lp[high]
        level, result = lp, None
        for most in (max(TRAINING_DRAWS, 3 * basis_size("quadratic", p)), ENOUGH_DRAWS):
            some = rng.permutation(len(x))[:most]
            with threadpool_limits(1, "blas"):
                fit = _fit(x[some], lp[some], level[some], rng)
                if fit is None:
                    return None
                process, points, weights = fit
                w = np.exp(weights.log_weights)
                u = center + points @ root.T
                with np.errstate(over="ignore"):
                    moved = shown(u)
                far = ~np.isfinite(moved).all(1)
                moved[far], w[far] = 0.0, 0.0
                w /= w.sum()
                mean = w @ moved
                sd = np.maximum(np.sqrt(w @ (moved - mean) ** 2), 1e-300)
                u_mean = w @ u
                u_sd = np.sqrt(w @ (u - u_mean) ** 2)
                errors = _errors_of_moments(process, points, moved, w, rng)
                level = process.evaluate(x)[0][:, 0]
                residual = ((lp - level) / np.sqrt(_relative_noise(level, p)))[some]
                result = cls(
                    mean,
                    sd,
                    (X.mean(0) - mean) / sd,
                    X.std(0) / sd,
                    *errors,
                    weights.khat,
                    weights.efficiency,
                    float(w @ process.sd(points)[:, 0]),
                    min(float(process.noise[0]), _nugget(x[some], residual, rng)),
                    (U.mean(0) - u_mean) / u_sd,
                    U.std(0) / u_sd,
                )
            if result.largest_error < VAGUE and result.noise < NOISY:
                break
        return result

    @property
    def largest_error(self) -> float:
        """Standard error of the moment that is known worst."""
        return float(max(self.shift_error.max(), self.sd_ratio_error.max()))

    @property
    def reliable(self) -> bool:
        """Whether the fit says anything about the posterior where the draws are."""
        sampled = self.efficiency > 0.3 or (self.khat < 0.95 and self.efficiency > 0.02)
        return sampled and self.uncertainty < 0.6


def _fit(
    x: FloatArray, lp: FloatArray, level: FloatArray, rng: np.random.Generator
) -> tuple[GaussianProcess, FloatArray, Weights] | None:
    """Process for values `lp` at points, and a weighted sample of the density that it stands for.

    The lower the `level`, shape (n,), which is the values themselves or a smooth fit to them, the
    less they count: far down, a density need not be known well.
    """
    p = x.shape[1]
    relative = _relative_noise(level, p)
    used = relative < np.inf
    if used.sum() < max(1.5 * basis_size("quadratic", p), 20):
        return None
    process = GaussianProcess.fit(
        x[used], lp[used, None], "quadratic", rng, relative_noise=relative[used]
    )
    return process, *_adaptive_sample(process, x[used], rng)


def _relative_noise(level: FloatArray, p: int) -> FloatArray:
    """How much less values count, as a variance, the lower they are."""
    fall = np.maximum((np.quantile(level, 0.99) if len(level) else 0.0) - level, 0.0)
    return np.where(fall < 50 + 10 * p, 1 + (fall / (2 * p + 4)) ** 4, np.inf)  # eq. (D4)


def _errors_of_moments(
    process: GaussianProcess,
    points: FloatArray,
    parameters: FloatArray,
    weights: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Standard errors of means, in standard deviations, and relative ones of these.

    Moments differ between the functions that a process leaves open.
    """
    chosen = rng.choice(len(points), SAMPLE, p=weights)
    points, moved = points[chosen], parameters[chosen]
    drawn = process.draw(FUNCTIONS, rng)
    together = Function(drawn.kernel[:, :, 0].T, drawn.basis[:, :, 0].T)
    difference = process.evaluate(points, together)[0] - process.evaluate(points)[0]
    w = np.exp(difference - difference.max(0))  # eq. (D5)
    w /= w.sum(0)
    z = (moved - moved.mean(0)) / np.maximum(moved.std(0), 1e-300)
    means = w.T @ z
    sds = np.sqrt(np.maximum(w.T @ z**2 - means**2, 1e-300))
    low, high = np.quantile([means, np.log(sds)], [0.16, 0.84], axis=1)
    return tuple((high - low) / 2)


def _nugget(x: FloatArray, residual: FloatArray, rng: np.random.Generator) -> float:
    """Scatter of residuals between close neighbors: it vanishes if a fit was merely too stiff."""
    tree = cKDTree(x)
    nearest = np.quantile(tree.query(x, k=2)[0][:, 1], 0.25)
    near = tree.query_ball_point(x, max(CLOSE, nearest))
    pairs = [(i, some[rng.integers(len(some))]) for i, some in enumerate(near)]
    first, second = np.array([(i, j) for i, j in pairs if i != j] or [(0, 0)]).T
    difference = residual[first] - residual[second]
    # eq. (D6)
    return float(np.sqrt(0.5 * np.median(difference**2) / 0.455))  # of a squared normal variable


def _adaptive_sample(
    process: GaussianProcess, x: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, Weights]:
    """Points and their weights: a Student-t law that is fitted to the process round by round.

    The process is believed in the neighborhood of the draws `x` only, shape (n, p).
    """
    n, p = PROPOSALS, x.shape[1]
    tree = cKDTree(x)
    horizon = HORIZON * np.quantile(tree.query(x, k=2)[0][:, 1], 0.98)

    def weighted(points: FloatArray, log_proposal: FloatArray) -> Weights:
        known = np.isfinite(tree.query(points, distance_upper_bound=horizon)[0])
        value = process.evaluate(points)[0][:, 0]
        return Weights.of(points, np.where(known, value, -np.inf) - log_proposal)

    nu, inflation = max(5, p), 1.2 if p < 6 else 1.05
    mean, covariance = np.zeros(p), np.eye(p)
    for _ in range(ROUNDS):
        root, mean_of_law = np.linalg.cholesky(covariance) * inflation, mean
        tail = np.sqrt(rng.chisquare(nu, n) / nu)[:, None]
        points = mean + (rng.standard_normal((n, p)) / tail) @ root.T
        weights = weighted(points, _log_t(points, mean, root, nu))
        w = np.exp(weights.log_weights)
        w = np.minimum(w / w.sum(), 10 / n)
        w /= w.sum()
        mean = w @ points
        covariance = ((points - mean).T * w) @ (points - mean) + 1e-6 * np.eye(p)
    if p > MOST_FOR_KERNELS or weights.efficiency > 0.5:
        return points, weights
    # a shape that no ellipse fits: kernels around what was found, beside the law itself
    narrow = np.linalg.cholesky(covariance) * N_KERNELS ** (-1 / (p + 4))
    wide, log_norm = points, np.log(np.diag(narrow)).sum() + 0.5 * p * np.log(2 * np.pi)
    for _ in range(KERNEL_ROUNDS):
        kernels = points[rng.choice(n, N_KERNELS, p=w)]
        around = kernels[rng.integers(N_KERNELS, size=n)] + rng.standard_normal((n, p)) @ narrow.T
        points = np.where((rng.random(n) < 0.3)[:, None], wide, around)
        distances = cdist(
            *(np.linalg.solve(narrow, z.T).T for z in (points, kernels)), "sqeuclidean"
        )
        log_kernels = logsumexp(-0.5 * distances, axis=1) - np.log(N_KERNELS) - log_norm
        log_law = _log_t(points, mean_of_law, root, nu)
        log_proposal = np.logaddexp(np.log(0.7) + log_kernels, np.log(0.3) + log_law)
        weights = weighted(points, log_proposal)
        w = np.exp(weights.log_weights)
        w /= w.sum()
    return points, weights


def _log_t(points: FloatArray, mean: FloatArray, root: FloatArray, nu: float) -> FloatArray:
    """Log density of a multivariate Student-t law."""
    p = len(mean)
    e = np.linalg.solve(root, (points - mean).T)
    log_density = -0.5 * (nu + p) * np.log1p((e**2).sum(0) / nu) - np.log(np.diag(root)).sum()
    return log_density + gammaln((nu + p) / 2) - gammaln(nu / 2) - 0.5 * p * np.log(nu * np.pi)
