"""The published ensemble Kalman sampler: the baseline of every comparison."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem, Snapshot
from pymc_ensemble.samplers.linearization import Anomalies, GaussianLaw, fit_law, prior_slope
from pymc_ensemble.samplers.tempering import standstill

LOST = 0.01  # would-be acceptance of an ensemble that has run away


@dataclass(frozen=True)
class PublishedState:
    """State of the published scheme."""

    ensemble: Ensemble
    sweeps: int = 0
    reference: Anomalies | None = None
    settled: int = 0


@dataclass(frozen=True)
class PublishedMove:
    """A pending round of the published scheme."""

    points: Array
    law: GaussianLaw
    log_ratio: Array
    dt: float
    origin: PublishedState


@dataclass(frozen=True)
class PublishedScheme:
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

    def start(self, ensemble: Ensemble) -> PublishedState:
        """State for an evaluated ensemble."""
        return PublishedState(ensemble)

    def ask(self, state: PublishedState, rng: np.random.Generator) -> tuple[Array, PublishedMove]:
        """Points of the next round, shape (J, d), and what `tell` needs to judge them."""
        ensemble = state.ensemble
        ensemble.require(self.min_members)
        members = ensemble[ensemble.ok]
        law = fit_law(self.problem, members)
        J, r = len(members), law.anomalies.rank
        A, L = law.map.slope, law.anomalies.L
        gradients = self.problem.loss_gradient(members.Z)
        dt = min(1 / (interaction_norm(members.Z, gradients) + 1e-8), self.largest_step)
        _, slope = prior_slope(self.problem, law.anomalies, members.U)
        x = law.map.coordinates(members.U)
        drift = -gradients @ A - self.problem.prior_gradient(members.U) @ L
        if self.corrected:
            drift = drift + (r + 1) / J * x
        step = np.linalg.solve(np.eye(len(slope)) + dt * slope, dt * drift.T).T
        noise = rng.standard_normal((J, r)) @ law.anomalies.frame
        moved = x + step + np.sqrt(2 * dt) * noise
        points, log_ratio = ensemble.U.copy(), np.zeros(len(ensemble))
        points[ensemble.ok] = law.map.particles(moved)
        log_ratio[ensemble.ok] = 0.5 * (law.distance(moved) - law.distance(x))
        return points, PublishedMove(points, law, log_ratio, dt, state)

    def tell(
        self, state: PublishedState, pending: PublishedMove, evaluations: Evaluations
    ) -> tuple[PublishedState, Info]:
        """State after the round, and an account of it."""
        state = pending.origin
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        alpha = proposals.acceptance(state.ensemble.potential, values.potential, pending.log_ratio)
        ensemble = state.ensemble.updated(np.arange(len(values)), values, values.ok)
        snapshot = Snapshot(
            ensemble.U,
            -ensemble.potential,
            pending.law.log_density(ensemble.U),
            alpha,
            pending.dt,
        )
        anomalies = Anomalies.of(ensemble.U[ensemble.ok])
        sound = values.ok.any() and alpha.mean() > LOST  # else it may stand still far away
        hit = sound and state.reference is not None and standstill(state.reference, anomalies)
        state = PublishedState(
            ensemble, state.sweeps + 1, anomalies, state.settled + 1 if hit else 0
        )
        n_failed = int(evaluations.failed.sum())
        message = f"step size {pending.dt:.3g}"
        return state, Info("sampling", True, snapshot, len(values), n_failed, message)


def interaction_norm(Z: Array, gradients: Array) -> float:
    """Frobenius norm of ``D_ik = (1/J) (z_k - mean z)^T gradient_i``, without forming a large D."""
    J, K = Z.shape
    F = Z - Z.mean(0)
    if J <= K:
        return np.linalg.norm(gradients @ F.T) / J
    return np.sqrt(max(((F.T @ F) * (gradients.T @ gradients)).sum(), 0.0)) / J
