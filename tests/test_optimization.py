"""The posterior mode without derivatives."""

import warnings

import numpy as np
import pymc as pm
import pytest
from pymc.exceptions import SamplingError
from scipy import stats

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


EXPLORERS = {"method": "explorers"}


@pytest.mark.parametrize(
    "options", [{}, EXPLORERS, EXPLORERS | {"preconditioner": None, "maxiter": 1000}]
)
def test_agrees_with_derivatives(model, options):
    point = pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False, **options)
    expected = by_derivatives(model)
    assert point.converged
    assert point.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(point[name], value, atol=2e-3, err_msg=name)
    remains = {"gap": 1e-4, "gradient": 1e-3}
    assert all(point.history[k][-1] < v for k, v in remains.items() if k in point.history)
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


@pytest.mark.parametrize(
    ("method", "message"),
    [("tracked", "ended after 1 rounds"), ("explorers", "ended after 1 steps")],
)
def test_search_that_ends_too_early_says_so(model, method, message):
    with pytest.warns(UserWarning, match=message):
        point = pe.find_MAP_ensemble(
            model=model, method=method, maxiter=1, random_seed=1, progressbar=False
        )
    assert not point.converged


def test_law_of_a_linear_model_is_exact():
    """Covariance and evidence are those of the Gaussian posterior; nothing is evaluated for it."""
    A = np.random.default_rng(1).standard_normal((4, 60))
    y = np.array([1.0, -2.0, 0.5, 3.0])
    with pm.Model() as model:
        u = pm.Normal("u", 0.5, 2.0, shape=60)
        scale = pm.LogNormal("scale")
        pm.Normal("y", pm.math.dot(A, u), 0.7, observed=y)
        pm.Normal("z", pm.math.log(scale), 0.5, observed=1.0)
    point = pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False)
    precision = np.eye(61)
    precision[:60, :60] = np.eye(60) / 4 + A.T @ A / 0.49
    precision[60, 60] += 1 / 0.25
    np.testing.assert_allclose(point.covariance, np.linalg.inv(precision), atol=1e-5)
    marginal = stats.multivariate_normal(0.5 * A.sum(1), 4 * A @ A.T + 0.49 * np.eye(4))
    evidence = marginal.logpdf(y) + stats.norm(0, np.sqrt(1.25)).logpdf(1.0)
    assert point.log_evidence == pytest.approx(evidence, abs=1e-3)


def test_explorers_know_no_law(model):
    point = pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False, **EXPLORERS)
    with pytest.raises(ValueError, match='method="tracked"'):
        _ = point.covariance


def test_hundreds_of_parameters():
    """A nonlinear map of 150 parameters: the slope of the density vanishes at the mode."""
    modes = np.sin(np.outer(np.linspace(0, 3, 30), 1 + np.arange(150))) / (1 + np.arange(150))
    with pm.Model() as model:
        u = pm.Normal("u", shape=150)
        field = pm.math.exp(pm.math.dot(modes, u))
        pm.Poisson("y", 5 * field, observed=np.arange(30) % 7)
    point = pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False)
    assert point.converged
    gradient = model.compile_dlogp()({"u": point["u"]})
    potential = gradient @ point.covariance @ gradient / 2
    assert potential < 1e-3
    assert point.history["n_evals"][-1] < 600


def test_what_cannot_be_tracked_goes_to_the_explorers(caplog):
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        pm.Potential("well", -((x - 1) ** 2).sum())
    with caplog.at_level("INFO", logger="pymc_ensemble"):
        point = pe.find_MAP_ensemble(model=model, random_seed=1, progressbar=False)
    assert "no forward map whose slope" in caplog.text
    np.testing.assert_allclose(point["x"], 2 / 3, atol=5e-3)
    with pytest.raises(ValueError, match='Use method="explorers"'):
        pe.find_MAP_ensemble(model=model, method="tracked", progressbar=False)


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
        model=model,
        initvals={"k": 1.0},
        method="explorers",
        preconditioner=None,
        random_seed=1,
        progressbar=False,
    )
    np.testing.assert_allclose(point["k"], 1.5, atol=1e-2)


def nowhere(u):
    """A simulator that never works."""
    raise RuntimeError("the mesh is broken")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"initvals": {"u": [1.0, 2.0]}},
        EXPLORERS,
        EXPLORERS | {"preconditioner": None, "initvals": {"u": [1.0, 2.0]}},
    ],
)
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
    assert ("at u=[1. 2.]" in message) == ("initvals" in options)


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
                model=model,
                random_seed=seed,
                progressbar=False,
                maxiter=5,
                method="explorers",
                sigma=0.5,
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
        (EXPLORERS | {"directions": 0}, "directions must be an integer of at least 1, not 0"),
        (EXPLORERS | {"tol": -1.0}, "tol must be positive, not -1.0"),
        (EXPLORERS | {"sigma": "small"}, "sigma must be positive, not 'small'"),
        (EXPLORERS | {"ensemble_size": 2}, "ensemble_size=2 is too small"),
        (EXPLORERS | {"preconditioner": "posterior"}, "preconditioner"),
        ({"ensemble_size": 2}, "ensemble_size must be an integer of at least 20"),
        ({"directions": 3}, '`directions` is an option of method="explorers"'),
        ({"tol": 0.1}, "`tol` is an option"),
        ({"sigma": 0.1}, "`sigma` is an option"),
        ({"preconditioner": None}, "`preconditioner` is an option"),
        ({"method": "newton"}, 'method must be "tracked" or "explorers"'),
        ({"vars": ["velocity"]}, "velocity"),
        ({"vars": []}, "`vars` is empty"),
        ({"initvals": {"velocity": 1.0}}, "`initvals` names `velocity`"),
    ],
)
def test_wrong_options(model, monkeypatch, options, message):
    monkeypatch.setattr(pe.InverseProblem, "evaluate", None)  # nothing is evaluated
    with pytest.raises(ValueError, match=message):
        pe.find_MAP_ensemble(model=model, progressbar=False, **options)
