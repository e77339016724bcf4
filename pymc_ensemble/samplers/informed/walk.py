"""Exact walk: the posterior of linearized outputs proposes, and a Metropolis test decides.

Given what was learned, every walker is a Markov chain of its own.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem, Snapshot
from pymc_ensemble.samplers.rest import AT_REST, Countdown
from pymc_ensemble.samplers.split_sweeps import GroupMove, Sweeps, SweepState

from .linearized import LinearizedPosterior

TRIAL_SWEEPS = 2  # of independent moves, which tell how many are accepted; the first is the start
SETTLED = 0.05  # share of what the walkers remember of their start when they settle
INDEPENDENT = 0.25  # acceptance of independent moves from which on no others are made
INDEPENDENT_SHARE = 0.3  # of the sweeps where there are others
TUNING_SWEEPS = 25  # of correlated moves
TARGET = 0.35  # acceptance of correlated moves
GAIN = 0.5  # of the logarithm of their size, by acceptance
SMALLEST, LARGEST = 0.01, 0.99


@dataclass(frozen=True)
class WalkState(SweepState):
    """Between two sweeps of walkers.

    Attributes
    ----------
    target : LinearizedPosterior
        What was learned of the posterior.
    size : float
        Size of correlated moves; 1 where all moves are independent.
    known : bool
        Whether the law was learned to the end.
    sweeps : int
        Sweeps so far.
    log_weights : ndarray
        Of the first proposals: log density of the posterior against that of its linearization.
    """

    target: LinearizedPosterior = field(kw_only=True)
    size: float = 1.0
    known: bool = True
    sweeps: int = 0
    log_weights: Array = field(default_factory=lambda: np.empty(0))

    @property
    def converged(self) -> bool:
        """Whether the walkers have settled, with a law that was learned to the end."""
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
    ) -> WalkState:
        """State of walkers that have not been anywhere: their first move is always made."""
        center = target.reference.points(target.law.center[None])
        nowhere = np.full(walkers, np.inf)
        Z = np.full((walkers, self.problem.n_outputs), np.nan)
        ensemble = Ensemble(np.tile(center, (walkers, 1)), Z, nowhere, nowhere)
        return WalkState(ensemble, target=target, known=known, rest=Countdown(TRIAL_SWEEPS))

    def split(self, ensemble: Ensemble, rng: np.random.Generator) -> tuple[Array, ...]:
        """All walkers at once."""
        return (np.arange(len(ensemble)),)

    def ask(self, state: WalkState, rng: np.random.Generator) -> tuple[Array, GroupMove[WalkState]]:
        """Points of the next round, shape (J, d)."""
        state = self.in_sweep(state, rng)
        target, problem = state.target, self.problem
        x = target.reference.coordinates(state.ensemble.U)
        alone = state.size == 1.0
        if not alone and state.rest.done:
            alone = rng.random() < INDEPENDENT_SHARE
        if alone:
            moved = target.propose(problem, x, rng)
            after = target.log_density(problem, moved)
            log_ratio, log_q = target.log_density(problem, x) - after, after
        else:
            moved = target.crank_nicolson(x, state.size, rng)
            log_ratio, log_q = target.law.log_density(x) - target.law.log_density(moved), None
        points = target.reference.points(moved)
        step = np.inf if alone else state.size
        uniforms, everyone = rng.random(len(x)), state.groups[0]
        return points, GroupMove(
            everyone, points, log_ratio, None, step, uniforms, state, log_q=log_q
        )

    def adapt(self, state: WalkState, pending: GroupMove[WalkState], alpha: Array) -> WalkState:
        """Learn what size of moves is accepted, and how long walkers remember their start."""
        assert isinstance(state.rest, Countdown)
        sweeps = state.sweeps + 1
        state = replace(state, sweeps=sweeps, rest=Countdown(state.rest.sweeps - 1))
        if sweeps <= TRIAL_SWEEPS:
            told = state.told["proposal_lp"] - state.told["proposal_log_q"]
            state = replace(state, log_weights=np.append(state.log_weights, told))
            return self._tried(state) if sweeps == TRIAL_SWEEPS else state
        if state.size < 1:
            change = np.exp(GAIN * (float(alpha.mean()) - TARGET))
            return replace(state, size=float(np.clip(state.size * change, SMALLEST, LARGEST)))
        return state

    def _tried(self, state: WalkState) -> WalkState:
        """Decide on the moves by the first proposals."""
        acceptance = expected_acceptance(state.log_weights)
        if acceptance < INDEPENDENT:
            size = float(np.clip(np.sqrt(acceptance), SMALLEST, LARGEST))
            return replace(state, size=size, rest=Countdown(TUNING_SWEEPS))
        forgetting = -np.log1p(-min(acceptance, 1 - SETTLED))
        more = int(np.ceil(-np.log(SETTLED) / forgetting)) - (TRIAL_SWEEPS - 1)
        return replace(state, rest=Countdown(max(more, 0)))

    def snapshot(self, state: WalkState, dt: float) -> Snapshot:
        """Walkers after a sweep, with their density in the linearized posterior."""
        ensemble, target = state.ensemble, state.target
        x = target.reference.coordinates(ensemble.U)
        told = {**state.told, "log_q": target.log_density(self.problem, x)}
        return Snapshot(ensemble.U, -ensemble.potential, step_size=dt, **told)

    def freeze(self, state: WalkState) -> WalkState:
        """End the adaptation; walkers that have failed so far go where others are."""
        if state.sweeps == 0:  # nothing is evaluated yet: the first sweep is the start
            return replace(state, rest=AT_REST)
        state.ensemble.require(1)
        return replace(state, ensemble=state.ensemble.without_failures(), rest=AT_REST)


def expected_acceptance(log_weights: Array) -> float:
    """Acceptance of independent proposals by walkers that follow the posterior.

    Parameters
    ----------
    log_weights : ndarray of shape (n,)
        Of proposals: log density of the posterior minus that of the proposals.

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
