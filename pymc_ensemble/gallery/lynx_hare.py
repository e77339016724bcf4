"""Pelts of hares and lynxes from Hudson Bay: real data and an ordinary differential equation."""

import math

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pymc.distributions.transforms import log as log_transform
from pytensor.tensor.variable import TensorVariable

from pymc_ensemble.forward import forward_model
from pymc_ensemble.gallery.model import Array, GalleryModel, stored_reference
from pymc_ensemble.gallery.ode import solution
from pymc_ensemble.samplers.options import require_flags

YEARS = np.arange(1900, 1921)

PELTS = np.array([
    [30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1,
     40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7],
    [4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4,
     8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6],
]).T  # fmt: skip
"""Thousands of pelts per year of hare and lynx, shape (21, 2)."""


def log_populations(parameters: ArrayLike, years: ArrayLike = YEARS) -> Array:
    """Solve the Lotka-Volterra equations for the logs of both populations.

    The equations are (log h)' = alpha - beta l and (log l)' = delta h - gamma. SciPy's LSODA solves
    them in less than a millisecond. It gives up where extreme parameters would take it more than
    ten, or overflow.

    Parameters
    ----------
    parameters : array_like, shape (6,)
        The rates alpha, beta, gamma and delta per year, and the populations h and l at the start,
        in thousands of pelts.
    years : ndarray, shape (n,), default 1900 to 1920
        Times of the solution. The first is that of the initial populations.

    Returns
    -------
    ndarray, shape (n, 2)
        Logarithms of hare and lynx. They are NaN if the solver gave up.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_ensemble.gallery.lynx_hare import log_populations
    >>> np.exp(log_populations([0.55, 0.028, 0.80, 0.024, 34, 5.9]))[-1].round(1)
    array([30.2,  6. ])
    """
    alpha, beta, gamma, delta, hare, lynx = np.asarray(parameters, dtype=float).tolist()
    if not np.isfinite(parameters).all() or min(hare, lynx) <= 0:
        return np.full((np.size(years), 2), np.nan)

    def slope(state: Array) -> tuple[float, float]:
        log_hare, log_lynx = state.tolist()  # for two numbers, Python's own arithmetic is faster
        return alpha - beta * math.exp(log_lynx), delta * math.exp(log_hare) - gamma

    start = math.log(hare), math.log(lynx)
    return solution(slope, start, np.asarray(years, dtype=float))


def _native_log_populations(parameters: TensorVariable, steps_per_year: int = 10) -> TensorVariable:
    """Solve the same equations in PyTensor, by the classical Runge-Kutta method of fixed step."""
    growth = pt.stack([parameters[0], -parameters[2]])
    coupling = pt.stack([-parameters[1], parameters[3]])
    h = 1 / steps_per_year

    def slope(
        state: TensorVariable, growth: TensorVariable, coupling: TensorVariable
    ) -> TensorVariable:
        return growth + coupling * pt.exp(state[::-1])

    def step(
        state: TensorVariable, growth: TensorVariable, coupling: TensorVariable
    ) -> TensorVariable:
        k1 = slope(state, growth, coupling)
        k2 = slope(state + h / 2 * k1, growth, coupling)
        k3 = slope(state + h / 2 * k2, growth, coupling)
        k4 = slope(state + h * k3, growth, coupling)
        return state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    start = pt.log(parameters[4:])
    path = pytensor.scan(
        step,
        outputs_info=start,
        non_sequences=[growth, coupling],
        n_steps=steps_per_year * (len(YEARS) - 1),
        return_updates=False,
    )
    return pt.concatenate([start[None], path[steps_per_year - 1 :: steps_per_year]])


def lynx_hare(native: bool = False) -> GalleryModel:
    """Hares and lynxes in Canada, 1900 to 1920: eight parameters of a predator-prey model.

    The pelts that the Hudson's Bay Company bought follow the Lotka-Volterra equations. They have
    log-normal noise, whose scale is unknown for each species. Priors are those of the Stan case
    study.

    Parameters
    ----------
    native : bool, default False
        False: SciPy solves the equations, a black box without a gradient. True: PyTensor solves
        them, with an error of 1e-5 in the logarithms, so that NUTS can be used.

    Returns
    -------
    GalleryModel
        Parameters ``alpha`` (growth of hares, per year), ``beta`` (loss of hares per thousand
        lynxes), ``gamma`` (death of lynxes), ``delta`` (growth of lynxes per thousand hares),
        ``initial`` (populations in 1900, thousands) and ``sigma`` (scales of the noise on the
        logarithms). Data ``pelts`` of shape (21, 2). The reference has the moments of all
        parameters, and those of their logarithms under the names of PyMC's unconstrained variables,
        such as ``alpha_log__``.

    References
    ----------
    .. [1] B. Carpenter, "Predator-prey population dynamics: the Lotka-Volterra model in Stan", Stan
       case studies 5, 2018
    .. [2] C. G. Hewitt, "The Conservation of the Wild Life of Canada", 1921

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> model = gallery.lynx_hare()
    >>> round(float(model.reference["alpha"].sel(statistic="mean")), 2)
    0.55
    """
    require_flags(native=native)
    forward = None if native else forward_model(log_populations, output_shape=PELTS.shape)
    solve = forward or _native_log_populations
    with GalleryModel(
        "Real data and a solver without derivatives: eight parameters, strong correlations, "
        "unknown scales of the noise, and a prior that is far from the posterior.",
        forward=forward,
        reference=lambda: stored_reference("lynx_hare"),
        coords={"year": YEARS, "species": ["hare", "lynx"]},
    ) as model:

        def rate(name: str, mu: float, sigma: float) -> TensorVariable:
            return pm.TruncatedNormal(name, mu, sigma, lower=0.0, default_transform=log_transform)

        rates = [
            rate("alpha", 1.0, 0.5),
            rate("beta", 0.05, 0.05),
            rate("gamma", 1.0, 0.5),
            rate("delta", 0.05, 0.05),
        ]
        initial = pm.LogNormal("initial", np.log(10.0), 1.0, dims="species")
        sigma = pm.LogNormal("sigma", -1.0, 1.0, dims="species")
        mu = solve(pt.concatenate([pt.stack(rates), initial]))
        pm.LogNormal("pelts", mu, sigma, observed=PELTS, dims=("year", "species"))
    return model
