"""The published ensemble Gaussian process sampler: the baseline of its own improvements."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, cholesky

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem, Snapshot
from pymc_ensemble.samplers.linearization import Anomalies, moment_law
from pymc_ensemble.samplers.phases import RESTLESS, Standstill

from .basis import squared_distances
from .hyperparameters import HyperPrior, MarginalPosterior

HYPER_STEP = 0.01
LARGEST_HYPER_CHANGE = 0.3  # of a logarithm
LARGEST_MOVE = 0.1  # drift of one step, in ensemble sd
JITTER = 1e-6
PRIOR = HyperPrior(amplitude=(0.0, 1.5), shortest=1e-3)


@dataclass(frozen=True)
class PublishedSurrogateState:
    """State of the published scheme.

    Attributes
    ----------
    ensemble : Ensemble
        Conditioning points with their evaluations.
    hyperparameters : ndarray of shape (3,)
        Logarithms of amplitude, length (in the unit of the parameters) and noise.
    settling : Standstill
        Whether the ensemble has come to rest.
    """

    ensemble: Ensemble
    hyperparameters: Array
    settling: Standstill = RESTLESS
    burned_in: bool = False
    converged: bool = False


@dataclass(frozen=True)
class PublishedEpoch:
    """A pending epoch: moved particles, and the state that they come from."""

    points: Array
    hyperparameters: Array
    elapsed: float
    step: float
    origin: PublishedSurrogateState


@dataclass(frozen=True)
class PublishedSurrogate:
    """Overdamped Langevin dynamics on a process of mean zero through the present losses.

    The losses are centered and scaled to unit variance, the kernel is isotropic, and the logarithms
    of its parameters climb the log marginal posterior by gradient steps. The time step is bounded
    such that no drift exceeds a tenth of the ensemble's sd: with a fixed step the scheme diverges.

    Parameters
    ----------
    problem : InverseProblem
    largest_step : float
        Bound of the time step, in units in which the ensemble has unit variance.
    steps : int, default 5
        Langevin steps in an epoch, between which the conditioning points do not change.
    """

    problem: Problem
    largest_step: float
    steps: int = 5

    def start(self, ensemble: Ensemble) -> PublishedSurrogateState:
        """State for an evaluated ensemble."""
        unit = _unit(ensemble.U[ensemble.ok])
        return PublishedSurrogateState(ensemble, np.log([1.0, 2.0 * unit, 0.3]))

    def ask(
        self, state: PublishedSurrogateState, rng: np.random.Generator
    ) -> tuple[Array, PublishedEpoch]:
        """Points of the next epoch, shape (J, d), and what `tell` needs."""
        ensemble = state.ensemble
        ensemble.require(self.problem.dimension + 2)
        good = ensemble[ensemble.ok]
        center, unit = good.U.mean(0), _unit(good.U)
        x = (good.U - center) / unit
        losses = good.loss - good.loss.mean()
        scale = losses.std() or 1.0
        units = np.array([0.0, np.log(unit), 0.0])
        theta = state.hyperparameters - units
        objective = MarginalPosterior(
            x, losses[:, None] / scale, np.ones(len(x)), None, PRIOR, isotropic=True
        )
        lower, upper = PRIOR.bounds(1, 1)
        _, gradient = objective(theta)
        change = np.clip(-HYPER_STEP * gradient, -LARGEST_HYPER_CHANGE, LARGEST_HYPER_CHANGE)
        theta = np.clip(theta + change, lower, upper)
        amplitude, length, noise = np.exp(theta)

        def kernel(a: Array) -> Array:
            return amplitude * np.exp(-0.5 * squared_distances(a, x) / length**2)

        covariance = kernel(x)
        covariance[np.diag_indices(len(x))] += noise**2 + JITTER * amplitude
        weights = cho_solve((cholesky(covariance, lower=True), True), losses)
        elapsed, step, moved = 0.0, 0.0, x.copy()
        for _ in range(self.steps):
            T = kernel(moved) * weights
            slope = (T @ x - moved * T.sum(1)[:, None]) / length**2
            slope = slope + unit * self.problem.prior_gradient(center + unit * moved)
            steepest = np.sqrt((slope**2).sum(1)).max()
            step = min(self.largest_step, LARGEST_MOVE / max(steepest, 1e-300))
            noise_term = np.sqrt(2 * step) * rng.standard_normal(moved.shape)
            moved = moved - step * slope + noise_term
            elapsed += step
        points = ensemble.U.copy()
        points[ensemble.ok] = center + unit * moved
        if not ensemble.ok.all():  # failed members go on from copies of others
            source = rng.choice(np.flatnonzero(ensemble.ok), int((~ensemble.ok).sum()))
            points[~ensemble.ok] = points[source]
        return points, PublishedEpoch(points, theta + units, elapsed, step, state)

    def tell(
        self, state: PublishedSurrogateState, pending: PublishedEpoch, evaluations: Evaluations
    ) -> tuple[PublishedSurrogateState, Info]:
        """State after the epoch, and an account of it."""
        state = pending.origin
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        ensemble = state.ensemble.updated(np.arange(len(values)), values, values.ok)
        alpha = proposals.acceptance(
            state.ensemble.potential, values.potential, np.zeros(len(values))
        )
        anomalies = Anomalies.of(ensemble.U[ensemble.ok])
        settling = state.settling.after(anomalies, pending.elapsed)
        state = replace(
            state,
            ensemble=ensemble,
            hyperparameters=pending.hyperparameters,
            settling=settling,
            burned_in=settling.done,
            converged=state.converged or settling.done,
        )
        law = moment_law(anomalies)
        snapshot = Snapshot(
            ensemble.U, -ensemble.potential, law.log_density(ensemble.U), alpha, pending.step
        )
        n_failed = int(evaluations.failed.sum())
        message = f"step size {pending.step:.3g}"
        return state, Info("sampling", True, snapshot, len(values), n_failed, message)


def _unit(U: Array) -> float:
    """Root mean square of the standard deviations of an ensemble."""
    return float(np.sqrt(U.var(0).mean()))
