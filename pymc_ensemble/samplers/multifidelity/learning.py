"""Learning the correction of a cheap model, in rounds of a few evaluations of the fine one.

Two steps take turns. The posterior of the corrected cheap model is sampled, which costs cheap
evaluations. Then the fine model is evaluated at some of the draws. These evaluations judge the
present correction, and the next one learns from them. Ten points may be too few for a judgement. So
a correction that has passed is certified only if the next one, which has also learned from these
points, gives the same posterior. This costs only cheap evaluations.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pymc_ensemble.samplers.certificate import Certificate, disagreement
from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Problem,
)
from pymc_ensemble.samplers.gaussian_process.basis import farthest_points
from pymc_ensemble.samplers.gaussian_process.posterior import Whitening
from pymc_ensemble.samplers.weights import usual

from .correction import Correction, Outputs, corrected
from .exploration import Exploration, Explorer

Stage = Literal["cheap", "known", "fine"]


@dataclass(frozen=True)
class Known:
    """Points at which both models were evaluated.

    Attributes
    ----------
    fine : Ensemble
    cheap : ndarray of shape (n, K)
        Outputs of the cheap model.
    """

    fine: Ensemble
    cheap: Array

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, index: Array) -> "Known":
        return Known(self.fine[index], self.cheap[index])

    def joined(self, other: "Known") -> "Known":
        """These and other points."""
        return Known(
            Ensemble.joined(self.fine, other.fine), np.concatenate([self.cheap, other.cheap])
        )

    @property
    def ok(self) -> Array:
        """Mask of the points at which both models have not failed, shape (n,)."""
        return self.fine.ok & np.isfinite(self.cheap).all(1)

    def predicted(self, problem: Problem, correction: Correction | None) -> Ensemble:
        """The same points with the outputs of the corrected cheap model."""
        failed = ~np.isfinite(self.cheap).all(1)
        values = corrected(correction, self.fine.U, Outputs(self.cheap, failed))
        return Ensemble.evaluated(problem, self.fine.U, values)


@dataclass(frozen=True)
class Law:
    """Posterior of a corrected cheap model.

    Attributes
    ----------
    correction : Correction or None
    draws : Ensemble
        Draws with the outputs of the corrected model, which has not failed there.
    """

    correction: Correction | None
    draws: Ensemble

    def change(self, other: "Law", problem: Problem) -> Array:
        """Log density of another law relative to this one, at the draws of this one."""
        cheap = self.draws.Z
        if self.correction is not None:
            cheap = cheap - self.correction(self.draws.U)
        return self.draws.loss - Known(self.draws, cheap).predicted(problem, other.correction).loss

    def difference(self, other: "Law", problem: Problem) -> float:
        """Difference of means, in standard deviations, by the draws of both laws."""
        there = disagreement(self.draws.U, self.change(other, problem))
        back = disagreement(other.draws.U, other.change(self, problem))
        return max(there, back)


@dataclass(frozen=True)
class LearningState:
    """State of the learning.

    Attributes
    ----------
    stage : {"cheap", "known", "fine"}
        Next evaluations: the cheap model, the cheap model at points where the fine one is known, or
        the fine model.
    prior : Ensemble
        Draws of the prior with outputs of the cheap model. Each exploration begins there.
    exploration : Exploration
        Exploration of the corrected cheap model.
    correction : Correction or None
        Correction that is added to the outputs of the cheap model.
    known, lost : Known
        Points at which both models are known, and those of a batch at which the fine one has
        failed.
    batch : Ensemble or None
        Next points for the fine model, with the outputs of the corrected model.
    independent : bool
        Whether these are independent draws of a posterior whose paths have mixed.
    certificate : Certificate or None
        Certificate of the last batch of independent draws.
    passed : Law or None
        Law that the last batch has found to be right, until the next law is compared with it.
    used, cheap : int
        Evaluations of the fine and of the cheap model.
    rounds : int
        Batches of the fine model.
    most_rounds : int or None
        Batches after which the learning ends in any case.
    burned_in : bool
        Whether the learning is over.
    """

    stage: Stage
    prior: Ensemble
    exploration: Exploration
    correction: Correction | None
    known: Known
    lost: Known
    batch: Ensemble | None = None
    independent: bool = False
    certificate: Certificate | None = None
    passed: Law | None = None
    used: int = 0
    cheap: int = 0
    rounds: int = 0
    most_rounds: int | None = None
    burned_in: bool = False

    @property
    def ensemble(self) -> Ensemble:
        """Particles of the exploration."""
        return self.exploration.ensemble

    @property
    def converged(self) -> bool:
        """Whether the correction was certified, and the next one has agreed."""
        certificate = self.certificate
        return self.passed is None and certificate is not None and certificate.certified

    @property
    def law(self) -> Law:
        """Posterior of the corrected model, by the particles."""
        return Law(self.correction, self.ensemble[self.ensemble.ok])


@dataclass(frozen=True)
class Round:
    """A pending round: its points, what the explorer needs, and a seed."""

    points: Array
    inner: Any
    seed: int


@dataclass(frozen=True)
class Learning:
    """Learn a correction of a cheap model until new evaluations of the fine one certify it.

    Parameters
    ----------
    problem : InverseProblem
    explorer : Explorer
    batch : int
        Evaluations of the fine model in a round.
    tolerance : float
        Tolerance of the certificate.
    max_evaluations : int
        Most evaluations of the fine model.
    """

    problem: Problem
    explorer: Explorer
    batch: int
    tolerance: float
    max_evaluations: int

    def start(
        self,
        prior: Ensemble,
        archive: Ensemble | None = None,
        cheap: int = 0,
        most_rounds: int | None = None,
    ) -> LearningState:
        """State for draws of the prior, evaluated by the cheap model.

        Parameters
        ----------
        prior : Ensemble
        archive : Ensemble or None
            Earlier evaluations of the fine model.
        cheap : int
            Evaluations of the cheap model so far.
        most_rounds : int, optional
            Most batches of the fine model.
        """
        nothing = Known(prior[:0], prior.Z[:0])
        exploration = self.explorer.start(prior)
        state = LearningState(
            "cheap",
            prior,
            exploration,
            None,
            nothing,
            nothing,
            cheap=cheap,
            most_rounds=most_rounds,
        )
        if archive is None or len(archive) == 0:
            return state
        return replace(state, stage="known", batch=archive)

    def ask(self, state: LearningState, rng: np.random.Generator) -> tuple[Array, Round]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        seed = int(rng.integers(2**63))
        if state.stage == "cheap":
            points, inner = self.explorer.ask(state.exploration, rng)
            return points, Round(points, inner, seed)
        assert state.batch is not None
        return state.batch.U.copy(), Round(state.batch.U, None, seed)

    def tell(
        self, state: LearningState, pending: Round, evaluations: Evaluations
    ) -> tuple[LearningState, Info]:
        """State after the round, and an account of it."""
        rng, n = np.random.default_rng(pending.seed), len(pending.points)
        if state.stage == "cheap":
            state = replace(self._explored(state, pending, evaluations, rng), cheap=state.cheap + n)
            message = "sampling the corrected cheap model"
            if state.burned_in:
                message = account(state)
            return state, Info.of(evaluations, "burn-in", message, complete=state.burned_in)
        if state.stage == "known":
            assert state.batch is not None
            known = Known(state.batch, np.array(evaluations.outputs))
            known = known[known.ok]
            state = replace(state, known=known, cheap=state.cheap + n, batch=None)
            if len(known):
                state = self._corrected(state, state.prior.U, rng)
            state = replace(state, stage="cheap")
            message = "the cheap model at earlier evaluations"
            return state, Info.of(evaluations, "burn-in", message, complete=False)
        state = self._judged(state, evaluations)
        if not state.burned_in:
            state = self._corrected(state, state.ensemble.U, rng)
        # with the batch that has passed, the iteration goes on until the laws are compared
        complete = state.passed is None
        return state, Info.of(evaluations, "burn-in", account(state), complete=complete)

    # -- parts ----------------------------------------------------------------------------------

    def _explored(
        self,
        state: LearningState,
        pending: Round,
        evaluations: Evaluations,
        rng: np.random.Generator,
    ) -> LearningState:
        """State after a round of the cheap model, at the end with points for the fine one."""
        values = corrected(state.correction, pending.points, evaluations)
        exploration = self.explorer.tell(state.exploration, pending.inner, values)
        state = replace(state, exploration=exploration)
        if state.correction is None:  # the draws only choose the first points
            if not exploration.arrived:
                return state
            good = exploration.ensemble[exploration.ensemble.ok]
            x = Whitening.of(good.U).coordinates(good.U)
            index = farthest_points(x, min(self.batch, len(good)))
            return replace(state, stage="fine", batch=good[index], independent=False)
        if not exploration.over:
            return state
        if state.passed is not None:
            state = self._compared(state)
            if state.burned_in:
                return state
        good = exploration.ensemble[exploration.ensemble.ok]
        index = rng.choice(len(good), min(self.batch, len(good)), replace=False)
        return replace(state, stage="fine", batch=good[index], independent=exploration.mixed)

    def _judged(self, state: LearningState, evaluations: Evaluations) -> LearningState:
        """State with the evaluated batch, and its judgement of the correction."""
        batch = state.batch
        assert batch is not None
        fine = Ensemble.evaluated(self.problem, batch.U, evaluations)
        failed = int((~fine.ok).sum())
        if failed > len(fine) / 2:
            raise EnsembleFailure(
                f"{failed} of {len(fine)} evaluations of the fine model have failed, at draws of "
                f"the corrected cheap model from {batch.U.min(0)} to {batch.U.max(0)}, in "
                "unconstrained coordinates."
            )
        cheap = batch.Z
        if state.correction is not None:
            cheap = cheap - state.correction(batch.U)
            with np.errstate(invalid="ignore"):
                log_weights = batch.loss - fine.loss  # eq. (C1)
            if not state.independent or self._is_cut_off(state):
                log_weights = np.full(len(log_weights), np.nan)
            certificate = Certificate.of(log_weights, self.tolerance)
            passed = state.law if certificate.certified else None
            state = replace(state, certificate=certificate, passed=passed)
        both = Known(fine, cheap)
        state = replace(
            state,
            known=state.known.joined(both[both.ok]),
            lost=state.lost.joined(both[~fine.ok]),
            batch=None,
            used=state.used + len(fine),
            rounds=state.rounds + 1,
        )
        return replace(state, burned_in=state.passed is None and self._is_spent(state))

    def _compared(self, state: LearningState) -> LearningState:
        """State with the comparison of the law that has passed and the next law."""
        passed, certificate = state.passed, state.certificate
        assert passed is not None
        assert certificate is not None
        moved = np.inf
        if state.exploration.mixed and not self._is_cut_off(state):
            moved = passed.difference(state.law, self.problem)  # eq. (B4)
        state = replace(state, passed=None, certificate=certificate.moved_by(moved))
        return replace(state, burned_in=state.converged or self._is_spent(state))

    def _is_spent(self, state: LearningState) -> bool:
        """Whether no other batch is allowed."""
        if state.most_rounds is not None and state.rounds >= state.most_rounds:
            return True
        return state.used + self.batch > self.max_evaluations

    def _is_cut_off(self, state: LearningState) -> bool:
        """Whether the fine model has failed earlier where the corrected model has its draws.

        By chance, the draws of this batch may all be where the fine model works.
        """
        limit = usual(state.ensemble.potential)
        lost = state.lost.predicted(self.problem, state.correction)
        return bool((lost.potential < limit).any())

    def _corrected(
        self, state: LearningState, particles: Array, rng: np.random.Generator
    ) -> LearningState:
        """State with a new correction. The exploration of its posterior begins at the prior."""
        known, prior = state.known, state.prior
        correction = Correction.of(self.problem, known.fine, known.cheap, particles, rng)
        ensemble = Known(prior, prior.Z).predicted(self.problem, correction)
        exploration = self.explorer.start(ensemble)
        return replace(state, stage="cheap", correction=correction, exploration=exploration)


def account(state: LearningState) -> str:
    """One line on the state of the learning."""
    told = f"round {state.rounds} of the fine model, {state.cheap} cheap evaluations"
    return told if state.certificate is None else f"{told}, {state.certificate}"
