"""Explorers around a particle, and the preconditioner that places them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Problem, has_forward_map
from pymc_ensemble.samplers.linearization import FOR_EACH

# Distance of explorers, in units of the preconditioner. A mode is not known better.
SMOOTH_DISTANCE = 1e-3


@dataclass(frozen=True)
class Preconditioner:
    """Covariance that makes the posterior isotropic, and its center.

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
        """Covariance from the user: a `matrix` of shape (d, d), or None for the identity.

        Raises
        ------
        ValueError
            If it is not a covariance matrix, or has another shape.
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
                f"parameters. Give a matrix of shape {(d, d)}."
            )
        if not np.allclose(K, K.T) or not np.linalg.eigvalsh(K)[0] > 0:
            raise ValueError("preconditioner must be symmetric and positive definite.")
        return cls(mean, np.linalg.cholesky(K))

    @classmethod
    def of_points(cls, points: Array) -> "Preconditioner":
        """Covariance of `points`, shape (n, d), shrunk to its diagonal if there are few."""
        n, d = points.shape
        covariance = np.cov(points.T).reshape(d, d)
        if (weight := n / (FOR_EACH * d)) < 1:
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
    """Directions of unit second moment, with a sum of squares that is as even as possible.

    Parameters
    ----------
    size : int
        Number of frames M.
    n_directions : int
        Directions J in each: complete frames, and some rows of another one.
    dimension : int
        Number d of parameters.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (M, J, d)
        Rows of Haar-distributed orthogonal matrices times ``sqrt(d)``. The decomposition by
        Householder reflections is not Haar-distributed; random signs make it so.
    """
    n_frames = -(-n_directions // dimension)
    normal = rng.standard_normal((size, n_frames, dimension, dimension))
    # eq. (M2)
    frames = np.linalg.qr(normal)[0] * rng.choice([-1.0, 1.0], size=(size, n_frames, 1, dimension))
    rows = np.swapaxes(frames, -1, -2).reshape(size, n_frames * dimension, dimension)
    # in the memory order of a restored pickle: sums in another order differ in the last digit
    return np.ascontiguousarray(np.sqrt(dimension) * rows[:, :n_directions])


@dataclass(frozen=True)
class Measurement:
    """Measurements by clouds of explorers around M positions.

    Attributes
    ----------
    centers : Ensemble
        The positions themselves, evaluated.
    drift : ndarray of shape (M, d)
        Negative gradient of the potential in units of the preconditioner.
    heard : ndarray of bool, shape (M,)
        Whether the position and at least one of its explorers could be evaluated. Without explorers
        the drift is that of a guess, or of the prior alone.
    """

    centers: Ensemble
    drift: Array
    heard: Array

    def updated(self, new: "Measurement", moved: Array) -> "Measurement":
        """These measurements, with `new` ones where `moved`, of shape (M,), is true."""
        return Measurement(
            self.centers.updated(np.arange(len(moved)), new.centers, moved),
            np.where(moved[:, None], new.drift, self.drift),
            np.where(moved, new.heard, self.heard),
        )


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
        Whether there are explorers in both senses of each direction.
    independent : bool, default False
        Independent Gaussian directions, and the slope of the prior along these, as in the published
        scheme. By default directions are orthogonal, and the gradient of the prior is exact.
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
        self,
        points: Array,
        evaluations: Evaluations,
        directions: Array,
        root: Array,
        guess: Array | None = None,
    ) -> Measurement:
        """Drift from the evaluated clouds.

        An explorer that has failed is left out of the average. With a `guess` of shape (M, d), a
        gradient of the potential in units of the preconditioner, it has the slope of the guess.
        """
        everything = Ensemble.evaluated(self.problem, points, evaluations)
        centers = everything[:: self.cloud_size]
        ok = centers.ok
        Z, U = centers.Z[ok], centers.U[ok]
        slopes = np.full(directions.shape[:2], np.nan)
        outputs = everything.Z
        if not has_forward_map(self.problem):  # there is no slope towards points of zero density
            outputs = np.where(np.isfinite(everything.loss)[:, None], outputs, np.nan)
        differences = self.differences(outputs)[ok]
        slopes[ok] = np.einsum("mjk,mk->mj", differences, self.problem.loss_gradient(Z))  # eq. (M1)
        prior = np.zeros(centers.U.shape)
        prior[ok] = self.problem.prior_gradient(U) @ root
        if self.independent:
            slopes += np.einsum("mjd,md->mj", directions, prior)
            prior = np.zeros(1)
        heard = np.isfinite(slopes)
        share = heard.sum(1)
        known, counted = np.where(heard, slopes, 0.0), np.maximum(share, 1)
        if guess is not None:
            known = np.where(heard, slopes, np.einsum("mjd,md->mj", directions, guess - prior))
            counted = np.full(len(share), self.n_directions)
        total = np.einsum("mj,mjd->md", known, directions)
        return Measurement(centers, -total / counted[:, None] - prior, ok & (share > 0))
