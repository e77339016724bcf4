"""The posterior mode without derivatives."""

import warnings

import numpy as np
import pymc as pm
import pytest
from pymc.exceptions import SamplingError

import pymc_ensemble as pe


@pytest.fixture
def model():
    """A mode that is known from derivatives, with a transformed variable and one entry fixed."""
    with pm.Model() as model:
        rate = pm.LogNormal("rate")
        offset = pm.Normal("offset", shape=2)
        pm.Deterministic("half_life", np.log(2) / rate)
        decay = pm.math.exp(-rate * np.arange(6)) + offset[0] + offset[1] * np.arange(6) / 10
        pm.Normal("y", decay, 0.05, observed=[1.2, 0.6, 0.35, 0.2, 0.25, 0.2])
    return model


def by_derivatives(model, **options):
    """What `pymc.find_MAP` finds; its result will be of another type one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return pm.find_MAP(model=model, progressbar=False, **options)


@pytest.mark.parametrize("options", [{}, {"preconditioner": None, "maxiter": 1000}])
def test_agrees_with_derivatives(model, options):
    point = pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False, **options)
    expected = by_derivatives(model)
    assert point.converged
    assert point.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(point[name], value, atol=2e-3, err_msg=name)
    assert point.history["gradient"][-1] < 1e-3
    assert point.history["misfit"][-1] <= point.history["misfit"][0]
    assert (np.diff(point.history["n_evals"]) > 0).all()


def test_other_variables_keep_their_initial_values(model):
    start = {"offset": [0.1, -0.2]}
    point = pe.find_MAP_ensemble(
        model=model, vars=["rate"], initvals=start, random_seed=1, progressbar=False
    )
    expected = by_derivatives(model, vars=[model["rate"]], initvals=start)
    np.testing.assert_array_equal(point["offset"], [0.1, -0.2])
    np.testing.assert_allclose(point["rate"], expected["rate"], atol=2e-3)


def test_search_that_ends_too_early_says_so(model):
    with pytest.warns(UserWarning, match="ended after 1 steps"):
        point = pe.find_MAP_ensemble(model=model, maxiter=1, random_seed=1, progressbar=False)
    assert not point.converged


def test_many_parameters():
    with pm.Model() as model:
        k = pm.Normal("k", shape=35)
        pm.Normal("y", k, np.linspace(0.1, 1, 35), observed=np.ones(35))
    point = pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False)
    assert point.converged
    np.testing.assert_allclose(point["k"], 1 / (1 + np.linspace(0.1, 1, 35) ** 2), atol=5e-3)


def test_improper_priors_need_scales_and_a_start():
    with pm.Model() as model:
        k = pm.Flat("k")
        pm.Normal("y", k, 0.5, observed=[1.0, 2.0])
    with pytest.raises(ValueError, match="Give both: `initvals`, and `preconditioner=None`"):
        pe.find_MAP_ensemble(model=model, progressbar=False)
    point = pe.find_MAP_ensemble(
        model=model, initvals={"k": 1.0}, preconditioner=None, random_seed=1, progressbar=False
    )
    np.testing.assert_allclose(point["k"], 1.5, atol=1e-2)


def nowhere(u):
    """A simulator that never works."""
    raise RuntimeError("the mesh is broken")


@pytest.mark.parametrize("options", [{}, {"preconditioner": None, "initvals": {"u": [1.0, 2.0]}}])
def test_failures_are_told_in_words(options):
    """In the ensemble, and at the start of the descent."""
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", pe.forward_model(nowhere, output_shape=(2,))(u), 1.0, observed=np.zeros(2))
    with pytest.raises(SamplingError) as error:
        pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False, **options)
    message = str(error.value)
    for told in ("forward evaluations failed", "at u=[", "the mesh is broken", "`initvals` where"):
        assert told in message
    assert ("at u=[1. 2.]" in message) == bool(options)


def noisy(u, rng):
    """A simulator with noise of its own."""
    return u + 0.01 * rng.normal(size=2)


def test_stochastic_models_are_seeded():
    """The same seed gives the same point, however often the forward map was called before."""
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        forward = pe.forward_model(noisy, output_shape=(2,), stochastic=True)
        pm.Normal("y", forward(u), 1.0, observed=np.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # noise keeps the gradient from vanishing
        one, two, other = (
            pe.find_MAP_ensemble(
                model=model, random_seed=seed, progressbar=False, maxiter=5, sigma=0.5
            )
            for seed in (1, 1, 2)
        )
    np.testing.assert_array_equal(one["u"], two["u"])
    assert not np.array_equal(one["u"], other["u"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maxiter": 0}, "maxiter must be an integer of at least 1, not 0"),
        ({"maxiter": 1.5}, "maxiter must be an integer"),
        ({"directions": 0}, "directions must be an integer of at least 1, not 0"),
        ({"tol": -1.0}, "tol must be positive, not -1.0"),
        ({"sigma": "small"}, "sigma must be positive, not 'small'"),
        ({"ensemble_size": 2}, "ensemble_size=2 is too small"),
        ({"preconditioner": "posterior"}, "preconditioner"),
        ({"vars": ["velocity"]}, "velocity"),
        ({"vars": []}, "`vars` is empty"),
        ({"initvals": {"velocity": 1.0}}, "`initvals` names `velocity`"),
    ],
)
def test_wrong_options(model, monkeypatch, options, message):
    monkeypatch.setattr(pe.InverseProblem, "evaluate", None)  # nothing is evaluated
    with pytest.raises(ValueError, match=message):
        pe.find_MAP_ensemble(model=model, progressbar=False, **options)
