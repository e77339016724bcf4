"""Sweeps by Metropolis tests of a mixture of moves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from pymc_ensemble.samplers.ensemble import Array
from pymc_ensemble.samplers.moves import DEFAULT, Move, proposed
from pymc_ensemble.samplers.split_sweeps import Half, SplitSweeps, SweepState


@dataclass(frozen=True)
class MixtureMetropolis(SplitSweeps):
    """Metropolis-adjusted moves: exact for every deterministic forward map.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
    moves : mapping of functions to float
        Moves and their weights. The default is 0.8 of independence moves, for nearly Gaussian
        posteriors, and 0.2 of differential evolution, for all others.
    """

    tested: ClassVar[bool] = True
    keeps_proposals: ClassVar[bool] = True

    moves: Mapping[Move, float] = field(default_factory=lambda: DEFAULT)

    def propose(
        self, state: SweepState, half: Half, rng: np.random.Generator
    ) -> tuple[Array, Array, Array]:
        """Propose for each particle of the group, by a random move."""
        U, partners = half.group.U, half.partners.U
        weights = np.array(list(self.moves.values()), dtype=float)
        levels = np.cumsum(weights / weights.sum())
        kinds = np.searchsorted(levels[:-1], rng.random(len(U)), side="right")
        points, log_ratio, log_q = np.empty(U.shape), *np.empty((2, len(U)))
        for kind, move in enumerate(self.moves):
            of_kind = kinds == kind
            if of_kind.any():
                points[of_kind], log_ratio[of_kind], log_q[of_kind] = proposed(
                    move, U[of_kind], partners, half.law, rng
                )
        return points, log_ratio, log_q
