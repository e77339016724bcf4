"""Tests of whether an ensemble is at rest, which means that its law no longer changes."""

from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first

from .ensemble import Array
from .linearization import Anomalies
from .weights import UNUSUAL

STILL = 0.5  # largest change of the mean, in sd of each direction, and of the log volume
FORGOTTEN = 5.0  # relaxation times, after which e^-5 of the start is left
IN_A_ROW = 3  # of what happens once by chance: standstills of an ensemble at rest, say


def standstill(reference: Anomalies, anomalies: Anomalies) -> bool:
    """Whether the mean changed by less than half a standard deviation, and the volume little."""
    d = len(anomalies.mean)
    shift = anomalies.L_pinv @ (anomalies.mean - reference.mean)
    growth = 2 * (anomalies.log_volume - reference.log_volume)
    return np.sqrt(shift @ shift / d) < STILL and abs(growth) < STILL * np.sqrt(d)  # eq. (T4)


def drifts(before: Array, after: Array) -> bool:
    """Whether the particles moved in a common direction.

    The moves of an ensemble at rest cancel on average. The steps of single particles show a small
    drift, which a comparison of two means would not show. Each of two tests takes an ensemble at
    rest for one that drifts with a probability of 5%.

    Parameters
    ----------
    before, after : ndarray of shape (J, d + 1)
        Particles and, in the last column, their potentials. Particles that did not move are left
        out.

    Returns
    -------
    bool
        Also true if too few particles have moved.
    """
    steps = after - before
    steps = steps[np.isfinite(steps).all(1) & (steps != 0).any(1)]
    if len(steps) == 0:
        return True
    sizes = np.sqrt((steps**2).mean(0))
    steps = steps / np.where(sizes > 0, sizes, 1.0)
    Q, s, _ = np.linalg.svd(steps, full_matrices=False)
    Q = Q[:, s > 1e-10 * s[0]]
    n, p = Q.shape
    if n <= p:
        return True
    # eq. (T5): the cosine, squared, of the angle between a vector of ones and the steps
    cosine = min((Q.sum(0) ** 2).sum() / n, 1.0)
    common = scipy.special.betaincc(p / 2, (n - p) / 2, cosine) < UNUSUAL
    of_potential = abs(steps[:, -1].sum()) / np.sqrt(n) > -scipy.special.ndtri(UNUSUAL / 2)
    return bool(common or of_potential)


@dataclass(frozen=True)
class Standstill:
    """Comparisons of an ensemble with itself, one relaxation time earlier.

    Attributes
    ----------
    elapsed : float
        Time since the reference, in units of the relaxation time.
    reference : Anomalies or None
        Statistics of the ensemble at that time.
    hits : int
        Comparisons in a row in which mean and covariance did not change.
    """

    elapsed: float = 0.0
    reference: Anomalies | None = None
    hits: int = 0

    @property
    def done(self) -> bool:
        """Whether the ensemble has come to rest."""
        return self.hits >= IN_A_ROW

    def after(self, anomalies: Anomalies, time: float) -> "Standstill":
        """Add the statistics of the ensemble, some `time` later."""
        elapsed = self.elapsed + time
        if self.reference is None:
            return Standstill(0.0, anomalies, 0)
        if elapsed < 1:
            return Standstill(elapsed, self.reference, self.hits)
        hit = standstill(self.reference, anomalies)
        return Standstill(0.0, anomalies, self.hits + 1 if hit else 0)


@dataclass(frozen=True)
class Countdown:
    """Rest after a fixed number of sweeps."""

    sweeps: int = 0

    @property
    def done(self) -> bool:
        """Whether no sweeps are left."""
        return self.sweeps <= 0

    def after(self, anomalies: Anomalies, time: float) -> "Countdown":
        """Count one more sweep."""
        return Countdown(self.sweeps - 1)


Rest = Standstill | Countdown
AT_REST, RESTLESS = Countdown(0), Standstill()
