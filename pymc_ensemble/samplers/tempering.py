"""Tempered burn-in: from a wide prior, or any start, to the posterior.

The posterior is approached through the laws ``exp(-b loss - prior)`` with a growing exponent b. In
each stage the ensemble is resampled for the next exponent and moved by the Gaussian law that is
fitted to it, with a Metropolis test when the forward map is deterministic.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from . import proposals
from .ensemble import Array, Ensemble, Evaluations, Info, Problem
from .linear_guess import linear_guess
from .linearization import Anomalies, GaussianLaw, fit_law
from .weights import (
    next_exponent,
    normalized_weights,
    plausible,
    plausible_limit,
    systematic_resample,
)

STANDSTILLS = 3  # consecutive sweeps without change that end the burn-in
TRUSTED = 0.9  # acceptance of moves at exponent one with which a single one does
FITTING = 0.6  # the same, with which they show that the target is much like its law
MIXED = 0.35  # a stage is done when its accepted moves have renewed this share of the ensemble

Kind = Literal["linear", "evolve", "metropolis", "relax"]
Finish = Literal["relax", "metropolis", "none"]


@dataclass(frozen=True)
class Stage:
    """The tempering stage in progress."""

    law: GaussianLaw
    exponent: float
    evolved: int = 0
    round: int = 0
    renewed: float = 0.0
    first_acceptance: float = np.nan


@dataclass(frozen=True)
class BurnInState:
    """State of the burn-in.

    Attributes
    ----------
    ensemble : Ensemble
        Evaluated particles.
    exponent : float
        Inverse temperature b that the ensemble has reached.
    fraction : float
        Effective share of the ensemble that the next exponent must keep.
    correlation : float
        Autocorrelation of the Metropolis proposals; 0 stands for independent ones.
    settled : int
        Consecutive sweeps at b = 1 in which mean and covariance stood still.
    acceptance : float
        Acceptance of the first moves of the last stage.
    """

    ensemble: Ensemble
    fraction: float
    exponent: float = 0.0
    correlation: float = 0.0
    stages: int = 0
    stage: Stage | None = None
    try_linear: bool = True
    reference: Anomalies | None = None
    settled: int = 0
    acceptance: float = np.nan
    burned_in: bool = False
    converged: bool = False


@dataclass(frozen=True)
class Move:
    """A pending round: where the proposals go, and what decides on them."""

    kind: Kind
    stage: Stage
    points: Array
    log_ratio: Array
    uniforms: Array
    origin: BurnInState


def standstill(reference: Anomalies, anomalies: Anomalies) -> bool:
    """Whether mean and covariance changed by less than half a standard deviation."""
    d = len(anomalies.mean)
    shift = anomalies.L_pinv @ (anomalies.mean - reference.mean)
    growth = 2 * (anomalies.log_volume - reference.log_volume)
    return np.sqrt(shift @ shift / d) < 0.5 and abs(growth) < 0.5 * np.sqrt(d)


@dataclass(frozen=True)
class TemperedBurnIn:
    """Bring an ensemble from the prior to the posterior.

    Parameters
    ----------
    problem : InverseProblem
        What is sampled; only its loss and prior are called.
    min_members : int
        Members with a finite posterior density without which there is no statistics.
    deterministic : bool, default True
        Whether the forward map returns the same output for the same point and is not rough. If
        not, moves are made without Metropolis test, which would lock in on lucky members.
    finish : {"relax", "metropolis", "none"}, default "relax"
        Moves at exponent one, until mean and covariance stand still: "relax" draws stuck members
        back by Ornstein-Uhlenbeck sweeps, "metropolis" keeps separate modes apart; with "none" the
        burn-in ends where the exponent reaches one.
    max_stages : int, default 80
        Stages after which the burn-in gives up.
    evolutions : int, default 0
        Rounds of differential evolution at the beginning of every stage. They let the members of
        each of several modes settle before weights decide between the modes.
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
        """Effective share of the ensemble that a stage keeps.

        Moves without a test forget the weights, and each of them brings in the noise of a rough
        map: a few bold stages are better than many careful ones.
        """
        return 0.5 if self.deterministic else 0.1

    # -- one round ------------------------------------------------------------------------------

    def ask(self, state: BurnInState, rng: np.random.Generator) -> tuple[Array, Move]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        ensemble = state.ensemble
        ensemble.require(self.min_members)
        if state.try_linear and self.deterministic and state.stages == 0:
            law = linear_guess(self.problem, ensemble)
            if law is not None:
                points = law.map.particles(law.center + law.spread(law.noise(len(ensemble), rng)))
                no_ratio = np.zeros(len(points))
                return self._pending(state, Stage(law, 1.0), "linear", points, no_ratio, rng)
        if state.stage is None:
            state, stage = self._begin_stage(state, rng)
        else:
            stage = state.stage
        return self._move(state, stage, rng)

    def tell(
        self, state: BurnInState, pending: Move, evaluations: Evaluations
    ) -> tuple[BurnInState, Info]:
        """State after the round, and an account of it."""
        state = pending.origin
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        judge = self._judge_linear if pending.kind == "linear" else self._judge_move
        state, complete, message = judge(state, pending, values)
        if state.stages >= self.max_stages:
            state = replace(state, burned_in=True)
        n_failed = int(evaluations.failed.sum())
        return state, Info("burn-in", complete, None, len(values), n_failed, message)

    # -- parts ----------------------------------------------------------------------------------

    def _pending(
        self,
        state: BurnInState,
        stage: Stage,
        kind: Kind,
        points: Array,
        log_ratio: Array,
        rng: np.random.Generator,
    ) -> tuple[Array, Move]:
        return points, Move(kind, stage, points, log_ratio, rng.random(len(points)), state)

    def _judge_linear(
        self, state: BurnInState, pending: Move, values: Ensemble
    ) -> tuple[BurnInState, bool, str]:
        """Accept the draws of the linear guess if importance weights confirm them."""
        law, J = pending.stage.law, len(values)
        log_weights = -values.potential - law.log_density(values.U)
        log_weights = np.where(values.ok, log_weights, -np.inf)
        weights, effective_size = normalized_weights(log_weights)
        share = effective_size / max(values.ok.sum(), 1)
        state = replace(state, try_linear=False)
        message = f"linear guess confirmed by {share:.0%} of the ensemble"
        if share > 0.5 and values.ok.sum() >= self.min_members:
            if share < 0.99 or not values.ok.all():
                values = values[systematic_resample(weights, J, pending.uniforms[0])]
            done = bool(share > 0.8)
            state = replace(
                state, ensemble=values, exponent=1.0, stages=1, burned_in=done, converged=done
            )
        return state, True, message

    def _begin_stage(
        self, state: BurnInState, rng: np.random.Generator
    ) -> tuple[BurnInState, Stage]:
        """Choose the next exponent, fit the law for it, and resample the ensemble."""
        ensemble, (J, d) = state.ensemble, state.ensemble.U.shape
        ok = ensemble.ok
        n_ok = ok.sum()
        if state.exponent < 1:
            loss = ensemble.loss[ok]
            fitted = next_exponent(
                loss, state.exponent, max(0.5 * n_ok, min(2 * (d + 2), 0.8 * n_ok))
            )
            exponent = max(
                fitted, next_exponent(loss, state.exponent, max(state.fraction * n_ok, 1.5))
            )
            statistics, weights = np.zeros(J), np.zeros(J)
            statistics[ok] = normalized_weights((state.exponent - fitted) * loss)[0]
            weights[ok] = normalized_weights((state.exponent - exponent) * loss)[0]
        else:
            exponent = 1.0
            kept = plausible(ensemble.potential, d)
            statistics = weights = kept / kept.sum()
        law = fit_law(self.problem, ensemble, statistics, exponent, rough=not self.deterministic)
        if state.exponent < 1 or (weights == 0).any():
            ensemble = ensemble[systematic_resample(weights, J, rng.random())]
        state = replace(state, ensemble=ensemble, correlation=max(0.0, state.correlation - 0.25))
        return state, Stage(law, exponent)

    def _move(
        self, state: BurnInState, stage: Stage, rng: np.random.Generator
    ) -> tuple[Array, Move]:
        U, law = state.ensemble.U, stage.law
        if self._relaxes(state):
            force = law.linear_force(law.map.coordinates(U))
            points, log_ratio = proposals.relaxation(law, U, force, 1.0, rng)
            return self._pending(state, stage, "relax", points, log_ratio, rng)
        if stage.evolved < self.evolutions and not self._fits(state):
            points, log_ratio = proposals.differential_evolution(law.anomalies, U, U, rng)
            return self._pending(state, stage, "evolve", points, log_ratio, rng)
        if state.correlation == 0:
            points, log_ratio = proposals.independence((law,), U, rng)
        else:
            points, log_ratio = proposals.autoregressive(law, U, state.correlation, rng)
        return self._pending(state, stage, "metropolis", points, log_ratio, rng)

    def _fits(self, state: BurnInState) -> bool:
        """Whether the target is reached, and so much like its law that nothing has to evolve."""
        return state.exponent == 1 and state.acceptance > FITTING

    def _relaxes(self, state: BurnInState) -> bool:
        return not self.deterministic or (self.finish == "relax" and state.exponent == 1)

    def _judge_move(
        self, state: BurnInState, pending: Move, values: Ensemble
    ) -> tuple[BurnInState, bool, str]:
        stage, ensemble = pending.stage, state.ensemble
        alpha = proposals.acceptance(
            stage.exponent * ensemble.loss + ensemble.prior,
            stage.exponent * values.loss + values.prior,
            pending.log_ratio,
        )
        relax = pending.kind == "relax"
        accepted = pending.uniforms < alpha
        if relax:
            accepted = values.ok
            if self.deterministic:  # where the law is too wide, its draws end up anywhere
                limit = plausible_limit(ensemble.potential, ensemble.U.shape[1])
                accepted = values.potential <= limit
        ensemble = ensemble.updated(np.arange(len(accepted)), values, accepted)
        rate = alpha[values.ok].mean() if values.ok.any() else 0.0
        message = f"tempering exponent {stage.exponent:.3g}, acceptance {rate:.2f}"
        if pending.kind == "evolve":
            stage = replace(stage, evolved=stage.evolved + 1)
            return replace(state, ensemble=ensemble, stage=stage), False, message
        r = state.correlation
        stage = replace(
            stage,
            round=stage.round + 1,
            renewed=stage.renewed + rate * np.sqrt(1 - r**2),
            first_acceptance=rate if stage.round == 0 else stage.first_acceptance,
        )
        complete = relax or stage.renewed >= MIXED or stage.round >= 5
        if not complete:
            if rate < 0.2:
                r = 0.7 if r == 0 else min(0.98, (1 + r) / 2)
            elif rate > 0.5:
                r = max(0.0, r - 0.2)
        state = replace(state, ensemble=ensemble, stage=stage, correlation=r)
        if complete:
            state = self._end_stage(state, stage, moved=bool(accepted.any()))
        return state, complete, message

    def _end_stage(self, state: BurnInState, stage: Stage, moved: bool) -> BurnInState:
        easy = stage.first_acceptance > 0.5 and stage.round == 1
        largest = self._largest_fraction
        fraction = max(0.02, 0.3 * state.fraction) if easy else min(largest, 2 * state.fraction)
        state = replace(
            state,
            stage=None,
            exponent=stage.exponent,
            acceptance=stage.first_acceptance,
            fraction=fraction,
            stages=state.stages + 1,
        )
        if state.exponent < 1:
            return state
        if self.finish == "none":
            return replace(state, burned_in=True, converged=True)
        ensemble = state.ensemble
        kept = plausible(ensemble.potential, ensemble.U.shape[1])
        anomalies = Anomalies.of(ensemble.U[kept])
        hit = moved and state.reference is not None and standstill(state.reference, anomalies)
        settled = state.settled + 1 if hit else 0
        done = settled >= STANDSTILLS or (hit and stage.first_acceptance > TRUSTED)
        return replace(state, reference=anomalies, settled=settled, burned_in=done, converged=done)
