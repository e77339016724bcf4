"""Descent to the posterior mode, by gradients that explorers measure.

It is the dynamics of a walker without noise, with a new step size in every step.
"""

from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, EnsembleFailure, Evaluations, Info
from pymc_ensemble.samplers.langevin_steps import clipped
from pymc_ensemble.samplers.words import number

from .explorers import SMOOTH_DISTANCE, Explorers, Measurement, Preconditioner

SMALLEST_STEP = 1e-7  # if so short a step does not descend, differences are not precise enough

Step = tuple[Array, Array]  # points of the pending step, and directions of the explorers


@dataclass(frozen=True)
class DescentState:
    """State between two steps.

    Attributes
    ----------
    U : ndarray of shape (1, d)
        The best point so far.
    preconditioner : Preconditioner
    step_size : float
        Size of the next step, in units of the preconditioner.
    measurement : Measurement or None
        Measurement at the point. None before its first evaluation.
    steps : int
        Steps that were tried.
    converged, stuck : bool
        Whether the gradient is below its tolerance, and whether no step descends any more.
    """

    U: Array
    preconditioner: Preconditioner
    step_size: float = 1.0
    measurement: Measurement | None = None
    steps: int = 0
    converged: bool = False
    stuck: bool = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.converged or self.stuck

    @property
    def potential(self) -> float:
        """Negative log density of the point."""
        return np.inf if self.measurement is None else float(self.measurement.centers.potential[0])

    @property
    def loss(self) -> float:
        """Loss of the outputs of the point."""
        return np.inf if self.measurement is None else float(self.measurement.centers.loss[0])

    @property
    def slope(self) -> float:
        """Length of the gradient in units of the preconditioner, per root of the dimension."""
        if self.measurement is None:
            return np.inf
        return float(np.sqrt((self.measurement.drift**2).mean()))


@dataclass(frozen=True)
class Descent:
    """Steps of Barzilai and Borwein, shortened until they descend.

    Parameters
    ----------
    explorers : Explorers
    tolerance : float, default 1e-3
        Root mean square of the gradient, in units of the preconditioner, at which the search ends.
        It is roughly the distance to the mode in posterior standard deviations.
    """

    explorers: Explorers
    tolerance: float = SMOOTH_DISTANCE

    def ask(self, state: DescentState, rng: np.random.Generator) -> tuple[Array, Step]:
        """Points of the next step: its end, and the explorers there."""
        proposed, root = state.U, state.preconditioner.root
        if state.measurement is not None:
            proposed = state.U + self._step(state) @ root.T
        directions = self.explorers.directions(1, rng)
        points = self.explorers.points(proposed, directions, root)
        return points, (points, directions)

    def tell(
        self, state: DescentState, pending: Step, evaluations: Evaluations
    ) -> tuple[DescentState, Info]:
        """State after the step, and an account of it.

        Raises
        ------
        EnsembleFailure
            If the forward map fails at the first point.
        """
        points, directions = pending
        old = state.measurement
        new = self.explorers.measure(points, evaluations, directions, state.preconditioner.root)
        if old is None:
            if not new.heard[0]:
                raise EnsembleFailure("The forward map fails at the start.")
            state = replace(state, measurement=new)
        else:
            step = self._step(state)[0]
            descended = new.heard[0] and new.centers.potential[0] < state.potential
            size = state.step_size / 4
            if descended:
                size = self._next_size(step, old.drift[0] - new.drift[0], state.step_size)
                state = replace(state, U=new.centers.U, measurement=new)
            state = replace(
                state, step_size=size, steps=state.steps + 1, stuck=size < SMALLEST_STEP
            )
        state = replace(state, converged=state.slope < self.tolerance)
        message = f"potential {number(state.potential, '.6g')}, slope {number(state.slope, '.2g')}"
        return state, Info.of(evaluations, "sampling", message)

    @staticmethod
    def _step(state: DescentState) -> Array:
        """Step in units of the preconditioner, shape (1, d), not far out of the posterior."""
        drift = state.measurement.drift  # type: ignore[union-attr]
        return clipped(state.step_size * drift, 1.0)

    @staticmethod
    def _next_size(step: Array, change: Array, size: float) -> float:
        """Step size that the `change` of the gradient along a step suggests."""
        curvature = step @ change
        return float(step @ step / curvature) if curvature > 0 else 2 * size  # eq. (M9)
