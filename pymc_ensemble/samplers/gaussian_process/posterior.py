"""Posterior density of a Gaussian-process surrogate, in the coordinates of an ensemble."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from pymc_ensemble.samplers.ensemble import (
    Array,
    Ensemble,
    Problem,
    loss_and_gradient,
    prior_and_gradient,
)

from .regression import Function, GaussianProcess

MANY_OUTPUTS = 12  # more are projected on their leading directions
PROJECTED_AWAY = 1e-6  # share of the variance of the outputs that a projection may lose
LARGEST_LOG = 50.0  # of what a bend may undo
LARGEST_BASE = 8  # doublings of the base of the noise of losses
OUTLIER = 5.0  # residuals, in their median, that count no more than this
FLAT = 1e-12  # variance that a direction without spread gets: sd may differ by a million
SMALLEST_CURVATURE = 1e-8  # relative to the largest: outputs without information get no weight


@dataclass(frozen=True)
class Whitening:
    """Coordinates ``x = root^-1 (u - mean)`` in which an ensemble has unit covariance.

    Attributes
    ----------
    mean : ndarray of shape (d,)
    root, inverse : ndarray of shape (d, d)
    """

    mean: Array
    root: Array
    inverse: Array

    @classmethod
    def of(cls, U: Array) -> "Whitening":
        """Whiten particles of shape (n, d); directions without spread get very little of it."""
        mean = U.mean(0)
        scale = U.std(0)
        fallback = np.maximum(1e-8 * np.abs(mean), np.finfo(float).tiny ** 0.5)
        scale = np.where(scale > fallback, scale, fallback)
        correlation = np.cov(((U - mean) / scale).T, bias=True).reshape(len(mean), len(mean))
        correlation[np.diag_indices(len(mean))] += FLAT
        factor = np.linalg.cholesky(correlation)
        return cls(mean, scale[:, None] * factor, np.linalg.inv(factor) / scale)

    def coordinates(self, U: Array) -> Array:
        """Whitened coordinates of particles (..., d)."""
        return (U - self.mean) @ self.inverse.T

    def particles(self, x: Array) -> Array:
        """Particles with whitened coordinates (..., d)."""
        return self.mean + x @ self.root.T


@dataclass(frozen=True)
class Bend:
    """Identity for small values, logarithm for large ones: ``sign(v) c (1 + log(|v| / c))``.

    Values that are absurdly large far from the posterior would set the scale of a surrogate that
    has to be precise where they are small.

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
        size = np.abs(bent)
        far = size > self.start
        if not far.any():
            return bent, np.ones_like(bent)
        growth = np.exp(np.minimum(np.where(far, size, self.start) / self.start - 1, LARGEST_LOG))
        values = np.where(far, np.sign(bent) * self.start * growth, bent)
        return values, np.where(far, growth, 1.0)


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
        Loss from which the large ones are counted.
    bend : Bend
    depth : float
        By how much the loss may fall below the reference: deeper holes of the surrogate are taken
        for hills, as particles would gather in them.
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
        Known while the target is in use; not a part of stored states.
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
        # an output that varies little in units of the noise must not be blown up
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


@dataclass(frozen=True)
class WhitenedPrior:
    """Prior potential in whitened coordinates; a quadratic one is not asked again and again.

    Attributes
    ----------
    problem : InverseProblem or None
        Known while the prior is in use; not a part of stored states.
    whitening : Whitening
    quadratic : tuple or None
        Value, gradient (d,) and Hessian (d, d) at the origin.
    """

    problem: Problem | None
    whitening: Whitening
    quadratic: tuple[float, Array, Array] | None

    @classmethod
    def of(cls, problem: Problem, whitening: Whitening) -> "WhitenedPrior":
        """Prior of a problem in the coordinates of an ensemble."""
        if not problem.gaussian_prior:
            return cls(problem, whitening, None)
        d = len(whitening.mean)
        points = whitening.particles(np.vstack([np.zeros(d), np.eye(d)]))
        gradients = problem.prior_gradient(points) @ whitening.root
        H = gradients[1:] - gradients[0]
        value = float(problem.prior_potential(points[:1])[0])
        return cls(problem, whitening, (value, gradients[0], 0.5 * (H + H.T)))

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Values (n,) and gradients (n, d) at points (n, d)."""
        if self.quadratic is not None:
            value, gradient, H = self.quadratic
            Hx = x @ H
            return value + x @ gradient + 0.5 * (x * Hx).sum(1), gradient + Hx
        assert self.problem is not None
        U = self.whitening.particles(x)
        with np.errstate(invalid="ignore", over="ignore"):  # far out it may be infinite
            potential, gradient = prior_and_gradient(self.problem, U)
            return potential, gradient @ self.whitening.root


@dataclass(frozen=True)
class NoiseLaw:
    """Noise of observed losses: its variance grows linearly with the smooth loss.

    Roughness of the outputs enters a loss in proportion to the residuals, and by its own square.

    Attributes
    ----------
    least : float
        Loss above which it grows.
    base : float
        Excess over the least loss that the noise at the least loss is worth.
    mean : float
        Mean of excess and base together, where the noise has the level of the process.
    """

    least: float
    base: float
    mean: float

    @classmethod
    def of(cls, loss: Array, observed: Array | None, dimension: int) -> "NoiseLaw":
        """Law for the smooth losses of points, shape (n,).

        Parameters
        ----------
        loss : ndarray of shape (n,)
            Predicted losses.
        observed : ndarray of shape (n,) or None
            Those that were evaluated; without them the base is half the dimension.
        dimension : int
        """
        least, base = float(np.quantile(loss, 0.02)), 0.5 * dimension
        excess = np.maximum(loss - least, 0)
        if observed is not None:
            # most probable base for residuals with a Laplace law; outliers do not lead it
            bases = base * 2.0 ** np.arange(LARGEST_BASE)
            variance = excess + bases[:, None]
            size = (np.abs(observed - loss) + np.finfo(float).tiny) / np.sqrt(variance)
            size = np.minimum(size, OUTLIER * np.median(size, axis=1, keepdims=True))
            fit = np.log(size.mean(1)) + 0.5 * np.log(variance).mean(1)
            base = float(bases[fit.argmin()])
        return cls(least, base, float(excess.mean()) + base)

    def __call__(self, loss: Array) -> Array:
        """Variances of the noise relative to one another, at smooth losses."""
        return (np.maximum(loss - self.least, 0) + self.base) / self.mean  # eq. (G7)


@dataclass(frozen=True)
class Surface:
    """What a surrogate says at points.

    Attributes
    ----------
    potential : ndarray of shape (n,)
    gradient : ndarray of shape (n, d)
    prior : ndarray of shape (n,)
        Prior potential in it.
    loss_sd : ndarray of shape (n,) or None
        Standard deviation of the loss, if it was asked for.
    """

    potential: Array
    gradient: Array
    prior: Array
    loss_sd: Array | None = None


@dataclass(frozen=True)
class SurrogatePosterior:
    """Negative log posterior of a surrogate.

    Attributes
    ----------
    whitening : Whitening
    prior : WhitenedPrior
    target : Target
    process : GaussianProcess
    noise_law : NoiseLaw or None
        How the noise of losses depends on them; None where all values have equal noise.
    """

    whitening: Whitening
    prior: WhitenedPrior
    target: Target
    process: GaussianProcess
    noise_law: NoiseLaw | None = None

    def bound(self, problem: Problem | None) -> "SurrogatePosterior":
        """Posterior with its problem, or, for a state that is stored, without."""
        target = self.target
        if isinstance(target, ForwardTarget):
            target = replace(target, problem=problem)
        return replace(self, prior=replace(self.prior, problem=problem), target=target)

    def predicted(self, U: Array, n_outputs: int) -> Ensemble:
        """Particles (n, d) with the losses that the surrogate predicts; outputs are not known."""
        x = self.whitening.coordinates(U)
        return Ensemble(U, np.full((len(U), n_outputs), np.nan), self.loss(x), self.prior(x)[0])

    @property
    def dimension(self) -> int:
        """Number d of coordinates."""
        return len(self.whitening.mean)

    def loss(self, x: Array, function: Function | None = None) -> Array:
        """Predicted losses at whitened points (n, d)."""
        return self.target.loss(self.process.evaluate(x, function)[0])[0]

    def potential(
        self, x: Array, function: Function | None = None, exponent: float = 1.0
    ) -> tuple[Array, Array]:
        """Potential ``exponent * loss + prior``, shape (n,), and its gradient, shape (n, d)."""
        surface = self.surface(x, function, exponent)
        return surface.potential, surface.gradient

    def surface(
        self,
        x: Array,
        function: Function | None = None,
        exponent: float = 1.0,
        *,
        with_sd: bool = False,
    ) -> Surface:
        """The same, with the prior in it and, if it is asked for, the sd of the loss."""
        there = self.process.at(x)
        loss, weights = self.target.loss(there.values(function))
        prior, gradient = self.prior(x)
        sd = self._loss_sd(weights, there.sd()) if with_sd else None
        with np.errstate(invalid="ignore", over="ignore"):
            gradient = exponent * there.pull_back(weights, function) + gradient
            return Surface(exponent * loss + prior, gradient, prior, sd)

    def relative_noise(self, loss: Array) -> Array | None:
        """Variances of the noise of losses relative to one another; None if they are equal."""
        return None if self.noise_law is None else self.noise_law(loss)

    def loss_sd(self, x: Array) -> Array:
        """Standard deviation of the surrogate's loss at points, shape (n,), by its slopes."""
        there = self.process.at(x)
        return self._loss_sd(self.target.loss(there.values())[1], there.sd())

    def _loss_sd(self, weights: Array, sd: Array) -> Array:
        """The same by the gradient of the loss and the sd of the values, both (n, k)."""
        variance = ((weights * sd) ** 2).sum(1)  # eq. (G6)
        if isinstance(self.target, ForwardTarget):
            variance = variance + 0.5 * (sd**4).sum(1)
        return np.sqrt(variance)

    def loss_noise(self, x: Array) -> Array:
        """Standard deviation of the noise of observed losses at points, shape (n,)."""
        values, _ = self.process.evaluate(x)
        loss, weights = self.target.loss(values)
        noise = self.process.noise
        covariance = self.process.noise_correlation * noise * noise[:, None]
        variance = ((weights @ covariance) * weights).sum(1)
        relative = self.relative_noise(loss)
        if relative is not None:
            variance = variance * relative
        if isinstance(self.target, ForwardTarget):
            variance = variance + 0.5 * (covariance**2).sum()
        return np.sqrt(variance)

    @property
    def loss_offset(self) -> float:
        """By how much observed losses exceed predicted ones on average: the trace of the noise."""
        if isinstance(self.target, ForwardTarget):
            return 0.5 * float((self.process.noise**2).sum() + self.target.lost)
        return 0.0
