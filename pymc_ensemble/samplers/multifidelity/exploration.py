"""The posterior of a cheap model, by the exact ensemble Kalman sampler, until its paths have mixed.

A certificate is about draws of the corrected model. If the ensemble were still on its way, its
particles would not be such draws, and the certificate would be worthless.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Problem
from pymc_ensemble.samplers.kalman.density import DENSITY_MOVES
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.phases import PhaseState

# Autocorrelation times that each particle's path must have. In half of them a particle forgets its
# position: 2% is left. A path of less than twice as many sweeps does not tell the time.
MIXED = 4
LONGEST = 120  # sweeps after which a path ends that has not mixed
EVOLUTIONS = 1  # rounds of differential evolution in each stage of the burn-in


@dataclass(frozen=True)
class Exploration:
    """State of an ensemble on its way through the posterior of a cheap model.

    Attributes
    ----------
    state : PhaseState
        State of the ensemble Kalman sampler.
    path : tuple of ndarray of shape (J, d)
        Positions after the sweeps so far.
    """

    state: PhaseState
    path: tuple[Array, ...] = ()

    @property
    def ensemble(self) -> Ensemble:
        """Evaluated particles."""
        return self.state.evaluated

    @property
    def arrived(self) -> bool:
        """Whether the burn-in is over."""
        return self.state.phase == "sampling"

    @property
    def mixed(self) -> bool:
        """Whether the paths have mixed, so that the particles have forgotten their start."""
        if len(self.path) < 2 * MIXED:
            return False
        return path_times(np.stack(self.path)) >= MIXED

    @property
    def over(self) -> bool:
        """Whether more sweeps would not help."""
        return len(self.path) >= LONGEST or self.mixed


@dataclass(frozen=True)
class Explorer:
    """Moves of an exploration.

    Parameters
    ----------
    sampler : EnsembleKalman
        Sampler with a Metropolis test.
    """

    sampler: EnsembleKalman

    @classmethod
    def of(cls, problem: Problem, size: int) -> "Explorer":
        """Explorer of the posteriors of a problem with an ensemble of `size` particles."""
        return cls(EnsembleKalman(problem, size, moves=DENSITY_MOVES, evolutions=EVOLUTIONS))

    def start(self, ensemble: Ensemble) -> Exploration:
        """Exploration that begins at evaluated draws of the prior."""
        return Exploration(self.sampler.resume(ensemble))

    def ask(self, exploration: Exploration, rng: np.random.Generator) -> tuple[Array, Any]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        return self.sampler.ask(exploration.state, rng)

    def tell(self, exploration: Exploration, pending: Any, evaluations: Evaluations) -> Exploration:
        """Exploration after the round."""
        state, info = self.sampler.tell(exploration.state, pending, evaluations)
        if info.snapshot is None:
            return replace(exploration, state=state)
        return Exploration(state, (*exploration.path, info.snapshot.U))


def path_times(paths: Array) -> float:
    """Length of the paths of particles, in autocorrelation times.

    The mean of a path of S sweeps with the autocorrelation time tau has a variance of tau / S times
    that of the law. If particles stay apart, the means of their paths stay apart, too.

    Parameters
    ----------
    paths : ndarray of shape (S, J, d)

    Returns
    -------
    float
        Length in the coordinate in which it is least.

    Examples
    --------
    >>> paths = np.random.default_rng(1).standard_normal((40, 1000, 2))
    >>> bool(35 < path_times(paths) < 45)
    True
    """
    whole = paths.reshape(-1, paths.shape[2]).var(0)
    between = paths.mean(0).var(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # eq. (B2)
        return float(np.min(np.where(between > 0, whole / between, np.inf)))
