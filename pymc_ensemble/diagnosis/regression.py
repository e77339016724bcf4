"""Moments of the posterior, from a regression on the log densities of draws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pymc_ensemble.samplers.certificate import CERTAIN
from pymc_ensemble.samplers.gaussian_process.basis import basis_size
from pymc_ensemble.samplers.gaussian_process.regression import Function, GaussianProcess
from pymc_ensemble.samplers.proposals import GOOD

from .limits import RARE, WRONG_MEAN
from .weights import FEWEST_WEIGHTS, Weights

FloatArray = NDArray[np.float64]

MOST_PARAMETERS = 35
TRAINING_DRAWS = 1000  # also points at which functions are compared
ENOUGH_DRAWS = 4000  # of a second fit, if the first was too vague; of a round of sampling
ROUGH = 0.6  # scatter of the log density about a smooth fit, or of the fit itself
VAGUE = WRONG_MEAN / CERTAIN  # error of a moment by the fit that asks for more draws
FUNCTIONS = 50  # functions of the process that a fit leaves open
ROUNDS = 5
LARGEST_WEIGHT = 10  # larger weights are cut when the law is fitted, in mean weights
N_KERNELS, KERNEL_ROUNDS = 300, 2
LEAST_SAMPLED = 0.02  # effective share of the sample from a fit that is used
SHARE_OF_LAW = 0.3  # share of points from the law, beside the kernels
BOTTOM = 10  # fall, in units of (D4), above which draws are not used
CLOSE = 0.2  # posterior sd, within which a smooth function changes little
HORIZON = 3.0  # distance from the draws that a fit may reach, in those between neighbors


@dataclass(frozen=True)
class Regression:
    """Posterior by a regression of the log density on the draws.

    A Gaussian process with a quadratic mean is fitted to the log densities that the draws carry,
    and sampled in place of the posterior. The frequencies of the draws play no role in it. So it
    can tell how far they are from the right ones.

    Attributes
    ----------
    mean, sd : ndarray of shape (p,)
        Moments of the posterior by the fit.
    shift : ndarray of shape (p,)
        Error of the means of the draws, in posterior standard deviations.
    sd_ratio : ndarray of shape (p,)
        Ratio of the standard deviations of the draws to those of the posterior.
    shift_error, sd_ratio_error : ndarray of shape (p,)
        Standard errors of these, from the uncertainty of the fit. That of `sd_ratio` is relative.
    khat, efficiency : float
        Reliability of the sample from the fit.
    uncertainty : float
        Standard deviation of the log density by the fit, on average over the posterior.
    noise : float
        Standard deviation of the log density about the fit: the roughness of the forward map.
    u_shift, u_sd_ratio : ndarray of shape (d,)
        Errors of the moments of the unconstrained coordinates, which no tail of the fit enlarges.
    u_shift_error, u_sd_ratio_error : ndarray of shape (d,)
        Standard errors of these.
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
    u_shift_error: FloatArray
    u_sd_ratio_error: FloatArray

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
            None if there are too few different draws for a fit.
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
        _, different = np.unique(Y, axis=0, return_index=True)
        different = different[np.isfinite(lp[different])]
        x, lp = x[different], lp[different]
        if others is not None and len(lp):  # most of them may be of no use
            high = np.isfinite(_relative_noise(lp, p))
            x, lp = x[high], lp[high]
        level, result = lp, None
        for most in (max(TRAINING_DRAWS, 2 * basis_size("quadratic", p)), ENOUGH_DRAWS):
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
                both = np.column_stack([moved, u])
                of_means, of_sds = _errors_of_moments(process, points, both, w, rng)
                q = X.shape[1]
                level = process.evaluate(x)[0][:, 0]
                residual = ((lp - level) / np.sqrt(_relative_noise(level, p)))[some]
                result = cls(
                    mean,
                    sd,
                    (X.mean(0) - mean) / sd,
                    X.std(0) / sd,
                    of_means[:q],
                    of_sds[:q],
                    weights.khat,
                    weights.efficiency,
                    float(w @ process.sd(points)[:, 0]),
                    min(float(process.noise[0]), _nugget(x[some], residual, rng)),
                    (U.mean(0) - u_mean) / u_sd,
                    U.std(0) / u_sd,
                    of_means[q:],
                    of_sds[q:],
                )
            if result.largest_error < VAGUE and result.noise < ROUGH:
                break
        return result

    @property
    def largest_error(self) -> float:
        """Standard error of the moment that is known worst."""
        return float(max(self.shift_error.max(), self.sd_ratio_error.max()))

    @property
    def reliable(self) -> bool:
        """Whether the fit says anything about the posterior where the draws are."""
        return self.efficiency > LEAST_SAMPLED and self.uncertainty < ROUGH


def _fit(
    x: FloatArray, lp: FloatArray, level: FloatArray, rng: np.random.Generator
) -> tuple[GaussianProcess, FloatArray, Weights] | None:
    """Process for values `lp` at points, and a weighted sample of its density.

    `level`, shape (n,), is the values themselves or a smooth fit to them. The lower it is, the less
    a value counts, because a low density need not be known well.
    """
    p = x.shape[1]
    relative = _relative_noise(level, p)
    used = relative < np.inf
    if used.sum() < max(2 * basis_size("quadratic", p), FEWEST_WEIGHTS):
        return None
    process = GaussianProcess.fit(
        x[used], lp[used, None], "quadratic", rng, relative_noise=relative[used]
    )
    return process, *_adaptive_sample(process, x[used], rng)


def _relative_noise(level: FloatArray, p: int) -> FloatArray:
    """Relative variance of the noise of values: it grows with their fall."""
    fall = np.maximum((np.quantile(level, 1 - RARE) if len(level) else 0.0) - level, 0.0)
    steep = fall / (2 * p + 4)
    return np.where(steep < BOTTOM, 1 + steep**4, np.inf)  # eq. (D4)


def _errors_of_moments(
    process: GaussianProcess,
    points: FloatArray,
    parameters: FloatArray,
    weights: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Standard errors of means, in standard deviations, and relative ones of these.

    Moments differ between functions of a process, and between weighted samples of one function,
    since a few points have the weight of a tail.
    """
    mean = weights @ parameters
    z = (parameters - mean) / np.maximum(np.sqrt(weights @ (parameters - mean) ** 2), 1e-300)
    of_sample = np.sqrt(weights**2 @ np.array([z**2, (0.5 * (z**2 - 1)) ** 2]))
    chosen = rng.choice(len(points), TRAINING_DRAWS, p=weights)
    points, moved = points[chosen], parameters[chosen]
    drawn = process.draw(FUNCTIONS, rng)
    together = Function(drawn.kernel[:, :, 0].T, drawn.basis[:, :, 0].T)
    difference = process.evaluate(points, together)[0] - process.evaluate(points)[0]
    w = np.exp(difference - difference.max(0))  # eq. (D5)
    w /= w.sum(0)
    z = (moved - moved.mean(0)) / np.maximum(moved.std(0), 1e-300)
    means = w.T @ z
    sds = np.sqrt(np.maximum(w.T @ z**2 - means**2, 1e-300))
    low, high = np.quantile([means, np.log(sds)], scipy.special.ndtr([-1, 1]), axis=1)
    of_process = (high - low) / 2  # one standard deviation of a normal law
    mean_error, sd_error = np.hypot(of_process, of_sample)
    return mean_error, sd_error


def _nugget(x: FloatArray, residual: FloatArray, rng: np.random.Generator) -> float:
    """Scatter of residuals between close neighbors. It vanishes if a fit was only too stiff."""
    tree = scipy.spatial.cKDTree(x)
    nearest = np.median(tree.query(x, k=2)[0][:, 1])
    near = tree.query_ball_point(x, max(CLOSE, nearest))
    pairs = [(i, some[rng.integers(len(some))]) for i, some in enumerate(near)]
    first, second = np.array([(i, j) for i, j in pairs if i != j] or [(0, 0)]).T
    difference = residual[first] - residual[second]
    return float(np.sqrt(0.5 * np.median(difference**2) / scipy.stats.chi2.median(1)))  # eq. (D6)


def _adaptive_sample(
    process: GaussianProcess, x: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, Weights]:
    """Points and their weights: a Student-t law that is fitted to the process round by round.

    The process counts only in the neighborhood of the draws `x`, shape (n, p).
    """
    n, p = ENOUGH_DRAWS, x.shape[1]
    tree = scipy.spatial.cKDTree(x)
    # with the 99% quantile 5 of 8 right runs of 400 curved draws were doubtful instead of 3
    horizon = HORIZON * np.quantile(tree.query(x, k=2)[0][:, 1], 0.98)

    def weighted(points: FloatArray, log_proposal: FloatArray) -> Weights:
        known = np.isfinite(tree.query(points, distance_upper_bound=horizon)[0])
        value = process.evaluate(points)[0][:, 0]
        return Weights.of(points, np.where(known, value, -np.inf) - log_proposal)

    nu = p + 2  # degrees of freedom: its covariance is nu / p times the one that it is fitted to
    mean, covariance = np.zeros(p), np.eye(p)
    for _ in range(ROUNDS):
        law = scipy.stats.multivariate_t(mean, covariance, nu)
        wide = law.rvs(n, rng).reshape(n, p)
        of_law = weighted(wide, law.logpdf(wide))
        w = np.exp(of_law.log_weights)
        w = np.minimum(w / w.sum(), LARGEST_WEIGHT / n)
        w /= w.sum()
        mean = w @ wide
        covariance = ((wide - mean).T * w) @ (wide - mean) + 1e-6 * np.eye(p)
    if of_law.efficiency > GOOD:
        return wide, of_law
    # no ellipse fits the shape: add kernels around the points that were found
    kernel = scipy.stats.multivariate_normal(np.zeros(p), covariance * N_KERNELS ** (-2 / (p + 4)))
    points, root = wide, np.linalg.cholesky(kernel.cov)
    for _ in range(KERNEL_ROUNDS):
        centers = points[rng.choice(n, N_KERNELS, p=w)]
        around = centers[rng.integers(N_KERNELS, size=n)] + kernel.rvs(n, rng).reshape(n, p)
        points = np.where(rng.random((n, 1)) < SHARE_OF_LAW, wide, around)
        distances = scipy.spatial.distance.cdist(
            *(np.linalg.solve(root, z.T).T for z in (points, centers)), "sqeuclidean"
        )
        log_kernels = scipy.special.logsumexp(-0.5 * distances, axis=1) - np.log(N_KERNELS)
        log_kernels += kernel.logpdf(np.zeros(p))
        log_law = np.log(SHARE_OF_LAW) + law.logpdf(points)
        weights = weighted(points, np.logaddexp(np.log(1 - SHARE_OF_LAW) + log_kernels, log_law))
        w = np.exp(weights.log_weights)
        w /= w.sum()
    if of_law.efficiency > weights.efficiency:  # kernels are of no use in many dimensions
        return wide, of_law
    return points, weights
