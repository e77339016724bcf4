"""Statistical linearization: the Gaussian law of an ensemble."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pymc_ensemble.samplers.words import number

from .ensemble import Array, Ensemble, EnsembleFailure, Problem, has_forward_map

SINGULAR_VALUE_CUTOFF = 1e-10  # relative: an absolute one would break affine invariance
ROUNDING = 1e-14  # a coordinate with less relative spread counts as constant
SMALLEST_RATE = 1e-12
# Distance per root of the dimension, in sd of an ensemble, up to which its linear map means
# something: typical draws have the distance one.
FARTHEST = 2.0
FOR_EACH = 4  # members for each parameter that tell a covariance well
MOST_LOST = 0.2  # share of its members that a fit can do without
# Up to this nonlinearity, squared and in units of the noise, a map counts as linear: as a share of
# the force's deviation, per parameter, or as an error of the loss.
NEARLY_LINEAR = 0.1
SMALLEST_CONCAVE_RATE = 0.05  # if the prior is not Gaussian: no law is far wider than its ensemble


@dataclass(frozen=True)
class Anomalies:
    """Weighted mean of an ensemble and a factor of its covariance, ``C = L L^T``.

    Attributes
    ----------
    mean : ndarray of shape (d,)
    L, L_pinv : ndarray of shape (d, r) and (r, d)
        Covariance factor of rank r and its pseudo-inverse.
    Q : ndarray of shape (N, r)
        Orthonormal columns: the members' normalized coordinates.
    weights : ndarray of shape (N,)
        Weights of the members, summing to one.
    """

    mean: Array
    L: Array
    L_pinv: Array
    Q: Array
    weights: Array

    @classmethod
    def of(cls, U: Array, weights: Array | None = None) -> "Anomalies":
        """Anomalies of the particles `U`, shape (N, d), by a thin singular value decomposition."""
        weights = np.full(len(U), 1 / len(U)) if weights is None else weights / weights.sum()
        mean = weights @ U
        E = np.sqrt(weights)[:, None] * (U - mean)
        scale = np.sqrt((E**2).sum(0))
        constant = scale <= ROUNDING * np.abs(mean)
        E[:, constant], scale[constant] = 0.0, 1.0
        Q, s, Wt = np.linalg.svd(E / scale, full_matrices=False)  # eq. (K3)
        keep = s > SINGULAR_VALUE_CUTOFF * s[0]
        Q, s, W = Q[:, keep], s[keep], Wt[keep].T
        return cls(mean, scale[:, None] * W * s, (W / s / scale[:, None]).T, Q, weights)

    @property
    def rank(self) -> int:
        """Dimension of the span of the ensemble."""
        return self.L.shape[1]

    def project(self, values: Array) -> Array:
        """Covariance of `values`, shape (N, k), with the normalized coordinates: ``(k, r)``."""
        root = np.sqrt(self.weights)[:, None]
        return (values - self.weights @ values).T @ (root * self.Q)

    @cached_property
    def frame(self) -> Array:
        """Rotation attached to the members, shape (r, r).

        Singular vectors are defined up to a rotation that depends on the coordinates. The polar
        factor of a few cosine waves over the members, in normalized coordinates, rotates with them.
        So noise that is multiplied by it moves every particle in the same way in all affine
        coordinates. (Coordinates of single members would not be enough: copies of the same member
        leave the factor undetermined.)
        """
        N = len(self.Q)
        # eq. (K10)
        waves = np.cos(np.pi / N * np.outer(np.arange(1, self.rank + 1), np.arange(N) + 0.5))
        left, _, right = np.linalg.svd(waves @ self.Q)
        return left @ right

    @cached_property
    def log_volume(self) -> float:
        """Half the log determinant of the covariance within the span."""
        if self.rank < len(self.mean):
            return np.log(np.linalg.svd(self.L, compute_uv=False)).sum()
        units = np.linalg.norm(self.L, axis=1)  # taken apart: large units would hide small ones
        return np.log(units).sum() + np.linalg.slogdet(self.L / units[:, None])[1]


@dataclass(frozen=True)
class LinearMap:
    """Affine fit of the forward outputs, ``z(u) = output_mean + slope L_pinv (u - mean)``.

    Attributes
    ----------
    anomalies : Anomalies
        Statistics of the ensemble whose coordinates ``x = L_pinv (u - mean)`` are used.
    output_mean : ndarray of shape (K,)
        Fitted outputs at the ensemble mean.
    slope : ndarray of shape (K, r)
        Fitted derivative of the outputs in the coordinates ``x``.
    """

    anomalies: Anomalies
    output_mean: Array
    slope: Array

    @classmethod
    def fit(cls, anomalies: Anomalies, Z: Array) -> "LinearMap":
        """Least-squares fit to the outputs `Z`, shape (N, K), of the ensemble itself."""
        return cls(anomalies, anomalies.weights @ Z, anomalies.project(Z))  # eq. (K4)

    def residual_variance(self, U: Array, Z: Array) -> Array:
        """Variance of the outputs `Z` of the members `U` about the fit, shape (K,)."""
        lost = (self.anomalies.rank + 1) / len(U)
        with np.errstate(over="ignore"):
            return self.anomalies.weights @ (Z - self(U)) ** 2 / max(1 - lost, lost)

    def slope_without_noise(self, residual_variance: Array, curvature: Array) -> Array:
        """Slope, shape (K, r), shrunk so that its information is right on average.

        Fluctuations of a rough map enter the slope as noise, and the information matrix is
        quadratic in the slope. Without the correction the law becomes too narrow, and a narrow
        ensemble resolves the fluctuations that the fit should average.

        Parameters
        ----------
        residual_variance : ndarray of shape (K,)
            Variance of the outputs about the fit.
        curvature : ndarray of shape (K,)
            Curvature weights of the outputs.
        """
        weights = self.anomalies.weights
        noise = (curvature @ residual_variance) * (weights @ weights)
        information, V = np.linalg.eigh((self.slope.T * curvature) @ self.slope)
        least = max(noise, np.finfo(float).tiny)  # less information is only noise
        shrink = np.sqrt(1 - noise / np.maximum(information, least))  # eq. (K7)
        return self.slope @ (V * shrink) @ V.T

    def coordinates(self, U: Array) -> Array:
        """Map particles `U`, shape (J, d), to normalized coordinates, shape (J, r)."""
        return (U - self.anomalies.mean) @ self.anomalies.L_pinv.T

    def particles(self, x: Array) -> Array:
        """Particles with the normalized coordinates `x`, shape (J, d)."""
        return self.anomalies.mean + x @ self.anomalies.L.T

    def __call__(self, U: Array) -> Array:
        """Fitted outputs at `U`, shape (J, K)."""
        return self.output_mean + self.coordinates(U) @ self.slope.T


@dataclass(frozen=True)
class GaussianLaw:
    """Gaussian approximation ``N(m, P^-1)`` of the posterior from a linearized forward map.

    In the coordinates ``x`` of the linear map the law has precision ``H = R diag(rates) R^T`` and
    the force ``force - H x``.

    Attributes
    ----------
    map : LinearMap
    rates : ndarray of shape (r,)
        Eigenvalues of ``H``: relaxation rates of the preconditioned dynamics.
    R : ndarray of shape (r, r)
        Eigenvectors of ``H``.
    force : ndarray of shape (r,)
        Force at the ensemble mean.
    """

    map: LinearMap
    rates: Array
    R: Array
    force: Array

    @property
    def anomalies(self) -> Anomalies:
        """Statistics of the ensemble behind the law."""
        return self.map.anomalies

    @cached_property
    def center(self) -> Array:
        """Coordinates of the mean of the law, shape (r,)."""
        return self.R @ ((self.R.T @ self.force) / self.rates)

    @property
    def mean(self) -> Array:
        """Mean of the law, shape (d,)."""
        return self.map.particles(self.center)

    @property
    def precision(self) -> Array:
        """Precision matrix of the law within the span of the ensemble, shape (d, d)."""
        root = self.anomalies.L_pinv.T @ (self.R * np.sqrt(self.rates))
        return root @ root.T

    @property
    def covariance(self) -> Array:
        """Covariance matrix of the law, shape (d, d)."""
        root = self.anomalies.L @ (self.R / np.sqrt(self.rates))
        return root @ root.T

    def distance(self, x: Array) -> Array:
        """Squared Mahalanobis distance ``|x - center|_H^2`` of coordinates `x`, shape (J,)."""
        return ((x - self.center) @ self.R) ** 2 @ self.rates

    def log_density(self, U: Array) -> Array:
        """Evaluate the normalized log density at `U` in unconstrained coordinates, shape (J,)."""
        log_det = 0.5 * np.log(self.rates).sum() - self.anomalies.log_volume
        r = self.anomalies.rank
        # eq. (K8)
        return log_det - 0.5 * r * np.log(2 * np.pi) - 0.5 * self.distance(self.map.coordinates(U))

    def noise(self, size: int, rng: np.random.Generator) -> Array:
        """Draw standard normal vectors along the eigenvectors of ``H``, shape (size, r)."""
        return rng.standard_normal((size, self.anomalies.rank)) @ (self.anomalies.frame @ self.R)

    def spread(self, xi: Array) -> Array:
        """Turn standard noise `xi` into deviations from the center with covariance ``H^-1``."""
        return (xi / np.sqrt(self.rates)) @ self.R.T

    def relax(self, x: Array, force: Array, dt: float, xi: Array) -> Array:
        """Exact Ornstein-Uhlenbeck transition over the time `dt` from `x` under `force`.

        Parameters
        ----------
        x, force, xi : ndarray of shape (J, r)
            Coordinates, force at them, and standard noise along the eigenvectors.
        dt : float
            Time step; ``inf`` gives independent draws.
        """
        pull = -np.expm1(-self.rates * dt) / self.rates  # eq. (K9)
        kick = np.sqrt(-np.expm1(-2 * self.rates * dt) / self.rates)
        return x + ((force @ self.R) * pull + xi * kick) @ self.R.T

    def linear_force(self, x: Array) -> Array:
        """Force of the law itself at the coordinates `x`, shape (J, r)."""
        return self.force - ((x @ self.R) * self.rates) @ self.R.T  # eq. (K9)


def moment_law(anomalies: Anomalies, linear_map: LinearMap | None = None) -> GaussianLaw:
    """Gaussian law with the moments of an ensemble, and with its linear map, if there is one."""
    r = anomalies.rank
    no_map = LinearMap(anomalies, np.empty(0), np.empty((0, r)))
    return GaussianLaw(linear_map or no_map, np.ones(r), np.eye(r), np.zeros(r))


def prior_slope(problem: Problem, anomalies: Anomalies, U: Array) -> tuple[Array, Array]:
    """Mean gradient of the prior potential and its regression slope, in normalized coordinates.

    For a Gaussian prior the slope is the transformed prior precision. For any other prior it is
    the ensemble average of the Hessian, by Stein's identity. The indefinite part is dropped.

    Returns
    -------
    gradient : ndarray of shape (r,)
    slope : ndarray of shape (r, r)

    Raises
    ------
    EnsembleFailure
        If the gradient is not finite at one of the points.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        gradients = problem.prior_gradient(U)
    bad = np.argwhere(~np.isfinite(gradients))
    if len(bad):
        member, coordinate = bad[0]
        raise EnsembleFailure(
            "The gradient of the log prior is not finite in the coordinate "
            f"{_name(problem, coordinate)}, where this coordinate is "
            f"{number(U[member, coordinate], '.4g')}."
        )
    slope = anomalies.project(gradients @ anomalies.L)  # eq. (K6)
    slope = 0.5 * (slope + slope.T)
    if not problem.gaussian_prior:
        values, vectors = np.linalg.eigh(slope)
        slope = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return (anomalies.weights @ gradients) @ anomalies.L, slope


def information(problem: Problem, linear_map: LinearMap) -> Array:
    """Information about the normalized coordinates in the outputs at the mean, shape (r, r).

    Raises
    ------
    EnsembleFailure
        If the information is not finite.
    """
    A = linear_map.slope
    with np.errstate(over="ignore", invalid="ignore"):
        H = (A.T * problem.curvature(linear_map.output_mean[None])[0]) @ A
        if np.isfinite(H).all():
            return H
        # change of the outputs by one standard deviation of each coordinate, with the others fixed
        anomalies = linear_map.anomalies
        slope = np.nan_to_num(A / np.abs(A).max(), nan=1.0) @ anomalies.L_pinv
        steepness = np.abs(slope).max(0) * np.linalg.norm(anomalies.L, axis=1)
    raise EnsembleFailure(
        "The forward outputs are so steep that their information matrix overflows. They change "
        f"most along the coordinate {_name(problem, int(steepness.argmax()))}."
    )


def without_noise(problem: Problem, linear_map: LinearMap, residual_variance: Array) -> LinearMap:
    """Linear map whose slope is corrected for the noise of a rough map.

    Raises
    ------
    EnsembleFailure
        If the information of the outputs is not finite.
    """
    information(problem, linear_map)
    curvature = problem.curvature(linear_map.output_mean[None])[0]
    slope = linear_map.slope_without_noise(residual_variance, curvature)
    return replace(linear_map, slope=slope)


def _name(problem: Problem, coordinate: int) -> str:
    """Name of a coordinate, if the problem knows it, or its number."""
    names = getattr(problem, "coordinate_names", None)
    return f"number {coordinate}" if names is None else f"`{names[coordinate]}`"


def gaussian_law(
    problem: Problem, linear_map: LinearMap, U: Array, exponent: float = 1.0
) -> GaussianLaw:
    """Linearize the (tempered) posterior around the mean of an ensemble.

    Parameters
    ----------
    problem : InverseProblem
    linear_map : LinearMap
        Fit of the forward map in the coordinates of the ensemble.
    U : ndarray of shape (N, d)
        The ensemble behind ``linear_map.anomalies``, for the slope of the prior gradient.
    exponent : float, default 1.0
        Inverse temperature of the loss.

    Returns
    -------
    GaussianLaw
        Without a forward map, it is the law with the moments of the ensemble.

    Raises
    ------
    EnsembleFailure
        If the information of the outputs or the slope of the prior is not finite.
    """
    if not has_forward_map(problem):
        return moment_law(linear_map.anomalies, linear_map)
    z = linear_map.output_mean[None]
    prior_gradient, slope = prior_slope(problem, linear_map.anomalies, U)
    H = exponent * information(problem, linear_map) + slope  # eq. (K5)
    rates, R = np.linalg.eigh(H)
    force = -(exponent * problem.loss_gradient(z)[0] @ linear_map.slope + prior_gradient)
    smallest = SMALLEST_RATE if problem.gaussian_prior else SMALLEST_CONCAVE_RATE
    return GaussianLaw(linear_map, np.maximum(rates, smallest), R, force)


def fit_law(
    problem: Problem,
    ensemble: Ensemble,
    weights: Array | None = None,
    exponent: float = 1.0,
    rough: bool = False,
) -> GaussianLaw:
    """Gaussian law of an evaluated ensemble. Members that failed or have no weight are ignored.

    With ``rough=True`` the slope is corrected for the noise of a rough map.
    """
    used = ensemble.ok if weights is None else ensemble.ok & (weights > 0)
    members = ensemble[used]
    anomalies = Anomalies.of(members.U, None if weights is None else weights[used])
    linear_map = LinearMap.fit(anomalies, members.Z)
    if rough:
        residual = linear_map.residual_variance(members.U, members.Z)
        linear_map = without_noise(problem, linear_map, residual)
    return gaussian_law(problem, linear_map, members.U, exponent)
