"""When dynamics have come to rest."""

from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first

from .ensemble import Array
from .linearization import Anomalies

STILL = 0.5  # change of the mean, in sd of each direction, and of the logarithm of the volume
STANDSTILLS = 3  # consecutive comparisons without change that show an ensemble at rest
CHANCE = 0.05  # of an ensemble at rest to be taken for one that drifts


def standstill(reference: Anomalies, anomalies: Anomalies) -> bool:
    """Whether mean and covariance changed by less than half a standard deviation."""
    d = len(anomalies.mean)
    shift = anomalies.L_pinv @ (anomalies.mean - reference.mean)
    growth = 2 * (anomalies.log_volume - reference.log_volume)
    return np.sqrt(shift @ shift / d) < STILL and abs(growth) < STILL * np.sqrt(d)  # eq. (T4)


def drifts(before: Array, after: Array) -> bool:
    """Whether the particles went in a common direction, rather than here and there.

    Moves of an ensemble at rest cancel on average. Steps of particles tell a small drift from
    chance, which the means of before and after do not.

    Parameters
    ----------
    before, after : ndarray of shape (J, d + 1)
        Particles and, in the last column, their potentials. Those that stayed tell nothing.

    Returns
    -------
    bool
        True, too, if too few have moved.
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
    common = scipy.special.betaincc(p / 2, (n - p) / 2, cosine) < CHANCE
    of_potential = abs(steps[:, -1].sum()) / np.sqrt(n) > -scipy.special.ndtri(CHANCE / 2)
    return bool(common or of_potential)


@dataclass(frozen=True)
class Standstill:
    """Rest of an ensemble that is compared with itself, one relaxation time ago.

    Attributes
    ----------
    elapsed : float
        Time since the reference, in units in which the ensemble relaxes at the rate one.
    reference : Anomalies or None
        Statistics of the ensemble then.
    hits : int
        Consecutive comparisons in which mean and covariance stood still.
    """

    elapsed: float = 0.0
    reference: Anomalies | None = None
    hits: int = 0

    @property
    def done(self) -> bool:
        """Whether the ensemble has come to rest."""
        return self.hits >= STANDSTILLS

    def after(self, anomalies: Anomalies, time: float) -> "Standstill":
        """Take note of the statistics of the ensemble, some time later."""
        elapsed = self.elapsed + time
        if self.reference is None:
            return Standstill(0.0, anomalies, 0)
        if elapsed < 1:
            return Standstill(elapsed, self.reference, self.hits)
        hit = standstill(self.reference, anomalies)
        return Standstill(0.0, anomalies, self.hits + 1 if hit else 0)


@dataclass(frozen=True)
class Countdown:
    """Rest after a number of sweeps that is known beforehand."""

    sweeps: int = 0

    @property
    def done(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.sweeps <= 0

    def after(self, anomalies: Anomalies, time: float) -> "Countdown":
        """Take note of one more sweep."""
        return Countdown(self.sweeps - 1)


Rest = Standstill | Countdown
AT_REST, RESTLESS = Countdown(0), Standstill()
