"""Gaussian of summaries: its covariance from replicates, and tests of its shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FLOOR = 0.05  # share of the prior variance; a tenth of FLOOR gives the same C2ST in an epidemic
NULL = 500  # number of Gaussian samples for comparison: p-values are multiples of 1/501
ROUNDING = 1e-8  # relative residual of a summary that others determine (sums of doubles: 1e-15)
ODD = 0.99  # quantile of the Gaussian samples; a summary beyond it is not Gaussian


@dataclass(frozen=True)
class Covariance:
    """Covariance of summaries, estimated from replicates.

    Attributes
    ----------
    matrix : ndarray of shape (K, K)
        Covariance for a Gaussian likelihood, with the correction for the error of the estimate.
    shrinkage : float
        Share of the correlations that shrinkage has removed.
    correction : float
        Factor of the matrix that corrects for the error of its inverse.
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
            Lower bounds of the variances.

        Notes
        -----
        Correlations are shrunk by the oracle approximating formula of Chen et al. (2010). The
        inverse of an estimated covariance is too large on average, by (R - 1) / (R - K - 2)
        (Hartlap et al. 2007). Sellentin and Heavens (2016) replace the Gaussian by a t distribution
        instead. With five replicates for each summary, both widen posteriors equally, up to a few
        percent.
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
    """Covariance of the noise, averaged over points, from two runs at each point.

    Parameters
    ----------
    first, second : ndarray of shape (n, K)
    """
    half = (first - second) / np.sqrt(2)  # has mean zero
    variances = (half**2).mean(0)
    sd = np.sqrt(np.where(variances > 0, variances, 1.0))
    n, K = half.shape
    correlation = (half / sd).T @ (half / sd) / n
    np.fill_diagonal(correlation, 1.0)
    rho = shrinkage(correlation, n)
    matrix = ((1 - rho) * correlation + rho * np.eye(K)) * np.outer(sd, sd)
    return Covariance(matrix, rho, 1.0, variances <= 0)


def dependent(residuals: FloatArray) -> list[int]:
    """Summaries that linear combinations of others determine, up to rounding.

    `residuals` are n rows of K summaries with mean zero. Summaries that do not vary are left out.
    The result is empty if there are fewer rows than summaries.
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
        Joint p-value of both measures, from Gaussian samples of the same size. Mardia's measures do
        not depend on mean and covariance.
    skewness : ndarray of shape (K,)
        Skewness of each summary.
    odd : ndarray of bool, shape (K,)
        Summaries whose skewness or kurtosis exceeds that of all summaries in 99 of 100 Gaussian
        samples.
    """

    p: float
    skewness: FloatArray
    odd: NDArray[np.bool_]

    @classmethod
    def of(cls, replicates: FloatArray, rng: np.random.Generator) -> "Shape":
        """Test replicates, shape (R, K). No column may be constant."""
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
    """Mardia's measures, and skewness and excess kurtosis of each column."""
    z = (x - x.mean(0)) / x.std(0)
    return np.array(_mardia(x)), (z * z * z).mean(0), ((z * z) ** 2).mean(0) - 3


def _mardia(x: FloatArray) -> tuple[float, float]:
    """Mardia's measures of skewness and kurtosis."""
    q = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(len(x))  # whitened
    products = q @ q.T
    cubes = products * products * products  # many times as fast as a power
    return float(cubes.mean()), float((np.diag(products) ** 2).mean())


@dataclass(frozen=True)
class Spread:
    """Change of the means and variances of summaries from point to point.

    Attributes
    ----------
    points : ndarray of shape (m, d)
        Whitened coordinates relative to the center.
    means : ndarray of shape (m, K)
    log_variances : ndarray of shape (m, K)
        Log variances minus their known part.
    counts : ndarray of shape (m,)
        Number of replicates at each point.
    kurtosis : ndarray of shape (K,)
        Excess kurtosis of the summaries. Those with raised variances have -2, which stands for a
        log variance without error.
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
        """Spread from replicates (R, K) at each point, with variances of at least `least`.

        Without this bound, a few identical replicates would give an infinite log variance.
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
        """Weighted least squares: the log variance of n replicates has variance 2 / (n - 1)."""
        X = np.column_stack([np.ones(len(self.points)), self.points])
        weights = ((self.counts - 1) / 2)[:, None]
        normal = np.linalg.inv(X.T @ (weights * X))
        coefficients = normal @ (X.T @ (weights * self.log_variances))
        return coefficients[1:].T, np.linalg.cholesky(normal[1:, 1:])

    def by_chance(self, rng: np.random.Generator) -> FloatArray:
        """Random slopes of as many replicates, if the covariance were the same everywhere."""
        noise = rng.standard_normal(self.slopes.shape) @ self.factor.T
        return noise * np.sqrt(1 + self.kurtosis / 2)[:, None]

    def mean(self, points: FloatArray) -> FloatArray:
        """Means of the summaries at points, shape (n, K): a quadratic fit without mixed terms."""
        squares = len(self.points) >= 2 * self.points.shape[1] + 1
        weights = np.sqrt(self.counts)[:, None]
        X = weights * _features(self.points, squares)
        fit = np.linalg.lstsq(X, weights * self.means, rcond=None)[0]
        return _features(points, squares) @ fit


def _features(x: FloatArray, squares: bool) -> FloatArray:
    return np.hstack([np.ones((len(x), 1)), x, x**2] if squares else [np.ones((len(x), 1)), x])


@dataclass(frozen=True)
class Change:
    """Change of the moments of draws with another likelihood, in posterior sd.

    Attributes
    ----------
    shift : ndarray of shape (d,)
        Shift of the means.
    sd_ratio : ndarray of shape (d,)
        Standard deviations with the other likelihood, divided by those of the draws.
    """

    shift: FloatArray
    sd_ratio: FloatArray

    @classmethod
    def of(cls, U: FloatArray, log_weights: FloatArray) -> "Change":
        """Change from draws, shape (n, d), and their log weights, shape (n,)."""
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
    """Log likelihood with varying variances, minus the one with a constant covariance.

    Parameters
    ----------
    residuals : ndarray of shape (n, K)
        Observed summaries minus their means.
    points : ndarray of shape (n, d)
        Coordinates relative to the center.
    matrix : ndarray of shape (K, K)
        Covariance at the center.
    slopes : ndarray of shape (K, d)
        Slopes of the log variances.
    """
    log_scale = 0.5 * points @ slopes.T
    factor = np.linalg.cholesky(matrix)
    before = np.linalg.solve(factor, residuals.T)
    after = np.linalg.solve(factor, (residuals * np.exp(-log_scale)).T)
    return 0.5 * ((before**2).sum(0) - (after**2).sum(0)) - log_scale.sum(1)


def partial_log_ratio(
    residuals: FloatArray, matrix: FloatArray, kept: NDArray[np.bool_]
) -> FloatArray:
    """Log likelihood of some summaries, minus the one of all summaries.

    Parameters
    ----------
    residuals : ndarray of shape (n, K)
        Observed summaries minus their means.
    matrix : ndarray of shape (K, K)
        Their covariance.
    kept : ndarray of bool, shape (K,)
    """
    of_all = np.linalg.solve(np.linalg.cholesky(matrix), residuals.T)
    part = matrix[np.ix_(kept, kept)]
    of_some = np.linalg.solve(np.linalg.cholesky(part), residuals[:, kept].T)
    return 0.5 * ((of_all**2).sum(0) - (of_some**2).sum(0))
