"""The pilot of the multiscale sampler: an ensemble that finds the posterior."""

from dataclasses import dataclass

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.examination import Examination

from .explorers import Preconditioner

HERDED = 1000  # points from which these positions are chosen


@dataclass(frozen=True)
class Pilot:
    """Rough knowledge of the posterior, which walkers have before their first step.

    Attributes
    ----------
    positions : ndarray of shape (n, d)
        Points that represent the posterior. So do the first few of them, as well as possible.
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
        Result of the examination of the forward map, if there was one.
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

    Each one minimizes the energy distance between the chosen ones and all. The shares of several
    modes are right up to one part in n.
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
