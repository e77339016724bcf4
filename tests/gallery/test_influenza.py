"""The epidemic model: its solver and its reference."""

import numpy as np
import pymc as pm
import pytest

from pymc_ensemble import gallery
from pymc_ensemble.gallery.influenza import BOYS, DAYS, IN_BED, log_infected


def test_growth_without_recovery():
    """For gamma = 0 the infected follow the logistic curve from one boy."""
    for beta in (0.5, 1.7, 4.0):
        exact = np.log(BOYS) - np.log1p((BOYS - 1) * np.exp(-beta * DAYS))
        np.testing.assert_allclose(log_infected([beta, 0.0]), exact, atol=1e-5)


def test_height_of_the_peak():
    """Along every solution i + s - (gamma N / beta) log s is constant; at the peak s is known."""
    days = np.linspace(0.001, 14, 20_001)
    for beta, gamma in np.array([1.7, 0.54]) * np.exp(
        0.2 * np.random.default_rng(0).standard_normal((10, 2))
    ):
        s = gamma * BOYS / beta
        exact = 1 + (BOYS - 1) - s - s * np.log((BOYS - 1) / s)
        assert np.exp(log_infected([beta, gamma], days)).max() == pytest.approx(exact, rel=1e-5)


def test_prior_draws_can_be_solved():
    with gallery.influenza() as model:
        draws = pm.draw([model["beta"], model["gamma"]], draws=500, random_seed=3)
    assert np.isfinite([log_infected(p) for p in np.column_stack(draws)]).all()


@pytest.mark.parametrize("spread", [3.0, 10.0])
def test_wild_parameters(spread):
    """Neither an exception nor a warning: NaN, or an answer."""
    rng = np.random.default_rng(4)
    for parameters in [1.7, 0.54] * np.exp(spread * rng.standard_normal((200, 2))):
        solution = log_infected(parameters)
        assert np.isnan(solution).all() or (solution < np.log(BOYS + 1)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_invalid_parameters_give_nan(value):
    assert np.isnan(log_infected([1.7, value])).all()
    assert np.isnan(log_infected([value, 0.5])).all()


def test_data():
    assert len(IN_BED) == 14
    assert DAYS[IN_BED.argmax()] == 6
    assert IN_BED.max() == 298


def test_reference_agrees_with_the_case_study():
    """Published posterior means, as rounded there; and Monte Carlo errors that are negligible."""
    reference = gallery.influenza().reference
    mean = reference.sel(statistic="mean")
    assert float(mean["beta"]) == pytest.approx(1.73, abs=0.015)
    assert float(mean["gamma"]) == pytest.approx(0.54, abs=0.01)
    assert float(mean["phi_inv"]) == pytest.approx(0.135, abs=0.01)
    for moments in reference.data_vars.values():
        _, sd, mcse_mean, mcse_sd = moments.values
        assert (mcse_mean < 0.008 * sd).all()
        assert (mcse_sd < 0.02 * sd).all()
    assert {"beta_log__", "gamma_log__", "phi_inv_log__"} <= set(reference.data_vars)
