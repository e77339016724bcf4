"""Sweeps by exact Ornstein-Uhlenbeck steps of split halves."""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem
from pymc_ensemble.samplers.langevin_steps import EULER_STEP
from pymc_ensemble.samplers.linearization import (
    FARTHEST,
    NEARLY_LINEAR,
    SMALLEST_RATE,
    GaussianLaw,
    fit_law,
)
from pymc_ensemble.samplers.rest import AT_REST, FORGOTTEN, Countdown
from pymc_ensemble.samplers.split_sweeps import Half, SplitSweeps, SweepState
from pymc_ensemble.samplers.weights import plausible

DEFAULT_STEP = 2.0
EXTRA_VARIANCE = 0.1  # most that the pointwise force may add: it bounds the time step


@dataclass(frozen=True)
class Relaxation(SplitSweeps):
    """Exact Ornstein-Uhlenbeck transitions of the linearized dynamics (no Metropolis test).

    Parameters
    ----------
    problem : InverseProblem
    min_members : int
    dt : float, default 2.0
        Time step. The pointwise force may need a shorter one.
    """

    dt: float = DEFAULT_STEP

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> SweepState:
        """State for an evaluated ensemble, with the force that suits the problem."""
        if self.problem.quadratic_loss and self.problem.gaussian_prior:
            return SweepState(ensemble, self.dt)
        pointwise, largest = pointwise_step(self.problem, ensemble)
        if not pointwise:
            return SweepState(ensemble, self.dt)
        dt = min(self.dt, largest)
        rest = AT_REST if at_rest else Countdown(int(np.ceil(2 / dt)))  # forget the linear burn-in
        return SweepState(ensemble, dt, True, rest)

    def propose(
        self, state: SweepState, half: Half, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Relax `group` towards the law of its partners over the time ``state.dt``."""
        law, group = half.law, half.group
        force = law.linear_force(law.map.coordinates(group.U))
        if state.pointwise:
            force = pointwise_force(self.problem, law, group)
        return proposals.relaxation(law, group.U, force, state.dt, rng)


@dataclass(frozen=True)
class WholeRelaxation(Relaxation):
    """The same for small ensembles: all particles move together, with their own statistics."""

    dt: float = EULER_STEP

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> SweepState:
        """State for an evaluated ensemble, without resampling, which would lose directions."""
        sweeps = int(np.ceil(FORGOTTEN / self.dt))
        return SweepState(ensemble, self.dt, rest=AT_REST if at_rest else Countdown(sweeps))

    def split(self, ensemble: Ensemble, rng: np.random.Generator) -> tuple[Array, ...]:
        """All members at once."""
        return (rng.permutation(len(ensemble)),)

    def propose(
        self, state: SweepState, half: Half, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Relax with the finite-ensemble correction ``((r + 1) / J) (u - mean)`` of rank r."""
        law, group = half.law, half.group
        J, r = len(group), law.anomalies.rank
        x = law.map.coordinates(group.U)
        force = law.linear_force(x) + (r + 1) / J * x  # as in eq. (K1)
        return proposals.relaxation(law, group.U, force, state.dt, rng)


def pointwise_force(problem: Problem, law: GaussianLaw, group: Ensemble) -> Array:
    """Force from each particle's own output, shape (n, r), as in the continuous-time dynamics.

    If it deviates too much from the force of the linear law, the deviation is shortened.
    """
    linear = law.linear_force(law.map.coordinates(group.U))
    likelihood = problem.loss_gradient(group.Z) @ law.map.slope
    prior = problem.prior_gradient(group.U) @ law.anomalies.L
    deviation = -(likelihood + prior) - linear  # eq. (K11)
    largest = FARTHEST * np.sqrt(group.U.shape[1])
    size = np.linalg.norm(deviation, axis=1, keepdims=True)
    return linear + deviation * np.minimum(1.0, largest / np.maximum(size, SMALLEST_RATE))


def pointwise_step(problem: Problem, ensemble: Ensemble) -> tuple[bool, float]:
    """Whether the pointwise force is better, and the time step that bounds its extra variance.

    The pointwise force is right if its deviation from the linear one comes from the loss or the
    prior, and not from the forward map.

    Returns
    -------
    pointwise : bool
    dt : float
        Bound of the time step. ``inf`` if the two forces agree.
    """
    members = ensemble[ensemble.ok]
    law = fit_law(problem, members, plausible(members.potential, members.U.shape[1]).astype(float))
    force = pointwise_force(problem, law, members)
    deviation = force - law.linear_force(law.map.coordinates(members.U))
    d = members.U.shape[1]
    spread = ((deviation - deviation.mean(0)) ** 2).sum(1).mean()
    size = (deviation**2).sum(1).mean()
    if size < 1e-6 * d:
        return False, np.inf
    curvature = problem.curvature(law.map.output_mean[None])[0]
    nonlinearity = curvature @ ((members.Z - law.map(members.U)) ** 2).mean(0)
    # eqs. (K12) and (K13)
    return bool(nonlinearity < NEARLY_LINEAR * size), 2 * EXTRA_VARIANCE * d / spread
