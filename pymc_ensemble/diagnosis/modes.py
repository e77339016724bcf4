"""Modes in which there are no draws."""

from typing import Any

import numpy as np
import pymc as pm
import scipy  # parts of it are loaded when they are used first
from numpy.typing import NDArray

from pymc_ensemble.log import ProgressLog
from pymc_ensemble.problem.driver import Account, Driver
from pymc_ensemble.problem.inverse_problem import problem_of
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.multiscale.pilot_run import PILOT_EVOLUTIONS
from pymc_ensemble.samplers.phases import default_ensemble_size
from pymc_ensemble.samplers.weights import UNUSUAL

from .ensembles import path_ess
from .known import Finding
from .limits import RARE
from .regression import ENOUGH_DRAWS
from .run import Run
from .weights import FEWEST_WEIGHTS

FloatArray = NDArray[np.float64]

FEWEST_VISITS = 2  # fewer may be an accident
BURN_IN = 20  # rounds that are usually enough
REMEDY = (
    "diagnose without `probe`, which sends an ensemble from the prior to the posterior; or priors "
    "that stay where the forward map works."
)


def without_draws(
    draws: FloatArray, lp_of_draws: FloatArray, X: FloatArray, lp: FloatArray
) -> NDArray[np.int64]:
    """Likely points that are far from all draws, the most likely first, unless there is only one.

    If the draws themselves are much less likely than those of a Gaussian law, they do not follow
    the posterior. Then nothing can be said about modes, and no points are returned.

    Parameters
    ----------
    draws : ndarray of shape (C, S, J, p)
    lp_of_draws : ndarray of any shape
        Log densities of these draws.
    X : ndarray of shape (m, p)
        Points that were evaluated.
    lp : ndarray of shape (m,)
        Their log densities.

    Returns
    -------
    ndarray of int
        Numbers of the points.
    """
    told = lp_of_draws[np.isfinite(lp_of_draws)]
    if not len(told):
        return np.empty(0, dtype=int)
    lowest, usual = np.quantile(told, RARE), np.median(told)
    # quantiles of chi2; scipy.stats, which has them, takes long to load in the process of a chain
    rare, middle = scipy.special.chdtri(draws.shape[-1], [RARE, 1 / 2])
    expected = 0.5 * (rare - middle)  # eq. (D8)
    if usual - lowest > 2 * expected:
        return np.empty(0, dtype=int)
    likely = _thinned(np.flatnonzero(lp > max(lowest, usual + np.log(UNUSUAL))))
    scale = np.maximum(draws.std((0, 1, 2)), 1e-300)
    alone = _different(_far_apart(draws)) / scale
    horizon = 2 * np.quantile(scipy.spatial.cKDTree(alone).query(alone, k=2)[0][:, 1], 1 - RARE)
    tree = scipy.spatial.cKDTree(_different(draws) / scale)
    far = tree.query(X[likely] / scale)[0] > max(horizon, 1.0)
    _, different = np.unique(X[likely[far]], axis=0, return_index=True)
    found = likely[far][different]
    return found[np.argsort(-lp[found])] if len(found) >= FEWEST_VISITS else found[:0]


def _far_apart(draws: FloatArray) -> FloatArray:
    """Sweeps, shape (C, S, J, p), so far apart that particles have forgotten their positions."""
    C, S, J, _ = draws.shape
    ess = np.nan_to_num(path_ess(np.moveaxis(draws, (3, 0, 2, 1), (0, 1, 2, 3))), nan=1.0)
    return draws[:, :: int(np.ceil(C * S * J / max(ess.min(), FEWEST_WEIGHTS)))]


def _different(draws: FloatArray) -> FloatArray:
    """Draws of shape (C, S, J, p) as rows; those of a Metropolis test are repeated."""
    return _thinned(np.unique(draws.reshape(-1, draws.shape[-1]), axis=0))


def _thinned(rows: NDArray[Any]) -> NDArray[Any]:
    """Some of the rows, evenly, if there are too many to be compared with one another."""
    return rows[:: max(1, -(-len(rows) // ENOUGH_DRAWS))]


def missed_mode(run: Run, U: FloatArray, lp: FloatArray, whose: str) -> list[Finding]:
    """Likely places without draws.

    Parameters
    ----------
    run : Run
    U : ndarray of shape (n, d)
        Points that were evaluated, in unconstrained coordinates.
    lp : ndarray of shape (n,)
        Their log densities.
    whose : str
        What to say of them.

    Returns
    -------
    list of Finding
    """
    found = without_draws(run.U[run.draw], run.stats["lp"], U, lp)
    if not len(found):
        return []
    where = ", ".join(
        f"{label}={value:.3g}"
        for label, value in zip(run.labels, run.shown(U[found[:1]])[0], strict=True)
    )
    return [
        Finding(
            "wrong",
            f"there is a mode that the draws do not have, at {where}: {whose.format(len(found))}.",
            f"Use {'more' if run.origin.evaluations > 1 else 'MultiscaleSampler with many'} "
            "walkers, or an initial_ensemble that has all modes.",
        )
    ]


def search_modes(
    model: pm.Model, run: Run, n_evaluations: int, rng: np.random.Generator
) -> tuple[list[Finding], list[str]]:
    """Run the burn-in of a new ensemble from the prior, and look where it arrives.

    Parameters
    ----------
    model : pm.Model
    run : Run
        Draws of the model's free variables.
    n_evaluations : int
        Forward evaluations to spend at least; iterations are finished.
    rng : numpy.random.Generator

    Returns
    -------
    findings : list of Finding
        A finding if members are in a likely place without draws. Otherwise empty.
    notes : list of str
        How many evaluations were spent.

    Raises
    ------
    SamplingError
        If the forward map fails at nearly all points of the prior.
    """
    problem, _ = problem_of(model)
    d = problem.dimension
    size = min(default_ensemble_size(d), max(2 * (d + 2), n_evaluations // BURN_IN))
    sampler = EnsembleKalman(problem, size + size % 2, adjust=True, evolutions=PILOT_EVOLUTIONS)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    account = Account()
    driver = Driver(problem, model, account, ProgressLog("Search for modes"), remedy=REMEDY)
    while account.n_evals < n_evaluations:
        state, info = driver.round(sampler, state, rng)
        driver.tell(info.message)
    ensemble = state.evaluated[state.evaluated.ok]
    whose = f"{{}} of {len(ensemble.U)} members of an ensemble from the prior arrived there"
    note = f"other modes were searched for with {account.n_evals} forward evaluations"
    note += f" ({account.n_failed} of them failed)" if account.n_failed else ""
    return missed_mode(run, ensemble.U, -ensemble.potential, whose), [note]
