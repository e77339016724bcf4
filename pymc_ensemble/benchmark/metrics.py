"""Distances of draws from the exact posterior."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = Callable[[Array], NDArray[np.int_]]

DRAWS = 2000
"""Number of draws, chosen at random, from which distances of samples are computed."""

DIRECTIONS = 50

LEVELS = 100


def moment_errors(draws: Array, mean: Array, sd: Array) -> tuple[Array, Array]:
    """Errors of means, in posterior standard deviations, and relative errors of these deviations.

    Parameters
    ----------
    draws : ndarray of shape (n, d)
        Draws of a sampler.
    mean, sd : ndarray of shape (d,)
        Means and standard deviations of the exact posterior.

    Returns
    -------
    mean_error, sd_error : ndarray of shape (d,)
        Absolute errors.

    Examples
    --------
    >>> import numpy as np
    >>> moment_errors(np.array([[0.0], [2.0]]), np.array([0.5]), np.array([1.0]))
    (array([0.5]), array([0.]))
    """
    return np.abs(draws.mean(0) - mean) / sd, np.abs(draws.std(0) / sd - 1)


def thinned(draws: Array, n: int) -> Array:
    """At most n of the draws, chosen at random. Every k-th draw may be the same walker always."""
    if len(draws) <= n:
        return draws
    return draws[np.sort(np.random.default_rng(0).choice(len(draws), n, replace=False))]


def sliced_wasserstein(draws: Array, reference: Array, sd: Array) -> float:
    """Sliced Wasserstein distance of two samples, in posterior standard deviations.

    Parameters
    ----------
    draws, reference : ndarray of shapes (n, d) and (m, d)
        The two samples.
    sd : ndarray of shape (d,)
        Standard deviations of the exact posterior.

    Returns
    -------
    float
        Mean over directions of the mean absolute difference of quantiles of the projections.

    References
    ----------
    .. [1] Bonneel, N., Rabin, J., Peyré, G. and Pfister, H. (2015). Sliced and Radon Wasserstein
       barycenters of measures. Journal of Mathematical Imaging and Vision, 51, 22-45.
       https://doi.org/10.1007/s10851-014-0506-3

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(1).normal(size=(500, 1))
    >>> round(sliced_wasserstein(x + 0.3, x, np.ones(1)), 6)
    0.3
    """
    d = len(sd)
    directions = np.random.default_rng(d).standard_normal((d, DIRECTIONS if d > 1 else 1))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    ours, exact = (
        np.quantile(thinned(sample, DRAWS) / sd @ directions, levels, axis=0)
        for sample in (draws, reference)
    )
    return float(np.abs(ours - exact).mean())


def mode_error(draws: Array, reference: Array, labels: Labels) -> float:
    """Largest difference of the mass of a mode, between 0 and 1.

    Parameters
    ----------
    draws, reference : ndarray of shapes (n, d) and (m, d)
        The two samples.
    labels : callable
        Takes draws (n, d) and returns the number of the mode of each, counted from 0.
    """
    ours, exact = labels(draws), labels(reference)
    n = int(max(ours.max(), exact.max())) + 1
    masses = [np.bincount(x, minlength=n) / len(x) for x in (ours, exact)]
    return float(np.abs(masses[0] - masses[1]).max())


def first_within(costs: Array, *errors: tuple[Array, float]) -> float:
    """Smallest cost from which on all errors stay within their bounds.

    Parameters
    ----------
    costs : ndarray of shape (n,)
        Costs, in any order.
    *errors : (ndarray of shape (n,), float)
        Errors at these costs, and their bound.

    Returns
    -------
    float
        The cost. It is infinite if the errors are not within their bounds at the largest cost.

    Examples
    --------
    >>> import numpy as np
    >>> first_within(np.array([10, 20, 30]), (np.array([0.0, 0.3, 0.1]), 0.2))
    30.0
    """
    order = np.argsort(costs)
    good = np.ones(len(costs), dtype=bool)
    for values, bound in errors:
        good &= np.asarray(values)[order] <= bound
    misses = np.flatnonzero(~good)
    first = misses[-1] + 1 if len(misses) else 0
    return float(np.asarray(costs)[order][first]) if first < len(costs) else np.inf
