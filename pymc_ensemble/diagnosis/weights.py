"""Errors by chance, and importance weights of draws."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ensembles import path_ess
from .pareto import smoothed

FloatArray = NDArray[np.float64]

NONE = 1e-300  # a weight, or a scale, that counts as zero
FEWEST_WEIGHTS = 50  # fewer weights have no tail that could be fitted


@dataclass(frozen=True)
class SamplingError:
    """Errors by chance of means and standard deviations, for each of p parameters.

    Attributes
    ----------
    ess : ndarray of shape (p,)
        Effective sample size of the mean, from the paths of the particles.
    mean : ndarray of shape (p,)
        Standard error of the mean, in posterior standard deviations: the larger one of two
        estimates, from paths and from differences between chains.
    sd : ndarray of shape (p,)
        Relative standard error of the standard deviation.
    drift : ndarray of shape (p,)
        Change of the mean from the first to the second half of the sweeps, in posterior standard
        deviations.
    """

    ess: FloatArray
    mean: FloatArray
    sd: FloatArray
    drift: FloatArray

    @classmethod
    def of(cls, X: FloatArray) -> "SamplingError":
        """Errors of draws `X`, shape (C, S, J, p)."""
        C, S = X.shape[:2]
        center, scale = X.mean((0, 1, 2)), np.maximum(X.std((0, 1, 2)), NONE)
        z = (X - center) / scale
        paths = np.moveaxis(z, (3, 0, 2, 1), (0, 1, 2, 3))
        ess = np.nan_to_num(path_ess(paths), nan=1.0)
        squares = paths**2 - 1
        ess_squares = np.nan_to_num(path_ess(squares), nan=1.0)
        mean = 1 / np.sqrt(ess)  # eq. (D2)
        sd = 0.5 * squares.std((1, 2, 3)) / np.sqrt(ess_squares)
        if C > 1:
            mean = np.maximum(mean, z.mean((1, 2)).std(0, ddof=1) / np.sqrt(C))
            sd = np.maximum(sd, 0.5 * (z**2).mean((1, 2)).std(0, ddof=1) / np.sqrt(C))
        half = S // 2
        drift = np.zeros(z.shape[-1])
        if half:
            drift = z[:, -half:].mean((0, 1, 2)) - z[:, :half].mean((0, 1, 2))
        return cls(ess, mean, sd, drift)


@dataclass(frozen=True)
class Weights:
    """Importance weights of draws from a known law, and the errors of this law.

    Attributes
    ----------
    log_weights : ndarray of shape (n,)
        Pareto-smoothed and normalized.
    khat : float
        Shape of their tail. Above 0.7 the weights are unreliable.
    efficiency : float
        Effective share of the draws.
    shift : ndarray of shape (p,)
        Estimated error of the means, in posterior standard deviations.
    sd_ratio : ndarray of shape (p,)
        Estimated ratio of the standard deviations to the true ones.
    """

    log_weights: FloatArray
    khat: float
    efficiency: float
    shift: FloatArray
    sd_ratio: FloatArray

    @property
    def ess(self) -> float:
        """Number of independent draws that they are worth."""
        return self.efficiency * len(self.log_weights)

    def mean(self, values: FloatArray) -> FloatArray:
        """Weighted mean of values at the draws, shape (n, ...)."""
        weights = np.exp(self.log_weights - self.log_weights.max())
        return weights @ values / weights.sum()

    @classmethod
    def of(cls, X: FloatArray, log_ratio: FloatArray) -> "Weights":
        """Weights of draws `X`, shape (n, p), by their unnormalized log weights, shape (n,)."""
        finite = np.isfinite(log_ratio)
        lowest = log_ratio[finite].min() if finite.any() else 0.0
        log_ratio = np.where(finite, log_ratio, lowest + np.log(NONE))
        log_ratio = log_ratio - log_ratio.max()
        log_weights, khat = log_ratio, -np.inf
        most = np.sort(log_ratio)[-max(5, int(min(0.2 * len(X), 3 * np.sqrt(len(X))))) :]
        if len(X) < FEWEST_WEIGHTS:
            khat = np.inf
        elif np.ptp(most) > 1e-8:  # else there is no tail to smooth
            with np.errstate(over="ignore", invalid="ignore"):  # by the quantiles of a huge tail
                log_weights, khat = smoothed(log_ratio)
            if np.isnan(khat) or not np.isfinite(log_weights).all():
                log_weights, khat = log_ratio, np.inf
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        mean = weights @ X
        sd = np.sqrt(np.maximum(weights @ (X - mean) ** 2, NONE))
        return cls(
            np.log(np.maximum(weights, NONE)),
            float(khat),
            float(1 / (weights**2).sum() / len(X)),
            (X.mean(0) - mean) / sd,
            X.std(0) / sd,
        )
