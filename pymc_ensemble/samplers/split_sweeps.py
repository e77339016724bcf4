"""Sweeps of split halves: each half is moved with the statistics of the other one.

A new sampler is one small class with one method that proposes moves.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from . import proposals
from .ensemble import Array, Ensemble, Evaluations, Info, Problem, Snapshot
from .linearization import GaussianLaw, fit_law
from .weights import plausible, plausible_limit


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
