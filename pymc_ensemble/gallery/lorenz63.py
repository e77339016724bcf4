"""Time averages of a chaotic system: a forward map that is noisy by nature."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import Array, GalleryModel, stored_reference

TRUTH = np.array([28.0, 8 / 3])
"""True parameters r and b, from which the data come."""

DATA_SEED = 63
WINDOW = 10.0  # units of time that an average takes in
SPIN_UP = 20.0  # units of time from a random start to the attractor
STEP = 0.01  # time step of the Runge-Kutta scheme


def random_start(rng: np.random.Generator) -> Array:
    """Random state near the attractor, shape (3,)."""
    return rng.normal(size=3) * 8 + [0.0, 0.0, 24.0]


def lorenz63_averages(
    parameters: Array, starts: Array, window: float = WINDOW, windows: int = 1
) -> Array:
    """Averages of moments of the Lorenz system over windows of time.

    Parameters
    ----------
    parameters : ndarray of shape (n, 2)
        r and b of each run.
    starts : ndarray of shape (n, 3)
        Where the runs start. The averages leave out the way to the attractor.
    window : float, default 10
        Length of a window, in units of time.
    windows : int, default 1
        Number of windows, one after the other.

    Returns
    -------
    ndarray of shape (n, windows, 9)
        Averages of x, y, z, x^2, y^2, z^2, xy, yz, xz. They are not finite where the solution
        diverges.
    """
    r, b = np.asarray(parameters, dtype=float).T
    state = np.array(starts, dtype=float).T

    def velocity(state: Array) -> Array:
        x, y, z = state
        return np.array([10 * (y - x), r * x - y - x * z, x * y - b * z])

    def advance(state: Array) -> Array:
        k1 = velocity(state)
        k2 = velocity(state + STEP / 2 * k1)
        k3 = velocity(state + STEP / 2 * k2)
        k4 = velocity(state + STEP * k3)
        return state + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    averages = np.zeros((len(r), windows, 9))
    steps = round(window / STEP)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(round(SPIN_UP / STEP)):
            state = advance(state)
        for k in range(windows):
            for _ in range(steps):
                state = advance(state)
                x, y, z = state
                moments = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
                averages[:, k] += np.array(moments).T / steps
    return averages


@cache
def lorenz63_data() -> tuple[Array, Array]:
    """Observed averages, shape (9,), and covariance (9, 9) of their fluctuations at the truth."""
    rng = np.random.default_rng(DATA_SEED)
    observed = lorenz63_averages(TRUTH[None], random_start(rng)[None])[0, 0]
    fluctuations = lorenz63_averages(TRUTH[None], random_start(rng)[None], windows=33)[0]
    return observed, np.cov(fluctuations.T)


def lorenz63() -> GalleryModel:
    """Parameters of the Lorenz system from averages over ten units of time.

    The averages are those of x, y, z and their products. Each evaluation starts from a new random
    state and fluctuates as the data do. r and b have log-normal priors: log r ~ N(3.3, 0.15^2) and
    log b ~ N(1.2, 0.5^2). The paper draws its first ensembles uniformly from
    [27, 29] x [2.25, 3.5].

    Returns
    -------
    GalleryModel
        Parameters ``r`` and ``b``, data ``averages`` of shape (9,). The reference is the posterior
        of the infinite-time averages.

    References
    ----------
    .. [1] O. R. A. Dunbar, A. B. Duncan, A. M. Stuart and M.-T. Wolfram, "Ensemble inference
       methods for models with noisy and expensive likelihoods", section 6.2,
       SIAM J. Appl. Dyn. Syst. 21, 2022, doi:10.1137/21M1410853

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.lorenz63().reference["r"].sel(statistic="mean").values.round(1)
    np.float64(27.8)
    """
    observed, covariance = lorenz63_data()

    def averages(parameters: Array, rng: Sequence[np.random.Generator]) -> Array:
        return lorenz63_averages(parameters, np.stack([random_start(g) for g in rng]))[:, 0]

    forward = forward_model(averages, output_shape=(9,), stochastic=True, vectorized=True)
    with GalleryModel(
        "Chaos as noise: each evaluation fluctuates, and only a fit to many of them shows what the "
        "averages depend on.",
        forward=forward,
        reference=lambda: stored_reference("lorenz63"),
        truth={"r": TRUTH[0], "b": TRUTH[1]},
        coords={"average": ["x", "y", "z", "xx", "yy", "zz", "xy", "yz", "xz"]},
    ) as model:
        r = pm.LogNormal("r", 3.3, 0.15)
        b = pm.LogNormal("b", 1.2, 0.5)
        outputs = forward(pt.stack([r, b]))
        pm.MvNormal("averages", outputs, covariance, observed=observed, dims="average")
    return model
