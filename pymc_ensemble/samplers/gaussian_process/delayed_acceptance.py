"""Delayed acceptance: the surrogate explores, and one evaluation decides."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem
from pymc_ensemble.samplers.langevin_steps import EULER_STEP, bounded, log_ratio, tuned
from pymc_ensemble.samplers.linearization import Anomalies, moment_law
from pymc_ensemble.samplers.split_sweeps import GroupMove, Sweeps, SweepState
from pymc_ensemble.samplers.weights import deep

from .chains import DE_SHARE, covariance_factor
from .learning import LearningState

EXPLORATION = 30  # moves on the surrogate for one proposal, and in which their step is adapted
DIRECT = 0.1  # share of the proposals that do not use the surrogate


@dataclass(frozen=True)
class AdjustedState(SweepState):
    """State of the sampling with delayed acceptance.

    Attributes
    ----------
    langevin_step : float
        Langevin step on the surrogate, in the covariance of the frozen ensemble.
    factor : ndarray of shape (d, d)
        Factor of that covariance, in whitened coordinates.
    learned : LearningState
        Surrogate that explores.
    """

    langevin_step: float = field(kw_only=True)
    factor: Array = field(kw_only=True)
    learned: LearningState = field(kw_only=True)


@dataclass(frozen=True)
class DelayedAcceptance(Sweeps[AdjustedState, GroupMove[AdjustedState]]):
    """Metropolis test of the end points of chains on the surrogate.

    A chain on the surrogate, reversible for ``exp(-Vhat)``, proposes u'. It is accepted with the
    probability ``min(1, exp(V(u) - V(u') - Vhat(u) + Vhat(u')))``, so the true posterior is
    invariant whatever the surrogate. One half of the ensemble moves at a time, as differential
    evolution has its partners in the other half. Some proposals do not use the surrogate, so that
    all places can be reached.

    Parameters
    ----------
    problem : InverseProblem
    """

    tested: ClassVar[bool] = True

    problem: Problem

    def start(self, learned: LearningState) -> AdjustedState:
        """State for evaluated points that follow the surrogate, with an adapted step."""
        posterior = learned.bound(self.problem).posterior
        assert posterior is not None
        rng = np.random.default_rng(learned.seed)
        particles, archive = learned.ladder.particles[0], learned.archive
        x = posterior.whitening.coordinates(particles)
        if learned.verification is None:
            ensemble = _nearest(archive, posterior.whitening.coordinates(archive.U), x)
        else:
            ensemble = _evaluated_particles(archive, len(particles), rng)
        factor = covariance_factor(x)
        state = AdjustedState(ensemble, langevin_step=EULER_STEP, factor=factor, learned=learned)
        _, step = self._explore(state, x, x, EXPLORATION, rng, adapt=True)
        return replace(state, langevin_step=step)

    def ask(
        self, state: AdjustedState, rng: np.random.Generator
    ) -> tuple[Array, GroupMove[AdjustedState]]:
        """Points of the next half sweep, and what `tell` needs to accept or reject them."""
        state = self.in_sweep(state, rng)
        index, others = state.groups[0], state.others[0]
        posterior = state.learned.bound(self.problem).posterior
        assert posterior is not None
        U, partners = state.ensemble.U[index], state.ensemble.U[others]
        x = posterior.whitening.coordinates(U)
        moved, _ = self._explore(
            state, x, posterior.whitening.coordinates(partners), EXPLORATION, rng
        )
        before, _ = posterior.potential(x)
        after, _ = posterior.potential(moved)
        log_ratio = after - before  # eq. (G13)
        points = posterior.whitening.particles(moved)
        direct = rng.random(len(U)) < DIRECT
        law, log_q = moment_law(Anomalies.of(partners)), np.full(len(U), np.nan)
        points[direct], log_ratio[direct], log_q[direct] = proposals.independence(
            (law,), U[direct], rng
        )
        uniforms = rng.random(len(U))
        return points, GroupMove(
            index, points, log_ratio, None, np.nan, uniforms, state, log_q=log_q
        )

    def _explore(
        self,
        state: AdjustedState,
        x: Array,
        partners: Array,
        n_moves: int,
        rng: np.random.Generator,
        adapt: bool = False,
    ) -> tuple[Array, float]:
        """Reversible chains on the surrogate, and the Langevin step.

        Each move of each particle is, at random, a Metropolis-adjusted Langevin step or one of
        differential evolution with partners that stay where they are.
        """
        posterior = state.learned.bound(self.problem).posterior
        step, factor = state.langevin_step, state.factor
        assert posterior is not None
        n, d = x.shape
        x = x.copy()
        potential, gradient = posterior.potential(x)
        for _ in range(n_moves):
            noise = rng.standard_normal((n, d))
            move = -step * gradient @ factor + np.sqrt(2 * step) * noise
            evolve = np.asarray(rng.random(n)) < DE_SHARE
            evolved = proposals.differential_evolution(x, partners, factor, rng)
            proposed = np.where(evolve[:, None], evolved, x + move @ factor.T)
            new, new_gradient = posterior.potential(proposed)
            with np.errstate(invalid="ignore", over="ignore"):
                back = -move + step * new_gradient @ factor
                ratio = log_ratio(np.sqrt(2 * step) * noise, back, step)
                alpha = np.minimum(0, potential - new + np.where(evolve, 0, ratio))
            alpha = np.where(np.isfinite(new) & ~np.isnan(alpha), np.exp(alpha), 0.0)
            accepted = rng.random(n) < alpha
            x[accepted], potential[accepted] = proposed[accepted], new[accepted]
            gradient[accepted] = new_gradient[accepted]
            if adapt and not evolve.all():
                step = float(bounded(tuned(step, float(alpha[~evolve].mean()))))
        return x, step


def _nearest(archive: Ensemble, points: Array, particles: Array) -> Ensemble:
    """The nearest likely evaluated point for each of the particles (n, d).

    So each point represents the part of the surrogate's posterior around it, and modes have the
    right masses from the start.
    """
    least = archive.potential.min()
    likely = np.flatnonzero(archive.potential < least + deep(archive.U.shape[1]))
    _, nearest = scipy.spatial.cKDTree(points[likely]).query(particles)
    return archive[likely[nearest]]


def _evaluated_particles(archive: Ensemble, J: int, rng: np.random.Generator) -> Ensemble:
    """Evaluated points that follow the posterior: the last ones, evaluated at particles."""
    last = archive[np.arange(max(0, len(archive) - J), len(archive))]
    log_w = last.potential.min() - last.potential
    usable = np.flatnonzero(log_w > -deep(archive.U.shape[1]))
    index = np.concatenate([usable, rng.choice(usable, max(0, J - len(usable)))])
    return last[index]
