"""Misfit per datum: its expectation is one for data that follow the outputs, whatever the loss."""

import numpy as np
import pymc as pm
import pytest

from pymc_ensemble import InverseProblem


def test_of_gaussian_noise_is_the_mean_squared_residual():
    with pm.Model() as model:
        x = pm.Normal("x", shape=4)
        pm.Normal("y", x, [0.5, 1.0, 2.0, 4.0], observed=np.zeros(4))
    problem = InverseProblem.from_model(model)
    Z = np.random.default_rng(1).standard_normal((3, 4))
    expected = np.mean((Z / [0.5, 1.0, 2.0, 4.0]) ** 2, axis=1)
    np.testing.assert_allclose(problem.misfit(Z), expected)
    plain = InverseProblem(
        lambda u: u, prior=(np.zeros(4), np.eye(4)), data=np.zeros(4), noise=[0.5, 1.0, 2.0, 4.0]
    )
    np.testing.assert_allclose(plain.misfit(Z), expected)


def test_counts_data_and_not_outputs():
    """One output for all data: the misfit is theirs, up to the error of 64 simulations."""
    data = np.random.default_rng(2).normal(1.0, 3.0, 200)
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Normal("y", x, 1.5, observed=data)
    [misfit] = InverseProblem.from_model(model).misfit([[1.0]])
    assert misfit == pytest.approx(np.mean(((data - 1) / 1.5) ** 2), abs=5 * 0.18 / np.sqrt(200))


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "student", "unknown scale"])
def test_is_one_on_average(name):
    rng, n, misfits = np.random.default_rng(3), 400, []
    eta = rng.standard_normal(n)
    data = {
        "poisson": lambda: rng.poisson(np.exp(eta)),
        "bernoulli": lambda: (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int),
        "student": lambda: eta + 0.5 * rng.standard_t(4, n),
        "unknown scale": lambda: eta + 0.7 * rng.standard_normal(n),
    }[name]
    for _ in range(5):
        with pm.Model() as model:
            x = pm.Normal("x", shape=n)
            if name == "poisson":
                pm.Poisson("y", pm.math.exp(x), observed=data())
            elif name == "bernoulli":
                pm.Bernoulli("y", logit_p=x, observed=data())
            elif name == "student":
                pm.StudentT("y", nu=4, mu=x, sigma=0.5, observed=data())
            else:
                pm.Normal("y", x, pm.HalfNormal("sigma"), observed=data())
        problem = InverseProblem.from_model(model)
        Z = np.append(eta, np.log(0.7))[None, : problem.n_outputs]
        misfits.append(problem.misfit(Z)[0])
        far = problem.misfit(Z + 2 * np.append(np.ones(n), 0)[: Z.shape[1]])
        assert far[0] > 1.3
    # a datum's loss has a standard deviation of one or less, and there are 2000 of them
    assert abs(np.mean(misfits) - 1) < 4 * 2 * np.sqrt(1 / 2000 + 1 / (64 * 400))


def test_is_unknown_where_data_cannot_be_simulated():
    problem = InverseProblem(
        lambda u: u, prior=(np.zeros(2), np.eye(2)), loss=lambda Z: (Z**4).sum(1), n_outputs=2
    )
    assert np.isnan(problem.misfit(np.ones((3, 2)))).all()
