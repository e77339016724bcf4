"""Linear guess: the posterior of a forward map that is linear on the first ensemble."""

from dataclasses import replace

import numpy as np

from .ensemble import Array, Ensemble, Problem, has_forward_map
from .linearization import NEARLY_LINEAR, Anomalies, GaussianLaw, LinearMap, gaussian_law
from .options import PATIENCE
from .proposals import independence
from .weights import normalized_weights, systematic_resample

SMALLEST_SHARE = 1e-6  # share of a Newton step: a smaller one is rounding
NO_STEP = 1e-8  # squared length of a Newton step per dimension, in posterior sd, at the mode
TRUSTED = 0.9  # share of draws of a law, effective or accepted, with which it is the posterior
CANDIDATES = 20  # draws from which each one that is evaluated is chosen


def linear_guess(problem: Problem, ensemble: Ensemble) -> GaussianLaw | None:
    """Gaussian law of a problem whose forward map is linear on the ensemble, otherwise None.

    The fitted map replaces the forward map in Newton's method for the mode, so this costs no
    evaluation.
    """
    members = ensemble[ensemble.ok]
    n, d = members.U.shape
    if n < 2 * (d + 2) or not has_forward_map(problem):
        return None
    anomalies = Anomalies.of(members.U)
    linear_map = LinearMap.fit(anomalies, members.Z)
    residual = ((members.Z - linear_map(members.U)) ** 2).sum(0) / (n - d - 1)
    law = newton_mode(problem, linear_map, members.U)
    if (
        law is None
        or problem.curvature(law.map.output_mean[None])[0] @ residual > NEARLY_LINEAR * d
    ):
        return None
    return law


def newton_mode(problem: Problem, linear_map: LinearMap, U: Array) -> GaussianLaw | None:
    """Gaussian law at the posterior mode of a linear forward map, by damped Newton steps."""
    x = np.zeros(linear_map.slope.shape[1])

    def shifted(x: Array) -> LinearMap:
        anomalies = linear_map.anomalies
        mean = linear_map.particles(x[None])[0]
        return LinearMap(
            replace(anomalies, mean=mean),
            linear_map.output_mean + linear_map.slope @ x,
            linear_map.slope,
        )

    def potential(x: Array) -> float:
        u = linear_map.particles(x[None])
        return (problem.loss(linear_map(u)) + problem.prior_potential(u))[0]

    current = potential(x)
    for _ in range(PATIENCE):
        law = gaussian_law(problem, shifted(x), linear_map.particles(linear_map.coordinates(U) + x))
        step, factor = law.center, 1.0
        while not (proposed := potential(x + factor * step)) <= current + 1e-9 * abs(current):
            factor /= 2
            if factor < SMALLEST_SHARE:
                return None
        x, current = x + factor * step, proposed
        if law.distance(np.zeros((1, len(x))))[0] < NO_STEP * len(x):
            return law
    return None


def guessed_draws(
    problem: Problem, law: GaussianLaw, size: int, rng: np.random.Generator
) -> tuple[Array, Array] | None:
    """Draw from the posterior of a linear map, whose loss or prior need not be Gaussian.

    If the Gaussian law at the mode is not that posterior, draws of a Student-t law about it are
    resampled by importance weights. The weights use the fitted map instead of the forward map, so
    they cost no evaluation.

    Parameters
    ----------
    problem : InverseProblem
    law : GaussianLaw
        Law at the mode of the posterior.
    size : int
        Number n of draws.
    rng : numpy.random.Generator

    Returns
    -------
    points : ndarray of shape (n, d)
    log_q : ndarray of shape (n,)
        Log density of the draws, up to a constant.
        Instead of both, None is returned if the law at the mode covers too little of the posterior.
    """

    def log_posterior(points: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            potential = problem.loss(law.map(points)) + problem.prior_potential(points)
        return np.where(np.isnan(potential), -np.inf, -potential)

    points = law.map.particles(law.center + law.spread(law.noise(size, rng)))
    log_q = law.log_density(points)
    if normalized_weights(log_posterior(points) - log_q)[1] > TRUSTED * size:
        return points, log_q
    parts = [independence((law,), points, rng)[::2] for _ in range(CANDIDATES)]
    points, log_q = (np.concatenate(values) for values in zip(*parts, strict=True))
    log_p = np.concatenate([log_posterior(part) for part, _ in parts])
    weights, effective_size = normalized_weights(log_p - log_q)
    if effective_size < size:
        return None  # draws would be copies
    chosen = systematic_resample(weights, size, rng.random())
    return points[chosen], log_p[chosen]
