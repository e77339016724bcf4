"""The ensemble Langevin sampler under `pm.sample`."""

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble import gallery

A = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
Y = np.array([0.5, -0.3, 1.2])
COVARIANCE = np.linalg.inv(A.T @ A / 0.25 + np.eye(2))
MEAN = COVARIANCE @ A.T @ Y / 0.25


def sample(model, step, **kwargs):
    settings = {"draws": 8000, "chains": 1, "cores": 1, "random_seed": 1}
    with model:
        return pm.sample(
            step=step, progressbar=False, compute_convergence_checks=False, **settings | kwargs
        )


@pytest.mark.parametrize("adjust", [False, True])
def test_linear_posterior(adjust):
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", A @ u, 0.5, observed=Y)
    idata = sample(model, pe.EnsembleLangevinSampler(adjust=adjust))
    u, sd = idata.posterior["u"].values.reshape(-1, 2), np.sqrt(np.diag(COVARIANCE))
    assert idata.sample_stats["converged"].all()
    assert (np.abs(u.mean(0) - MEAN) < 0.2 * sd).all()
    assert (np.abs(u.std(0) / sd - 1) < 0.15).all()
    logp = model.compile_logp()
    exact = [float(logp({"u": point})) for point in u[::1000]]
    np.testing.assert_allclose(idata.sample_stats["lp"][0, ::1000], exact)


def test_transformed_parameters_and_potentials():
    """The Jacobian and the potential belong to the density: a Gamma law, tilted to another."""
    with pm.Model() as model:
        x = pm.Gamma("x", 3.0, 1.0)
        pm.Potential("tilt", -x)
    idata = sample(model, pe.EnsembleLangevinSampler(adjust=True))
    x = idata.posterior["x"].values
    assert x.mean() == pytest.approx(1.5, rel=0.1)
    assert x.std() == pytest.approx(np.sqrt(3) / 2, rel=0.15)


def test_black_boxes_are_refused():
    with gallery.bimodal(), pytest.raises(NotImplementedError, match=r"has no gradient.*Kalman"):
        pe.EnsembleLangevinSampler()
