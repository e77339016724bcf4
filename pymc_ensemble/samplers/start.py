"""First evaluation of an ensemble."""

from dataclasses import dataclass

import numpy as np

from .ensemble import Array, Ensemble, EnsembleFailure, Evaluations, Info, PriorAndLoss
from .options import PATIENCE


@dataclass(frozen=True)
class StartState:
    """State of the start: positions, and the ensemble once it is evaluated."""

    U: Array
    redraw: bool
    ensemble: Ensemble | None = None
    rounds: int = 0
    complete: bool = False
    seed: int = 0
    n_evaluations: int = 0

    @property
    def burned_in(self) -> bool:
        """Whether enough members are evaluated."""
        return self.complete

    converged = burned_in


@dataclass(frozen=True)
class StartRound:
    """A pending round: members, and the points at which they are evaluated."""

    index: Array
    points: Array
    seed: int


@dataclass(frozen=True)
class Start:
    """Evaluate the initial positions; members that fail are replaced by draws from the prior.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
        Fewest members that must have a finite posterior density at the end.
    seeds : bool, default False
        Whether the next kernel needs a seed. Then `ask` draws one for the state.
    max_evaluations : int, optional
        Evaluations after which members that fail are no longer replaced.
    """

    problem: PriorAndLoss
    min_members: int
    seeds: bool = False
    max_evaluations: int | None = None

    def start(self, U: Array, redraw: bool) -> StartState:
        """State for the positions `U`, shape (J, d); failed ones are replaced if `redraw`."""
        return StartState(np.array(U, dtype=float), redraw)

    def ask(self, state: StartState, rng: np.random.Generator) -> tuple[Array, StartRound]:
        """Points of the next round, shape (n, d)."""
        index, points = np.arange(len(state.U)), state.U
        if state.ensemble is not None:
            index = np.flatnonzero(~state.ensemble.ok)
            points = self.problem.sample_prior(len(index), rng)
        seed = int(rng.integers(2**63)) if self.seeds else 0
        return points, StartRound(index, points, seed)

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
                "initial ensemble. The data may lie outside the support of their distribution. "
                "Check the data, and the likelihood."
            )
        last = not state.redraw or state.rounds >= PATIENCE
        n_evaluations = state.n_evaluations + len(values)
        if self.max_evaluations is not None:
            last |= n_evaluations + int((~ensemble.ok).sum()) > self.max_evaluations
        complete = bool(ensemble.ok.all()) or last
        if complete:
            ensemble.require(self.min_members)
        state = StartState(
            state.U,
            state.redraw,
            ensemble,
            state.rounds + 1,
            complete,
            pending.seed,
            n_evaluations,
        )
        return state, Info.of(evaluations, "start", "initial ensemble", complete=complete)
