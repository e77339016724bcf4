"""The pilot of the multiscale sampler: an ensemble that tells where the posterior is."""

from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.examination import Examination

from .explorers import Preconditioner

POSITIONS = 100  # that represent the posterior
HERDED = 1000  # points among which they are chosen


@dataclass(frozen=True)
class Pilot:
    """What the walkers know before their first step: the posterior, roughly.

    Attributes
    ----------
    positions : ndarray of shape (n, d)
        Points that represent the posterior, the first few of them already as well as they can.
    preconditioner : Preconditioner
    stiffness : float
        Largest curvature of the potential along a direction of unit length in units of the
        preconditioner; NaN if it was not measured.
    noise : float
        Variance of the drift by the fluctuations of a rough map.
    converged : bool
        Whether the burn-in of the pilot passed its test.
    explored : bool
        Whether the positions are known to be those of the posterior.
    found : Examination or None
        What was found out about the forward map, if it was examined.
    """

    positions: Array
    preconditioner: Preconditioner
    stiffness: float = np.nan
    noise: float = 0.0
    converged: bool = True
    explored: bool = True
    found: Examination | None = None


def herd(points: Array, n: int) -> Array:
    """Choose `n` of the `points`, shape (N, d), such that the first few represent all of them.

    Each next one minimizes the energy distance between the chosen ones and all. Where there are
    several modes, their shares come out right to one part in n.
    """
    n = min(n, len(points))
    distances = scipy.spatial.distance.cdist(points, points)
    to_all, to_chosen = distances.mean(1), np.zeros(len(points))
    chosen: list[int] = []
    for k in range(n):
        score = to_all - to_chosen / (k + 1)  # eq. (M8)
        score[chosen] = np.inf
        chosen.append(int(score.argmin()))
        to_chosen += distances[:, chosen[-1]]
    return np.array(chosen)
