"""Sweeps by Metropolis tests of a mixture of moves."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble
from pymc_ensemble.samplers.linearization import GaussianLaw, moment_law
from pymc_ensemble.samplers.split_sweeps import SplitSweeps, SweepState

INDEPENDENT_SHARE = 0.8  # of the mixture kernel; the rest are differential evolution moves


@dataclass(frozen=True)
class MixtureMetropolis(SplitSweeps):
    """Metropolis-adjusted moves: exact for every deterministic forward map.

    Independence proposals from the law of the other half, and from one with its moments, do the
    work where the posterior is nearly Gaussian; differential evolution does where it is not.
    """

    tested: ClassVar[bool] = True

    def propose(
        self,
        state: SweepState,
        law: GaussianLaw,
        group: Ensemble,
        partners: Ensemble,
        rng: np.random.Generator,
    ) -> tuple[Array, Array]:
        """Propose for each particle of `group` by a kernel that is drawn at random."""
        U, laws = group.U, (law, moment_law(law.anomalies))
        evolved, no_ratio = proposals.differential_evolution(law.anomalies, U, partners.U, rng)
        if law.anomalies.rank < U.shape[1]:  # independent draws would stay in the partners' span
            return evolved, no_ratio
        points, log_ratio = proposals.independence(laws, U, rng)
        independent = rng.random(len(U)) < INDEPENDENT_SHARE
        points = np.where(independent[:, None], points, evolved)
        return points, np.where(independent, log_ratio, no_ratio)
