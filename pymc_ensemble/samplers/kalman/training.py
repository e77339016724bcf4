"""Training by an ensemble: the loss of one batch of data after another, without derivatives."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    EnsembleFailure,
    Evaluations,
    Info,
    Problem,
)
from pymc_ensemble.samplers.options import require_flags, require_not_negative, require_positive

from .updates import enough, momentum

POWERS = 20  # powers of a matrix that give its largest singular value up to a few percent
SMALLEST = np.finfo(float).tiny

Spread = float | Literal["replace"]


@dataclass(frozen=True)
class TrainingState:
    """State of a training.

    Attributes
    ----------
    particles : ndarray of shape (J, d)
    before : ndarray of shape (J, d) or None
        Particles before their momentum carried them on.
    steps : int
        Steps so far.
    loss : float
        Mean loss of the particles on the last batch.
    """

    particles: Array
    before: Array | None = None
    steps: int = 0
    loss: float = np.nan

    @property
    def mean(self) -> Array:
        """Mean particle, shape (d,): what is trained."""
        return self.particles.mean(0, dtype=float)


@dataclass(frozen=True)
class Training:
    """Kernel of the training by ensemble Kalman inversion (Kovachki and Stuart 2019).

    Parameters
    ----------
    problem : Problem
        Problem whose loss is that of the present batch of data.
    scale : ndarray of shape (d,)
        Standard deviations of the prior.
    step : float, default 3.0
        Length h of a step.
    spread : float or "replace", default 0.02
        Standard deviation of the noise that is added to particles in each step, in units of
        `scale`. With "replace", particles are drawn anew about their mean, closer in each step.
    momentum : bool, default False
        Whether particles have a momentum, as in Nesterov's method.
    """

    problem: Problem
    scale: Array
    step: float = 3.0
    spread: Spread = 0.02
    momentum: bool = False

    def __post_init__(self) -> None:
        """Refuse wrong options, and options that exclude each other."""
        require_positive(step=self.step)
        require_flags(momentum=self.momentum)
        if isinstance(self.spread, str):
            if self.spread != "replace":
                raise ValueError(f'spread must be a number or "replace", not {self.spread!r}.')
        else:
            require_not_negative(spread=self.spread)
            if self.spread and self.momentum:
                raise ValueError(
                    f"spread={self.spread} with momentum=True: the ensemble would grow without "
                    'bound. Use spread=0 or spread="replace", or no momentum.'
                )

    def ask(self, state: TrainingState, rng: np.random.Generator) -> tuple[Array, int]:
        """Points of the next step, shape (J, d), and the seed of its noise.

        The noise itself would take as much memory as the particles.
        """
        return state.particles, int(rng.integers(2**63))

    def tell(
        self, state: TrainingState, pending: int, evaluations: Evaluations
    ) -> tuple[TrainingState, Info]:
        """State after the step, and an account of it."""
        rng, n = np.random.default_rng(pending), state.steps + 1
        loss = np.where(evaluations.failed, np.inf, self.problem.loss(evaluations.outputs))
        good = np.isfinite(loss)
        J, n_good = len(good), int(good.sum())
        if not enough(n_good, J):
            raise EnsembleFailure(
                f"Only {n_good} of {J} members have a finite loss.",
                "Use fewer or smaller weights to start with, or a smaller step.",
            )
        U, Z = state.particles[good], evaluations.outputs[good]
        moved = U - self._direction(U, Z)
        if n_good < J:
            moved = _completed(moved, good, rng)
        before = moved if self.momentum else None
        if isinstance(self.spread, str):
            xi = rng.standard_normal(moved.shape, dtype=np.float32).astype(moved.dtype)
            moved = (
                moved.mean(0) + np.asarray(self.scale / np.sqrt(n), moved.dtype) * xi
            )  # eq. (V15)
        if self.momentum:
            last = state.particles if state.before is None else state.before
            moved = moved + moved.dtype.type(momentum(n)) * (before - last)
        if not isinstance(self.spread, str) and self.spread:
            noise = rng.standard_normal(moved.shape, dtype=np.float32)
            moved += np.asarray(self.spread * self.scale, moved.dtype) * noise  # eq. (V14)
        state = TrainingState(moved, before, n, float(loss[good].mean()))
        return state, Info("training", True, None, J, J - n_good, f"step {n}")

    def _direction(self, U: Array, Z: Array) -> Array:
        """Moves of the particles, shape (J, d)."""
        gradients = self.problem.loss_gradient(Z)
        D = gradients @ (Z - Z.mean(0)).T / len(Z)
        norm = np.linalg.norm(D)
        if not norm > 0 or not np.isfinite(norm):
            return np.zeros_like(U)
        # the mean row of D moves the mean. The rest draws particles together; with a factor above
        # one they would overshoot, and the ensemble would grow in each step
        step = min(self.step / norm, 1 / max(spectral_norm(D - D.mean(0)), SMALLEST))  # eq. (V16)
        return np.asarray(step * D, U.dtype) @ (U - U.mean(0))  # eq. (V13)


def spectral_norm(D: Array) -> float:
    """Largest singular value of a matrix, by the power method, from its longest row on."""
    v = D[np.linalg.norm(D, axis=1).argmax()]
    norm = 0.0
    for _ in range(POWERS):
        size = np.linalg.norm(v)
        if not size > 0:
            return 0.0
        v = v / size
        w = D @ v
        norm, v = float(np.linalg.norm(w)), D.T @ w
    return norm


def _completed(moved: Array, good: Array, rng: np.random.Generator) -> Array:
    """All members; those that failed are drawn anew from the others."""
    mean, n = moved.mean(0), len(moved)
    xi = rng.standard_normal((int((~good).sum()), n)).astype(moved.dtype)
    every = np.empty((len(good), moved.shape[1]), moved.dtype)
    every[good] = moved
    every[~good] = mean + xi @ (moved - mean) / np.sqrt(n - 1).astype(moved.dtype)
    return every
