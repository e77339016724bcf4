"""Sweeps of split halves: each half is moved with the statistics of the other one.

A new sampler is one small class with one method that proposes moves.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from . import proposals
from .ensemble import Array, Ensemble, Evaluations, Info, Problem, Snapshot
from .linearization import SMALLEST_RATE, GaussianLaw, fit_law, moment_law
from .tempering import plausible, plausible_limit

RELATIVE_EXTRA_VARIANCE = 0.1  # that the pointwise force may add: bounds its time step
LARGEST_DEVIATION = 2.0  # of the pointwise from the linear force, per root of the dimension
NEARLY_LINEAR = 0.1  # share of the force's deviation that the forward map may be to blame for
INDEPENDENT_SHARE = 0.8  # of the mixture kernel; the rest are differential evolution moves


@dataclass(frozen=True)
class SweepState:
    """Between two rounds of an ensemble that is advanced group by group.

    Attributes
    ----------
    ensemble : Ensemble
        Evaluated particles; the groups that were moved in this sweep are already replaced.
    groups : tuple of ndarray
        Members still to be moved in this sweep; empty between sweeps.
    log_q, acceptance : ndarray of shape (J,)
        Collected over the sweep.
    dt : float
        Time step.
    pointwise : bool
        Whether the force uses each particle's own output.
    """

    ensemble: Ensemble
    dt: float
    pointwise: bool = False
    groups: tuple = ()
    others: tuple = ()
    log_q: Array = field(default_factory=lambda: np.empty(0))
    acceptance: Array = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class GroupMove:
    """A pending round: proposals for one group, and the law behind them."""

    index: Array
    points: Array
    law: GaussianLaw
    log_ratio: Array
    limit: float
    uniforms: Array
    origin: SweepState


@dataclass(frozen=True)
class SplitSweeps(ABC):
    """Advance the halves of an ensemble in turn, each with the statistics of the other one.

    Conditional on the other half, every move is a fixed Markov kernel for each particle, which is
    what makes step sizes and finite ensembles free of bias. A subclass supplies `propose`.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
        Plausible members of a half without which there is no statistics.
    """

    tested: ClassVar[bool] = False
    """Whether a Metropolis test decides on the moves."""

    problem: Problem
    min_members: int

    def start(self, ensemble: Ensemble, dt: float = np.nan, pointwise: bool = False) -> SweepState:
        """State for an evaluated ensemble."""
        return SweepState(ensemble, dt, pointwise)

    def ask(self, state: SweepState, rng: np.random.Generator) -> tuple[Array, GroupMove]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        if not state.groups:
            J = len(state.ensemble)
            groups = self.split(rng.permutation(J))
            state = replace(
                state,
                groups=groups,
                others=groups[::-1],
                log_q=np.full(J, np.nan),
                acceptance=np.full(J, np.nan),
            )
        index, others = state.groups[0], state.others[0]
        partners = state.ensemble[others]
        used = plausible(partners.potential, partners.U.shape[1])
        if used.sum() < self.min_members:
            partners.require(self.min_members)
            used = partners.ok
        law = fit_law(self.problem, partners, used.astype(float))
        points, log_ratio = self.propose(state, law, state.ensemble[index], partners, rng)
        limit = plausible_limit(partners.potential, partners.U.shape[1])
        uniforms = rng.random(len(index))
        return points, GroupMove(index, points, law, log_ratio, limit, uniforms, state)

    @abstractmethod
    def propose(
        self,
        state: SweepState,
        law: GaussianLaw,
        group: Ensemble,
        partners: Ensemble,
        rng: np.random.Generator,
    ) -> tuple[Array, Array]:
        """Propose a move for every particle of `group`.

        Parameters
        ----------
        state : SweepState
        law : GaussianLaw
            Gaussian law fitted to the partners.
        group, partners : Ensemble
            The n members to move, and those whose statistics are used.
        rng : numpy.random.Generator

        Returns
        -------
        points : ndarray of shape (n, d)
        log_ratio : ndarray of shape (n,)
            Logarithm of the proposal ratio, ``log q(u | u') - log q(u' | u)``.
        """

    def split(self, order: Array) -> tuple[Array, ...]:
        """Divide all members, given in random order, into groups that are moved in turn."""
        return order[: len(order) // 2], order[len(order) // 2 :]

    def tell(
        self, state: SweepState, pending: GroupMove, evaluations: Evaluations
    ) -> tuple[SweepState, Info]:
        """State after the round, and an account of it."""
        state, index = pending.origin, pending.index
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        alpha = proposals.acceptance(
            state.ensemble.potential[index], values.potential, pending.log_ratio
        )
        accepted = values.ok & (values.potential <= pending.limit)
        if self.tested:
            accepted = pending.uniforms < alpha
        ensemble = state.ensemble.updated(index, values, accepted)
        log_q, acceptance = state.log_q.copy(), state.acceptance.copy()
        log_q[index] = pending.law.log_density(ensemble.U[index])
        acceptance[index] = alpha
        state = replace(
            state,
            ensemble=ensemble,
            groups=state.groups[1:],
            others=state.others[1:],
            log_q=log_q,
            acceptance=acceptance,
        )
        snapshot = None
        if not state.groups:
            snapshot = Snapshot(ensemble.U, -ensemble.potential, log_q, acceptance, state.dt)
        n_failed = int(evaluations.failed.sum())
        message = f"acceptance {np.nanmean(acceptance):.2f}"
        info = Info("sampling", snapshot is not None, snapshot, len(values), n_failed, message)
        return state, info


@dataclass(frozen=True)
class Relaxation(SplitSweeps):
    """Exact Ornstein-Uhlenbeck transitions of the linearized dynamics (no Metropolis test)."""

    def propose(
        self,
        state: SweepState,
        law: GaussianLaw,
        group: Ensemble,
        partners: Ensemble,
        rng: np.random.Generator,
    ) -> tuple[Array, Array]:
        """Relax `group` towards the law of its partners over the time ``state.dt``."""
        force = law.linear_force(law.map.coordinates(group.U))
        if state.pointwise:
            force = pointwise_force(self.problem, law, group)
        return proposals.relaxation(law, group.U, force, state.dt, rng)


@dataclass(frozen=True)
class WholeRelaxation(Relaxation):
    """The same for ensembles too small for halves: all particles move with their own statistics."""

    def split(self, order: Array) -> tuple[Array, ...]:
        """All members at once."""
        return (order,)

    def propose(
        self,
        state: SweepState,
        law: GaussianLaw,
        group: Ensemble,
        partners: Ensemble,
        rng: np.random.Generator,
    ) -> tuple[Array, Array]:
        """Relax with the finite-ensemble correction ``((r + 1) / J) (u - mean)`` of rank r."""
        J, r = len(group), law.anomalies.rank
        x = law.map.coordinates(group.U)
        force = law.linear_force(x) + (r + 1) / J * x
        return proposals.relaxation(law, group.U, force, state.dt, rng)


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
        U, laws = group.U, (law, moment_law(law.map))
        evolved, no_ratio = proposals.differential_evolution(law.anomalies, U, partners.U, rng)
        if law.anomalies.rank < U.shape[1]:  # independent draws would stay in the partners' span
            return evolved, no_ratio
        points, log_ratio = proposals.independence(laws, U, rng)
        independent = rng.random(len(U)) < INDEPENDENT_SHARE
        points = np.where(independent[:, None], points, evolved)
        return points, np.where(independent, log_ratio, no_ratio)


def pointwise_force(problem: Problem, law: GaussianLaw, group: Ensemble) -> Array:
    """Force from each particle's own output, shape (n, r), as the continuous-time dynamics have it.

    Where it deviates from the force of the linear law by far, it is shortened.
    """
    linear = law.linear_force(law.map.coordinates(group.U))
    likelihood = problem.loss_gradient(group.Z) @ law.map.slope
    prior = problem.prior_gradient(group.U) @ law.anomalies.L
    deviation = -(likelihood + prior) - linear
    largest = LARGEST_DEVIATION * np.sqrt(group.U.shape[1])
    size = np.linalg.norm(deviation, axis=1, keepdims=True)
    return linear + deviation * np.minimum(1.0, largest / np.maximum(size, SMALLEST_RATE))


def pointwise_step(problem: Problem, ensemble: Ensemble) -> tuple[bool, float]:
    """Whether the pointwise force pays, and the time step that bounds its extra variance.

    The pointwise force is right where the loss or the prior, but not the forward map, is the
    reason why it deviates from the linear one.

    Returns
    -------
    pointwise : bool
    dt : float
        ``inf`` where the two forces agree.
    """
    members = ensemble[ensemble.ok]
    law = fit_law(problem, members, plausible(members.potential, members.U.shape[1]).astype(float))
    force = pointwise_force(problem, law, members)
    deviation = force - law.linear_force(law.map.coordinates(members.U))
    d = members.U.shape[1]
    spread = ((deviation - deviation.mean(0)) ** 2).sum(1).mean()
    size = (deviation**2).sum(1).mean()
    if size < 1e-6 * d:
        return False, np.inf
    curvature = problem.curvature(law.map.output_mean[None])[0]
    nonlinearity = curvature @ ((members.Z - law.map(members.U)) ** 2).mean(0)
    return bool(nonlinearity < NEARLY_LINEAR * size), 2 * RELATIVE_EXTRA_VARIANCE * d / spread
