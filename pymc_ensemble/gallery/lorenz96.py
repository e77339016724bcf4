"""A small climate: slow and fast variables, and statistics averaged over time."""

from collections.abc import Sequence

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import Array, GalleryModel, stored_reference

TRUTH = {"h": 1.0, "F": 10.0, "log_c": np.log(10.0), "b": 10.0}

PRIOR = {
    "h": (0.0, 1.0),
    "F": (10.0, np.sqrt(10.0)),
    "log_c": (2.0, np.sqrt(0.1)),
    "b": (5.0, np.sqrt(10.0)),
}
"""Means and standard deviations of normal priors."""

SLOW = 36
"""Number of slow variables, on a circle."""

FAST = 10
"""Number of fast variables for each slow one."""

WINDOW = 50.0  # units of time that an average takes in
SPIN_UP = 10.0  # units of time from a random start to the attractor
STEP = 0.005  # time step of the Runge-Kutta scheme
CHUNK = 64  # members that are advanced together; more do not fit into a processor's cache

DATA_SEED = 96

OBSERVED = np.array([2.482865988, 0.09635214666, 18.45279687, 0.6358007772, 0.02544384693])
"""Averages of one window at the truth; see `simulate_data`."""

FLUCTUATIONS = np.array([
    [0.005234004219, 0.0001571737423, 0.04119462903, 0.001112540076, 3.542151343e-05],
    [0.0001571737423, 4.882377683e-06, 0.001234384043, 3.362776136e-05, 1.088838688e-06],
    [0.04119462903, 0.001234384043, 0.3249683473, 0.008748222406, 0.0002775896263],
    [0.001112540076, 3.362776136e-05, 0.008748222406, 0.0002392528934, 7.71392773e-06],
    [3.542151343e-05, 1.088838688e-06, 0.0002775896263, 7.71392773e-06, 2.541454159e-07],
])  # fmt: skip
"""Covariance of such averages."""


def random_start(rng: np.random.Generator) -> Array:
    """Random state near the attractor (11, 36): X in the first row, fast variables below."""
    start = rng.standard_normal((1 + FAST, SLOW))
    start[0] = 2 + 3 * start[0]
    start[1:] *= 0.1
    return start


def _velocity(X: Array, Y: Array, h: Array, F: Array, c: Array, b: Array) -> tuple[Array, Array]:
    """Time derivatives of the slow (36, n) and of the fast variables (10, 36, n)."""
    X_padded = np.concatenate([X[-2:], X, X[:1]])
    dX = X_padded[1:-2] * (X_padded[3:] - X_padded[:-3])
    dX -= X
    dX += F
    dX -= (h * c / FAST) * Y.sum(0)
    # All fast variables form one circle: after the last one of k comes the first one of k + 1.
    Y_padded = np.concatenate([np.roll(Y[-1:], 1, axis=1), Y, np.roll(Y[:2], -1, axis=1)])
    dY = Y_padded[:-3] - Y_padded[3:]
    dY *= Y_padded[2:-1]
    dY *= b
    dY -= Y
    dY += (h / FAST) * X
    dY *= c
    return dX, dY


def lorenz96_averages(
    parameters: Array, starts: Array, window: float = WINDOW, windows: int = 1
) -> Array:
    """Averages of moments of the Lorenz 96 system over windows of time.

    The slow variables X_k and the fast ones Y_jk, with mean Ybar_k over j, follow

    X_k' = -X_{k-1} (X_{k-2} - X_{k+1}) - X_k + F - h c Ybar_k,

    Y_jk' / c = -b Y_{j+1,k} (Y_{j+2,k} - Y_{j-1,k}) - Y_jk + h X_k / 10.

    Parameters
    ----------
    parameters : ndarray of shape (n, 4)
        h, F, log c and b of each run.
    starts : ndarray of shape (n, 11, 36)
        Where the runs start. The averages leave out the way to the attractor.
    window : float, default 50
        Length of a window, in units of time.
    windows : int, default 1
        Number of windows, one after the other.

    Returns
    -------
    ndarray of shape (n, windows, 5)
        Averages, over time and k, of X, Ybar, X^2, X Ybar, Ybar^2. They are not finite where the
        scheme is unstable.
    """
    parameters = np.asarray(parameters, dtype=float)
    averages = np.zeros((len(parameters), windows, 5))
    for start in range(0, len(parameters), CHUNK):
        chunk = slice(start, start + CHUNK)
        averages[chunk] = _chunk_averages(parameters[chunk], starts[chunk], window, windows)
    return averages


def _chunk_averages(parameters: Array, starts: Array, window: float, windows: int) -> Array:
    h, F, log_c, b = parameters.T
    coefficients = h, F, np.exp(log_c), b
    X, *fast = np.ascontiguousarray(np.moveaxis(starts, 0, -1))
    Y = np.array(fast)
    steps = round(window / STEP)
    sums = np.zeros((windows, 5, SLOW, len(parameters)))
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(-round(SPIN_UP / STEP), windows * steps):
            if i >= 0:
                mean = Y.sum(0) / FAST
                for total, value in zip(
                    sums[i // steps], (X, mean, X * X, X * mean, mean * mean), strict=True
                ):
                    total += value
            kX1, kY1 = _velocity(X, Y, *coefficients)
            kX2, kY2 = _velocity(X + STEP / 2 * kX1, Y + STEP / 2 * kY1, *coefficients)
            kX3, kY3 = _velocity(X + STEP / 2 * kX2, Y + STEP / 2 * kY2, *coefficients)
            kX4, kY4 = _velocity(X + STEP * kX3, Y + STEP * kY3, *coefficients)
            X = X + STEP / 6 * (kX1 + 2 * (kX2 + kX3) + kX4)
            Y = Y + STEP / 6 * (kY1 + 2 * (kY2 + kY3) + kY4)
        return np.moveaxis(sums.mean(2) / steps, -1, 0)


def simulate_data() -> tuple[Array, Array]:
    """Averages of one window (5,) and covariance (5, 5) of 200 windows, both at the truth.

    `OBSERVED` and `FLUCTUATIONS` hold them. To simulate them takes half a minute.
    """
    rng = np.random.default_rng(DATA_SEED)
    starts = np.stack([random_start(rng) for _ in range(21)])
    truth = np.tile(list(TRUTH.values()), (21, 1))
    observed = lorenz96_averages(truth[:1], starts[:1])[0, 0]
    fluctuations = lorenz96_averages(truth[1:], starts[1:], windows=10)
    return observed, np.cov(fluctuations.reshape(-1, 5).T)


def lorenz96() -> GalleryModel:
    """Parameters of a small climate from averages over fifty units of time.

    The two-scale Lorenz 96 system has 36 slow and 360 fast variables. The data are the averages of
    the slow variables, of the fast ones, and of their second moments. The four parameters are the
    strength h of the coupling, the forcing F, the logarithm of the ratio c of the time scales, and
    the amplitude b of the fast nonlinearity. Each evaluation starts from a new random state and
    fluctuates as the data do. Twenty of them take two to three seconds. The problem stands for a
    climate model, for which one can afford an ensemble of 20 members and at most 50 iterations.

    Returns
    -------
    GalleryModel
        Parameters ``h``, ``F``, ``log_c`` and ``b``, data ``averages`` of shape (5,). The reference
        is the posterior of the infinite-time averages. Its error is about a tenth of a posterior
        standard deviation.

    References
    ----------
    .. [1] E. Cleary, A. Garbuno-Inigo, S. Lan, T. Schneider and A. M. Stuart, "Calibrate, emulate,
       sample", J. Comput. Phys. 424, 2021, doi:10.1016/j.jcp.2020.109716
    .. [2] E. N. Lorenz, "Predictability: a problem partly solved", Seminar on Predictability,
       ECMWF, 1996

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.lorenz96().reference["h"].sel(statistic="mean").values.round(1)
    np.float64(0.9)
    """

    def averages(parameters: Array, rng: Sequence[np.random.Generator]) -> Array:
        return lorenz96_averages(parameters, np.stack([random_start(g) for g in rng]))[:, 0]

    forward = forward_model(averages, output_shape=(5,), stochastic=True, vectorized=True)
    with GalleryModel(
        "Tuning a climate model: statistics of chaos, a narrow curved posterior, and a budget of a "
        "thousand runs.",
        forward=forward,
        reference=lambda: stored_reference("lorenz96"),
        truth=TRUTH,
        coords={"average": ["X", "Y", "XX", "XY", "YY"]},
    ) as model:
        parameters = [pm.Normal(name, mu, sigma) for name, (mu, sigma) in PRIOR.items()]
        outputs = forward(pt.stack(parameters))
        pm.MvNormal("averages", outputs, FLUCTUATIONS, observed=OBSERVED, dims="average")
    return model
