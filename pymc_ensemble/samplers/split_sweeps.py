"""Sweeps of an ensemble, one group of particles after the other.

In most samplers the groups are halves, and each half is moved with the statistics of the other one.
A kernel of sweeps is a small class with one method that proposes moves.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from pymc_ensemble.samplers.words import number

from . import proposals
from .ensemble import Array, Ensemble, Evaluations, Info, PriorAndLoss, Problem, Snapshot
from .linearization import Anomalies, GaussianLaw, fit_law, moment_law
from .rest import AT_REST, Rest
from .weights import plausible, plausible_limit


@dataclass(frozen=True)
class SweepState:
    """State between two rounds of an ensemble that moves group by group.

    Attributes
    ----------
    ensemble : Ensemble
        Evaluated particles; the groups that were moved in this sweep are already replaced.
    dt : float
        Time step; NaN where there is none.
    pointwise : bool
        Whether the force uses each particle's own output.
    rest : Rest
        Test of whether the dynamics is at rest.
    groups : tuple of ndarray
        Members still to be moved in this sweep; empty between sweeps.
    others : tuple of ndarray
        Partners of each of these groups: members whose statistics move it.
    told : dict of str to ndarray of shape (J, ...)
        Statistics of the particles for the snapshot, collected over the sweep; NaN where unknown.
    """

    ensemble: Ensemble
    dt: float = np.nan
    pointwise: bool = False
    rest: Rest = AT_REST
    groups: tuple[Array, ...] = ()
    others: tuple[Array, ...] = ()
    told: Mapping[str, Array] = field(default_factory=dict)

    @property
    def burned_in(self) -> bool:
        """Whether the dynamics has come to rest."""
        return self.rest.done

    converged = burned_in


@dataclass(frozen=True)
class GroupMove[S: SweepState]:
    """A pending round: proposals for one group, and what the test of them needs.

    Attributes
    ----------
    index : ndarray of shape (n,)
        Members of the group.
    points : ndarray of shape (n, d)
        Proposed positions.
    log_ratio : ndarray of shape (n,)
        Logarithm of the proposal ratio, as far as it is known without the evaluations.
    law : GaussianLaw or None
        Law of the group's partners.
    dt : float
        Time step of the move.
    uniforms : ndarray of shape (n,)
        Random numbers of the Metropolis test.
    origin : SweepState
    limit : float
        Largest potential at which a move without a test is made.
    log_q : ndarray of shape (n,) or None
        Log density from which the points were drawn; NaN where a point depends on its particle.
    """

    index: Array
    points: Array
    log_ratio: Array
    law: GaussianLaw | None
    dt: float
    uniforms: Array
    origin: S
    limit: float = np.inf
    log_q: Array | None = None


class Sweeps[S: SweepState, M: GroupMove](ABC):
    """Advance an ensemble group by group; a subclass proposes the moves of a group."""

    tested: ClassVar[bool] = False
    """Whether a Metropolis test decides on the moves."""

    keeps_proposals: ClassVar[bool] = False
    """Whether snapshots carry the points of independent proposals."""

    problem: PriorAndLoss

    @abstractmethod
    def ask(self, state: S, rng: np.random.Generator) -> tuple[Array, M]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""

    def split(self, ensemble: Ensemble, rng: np.random.Generator) -> tuple[Array, ...]:
        """Divide the members into groups that are moved in turn: halves, at random."""
        order = rng.permutation(len(ensemble))
        return order[: len(order) // 2], order[len(order) // 2 :]

    def in_sweep(self, state: S, rng: np.random.Generator) -> S:
        """State with groups to move: if the last sweep is complete, a new one begins."""
        if state.groups:
            return state
        groups, unknown = self.split(state.ensemble, rng), np.full(len(state.ensemble), np.nan)
        told = dict.fromkeys(("log_q", "acceptance", "proposal_lp", "proposal_log_q"), unknown)
        if self.keeps_proposals:
            told["proposal"] = np.full(state.ensemble.U.shape, np.nan)
        return replace(state, groups=groups, others=groups[::-1], told=told)

    def tell(self, state: S, pending: M, evaluations: Evaluations) -> tuple[S, Info]:
        """State after the round, and an account of it."""
        state, index = pending.origin, pending.index
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        alpha = proposals.acceptance(
            state.ensemble.potential[index], values.potential, self.log_ratio(pending, values)
        )
        accepted = values.ok & (values.potential <= pending.limit)
        if self.tested:
            accepted = pending.uniforms < alpha
        ensemble = state.ensemble.updated(index, values, accepted)
        told = {"acceptance": alpha}
        if pending.law is not None:
            told["log_q"] = pending.law.log_density(ensemble.U[index])
        if pending.log_q is not None:
            lp = np.where(np.isnan(pending.log_q), np.nan, -values.potential)
            told |= {"proposal_lp": lp, "proposal_log_q": pending.log_q}
            if self.keeps_proposals:
                independent = ~np.isnan(pending.log_q)[:, None]
                told["proposal"] = np.where(independent, pending.points, np.nan)
        state = replace(
            state,
            ensemble=ensemble,
            groups=state.groups[1:],
            others=state.others[1:],
            told={**state.told, **{k: _put(state.told[k], index, told[k]) for k in told}},
        )
        if not state.rest.done:
            state = self.adapt(state, pending, alpha)
        message = f"acceptance {np.nanmean(state.told['acceptance']):.2f}"
        if np.isfinite(pending.dt):
            message += f", step size {number(pending.dt, '.3g')}"
        snapshot = None if state.groups else self.snapshot(state, pending.dt)
        complete = snapshot is not None
        return state, Info.of(
            evaluations, "sampling", message, complete=complete, snapshot=snapshot
        )

    def log_ratio(self, pending: M, values: Ensemble) -> Array:
        """Logarithm of the proposal ratio, ``log q(u | u') - log q(u' | u)``, shape (n,)."""
        return pending.log_ratio

    def adapt(self, state: S, pending: M, alpha: Array) -> S:
        """State that is adapted after a round, as long as the dynamics is not at rest."""
        if state.groups:
            return state
        time = self.relaxation_time(state, pending)
        return replace(state, rest=state.rest.after(_anomalies(state.ensemble), time))

    def relaxation_time(self, state: S, pending: M) -> float:
        """Time that has passed in a sweep, in relaxation times."""
        return pending.dt

    def snapshot(self, state: S, dt: float) -> Snapshot:
        """Ensemble after a sweep; without laws of partners, `log_q` is that of all members."""
        ensemble, told = state.ensemble, state.told
        if np.isnan(told["log_q"]).all():
            law = moment_law(_anomalies(ensemble))
            told = {**told, "log_q": law.log_density(ensemble.U)}
        return Snapshot(ensemble.U, -ensemble.potential, step_size=dt, **told)

    def freeze(self, state: S) -> S:
        """End the adaptation."""
        return replace(state, rest=AT_REST)

    def finish(
        self, state: S, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> Sequence[Snapshot]:
        """Snapshots of a block of sweeps, as they become draws."""
        return snapshots


def _put(values: Array, index: Array, new: Array) -> Array:
    """Copy of `values` with `new` ones at `index`."""
    values = values.copy()
    values[index] = new
    return values


def _anomalies(ensemble: Ensemble) -> Anomalies:
    return Anomalies.of(ensemble.U[ensemble.ok])


@dataclass(frozen=True)
class Half:
    """One half of an ensemble, which moves, and the other half, which does not.

    Attributes
    ----------
    group, partners : Ensemble
        The n members to move, and those whose statistics are used.
    law : GaussianLaw
        Gaussian law fitted to the partners.
    """

    group: Ensemble
    partners: Ensemble
    law: GaussianLaw


@dataclass(frozen=True)
class SplitSweeps(Sweeps[SweepState, GroupMove[SweepState]]):
    """Advance the halves of an ensemble in turn, each by the Gaussian law of the other one.

    Given the other half, every move is a fixed Markov kernel for each particle. So neither step
    sizes nor finite ensembles cause a bias. A subclass supplies `propose`.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
        Fewest plausible members of a half from which statistics can be computed.
    """

    problem: Problem
    min_members: int

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> SweepState:
        """State for an evaluated ensemble."""
        return SweepState(ensemble)

    def ask(
        self, state: SweepState, rng: np.random.Generator
    ) -> tuple[Array, GroupMove[SweepState]]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        state = self.in_sweep(state, rng)
        index, partners = state.groups[0], state.ensemble[state.others[0]]
        used = plausible(partners.potential, partners.U.shape[1])
        if used.sum() < self.min_members:
            partners.require(self.min_members)
            used = partners.ok
        law = self._law(state, partners, used)
        points, log_ratio, *log_q = self.propose(
            state, Half(state.ensemble[index], partners, law), rng
        )
        limit = plausible_limit(partners.potential, partners.U.shape[1])
        uniforms = rng.random(len(index))
        return points, GroupMove(
            index, points, log_ratio, law, state.dt, uniforms, state, limit, *log_q
        )

    def _law(self, state: SweepState, partners: Ensemble, used: Array) -> GaussianLaw:
        """Law fitted to the partners in the mask `used`."""
        return fit_law(self.problem, partners, used.astype(float))

    @abstractmethod
    def propose(self, state: SweepState, half: Half, rng: np.random.Generator) -> tuple[Array, ...]:
        """Propose a move for every particle of the group.

        Parameters
        ----------
        state : SweepState
        half : Half
        rng : numpy.random.Generator

        Returns
        -------
        points : ndarray of shape (n, d)
        log_ratio : ndarray of shape (n,)
            Logarithm of the proposal ratio, ``log q(u | u') - log q(u' | u)``.
        log_q : ndarray of shape (n,), optional
            Log density from which the points were drawn.
        """
