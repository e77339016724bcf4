"""Gauss-Newton search for the mode, along a slope that is learned on the way.

A round evaluates, in one batch, a few trial steps of different damping, and short steps around the
present center in the directions in which the slope is least known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    REPEATABLE,
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Problem,
)
from pymc_ensemble.samplers.kernels import NothingToFreeze
from pymc_ensemble.samplers.rest import IN_A_ROW
from pymc_ensemble.samplers.words import number, percent

from .law import InformedLaw
from .reference import GaussianReference
from .tracker import SlopeTracker

TRIALS = 8  # damped steps of a round, over five decades
DISTANCE = 5e-3  # distance of exploring points, in prior standard deviations
SAME_STEP = 1e-2  # steps that differ by less, in posterior standard deviations, count as equal
WEAKEST, STRONGEST = 1e-8, 1e8  # damping
NEARBY = 1e-8  # distance of a point that must have the same outputs, in prior sd


@dataclass(frozen=True)
class SearchState:
    """State between two rounds of the search.

    Attributes
    ----------
    ensemble : Ensemble
        The center, evaluated.
    tracker : SlopeTracker
    drawn : Ensemble
        Ensemble from which the search began.
    damping : float
        Damping of the best step so far.
    distance : float
        Distance of exploring points.
    rising, rounds : int
        Rounds of growing ignorance in a row, and all rounds.
    gap : float
        Fall of the potential that is expected to remain.
    unresolved : float
        Unknown information along draws of the law.
    done, found : bool
        Whether the search has ended, and whether it has found a mode with a known slope.
    """

    ensemble: Ensemble
    tracker: SlopeTracker
    drawn: Ensemble
    damping: float = 1.0
    distance: float = DISTANCE
    rising: int = 0
    rounds: int = 0
    gap: float = np.inf
    unresolved: float = np.inf
    done: bool = False
    found: bool = False

    @property
    def burned_in(self) -> bool:
        """Whether the search has ended."""
        return self.done

    @property
    def converged(self) -> bool:
        """Whether the search has ended at a mode, with a known slope."""
        return self.found


@dataclass(frozen=True)
class SearchRound:
    """A pending round: trial steps with their damping, exploring steps, and a repetition."""

    points: Array
    trials: Array
    damping: Array
    steps: Array
    repeated: bool


@dataclass(frozen=True)
class TrackedSearch(NothingToFreeze[SearchState]):
    """Gauss-Newton search with a tracked slope.

    Parameters
    ----------
    problem : InverseProblem
    reference : GaussianReference
        Coordinates in which the slope is learned.
    round_size : int
        Evaluations of a round, at most.
    tolerance : float
        Fall of the potential that may remain at the end.
    unresolved : float
        Unknown information along draws of the law that may remain at the end. ``inf`` if the law
        is not needed.
    max_rounds : int
        Rounds after which the search ends in any case.
    """

    problem: Problem
    reference: GaussianReference
    round_size: int
    tolerance: float
    unresolved: float
    max_rounds: int

    def start(self, ensemble: Ensemble, center: int | None = None) -> SearchState:
        """State for an evaluated ensemble: starts at its best member, or at number `center`."""
        ensemble.require(2)
        members = ensemble[ensemble.ok]
        x = self.reference.coordinates(members.U)
        with np.errstate(over="ignore"):
            tracker = SlopeTracker.of_ensemble(x, members.Z)
        best = ensemble[np.array([ensemble.potential.argmin() if center is None else center])]
        if not best.ok[0]:
            raise EnsembleFailure("The posterior density is not finite at the start of the search.")
        return SearchState(best, tracker, members)

    def law(self, state: SearchState) -> InformedLaw:
        """Law of the outputs as they are linearized at the center."""
        curvature = self.problem.curvature(state.ensemble.Z)[0]
        factor = np.sqrt(curvature)[:, None] * state.tracker.slope
        if not np.isfinite(factor).all():
            raise EnsembleFailure(
                "The forward outputs are so steep that their information matrix overflows."
            )
        return InformedLaw(self._coordinates(state), factor)

    def gradient(self, state: SearchState) -> Array:
        """Gradient of the potential at the center, in reference coordinates, shape (d,)."""
        center = state.ensemble
        of_loss = self.problem.loss_gradient(center.Z)[0] @ state.tracker.slope
        of_prior = self.reference.pull_back(self.problem.prior_gradient(center.U))[0]
        return of_loss + of_prior

    def ask(self, state: SearchState, rng: np.random.Generator) -> tuple[Array, SearchRound]:
        """Points of the next round, shape (n, d)."""
        x, law = self._coordinates(state), self.law(state)
        damping = state.damping * 10.0 ** np.linspace(-2, 3, TRIALS)
        trials, damping = self._trials(law, self.gradient(state), damping)
        repeated = state.rounds == 0
        room = max(self.round_size - len(trials) - repeated, 1)
        directions = state.tracker.directions(room, rng)
        # no farther than to where the outputs change by their noise
        reach = np.sqrt(((directions @ law.factor.T) ** 2).sum(1))
        length = state.distance / np.maximum(1.0, state.distance * reach)
        steps = length[:, None] * directions
        points = self.reference.points(np.concatenate([x + trials, x + steps]))
        if repeated:
            # forward models remember points, so this one must be a different number
            again = x + NEARBY * rng.standard_normal(len(x))
            points = np.concatenate([points, self.reference.points(again[None])])
        return points, SearchRound(points, trials, damping, steps, repeated)

    def tell(
        self, state: SearchState, pending: SearchRound, evaluations: Evaluations
    ) -> tuple[SearchState, Info]:
        """State after the round, and an account of it."""
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        if pending.repeated:
            self._require_repeatable(state.ensemble, values[-1:])
        n, center = len(pending.trials), state.ensemble
        tried, around = values[:n], values[n : n + len(pending.steps)]
        finite = np.isfinite(around.Z).all(1)
        before = state.tracker.unknown
        tracker = state.tracker.updated(pending.steps[finite], around.Z[finite] - center.Z)
        rising = state.rising + 1 if tracker.unknown > before else 0
        distance = state.distance
        if rising >= IN_A_ROW:
            distance, rising = distance / 2, 0
        # any evaluated point may be the next center
        best = int(tried.potential.argmin())
        gain = float(center.potential[0] - tried.potential[best])
        damping, surprise = state.damping, np.inf
        if gain > 0:
            change = tried.Z[best] - center.Z[0]
            missed = change - tracker.slope @ pending.trials[best]
            surprise = float(self.problem.curvature(tried.Z[best : best + 1])[0] @ missed**2)
            damping = max(float(pending.damping[best]), WEAKEST)
            tracker = tracker.along(pending.trials[best], change)
            center = tried[best : best + 1]
        else:
            damping = min(float(pending.damping[-1]), STRONGEST)
        state = replace(
            state,
            ensemble=center,
            tracker=tracker,
            damping=damping,
            distance=distance,
            rising=rising,
            rounds=state.rounds + 1,
        )
        state = self._judged(state, min(gain, surprise))
        message = (
            f"potential {center.potential[0]:.6g}, {number(state.gap, '.2g')} may remain, "
            f"{percent(state.tracker.unknown)} of the slope unknown"
        )
        return state, Info.of(evaluations, "burn-in", message)

    def _judged(self, state: SearchState, news: float) -> SearchState:
        """State with the fall that is still expected, and whether the search is over.

        The search goes on while there are `news`: a fall of the potential, by a step along which
        the outputs were not as predicted.
        """
        law = self.law(state)
        gradient = self.gradient(state)
        ignorance = self._ignorance(law, state.tracker)
        slack = float((self.problem.loss_gradient(state.ensemble.Z)[0] ** 2).sum())
        gap = 0.5 * (float(gradient @ law.contract(gradient)) + slack * ignorance)  # eq. (F8)
        curvature = float(self.problem.curvature(state.ensemble.Z)[0].sum())
        unresolved = curvature * ignorance  # eq. (F9)
        found = max(news, gap) < self.tolerance and unresolved <= self.unresolved
        done = found or state.rounds >= self.max_rounds
        return replace(state, gap=gap, unresolved=unresolved, found=found, done=done)

    @staticmethod
    def _ignorance(law: InformedLaw, tracker: SlopeTracker) -> float:
        """Trace of the product of the covariances of the slope's rows and of the law."""
        V = law.directions
        shrink = law.information / (1 + law.information)
        along = np.einsum("rd,rd->r", tracker.covariance.times(V), V)
        return max(float(tracker.covariance.diagonal.sum() - shrink @ along), 0.0)

    def _trials(
        self, law: InformedLaw, gradient: Array, damping: Sequence[float] | Array
    ) -> tuple[Array, Array]:
        """Steps of different damping. Of nearly equal steps only the first is kept."""
        steps: list[Array] = []
        kept = []
        for value in damping:
            step = law.newton_step(gradient, value)
            if not any(self._length(law, step - other) < SAME_STEP for other in steps):
                steps.append(step)
                kept.append(value)
        return np.array(steps), np.array(kept)

    @staticmethod
    def _length(law: InformedLaw, step: Array) -> float:
        """Length of a step in standard deviations of the law."""
        along = law.directions @ step
        return float(np.sqrt(step @ step + along**2 @ law.information))

    def _coordinates(self, state: SearchState) -> Array:
        return self.reference.coordinates(state.ensemble.U)[0]

    def _require_repeatable(self, center: Ensemble, again: Ensemble) -> None:
        """Refuse a map that gives other outputs when a point is evaluated again."""
        change = abs(float(center.loss[0] - again.loss[0]))
        if again.ok[0] and change > REPEATABLE * max(1.0, abs(float(center.loss[0]))):
            raise EnsembleFailure(
                "The forward map gave other outputs when the same point was evaluated again (the "
                f"loss changed by {number(change, '.2g')}). So differences along short steps "
                "would be noise.",
                'Use EnsembleKalmanSampler(), or find_MAP_ensemble(method="explorers", sigma=1), '
                "which average over noise.",
            )
