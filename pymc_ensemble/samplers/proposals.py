"""Proposal kernels of the Metropolis tests, each one vectorized over the particles.

They return the proposed particles, shape (n, d), and, where that is not zero, the logarithm of the
proposal ratio ``log q(u | u') - log q(u' | u)``, shape (n,).
"""

from collections.abc import Sequence

import numpy as np
import scipy  # parts of it are loaded when they are used first

from .ensemble import Array
from .linearization import GaussianLaw

JITTER = 1e-5  # of differential evolution, in sd: makes the kernel irreducible
GOOD, POOR = 0.5, 0.25  # acceptance of draws of a law that suits, and that is far off
MODE_JUMP = 0.1  # probability of a step by the full difference, which connects modes


def tail_degrees(dimension: int) -> int:
    """Degrees of freedom of Student-t proposals: heavy tails, but not heavier than needed."""
    return max(5, dimension)


def independence(
    laws: Sequence[GaussianLaw], U: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Draw from a mixture of Student-t laws, independent of the present particles.

    Parameters
    ----------
    laws : sequence of GaussianLaw
        Centers and scales of the components, which have equal weights, in the same coordinates.
    U : ndarray of shape (n, d)
        Present particles.
    rng : numpy.random.Generator

    Returns
    -------
    points : ndarray of shape (n, d)
    log_ratio : ndarray of shape (n,)
    log_q : ndarray of shape (n,)
        Normalized log density of the mixture at the points.
    """
    n, linear_map, nu = len(U), laws[0].map, tail_degrees(U.shape[1])
    tail = np.sqrt(rng.chisquare(nu, n) / nu)[:, None]
    draws = [law.center + law.spread(law.noise(n, rng) / tail) for law in laws]
    x = np.choose(rng.integers(len(laws), size=n)[:, None], draws)
    before, after = (
        np.logaddexp.reduce([log_student_t(law, x, nu) for law in laws])
        for x in (linear_map.coordinates(U), x)
    )
    log_q = after - laws[0].anomalies.log_volume - np.log(len(laws))
    return linear_map.particles(x), before - after, log_q


def log_student_t(law: GaussianLaw, x: Array, nu: float) -> Array:
    """Log density at `x`, shape (n, r), of the Student-t law with center and scales of `law`."""
    r = law.anomalies.rank
    log_gamma = scipy.special.gammaln
    constant = log_gamma((nu + r) / 2) - log_gamma(nu / 2) - r / 2 * np.log(nu * np.pi)
    log_det = 0.5 * np.log(law.rates).sum()
    return constant + log_det - 0.5 * (nu + r) * np.log1p(law.distance(x) / nu)  # eq. (K16)


def relaxation(
    law: GaussianLaw, U: Array, force: Array, dt: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Move by the exact Ornstein-Uhlenbeck transition of `law` over the time `dt`.

    With the force of the law itself, shape (n, r), the proposal is reversible for the law.
    """
    x = law.map.coordinates(U)
    moved = law.relax(x, force, dt, law.noise(len(U), rng))  # eq. (K9)
    # eq. (K14)
    return law.map.particles(moved), 0.5 * (law.distance(moved) - law.distance(x))


def autoregressive(
    law: GaussianLaw, U: Array, correlation: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Gaussian moves that keep the share `correlation` of the present deviation from the center."""
    x = law.map.coordinates(U)
    noise = law.spread(law.noise(len(U), rng))
    # eq. (K18)
    proposed = law.center + correlation * (x - law.center) + np.sqrt(1 - correlation**2) * noise
    return law.map.particles(proposed), 0.5 * (law.distance(proposed) - law.distance(x))


def differential_evolution(
    U: Array,
    partners: Array,
    root: Array,
    rng: np.random.Generator,
    mode_jump: float = MODE_JUMP,
) -> Array:
    """Particles after a step along the difference of two partners, which do not move.

    The proposal is symmetric. Ensembles may be stacked along leading axes.

    Parameters
    ----------
    U, partners : ndarray of shape (..., n, d) and (..., m, d)
    root : ndarray of shape (..., d, r)
        Factor of a covariance. Tiny noise with this covariance makes every point reachable.
    rng : numpy.random.Generator
    mode_jump : float, default 0.1
        Probability of a step by the full difference.
    """
    m, shape, d = partners.shape[-2], U.shape[:-1], U.shape[-1]
    first = rng.integers(m, size=shape)
    second = (first + rng.integers(1, m, size=shape)) % m
    plus, minus = (
        np.take_along_axis(partners, index[..., None], axis=-2) for index in (first, second)
    )
    # eq. (K17)
    length = np.where(rng.random(shape) < mode_jump, 1.0, 2.38 / np.sqrt(2 * d))[..., None]
    jitter = rng.standard_normal((*shape, root.shape[-1])) @ root.swapaxes(-1, -2)
    return U + length * (plus - minus) + JITTER * jitter


def acceptance(potential: Array, proposed_potential: Array, log_ratio: Array) -> Array:
    """Metropolis acceptance probability; a failed proposal (infinite potential) is rejected."""
    with np.errstate(invalid="ignore", over="ignore"):
        log_alpha = np.minimum(0.0, potential - proposed_potential + log_ratio)  # eq. (K15)
    return np.where(np.isfinite(proposed_potential), np.exp(log_alpha), 0.0)
