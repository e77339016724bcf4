"""Draws from a surrogate posterior."""

from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem, Snapshot
from pymc_ensemble.samplers.kernels import NothingToFreeze
from pymc_ensemble.samplers.linearization import Anomalies, moment_law

from .chains import Chains, Ladder
from .learning import MOVES, WIDTHS, LearningState
from .verification import OUTLIERS

MOVES_BETWEEN_SWEEPS = 25


@dataclass(frozen=True)
class DrawsState:
    """State of the sampling from a frozen surrogate.

    Attributes
    ----------
    ensemble : Ensemble
        Particles with the losses that the surrogate predicts.
    ladder : Ladder
    learned : LearningState
    surest : float
        Standard deviation of the surrogate's loss up to which it is used. Where the surrogate knows
        less than at the verified particles, it may have holes, in which draws would gather.
    """

    ensemble: Ensemble
    ladder: Ladder
    learned: LearningState
    surest: float
    burned_in: bool = True
    converged: bool = True


@dataclass(frozen=True)
class SurrogateDraws(NothingToFreeze[DrawsState]):
    """Draw from the posterior mean of a frozen surrogate, without evaluations.

    Parameters
    ----------
    problem : InverseProblem
    """

    problem: Problem

    def start(self, learned: LearningState) -> DrawsState:
        """State after some moves on the mean, which adapt the steps for the last time."""
        rng, posterior = np.random.default_rng(learned.seed), learned.bound(self.problem).posterior
        assert posterior is not None
        x = posterior.whitening.coordinates(learned.ladder.particles[0])
        # a verification allows a few outliers, and these may already be in a hole
        surest = 1 + 2 * float(np.quantile(posterior.loss_sd(x), 1 - OUTLIERS))
        state = DrawsState(learned.ensemble, learned.ladder, learned, surest)
        ladder, _ = self._chains(state).run(learned.ladder, 2 * MOVES, rng)
        ensemble = posterior.predicted(ladder.particles[0], learned.archive.Z.shape[1])
        return replace(state, ensemble=ensemble, ladder=ladder)

    def ask(self, state: DrawsState, rng: np.random.Generator) -> tuple[Array, int]:
        """No points, and the seed of the moves."""
        return np.empty((0, self.problem.dimension)), int(rng.integers(2**63))

    def tell(
        self, state: DrawsState, pending: int, evaluations: Evaluations
    ) -> tuple[DrawsState, Info]:
        """State after a sweep, and its snapshot."""
        rng, chains = np.random.default_rng(pending), self._chains(state)
        ladder, acceptance = chains.run(state.ladder, MOVES_BETWEEN_SWEEPS, rng, adapt=False)
        ensemble = chains.posterior.predicted(ladder.particles[0], state.ensemble.Z.shape[1])
        state = replace(state, ensemble=ensemble, ladder=ladder)
        law = moment_law(Anomalies.of(ensemble.U))
        snapshot = Snapshot(
            ensemble.U,
            -ensemble.potential,
            law.log_density(ensemble.U),
            np.full(len(ensemble), acceptance[0]),
            float(ladder.steps[0]),
        )
        return state, Info.of(
            evaluations, "sampling", "draws from the surrogate", snapshot=snapshot
        )

    def _chains(self, state: DrawsState) -> Chains:
        learned = state.learned.bound(self.problem)
        assert learned.posterior is not None
        assert learned.region is not None
        return Chains(learned.posterior, WIDTHS**2, learned.region, surest=state.surest)
