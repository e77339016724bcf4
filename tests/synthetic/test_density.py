"""Only samplers that average may ask for the log density of a synthetic likelihood."""

import numpy as np
import pymc as pm
import pytest
from pymc.model.transform.optimization import freeze_dims_and_data

import pymc_ensemble as pe

CALLS = []
FEW = {
    "draws": 40,
    "chains": 1,
    "cores": 1,
    "random_seed": 1,
    "progressbar": False,
    "compute_convergence_checks": False,
}


def pair(a, b, rng):
    CALLS.append(a)
    return np.array([a + b, a - b]) + rng.standard_normal(2)


@pytest.fixture(scope="module")
def model():
    likelihood = pe.synthetic_likelihood(pair, replicates=20)
    with pm.Model() as made:
        likelihood("y", pm.Normal("a"), pm.LogNormal("b"), observed=[0.5, 0.2])
    return made


@pytest.fixture(scope="module")
def one_stage(model):
    step = pe.EnsembleKalmanSampler(rough=True, ensemble_size=20)
    with model:
        return pm.sample(step=step, **FEW)


STEPS = [pm.Metropolis, pm.DEMetropolisZ, pm.Slice]
ASKS = {
    "pm.sample()": lambda: pm.sample(**FEW),
    "pm.sample_smc": lambda: pm.sample_smc(10, chains=1, cores=1, progressbar=False),
    "compile_logp": lambda: (m := pm.modelcontext(None)).compile_logp()(m.initial_point()),
} | {step.__name__: lambda step=step: pm.sample(step=step(), **FEW) for step in STEPS}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_others_are_refused_before_anything_is_simulated(model, ask):
    CALLS.clear()
    with model, pytest.raises(TypeError, match=r"`y`.*sample_synthetic\(\)"):
        ask()
    assert not CALLS


OURS = {
    "examined": lambda: pe.EnsembleKalmanSampler(),
    "tested": lambda: pe.EnsembleKalmanSampler(adjust=True),
    "published": lambda: pe.EnsembleKalmanSampler(scheme="paper"),
    "multiscale": lambda: pe.MultiscaleSampler(rough=True),
    "informed": lambda: pe.LikelihoodInformedSampler(),
}


@pytest.mark.parametrize("step", OURS.values(), ids=OURS)
def test_so_are_samplers_of_ours_that_do_not_average(model, step):
    CALLS.clear()
    with model, pytest.raises(ValueError, match=r"`y`.*sample_synthetic\(\)"):
        pm.sample(step=step(), **FEW)
    assert not CALLS


def test_draws_can_be_predicted_from_and_diagnosed(model, one_stage):
    with model:
        prior = pm.sample_prior_predictive(3, random_seed=1)
        after = pm.sample_posterior_predictive(one_stage, random_seed=1, progressbar=False)
    assert prior["prior_predictive"]["y"].shape == (1, 3, 2)
    assert after["posterior_predictive"]["y"].shape == (1, 40, 2)
    assert pe.diagnose(one_stage).verdict == "doubtful"  # one stage alone


def test_log_likelihoods_of_single_simulations_are_refused(model, one_stage):
    with model, pytest.raises(TypeError, match="of one simulation"):
        pm.compute_log_likelihood(one_stage, progressbar=False)


def test_samplers_that_average_are_not_refused(model):
    """A process takes what is random for noise, and so does a fit that nothing tests."""
    with model:
        for step in (pe.EnsembleGaussianProcessSampler(), pe.EnsembleKalmanSampler(adjust=False)):
            assert step.vars


def test_a_covariance_that_is_frozen_is_used_and_not_estimated(model):
    frozen = freeze_dims_and_data(model)
    step = pe.EnsembleKalmanSampler(rough=True, ensemble_size=20)
    with frozen:
        idata = pm.sample(step=step, **FEW)
    assert "first guess" in pe.diagnose(idata).reasons[0]
    CALLS.clear()
    with pytest.raises(ValueError, match="covariance of `y` is a constant"):
        pe.sample_synthetic(40, model=frozen, progressbar=False)
    assert not CALLS


def test_stages_are_suggested(model):
    found = pe.suggest(model)
    assert found.code == "pe.sample_synthetic()"
    assert "`y` is a synthetic likelihood" in found.reason
    assert found.step is None
