"""All that is learned before walkers set out: the slope, and curvature if the law is too little."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem
from pymc_ensemble.samplers.kernels import NothingToFreeze

from .linearized import LinearizedPosterior
from .search import SearchRound, SearchState, TrackedSearch
from .walk import GOOD, expected_acceptance

# Of draws of the law, above which it is taken as it is. They hardly reach tails: on a parabola half
# of them seem to be accepted, and sds come out up to 40% too small.
ENOUGH = 0.7
CURVED_ROUNDS = 10  # after which curvature is taken as it is
LINEAR = 0.1  # error of the loss at draws of the prior up to which a map is linear
FEWEST = 2  # proposals that have differences
TOGETHER = 3  # rounds whose proposals tell the acceptance: those of one are too few


@dataclass(frozen=True)
class TrialState:
    """Between two rounds of proposals that are tried, after the search.

    Attributes
    ----------
    ensemble : Ensemble
        Proposals of the last round, evaluated.
    search : SearchState
        The end of the search.
    plain, target : LinearizedPosterior
        What was learned with outputs along a line, and what is known now.
    x, residuals : ndarray of shape (N, d) and (N, K)
        Proposals so far, and what their outputs differ by from the line.
    acceptances : tuple of float
        Expected acceptance of each round.
    done : bool
    """

    ensemble: Ensemble
    search: SearchState
    plain: LinearizedPosterior
    target: LinearizedPosterior
    x: Array
    residuals: Array
    acceptances: tuple[float, ...] = field(default=())
    done: bool = False

    @property
    def burned_in(self) -> bool:
        """Whether walkers may set out."""
        return self.done

    @property
    def converged(self) -> bool:
        """Whether the search has ended at a mode, with a slope that is known."""
        return self.search.found


@dataclass(frozen=True)
class TrialRound:
    """Proposals of a round."""

    x: Array
    points: Array
    log_density: Array


@dataclass(frozen=True)
class LawLearning(NothingToFreeze[SearchState | TrialState]):
    """Search for the mode, and then trials of what was learned.

    A first round of trials tells how many proposals are accepted. If they are few, residuals of the
    outputs correct the line, round by round, where the posterior is.

    Parameters
    ----------
    problem : InverseProblem
    search : TrackedSearch
    learned : callable
        Posterior of linearized outputs, from the end of the search.
    size : int
        Proposals of a round.
    """

    problem: Problem
    search: TrackedSearch
    learned: Callable[[SearchState], LinearizedPosterior]
    size: int

    def start(self, ensemble: Ensemble, center: int | None = None) -> SearchState:
        """State for an evaluated ensemble."""
        return self.search.start(ensemble, center)

    def ask(
        self, state: SearchState | TrialState, rng: np.random.Generator
    ) -> tuple[Array, SearchRound | TrialRound]:
        """Points of the next round, shape (n, d)."""
        if isinstance(state, SearchState):
            return self.search.ask(state, rng)
        target = state.target
        if target.curvature is None:
            x = target.law.draw(self.size, rng)
        else:
            x = target.curvature.last(self.size)
        x = target.propose(self.problem, x, rng)
        points = target.reference.points(x)
        return points, TrialRound(x, points, target.log_density(self.problem, x))

    def tell(
        self,
        state: SearchState | TrialState,
        pending: SearchRound | TrialRound,
        evaluations: Evaluations,
    ) -> tuple[SearchState | TrialState, Info]:
        """State after the round, and an account of it."""
        if isinstance(pending, SearchRound):
            assert isinstance(state, SearchState)
            found, info = self.search.tell(state, pending, evaluations)
            return (self._on_trial(found) if found.found else found), info
        assert isinstance(state, TrialState)
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        acceptance = expected_acceptance(-values.potential - pending.log_density)
        state = self._after(state, pending.x, values, acceptance)
        message = f"{acceptance:.0%} of trial proposals would be accepted"
        return state, Info.of(evaluations, "burn-in", message)

    def _on_trial(self, search: SearchState) -> TrialState:
        plain, drawn = self.learned(search), search.drawn
        missed = drawn.Z - plain.predicted(plain.reference.coordinates(drawn.U))
        errors = 0.5 * (missed**2 @ self.problem.curvature(plain.outputs[None])[0])
        linear = bool(np.median(errors) < LINEAR)  # all proposals are accepted then
        nothing, K = np.empty((0, self.problem.dimension)), self.problem.n_outputs
        residuals = np.empty((0, K))
        return TrialState(search.ensemble, search, plain, plain, nothing, residuals, done=linear)

    def _after(
        self, state: TrialState, x: Array, values: Ensemble, acceptance: float
    ) -> TrialState:
        """State that has learned from proposals, or that has seen enough of them."""
        seen = (*state.acceptances, acceptance)
        state = replace(state, ensemble=values, acceptances=seen)
        if len(seen) == 1 and acceptance >= ENOUGH:
            return replace(state, done=True)
        if len(seen) > TOGETHER:
            now = float(np.mean(seen[-TOGETHER:]))
            if now <= seen[0]:
                return replace(state, target=state.plain, done=True)
            if now >= GOOD or len(seen) >= CURVED_ROUNDS:
                return replace(state, done=True)
        finite = np.isfinite(values.Z).all(1)
        residuals = values.Z[finite] - state.plain.predicted(x[finite])
        x, residuals = (
            np.concatenate([state.x, x[finite]]),
            np.concatenate([state.residuals, residuals]),
        )
        if len(x) < FEWEST or not len(state.plain.informed):
            return replace(state, done=True)
        target = state.plain.curved(self.problem, x, residuals, seen[0])
        return replace(state, x=x, residuals=residuals, target=target)
