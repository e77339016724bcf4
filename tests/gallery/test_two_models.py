"""Pairs of models: what the cheap one is to the fine one, and posteriors that are known."""

from itertools import pairwise

import numpy as np
import pytest

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.gallery.darcy import temperatures
from pymc_ensemble.gallery.two_grids import shock
from pymc_ensemble.gallery.two_time_steps import log_new_cases, log_populations, lorenz_path

UNIMODAL = ["predators_and_prey", "burgers", "outbreak"]


@pytest.mark.parametrize("name", UNIMODAL)
def test_reference_is_the_posterior(name):
    """Importance sampling by the model's own density, from a Student-t law about the reference."""
    model = getattr(gallery, name)()
    problem = pe.InverseProblem.from_model(model)
    names = list(model.initial_point())
    reference = np.concatenate([model.reference[n].values.reshape(4, -1) for n in names], axis=1)
    drawn = np.column_stack([model.reference_draws[n].values.reshape(2000, -1) for n in names])
    mean, sd, mcse_mean, mcse_sd = reference
    n, d, degrees = 3000, len(mean), 7
    rng = np.random.default_rng(1)
    factor = np.linalg.cholesky(1.2**2 * np.cov(drawn.T))
    normal, radius2 = rng.standard_normal((n, d)), degrees / rng.chisquare(degrees, n)
    U = mean + normal @ factor.T * np.sqrt(radius2)[:, None]
    log_q = -(degrees + d) / 2 * np.log1p((normal**2).sum(1) * radius2 / degrees)
    potential = problem.loss(problem.evaluate(U).outputs) + problem.prior_potential(U)
    weights = np.exp(-potential - log_q - (-potential - log_q).max())
    weights /= weights.sum()
    assert 1 / (weights**2).sum() > 1000
    estimate = weights @ U
    squares = (U - estimate) ** 2
    error = np.hypot(np.sqrt(weights**2 @ squares), mcse_mean)
    np.testing.assert_array_less(np.abs(estimate - mean), 4.5 * error)
    error = np.sqrt(weights**2 @ (squares - sd**2) ** 2) / (2 * sd)
    difference = np.abs(np.sqrt(weights @ squares) - sd)
    np.testing.assert_array_less(difference, 4.5 * np.hypot(error, mcse_sd))
    # draws of the reference: 2000 that are independent
    assert (np.abs(drawn.mean(0) - mean) / sd).max() < 4.5 / np.sqrt(2000)


def test_both_modes_have_half_of_the_mass():
    model = gallery.lorenz63_modes()
    draws = model.reference_draws
    assert float((draws["g"] > 0).mean()) == 0.5
    assert float(model.reference["g"].sel(statistic="mean")) == 0
    # the density is the same on both sides
    problem = pe.InverseProblem.from_model(model)
    U = np.array([[2.7, 24.0], [-2.7, 24.0]])
    losses = problem.loss(problem.evaluate(U).outputs)
    assert losses[0] == losses[1]
    # where two thousand draws lie the density is high
    U = np.column_stack([draws["g"], draws["rho"]])
    potential = problem.loss(problem.evaluate(U).outputs) + problem.prior_potential(U)
    assert np.mean(potential - potential.min()) == pytest.approx(1.0, abs=4.5 / np.sqrt(2000))


@pytest.mark.parametrize(
    ("simulator", "at", "coarse", "order"),
    [
        (log_populations, np.array([[0.7, 0.045, 0.9, 0.06]]), 0.15, 4),
        (lorenz_path, np.array([[2.6, 25.0]]), 0.05, 4),
        (log_new_cases, np.array([[0.6, 0.25]]), 0.5, 1),
    ],
)
def test_half_the_step_has_an_error_that_is_smaller_by_the_order(simulator, at, coarse, order):
    exact = simulator(at, coarse / 64)
    errors = [np.abs(simulator(at, coarse / k) - exact).max() for k in (1, 2, 4)]
    for larger, smaller in pairwise(errors):
        assert 0.6 * 2**order < larger / smaller < 1.9 * 2**order


def test_grids():
    parameters = np.array([[np.log(0.04), 1.1, 0.1]])
    exact = shock(parameters, 192)
    coarse, fine = (np.abs(shock(parameters, n) - exact).max() for n in (24, 48))
    assert 1.3 < coarse / fine < 4  # of first order, with an error of the order of a cell
    u = np.random.default_rng(1).standard_normal((2, 9))
    model = gallery.coarse_darcy(16)
    np.testing.assert_array_equal(model.cheap(u), temperatures(u, 16))
    errors = [np.abs(temperatures(u, n) - temperatures(u, 32)).max() for n in (4, 8, 16)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_a_cheap_simulator_fails_where_its_step_is_too_large():
    outputs = gallery.lorenz63_modes().cheap(np.array([2.5, 9.0]), np.array([25.0, 25.0]))
    np.testing.assert_array_equal(np.isnan(outputs).any(1), [False, True])


@pytest.mark.parametrize("name", [*UNIMODAL, "lorenz63_modes", "coarse_darcy"])
def test_both_have_the_same_outputs(name):
    model = getattr(gallery, name)()
    assert model.cheap.outputs == model.forward.outputs
    assert model.description.endswith(".")
    assert gallery.decay().cheap is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gallery.predators_and_prey(0), "step must be positive"),
        (lambda: gallery.burgers(49), "Take at most 48 cells"),
        (lambda: gallery.burgers(4), "cells must be an integer of at least 8"),
        (lambda: gallery.lorenz63_modes(-1.0), "step must be positive"),
        (lambda: gallery.outbreak(2.0), "more than a day"),
        (lambda: gallery.coarse_darcy(33), "Take at most 32 cells"),
    ],
)
def test_steps_and_grids_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
