"""Pareto-smoothed importance sampling.

ArviZ has the same, but takes longer to load than PyMC: each process that runs a chain would.
"""

import numpy as np
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

PRIOR = 10  # observations that the prior of a shape counts as


def smoothed(log_ratio: FloatArray) -> tuple[FloatArray, float]:
    """Smooth the tail of importance weights by quantiles of a generalized Pareto law [1]_.

    Parameters
    ----------
    log_ratio : ndarray of shape (n,)
        Unnormalized log weights.

    Returns
    -------
    log_weights : ndarray of shape (n,)
        Smoothed and normalized; NaN where the law has no quantiles.
    khat : float
        Shape of the tail.

    References
    ----------
    .. [1] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
       https://arxiv.org/abs/1507.02646
    """
    n = len(log_ratio)
    log_weights = log_ratio - np.max(log_ratio)
    order = np.argsort(log_weights)
    m = int(min(n / 5, 3 * n**0.5))
    tail = order[-m:]
    cutoff = np.exp(log_weights[order[-m - 1]])
    khat, sigma = pareto_fit(np.exp(log_weights[tail]) - cutoff)
    if np.isfinite(khat):
        middles = (np.arange(m) + 0.5) / m
        quantiles = sigma * np.expm1(-khat * np.log1p(-middles)) / khat
        log_weights[tail] = np.minimum(np.log(cutoff + quantiles), 0.0)
    return log_weights - scipy.special.logsumexp(log_weights), khat


def pareto_fit(x: FloatArray) -> tuple[float, float]:
    """Shape and scale of a generalized Pareto law by empirical Bayes [1]_.

    A weak prior draws the shape to 0.5, as ten observations would.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Positive values in ascending order.

    Returns
    -------
    shape, scale : float
        NaN if the lowest quarter of the values is the same; an infinite shape if there is no fit.

    References
    ----------
    .. [1] Zhang, J. and Stephens, M. A. (2009). A new and efficient estimation method for the
       generalized Pareto distribution. Technometrics, 51(3), 316-325.
       https://doi.org/10.1198/tech.2009.08017
    """
    n = len(x)
    quartile = x[int(n / 4 + 0.5) - 1]
    if quartile <= x[0]:
        return np.nan, np.nan
    grid = 30 + int(n**0.5)
    b = (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile) + 1 / x[-1]
    k = np.log1p(-b[:, None] * x).mean(1)
    log_likelihood = n * (np.log(-b / k) - k - 1)
    weights = np.exp(log_likelihood - scipy.special.logsumexp(log_likelihood))
    known = weights >= np.finfo(float).eps  # others are lost in rounding
    mean = (b[known] * (weights[known] / weights[known].sum())).sum()
    shape = np.log1p(-mean * x).mean()
    fit = (n * shape + PRIOR * 0.5) / (n + PRIOR), -shape / mean
    return (np.inf, np.nan) if np.isnan(fit[0]) else fit
