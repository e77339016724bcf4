"""Data that are impossible whatever the unknowns are, and data that only look so."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_ensemble as pe
from pymc_ensemble import InverseProblem

DATA = np.array([1.0, -1.0, 2.0, 3.0])


@pe.forward_model(output_shape=(4,))
def forward(a):
    raise AssertionError("it is not to be evaluated")


def model_of(define, data=DATA):
    with pm.Model() as model:
        define(forward(pm.Normal("a")), data)
    return model


def mixture(mu, data):
    parts = [pm.LogNormal.dist(mu, 1.0), pm.Gamma.dist(2.0, pm.math.exp(mu))]
    pm.Mixture("y", [0.3, 0.7], parts, observed=data)


def unknown_weights(mu, data):
    parts = [pm.LogNormal.dist(0.0, 1.0), pm.Exponential.dist(1.0)]
    weights = pt.stack([pm.math.sigmoid(mu), 1 - pm.math.sigmoid(mu)], axis=-1)
    pm.Mixture("y", weights, parts, observed=data)


def truncated(mu, data):
    pm.Truncated("y", pm.Normal.dist(mu, 1.0), lower=0.0, observed=data)


def censored(mu, data):
    pm.Censored("y", pm.Normal.dist(mu, 1.0), lower=0.0, upper=None, observed=data)


def hurdle(mu, data):
    pm.HurdleGamma("y", 0.5, 2.0, pm.math.exp(mu), observed=data)


def zero_inflated(mu, data):
    pm.ZeroInflatedPoisson("y", 0.5, pm.math.exp(mu), observed=data.astype(int))


def custom(mu, data):
    def logp(value, mu):
        return pt.switch(value > 0, -value * mu, -np.inf)

    pm.CustomDist("y", mu, logp=logp, observed=data)


@pytest.mark.parametrize(
    "define", [mixture, unknown_weights, truncated, censored, hurdle, zero_inflated, custom]
)
def test_impossible_data_are_refused_before_the_first_evaluation(define):
    with pytest.raises(ValueError, match=r"density of `y` is zero for 1 of .* -1.* at index \[1\]"):
        InverseProblem.from_model(model_of(define))
    InverseProblem.from_model(model_of(define, np.abs(DATA)))


def between_unknown_bounds(mu, data):
    pm.Uniform("y", -pm.math.exp(mu), pm.math.exp(mu), observed=100 * data)


def a_mixture_of_them(mu, data):
    parts = [pm.Uniform.dist(mu, mu + 1.0), pm.Uniform.dist(mu - 1.0, mu)]
    pm.Mixture("y", [0.3, 0.7], parts, observed=100 * data)


def truncated_where_is_unknown(mu, data):
    pm.Truncated("y", pm.Normal.dist(0.0, 1.0), lower=mu, observed=data)


def beyond_an_unknown_scale(mu, data):
    pm.Pareto("y", 2.0, pm.math.exp(mu), observed=1e-6 * np.abs(data))


def far_from_all_parts(mu, data):
    parts = [pm.Normal.dist(mu, 1e-3), pm.StudentT.dist(3.0, mu=mu, sigma=1e-3)]
    pm.Mixture("y", [0.3, 0.7], parts, observed=1e9 * data)


def so_large_that_squares_are_infinite(mu, data):
    pm.NormalMixture("y", [0.3, 0.7], pt.stack([mu, mu], axis=-1), 1.0, observed=1e200 * data)


def conditions_on_both(mu, data):
    def logp(value, mu):
        return pt.switch(value > mu, mu - value, -np.inf)

    pm.CustomDist("y", mu, logp=logp, observed=data)


@pytest.mark.parametrize(
    "define",
    [
        between_unknown_bounds,
        a_mixture_of_them,
        truncated_where_is_unknown,
        beyond_an_unknown_scale,
        far_from_all_parts,
        so_large_that_squares_are_infinite,
        conditions_on_both,
    ],
)
def test_data_that_are_possible_for_some_values_are_taken(define):
    InverseProblem.from_model(model_of(define))
