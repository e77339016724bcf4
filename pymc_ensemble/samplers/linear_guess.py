"""Gaussian laws of forward maps that an ensemble shows to be linear."""

from dataclasses import replace

import numpy as np

from .ensemble import Array, Ensemble, Problem, has_forward_map
from .linearization import Anomalies, GaussianLaw, LinearMap, gaussian_law

NEWTON_STEPS = 20
SMALLEST_SHARE = 1e-6  # of a Newton step: what is left is rounding
NO_STEP = 1e-8  # squared length of a Newton step per dimension, in posterior sd, at the mode
LINEAR_RESIDUAL = 0.05  # curvature-weighted residual per parameter below which a map is linear


def linear_guess(problem: Problem, ensemble: Ensemble) -> GaussianLaw | None:
    """Gaussian law of a problem whose forward map the ensemble shows to be linear, else None.

    The fitted map replaces the forward map in Newton's method for the mode, so no evaluation is
    spent on the way.
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
        or problem.curvature(law.map.output_mean[None])[0] @ residual > LINEAR_RESIDUAL * d
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
    for _ in range(NEWTON_STEPS):
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
