"""Lengths of Langevin steps, for all samplers with such dynamics."""

import numpy as np

from .certificate import CERTAIN
from .ensemble import Array

# Adds 5% to a variance without a test; with one, tuning begins there. It is also the longest drift
# of a step, in ensemble sd: a Gaussian force moves a particle so far that is one sd away.
EULER_STEP = 0.1
SMALLEST_STEP = 1e-6
ACCEPTANCE = 0.574  # of adjusted steps, at which they are most efficient in many dimensions
GAIN = 0.3  # change of the log step per unit of excess acceptance


def tuned[T: (float, Array)](step: T, acceptance: T) -> T:
    """Adjusted step after one with this acceptance."""
    return step * np.exp(GAIN * (acceptance - ACCEPTANCE))


def bounded[T: (float, Array)](step: T) -> T:
    """Adjusted step that is not above two, where a Gaussian becomes unstable, eq. (L3)."""
    return np.clip(step, SMALLEST_STEP, 2.0)


def stable(largest: float, drift: Array) -> float:
    """Largest step without a test that moves no particle far along its drift, shape (n, d)."""
    strongest = np.sqrt((drift**2).sum(1)).max()
    return min(largest, EULER_STEP / max(strongest, np.finfo(float).tiny))


def log_ratio(forth: Array, back: Array, step_size: float | Array) -> Array:
    """Log ratio of the densities of moves back and forth, from their noise, shape (..., d)."""
    ratio: Array = ((forth**2).sum(-1) - (back**2).sum(-1)) / (4 * step_size)  # eq. (L3)
    return ratio


def clipped(drift: Array, step_size: float) -> Array:
    """Shorten drifts, shape (M, d), that are far too long for the step size.

    Explicit steps explode in tails that are lighter than Gaussian. If the step size suits the
    stiffness of the posterior, a drift in its bulk is about ``sqrt(d / step_size)`` long.
    """
    longest = 2 * (np.sqrt(drift.shape[1]) + CERTAIN) / min(1.0, np.sqrt(step_size))  # eq. (M4)
    length = np.linalg.norm(drift, axis=1, keepdims=True)
    return drift * (longest / np.maximum(length, longest))
