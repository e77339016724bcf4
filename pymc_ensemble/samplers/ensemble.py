"""The records that every sampler shares: evaluated particles, and what a round reports."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Law = Literal[
    "density", "gaussian", "approximate", "fit", "smooth", "surrogate", "inversion", "amortized"
]

REPEATABLE = 1e-3  # share of a loss by which a repeated one may differ: far out it is sensitive


class PriorAndLoss(Protocol):
    """What every sampler needs of a problem."""

    @property
    def dimension(self) -> int:
        """Number d of parameters."""

    def sample_prior(self, size: int, rng: np.random.Generator) -> Array:
        """Draw particles, shape (size, d)."""

    def loss(self, Z: Array) -> Array:
        """Negative log likelihood of the outputs, shape (J,)."""

    def prior_potential(self, U: Array) -> Array:
        """Negative log prior density, shape (J,)."""

    def prior_gradient(self, U: Array) -> Array:
        """Gradient of the prior potential, shape (J, d)."""


class Problem(PriorAndLoss, Protocol):
    """What the samplers need of an inverse problem. A few lines of NumPy are enough."""

    @property
    def n_outputs(self) -> int:
        """Number K of outputs."""

    @property
    def quadratic_loss(self) -> bool:
        """Whether the loss is quadratic in the outputs, with a constant curvature."""

    @property
    def gaussian_prior(self) -> bool:
        """Whether the prior potential is quadratic."""

    def loss_gradient(self, Z: Array) -> Array:
        """Gradient of the loss in the outputs, shape (J, K)."""

    def curvature(self, Z: Array) -> Array:
        """Fisher weight of every output, shape (J, K)."""

    def prior_hessian(self, u: Array) -> Array:
        """Hessian of the prior potential at one point, shape (d, d)."""


def has_forward_map(problem: Problem) -> bool:
    """Whether a problem has outputs other than its loss.

    If its attribute ``density_only`` is true, its loss is its only output.
    """
    return not getattr(problem, "density_only", False)


def loss_and_gradient(problem: Problem, Z: Array) -> tuple[Array, Array]:
    """Loss (J,) and its gradient (J, K), by a single call if the problem has one for both."""
    both = getattr(problem, "loss_and_gradient", None)
    return (problem.loss(Z), problem.loss_gradient(Z)) if both is None else both(Z)


def prior_and_gradient(problem: PriorAndLoss, U: Array) -> tuple[Array, Array]:
    """Prior potential (J,) and its gradient (J, d), by a single call if the problem has one."""
    both = getattr(problem, "prior_and_gradient", None)
    return (problem.prior_potential(U), problem.prior_gradient(U)) if both is None else both(U)


class Evaluations(Protocol):
    """Forward outputs of one round and the members that failed."""

    @property
    def outputs(self) -> Array:
        """Outputs, shape (n, K)."""

    @property
    def failed(self) -> Array:
        """Mask of the failed members, shape (n,)."""


class EnsembleFailure(RuntimeError):
    """A sampler cannot go on, for example as too few members of its ensemble could be evaluated.

    Parameters
    ----------
    reason : str
    remedy : str, optional
        What to try. Without it, the remedy is that against failures of the forward map.
    """

    def __init__(self, reason: str, remedy: str = ""):
        super().__init__(f"{reason} {remedy}".rstrip())
        self.remedy = remedy


@dataclass(frozen=True)
class Ensemble:
    """Particles with all that was computed for them.

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

    U: Array
    Z: Array
    loss: Array
    prior: Array

    @classmethod
    def evaluated(cls, problem: PriorAndLoss, U: Array, evaluations: Evaluations) -> "Ensemble":
        """Join particles with their forward evaluations; a failed member gets an infinite loss."""
        loss = np.where(evaluations.failed, np.inf, problem.loss(evaluations.outputs))
        prior = problem.prior_potential(U)
        loss, prior = (np.where(np.isnan(v), np.inf, v) for v in (loss, prior))
        return cls(np.array(U), np.array(evaluations.outputs), loss, prior)

    def __len__(self) -> int:
        return len(self.U)

    @property
    def potential(self) -> Array:
        """Negative log posterior density of every particle, eq. (I1), shape (J,)."""
        return self.loss + self.prior

    @property
    def ok(self) -> Array:
        """Members with a finite posterior density, shape (J,)."""
        return np.isfinite(self.potential)

    def require(self, n: int) -> None:
        """Raise `EnsembleFailure` unless `n` members have a finite posterior density."""
        n_ok = int(self.ok.sum())
        if n_ok < n:
            raise EnsembleFailure(
                f"Only {n_ok} of {len(self)} ensemble members have a finite posterior density, "
                f"but {n} are needed. Start where the forward map works, or use a larger "
                "ensemble_size."
            )

    def __getitem__(self, index: Array | slice) -> "Ensemble":
        return Ensemble(*(column[index] for column in self._columns))

    @classmethod
    def joined(cls, *parts: "Ensemble") -> "Ensemble":
        """Members of several ensembles, one after the other."""
        columns = zip(*(part._columns for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    @property
    def _columns(self) -> tuple[Array, Array, Array, Array]:
        return self.U, self.Z, self.loss, self.prior

    def without_failures(self) -> "Ensemble":
        """Copy in which copies of other members replace those that failed."""
        good = np.flatnonzero(self.ok)
        index = np.arange(len(self))
        index[~self.ok] = np.resize(good, len(self) - len(good))
        return self[index]

    def updated(self, index: Array, values: "Ensemble", accepted: Array) -> "Ensemble":
        """Copy in which the members ``index[accepted]`` are replaced by those of `values`."""
        columns = []
        for old, new in zip(self._columns, values._columns, strict=True):
            columns.append(old.copy())
            columns[-1][index[accepted]] = new[accepted]
        return Ensemble(*columns)


@dataclass(frozen=True)
class Snapshot:
    """An ensemble after a completed sweep, which becomes draws of the posterior.

    Attributes
    ----------
    U : ndarray of shape (J, d)
        Particles in unconstrained coordinates.
    lp : ndarray of shape (J,)
        Log posterior density in these coordinates.
    log_q : ndarray of shape (J,)
        Log density of the Gaussian law of the ensemble. For each particle the law is fitted without
        that particle.
    acceptance : ndarray of shape (J,)
        Metropolis acceptance probability of the move, or the would-be acceptance.
    step_size : float
        Time step of the dynamics. ``inf`` means independent moves.
    proposal_lp, proposal_log_q : ndarray of shape (J,) or None
        Log posterior densities of the last proposals, accepted or not, and the log densities from
        which they were drawn. NaN for moves that depend on the particle.
    proposal : ndarray of shape (J, d) or None
        Points of the last proposals, if the kernel keeps them.
    """

    U: Array
    lp: Array
    log_q: Array
    acceptance: Array
    step_size: float
    proposal_lp: Array | None = None
    proposal_log_q: Array | None = None
    proposal: Array | None = None


@dataclass(frozen=True)
class Origin:
    """What the draws of a sampler follow, as the sampler declares it.

    Attributes
    ----------
    law : str
        ``"density"``: the density that the draws carry, up to the error of steps without a
        Metropolis test. ``"gaussian"``: the Gaussian law whose density they carry.
        ``"approximate"``: nearly the density, by a law that is not known. ``"fit"``: a fitted
        model, whose density they carry. ``"smooth"``: the smooth density behind the one that they
        carry. ``"surrogate"``: a surrogate, whose density they carry. ``"inversion"``: the result
        of Kalman updates. ``"amortized"``: an estimate that was learned from simulations, whose
        density they carry.
    adjusted : bool
        Whether every move has met a Metropolis test for the density that the draws carry.
    evaluations : int
        Forward evaluations for each draw.
    learned : bool
        Whether proposals come from a law that was learned before. Then each particle is a chain of
        its own, and moves of infinite step size do not depend on it.
    fluctuation : float or None
        Standard deviation of the log density by fluctuations of the forward map, if the map was
        examined. NaN if that is not known.
    law_acceptance : float or None
        Acceptance of draws of a learned law by draws of the posterior, if the sampler has learned a
        correction of the law.
    reached : float or None
        Acceptance of independent proposals by draws of the prior, which count as far as the data
        allow them. None if they tell too little.
    """

    law: Law
    adjusted: bool = False
    evaluations: int = 1
    learned: bool = False
    fluctuation: float | None = None
    law_acceptance: float | None = None
    reached: float | None = None

    @property
    def density_known(self) -> bool:
        """Whether draws carry the density of the model, and not that of a fit or a surrogate."""
        return self.law not in ("fit", "surrogate", "amortized")


@dataclass(frozen=True)
class Info:
    """Account of one round of evaluations.

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

    @classmethod
    def of(
        cls,
        evaluations: Evaluations,
        phase: str,
        message: str,
        *,
        complete: bool = True,
        snapshot: Snapshot | None = None,
    ) -> "Info":
        """Account of a round with these evaluations."""
        failed = evaluations.failed
        return cls(phase, complete, snapshot, len(failed), int(failed.sum()), message)
