"""Ensemble Langevin sampler, which needs gradients.

Particles follow ``du = -C grad V dt + div C dt + sqrt(2 C) dW``, eq. (L1), with the covariance C of
the ensemble. It is the baseline for the samplers without gradients. It is exact for smooth models,
and gets stuck in the fluctuations of rough ones.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from . import langevin_steps
from .ensemble import Array, Ensemble, Origin, PriorAndLoss
from .linearization import Anomalies
from .options import require_positive
from .phases import EnsembleSampler, PhaseState
from .rest import AT_REST, RESTLESS
from .split_sweeps import GroupMove, Sweeps, SweepState


@dataclass(frozen=True)
class LangevinMove(GroupMove[SweepState]):
    """A pending round. The proposal ratio needs the gradients at its points.

    Attributes
    ----------
    move : ndarray of shape (n, r)
        The moves, in normalized coordinates.
    anomalies : Anomalies
        Anomalies of the partners, which define the coordinates.
    """

    move: Array = field(kw_only=True)
    anomalies: Anomalies = field(kw_only=True)


@dataclass(frozen=True)
class LangevinDynamics(Sweeps[SweepState, LangevinMove]):
    """Langevin steps. The outputs of a particle are its loss and the gradient of the loss.

    Parameters
    ----------
    problem : DifferentiableProblem
    """

    problem: PriorAndLoss

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> SweepState:
        """State for an evaluated ensemble."""
        rest = AT_REST if at_rest else RESTLESS
        return SweepState(ensemble.without_failures(), langevin_steps.EULER_STEP, rest=rest)

    def force(self, ensemble: Ensemble, anomalies: Anomalies) -> Array:
        """Minus the gradient of the potential, in normalized coordinates, shape (n, r)."""
        gradient = ensemble.Z[:, 1:] + self.problem.prior_gradient(ensemble.U)
        return -gradient @ anomalies.L

    def _move(
        self,
        state: SweepState,
        anomalies: Anomalies,
        drift: Array,
        step: float,
        rng: np.random.Generator,
    ) -> tuple[Array, LangevinMove]:
        """Step of the next group along its `drift`, shape (n, r)."""
        index = state.groups[0]
        noise = rng.standard_normal(drift.shape) @ anomalies.frame
        move = step * drift + np.sqrt(2 * step) * noise
        points = state.ensemble.U[index] + move @ anomalies.L.T
        uniforms = rng.random(len(index))
        return points, LangevinMove(
            index,
            points,
            np.empty(0),
            None,
            step,
            uniforms,
            state,
            move=move,
            anomalies=anomalies,
        )

    def log_ratio(self, pending: LangevinMove, values: Ensemble) -> Array:
        """Logarithm of the ratio of the densities of the move back, and forth."""
        step, move, anomalies = pending.dt, pending.move, pending.anomalies
        old = pending.origin.ensemble[pending.index]
        ok, back = values.ok, np.zeros_like(move)
        forth = move - step * self.force(old, anomalies)
        with np.errstate(invalid="ignore", over="ignore"):
            back[ok] = -move[ok] - step * self.force(values[ok], anomalies)
            return langevin_steps.log_ratio(forth, back, step)


@dataclass(frozen=True)
class EulerSteps(LangevinDynamics):
    """Euler steps of the whole ensemble, with the correction for its finite size.

    Parameters
    ----------
    problem : DifferentiableProblem
    largest_step : float, default 0.1
    """

    largest_step: float = langevin_steps.EULER_STEP

    def split(self, ensemble: Ensemble, rng: np.random.Generator) -> tuple[Array, ...]:
        """All members at once."""
        return (np.arange(len(ensemble)),)

    def ask(self, state: SweepState, rng: np.random.Generator) -> tuple[Array, LangevinMove]:
        """Points of the next round, shape (J, d), and what `tell` needs."""
        state = self.in_sweep(state, rng)
        ensemble = state.ensemble
        J, d = ensemble.U.shape
        anomalies = Anomalies.of(ensemble.U)
        force = self.force(ensemble, anomalies)
        step = langevin_steps.stable(self.largest_step, force)
        x = (ensemble.U - anomalies.mean) @ anomalies.L_pinv.T
        return self._move(state, anomalies, force + (d + 1) / J * x, step, rng)  # eq. (L2)


@dataclass(frozen=True)
class AdjustedSteps(LangevinDynamics):
    """Metropolis-adjusted steps of split halves, each in the covariance of the other."""

    tested: ClassVar[bool] = True

    def force(self, ensemble: Ensemble, anomalies: Anomalies) -> Array:
        """Clipped force. Without clipping, a particle in a steep tail would be stuck."""
        return langevin_steps.clipped(super().force(ensemble, anomalies), 1.0)

    def ask(self, state: SweepState, rng: np.random.Generator) -> tuple[Array, LangevinMove]:
        """Points of the next round, shape (n, d), and what `tell` needs."""
        state = self.in_sweep(state, rng)
        anomalies = Anomalies.of(state.ensemble.U[state.others[0]])
        force = self.force(state.ensemble[state.groups[0]], anomalies)
        return self._move(state, anomalies, force, state.dt, rng)

    def adapt(self, state: SweepState, pending: LangevinMove, alpha: Array) -> SweepState:
        """Tune the step to its acceptance."""
        dt = langevin_steps.tuned(state.dt, float(alpha.mean()))
        return super().adapt(replace(state, dt=dt), pending, alpha)

    def relaxation_time(self, state: SweepState, pending: LangevinMove) -> float:
        """Relaxation time of a sweep, in which rejected moves do not count."""
        return pending.dt * float(state.told["acceptance"].mean())


@dataclass(frozen=True)
class EnsembleLangevin(EnsembleSampler):
    """Ensemble Langevin sampler.

    Parameters
    ----------
    problem : DifferentiableProblem
        The outputs of its evaluations, shape (J, 1 + d), are the loss and its gradient.
    ensemble_size : int, optional
        Number of particles J; by default ``max(100, 4 (d + 2))``.
    adjust : bool, default False
        Metropolis-adjusted steps of split halves, each in the covariance of the other. Otherwise
        Euler steps of the whole ensemble, with the correction for its finite size.
    dt : float, optional
        Largest time step of the Euler scheme, by default 0.1. Steps are shorter if forces are
        strong.

    Raises
    ------
    ValueError
        If the ensemble is too small, or an option has a value that the sampler does not know.
    """

    adjust: bool = False
    dt: float | None = None

    def __post_init__(self) -> None:
        """Refuse contradicting options."""
        require_positive(dt=self.dt)
        if self.dt is not None and self.adjust:
            raise ValueError("dt has no meaning with adjust=True, which tunes it. Leave it out.")
        super().__post_init__()
        d = self.problem.dimension
        if self.size < (least := 2 * (d + 2) if self.adjust else d + 2):
            raise ValueError(
                f"ensemble_size={self.size} is too small for {d} parameters. Use at least {least}."
            )

    @cached_property
    def kernel(self) -> EulerSteps | AdjustedSteps:
        """Dynamics with or without a Metropolis test."""
        if self.adjust:
            return AdjustedSteps(self.problem)
        return EulerSteps(self.problem, langevin_steps.EULER_STEP if self.dt is None else self.dt)

    def origin(self, state: PhaseState) -> Origin:
        """What the draws follow. Without a test, Euler steps do not keep the density."""
        return Origin("density" if self.adjust else "approximate", self.adjust)
