"""The sampler that a model asks for, known from the model alone."""

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe

CALLS = []


@pe.forward_model
def curve(rate, level):
    CALLS.append(1)
    return level * np.exp(-rate * np.arange(4.0))


@pe.forward_model(stochastic=True)
def noisy(rate, level, rng):
    return level * np.exp(-rate * np.arange(4.0)) + rng.normal(size=4)


def black_box(forward=curve, d=1):
    with pm.Model() as model:
        rate, level = pm.LogNormal("rate"), pm.Normal("level", shape=d)
        pm.Normal("y", forward(rate, level.sum()), 0.1, observed=np.ones(4))
    return model


def with_gradients():
    with pm.Model() as model:
        slope = pm.Normal("slope")
        pm.Normal("y", slope * np.arange(3.0), 1.0, observed=np.ones(3))
    return model


def with_values_alone():
    with pm.Model() as model:
        rate = pm.LogNormal("rate")
        pm.Potential("fit", -(curve(rate, 1.0).sum() ** 2))
    return model


def with_counts():
    with pm.Model() as model:
        rate, n = pm.LogNormal("rate"), pm.Poisson("n", 3)
        pm.Normal("y", curve(rate, n * 1.0), 0.1, observed=np.ones(4))
    return model


def simulated():
    with pm.Model() as model:
        rate = pm.LogNormal("rate")
        pm.Simulator("y", lambda rng, rate, size: rng.normal(rate, 1.0, size), rate, observed=1.0)
    return model


@pytest.mark.parametrize(
    ("model", "seconds", "step"),
    [
        (black_box, None, "EnsembleKalmanSampler"),
        (black_box, 1e-3, "EnsembleKalmanSampler"),
        (black_box, 3600, "EnsembleGaussianProcessSampler"),
        (lambda: black_box(noisy), None, "EnsembleKalmanSampler"),
        (lambda: black_box(d=200), None, "LikelihoodInformedSampler"),
        (lambda: black_box(d=200), 3600, "LikelihoodInformedSampler"),
        (lambda: black_box(noisy, d=200), None, "EnsembleKalmanSampler"),
        (with_values_alone, 3600, "EnsembleKalmanSampler"),
        (with_counts, None, "MultiscaleSampler"),
    ],
)
def test_step_is_the_one_for_the_model(model, seconds, step):
    built = model()
    CALLS.clear()
    suggestion = pe.suggest(built, seconds)
    assert not CALLS  # nothing was evaluated
    assert f"pe.{step}(" in suggestion.code
    assert type(suggestion.step).__name__ == step
    assert suggestion.runs[0] < suggestion.runs[1]
    assert (suggestion.hours is None) == (seconds is None)
    if seconds is not None:
        assert suggestion.hours == tuple(runs * seconds / 3600 for runs in suggestion.runs)
    for line in (suggestion.code, suggestion.reason, f"{suggestion.runs[0]} to"):
        assert line in str(suggestion)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyMC, by its own Simulator
@pytest.mark.parametrize(
    ("model", "code"),
    [
        (with_gradients, "pm.sample()"),
        (simulated, "pe.amortize(model, pe.simulations(model, 5000)).sample()"),
    ],
)
def test_another_sampler_is_named_where_it_is_the_right_one(model, code):
    suggestion = pe.suggest(model(), 10.0)
    assert suggestion.code == code
    assert suggestion.step is None
    assert suggestion.runs is None
    assert suggestion.hours is None


@pytest.mark.filterwarnings("ignore:The burn-in had not passed")  # it is cut short
def test_call_that_is_suggested_runs():
    with with_counts() as model:
        code = pe.suggest(model).code
        idata = eval(code[:-1] + ", draws=40, tune=40, chains=1, progressbar=False, random_seed=1)")
    assert set(idata["posterior"]) >= {"rate", "n"}


@pytest.mark.parametrize("seconds", [0, -1.0, np.inf, np.nan, "10"])
def test_time_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds_per_run"):
        pe.suggest(black_box(), seconds)


def test_model_that_cannot_be_sampled_is_refused():
    with pytest.raises(TypeError, match="There is no model"):
        pe.suggest()
    with pytest.raises(TypeError, match=r"pymc\.Model"):
        pe.suggest(3)
    with pm.Model() as model:
        pm.Normal("y", 0.0, 1.0, observed=np.ones(3))
    with pytest.raises(ValueError, match="no free variable"):
        pe.suggest(model)
