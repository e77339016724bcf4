"""Proposal kernels of the Metropolis tests, each one vectorized over the particles.

Every function returns the proposed particles, shape (n, d), and the logarithm of the proposal ratio
``log q(u | u') - log q(u' | u)``, shape (n,).
"""

from collections.abc import Sequence

import numpy as np

from .ensemble import Array
from .linearization import Anomalies, GaussianLaw

DE_JITTER = 1e-5  # in ensemble standard deviations: makes the kernel irreducible
DE_MODE_JUMP = 0.1  # probability of a full difference step, which connects modes


def tail_degrees(dimension: int) -> int:
    """Degrees of freedom of Student-t proposals: heavy tails, but not heavier than needed."""
    return max(5, dimension)


def independence(
    laws: Sequence[GaussianLaw], U: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw from a mixture of Student-t laws, independent of the present particles.

    Parameters
    ----------
    laws : sequence of GaussianLaw
        Centers and scales of the components, which have equal weights, in the same coordinates.
    U : ndarray of shape (n, d)
        Present particles.
    rng : numpy.random.Generator
    """
    n, (linear_map, r) = len(U), (laws[0].map, laws[0].anomalies.rank)
    nu = tail_degrees(U.shape[1])
    tail = np.sqrt(rng.chisquare(nu, n) / nu)[:, None]
    draws = [law.center + law.spread(law.noise(n, rng) / tail) for law in laws]
    proposed = np.choose(rng.integers(len(laws), size=n)[:, None], draws)

    def log_density(x: Array) -> Array:
        logs = [
            0.5 * np.log(law.rates).sum() - 0.5 * (nu + r) * np.log1p(law.distance(x) / nu)
            for law in laws
        ]
        return np.logaddexp.reduce(logs)

    x = linear_map.coordinates(U)
    return linear_map.particles(proposed), log_density(x) - log_density(proposed)


def relaxation(
    law: GaussianLaw, U: Array, force: Array, dt: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Move by the exact Ornstein-Uhlenbeck transition of `law` over the time `dt`.

    With the force of the law itself, shape (n, r), the proposal is reversible for the law.
    """
    x = law.map.coordinates(U)
    moved = law.relax(x, force, dt, law.noise(len(U), rng))
    return law.map.particles(moved), 0.5 * (law.distance(moved) - law.distance(x))


def autoregressive(
    law: GaussianLaw, U: Array, correlation: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Gaussian moves that keep the share `correlation` of the present deviation from the center."""
    x = law.map.coordinates(U)
    noise = law.spread(law.noise(len(U), rng))
    proposed = law.center + correlation * (x - law.center) + np.sqrt(1 - correlation**2) * noise
    return law.map.particles(proposed), 0.5 * (law.distance(proposed) - law.distance(x))


def differential_evolution(
    anomalies: Anomalies, U: Array, partners: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Step along the difference of two `partners`, shape (m, d), that stay where they are."""
    n, d = U.shape
    first = rng.integers(len(partners), size=n)
    second = (first + rng.integers(1, len(partners), size=n)) % len(partners)
    factor = np.where(rng.random(n) < DE_MODE_JUMP, 1.0, 2.38 / np.sqrt(2 * d))[:, None]
    jitter = DE_JITTER * rng.standard_normal((n, anomalies.rank)) @ anomalies.frame
    step = factor * (partners[first] - partners[second]) + jitter @ anomalies.L.T
    return U + step, np.zeros(n)


def acceptance(potential: Array, proposed_potential: Array, log_ratio: Array) -> Array:
    """Metropolis acceptance probability; a failed proposal (infinite potential) is rejected."""
    with np.errstate(invalid="ignore", over="ignore"):
        log_alpha = np.minimum(0.0, potential - proposed_potential + log_ratio)
    return np.where(np.isfinite(proposed_potential), np.exp(log_alpha), 0.0)
