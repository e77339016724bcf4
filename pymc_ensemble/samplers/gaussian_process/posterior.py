"""Posterior density of a Gaussian-process surrogate, in the coordinates of an ensemble."""

from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, Problem, prior_and_gradient

from .regression import Function, GaussianProcess
from .targets import ForwardTarget, Target

LARGEST_BASE = 8  # doublings of the base of the noise of losses
OUTLIER = 5.0  # larger residuals count as this one, in units of their median
FLAT = 1e-12  # variance for directions without spread: sds may differ by a factor of a million


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
        """Whiten particles of shape (n, d). Directions without spread get a very small one."""
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
class WhitenedPrior:
    """Prior potential in whitened coordinates. A quadratic one is computed once.

    Attributes
    ----------
    problem : InverseProblem or None
        Known while the prior is in use, but not stored.
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


def smallest(loss: Array) -> float:
    """Quantile that stands for the smallest loss, as one lucky value would move the minimum."""
    return float(np.quantile(loss, 0.02))


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
        least, base = smallest(loss), 0.5 * dimension
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
    """Predictions of a surrogate at points.

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
        Noise of losses as a function of the loss. None if all values have equal noise.
    """

    whitening: Whitening
    prior: WhitenedPrior
    target: Target
    process: GaussianProcess
    noise_law: NoiseLaw | None = None

    def bound(self, problem: Problem | None) -> "SurrogatePosterior":
        """Posterior with its problem, or without it, for a state that is stored."""
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
        """Potential and gradient, with the prior and, on request, the sd of the loss."""
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
        by_slope, squares = weights * sd, sd * sd
        variance = np.vecdot(by_slope, by_slope)  # eq. (G6)
        if isinstance(self.target, ForwardTarget):
            variance += 0.5 * np.vecdot(squares, squares)
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
        """Mean excess of observed losses over predicted ones: half the trace of the noise."""
        if isinstance(self.target, ForwardTarget):
            return 0.5 * float((self.process.noise**2).sum() + self.target.lost)
        return 0.0
