"""The published ensemble Kalman sampler, which serves as a baseline."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, EnsembleFailure, Problem
from pymc_ensemble.samplers.linearization import fit_law, prior_slope
from pymc_ensemble.samplers.rest import AT_REST, RESTLESS
from pymc_ensemble.samplers.split_sweeps import GroupMove, Sweeps, SweepState

LOST = 0.01  # would-be acceptance of an ensemble that has run away


@dataclass(frozen=True)
class PublishedScheme(Sweeps[SweepState, GroupMove[SweepState]]):
    """Linearly implicit split-step Euler scheme with an adaptive time step.

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
    largest_step : float, default inf
        Bound of the time step ``1 / |D|_F``.
    corrected : bool, default True
        Whether to add the finite-ensemble correction, which the printed scheme omits.
    """

    problem: Problem
    min_members: int
    largest_step: float = np.inf
    corrected: bool = True

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> SweepState:
        """State for an evaluated ensemble."""
        return SweepState(ensemble.without_failures(), rest=AT_REST if at_rest else RESTLESS)

    def split(self, ensemble: Ensemble, rng: np.random.Generator) -> tuple[Array, ...]:
        """All members at once."""
        return (np.arange(len(ensemble)),)

    def ask(
        self, state: SweepState, rng: np.random.Generator
    ) -> tuple[Array, GroupMove[SweepState]]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        state.ensemble.require(self.min_members)
        state = self.in_sweep(state, rng)
        members = state.ensemble
        law = fit_law(self.problem, members)
        J, r = len(members), law.anomalies.rank
        A, L = law.map.slope, law.anomalies.L
        gradients = self.problem.loss_gradient(members.Z)
        dt = min(1 / (interaction_norm(members.Z, gradients) + 1e-8), self.largest_step)  # eq. (P1)
        _, slope = prior_slope(self.problem, law.anomalies, members.U)
        x = law.map.coordinates(members.U)
        drift = -gradients @ A - self.problem.prior_gradient(members.U) @ L
        if self.corrected:
            drift = drift + (r + 1) / J * x
        try:
            step = np.linalg.solve(np.eye(len(slope)) + dt * slope, dt * drift.T).T  # eq. (P2)
        except np.linalg.LinAlgError as error:
            raise EnsembleFailure(
                "The implicit step of the published scheme has no solution: the ensemble has "
                "moved to where the prior is not log-concave.",
                'Use scheme="exact", the default.',
            ) from error
        noise = rng.standard_normal((J, r)) @ law.anomalies.frame
        moved = x + step + np.sqrt(2 * dt) * noise
        points = law.map.particles(moved)
        log_ratio = 0.5 * (law.distance(moved) - law.distance(x))
        return points, GroupMove(state.groups[0], points, log_ratio, law, dt, np.empty(0), state)

    def adapt(self, state: SweepState, pending: GroupMove[SweepState], alpha: Array) -> SweepState:
        """Wait for rest. An ensemble whose moves are all implausible stands still, too."""
        if alpha.mean() > LOST:
            return super().adapt(state, pending, alpha)
        return state


def interaction_norm(Z: Array, gradients: Array) -> float:
    """Frobenius norm of ``D_ik = (1/J) (z_k - mean z)^T gradient_i``, without forming a large D."""
    J, K = Z.shape
    F = Z - Z.mean(0)
    if J <= K:
        return np.linalg.norm(gradients @ F.T) / J
    return np.sqrt(max(((F.T @ F) * (gradients.T @ gradients)).sum(), 0.0)) / J
