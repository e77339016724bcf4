"""Chains on a learned density, for many data sets in parallel. Arrays only."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pymc_ensemble.samplers.phases import default_ensemble_size
from pymc_ensemble.samplers.proposals import differential_evolution

FloatArray = NDArray[np.float64]

BURN_IN = 60  # sweeps; a third is enough if the start is resampled from many simulations
THINNING = 10  # sweeps between two draws of a walker: they cost no simulation; not measured
BANDWIDTH = 0.3  # noise added to resampled simulations, in their sd, so that all starts differ
LEAST_SPREAD = 0.01  # smallest sd of the start, relative to that of the prior


@dataclass(frozen=True)
class Walk:
    """Positions of walkers after sweeps.

    Attributes
    ----------
    U : ndarray of shape (..., S, J, d)
    lp : ndarray of shape (..., S, J)
        Log densities, up to a constant.
    acceptance : float
        Mean share of moves that were accepted.
    """

    U: FloatArray
    lp: FloatArray
    acceptance: float


def walk(
    log_density: Callable[[FloatArray], FloatArray],
    U: FloatArray,
    sweeps: int,
    rng: np.random.Generator,
) -> Walk:
    """Sample by differential evolution, with a Metropolis test of every move.

    Parameters
    ----------
    log_density : callable
        Log density of positions (D, n, d), shape (D, n). Each row has its own density.
    U : ndarray of shape (D, J, d)
        Start of D ensembles.
    sweeps : int
        Number S of kept sweeps, `THINNING` sweeps apart.
    rng : numpy.random.Generator
    """
    U = U.copy()
    lp = log_density(U)
    half = U.shape[1] // 2
    halves = (slice(None, half), slice(half, None))
    spread = U.std(1).mean(0) + 1e-300
    kept: list[tuple[FloatArray, FloatArray]] = []
    accepted, tried = 0.0, 0
    for sweep in range(BURN_IN + sweeps * THINNING):
        for mine, others in (halves, halves[::-1]):
            moved = differential_evolution(U[:, mine], U[:, others], np.diag(spread), rng)
            after = log_density(moved)
            with np.errstate(invalid="ignore"):
                passed = np.log(rng.random(after.shape)) < after - lp[:, mine]
            U[:, mine] = np.where(passed[..., None], moved, U[:, mine])
            lp[:, mine] = np.where(passed, after, lp[:, mine])
            if sweep >= BURN_IN:
                accepted, tried = accepted + passed.mean(), tried + 1
        if sweep >= BURN_IN and (sweep - BURN_IN + 1) % THINNING == 0:
            kept.append((U.copy(), lp.copy()))
    positions, densities = zip(*kept, strict=True)
    return Walk(np.stack(positions, 1), np.stack(densities, 1), accepted / max(tried, 1))


def walkers(dimension: int) -> int:
    """Number of walkers: even, and large enough that each half spans the parameters."""
    return default_ensemble_size(dimension)


def start(
    candidates: FloatArray, log_weights: FloatArray, J: int, rng: np.random.Generator
) -> FloatArray:
    """Start walkers at candidates, resampled by their weights, with a little noise.

    Parameters
    ----------
    candidates : ndarray of shape (n, d)
        Draws of the prior.
    log_weights : ndarray of shape (D, n)
        Log weights of the candidates, for each of D densities.
    J : int
        Number of walkers.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (D, J, d)
    """
    least = LEAST_SPREAD * candidates.std(0)
    begin = []
    for row in log_weights:
        weights = np.exp(row - row.max())
        weights /= weights.sum()
        chosen = candidates[rng.choice(len(candidates), J, p=weights)]
        noise = rng.standard_normal(chosen.shape)
        begin.append(chosen + noise * np.maximum(BANDWIDTH * chosen.std(0), least))
    return np.stack(begin)
