"""Examination whether a forward map is deterministic, and smooth where the posterior is.

A Metropolis test is exact for a map that is deterministic and smooth. If outputs fluctuate, by
noise or by roughness, a test samples the fluctuations: it keeps lucky evaluations.

Around a particle u, the loss of a smooth map is nearly a polynomial along a direction v. So the
fourth difference with five points a step h apart,

    D = l(u - 2hv) - 4 l(u - hv) + 6 l(u) - 4 l(u + hv) + l(u + 2hv),

is of the order h^4. Fluctuations that change from point to point, with the standard deviation s,
give it the variance ``(1 + 16 + 36 + 16 + 1) s^2 = 70 s^2``, eq. (K22). The loss is the negative
log density of the data, so s is the effect of fluctuations on the log density. No point is
evaluated twice. Otherwise a memory or a store of evaluations would make a stochastic map look
deterministic.

Steps are measured in standard deviations of the ensemble. If the ensemble has several modes, these
steps may be too long for the width of one mode. Then the difference is large though the map is
smooth. With steps in standard deviations of a mode it vanishes. Differences by fluctuations do not
depend on the steps.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.words import number

from .clusters import clusters
from .ensemble import Array, Ensemble, Evaluations, PriorAndLoss
from .linearization import Anomalies
from .weights import LEVEL, plausible

EVALUATIONS = 20  # evaluations of an examination
STEPS = np.delete(np.arange(-2.0, 3.0), 2)  # steps to the points that are evaluated
COEFFICIENTS = np.diff(np.eye(len(STEPS) + 1), len(STEPS), axis=0)[0]  # of a fourth difference
# In posterior standard deviations. With this step s is below 0.1 in smooth problems of the gallery
# and of the tests, and up to 2 with four narrow modes. Fluctuations show if their wavelength is
# below about half a posterior sd.
STEP = 0.2
# From s = 2 on, a Metropolis test is wrong by more than 0.2 posterior sd. Below s = 1 it is
# harmless, and a linear fit, which averages fluctuations, may be as wrong in curved problems.
LARGEST_FLUCTUATION = 1.2
STARTS = 4  # starts of k-means: a single one misses two modes in every seventh case
TINY = np.finfo(float).tiny
# A linear fit that is not good enough is wrong by 0.3 posterior sd and more. A Metropolis test is
# as wrong from about s = 3 on.
TOLERABLE_FLUCTUATION = 3.0


@dataclass(frozen=True)
class Examination:
    """Result of the examination of a forward map.

    Attributes
    ----------
    fluctuation : float
        Standard deviation of the log density by fluctuations of the map on scales that are smaller
        than the posterior. NaN if too many evaluations have failed.
    evaluations : int
        Forward evaluations of the examination.
    bent : bool, default False
        Whether the map is too curved for a linear fit.
    limit : float, default infinity
        Upper 95% confidence limit of the fluctuation. Infinite if it is not known.
    """

    fluctuation: float
    evaluations: int
    bent: bool = False
    limit: float = np.inf

    @property
    def rough(self) -> bool:
        """Whether the map fluctuates too much for a Metropolis test."""
        tolerable = TOLERABLE_FLUCTUATION if self.bent else LARGEST_FLUCTUATION
        return self.fluctuation > tolerable

    def after(self, closer: "Examination") -> "Examination":
        """Join with a `closer` look, by steps that suit the modes of the ensemble.

        The closer look also finds fluctuations, but does not take narrow modes for fluctuations.
        """
        evaluations = self.evaluations + closer.evaluations
        last = closer if np.isfinite(closer.fluctuation) else self
        return replace(
            self, fluctuation=last.fluctuation, limit=last.limit, evaluations=evaluations
        )

    def __str__(self) -> str:
        if not np.isfinite(self.fluctuation):
            return (
                "Moves meet a Metropolis test. It is not known whether the forward map is smooth: "
                "the evaluations that test it have failed."
            )
        if self.rough:
            return (
                f"The forward map is noisy or rough: on scales below the posterior's the log "
                f"density fluctuates by {number(self.fluctuation, '.2g')}. Draws follow the smooth "
                "posterior; adjust=True samples the fluctuations as well."
            )
        if self.fluctuation > LARGEST_FLUCTUATION:
            return (
                f"The forward map is noisy or rough: the log density fluctuates by "
                f"{number(self.fluctuation, '.2g')}. But it is too curved for a smooth fit, so "
                "that moves meet a Metropolis test, and the posterior comes out too wide by some "
                "percent. EnsembleGaussianProcessSampler fits curved maps."
            )
        return (
            "The forward map is smooth enough for a Metropolis test: on scales below the "
            f"posterior's the log density fluctuates by {number(self.fluctuation, '.1g')}."
        )


@dataclass(frozen=True)
class Probes:
    """Points around some particles.

    Attributes
    ----------
    loss : ndarray of shape (n,)
        Loss of the particles.
    points : ndarray of shape (4 n, d)
        Four points around each.
    """

    loss: Array
    points: Array

    @classmethod
    def of(cls, ensemble: Ensemble, rng: np.random.Generator, *, by_mode: bool = False) -> "Probes":
        """Probes around particles that are drawn at random, in random directions.

        Steps are measured in standard deviations of the ensemble, or `by_mode` in those of the
        cluster that the particle is in.
        """
        U = ensemble.U
        members = ensemble[plausible(ensemble.potential, U.shape[1])]
        _, distinct = np.unique(members.U, axis=0, return_index=True)
        members = members[np.sort(distinct)]
        modes = [np.arange(len(members))]
        if by_mode:
            modes = clusters(members.U, Anomalies.of(members.U), rng, STARTS)
        n = min(EVALUATIONS // len(STEPS), len(members))
        chosen, shifts = rng.choice(len(members), n, replace=False), np.empty((n, U.shape[1]))
        for mode in modes:
            here, anomalies = np.isin(chosen, mode), Anomalies.of(members.U[mode])
            directions = rng.standard_normal((here.sum(), anomalies.rank))
            lengths = np.linalg.norm(directions, axis=1, keepdims=True)
            shifts[here] = directions / np.maximum(lengths, TINY) @ anomalies.L.T
        steps = STEP * STEPS[None, :, None] * shifts[:, None, :]
        points = (members.U[chosen][:, None, :] + steps).reshape(-1, U.shape[1])
        return cls(members.loss[chosen], points)

    def judge(self, problem: PriorAndLoss, evaluations: Evaluations) -> Examination:
        """Fluctuation of the loss, by fourth differences."""
        around = Ensemble.evaluated(problem, self.points, evaluations).loss.reshape(-1, len(STEPS))
        loss = np.column_stack([around[:, :2], self.loss, around[:, 2:]])
        differences = loss[np.isfinite(loss).all(1)] @ COEFFICIENTS
        n, fluctuation, limit = len(differences), np.nan, np.inf
        if n > 1:
            fluctuation = np.sqrt((differences**2).mean() / (COEFFICIENTS**2).sum())
            limit = fluctuation * np.sqrt(n / scipy.special.chdtri(n, LEVEL))
        return Examination(float(fluctuation), len(self.points), limit=float(limit))
