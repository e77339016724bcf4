"""Tempered burn-in: from a wide prior, or any start, to the posterior.

The posterior is approached through the laws ``exp(-b loss - prior)`` with a growing exponent b. In
each stage the ensemble is resampled for the next exponent. Gaussian laws that are fitted to it then
propose moves. If the forward map is deterministic, the moves meet a Metropolis test.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from . import moves, proposals
from .ensemble import Array, Ensemble, Evaluations, Info, Problem
from .linear_guess import TRUSTED, guessed_draws, linear_guess
from .linearization import MOST_LOST, Anomalies, GaussianLaw, fit_law, moment_law
from .rest import IN_A_ROW, RESTLESS, Standstill, drifts
from .weights import (
    next_exponent,
    normalized_weights,
    plausible,
    plausible_limit,
    systematic_resample,
)

MOST_ROUNDS = 5  # of a stage
MIXED = 0.35  # a stage is done when its accepted moves have renewed this share of the ensemble

Kind = Literal["linear", "evolve", "metropolis", "relax"]
Finish = Literal["relax", "metropolis", "none"]


@dataclass(frozen=True)
class Stage:
    """The tempering stage in progress.

    Attributes
    ----------
    law : GaussianLaw
        Law that is fitted to the ensemble.
    exponent : float
        Inverse temperature b of the stage.
    evolved, round : int
        Rounds of differential evolution, and of other moves, so far.
    renewed : float
        Share of the ensemble that these other moves have renewed.
    first_acceptance : float
        Acceptance of the first of them.
    """

    law: GaussianLaw
    exponent: float
    evolved: int = 0
    round: int = 0
    renewed: float = 0.0
    first_acceptance: float = np.nan

    def after(self, acceptance: float, renewed: float) -> "Stage":
        """Stage after one more round of moves."""
        return replace(
            self,
            round=self.round + 1,
            renewed=self.renewed + renewed,
            first_acceptance=acceptance if self.round == 0 else self.first_acceptance,
        )


@dataclass(frozen=True)
class BurnInState:
    """State of the burn-in.

    Attributes
    ----------
    ensemble : Ensemble
        Evaluated particles.
    fraction : float
        Effective sample size that the next exponent must keep, as a share of the ensemble.
    exponent : float
        Inverse temperature b that the ensemble has reached.
    correlation : float
        Autocorrelation of the Metropolis proposals; 0 stands for independent ones.
    stages : int
        Completed stages.
    stage : Stage or None
        Stage in progress.
    guessed : bool
        Whether a linear guess was tried.
    rest : Standstill
        Comparisons of mean and covariance at b = 1.
    path : tuple of ndarray of shape (J, d + 1)
        Particles and their potentials at each of these comparisons.
    acceptance : float
        Acceptance of the first moves of the last stage.
    burned_in, converged : bool
        Whether the burn-in is over, and whether it has reached the posterior.
    """

    ensemble: Ensemble
    fraction: float
    exponent: float = 0.0
    correlation: float = 0.0
    stages: int = 0
    stage: Stage | None = None
    guessed: bool = False
    rest: Standstill = RESTLESS
    path: tuple[Array, ...] = ()
    acceptance: float = np.nan
    burned_in: bool = False
    converged: bool = False


@dataclass(frozen=True)
class Move:
    """A pending round: the proposed points, and what the test of them needs."""

    kind: Kind
    stage: Stage
    points: Array
    log_ratio: Array
    uniforms: Array
    origin: BurnInState


@dataclass(frozen=True)
class TemperedBurnIn:
    """Bring an ensemble from the prior to the posterior.

    Parameters
    ----------
    problem : InverseProblem
        What is sampled; only its loss and prior are called.
    min_members : int
        Fewest members with a finite posterior density from which statistics can be computed.
    deterministic : bool, default True
        Whether the forward map returns the same output for the same point and is not rough. If
        not, moves meet no Metropolis test, which would keep members with lucky evaluations.
    finish : {"relax", "metropolis", "none"}, default "relax"
        Moves at exponent one, until mean and covariance no longer change. "relax" pulls stuck
        members back by Ornstein-Uhlenbeck sweeps. "metropolis" keeps separate modes apart. With
        "none" the burn-in ends when the exponent reaches one.
    max_stages : int, default 80
        Stages after which the burn-in gives up.
    evolutions : int, default 0
        Rounds of differential evolution at the beginning of every stage. In these rounds members
        settle within their modes, before weights decide between the modes.
    """

    problem: Problem
    min_members: int
    deterministic: bool = True
    finish: Finish = "relax"
    max_stages: int = 80
    evolutions: int = 0

    def start(self, ensemble: Ensemble) -> BurnInState:
        """State for an evaluated ensemble."""
        return BurnInState(ensemble, self._largest_fraction)

    @property
    def _largest_fraction(self) -> float:
        """Largest effective sample size that a stage keeps, as a share of the ensemble.

        Moves without a test lose what the weights have told, and each adds the noise of a rough
        map. Few stages with large steps are then better than many with small steps.
        """
        return proposals.GOOD if self.deterministic else 0.1

    # -- one round ------------------------------------------------------------------------------

    def ask(self, state: BurnInState, rng: np.random.Generator) -> tuple[Array, Move]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        state.ensemble.require(self.min_members)
        kind: Kind
        guess = None
        if self.deterministic and state.stages == 0 and not state.guessed:
            law = linear_guess(self.problem, state.ensemble)
            if law is not None:
                guess = guessed_draws(self.problem, law, len(state.ensemble), rng)
            state = replace(state, guessed=True)
        if guess is not None:
            assert law is not None
            stage, kind = Stage(law, 1.0), "linear"
            points, log_ratio = guess
        else:
            if state.stage is None:
                state = self._next_stage(state, rng)
            assert state.stage is not None
            stage, kind = state.stage, self._kind(state)
            points, log_ratio = self._proposals(state, kind, rng)
        return points, Move(kind, stage, points, log_ratio, rng.random(len(points)), state)

    def tell(
        self, state: BurnInState, pending: Move, evaluations: Evaluations
    ) -> tuple[BurnInState, Info]:
        """State after the round, and an account of it."""
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        judge = self._judge_guess if pending.kind == "linear" else self._judge_move
        state, complete, message = judge(pending, values)
        if state.stages >= self.max_stages:
            state = replace(state, burned_in=True)
        return state, Info.of(evaluations, "burn-in", message, complete=complete)

    # -- a guess ----------------------------------------------------------------------------------

    def _judge_guess(self, pending: Move, values: Ensemble) -> tuple[BurnInState, bool, str]:
        """Accept the draws of the linear guess if importance weights confirm them."""
        J, state = len(values), pending.origin
        log_weights = -values.potential - pending.log_ratio  # the density that they were drawn from
        weights, effective_size = normalized_weights(np.where(values.ok, log_weights, -np.inf))
        share = effective_size / max(values.ok.sum(), 1)
        message = f"linear guess confirmed by {share:.0%} of the ensemble"
        if share > self._largest_fraction and values.ok.sum() >= self.min_members:
            values = values[systematic_resample(weights, J, pending.uniforms[0])]
            done = bool(share > TRUSTED)
            state = replace(
                state, ensemble=values, exponent=1.0, stages=1, burned_in=done, converged=done
            )
        return state, True, message

    # -- a stage ----------------------------------------------------------------------------------

    def _next_stage(self, state: BurnInState, rng: np.random.Generator) -> BurnInState:
        """Choose the next exponent, fit the law for it, and resample the ensemble."""
        ensemble = state.ensemble
        exponent, statistics, weights = self._weights(state)
        law = self._law(state, statistics, exponent)
        if state.exponent < 1 or (weights == 0).any():
            index = systematic_resample(weights, len(ensemble), rng.random())
            ensemble = ensemble[index]
            state = replace(state, path=tuple(earlier[index] for earlier in state.path))
        return replace(
            state,
            ensemble=ensemble,
            correlation=lowered(state.correlation),
            stage=Stage(law, exponent),
        )

    def _law(self, state: BurnInState, weights: Array, exponent: float) -> GaussianLaw:
        """Law of the ensemble, with these weights of its members."""
        rough = not self.deterministic
        return fit_law(self.problem, state.ensemble, weights, exponent, rough=rough)

    def _weights(self, state: BurnInState) -> tuple[float, Array, Array]:
        """Next exponent, weights for the statistics, and weights for the resampling.

        The statistics of d coordinates may need more members than a step of the exponent leaves.
        Their weights are then those of a smaller step.
        """
        ensemble, d = state.ensemble, state.ensemble.U.shape[1]
        if state.exponent == 1:
            kept = plausible(ensemble.potential, d)
            return 1.0, kept / kept.sum(), kept / kept.sum()
        ok, present = ensemble.ok, state.exponent
        loss, n_ok = ensemble.loss[ok], ok.sum()
        # eq. (T2)
        fitted = next_exponent(
            loss, present, max(0.5 * n_ok, min(2 * (d + 2), (1 - MOST_LOST) * n_ok))
        )
        reached = max(fitted, next_exponent(loss, present, max(state.fraction * n_ok, 2)))
        statistics, weights = np.zeros((2, len(ensemble)))
        statistics[ok] = normalized_weights((present - fitted) * loss)[0]
        weights[ok] = normalized_weights((present - reached) * loss)[0]
        return reached, statistics, weights

    def _kind(self, state: BurnInState) -> Kind:
        """How the particles move in the next round."""
        assert state.stage is not None
        if not self.deterministic or (self.finish == "relax" and state.exponent == 1):
            return "relax"
        fits = state.exponent == 1 and state.acceptance > proposals.GOOD  # the law fits well
        return "evolve" if state.stage.evolved < self.evolutions and not fits else "metropolis"

    def _proposals(
        self, state: BurnInState, kind: Kind, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Points, and the logarithm of the proposal ratio."""
        assert state.stage is not None
        U, law = state.ensemble.U, state.stage.law
        if kind == "relax":
            return proposals.relaxation(law, U, law.linear_force(law.map.coordinates(U)), 1.0, rng)
        if kind == "evolve":
            return moves.differential_evolution(U, U, law, rng)
        # the law of the moments is wider if the linear fit misses some of the spread
        laws = law, moment_law(law.anomalies, law.map)
        if state.correlation == 0:
            return proposals.independence(laws, U, rng)[:2]
        by_law = rng.integers(len(laws), size=len(U))
        moved = [proposals.autoregressive(law, U, state.correlation, rng) for law in laws]
        points = np.choose(by_law[:, None], [points for points, _ in moved])
        return points, np.choose(by_law, [log_ratio for _, log_ratio in moved])

    def _judge_move(self, pending: Move, values: Ensemble) -> tuple[BurnInState, bool, str]:
        """Accept moves; a stage is complete when they have renewed enough of the ensemble."""
        state, stage, ensemble = pending.origin, pending.stage, pending.origin.ensemble
        alpha = proposals.acceptance(  # for eq. (T1)
            stage.exponent * ensemble.loss + ensemble.prior,
            stage.exponent * values.loss + values.prior,
            pending.log_ratio,
        )
        accepted = pending.uniforms < alpha
        if pending.kind == "relax":
            accepted = self._stays_plausible(ensemble, values)
        ensemble = ensemble.updated(np.arange(len(accepted)), values, accepted)
        rate = alpha[values.ok].mean() if values.ok.any() else 0.0
        message = f"tempering exponent {stage.exponent:.3g}, acceptance {rate:.2f}"
        if pending.kind == "evolve":
            stage = replace(stage, evolved=stage.evolved + 1)
            return replace(state, ensemble=ensemble, stage=stage), False, message
        stage = stage.after(rate, self._renewed(alpha, rate, state.correlation))
        complete = pending.kind == "relax" or self._stage_is_over(stage)
        state = replace(state, ensemble=ensemble, stage=stage)
        if complete:
            time = 1.0 if pending.kind == "relax" else min(stage.renewed / MIXED, 1.0)
            return self._end_stage(state, stage, time if accepted.any() else 0.0), True, message
        correlation = next_correlation(state.correlation, rate)
        return replace(state, correlation=correlation), False, message

    def _renewed(self, alpha: Array, rate: float, correlation: float) -> float:
        """Share of the ensemble that a round has renewed; `rate` leaves out failed evaluations."""
        return rate * np.sqrt(1 - correlation**2)

    def _stage_is_over(self, stage: Stage) -> bool:
        """Whether enough of the ensemble is renewed, or no rounds are left."""
        return stage.renewed >= MIXED or stage.round >= MOST_ROUNDS  # eq. (T3)

    def _stays_plausible(self, ensemble: Ensemble, values: Ensemble) -> Array:
        """Mask of the untested moves that are made: a law that is too wide proposes bad points."""
        if not self.deterministic:
            return values.ok
        return values.potential <= plausible_limit(ensemble.potential, ensemble.U.shape[1])

    def _end_stage(self, state: BurnInState, stage: Stage, time: float) -> BurnInState:
        """End a stage: choose the size of the next step; at b = 1, test whether to end the burn-in.

        The `time` of the stage is in relaxation times. It is zero if no particle has moved.
        """
        easy = stage.first_acceptance > proposals.GOOD and stage.round == 1
        largest = self._largest_fraction
        state = replace(
            state,
            stage=None,
            exponent=stage.exponent,
            acceptance=stage.first_acceptance,
            fraction=0.3 * state.fraction if easy else min(largest, 2 * state.fraction),
            stages=state.stages + 1,
        )
        if state.exponent < 1:
            return state
        if self.finish == "none":
            return replace(state, burned_in=True, converged=True)
        ensemble = state.ensemble
        anomalies = Anomalies.of(ensemble.U[plausible(ensemble.potential, ensemble.U.shape[1])])
        rest = state.rest.after(anomalies, time) if time else Standstill(reference=anomalies)
        path = state.path
        if time and rest.elapsed == 0 and self.finish == "metropolis":
            path = (*path, np.column_stack([ensemble.U, ensemble.potential]))
        stands = rest.done or (rest.hits > 0 and stage.first_acceptance > TRUSTED)
        done = stands and (self.finish == "relax" or not self._drifts(path, rest.hits))
        return replace(state, rest=rest, path=path, burned_in=done, converged=done)

    def _drifts(self, path: tuple[Array, ...], hits: int) -> bool:
        """Whether the ensemble has drifted over its last comparisons, or the last half of all.

        Relaxations are not tested: after one of them, an ensemble has forgotten most of the past.
        """
        back = max(min(hits, IN_A_ROW), len(path) // 2)
        return drifts(path[max(len(path) - 1 - back, 0)], path[-1])


def next_correlation(correlation: float, acceptance: float) -> float:
    """Autocorrelation of the next proposals: higher if few of the last ones were accepted."""
    if acceptance < proposals.POOR:
        return (1 + correlation) / 2
    return lowered(correlation) if acceptance > proposals.GOOD else correlation


def lowered(correlation: float) -> float:
    """Lower autocorrelation: its distance from one doubles, until proposals are independent."""
    return max(0.0, 2 * correlation - 1)
