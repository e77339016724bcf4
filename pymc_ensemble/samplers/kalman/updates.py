"""Kalman updates for any loss, by the coefficients of the particles: no matrix of size d or K."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_ensemble.samplers.ensemble import Array, Ensemble, EnsembleFailure, Problem

SAME = 1e-12  # relative size below which a number counts as rounding
FEWEST = 10  # fewest survivors of a round, or a quarter of the ensemble; with fewer it ends


def enough(n: int, size: int) -> bool:
    """Whether n members of an ensemble are enough to draw the others anew."""
    return n >= max(min(FEWEST, size), size / 4)


def momentum(step: int) -> float:
    """Share of the last move that particles repeat, in Nesterov's method."""
    return step / (step + 3)  # eq. (V7)


@dataclass(frozen=True)
class Linearization:
    """Linearization of an evaluated ensemble, as an update needs it.

    Attributes
    ----------
    mean : ndarray of shape (d,)
    E : ndarray of shape (J, d)
        Deviations of the particles from their mean, over the root of J - 1.
    F : ndarray of shape (J, K)
        Deviations of the outputs, in the same way.
    force : ndarray of shape (J,)
        Gradient at the mean, by the coefficients of the particles.
    gradient, curvature : ndarray of shape (K,)
        Gradient and curvature of the loss, at the mean output.
    rates : ndarray of shape (J,)
        Eigenvalues of the curvature by the coefficients of the particles, not negative.
    V : ndarray of shape (J, J)
        Eigenvectors of this curvature.
    prior : ndarray of shape (J, J) or None
        Part of the prior in this curvature.
    """

    mean: Array
    E: Array
    F: Array
    force: Array
    gradient: Array
    curvature: Array
    rates: Array
    V: Array
    prior: Array | None = None

    @classmethod
    def of(cls, problem: Problem, ensemble: Ensemble, with_prior: bool) -> "Linearization":
        """Linearize the loss, and the potential of the prior if wanted, about an ensemble."""
        U, Z = ensemble.U, ensemble.Z
        root = np.sqrt(len(U) - 1)
        mean, middle = U.mean(0), Z.mean(0, keepdims=True)
        E, F = (U - mean) / root, (Z - middle) / root
        [g], [h] = problem.loss_gradient(middle), problem.curvature(middle)
        with np.errstate(over="ignore", invalid="ignore"):
            S, force, prior = (F * h) @ F.T, F @ g, None  # eq. (V1)
            if with_prior:
                prior = _prior_curvature(problem, U, E)
                S = S + prior
                force = force + E @ problem.prior_gradient(mean[None])[0]
        if not (np.isfinite(S).all() and np.isfinite(force).all()):
            raise EnsembleFailure(
                "The information of the forward outputs, or the gradient at their mean, is not "
                "finite: the outputs differ by too many orders of magnitude."
            )
        rates, V = np.linalg.eigh(S)
        return cls(mean, E, F, force, g, h, np.maximum(rates, 0.0), V, prior)

    def solve(self, right: Array, dt: float) -> Array:
        """Solve ``(1 + dt S) x = right``."""
        return self.V @ ((self.V.T @ right).T / (1 + dt * self.rates)).T

    @property
    def controlled_step(self) -> float:
        """Time step of the data misfit controller, at most one.

        It is that of the Gaussian problem that the update solves. The data of that problem are
        those at which the linearized gradient vanishes.
        """
        J, K = self.F.shape
        h = self.curvature
        residuals = self.gradient + h * np.sqrt(J - 1) * self.F
        misfit = 0.5 * (residuals[:, h > 0] ** 2 / h[h > 0]).sum(1)
        mean, sd = misfit.mean(), misfit.std(ddof=1)
        limits = [K / (2 * mean) if mean > 0 else 1.0, np.sqrt(K / 2) / sd if sd > 0 else 1.0]
        return float(min(max(limits), 1.0))  # eq. (V5)

    @cached_property
    def within_span(self) -> tuple[Array, Array]:
        """Rates, and the force along their eigenvectors, as far as parameters can follow.

        If there are fewer parameters than particles, and the map is not linear, outputs deviate
        from their mean in more directions than parameters.
        """
        along = self.V.T @ self.force
        if self.E.shape[1] >= len(self.E) - 1:
            return self.rates, along
        Q, s, _ = np.linalg.svd(self.E, full_matrices=False)
        turned = self.V.T @ Q[:, s > SAME * s[0]]
        rates, W = np.linalg.eigh((turned.T * self.rates) @ turned)
        return np.maximum(rates, 0.0), W.T @ turned.T @ along

    @property
    def information(self) -> float:
        """Effective number of dimensions that the data inform, ``tr S (1 + S)^-1``."""
        rates, _ = self.within_span
        return float((rates / (1 + rates)).sum())  # eq. (V11)

    @property
    def gain(self) -> float:
        """Fall of the potential that is still possible within the span, by its linearization."""
        rates, along = self.within_span
        known = rates > SAME * rates.max(initial=0.0)
        return float(0.5 * (along[known] ** 2 / rates[known]).sum())  # eq. (V10)

    def mean_step(self, dt: float) -> tuple[Array, Array]:
        """Step of the mean, shape (d,), and that of its outputs by the linearization, (K,)."""
        weights = -dt * self.solve(self.force, dt)
        return weights @ self.E, weights @ self.F  # eq. (V2)


def _prior_curvature(problem: Problem, U: Array, E: Array) -> Array:
    """Curvature of the prior potential by the coefficients of the particles: its positive part."""
    gradients = problem.prior_gradient(U)
    D = (gradients - gradients.mean(0)) / np.sqrt(len(U) - 1)
    S = E @ D.T
    if problem.gaussian_prior:
        return 0.5 * (S + S.T)
    # S of a matrix P0 in place of the Hessian is E P0 E^T, and D = E P0 only on average
    Q, s, W = np.linalg.svd(E, full_matrices=False)
    keep = s > len(E) * np.finfo(float).eps * s[0]
    Q, s, W = Q[:, keep], s[keep], W[keep]
    slope = (Q.T @ D @ W.T) / s[:, None]  # regression of the gradients: Stein's identity
    values, vectors = np.linalg.eigh(0.5 * (slope + slope.T))
    half = (Q * s) @ vectors * np.sqrt(np.maximum(values, 0.0))
    return half @ half.T


def transformed(law: Linearization, dt: float, inflation: float) -> Array:
    """Deterministic update: mean and covariance are exactly those of the Kalman formula."""
    mean = law.mean + law.mean_step(dt)[0]
    root = (law.V / np.sqrt(1 + dt * law.rates)) @ law.V.T
    return mean + inflation * np.sqrt(len(law.E) - 1) * (root @ law.E)  # eq. (V3)


def perturbed(
    law: Linearization,
    ensemble: Ensemble,
    slopes: Array | None,
    dt: float,
    weights: Array | None,
    rng: np.random.Generator,
) -> Array:
    """Stochastic update: each particle sees data with its own noise.

    Parameters
    ----------
    law : Linearization
    ensemble : Ensemble
    slopes : ndarray of shape (J, d) or None
        Gradients of the prior potential at the particles, if it counts.
    dt : float
    weights : ndarray of shape (d, K) or None
        Weights of the covariance between parameters and outputs.
    rng : numpy.random.Generator
    """
    J = len(ensemble)
    noise = rng.standard_normal(ensemble.Z.shape)
    deviations = np.sqrt(J - 1) * law.F
    q = dt * (law.gradient + law.curvature * deviations) + np.sqrt(dt * law.curvature) * noise
    if weights is not None:
        inner = law.solve(law.F @ q.T, dt)
        r = q - dt * law.curvature * (inner.T @ law.F)
        return ensemble.U - r @ (weights * (law.E.T @ law.F)).T
    right = law.F @ q.T
    if slopes is not None and law.prior is not None:
        values, vectors = np.linalg.eigh(law.prior)
        half = vectors * np.sqrt(np.maximum(values, 0.0))
        right += dt * law.E @ slopes.T + np.sqrt(dt) * half @ rng.standard_normal((J, J))
    return ensemble.U - law.solve(right, dt).T @ law.E
