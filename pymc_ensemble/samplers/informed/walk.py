"""Exact walk: the posterior of linearized outputs proposes, and a Metropolis test decides.

Given the learned law, every walker is a Markov chain of its own.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem, Snapshot
from pymc_ensemble.samplers.langevin_steps import tuned
from pymc_ensemble.samplers.moves import INDEPENDENT_SHARE
from pymc_ensemble.samplers.proposals import GOOD, POOR
from pymc_ensemble.samplers.rest import AT_REST, Countdown
from pymc_ensemble.samplers.split_sweeps import GroupMove, Sweeps, SweepState
from pymc_ensemble.samplers.weights import UNUSUAL

from .linearized import LinearizedPosterior

TRIAL_SWEEPS = 2  # sweeps of independent moves that show the acceptance; the first is the start
TUNING_SWEEPS = 25  # most sweeps until walkers settle
WORTH = 4.0  # draws of the posterior that draws of the prior are worth, with which they tell of it
SMALLEST = 0.01  # size of correlated moves, and the distance of the largest one from one


Quality = Literal["good", "usable", "poor"]
Kind = Literal["independent", "correlated", "differential"]
KINDS: tuple[Kind, ...] = ("independent", "correlated", "differential")


@dataclass(frozen=True)
class WalkState(SweepState):
    """State between two sweeps of walkers.

    Attributes
    ----------
    target : LinearizedPosterior
        Learned approximation of the posterior.
    quality : {"good", "usable", "poor"}
        Acceptance of independent moves, which decides the kinds of sweeps.
    size : float
        Size of correlated moves.
    kind : {"independent", "correlated", "differential"}
        Moves of the sweep that is under way.
    known : bool
        Whether the learning of the law was finished.
    sweeps : int
        Sweeps so far.
    log_weights : ndarray
        Log weights of the first proposals: log density of the posterior minus that of its
        linearization.
    drawn : tuple of ndarray of shape (n,)
        Log weights of draws of the prior in the same sense, and how likely the data make them.
    law_weights : ndarray of shape (n,)
        Log weights of draws of the law alone, if curvature was learned.
    """

    target: LinearizedPosterior = field(kw_only=True)
    quality: Quality = "good"
    size: float = 1 - SMALLEST
    kind: Kind = "independent"
    known: bool = True
    sweeps: int = 0
    log_weights: Array = field(default_factory=lambda: np.empty(0))
    drawn: tuple[Array, Array] = field(default_factory=lambda: (np.empty(0), np.empty(0)))
    law_weights: Array = field(default_factory=lambda: np.empty(0))

    @property
    def reached(self) -> float | None:
        """Acceptance of the first proposals by draws of the prior, weighted by their likelihood.

        Proposals do not come to the parts of the posterior in which it is low. None if the draws
        are worth too little.
        """
        (log_weights, shares), proposed = self.drawn, self.log_weights
        if not len(proposed) or not (shares**2).sum() * WORTH <= shares.sum() ** 2 > 0:
            return None
        return float(shares @ _accepted(proposed, log_weights) / shares.sum())

    def law_acceptance(self, problem: Problem) -> float | None:
        """Acceptance of draws of the law alone by the walkers. None if the law is the target.

        Draws of the law cannot tell it by themselves, as they hardly reach the tails.
        """
        if self.target.curvature is None:
            return None
        law, walkers = replace(self.target, curvature=None), self.ensemble[self.ensemble.ok]
        density = law.log_density(problem, law.reference.coordinates(walkers.U))
        return float(_accepted(self.law_weights, -walkers.potential - density).mean())

    @property
    def converged(self) -> bool:
        """Whether the walkers have settled, with a law whose learning was finished."""
        return self.rest.done and self.known


@dataclass(frozen=True)
class InformedWalk(Sweeps[WalkState, GroupMove[WalkState]]):
    """Metropolis walk of conditionally independent walkers.

    Parameters
    ----------
    problem : InverseProblem
    """

    problem: Problem
    tested: ClassVar[bool] = True

    def start(
        self,
        target: LinearizedPosterior,
        walkers: int,
        known: bool = True,
        drawn: Ensemble | None = None,
    ) -> WalkState:
        """State of walkers without a position: their first move is always accepted.

        Parameters
        ----------
        target : LinearizedPosterior
        walkers : int
        known : bool
            Whether the learning of the law was finished.
        drawn : Ensemble or None
            Draws of the prior, evaluated.
        """
        x = np.tile(target.law.center, (walkers, 1))
        if target.curvature is not None:
            x = target.curvature.last(walkers)
        points = target.reference.points(x)
        nowhere = np.full(walkers, np.inf)
        Z = np.full((walkers, self.problem.n_outputs), np.nan)
        ensemble = Ensemble(points, Z, nowhere, nowhere)
        state = WalkState(ensemble, target=target, known=known, rest=Countdown(TRIAL_SWEEPS))
        if drawn is None:
            return state
        drawn = drawn[drawn.ok]
        density = target.log_density(self.problem, target.reference.coordinates(drawn.U))
        shares = np.exp(drawn.loss.min(initial=np.inf) - drawn.loss)
        return replace(state, drawn=(-drawn.potential - density, shares))

    def split(self, ensemble: Ensemble, rng: np.random.Generator) -> tuple[Array, ...]:
        """All walkers at once."""
        return (np.arange(len(ensemble)),)

    def in_sweep(self, state: WalkState, rng: np.random.Generator) -> WalkState:
        """State with the walkers to move. Differential sweeps move one half at a time."""
        if state.groups:
            return state
        state = super().in_sweep(state, rng)
        kind = kind_of(state.quality, rng.random())
        if kind == "differential":
            halves = super().split(state.ensemble, rng)
            state = replace(state, groups=halves, others=halves[::-1])
        return replace(state, kind=kind)

    def ask(self, state: WalkState, rng: np.random.Generator) -> tuple[Array, GroupMove[WalkState]]:
        """Points of the next round, shape (n, d)."""
        state = self.in_sweep(state, rng)
        target, problem, index = state.target, self.problem, state.groups[0]
        x = target.reference.coordinates(state.ensemble.U[index])
        log_ratio, log_q, step = np.zeros(len(x)), None, np.nan
        if state.kind == "independent":
            moved, step = target.propose(problem, x, rng), np.inf
            log_q = target.log_density(problem, moved)
            log_ratio = target.log_density(problem, x) - log_q
        elif state.kind == "correlated":
            moved, step = target.crank_nicolson(x, state.size, rng), state.size
            log_ratio = target.law.log_density(x) - target.law.log_density(moved)
        else:
            partners = target.reference.coordinates(state.ensemble.U[state.others[0]])
            moved = target.differential(x, partners, rng)
        points = target.reference.points(moved)
        return points, GroupMove(
            index, points, log_ratio, None, step, rng.random(len(x)), state, log_q=log_q
        )

    def adapt(self, state: WalkState, pending: GroupMove[WalkState], alpha: Array) -> WalkState:
        """Tune the size of moves, and note how much of the start walkers have forgotten."""
        if state.kind == "correlated":
            size = tuned(state.size, float(alpha.mean()))
            state = replace(state, size=float(np.clip(size, SMALLEST, 1 - SMALLEST)))
        if state.groups:
            return state
        assert isinstance(state.rest, Countdown)
        sweeps = state.sweeps + 1
        state = replace(state, sweeps=sweeps, rest=Countdown(state.rest.sweeps - 1))
        if sweeps <= TRIAL_SWEEPS:
            told = state.told["proposal_lp"] - state.told["proposal_log_q"]
            state = replace(state, log_weights=np.append(state.log_weights, told))
        return self._tried(state) if sweeps == TRIAL_SWEEPS else state

    def _tried(self, state: WalkState) -> WalkState:
        """Decide on the moves by the first proposals."""
        acceptance = expected_acceptance(state.log_weights)
        if acceptance < GOOD and not state.target.reference.gaussian.all():
            # such a prior has longer tails than the weights of few proposals show
            return replace(state, quality="poor", rest=Countdown(TUNING_SWEEPS))
        remembered, more = 1 - acceptance, 0
        while remembered > UNUSUAL and more < TUNING_SWEEPS:
            remembered, more = remembered * (1 - acceptance), more + 1
        quality: Quality = "poor" if acceptance < POOR else "usable"
        if acceptance >= GOOD and state.target.curvature is None:  # which may miss a part
            quality = "good"
        return replace(state, quality=quality, rest=Countdown(more))

    def snapshot(self, state: WalkState, dt: float) -> Snapshot:
        """Walkers after a sweep, with their density in the linearized posterior."""
        ensemble, target = state.ensemble, state.target
        x = target.reference.coordinates(ensemble.U)
        told = {**state.told, "log_q": target.log_density(self.problem, x)}
        if not target.gaussian:  # proposals depend a little on the walker, and are not normalized
            unknown = np.full(len(x), np.nan)
            told |= {"proposal_lp": unknown, "proposal_log_q": unknown}
        return Snapshot(ensemble.U, -ensemble.potential, step_size=dt, **told)

    def freeze(self, state: WalkState) -> WalkState:
        """End the adaptation. Walkers that have failed go where others are."""
        if state.sweeps == 0:  # nothing is evaluated yet: the first sweep is the start
            return replace(state, rest=AT_REST)
        state.ensemble.require(1)
        return replace(state, ensemble=state.ensemble.without_failures(), rest=AT_REST)


def kind_of(quality: Quality, uniform: float) -> Kind:
    """Kind of a sweep. If few independent moves are accepted, all kinds are equally frequent.

    >>> kind_of("good", 0.9), kind_of("usable", 0.7), kind_of("usable", 0.9), kind_of("poor", 0.5)
    ('independent', 'independent', 'differential', 'correlated')
    """
    if quality == "poor":
        return KINDS[int(len(KINDS) * uniform)]
    mixed = quality == "usable" and uniform >= INDEPENDENT_SHARE
    return "differential" if mixed else "independent"


def _accepted(proposed: Array, log_weights: Array) -> Array:
    """Acceptance of proposals at points, shape (n,), by the log weights of both."""
    with np.errstate(invalid="ignore"):
        ratios = np.exp(np.minimum(0.0, proposed - log_weights[:, None]))
    return np.nan_to_num(ratios).mean(1)


def expected_acceptance(log_weights: Array) -> float:
    """Acceptance of independent proposals by walkers that follow the posterior.

    Parameters
    ----------
    log_weights : ndarray of shape (n,)
        Log weights of proposals: log density of the posterior minus that of the proposals.

    Returns
    -------
    float
        Mean over pairs of the smaller of both weights, over the mean weight, eq. (F11).
    """
    finite = np.where(np.isfinite(log_weights), log_weights, -np.inf)
    if not np.isfinite(finite.max()):
        return 0.0
    weights = np.sort(np.exp(finite - finite.max()))
    n = len(weights)
    larger = np.arange(n)[::-1]  # how many weights exceed each one
    return float((weights * (2 * larger + 1)).sum() / (n * weights.sum()))
