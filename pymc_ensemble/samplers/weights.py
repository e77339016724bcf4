"""Importance weights of particles, tempering exponents, and resampling."""

import numpy as np

from .ensemble import Array

UNUSUAL = 0.05  # chance of an error in all limits and tests; share of draws that are unusual
LEVEL = 1 - UNUSUAL
LARGEST_LOG = 50.0  # keeps exponentials finite


def normalized_weights(log_weights: Array) -> tuple[Array, float]:
    """Weights that sum to one, and their effective sample size."""
    largest = log_weights.max()
    weights = np.exp(log_weights - largest) if np.isfinite(largest) else np.ones(len(log_weights))
    weights = weights / weights.sum()
    return weights, 1 / (weights**2).sum()


def next_exponent(loss: Array, exponent: float, target: float) -> float:
    """Largest exponent up to 1 at which the importance weights keep the effective size `target`."""

    def effective_size(increment: float) -> float:
        return normalized_weights(-increment * loss)[1]

    if effective_size(1 - exponent) >= target:
        return 1.0
    low, high = np.log(np.finfo(float).tiny), np.log(1 - exponent)
    while low < (middle := 0.5 * (low + high)) < high:  # bisection, to the last digit
        low, high = (middle, high) if effective_size(np.exp(middle)) >= target else (low, middle)
    return exponent + np.exp(low)


def systematic_resample(weights: Array, size: int, uniform: float) -> Array:
    """Indices of a systematic resample by `weights`, with one `uniform` random number."""
    levels = (uniform + np.arange(size)) / size
    return np.minimum(np.searchsorted(np.cumsum(weights), levels), len(weights) - 1)


def deep(dimension: int) -> float:
    """Excess of the potential over its minimum that hardly any draw of a posterior has.

    The mean excess is half the dimension. The probability of this one is below ``exp(-10)``.
    """
    return 10.0 + 2 * dimension


def usual(potential: Array) -> float:
    """Potential that few draws exceed. A place with a lower potential is likely."""
    return float(np.quantile(potential, LEVEL))


def plausible_limit(potential: Array, dimension: int) -> float:
    """Largest plausible potential. A member above it is stuck in a far tail.

    The limit grows with the spread of the potentials, as those of rough maps scatter more.
    """
    finite = np.isfinite(potential)
    if not finite.any():
        return -np.inf
    low, middle = np.quantile(potential[finite], UNUSUAL), np.median(potential[finite])
    return float(middle + deep(dimension) + 5 * (middle - low))  # eq. (K19)


def plausible(potential: Array, dimension: int) -> Array:
    """Mask of the members within the `plausible_limit`."""
    return potential <= plausible_limit(potential, dimension)
