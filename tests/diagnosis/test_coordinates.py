"""Bounds of parameters, and coordinates without bounds."""

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.coordinates import Bounds, Redundancy, bounds_of

INF = np.inf
BOUNDS = Bounds(np.array([-INF, 0.0, -1.0, -INF]), np.array([INF, INF, 3.0, 2.0]))


def draws(n=2000):
    """Correlated normal coordinates, and parameters with these bounds."""
    rng = np.random.default_rng(1)
    A = np.array([[1, 0.5, 0, 0.2], [0, 1, 0.2, 0], [0.3, 0, 0.5, 0], [0, 0.1, 0, 0.8]])
    Y = rng.standard_normal((n, 4)) @ A
    return Y, BOUNDS.parameters(Y)


def test_coordinates_and_back():
    Y, X = draws()
    np.testing.assert_allclose(BOUNDS.coordinates(X), Y, atol=1e-9)
    assert BOUNDS.contain(X).all()
    assert not BOUNDS.contain(np.array([[0.0, 0.1, 3.1, 0.0], [0.0, -0.1, 0.0, 0.0]])).any()


def test_jacobian_is_that_of_the_parameters():
    Y, X = draws(5)
    eps = 1e-6
    slopes = (BOUNDS.parameters(Y + eps) - BOUNDS.parameters(Y - eps)) / (2 * eps)
    np.testing.assert_allclose(BOUNDS.log_jacobian(X), np.log(slopes).sum(1), rtol=1e-6)


def test_bounds_are_told_by_the_jacobian():
    _, X = draws()
    found = bounds_of(X, BOUNDS.log_jacobian(X) - 0.7)
    left = BOUNDS.log_jacobian(X) - found.log_jacobian(X)
    assert left.std() < 1e-3
    np.testing.assert_allclose(found.lower[[1, 2]], BOUNDS.lower[[1, 2]], atol=1e-3)
    np.testing.assert_allclose(found.upper[[2, 3]], BOUNDS.upper[[2, 3]], atol=1e-3)
    nothing = bounds_of(X, np.zeros(len(X)))
    assert np.isinf(nothing.lower).all()
    assert np.isinf(nothing.upper).all()


def test_parameters_that_are_functions_of_others():
    Y, _ = draws()
    X = np.column_stack([Y[:, 0], Y[:, 1], 1 - Y[:, 0] - Y[:, 1], Y[:, 2]])
    found = Redundancy.of(X)
    assert len(found.kept) == 3
    np.testing.assert_allclose(found(X[:, found.kept]), X, atol=1e-9)
    assert Redundancy.of(Y).kept.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("adjust", [False, True])
def test_shares_are_diagnosed(adjust):
    """The last share follows from the others; nearly Gaussian, so that both samplers are right."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 3))
    with pm.Model() as model:
        w = pm.Dirichlet("w", np.ones(3))
        pm.Normal("y", pm.math.dot(x, w), 0.3, observed=x @ [0.5, 0.3, 0.2])
    diagnosis = pe.diagnose(sampled(model, adjust=adjust))
    assert diagnosis.trustworthy
    assert diagnosis.parameters.sizes["parameter"] == 3
    assert np.isfinite(diagnosis.parameters["shift"]).all()


@pytest.fixture(scope="module")
def bounded():
    """A saturating curve whose parameters are known hardly better than by their bounds."""
    x = np.linspace(0.2, 4, 7)
    with pm.Model() as model:
        speed = pm.Uniform("speed", 0, 5)
        half = pm.Uniform("half", 0.05, 4)
        scale = pm.HalfNormal("scale", 0.4)
        y = [0.3, 0.9, 1.3, 1.2, 1.6, 1.5, 1.9]
        pm.Normal("y", speed * x / (half + x), scale, observed=y)
    return model


def sampled(model, **options):
    with model:
        return pm.sample(
            1000,
            step=pe.EnsembleKalmanSampler(**({"adjust": False} | options)),
            chains=4,
            cores=1,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
        )


def test_stat_is_the_difference_of_the_densities(bounded):
    idata = sampled(bounded, adjust=True)
    density = bounded.compile_logp(jacobian=False)
    point = bounded.initial_point()
    stats = idata.sample_stats.isel(chain=0, draw=7)
    speed, half, scale = (float(idata.posterior[n][0, 7]) for n in ("speed", "half", "scale"))
    point["speed_interval__"] = np.array(np.log(speed) - np.log(5 - speed))
    point["half_interval__"] = np.array(np.log(half - 0.05) - np.log(4 - half))
    point["scale_log__"] = np.array(np.log(scale))
    assert float(stats["lp"] - stats["log_jacobian"]) == pytest.approx(density(point), rel=1e-9)


@pytest.mark.parametrize("adjust", [False, True])
def test_parameters_near_bounds_are_diagnosed(bounded, adjust):
    """Unadjusted means are off by .4 to .5 posterior standard deviations."""
    assert pe.diagnose(sampled(bounded, adjust=adjust)).trustworthy == adjust
