"""Burn-in and sweeps for a density that is known by its values only.

There are no outputs to fit a map to. Instead, a quadratic function is fitted to all log densities
that were evaluated before the first draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pymc_ensemble.samplers import moves, proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info
from pymc_ensemble.samplers.linearization import Anomalies, GaussianLaw, moment_law
from pymc_ensemble.samplers.options import PATIENCE
from pymc_ensemble.samplers.rest import AT_REST, RESTLESS
from pymc_ensemble.samplers.split_sweeps import GroupMove, SweepState
from pymc_ensemble.samplers.tempering import BurnInState, Kind, Move, Stage, TemperedBurnIn

from .clusters import cluster_laws
from .metropolis import MixtureMetropolis
from .quadratic import Archive, quadratic_law, seen_from

FEWEST_STILL = 2  # comparisons without change that end a burn-in, if half of moves are accepted


def renewal(acceptance: float) -> float:
    """Minus the logarithm of the share of particles that have stayed where they were.

    It is about one when as many moves were accepted as there are particles.
    """
    return -float(np.log(max(1.0 - acceptance, 1e-3)))  # eq. (Q4)


def independence(
    group: Array, partners: Array, law: GaussianLaw, rng: np.random.Generator
) -> tuple[Array, ...]:
    """Independent draws, as `moves.independence`, but from the modes of the partners, too."""
    if law.anomalies.rank < group.shape[1]:
        return moves.differential_evolution(group, partners, law, rng)
    laws = (law, moment_law(law.anomalies), *cluster_laws(partners, law.anomalies, rng))
    return proposals.independence(laws, group, rng)


DENSITY_MOVES: Mapping[moves.Move, float] = {
    independence: moves.INDEPENDENT_SHARE,
    moves.differential_evolution: 1 - moves.INDEPENDENT_SHARE,
}


@dataclass(frozen=True)
class DensityBurnInState(BurnInState):
    """State of the burn-in.

    Attributes
    ----------
    archive : Archive
        All evaluations.
    """

    archive: Archive = field(kw_only=True)


@dataclass(frozen=True)
class DensityBurnIn(TemperedBurnIn):
    """Bring an ensemble from the prior to the posterior, using only values of the log density.

    Moves are independent draws from two laws, by moments and by a quadratic fit, and steps of
    differential evolution. All meet a Metropolis test. A stage lasts until most particles have
    moved.
    """

    def start(self, ensemble: Ensemble) -> DensityBurnInState:
        """State for an evaluated ensemble."""
        return DensityBurnInState(ensemble, self._largest_fraction, archive=Archive.of(ensemble))

    def tell(
        self, state: BurnInState, pending: Move, evaluations: Evaluations
    ) -> tuple[BurnInState, Info]:
        """State after the round, and an account of it. New evaluations improve the law."""
        origin: Any = pending.origin
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        pending = replace(pending, origin=replace(origin, archive=origin.archive.joined(values)))
        state, info = super().tell(state, pending, evaluations)
        if state.stage is not None:
            law = self._law(state, np.ones(len(state.ensemble)), state.stage.exponent)
            state = replace(state, stage=replace(state.stage, law=law))
        return state, info

    def _law(self, state: Any, weights: Array, exponent: float) -> GaussianLaw:
        used = state.ensemble.ok & (weights > 0)
        members = state.ensemble[used]
        anomalies = Anomalies.of(members.U, weights[used])
        law = quadratic_law(self.problem, state.archive, members, anomalies, exponent)
        return moment_law(anomalies) if law is None else law

    def _proposals(
        self, state: BurnInState, kind: Kind, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        assert state.stage is not None
        points, log_ratio = super()._proposals(state, kind, rng)
        U = state.ensemble.U
        if state.correlation == 0:
            points, log_ratio = independence(U, U, state.stage.law, rng)[:2]
        evolve = rng.random(len(U)) >= moves.INDEPENDENT_SHARE
        evolved, _ = moves.differential_evolution(U, U, state.stage.law, rng)
        return np.where(evolve[:, None], evolved, points), np.where(evolve, 0.0, log_ratio)

    def _renewed(self, alpha: Array, rate: float, correlation: float) -> float:
        return renewal(float(alpha.mean()) * np.sqrt(1 - correlation**2))

    def _stage_is_over(self, stage: Stage) -> bool:
        return stage.renewed >= 1 or stage.round >= PATIENCE

    def _end_stage(self, state: BurnInState, stage: Stage, time: float) -> BurnInState:
        """Keep steps small: after a large one, the few members left may all be in one mode."""
        state = super()._end_stage(state, stage, time)
        return replace(state, fraction=self._largest_fraction)


@dataclass(frozen=True)
class DensityState(SweepState):
    """State of the sweeps.

    Attributes
    ----------
    archive : Archive or None
        All evaluations, until the law is frozen.
    law : GaussianLaw or None
        Law of the quadratic fit, if there is one.
    """

    archive: Archive | None = None
    law: GaussianLaw | None = None


@dataclass(frozen=True)
class DensityMetropolis(MixtureMetropolis):
    """Metropolis tests of moves that use only values of the log density.

    The law of a half is that of the quadratic fit, which is frozen before the first draw.
    """

    def start(
        self, ensemble: Ensemble, *, at_rest: bool = False, archive: Archive | None = None
    ) -> DensityState:
        """State for an evaluated ensemble, and earlier evaluations."""
        known = Archive.of(ensemble) if archive is None else archive
        rest = AT_REST if at_rest else RESTLESS
        return self._fitted(DensityState(ensemble, rest=rest, archive=known))

    def _fitted(self, state: DensityState) -> DensityState:
        assert state.archive is not None
        members = state.ensemble[state.ensemble.ok]
        anomalies = Anomalies.of(members.U)
        law = quadratic_law(self.problem, state.archive, members, anomalies)
        return replace(state, law=law)

    def _law(self, state: Any, partners: Ensemble, used: Array) -> GaussianLaw:
        anomalies = Anomalies.of(partners.U[used])
        if state.law is None or anomalies.rank < partners.U.shape[1]:
            return moment_law(anomalies)
        return seen_from(state.law, anomalies)

    def tell(self, state: Any, pending: GroupMove, evaluations: Evaluations) -> tuple[Any, Info]:
        """State after the round, and an account of it."""
        origin: Any = pending.origin
        if not origin.rest.done:
            values = Ensemble.evaluated(self.problem, pending.points, evaluations)
            origin = replace(origin, archive=origin.archive.joined(values))
            pending = replace(pending, origin=origin)
        return super().tell(state, pending, evaluations)

    def adapt(self, state: Any, pending: GroupMove, alpha: Array) -> Any:
        """Fit anew after a sweep, and test whether the ensemble is at rest."""
        state = super().adapt(state, pending, alpha)
        if state.groups:
            return state
        good = np.nanmean(state.told["acceptance"]) > proposals.GOOD
        if state.rest.hits >= FEWEST_STILL and good:
            state = replace(state, rest=AT_REST)
        return self._fitted(state)

    def relaxation_time(self, state: Any, pending: GroupMove) -> float:
        """Time that has passed in a sweep: an ensemble that does not move is not at rest."""
        return renewal(float(np.nanmean(state.told["acceptance"])))

    def freeze(self, state: Any) -> Any:
        """End the adaptation, and forget the evaluations."""
        return replace(state, rest=AT_REST, archive=None)
