"""Influenza in a boarding school: real counts and an epidemic model."""

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

DAYS = np.arange(1, 15)

IN_BED = np.array([3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4])
"""Number of boys in bed on each day, from 22 January 1978."""

BOYS = 763


def log_infected(parameters: ArrayLike, days: ArrayLike = DAYS) -> Array:
    """Solve the SIR equations for the logarithm of the number of infected boys.

    The equations are s' = -beta s i / N and (log i)' = beta s / N - gamma, with s = N - 1 and i = 1
    on day 0. SciPy's LSODA solves them in less than a millisecond. It gives up where extreme
    parameters would take it more than ten.

    Parameters
    ----------
    parameters : array_like, shape (2,)
        The rates beta of infection and gamma of recovery, per day.
    days : ndarray, shape (n,), default 1 to 14
        Times of the solution, positive.

    Returns
    -------
    ndarray, shape (n,)
        log i. It is NaN if the solver gave up.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc_ensemble.gallery.influenza import log_infected
    >>> np.exp(log_infected([1.73, 0.54]))[:6].round(0)
    array([  3.,  11.,  32.,  88., 180., 244.])
    """
    if not np.isfinite(parameters).all():
        return np.full(np.size(days), np.nan)
    beta, gamma = np.asarray(parameters, dtype=float).tolist()

    def slope(state: Array) -> tuple[float, float]:
        susceptible, log_i = state
        rate = beta * susceptible / BOYS
        return -rate * math.exp(log_i), rate - gamma

    return solution(slope, (BOYS - 1, 0.0), np.append(0.0, days))[1:, 1]


def _native_log_infected(parameters: TensorVariable, steps_per_day: int = 10) -> TensorVariable:
    """Solve the same equations in PyTensor, by the classical Runge-Kutta method of fixed step.

    The first variable is log s, so that no step can make s negative.
    """
    beta, gamma = parameters[0], parameters[1]
    h = 1 / steps_per_day

    def slope(state: TensorVariable, beta: TensorVariable, gamma: TensorVariable) -> TensorVariable:
        s, i = pt.exp(state[0]), pt.exp(state[1])
        return pt.stack([-beta * i / BOYS, beta * s / BOYS - gamma])

    def step(state: TensorVariable, beta: TensorVariable, gamma: TensorVariable) -> TensorVariable:
        k1 = slope(state, beta, gamma)
        k2 = slope(state + h / 2 * k1, beta, gamma)
        k3 = slope(state + h / 2 * k2, beta, gamma)
        k4 = slope(state + h * k3, beta, gamma)
        return state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    path = pytensor.scan(
        step,
        outputs_info=pt.constant(np.log([BOYS - 1, 1.0])),
        non_sequences=[beta, gamma],
        n_steps=steps_per_day * len(DAYS),
        return_updates=False,
    )
    return path[steps_per_day - 1 :: steps_per_day, 1]


def influenza(native: bool = False) -> GalleryModel:
    """Influenza in an English boarding school, 1978: three parameters of an epidemic.

    The numbers of boys in bed follow the SIR equations, with negative binomial noise of unknown
    dispersion. One of the 763 boys is infected on day 0. Priors are those of the Stan case study.

    Parameters
    ----------
    native : bool, default False
        False: SciPy solves the equations, a black box without a gradient. True: PyTensor solves
        them, with an error of 1e-6 in the logarithm, so that NUTS can be used.

    Returns
    -------
    GalleryModel
        Parameters ``beta`` (infection, per day), ``gamma`` (recovery, per day) and ``phi_inv``
        (dispersion: the variance of a count is mu + phi_inv mu^2). Data ``in_bed`` of shape (14,).
        The reference has the moments of all parameters, and those of their logarithms under the
        names of PyMC's unconstrained variables, such as ``beta_log__``.

    References
    ----------
    .. [1] L. Grinsztajn, E. Semenova, C. C. Margossian and J. Riou, "Bayesian workflow for disease
       transmission modeling in Stan", Statistics in Medicine 40, 2021, doi:10.1002/sim.9164
    .. [2] "Influenza in a boarding school", British Medical Journal 1, 1978, p. 587

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> model = gallery.influenza()
    >>> round(float(model.reference["beta"].sel(statistic="mean")), 2)
    1.73
    """
    require_flags(native=native)
    forward = None if native else forward_model(log_infected, output_shape=IN_BED.shape)
    solve = forward or _native_log_infected
    with GalleryModel(
        "Counts of an epidemic, with noise of unknown scale: few data, and a posterior with a "
        "long tail in the dispersion.",
        forward=forward,
        reference=lambda: stored_reference("influenza"),
        coords={"day": DAYS},
    ) as model:

        def rate(name: str, mu: float, sigma: float) -> TensorVariable:
            return pm.TruncatedNormal(name, mu, sigma, lower=0.0, default_transform=log_transform)

        rates = [rate("beta", 2.0, 1.0), rate("gamma", 0.4, 0.5)]
        phi_inv = pm.Exponential("phi_inv", 5.0)
        mu = pt.exp(solve(pt.stack(rates)))
        pm.NegativeBinomial("in_bed", mu=mu, alpha=1 / phi_inv, observed=IN_BED, dims="day")
    return model
