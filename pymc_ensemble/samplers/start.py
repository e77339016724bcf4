"""First evaluation of an ensemble."""

from dataclasses import dataclass, replace

import numpy as np

from .ensemble import Array, Ensemble, EnsembleFailure, Evaluations, Info, Problem

MAX_REDRAWS = 20


@dataclass(frozen=True)
class StartState:
    """Positions before, and the evaluated ensemble after the first rounds."""

    U: Array
    redraw: bool
    ensemble: Ensemble | None = None
    rounds: int = 0
    complete: bool = False
    burned_in: bool = False
    converged: bool = False


@dataclass(frozen=True)
class StartRound:
    """A pending round: which members are evaluated where."""

    index: Array
    points: Array


@dataclass(frozen=True)
class Start:
    """Evaluate the initial positions; members that fail are drawn anew from the prior.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
        Members that must have a finite posterior density in the end.
    """

    problem: Problem
    min_members: int

    def start(self, U: Array, redraw: bool) -> StartState:
        """State for the positions `U`, shape (J, d); failed ones are drawn anew if `redraw`."""
        return StartState(np.array(U, dtype=float), redraw)

    def ask(self, state: StartState, rng: np.random.Generator) -> tuple[Array, StartRound]:
        """Points of the next round, shape (n, d)."""
        if state.ensemble is None:
            return state.U, StartRound(np.arange(len(state.U)), state.U)
        failed = np.flatnonzero(~state.ensemble.ok)
        points = self.problem.sample_prior(len(failed), rng)
        return points, StartRound(failed, points)

    def tell(
        self, state: StartState, pending: StartRound, evaluations: Evaluations
    ) -> tuple[StartState, Info]:
        """State after the round, and an account of it."""
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        ensemble = values
        if state.ensemble is not None:
            everyone = np.ones(len(values), dtype=bool)
            ensemble = state.ensemble.updated(pending.index, values, everyone)
        if not ensemble.ok.any() and not evaluations.failed.all():
            raise EnsembleFailure(
                "The forward map works, but the posterior density is zero for every member of the "
                "initial ensemble: the data may lie outside the support of their distribution."
            )
        last = not state.redraw or state.rounds >= MAX_REDRAWS
        complete = bool(ensemble.ok.all()) or last
        if complete:
            ensemble.require(self.min_members)
        state = replace(state, ensemble=ensemble, rounds=state.rounds + 1, complete=complete)
        n_failed = int(evaluations.failed.sum())
        return state, Info("start", complete, None, len(values), n_failed, "initial ensemble")
