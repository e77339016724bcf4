"""The posterior of a cheap model, by the exact ensemble Kalman sampler, until its paths have mixed.

A certificate speaks about draws of the corrected model. Were the ensemble still on its way, its
particles would be draws of something else, and the certificate would be worth nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations
from pymc_ensemble.samplers.kalman.density import DENSITY_MOVES
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.phases import PhaseState

MIXED = 4.0  # times of autocorrelation that each particle's path is to be long
FORGOTTEN = 2.0  # of these, after which hardly anything is left of where a particle was: 2%
SHORTEST = 8  # sweeps of a path that tells it
LONGEST = 120  # sweeps after which a path ends that has not mixed
EVOLUTIONS = 1  # rounds of differential evolution in each stage of the burn-in


@dataclass(frozen=True)
class Exploration:
    """State of an ensemble on its way through the posterior of a cheap model.

    Attributes
    ----------
    state : PhaseState
        Of the ensemble Kalman sampler.
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
        """Whether each particle has been everywhere, so that where they began is forgotten."""
        if len(self.path) < SHORTEST:
            return False
        return path_times(np.stack(self.path)) >= MIXED

    @property
    def over(self) -> bool:
        """Whether more sweeps are of no use."""
        return len(self.path) >= LONGEST or self.mixed


@dataclass(frozen=True)
class Explorer:
    """Moves of an exploration.

    Parameters
    ----------
    sampler : EnsembleKalman
        With a Metropolis test.
    """

    sampler: EnsembleKalman

    @classmethod
    def of(cls, problem: Any, size: int) -> "Explorer":
        """Explorer of the posteriors of a problem with an ensemble of `size` particles."""
        return cls(EnsembleKalman(problem, size, moves=DENSITY_MOVES, evolutions=EVOLUTIONS))

    def start(self, ensemble: Ensemble) -> Exploration:
        """Exploration that begins at evaluated draws of the prior."""
        return Exploration(self.sampler.resume(ensemble))

    def ask(self, exploration: Exploration, rng: np.random.Generator) -> tuple[Array, Any]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        return self.sampler.ask(exploration.state, rng)

    def tell(self, exploration: Exploration, pending: Any, evaluations: Evaluations) -> Exploration:
        """Exploration after the round."""
        state, info = self.sampler.tell(exploration.state, pending, evaluations)
        if info.snapshot is None:
            return replace(exploration, state=state)
        return Exploration(state, (*exploration.path, info.snapshot.U))


def path_times(paths: Array) -> float:
    """How many times of autocorrelation the paths of particles are long.

    A path of S sweeps with an autocorrelation time tau has a mean whose variance is tau / S times
    that of the law; particles that stay apart have means that stay apart, however long it takes.

    Parameters
    ----------
    paths : ndarray of shape (S, J, d)

    Returns
    -------
    float
        Of the coordinate with the fewest.

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
