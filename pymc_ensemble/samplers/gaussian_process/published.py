"""The published ensemble Gaussian process sampler, which serves as a baseline."""

from dataclasses import dataclass, field, replace

import numpy as np
import scipy  # parts of it are loaded when they are used first

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem
from pymc_ensemble.samplers.langevin_steps import stable
from pymc_ensemble.samplers.rest import AT_REST, RESTLESS
from pymc_ensemble.samplers.split_sweeps import GroupMove, Sweeps, SweepState

from .basis import squared_distances
from .hyperparameters import HyperPrior, MarginalPosterior

HYPER_STEP = 0.01
LARGEST_HYPER_CHANGE = 0.3  # change of a logarithm
JITTER = 1e-6
PRIOR = HyperPrior(amplitude=(0.0, 1.5), shortest=1e-3)


@dataclass(frozen=True)
class PublishedSurrogateState(SweepState):
    """State of the published scheme, with the conditioning points as its ensemble.

    Attributes
    ----------
    hyperparameters : ndarray of shape (3,)
        Logarithms of amplitude, length (in the unit of the parameters) and noise.
    """

    hyperparameters: Array = field(kw_only=True)


@dataclass(frozen=True)
class PublishedEpoch(GroupMove[PublishedSurrogateState]):
    """A pending epoch: moved particles, and the state that they come from.

    Attributes
    ----------
    hyperparameters : ndarray of shape (3,)
    elapsed : float
        Time of all steps of the epoch.
    """

    hyperparameters: Array = field(kw_only=True)
    elapsed: float = field(kw_only=True)


@dataclass(frozen=True)
class PublishedSurrogate(Sweeps[PublishedSurrogateState, PublishedEpoch]):
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

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> PublishedSurrogateState:
        """State for an evaluated ensemble."""
        ensemble = ensemble.without_failures()
        return PublishedSurrogateState(
            ensemble,
            rest=AT_REST if at_rest else RESTLESS,
            hyperparameters=np.log([1.0, 2.0 * _unit(ensemble.U), 0.3]),
        )

    def split(self, ensemble: Ensemble, rng: np.random.Generator) -> tuple[Array, ...]:
        """All members at once."""
        return (np.arange(len(ensemble)),)

    def ask(
        self, state: PublishedSurrogateState, rng: np.random.Generator
    ) -> tuple[Array, PublishedEpoch]:
        """Points of the next epoch, shape (J, d), and what `tell` needs."""
        state = self.in_sweep(state, rng)
        ensemble = state.ensemble
        center, unit = ensemble.U.mean(0), _unit(ensemble.U)
        x = (ensemble.U - center) / unit
        losses = ensemble.loss - ensemble.loss.mean()
        units = np.array([0.0, np.log(unit), 0.0])
        theta = _climbed(state.hyperparameters - units, x, losses / (losses.std() or 1.0))
        amplitude, length, noise = np.exp(theta)

        def kernel(a: Array) -> Array:
            return amplitude * np.exp(-0.5 * squared_distances(a, x) / length**2)

        covariance = kernel(x)
        covariance[np.diag_indices(len(x))] += noise**2 + JITTER * amplitude
        factor = scipy.linalg.cholesky(covariance, lower=True)
        weights = scipy.linalg.cho_solve((factor, True), losses)
        elapsed, step, moved = 0.0, 0.0, x
        for _ in range(self.steps):
            T = kernel(moved) * weights
            slope = (T @ x - moved * T.sum(1)[:, None]) / length**2
            slope = slope + unit * self.problem.prior_gradient(center + unit * moved)
            step = stable(self.largest_step, slope)
            # eq. (P5)
            moved = moved - step * slope + np.sqrt(2 * step) * rng.standard_normal(moved.shape)
            elapsed += step
        points = center + unit * moved
        return points, PublishedEpoch(
            state.groups[0],
            points,
            np.zeros(len(points)),
            None,
            step,
            np.empty(0),
            state,
            hyperparameters=theta + units,
            elapsed=elapsed,
        )

    def tell(
        self, state: PublishedSurrogateState, pending: PublishedEpoch, evaluations: Evaluations
    ) -> tuple[PublishedSurrogateState, Info]:
        """State after the epoch, and an account of it."""
        state, info = super().tell(state, pending, evaluations)
        return replace(state, hyperparameters=pending.hyperparameters), info

    def relaxation_time(self, state: PublishedSurrogateState, pending: PublishedEpoch) -> float:
        """Time of all steps of the epoch."""
        return pending.elapsed


def _climbed(theta: Array, x: Array, values: Array) -> Array:
    """Hyperparameters after one gradient step on their log posterior."""
    objective = MarginalPosterior(x, values[:, None], np.ones(len(x)), None, PRIOR, isotropic=True)
    _, gradient = objective(theta)
    change = np.clip(-HYPER_STEP * gradient, -LARGEST_HYPER_CHANGE, LARGEST_HYPER_CHANGE)
    return np.clip(theta + change, *PRIOR.bounds(1, 1))


def _unit(U: Array) -> float:
    """Root mean square of the standard deviations of an ensemble."""
    return float(np.sqrt(U.var(0).mean()))
