"""Ensemble Kalman inversion: an ensemble moves from the prior to the data.

By Kalman updates with inflated noise it follows the laws ``exp(-t loss - prior)`` from the prior
on, until time one. If it goes on without end, it fits the data. Particles never leave the affine
span of their start.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Problem,
)
from pymc_ensemble.samplers.options import PATIENCE, require_counts, require_flags, require_positive
from pymc_ensemble.samplers.words import number

from .updates import FEWEST, Linearization, enough, momentum, perturbed, transformed

Target = Literal["posterior", "map", "fit"]
Update = Literal["transform", "perturbed"]
Localization = Callable[[Array], Array] | Array

OUTLIER = 1e9  # times the median output: only a simulator that has gone astray returns as much
NOTHING_TO_GAIN = 0.01  # nats that the loss can still fall by within the span
ROUNDING = 1e-12  # of times that add up to one
KEPT = 0.98  # share of its deviation that a redrawn member keeps, and less each time


class InversionProblem(Problem, Protocol):
    """A problem that knows the misfit that its noise explains."""

    def misfit(self, Z: Array) -> Array:
        """Misfit per datum, shape (J,): its expectation under the fit is one; NaN if unknown."""


@dataclass(frozen=True)
class InversionState:
    """State of an inversion.

    Attributes
    ----------
    ensemble : Ensemble
        Evaluated particles. Those that failed are drawn anew in the next round.
    time : float
        Exponent of the loss in the law of the ensemble.
    steps : int
        Updates so far.
    step_size : float
        Time of the last update.
    misfit : float
        Misfit per datum at the mean of the outputs.
    gain : float
        Fall of the potential that is still possible within the span, in nats.
    information : float
        Dimensions that the data inform, by the first ensemble.
    redraws : int
        Rounds in a row in which particles were drawn anew.
    before : ndarray of shape (J, d)
        Particles before their momentum carried them on.
    done, converged : bool
        Whether the inversion is over, and whether it has reached its target.
    """

    ensemble: Ensemble
    time: float = 0.0
    steps: int = 0
    step_size: float = np.nan
    misfit: float = np.nan
    gain: float = np.inf
    information: float = np.nan
    redraws: int = 0
    before: Array | None = None
    done: bool = False
    converged: bool = False

    @property
    def burned_in(self) -> bool:
        """Whether the inversion is over."""
        return self.done


@dataclass(frozen=True)
class Round:
    """A pending round: the members to evaluate, their points, and the state that follows."""

    index: Array
    points: Array
    following: InversionState


@dataclass(frozen=True)
class Inversion:
    """Kernel of ensemble Kalman inversion.

    Parameters
    ----------
    problem : InversionProblem
    target : {"posterior", "map", "fit"}, default "posterior"
        Follow the posterior, and stop at time one. Or minimize loss and prior potential. Or
        minimize the loss, until its misfit is that of the noise.
    update : {"transform", "perturbed"}, default "transform"
        Whether particles are moved by one deterministic map, or by data with noise.
    step : "misfit" or float, default "misfit"
        Time of an update: from the data misfit controller, or fixed.
    momentum : bool, default False
        Whether particles have a momentum, as in Nesterov's method.
    inflation : float, default 1.0
        Factor of the spread after each update.
    localization : callable or ndarray of shape (d, K), optional
        Weights of the covariances between parameters and outputs, or a function that makes them
        from the correlations.
    max_steps : int, default 50
        Updates after which the inversion ends.
    """

    problem: InversionProblem
    target: Target = "posterior"
    update: Update = "transform"
    step: Literal["misfit"] | float = "misfit"
    momentum: bool = False
    inflation: float = 1.0
    localization: Localization | None = None
    max_steps: int = 50

    def __post_init__(self) -> None:
        """Refuse wrong options, and options that exclude each other."""
        for name, known in (("target", get_args(Target)), ("update", get_args(Update))):
            if getattr(self, name) not in known:
                choice = " or ".join(f'"{one}"' for one in known)
                raise ValueError(f"{name} must be {choice}, not {getattr(self, name)!r}.")
        if isinstance(self.step, str) and self.step != "misfit":
            raise ValueError(f'step must be "misfit" or a positive number, not {self.step!r}.')
        if not isinstance(self.step, str):
            require_positive(step=self.step)
        require_flags(momentum=self.momentum)
        require_positive(inflation=self.inflation)
        require_counts(1, max_steps=self.max_steps)
        if self.momentum and self.target == "posterior":
            raise ValueError(
                'momentum=True overshoots the posterior at time one. Use it with target="map" or '
                'target="fit".'
            )
        if self.localization is not None and (self.update == "transform" or self.target == "map"):
            raise ValueError(
                "localization weights covariances between parameters and outputs, but "
                'update="transform" and the prior of target="map" have none. Use '
                'update="perturbed" with target="posterior" or target="fit".'
            )

    # -- rounds ---------------------------------------------------------------------------------

    def start(self, ensemble: Ensemble) -> InversionState:
        """State for an evaluated ensemble."""
        ensemble = without_outliers(ensemble, ensemble)
        self._require_survivors(ensemble)
        return self._judged(InversionState(ensemble))

    def ask(self, state: InversionState, rng: np.random.Generator) -> tuple[Array, Round]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        ensemble = state.ensemble
        if not ensemble.ok.all():
            index = np.flatnonzero(~ensemble.ok)
            points = drawn_anew(ensemble, KEPT ** (state.redraws + 1) ** 2, rng)
            return points, Round(index, points, replace(state, redraws=state.redraws + 1))
        law = Linearization.of(self.problem, ensemble, self.target == "map")
        dt = self._falling(law, ensemble, self._time_step(state, law))
        points = self._moved(law, ensemble, dt, rng)
        time = state.time + dt
        if self.target == "posterior" and time > 1 - ROUNDING:
            time = 1.0
        before = points
        if self.momentum:
            last = ensemble.U if state.before is None else state.before
            points = points + momentum(state.steps + 1) * (points - last)
        following = replace(
            state, time=time, steps=state.steps + 1, step_size=dt, before=before, redraws=0
        )
        return points, Round(np.arange(len(points)), points, following)

    def tell(
        self, state: InversionState, pending: Round, evaluations: Evaluations
    ) -> tuple[InversionState, Info]:
        """State after the round, and an account of it."""
        values = Ensemble.evaluated(self.problem, pending.points, evaluations)
        everyone = np.ones(len(values), dtype=bool)
        ensemble = state.ensemble.updated(pending.index, values, everyone)
        ensemble = without_outliers(ensemble, state.ensemble)
        self._require_survivors(ensemble)
        following = self._judged(replace(pending.following, ensemble=ensemble))
        n_failed = int((~ensemble.ok[pending.index]).sum())
        complete = bool(ensemble.ok.all())
        if not complete and following.redraws >= PATIENCE:
            raise EnsembleFailure(
                f"{n_failed} of {len(ensemble)} members still fail after {PATIENCE} rounds of "
                "redrawing them from the others. Start where the forward map works."
            )
        message = f"time {following.time:.3g}, misfit {number(following.misfit, '.3g')} per datum"
        return following, Info("inversion", complete, None, len(values), n_failed, message)

    # -- what it is made of ---------------------------------------------------------------------

    def _require_survivors(self, ensemble: Ensemble) -> None:
        J, n = len(ensemble), int(ensemble.ok.sum())
        if not enough(n, J):
            raise EnsembleFailure(
                f"Only {n} of {J} members ({n / J:.0%}) could be evaluated. To redraw the others, "
                f"a quarter are needed, and at least {FEWEST}. Start where the forward map works."
            )

    def _moved(
        self, law: Linearization, ensemble: Ensemble, dt: float, rng: np.random.Generator
    ) -> Array:
        """Particles after the update."""
        if self.update == "transform":
            return transformed(law, dt, self.inflation)
        slopes = self.problem.prior_gradient(ensemble.U) if self.target == "map" else None
        U = perturbed(law, ensemble, slopes, dt, self._weights(law), rng)
        return U if self.inflation == 1 else U.mean(0) + self.inflation * (U - U.mean(0))

    def _weights(self, law: Linearization) -> Array | None:
        """Weights of the covariances between parameters and outputs."""
        if self.localization is None:
            return None
        shape = law.E.shape[1], law.F.shape[1]
        weights = self.localization
        if callable(weights):
            scales = [np.sqrt((part**2).sum(0)) for part in (law.E, law.F)]
            u, z = (np.where(scale > 0, scale, 1.0) for scale in scales)
            weights = weights((law.E / u).T @ (law.F / z))
        weights = np.asarray(weights, dtype=float)
        if weights.shape != shape or not np.isfinite(weights).all():
            raise ValueError(
                f"localization gives weights of shape {weights.shape}. They must be finite, and "
                f"of shape {shape}: parameters by outputs."
            )
        return weights

    def _time_step(self, state: InversionState, law: Linearization) -> float:
        """Time of the next update."""
        dt = law.controlled_step if isinstance(self.step, str) else float(self.step)
        if self.target == "posterior":
            return min(dt, 1 - state.time)
        if isinstance(self.step, str) and state.time > 1:
            return max(dt, state.time)  # eq. (V6)
        return dt

    def _falling(self, law: Linearization, ensemble: Ensemble, dt: float) -> float:
        """Halve a time step until it lowers the potential, by predicted outputs.

        A quadratic loss always falls. Others may not: the loss of counts has a curvature that grows
        with the outputs, and a step that is too long ends far beyond the data.
        """
        if self.problem.quadratic_loss:
            return dt
        present = self._potential(law.mean, ensemble.Z.mean(0))
        while dt > 0:
            du, dz = law.mean_step(dt)
            if self._potential(law.mean + du, ensemble.Z.mean(0) + dz) <= present:
                break
            dt /= 2  # eq. (V8)
        return dt

    def _potential(self, u: Array, z: Array) -> float:
        """Potential to minimize, at one point u with outputs z."""
        loss = float(self.problem.loss(z[None])[0])
        return loss + (
            float(self.problem.prior_potential(u[None])[0]) if self.target == "map" else 0.0
        )

    def _judged(self, state: InversionState) -> InversionState:
        """State with its misfit, and whether it has arrived."""
        ensemble = state.ensemble
        if not ensemble.ok.all():
            return state
        misfit = float(self.problem.misfit(ensemble.Z.mean(0, keepdims=True))[0])
        law = Linearization.of(self.problem, ensemble, self.target != "fit")
        state = replace(state, misfit=misfit, gain=law.gain)
        if np.isnan(state.information):
            if law.prior is not None:
                law = Linearization.of(self.problem, ensemble, False)
            state = replace(state, information=law.information)
        match self.target:
            case "posterior":
                arrived = state.time == 1
            case "map":
                arrived = state.gain < NOTHING_TO_GAIN
            case "fit":
                arrived = misfit <= 1
        stuck = self.target == "fit" and state.gain < NOTHING_TO_GAIN
        ended = arrived or stuck or state.steps >= self.max_steps
        return replace(state, done=bool(ended), converged=bool(arrived))


def drawn_anew(ensemble: Ensemble, kept: float, rng: np.random.Generator) -> Array:
    """Members that replace those that failed: a mixture of the old ones and of the others' law.

    A correlation by chance of the new part with the old one would make the covariance noisy, and
    each update would turn this into a loss of variance. So the correlation is removed.
    """
    good = ensemble.U[ensemble.ok]
    mean, spread = good.mean(0), (good - good.mean(0)) / np.sqrt(len(good) - 1)
    old = ensemble.U[~ensemble.ok] - mean
    n = len(old)
    xi = rng.standard_normal((n, len(good)))
    directions = np.column_stack([np.ones(n), old @ np.linalg.pinv(spread)])
    taken = min(old.shape[1] + 1, n // 2)  # half of the noise must remain, to be scaled up
    Q = np.linalg.svd(directions, full_matrices=False)[0][:, :taken]
    xi = np.sqrt(n / (n - taken)) * (xi - Q @ (Q.T @ xi))
    return mean + kept * old + np.sqrt(1 - kept**2) * xi @ spread  # eq. (V12)


def without_outliers(ensemble: Ensemble, others: Ensemble) -> Ensemble:
    """Ensemble in which outputs far beyond those of `others` count as failed."""
    size = np.abs(ensemble.Z).max(1, initial=0.0)
    usual = np.median(np.abs(others.Z[others.ok]).max(1, initial=0.0)) if others.ok.any() else 0.0
    far = (size > OUTLIER * usual) & (usual > 0)
    if not far.any():
        return ensemble
    Z, loss = ensemble.Z.copy(), ensemble.loss.copy()
    Z[far], loss[far] = np.nan, np.inf
    return replace(ensemble, Z=Z, loss=loss)
