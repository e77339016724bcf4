"""The predator-prey model: its solver, its version with gradients, its reference."""

import time

import numpy as np
import pymc as pm
import pytensor
import pytest

from pymc_ensemble import gallery
from pymc_ensemble.gallery.lynx_hare import PELTS, YEARS, log_populations

PUBLISHED = [0.55, 0.028, 0.80, 0.024, 34.0, 5.9]


def posterior_like(n, rng):
    """Parameters about as far apart as the posterior is wide (its largest relative sd is .12)."""
    return PUBLISHED * np.exp(0.12 * rng.standard_normal((n, 6)))


def test_conserved_quantity():
    """Along every solution delta h - gamma log h + beta l - alpha log l is constant."""
    for parameters in posterior_like(10, np.random.default_rng(0)):
        alpha, beta, gamma, delta = parameters[:4]
        log_h, log_l = log_populations(parameters, np.linspace(0, 40, 200)).T
        energy = delta * np.exp(log_h) - gamma * log_h + beta * np.exp(log_l) - alpha * log_l
        np.testing.assert_allclose(energy, energy[0], atol=1e-5)


def test_first_year_is_the_initial_population():
    np.testing.assert_allclose(log_populations(PUBLISHED)[0], np.log([34.0, 5.9]), rtol=1e-12)


def test_native_solver_agrees():
    native, black_box = gallery.lynx_hare(native=True), gallery.lynx_hare()
    path = native["pelts"].owner.inputs[2]
    solve = native.compile_fn(
        native.replace_rvs_by_values([path])[0],
        inputs=native.value_vars,
        on_unused_input="ignore",
    )
    logps = [model.compile_logp() for model in (native, black_box)]
    for parameters in posterior_like(10, np.random.default_rng(1)):
        point = native.initial_point()
        for name, value in zip(("alpha", "beta", "gamma", "delta"), parameters, strict=False):
            point[f"{name}_log__"] = np.log(value)
        point["initial_log__"] = np.log(parameters[4:])
        np.testing.assert_allclose(solve(point), log_populations(parameters), atol=3e-5)
        assert logps[0](point) == pytest.approx(logps[1](point), abs=1e-3)
    assert pytensor.grad(native.logp(), native.value_vars)


def test_prior_draws_can_be_solved():
    with gallery.lynx_hare() as model:
        draws = pm.draw(
            [model[name] for name in ("alpha", "beta", "gamma", "delta", "initial")],
            draws=500,
            random_seed=3,
        )
    parameters = np.column_stack(draws)
    solved = [np.isfinite(log_populations(p)).all() for p in parameters]
    assert np.mean(solved) > 0.99


@pytest.mark.parametrize("spread", [3.0, 10.0])
def test_wild_parameters_fail_quickly(spread):
    """Neither an exception nor a warning, and never much time: NaN, or an answer."""
    rng = np.random.default_rng(4)
    slowest, failed = 0.0, 0
    for parameters in PUBLISHED * np.exp(spread * rng.standard_normal((200, 6))):
        start = time.perf_counter()
        failed += not np.isfinite(log_populations(parameters)).all()
        slowest = max(slowest, time.perf_counter() - start)
    assert 0 < failed < 200
    assert slowest < 0.5


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_invalid_parameters_give_nan(value):
    for k in range(4, 6):
        parameters = np.array(PUBLISHED)
        parameters[k] = value
        assert np.isnan(log_populations(parameters)).all()


def test_data():
    """Lynxes peak a year or two after the hares, in both cycles."""
    early = YEARS < 1910
    assert YEARS[early][PELTS[early].argmax(0)].tolist() == [1903, 1904]
    assert YEARS[~early][PELTS[~early].argmax(0)].tolist() == [1913, 1915]


def test_reference_agrees_with_the_case_study():
    """Published posterior means, as rounded there; and Monte Carlo errors that are negligible."""
    reference = gallery.lynx_hare().reference
    mean = reference.sel(statistic="mean")
    assert float(mean["alpha"]) == pytest.approx(0.55, abs=0.006)
    assert float(mean["beta"]) == pytest.approx(0.028, abs=0.0006)
    assert float(mean["gamma"]) == pytest.approx(0.80, abs=0.006)
    assert float(mean["delta"]) == pytest.approx(0.024, abs=0.0006)
    assert mean["initial"].values == pytest.approx([34.0, 5.9], abs=0.2)
    assert mean["sigma"].values == pytest.approx([0.25, 0.25], abs=0.01)
    for moments in reference.data_vars.values():
        _, sd, mcse_mean, mcse_sd = moments.values
        assert (mcse_mean < 0.008 * sd).all()
        assert (mcse_sd < 0.012 * sd).all()
    assert {"alpha_log__", "initial_log__", "sigma_log__"} <= set(reference.data_vars)
