"""Targets of a surrogate: losses or forward outputs, and the loss of predicted values."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem, loss_and_gradient
from pymc_ensemble.samplers.weights import LARGEST_LOG

MANY_OUTPUTS = 12  # more are projected on their leading directions
PROJECTED_AWAY = 1e-6  # share of the variance of the outputs that a projection may lose
SMALLEST_CURVATURE = 1e-8  # relative to the largest: outputs without information get no weight


@dataclass(frozen=True)
class Bend:
    """Identity for small values, logarithm for large ones: ``sign(v) c (1 + log(|v| / c))``.

    Far from the posterior values may be extremely large. Without the bend they would set the scale
    of a surrogate that must be precise where values are small.

    Attributes
    ----------
    start : float
        Absolute value c at which the logarithm begins; infinite for the identity.
    """

    start: float = np.inf

    def __call__(self, values: Array) -> Array:
        """Bend values."""
        size = np.abs(values)
        far = size > self.start
        if not far.any():
            return values
        bent = self.start * (1 + np.log(np.where(far, size, self.start) / self.start))
        return np.where(far, np.sign(values) * bent, values)

    def inverse(self, bent: Array) -> tuple[Array, Array]:
        """Values before the bend, and their derivatives by the bent ones."""
        slope, far = np.ones_like(bent), np.abs(bent) > self.start
        if not far.any():
            return bent, slope
        values, bent = bent.copy(), bent[far]
        growth = np.exp(np.minimum(np.abs(bent) / self.start - 1, LARGEST_LOG))
        values[far], slope[far] = np.sign(bent) * self.start * growth, growth
        return values, slope


class Target(Protocol):
    """What the surrogate predicts, and the loss that follows from it."""

    def values(self, archive: Ensemble) -> Array:
        """Values that the surrogate is fitted to, shape (n, k)."""

    def loss(self, values: Array) -> tuple[Array, Array]:
        """Loss of predicted values, shape (n,), and its gradient by them, shape (n, k)."""


@dataclass(frozen=True)
class PotentialTarget:
    """The surrogate predicts the loss itself.

    Attributes
    ----------
    reference : float
        Loss that is subtracted: values are losses above it.
    bend : Bend
    depth : float
        Depth below the reference that the loss may have. Deeper holes of the surrogate become
        hills, as particles would gather in them.
    """

    reference: float = 0.0
    bend: Bend = Bend()
    depth: float = np.inf

    def values(self, archive: Ensemble) -> Array:
        """Bent losses above the reference, shape (n, 1)."""
        return self.bend(archive.loss[:, None] - self.reference)

    def loss(self, values: Array) -> tuple[Array, Array]:
        """Loss, and its gradient."""
        excess, slope = self.bend.inverse(values)
        deep = excess < -self.depth
        if deep.any():
            excess = np.where(deep, -2 * self.depth - excess, excess)
            slope = np.where(deep, -slope, slope)
        return self.reference + excess[:, 0], slope


@dataclass(frozen=True)
class ForwardTarget:
    """The surrogate predicts forward outputs, in units in which the loss has unit curvature.

    Attributes
    ----------
    problem : InverseProblem or None
        Known while the target is in use, but not stored.
    center, scale : ndarray of shape (K,)
        Scaled outputs are ``(outputs - center) scale``.
    directions : ndarray of shape (K, k)
        Orthonormal columns: the values are the bent scaled outputs along them.
    bend : Bend
    lost : float
        Variance of the scaled outputs that the projection on the directions loses.
    quadratic : (float, ndarray of shape (K,)) or None
        Loss and scaled gradient at the center, if the loss is quadratic.
    """

    problem: Problem | None
    center: Array
    scale: Array
    directions: Array
    bend: Bend
    lost: float
    quadratic: tuple[float, Array] | None

    @classmethod
    def of(cls, problem: Problem, archive: Ensemble, bend: Bend) -> "ForwardTarget":
        """Scale the outputs of an archive, and project them where they are many."""
        best = archive[np.argsort(archive.potential)[: max(10, len(archive) // 10)]]
        curvature = np.median(problem.curvature(best.Z), axis=0)
        # an output that varies little in units of the noise must not be scaled up
        curvature = np.maximum(curvature, SMALLEST_CURVATURE * curvature.max())
        scale = np.sqrt(np.where(curvature > 0, curvature, 1.0))
        center = best.Z.mean(0)
        K, d = len(center), archive.U.shape[1]
        W, lost = np.eye(K), 0.0
        if K > MANY_OUTPUTS:
            anomalies = bend((archive.Z - center) * scale)
            anomalies = anomalies - anomalies.mean(0)
            _, s, Wt = np.linalg.svd(anomalies / np.sqrt(len(archive)), full_matrices=False)
            left = s[::-1].cumsum()[::-1] ** 2
            k = int((left > PROJECTED_AWAY * (s**2).sum()).sum())
            k = min(max(1, k), max(MANY_OUTPUTS, 3 * d))
            W, lost = Wt[:k].T, float((s[k:] ** 2).sum())
        quadratic = None
        if problem.quadratic_loss:
            gradient = problem.loss_gradient(center[None])[0] / scale
            quadratic = float(problem.loss(center[None])[0]), gradient
        return cls(problem, center, scale, W, bend, lost, quadratic)

    def values(self, archive: Ensemble) -> Array:
        """Bent scaled outputs along the directions, shape (n, k)."""
        return self.bend((archive.Z - self.center) * self.scale) @ self.directions

    def loss(self, values: Array) -> tuple[Array, Array]:
        """Loss, and its gradient."""
        scaled, slope = self.bend.inverse(values @ self.directions.T)
        if self.quadratic is not None:
            value, gradient = self.quadratic
            loss = value + scaled @ gradient + 0.5 * (scaled**2).sum(1)
            return loss, ((gradient + scaled) * slope) @ self.directions
        assert self.problem is not None
        Z = self.center + scaled / self.scale
        loss, gradient = loss_and_gradient(self.problem, Z)
        return loss, (gradient / self.scale * slope) @ self.directions
