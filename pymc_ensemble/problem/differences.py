"""Derivatives of functions of rows by finite differences."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

DIFFERENCE_STEP = np.finfo(float).eps ** (1 / 3)
SECOND_DIFFERENCE_STEP = np.finfo(float).eps ** (1 / 4)
CURVATURE_FLOOR = 1e-8


def _steps(points: FloatArray, size: float) -> Iterator[tuple[int, FloatArray]]:
    """Steps from points (n, d) along each coordinate, relative to large coordinates."""
    for k in range(points.shape[1]):
        step = np.zeros_like(points)
        step[:, k] = size * np.maximum(1, np.abs(points[:, k]))
        yield k, step


def central_differences(
    function: Callable[[FloatArray], FloatArray], points: FloatArray
) -> FloatArray:
    """Gradient of a function of rows, by central differences.

    Parameters
    ----------
    function : callable
        Maps rows (n, d) to values (n,).
    points : ndarray of shape (n, d)

    Returns
    -------
    ndarray of shape (n, d)
    """
    gradient = np.empty_like(points)
    for k, step in _steps(points, DIFFERENCE_STEP):
        gradient[:, k] = (function(points + step) - function(points - step)) / (2 * step[:, k])
    return gradient


def second_differences(
    function: Callable[[FloatArray], FloatArray], points: FloatArray
) -> FloatArray:
    """Second derivatives of a function of rows by each entry, from 2 K + 1 calls.

    Parameters
    ----------
    function : callable
        Maps rows (n, K) to values (n,).
    points : ndarray of shape (n, K)

    Returns
    -------
    ndarray of shape (n, K)
    """
    second = np.empty_like(points)
    middle = function(points)
    for k, step in _steps(points, SECOND_DIFFERENCE_STEP):
        ends = function(points + step) + function(points - step)
        with np.errstate(invalid="ignore"):  # the function may be infinite
            second[:, k] = (ends - 2 * middle) / step[:, k] ** 2
    return second


def observed_curvature(gradient: Callable[[FloatArray], FloatArray], Z: FloatArray) -> FloatArray:
    """Second derivatives of the loss by each output, at the observed data, with a floor.

    Parameters
    ----------
    gradient : callable
        Gradient of the loss, (n, K) to (n, K).
    Z : ndarray of shape (n, K)

    Returns
    -------
    ndarray of shape (n, K)
    """
    weights = np.empty_like(Z)
    for k, step in _steps(Z, DIFFERENCE_STEP):
        difference = gradient(Z + step)[:, k] - gradient(Z - step)[:, k]
        weights[:, k] = difference / (2 * step[:, k])
    return floored(weights)


def floored(weights: FloatArray) -> FloatArray:
    """Curvature weights, with a floor for those that are negative or not finite."""
    return np.maximum(np.where(np.isfinite(weights), weights, 0.0), CURVATURE_FLOOR)
