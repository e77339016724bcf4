"""Walkers that feel their way: Langevin dynamics with a measured gradient.

Explorers at a small distance from a walker tell how the forward map changes along their
directions. Averaged over directions that are as even as can be, this is the gradient.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import proposals
from .ensemble import (
    Array,
    Ensemble,
    EnsembleFailure,
    Evaluations,
    Info,
    Problem,
    Snapshot,
    has_forward_map,
)

MAX_REJECTIONS = 100  # steps in a row in which every walker failed that end the run


@dataclass(frozen=True)
class Preconditioner:
    """Covariance that makes the posterior isotropic, and where it is centered.

    Attributes
    ----------
    mean : ndarray of shape (d,)
    root : ndarray of shape (d, d)
        Lower triangular factor of the covariance, ``K = root root^T``.
    """

    mean: Array
    root: Array

    @classmethod
    def given(cls, matrix: Any, mean: Array) -> "Preconditioner":
        """Covariance of the user's: a `matrix` of shape (d, d), or None for the identity.

        Raises
        ------
        ValueError
            If it is no covariance matrix, or of another shape.
        """
        d = len(mean)
        if isinstance(matrix, str):
            raise ValueError(
                f'preconditioner must be "ensemble", None or a matrix, not {matrix!r}.'
            )
        K = np.eye(d) if matrix is None else np.asarray(matrix, dtype=float)
        if K.shape != (d, d):
            raise ValueError(
                f"preconditioner has shape {K.shape}, but the model has {d} unconstrained "
                f"parameters: give a matrix of shape {(d, d)}."
            )
        if not np.allclose(K, K.T) or not np.linalg.eigvalsh(K)[0] > 0:
            raise ValueError("preconditioner must be symmetric and positive definite.")
        return cls(mean, np.linalg.cholesky(K))

    @classmethod
    def of_points(cls, points: Array) -> "Preconditioner":
        """Covariance of `points`, shape (n, d), shrunk to its diagonal where they are few."""
        n, d = points.shape
        covariance = np.cov(points.T).reshape(d, d)
        if n < 4 * d:
            weight = n / (4 * d)
            covariance = weight * covariance + (1 - weight) * np.diag(np.diag(covariance))
        return cls(points.mean(0), np.linalg.cholesky(covariance))

    def normalized(self, vectors: Array) -> Array:
        """Vectors, shape (n, d), in units of the preconditioner."""
        return np.linalg.solve(self.root, vectors.T).T

    def log_density(self, U: Array) -> Array:
        """Normalized log density of ``N(mean, K)`` at `U`, shape (n,)."""
        x = self.normalized(U - self.mean)
        log_det = np.log(np.diag(self.root)).sum()
        return -0.5 * (x**2).sum(1) - log_det - 0.5 * x.shape[1] * np.log(2 * np.pi)


def haar_frames(size: int, n_directions: int, dimension: int, rng: np.random.Generator) -> Array:
    """Directions of unit second moment whose sum of squares is as even as it can be.

    Parameters
    ----------
    size : int
        Number of frames M.
    n_directions : int
        Directions J in each: complete frames, and rows of one more.
    dimension : int
        Number d of parameters.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (M, J, d)
        Rows of Haar-distributed orthogonal matrices times ``sqrt(d)``. The Householder reflections
        behind the decomposition are not Haar distributed: random signs make them so.
    """
    n_frames = -(-n_directions // dimension)
    normal = rng.standard_normal((size, n_frames, dimension, dimension))
    frames = np.linalg.qr(normal)[0] * rng.choice([-1.0, 1.0], size=(size, n_frames, 1, dimension))
    rows = np.swapaxes(frames, -1, -2).reshape(size, n_frames * dimension, dimension)
    # in the order in which a pickle restores it: sums in another order differ in the last digit
    return np.ascontiguousarray(np.sqrt(dimension) * rows[:, :n_directions])


@dataclass(frozen=True)
class Measurement:
    """What the clouds of explorers around M positions have found out.

    Attributes
    ----------
    centers : Ensemble
        The positions themselves, evaluated.
    drift : ndarray of shape (M, d)
        Negative gradient of the potential in units of the preconditioner.
    heard : ndarray of bool, shape (M,)
        Whether the position and an explorer of its cloud could be evaluated. Without any explorer
        the drift is that of the prior alone.
    """

    centers: Ensemble
    drift: Array
    heard: Array


@dataclass(frozen=True)
class Explorers:
    """Clouds around positions that measure the drift there.

    Parameters
    ----------
    problem : Problem
    n_directions : int
        Explorers J of each position.
    sigma : float
        Distance of the explorers in units of the preconditioner.
    central : bool, default False
        Whether an explorer is sent along each direction in both senses.
    independent : bool, default False
        Independent Gaussian directions, along which the slope of the prior is taken, too, as in the
        published scheme; by default orthogonal ones, and the exact gradient of the prior.
    """

    problem: Problem
    n_directions: int
    sigma: float
    central: bool = False
    independent: bool = False

    @property
    def cloud_size(self) -> int:
        """Forward evaluations at each position."""
        return 1 + self.n_directions * (2 if self.central else 1)

    def directions(self, size: int, rng: np.random.Generator) -> Array:
        """Fresh directions for `size` positions, shape (size, J, d)."""
        J, d = self.n_directions, self.problem.dimension
        if self.independent:
            return rng.standard_normal((size, J, d))
        return haar_frames(size, J, d, rng)

    def points(self, positions: Array, directions: Array, root: Array) -> Array:
        """Positions, each one followed by its explorers, shape (M * cloud_size, d)."""
        offsets = self.sigma * directions @ root.T
        clouds = [positions[:, None], positions[:, None] + offsets]
        if self.central:
            clouds.append(positions[:, None] - offsets)
        return np.concatenate(clouds, axis=1).reshape(-1, positions.shape[1])

    def differences(self, Z: Array) -> Array:
        """Change of the outputs by a distance of one, shape (M, J, K), from those of all points."""
        J = self.n_directions
        clouds = Z.reshape(-1, self.cloud_size, Z.shape[1])
        if self.central:
            return (clouds[:, 1 : 1 + J] - clouds[:, 1 + J :]) / (2 * self.sigma)
        return (clouds[:, 1:] - clouds[:, :1]) / self.sigma

    def measure(
        self, points: Array, evaluations: Evaluations, directions: Array, root: Array
    ) -> Measurement:
        """Drift from the evaluated clouds; an explorer that failed is left out of its average."""
        everything = Ensemble.evaluated(self.problem, points, evaluations)
        centers = everything[:: self.cloud_size]
        ok = centers.ok
        Z, U = centers.Z[ok], centers.U[ok]
        slopes = np.full(directions.shape[:2], np.nan)
        outputs = everything.Z
        if not has_forward_map(self.problem):  # no slope leads to where the density is zero
            outputs = np.where(np.isfinite(everything.loss)[:, None], outputs, np.nan)
        differences = self.differences(outputs)[ok]
        slopes[ok] = np.einsum("mjk,mk->mj", differences, self.problem.loss_gradient(Z))
        prior = np.zeros(centers.U.shape)
        prior[ok] = self.problem.prior_gradient(U) @ root
        if self.independent:
            slopes += np.einsum("mjd,md->mj", directions, prior)
            prior = np.zeros(1)
        heard = np.isfinite(slopes)
        share = heard.sum(1)
        total = np.einsum("mj,mjd->md", np.where(heard, slopes, 0.0), directions)
        return Measurement(
            centers, -total / np.maximum(share, 1)[:, None] - prior, ok & (share > 0)
        )


def clipped(drift: Array, step_size: float) -> Array:
    """Shorten drifts, shape (M, d), that are far too long for the step size.

    Explicit steps explode in tails that are lighter than Gaussian. Where the step size suits the
    stiffness of the posterior, a drift in its bulk is about ``sqrt(d / step_size)`` long.
    """
    longest = 2 * (np.sqrt(drift.shape[1]) + 3) / min(1.0, np.sqrt(step_size))
    length = np.linalg.norm(drift, axis=1, keepdims=True)
    return drift * (longest / np.maximum(length, longest))


@dataclass(frozen=True)
class WalkerState:
    """Walkers between two steps.

    Attributes
    ----------
    U : ndarray of shape (M, d)
        Where the walkers are.
    preconditioner : Preconditioner
    step_size : float
    measurement : Measurement or None
        What is known of the positions; None before their first evaluation.
    noise : ndarray of shape (M, d)
        Noise of the last step, one half of which is used again.
    directions : ndarray of shape (M, J, d)
        Directions of the explorers.
    rejected : int
        Steps in a row in which every walker failed.
    """

    U: Array
    preconditioner: Preconditioner
    step_size: float
    measurement: Measurement | None = None
    noise: Array = field(default_factory=lambda: np.empty(0))
    directions: Array = field(default_factory=lambda: np.empty(0))
    rejected: int = 0

    @property
    def ensemble(self) -> Ensemble | None:
        """The evaluated walkers."""
        return None if self.measurement is None else self.measurement.centers


@dataclass(frozen=True)
class WalkerMove:
    """A pending round: where the walkers would be, with the explorers around them."""

    points: Array
    noise: Array
    directions: Array
    uniforms: Array


@dataclass(frozen=True)
class Walkers:
    """Langevin dynamics of walkers that measure their own drift.

    Parameters
    ----------
    explorers : Explorers
    delta : float, default 0.0
        Relaxation time scale of the explorers' directions; 0 draws new ones in every step.
    adjust : bool, default False
        Metropolis-adjusted steps with frozen directions: the drift is then a fixed vector field,
        and the test makes up for all its errors.
    averaged : bool, default True
        Leimkuhler-Matthews steps, whose noise is averaged over two steps, instead of
        Euler-Maruyama steps.
    """

    explorers: Explorers
    delta: float = 0.0
    adjust: bool = False
    averaged: bool = True

    def start(self, U: Array, preconditioner: Preconditioner, step_size: float) -> WalkerState:
        """State of walkers at `U`, shape (M, d), that were not evaluated yet."""
        return WalkerState(U, preconditioner, step_size)

    def ask(self, state: WalkerState, rng: np.random.Generator) -> tuple[Array, WalkerMove]:
        """Points of the next step of all walkers, and what `tell` needs to judge them."""
        M, d = state.U.shape
        root, h = state.preconditioner.root, state.step_size
        noise, proposed = rng.standard_normal((M, d)), state.U
        if state.measurement is not None:
            kick = np.sqrt(2 * h) * noise
            if self.averaged and not self.adjust:
                kick = np.sqrt(h / 2) * (state.noise + noise)
            proposed = state.U + (h * self._drift(state.measurement, h) + kick) @ root.T
        directions = self._next_directions(state, rng)
        points = self.explorers.points(proposed, directions, root)
        return points, WalkerMove(points, noise, directions, np.array(rng.random(M)))

    def tell(
        self, state: WalkerState, pending: WalkerMove, evaluations: Evaluations
    ) -> tuple[WalkerState, Info]:
        """State after the step, and an account of it.

        The first evaluation of the walkers is no step yet.

        Raises
        ------
        EnsembleFailure
            If a walker cannot be evaluated where it starts, or none for many steps.
        """
        old, root = state.measurement, state.preconditioner.root
        new = self.explorers.measure(pending.points, evaluations, pending.directions, root)
        if old is None:
            if not new.centers.ok.all():
                raise EnsembleFailure(
                    f"{(~new.centers.ok).sum()} of {len(state.U)} walkers cannot be evaluated "
                    "where they start."
                )
            alpha, moved = np.ones(len(state.U)), new.centers.ok
            noise = pending.noise if state.noise.size == 0 else state.noise
            state = replace(state, measurement=new, noise=noise)
        else:
            # the test makes up for a drift without explorers, too; without it, rather stay
            usable = new.centers.ok if self.adjust else new.heard
            alpha = np.where(usable, self._acceptance(state, old, new), 0.0)
            moved = usable & (pending.uniforms < alpha) if self.adjust else usable
            everyone = np.arange(len(moved))
            merged = Measurement(
                old.centers.updated(everyone, new.centers, moved),
                np.where(moved[:, None], new.drift, old.drift),
                np.where(moved, new.heard, old.heard),
            )
            state = replace(
                state,
                U=merged.centers.U,
                measurement=merged,
                noise=np.where(moved[:, None], pending.noise, state.noise),
                rejected=0 if usable.any() else state.rejected + 1,
            )
            if state.rejected >= MAX_REJECTIONS:
                raise EnsembleFailure(
                    f"All walkers have failed in {state.rejected} steps in a row."
                )
        state = replace(state, directions=pending.directions)
        log_q = state.preconditioner.log_density(state.U)
        lp = -state.measurement.centers.potential  # type: ignore[union-attr]
        snapshot = None
        if old is not None:
            snapshot = Snapshot(state.U, lp, log_q, alpha, state.step_size)
        message = f"acceptance {alpha.mean():.2f}"
        n_failed = int(evaluations.failed.sum())
        n, complete = len(pending.points), snapshot is not None
        return state, Info("sampling", complete, snapshot, n, n_failed, message)

    def _next_directions(self, state: WalkerState, rng: np.random.Generator) -> Array:
        """Directions of the next step: frozen, fresh, or an exact Ornstein-Uhlenbeck update."""
        if self.adjust and state.directions.size:
            return state.directions
        fresh = self.explorers.directions(len(state.U), rng)
        if self.delta == 0 or not state.directions.size:
            return fresh
        kept = np.exp(-state.step_size / self.delta**2)
        return kept * state.directions + np.sqrt(1 - kept**2) * fresh

    def _drift(self, measurement: Measurement, step_size: float) -> Array:
        return clipped(measurement.drift, step_size) if self.averaged else measurement.drift

    def _acceptance(self, state: WalkerState, old: Measurement, new: Measurement) -> Array:
        """Acceptance probability of a Langevin step, the would-be one if there is no test."""
        h = state.step_size
        step = state.preconditioner.normalized(new.centers.U - old.centers.U)
        forward = ((step - h * self._drift(old, h)) ** 2).sum(1)
        backward = ((-step - h * self._drift(new, h)) ** 2).sum(1)
        log_ratio = (forward - backward) / (4 * h)
        return proposals.acceptance(old.centers.potential, new.centers.potential, log_ratio)
