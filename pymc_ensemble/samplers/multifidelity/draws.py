"""Draws of the corrected cheap model, and a Metropolis test of them with the fine one."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem, Snapshot
from pymc_ensemble.samplers.kernels import NothingToFreeze
from pymc_ensemble.samplers.linearization import Anomalies, moment_law
from pymc_ensemble.samplers.phases import PhaseState

from .correction import corrected
from .exploration import MIXED, Exploration, Explorer, path_times
from .learning import LearningState


@dataclass(frozen=True)
class DrawsState:
    """State of the sampling from a corrected cheap model.

    Attributes
    ----------
    inner : PhaseState
        State of the ensemble Kalman sampler.
    learned : LearningState
        State of the learning that gave the correction.
    interval : int
        Sweeps after which a particle has forgotten where it was.
    sweeps : int
        Sweeps since the start, or since the last test.
    n_cheap : int
        Evaluations of the cheap model since the start.
    tested : Ensemble or None
        Particles that have met the test, with the outputs of the fine model.
    cheap_loss : ndarray of shape (J,) or None
        Losses of these particles by the corrected model.
    burned_in : bool
        Whether the particles differ from those with which other chains began.
    """

    inner: PhaseState
    learned: LearningState
    interval: int
    sweeps: int = 0
    n_cheap: int = 0
    tested: Ensemble | None = None
    cheap_loss: Array | None = None
    burned_in: bool = False

    asks_cheap = True

    @property
    def ensemble(self) -> Ensemble:
        """Particles that become draws."""
        return self.inner.evaluated if self.tested is None else self.tested

    @property
    def converged(self) -> bool:
        """Whether the correction was certified."""
        return self.learned.converged


@dataclass(frozen=True)
class TestedState(DrawsState):
    """The same, if each draw meets a Metropolis test."""

    @property
    def asks_cheap(self) -> bool:  # type: ignore[override]
        """Whether proposals are still being made, before the test."""
        return self.sweeps < self.interval


@dataclass(frozen=True)
class Move:
    """A pending round: points, what the sampler needs, and random numbers for the test."""

    points: Array
    inner: Any = None
    cheap_loss: Array | None = None
    uniforms: Array | None = None


@dataclass(frozen=True)
class CorrectedDraws(NothingToFreeze[DrawsState]):
    """Sweeps of the exact ensemble Kalman sampler through the corrected cheap model.

    Parameters
    ----------
    problem : InverseProblem
    explorer : Explorer
    """

    problem: Problem
    explorer: Explorer

    def start(self, learned: LearningState) -> DrawsState:
        """State for what was learned."""
        return DrawsState(*self._begun(learned))

    def _begun(self, learned: LearningState) -> tuple[PhaseState, LearningState, int]:
        exploration = learned.exploration
        inner = self.explorer.sampler.freeze(exploration.state)
        return inner, learned, forgetting(exploration)

    def ask(self, state: DrawsState, rng: np.random.Generator) -> tuple[Array, Move]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        points, inner = self.explorer.sampler.ask(state.inner, rng)
        return points, Move(points, inner)

    def tell(
        self, state: DrawsState, pending: Move, evaluations: Evaluations
    ) -> tuple[DrawsState, Info]:
        """State after the round, and an account of it."""
        values = corrected(state.learned.correction, pending.points, evaluations)
        inner, info = self.explorer.sampler.tell(state.inner, pending.inner, values)
        n_cheap = state.n_cheap + len(pending.points)
        state = replace(state, inner=inner, sweeps=state.sweeps + info.complete, n_cheap=n_cheap)
        if state.sweeps >= state.interval:
            state = replace(state, burned_in=True)
        return state, info


@dataclass(frozen=True)
class TestedDraws(CorrectedDraws):
    """Draws of the corrected cheap model as proposals that meet a Metropolis test.

    Between two tests the particles of the corrected model move until they have forgotten where they
    were. Then they are shuffled, so that a proposal does not depend on the particle it replaces.
    """

    def start(self, learned: LearningState) -> TestedState:
        """State for what was learned."""
        return TestedState(*self._begun(learned))

    def ask(self, state: DrawsState, rng: np.random.Generator) -> tuple[Array, Move]:
        """Points of the next round, shape (n, d), and what `tell` needs to judge them."""
        if state.asks_cheap:
            return super().ask(state, rng)
        proposed = state.inner.evaluated
        proposed = proposed[rng.permutation(len(proposed))]
        uniforms = rng.random(len(proposed))
        return proposed.U.copy(), Move(proposed.U, None, proposed.loss, uniforms)

    def tell(
        self, state: DrawsState, pending: Move, evaluations: Evaluations
    ) -> tuple[DrawsState, Info]:
        """State after the round, and an account of it: a sweep is complete with its test."""
        if state.asks_cheap:
            state, info = super().tell(replace(state, burned_in=False), pending, evaluations)
            return replace(state, burned_in=state.tested is not None), replace(
                info, complete=False, snapshot=None
            )
        fine = Ensemble.evaluated(self.problem, pending.points, evaluations)
        assert pending.cheap_loss is not None
        assert pending.uniforms is not None
        if state.tested is None:
            if not fine.ok.any():
                return state, Info.of(evaluations, "sampling", "the fine model", complete=False)
            good = np.flatnonzero(fine.ok)
            index = np.where(fine.ok, np.arange(len(fine)), good[np.arange(len(fine)) % len(good)])
            state = replace(
                state,
                tested=fine[index],
                cheap_loss=pending.cheap_loss[index],
                sweeps=0,
                burned_in=True,
            )
            return state, Info.of(evaluations, "sampling", "the fine model at the first draws")
        old = state.tested
        assert state.cheap_loss is not None
        # both laws have the same prior, so only the losses count: eq. (B3)
        alpha = proposals.acceptance(
            old.loss - state.cheap_loss, fine.loss - pending.cheap_loss, np.zeros(len(fine))
        )
        accepted = pending.uniforms < alpha
        tested = old.updated(np.arange(len(old)), fine, accepted)
        loss = np.where(accepted, pending.cheap_loss, state.cheap_loss)
        state = replace(state, tested=tested, cheap_loss=loss, sweeps=0)
        law = moment_law(Anomalies.of(tested.U))
        snapshot = Snapshot(
            tested.U, -tested.potential, law.log_density(tested.U), alpha, step_size=np.inf
        )
        message = f"acceptance {alpha.mean():.2f}"
        return state, Info.of(evaluations, "sampling", message, snapshot=snapshot)


def forgetting(exploration: Exploration) -> int:
    """Sweeps after which a particle has forgotten where it was, by its path."""
    if len(exploration.path) < 2 * MIXED:
        return 2 * MIXED
    times = max(1.0, path_times(np.stack(exploration.path)))
    return math.ceil(min(1.0, MIXED / 2 / times) * len(exploration.path))
