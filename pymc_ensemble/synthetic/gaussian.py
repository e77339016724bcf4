"""The Gaussian of summaries: its covariance from replicates, and tests of its shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FLOOR = 0.05  # of the variance over the prior: with a tenth of it, C2ST of an epidemic is the same
NULL = 500  # Gaussian samples that tests are compared with: p-values are multiples of 1 in 501
ROUNDING = 1e-8  # of a summary beside what others tell of it: a sum of doubles is exact to 1e-15
ODD = 0.99  # quantile of theirs, beyond which a summary is not Gaussian


@dataclass(frozen=True)
class Covariance:
    """Covariance of summaries that was estimated from replicates.

    Attributes
    ----------
    matrix : ndarray of shape (K, K)
        What a Gaussian likelihood takes: with the correction for the error of the estimate.
    shrinkage : float
        Share of the correlations that was taken away.
    correction : float
        Factor by which the matrix was enlarged for the error of its inverse.
    raised : ndarray of bool, shape (K,)
        Summaries that hardly vary in the replicates, whose variances were raised.
    """

    matrix: FloatArray
    shrinkage: float
    correction: float
    raised: NDArray[np.bool_]

    @classmethod
    def of(cls, replicates: FloatArray, least: FloatArray | None = None) -> "Covariance":
        """Covariance from replicates at one point.

        Parameters
        ----------
        replicates : ndarray of shape (R, K)
        least : ndarray of shape (K,), optional
            Variances below which none may be.

        Notes
        -----
        Correlations are shrunk by the oracle approximating formula of Chen et al. (2010), and the
        inverse of an estimated covariance is too large on average by (R - 1) / (R - K - 2)
        (Hartlap et al. 2007). Sellentin and Heavens (2016) have a t-law in place of the Gaussian:
        with five replicates for each summary both widen posteriors alike, to some percent.
        """
        R, K = replicates.shape
        variances = replicates.var(0, ddof=1)
        sd = np.sqrt(np.where(variances > 0, variances, 1.0))
        correlation = np.cov((replicates / sd).T).reshape(K, K)
        np.fill_diagonal(correlation, 1.0)
        rho = shrinkage(correlation, R - 1)
        correlation = (1 - rho) * correlation + rho * np.eye(K)
        correction = (R - 1) / (R - K - 2)
        raised = np.zeros(K, dtype=bool)
        if least is not None:
            raised = variances < least
            sd = np.sqrt(np.maximum(variances, least))
        return cls(correction * correlation * np.outer(sd, sd), rho, correction, raised)


def shrinkage(correlation: FloatArray, n: int) -> float:
    """Weight of the identity by the oracle approximating shrinkage, for n degrees of freedom."""
    K = len(correlation)
    if K == 1:
        return 0.0
    squares, square = float((correlation**2).sum()), float(np.trace(correlation)) ** 2
    # eq. (23) of Chen et al. (2010)
    above = (1 - 2 / K) * squares + square
    below = (n + 1 - 2 / K) * (squares - square / K)
    return 1.0 if below <= above else above / below


def of_pairs(first: FloatArray, second: FloatArray) -> Covariance:
    """Covariance of the noise, on average over points, by two runs at each.

    Parameters
    ----------
    first, second : ndarray of shape (n, K)
    """
    half = (first - second) / np.sqrt(2)  # whose mean is zero
    variances = (half**2).mean(0)
    sd = np.sqrt(np.where(variances > 0, variances, 1.0))
    n, K = half.shape
    correlation = (half / sd).T @ (half / sd) / n
    np.fill_diagonal(correlation, 1.0)
    rho = shrinkage(correlation, n)
    matrix = ((1 - rho) * correlation + rho * np.eye(K)) * np.outer(sd, sd)
    return Covariance(matrix, rho, 1.0, variances <= 0)


def dependent(residuals: FloatArray) -> list[int]:
    """Summaries that follow from others, as rows (n, K) with a mean of zero say up to rounding.

    Those that do not vary are left out, and fewer rows than summaries tell nothing.
    """
    n, K = residuals.shape
    sd = np.sqrt((residuals**2).mean(0))
    vary = np.flatnonzero(sd > 0)
    if n <= K or not len(vary):
        return []
    R, order = scipy.linalg.qr(residuals[:, vary] / sd[vary], mode="r", pivoting=True)
    sizes = np.abs(np.diag(R))
    return sorted(vary[order[sizes < ROUNDING * sizes[0]]].tolist())


@dataclass(frozen=True)
class Shape:
    """How Gaussian replicates are: Mardia's multivariate skewness and kurtosis.

    Attributes
    ----------
    p : float
        P-value of both together, by Gaussian samples of the same size: Mardia's measures do not
        depend on mean and covariance.
    skewness : ndarray of shape (K,)
        Skewness of each summary.
    odd : ndarray of bool, shape (K,)
        Summaries whose own skewness or kurtosis is beyond that of all summaries in 99 of 100
        Gaussian samples.
    """

    p: float
    skewness: FloatArray
    odd: NDArray[np.bool_]

    @classmethod
    def of(cls, replicates: FloatArray, rng: np.random.Generator) -> "Shape":
        """Test replicates, shape (R, K), none of whose columns is constant."""
        R, K = replicates.shape
        null = [_measures(rng.standard_normal((R, K))) for _ in range(NULL)]
        joint, skewness, tails = _measures(replicates)
        others = np.array([one for one, _, _ in null])
        above = (others >= joint).sum(0)  # of skewness and kurtosis
        below = (others[:, 1] <= joint[1]).sum()
        p = np.array([above[0], 2 * min(above[1], below)])
        limits = (
            np.quantile([np.abs(each).max() for each in parts], ODD)
            for parts in ([one for _, one, _ in null], [one for _, _, one in null])
        )
        odd = [np.abs(each) > limit for each, limit in zip((skewness, tails), limits, strict=True)]
        return cls(float(min(1.0, 2 * (1 + p.min()) / (NULL + 1))), skewness, odd[0] | odd[1])


def _measures(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mardia's measures; skewness and excess kurtosis of each column."""
    z = (x - x.mean(0)) / x.std(0)
    return np.array(_mardia(x)), (z**3).mean(0), (z**4).mean(0) - 3


def _mardia(x: FloatArray) -> tuple[float, float]:
    """Mardia's measures of skewness and kurtosis."""
    q = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(len(x))  # whitened
    products = q @ q.T
    return float((products**3).mean()), float((np.diag(products) ** 2).mean())


@dataclass(frozen=True)
class Spread:
    """How means and variances of summaries change from point to point.

    Attributes
    ----------
    points : ndarray of shape (m, d)
        Whitened coordinates from the center.
    means : ndarray of shape (m, K)
    log_variances : ndarray of shape (m, K)
        Less what is known of them.
    counts : ndarray of shape (m,)
        Replicates at each point.
    kurtosis : ndarray of shape (K,)
        Excess kurtosis of the summaries; -2, as if a log variance had no error, of those whose
        variances are raised.
    """

    points: FloatArray
    means: FloatArray
    log_variances: FloatArray
    counts: NDArray[np.int64]
    kurtosis: FloatArray

    @classmethod
    def of(
        cls, points: FloatArray, replicates: Sequence[FloatArray], least: FloatArray
    ) -> "Spread":
        """From replicates (R, K) at each of the points, with variances that are raised to `least`.

        Without that, a log variance of few replicates that are all the same would be infinite.
        """
        variances = np.array([one.var(0, ddof=1) for one in replicates])
        scales = np.sqrt(np.where(variances > 0, variances, 1.0))
        parts = [(one - one.mean(0)) / scale for one, scale in zip(replicates, scales, strict=True)]
        kurtosis = np.maximum((np.concatenate(parts) ** 4).mean(0) - 3, 0.0)
        return cls(
            points,
            np.array([one.mean(0) for one in replicates]),
            np.log(np.maximum(variances, least)),
            np.array([len(one) for one in replicates]),
            np.where((variances > least).any(0), kurtosis, -2.0),
        )

    @property
    def slopes(self) -> FloatArray:
        """Slopes of the log variances, shape (K, d)."""
        return self._fit[0]

    @property
    def factor(self) -> FloatArray:
        """Factor L of the covariance L L^T of the slopes of a Gaussian summary, shape (d, d)."""
        return self._fit[1]

    @cached_property
    def _fit(self) -> tuple[FloatArray, FloatArray]:
        """Weighted least squares: a log variance of n replicates has the variance 2 / (n - 1)."""
        X = np.column_stack([np.ones(len(self.points)), self.points])
        weights = ((self.counts - 1) / 2)[:, None]
        normal = np.linalg.inv(X.T @ (weights * X))
        coefficients = normal @ (X.T @ (weights * self.log_variances))
        return coefficients[1:].T, np.linalg.cholesky(normal[1:, 1:])

    def by_chance(self, rng: np.random.Generator) -> FloatArray:
        """Slopes that replicates of as many would have, if the covariance were the same."""
        noise = rng.standard_normal(self.slopes.shape) @ self.factor.T
        return noise * np.sqrt(1 + self.kurtosis / 2)[:, None]

    def mean(self, points: FloatArray) -> FloatArray:
        """Means of the summaries at points, shape (n, K), by coordinates and their squares."""
        squares = len(self.points) >= 2 * self.points.shape[1] + 1
        weights = np.sqrt(self.counts)[:, None]
        X = weights * _features(self.points, squares)
        fit = np.linalg.lstsq(X, weights * self.means, rcond=None)[0]
        return _features(points, squares) @ fit


def _features(x: FloatArray, squares: bool) -> FloatArray:
    return np.hstack([np.ones((len(x), 1)), x, x**2] if squares else [np.ones((len(x), 1)), x])


@dataclass(frozen=True)
class Change:
    """By how much moments of draws change with another likelihood, in posterior sd.

    Attributes
    ----------
    shift : ndarray of shape (d,)
        Of the means.
    sd_ratio : ndarray of shape (d,)
        Standard deviations with the other likelihood, relative to those of the draws.
    """

    shift: FloatArray
    sd_ratio: FloatArray

    @classmethod
    def of(cls, U: FloatArray, log_weights: FloatArray) -> "Change":
        """By weights of draws, shape (n, d) and (n,)."""
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        mean, sd = U.mean(0), np.maximum(U.std(0), np.finfo(float).tiny)
        moved = weights @ U
        spread = np.sqrt(weights @ (U - moved) ** 2)
        return cls((moved - mean) / sd, spread / sd)

    @property
    def largest(self) -> tuple[float, float]:
        """Largest shift, and largest change of the logarithm of a standard deviation."""
        log_ratio = np.log(np.maximum(self.sd_ratio, np.finfo(float).tiny))
        return (
            float(self.shift[np.abs(self.shift).argmax()]),
            float(log_ratio[np.abs(log_ratio).argmax()]),
        )


def varying_log_ratio(
    residuals: FloatArray, points: FloatArray, matrix: FloatArray, slopes: FloatArray
) -> FloatArray:
    """Log likelihood with variances that change, less that with a constant covariance.

    Parameters
    ----------
    residuals : ndarray of shape (n, K)
        Observed summaries less their means.
    points : ndarray of shape (n, d)
        From the center.
    matrix : ndarray of shape (K, K)
        Covariance at the center.
    slopes : ndarray of shape (K, d)
        Of the log variances.
    """
    log_scale = 0.5 * points @ slopes.T
    factor = np.linalg.cholesky(matrix)
    before = np.linalg.solve(factor, residuals.T)
    after = np.linalg.solve(factor, (residuals * np.exp(-log_scale)).T)
    return 0.5 * ((before**2).sum(0) - (after**2).sum(0)) - log_scale.sum(1)


def partial_log_ratio(
    residuals: FloatArray, matrix: FloatArray, kept: NDArray[np.bool_]
) -> FloatArray:
    """Log likelihood of some of the summaries, less that of all of them.

    Parameters
    ----------
    residuals : ndarray of shape (n, K)
        Observed summaries less their means.
    matrix : ndarray of shape (K, K)
        Their covariance.
    kept : ndarray of bool, shape (K,)
    """
    of_all = np.linalg.solve(np.linalg.cholesky(matrix), residuals.T)
    part = matrix[np.ix_(kept, kept)]
    of_some = np.linalg.solve(np.linalg.cholesky(part), residuals[:, kept].T)
    return 0.5 * ((of_all**2).sum(0) - (of_some**2).sum(0))
