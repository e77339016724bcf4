"""The records that every sampler shares: evaluated particles, and what a round reports."""

from dataclasses import dataclass

import numpy as np


class EnsembleFailure(RuntimeError):
    """Too few members of an ensemble could be evaluated for the run to go on."""


@dataclass(frozen=True)
class Ensemble:
    """Particles together with everything that was computed for them.

    Attributes
    ----------
    U : ndarray of shape (J, d)
        Particles in unconstrained coordinates.
    Z : ndarray of shape (J, K)
        Forward outputs; rows of failed members are NaN.
    loss : ndarray of shape (J,)
        Loss of the outputs, ``-log p(y | Z)``; ``inf`` for failed members.
    prior : ndarray of shape (J,)
        Prior potential, ``-log p(U)``.
    """

    U: np.ndarray
    Z: np.ndarray
    loss: np.ndarray
    prior: np.ndarray

    @classmethod
    def evaluated(cls, problem, U, evaluations):
        """Join particles with their forward evaluations; a failed member gets an infinite loss."""
        loss = np.where(evaluations.failed, np.inf, problem.loss(evaluations.outputs))
        prior = problem.prior_potential(U)
        loss, prior = (np.where(np.isnan(v), np.inf, v) for v in (loss, prior))
        return cls(np.array(U), np.array(evaluations.outputs), loss, prior)

    def __len__(self):
        return len(self.U)

    @property
    def potential(self):
        """Negative log posterior density of every particle, shape (J,)."""
        return self.loss + self.prior

    @property
    def ok(self):
        """Members with a finite posterior density, shape (J,)."""
        return np.isfinite(self.potential)

    def __getitem__(self, index):
        return Ensemble(self.U[index], self.Z[index], self.loss[index], self.prior[index])

    def updated(self, index, values, accepted):
        """Copy in which the members ``index[accepted]`` are replaced by those of `values`."""
        target = index[accepted]

        def update(old, new):
            result = old.copy()
            result[target] = new[accepted]
            return result

        return Ensemble(
            update(self.U, values.U),
            update(self.Z, values.Z),
            update(self.loss, values.loss),
            update(self.prior, values.prior),
        )


@dataclass(frozen=True)
class Snapshot:
    """An ensemble after a completed sweep: what becomes posterior draws.

    Attributes
    ----------
    U : ndarray of shape (J, d)
        Particles in unconstrained coordinates.
    lp : ndarray of shape (J,)
        Log posterior density in these coordinates.
    log_q : ndarray of shape (J,)
        Log density of the Gaussian law that the ensemble believes in, for each particle
        fitted without it.
    acceptance : ndarray of shape (J,)
        Metropolis acceptance probability of the move, or the one that a test would have had.
    step_size : float
        Time step of the dynamics; ``inf`` stands for independent moves.
    """

    U: np.ndarray
    lp: np.ndarray
    log_q: np.ndarray
    acceptance: np.ndarray
    step_size: float


@dataclass(frozen=True)
class Info:
    """What one round of evaluations did.

    Attributes
    ----------
    phase : {"start", "burn-in", "sampling"}
        Part of the run that the round belonged to.
    complete : bool
        Whether the round completed an iteration (a burn-in stage, a sweep).
    snapshot : Snapshot or None
        The ensemble, when a sweep of the sampling phase is complete.
    n_evaluations, n_failed : int
        Forward evaluations of the round, and how many of them failed.
    message : str
        One line for the log.
    """

    phase: str
    complete: bool
    snapshot: Snapshot | None
    n_evaluations: int
    n_failed: int
    message: str = ""
