"""Pairs of models: a simulator with a small time step, and a cheap one with a large step.

The cheap one is ``model.cheap``. Its step decides what it costs, and how far off its posterior is.
"""

from collections.abc import Callable

import numpy as np
import pymc as pm

from pymc_ensemble.forward import ForwardModel, forward_model
from pymc_ensemble.gallery.model import (
    Array,
    GalleryModel,
    Reference,
    quadrature,
    stored_reference,
)
from pymc_ensemble.samplers.options import require_positive

Velocity = Callable[[Array], Array]


def runge_kutta(velocity: Velocity, state: Array, time: float, step: float) -> Array:
    """State after some time, by the classical Runge-Kutta scheme in steps of at most about `step`.

    Parameters
    ----------
    velocity : callable
        Time derivatives (k, n) of states (k, n).
    state : ndarray of shape (k, n)
        Initial states.
    time, step : float
        Time until the state that is returned, and time step.
    """
    steps = max(1, round(time / step))
    h = time / steps
    for _ in range(steps):
        k1 = velocity(state)
        k2 = velocity(state + h / 2 * k1)
        k3 = velocity(state + h / 2 * k2)
        k4 = velocity(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


# --- predators and prey -----------------------------------------------------------------------

FIRST_COUNTS = np.log([30.0, 1.0])
SPACING, COUNTS = 2.1, 9  # time between counts, and how many there are after the first
RATES = np.array([0.7, 0.045, 0.9, 0.06])
COUNT_NOISE = 0.025  # standard deviation of the logarithm of a count
FEWEST_LOG, MOST_LOG = -23.0, 9.2  # logarithms of populations that die out, and that blow up


def log_populations(rates: Array, step: float) -> Array:
    """Logarithms of prey and predators at nine times, by the Lotka-Volterra equations.

    Parameters
    ----------
    rates : ndarray of shape (n, 4)
        Birth of prey, predation, death of predators, and growth of predators by prey.
    step : float
        Time step of the Runge-Kutta scheme, which works on the logarithms.

    Returns
    -------
    ndarray of shape (n, 18)
        Prey and predators at the first time, at the second, and so on.
    """
    a, b, c, d = np.asarray(rates, dtype=float).T
    state, outputs = np.repeat(FIRST_COUNTS[:, None], len(a), axis=1), []

    def velocity(state: Array) -> Array:
        prey, predators = np.exp(np.clip(state, 2 * FEWEST_LOG, 12.0))
        return np.stack([a - b * predators, d * prey - c])

    for _ in range(COUNTS):
        state = runge_kutta(velocity, state, SPACING, step)
        state = np.clip(np.nan_to_num(state, nan=FEWEST_LOG), FEWEST_LOG, MOST_LOG)
        outputs.append(state)
    return np.concatenate(outputs).T


def predators_and_prey(step: float = 1.05) -> GalleryModel:
    """Rates of predators and prey from eighteen counts, with a coarse and a fine time step.

    The fine simulator has time steps of 0.035, the cheap one of `step`. By default the posterior of
    the cheap one is five standard deviations off. With 2.1, one step from count to count, its
    posterior is useless.

    Parameters
    ----------
    step : float, default 1.05
        Time step of the cheap simulator.

    Returns
    -------
    GalleryModel
        Parameters ``rates`` of shape (4,), data ``y`` of shape (18,). The cheap simulator is
        ``model.cheap``.

    Raises
    ------
    ValueError
        If the step is not positive.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.predators_and_prey().reference["rates"].sel(statistic="mean").values.round(2)
    array([0.71, 0.05, 0.88, 0.06])
    """
    require_positive(step=step)
    noise = COUNT_NOISE * np.random.default_rng(3).standard_normal(2 * COUNTS)
    observed = log_populations(RATES[None], 0.035)[0] + noise

    def simulator(step: float) -> ForwardModel:
        def populations(rates: Array) -> Array:
            return log_populations(rates, step)

        return forward_model(populations, output_shape=(2 * COUNTS,), vectorized=True)

    simulate = simulator(0.035)
    with GalleryModel(
        "Two models: a simulator with large time steps is cheap, but its posterior is off.",
        forward=simulate,
        cheap=simulator(step),
        reference=lambda: stored_reference("predators_and_prey"),
        truth={"rates": RATES},
        coords={"rate": ["birth", "predation", "death", "growth"]},
    ) as model:
        rates = pm.LogNormal("rates", np.array([-0.125, -3, -0.125, -3]), 0.5, dims="rate")
        pm.Normal("y", simulate(rates), COUNT_NOISE, observed=observed)
    return model


# --- two modes ---------------------------------------------------------------------------------

LORENZ_TRUTH = np.array([np.sqrt(7.0), 25.0])


def lorenz_path(parameters: Array, step: float) -> Array:
    """The three coordinates of a path of the Lorenz system at five times.

    Parameters
    ----------
    parameters : ndarray of shape (n, 2)
        g and rho. The Prandtl number is g squared.
    step : float
        Time step of the Runge-Kutta scheme.

    Returns
    -------
    ndarray of shape (n, 15)
        The coordinates. They are NaN where the path blows up.
    """
    g, rho = np.asarray(parameters, dtype=float).T
    sigma = g**2

    def velocity(state: Array) -> Array:
        x, y, z = state
        return np.stack([sigma * (y - x), x * (rho - z) - y, x * y - 8 / 3 * z])

    state, outputs = np.repeat([[1.0], [1.0], [20.0]], len(g), axis=1), []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(5):
            state = runge_kutta(velocity, state, 0.2, step)
            state = np.where(np.abs(state) < 1e3, state, np.nan)
            outputs.append(state)
    return np.concatenate(outputs).T


def lorenz63_modes(step: float = 0.1) -> GalleryModel:
    """Two modes of equal mass: a path of the Lorenz system depends on the square of a parameter.

    The fine simulator has time steps of 0.01, the cheap one of `step`. The cheap one fails, with
    outputs that are not finite, where its steps are too large for the parameters.

    Parameters
    ----------
    step : float, default 0.1
        Time step of the cheap simulator.

    Returns
    -------
    GalleryModel
        Parameters ``g`` and ``rho``, data ``y`` of shape (15,). The cheap simulator is
        ``model.cheap``. The reference is by quadrature, which takes some seconds.

    Raises
    ------
    ValueError
        If the step is not positive.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.lorenz63_modes().reference["g"].sel(statistic="mean").values.round(6) + 0.0
    np.float64(0.0)
    """
    require_positive(step=step)
    noise = np.random.default_rng(4).standard_normal(15)
    observed = lorenz_path(LORENZ_TRUTH[None], 0.01)[0] + noise

    def simulator(step: float) -> ForwardModel:
        def path(g: Array, rho: Array) -> Array:
            return lorenz_path(np.stack([g, rho], axis=1), step)

        return forward_model(path, output_shape=(15,), vectorized=True)

    simulate = simulator(0.01)
    with GalleryModel(
        "Two models and two modes: each mode has to have half of the mass.",
        forward=simulate,
        cheap=simulator(step),
        reference=lambda: _lorenz_reference(observed),
        truth={"g": LORENZ_TRUTH[0], "rho": LORENZ_TRUTH[1]},
    ) as model:
        g, rho = pm.Normal("g", 0.0, 3.0), pm.Normal("rho", 25.0, 3.0)
        pm.Normal("y", simulate(g, rho), 1.0, observed=observed)
    return model


def _lorenz_reference(observed: Array) -> Reference:
    """Posterior by quadrature over positive g. The half with negative g is its mirror image."""

    def potential(points: Array) -> Array:
        loss = 0.5 * ((lorenz_path(points, 0.01) - observed) ** 2).sum(1)
        prior = 0.5 * (((points - [0.0, 25.0]) / 3.0) ** 2).sum(1)
        return np.nan_to_num(loss + prior, nan=np.inf)

    axes = np.linspace(1.6, 4.2, 131), np.linspace(21.0, 28.0, 141)
    mean, sd, draws = quadrature(potential, *axes)
    draws[::2, 0] *= -1
    moments = {
        "g": {"mean": 0.0, "sd": np.hypot(mean[0], sd[0])},
        "rho": {"mean": mean[1], "sd": sd[1]},
    }
    return Reference(moments, {"g": draws[:, 0], "rho": draws[:, 1]}, "quadrature")


# --- counts ------------------------------------------------------------------------------------

POPULATION, FIRST_INFECTED, DAYS = 5000.0, 8.0, 30
OUTBREAK_TRUTH = np.array([0.6, 0.25])
DISPERSION = 8.0


def log_new_cases(rates: Array, step: float) -> Array:
    """Logarithms of expected new cases on each of thirty days. Nobody falls ill twice.

    Parameters
    ----------
    rates : ndarray of shape (n, 2)
        Rates of infection and recovery, per day.
    step : float
        Time step of Euler's scheme, in days: one divided by an integer.

    Returns
    -------
    ndarray of shape (n, 30)
    """
    beta, gamma = np.asarray(rates, dtype=float).T
    well, ill = (np.full(len(beta), n) for n in (POPULATION - FIRST_INFECTED, FIRST_INFECTED))
    outputs, each = [], max(1, round(1 / step))
    for _ in range(DAYS):
        before = well
        for _ in range(each):
            infected = well * -np.expm1(-beta * ill / POPULATION / each)
            recovered = ill * -np.expm1(-gamma / each)
            well, ill = well - infected, ill + infected - recovered
        outputs.append(np.log(before - well + 1e-3))
    return np.stack(outputs, axis=1)


def outbreak(step: float = 1.0) -> GalleryModel:
    """Counts of an outbreak with unknown dispersion, in steps of a day and of 0.02 days.

    New cases have a negative binomial distribution about the expected ones: they are Poisson counts
    whose rate is multiplied by a gamma-distributed factor.

    Parameters
    ----------
    step : float, default 1.0
        Time step of the cheap simulator, in days, at most one.

    Returns
    -------
    GalleryModel
        Parameters ``beta``, ``gamma`` and ``dispersion``, data ``cases`` of shape (30,). The cheap
        simulator is ``model.cheap``.

    Raises
    ------
    ValueError
        If the step is not positive, or more than a day.

    Examples
    --------
    >>> from pymc_ensemble import gallery
    >>> gallery.outbreak().reference["beta"].sel(statistic="mean").values.round(1)
    np.float64(0.6)
    """
    require_positive(step=step)
    if step > 1:
        raise ValueError(
            f"step={step} is more than a day, but cases are counted each day. Take at most 1."
        )
    rng = np.random.default_rng(12)
    expected = np.exp(log_new_cases(OUTBREAK_TRUTH[None], 0.02)[0])
    observed = rng.poisson(expected * rng.gamma(DISPERSION, 1 / DISPERSION, DAYS))

    def simulator(step: float) -> ForwardModel:
        def new_cases(beta: Array, gamma: Array) -> Array:
            return log_new_cases(np.stack([beta, gamma], axis=1), step)

        return forward_model(new_cases, output_shape=(DAYS,), vectorized=True)

    simulate = simulator(0.02)
    with GalleryModel(
        "Two models of counts: the sampler learns differences of logarithms.",
        forward=simulate,
        cheap=simulator(step),
        reference=lambda: stored_reference("outbreak"),
        truth={"beta": OUTBREAK_TRUTH[0], "gamma": OUTBREAK_TRUTH[1], "dispersion": DISPERSION},
    ) as model:
        beta = pm.LogNormal("beta", np.log(0.5), 0.5)
        gamma = pm.LogNormal("gamma", np.log(0.3), 0.5)
        dispersion = pm.LogNormal("dispersion", np.log(10.0), 1.0)
        mean = pm.math.exp(simulate(beta, gamma))
        pm.NegativeBinomial("cases", mu=mean, alpha=dispersion, observed=observed)
    return model
