"""Discrete variables on which nothing else depends: exact laws of the others, and of themselves."""

import numpy as np
import pymc as pm
import pytest
from known_runs import sample
from scipy.special import gammaln

import pymc_ensemble as pe
from pymc_ensemble import InverseProblem
from pymc_ensemble.problem.leaves import discrete_leaves, without_leaves

pytestmark = pytest.mark.filterwarnings("ignore:Data in y contains missing values")

COUNTS = np.ma.masked_values([2, 3, -1, 9, -1], -1)
KNOWN = ~np.ma.getmaskarray(COUNTS)
TIMES = np.arange(1.0, 6.0)
SHAPE, RATE = 2.0, 1.0  # of the prior
A, B = SHAPE + COUNTS.sum(), RATE + TIMES[KNOWN].sum()  # of the posterior, which is conjugate


def poisson(mu, counts):
    pm.Poisson("y", mu, observed=counts)


def negative_binomial(mu, counts):
    pm.NegativeBinomial("y", mu=mu, alpha=2.0, observed=counts)


def binomial(mu, counts):
    pm.Binomial("y", 20, mu / (1 + mu), observed=counts)


def model_of(define, known=slice(None), counts=COUNTS):
    with pm.Model() as model:
        rate = pm.Gamma("rate", SHAPE, RATE)
        define(rate * pm.Data("times", TIMES)[known], counts)
    return model


@pytest.mark.parametrize("define", [poisson, negative_binomial, binomial])
def test_missing_counts_change_nothing(define):
    problem = InverseProblem.from_model(model_of(define))
    known = InverseProblem.from_model(model_of(define, KNOWN, COUNTS.data[KNOWN]))
    u = np.log([[0.5], [1.5], [2.5]])
    loss, expected = problem.loss(problem.forward(u)), known.loss(known.forward(u))
    np.testing.assert_allclose(loss - loss[0], expected - expected[0])


def test_what_something_depends_on_is_no_leaf():
    with model_of(poisson) as model:
        new = pm.Poisson("new", model["rate"])
        pm.Binomial("part", new, 0.5)
        used = pm.Poisson("used", model["rate"])
        pm.Normal("z", used, 1.0, observed=1.0)
        pm.Potential("w", -pm.Poisson("weighed", 1.0) * model["rate"])
    assert [rv.name for rv in discrete_leaves(model)] == ["y_unobserved", "new", "part"]
    rest = without_leaves(model)
    assert {rv.name for rv in rest.free_RVs} == {"rate", "used", "weighed"}
    assert "y" not in rest.named_vars
    assert "y" in model.named_vars
    assert without_leaves(rest) is rest


@pytest.mark.parametrize("step", [pe.EnsembleKalmanSampler, pe.LikelihoodInformedSampler])
@pytest.mark.parametrize("cores", [1, 2])
def test_missing_counts_are_drawn_beside_the_others(step, cores):
    """Given the rate they are Poisson; without it, means, variances and covariance are known."""
    with model_of(poisson) as model:
        idata = pm.sample(
            1000,
            step=step(),
            chains=2,
            cores=cores,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
        )
    rate, drawn = (idata.posterior[name].to_numpy() for name in ("rate", "y_unobserved"))
    n = 500  # independent draws of these 2000 at least, by their autocorrelation
    assert rate.mean() == pytest.approx(A / B, abs=4 * np.sqrt(A / n) / B)
    assert drawn.dtype == np.int64
    y, times = drawn.reshape(-1, 2), TIMES[~KNOWN]
    cov = np.outer(times, times) * A / B**2 + np.diag(times) * A / B
    np.testing.assert_array_less(np.abs(y.mean(0) - times * A / B), 4 * np.sqrt(cov.diagonal() / n))
    np.testing.assert_allclose(np.cov(y.T), cov, atol=5 * cov.max() * np.sqrt(2 / n))
    whole = idata.posterior["y"].to_numpy()
    np.testing.assert_array_equal(whole[..., ~KNOWN], drawn)
    assert (whole[..., KNOWN] == COUNTS.data[KNOWN]).all()
    assert pe.diagnose(idata, model=model).verdict == "trustworthy"


def test_results_know_the_others_alone():
    """The evidence is that of the counts that are known."""
    model = model_of(poisson)
    idata = sample(model, pe.EnsembleKalmanSampler(), draws=600, chains=2)
    x, counts = TIMES[KNOWN], COUNTS.data[KNOWN]
    exact = (counts * np.log(x) - gammaln(counts + 1)).sum() + SHAPE * np.log(RATE)
    exact += gammaln(A) - gammaln(SHAPE) - A * np.log(B)
    found = pe.log_evidence(idata)
    assert abs(found.value - exact) < 4 * found.standard_error
    mode = pe.find_MAP_ensemble(model=model, progressbar=False)
    assert mode["rate"] == pytest.approx((A - 1) / B, rel=0.01)
    with model:
        pm.set_data({"times": 2 * TIMES})
    again = sample(model, pe.EnsembleKalmanSampler(initial_ensemble=idata), draws=600, chains=2)
    posterior = A / (RATE + 2 * TIMES[KNOWN].sum())
    assert sample(model, pe.EnsembleKalmanSampler(), draws=600, chains=2).posterior[
        "rate"
    ].mean().item() == pytest.approx(posterior, rel=0.1)
    assert set(again.posterior.data_vars) == {"rate", "y_unobserved", "y"}
