"""Learning before walkers start: the slope, and curvature if the law is not good enough."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem
from pymc_ensemble.samplers.kernels import NothingToFreeze
from pymc_ensemble.samplers.linearization import NEARLY_LINEAR
from pymc_ensemble.samplers.weights import UNUSUAL

from .linearized import LinearizedPosterior, single_numbers
from .search import SearchRound, SearchState, TrackedSearch
from .walk import expected_acceptance

# Of draws of the law, above which it is taken as it is. They hardly reach tails: on a parabola half
# of them seem to be accepted, and sds come out up to 40% too small.
ENOUGH = 0.7
WIDE = 0.5  # share of wider proposals, which teach tails and do not count for the acceptance
POWER = 0.5  # of the likelihood in the law of the draws: informed directions are 1.4 times as wide
WIDER = 2.0  # spread of single numbers in these draws, in standard deviations of the law
LATELY = 5  # rounds whose acceptance is compared with that of as many earlier rounds
TOGETHER = 3  # rounds whose proposals tell the acceptance: those of one are too few


@dataclass(frozen=True)
class TrialState:
    """State between two rounds of trial proposals, after the search.

    Attributes
    ----------
    ensemble : Ensemble
        Proposals of the last round, evaluated.
    search : SearchState
        The end of the search.
    plain, target : LinearizedPosterior
        Posterior with linear outputs, and the present one.
    x, residuals : ndarray of shape (N, d) and (N, K)
        Proposals so far, and the differences of their outputs from linear ones.
    moments : tuple of ndarray of shape (2, k)
        Means and variances of single numbers in the proposals of each round, without wide ones.
    acceptances : tuple of float
        Expected acceptance of each round.
    law_weights : ndarray of shape (n,)
        Log weights of the proposals of the first round, which have no curvature.
    done : bool
    """

    ensemble: Ensemble
    search: SearchState
    plain: LinearizedPosterior
    target: LinearizedPosterior
    x: Array
    residuals: Array
    moments: tuple[Array, ...] = field(default=())
    acceptances: tuple[float, ...] = field(default=())
    law_weights: Array = field(default_factory=lambda: np.empty(0))
    done: bool = False

    @property
    def burned_in(self) -> bool:
        """Whether walkers may start."""
        return self.done

    @property
    def converged(self) -> bool:
        """Whether the search has ended at a mode, with a slope that is known."""
        return self.search.found


@dataclass(frozen=True)
class TrialRound:
    """Proposals of a round, wide ones last, and a seed to predict the acceptance of others."""

    x: Array
    points: Array
    log_density: Array
    wide: int
    seed: int


@dataclass(frozen=True)
class LawLearning(NothingToFreeze[SearchState | TrialState]):
    """Search for the mode, and then trials of the learned law.

    A first round of trials shows how many proposals are accepted. If they are few, residuals of the
    outputs correct the linear map, round by round, where the posterior is.

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
        wide = 0
        if target.curvature is None:
            x = target.propose(self.problem, target.law.draw(self.size, rng), rng)
        else:
            wide, starts = round(WIDE * self.size), target.curvature.last(self.size)
            near = target.propose(self.problem, starts[wide:], rng)
            far = self._far(target, starts[:wide], rng)
            x = np.concatenate([near, far])
        points, log_density = target.reference.points(x), target.log_density(self.problem, x)
        return points, TrialRound(x, points, log_density, wide, int(rng.integers(2**63)))

    @cached_property
    def _few(self) -> Array:
        """Coordinates, shape (d,), of single numbers beside a field; none where all are such."""
        single = single_numbers(self.problem)
        return single & ~single.all()

    def _far(self, target: LinearizedPosterior, x: Array, rng: np.random.Generator) -> Array:
        """Proposals that learn of tails, from draws of before, shape (n, d).

        The likelihood counts half. Where the mode of a length or an amplitude is far from its mean,
        other proposals come there too slowly. So single numbers first make a move of the prior, no
        further than `WIDER` times what the law allows, and then stay. These draws get no weights,
        so they need not be exact.
        """
        single = self._few
        rows = np.eye(len(single))[single]
        variances = np.einsum("kd,kd->k", rows, target.law.contract(rows))
        size = np.minimum(1.0, WIDER * np.sqrt(variances))
        moved = x.copy()
        moved[:, single] *= np.sqrt(1 - size**2)  # eq. (F15)
        moved[:, single] += size * rng.standard_normal((len(x), len(size)))
        return target.propose(self.problem, moved, rng, POWER, single)

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
        log_weights = -values.potential - pending.log_density
        acceptance = expected_acceptance(log_weights[: self.size - pending.wide])
        if not state.acceptances:
            state = replace(state, law_weights=log_weights)
        state = self._after(state, pending, values, acceptance)
        message = f"{acceptance:.0%} of trial proposals would be accepted"
        return state, Info.of(evaluations, "burn-in", message)

    def _on_trial(self, search: SearchState) -> TrialState:
        plain, drawn = self.learned(search), search.drawn
        missed = drawn.Z - plain.predicted(plain.reference.coordinates(drawn.U))
        errors = 0.5 * (missed**2 @ self.problem.curvature(plain.outputs[None])[0])
        linear = bool(np.median(errors) < NEARLY_LINEAR)  # all proposals are accepted then
        nothing, K = np.empty((0, self.problem.dimension)), self.problem.n_outputs
        residuals = np.empty((0, K))
        return TrialState(search.ensemble, search, plain, plain, nothing, residuals, done=linear)

    def _after(
        self, state: TrialState, pending: TrialRound, values: Ensemble, acceptance: float
    ) -> TrialState:
        """State that has learned from proposals, or whose learning has ended."""
        seen = (*state.acceptances, acceptance)
        finite = np.isfinite(values.Z).all(1)
        tried = pending.x[finite]
        x = np.concatenate([state.x, tried])
        missed = values.Z[finite] - state.plain.predicted(tried)
        residuals = np.concatenate([state.residuals, missed])
        near = pending.x[: self.size - pending.wide, self._few]
        moments = (*state.moments, np.stack([near.mean(0), near.var(0)]))
        state = replace(
            state,
            ensemble=values,
            plain=state.plain.having_seen(values),
            x=x,
            residuals=residuals,
            moments=moments,
            acceptances=seen,
        )
        if len(x) < 2 or not len(state.plain.informed):
            return replace(state, done=True)
        target = state.plain.curved(self.problem, x, residuals, seen[0])
        if len(seen) == 1 and acceptance >= ENOUGH and self._foreseen(target, pending) >= ENOUGH:
            return replace(state, done=True)
        done = False
        if len(seen) > TOGETHER:
            now, n = float(np.mean(seen[-TOGETHER:])), LATELY * (self.size - pending.wide)
            if now <= seen[0]:
                return replace(state, target=state.plain, done=True)
            done = now >= ENOUGH or not _rises(seen, n)
            done = done and not _drifts(moments, n)
        return replace(state, target=target, done=done)

    def _foreseen(self, target: LinearizedPosterior, pending: TrialRound) -> float:
        """Acceptance of proposals by walkers in tails, where the law hardly proposes.

        These walkers are draws of the posterior, corrected by the residuals of the proposals.
        """
        rng, x = np.random.default_rng(pending.seed), pending.x
        assert target.curvature is not None
        walkers = target.propose(self.problem, target.curvature.last(len(x)), rng)
        plain = replace(target, curvature=None, gaussian=False)
        new, old = (
            target.log_density(self.problem, at) - plain.log_density(self.problem, at)
            for at in (x, walkers)
        )
        return float(np.exp(np.minimum(0.0, new - old[:, None])).mean())


def _drifts(moments: tuple[Array, ...], n: int) -> bool:
    """Whether proposals still move in single numbers, or are too few to tell.

    Means and variances by round tell it, with n proposals in as many rounds as are compared.
    """
    if not moments[0].size:
        return False
    if len(moments) < 2 * LATELY:
        return True
    before, now = np.mean(moments[-2 * LATELY : -LATELY], 0), np.mean(moments[-LATELY:], 0)
    limit = -scipy.special.ndtri(UNUSUAL / 2) * np.sqrt(2 / n)
    return bool((np.abs(now[0] - before[0]) > limit * np.sqrt(now[1])).any())


def _rises(acceptances: tuple[float, ...], n: int) -> bool:
    """Whether acceptances still rise, or are too few to tell."""
    if len(acceptances) < 2 * LATELY:
        return True
    before, now = acceptances[-2 * LATELY : -LATELY], acceptances[-LATELY:]
    return bool(np.mean(now) > np.mean(before) + 0.5 / np.sqrt(n))  # sd of a share, at most
