"""The multi-fidelity sampler under `pm.sample`."""

import numpy as np
import pymc as pm
import pytest
from pymc.exceptions import SamplingError

import pymc_ensemble as pe

TIMES = np.arange(1.0, 6.0)
DATA = np.array([0.75, 0.52, 0.41, 0.28, 0.22])


def decay(rate, steps):
    return (1 + rate / steps) ** (-steps * TIMES)


def fine(rate):
    return decay(rate, 1000)


def coarse(rate):
    return decay(rate, 1)


def model_of(simulate=None, unknown=True):
    """Exponential decay, with a noise that is unknown by default."""
    simulate = pe.forward_model(fine) if simulate is None else simulate
    with pm.Model() as model:
        rate = pm.LogNormal("rate")
        sigma = pm.HalfNormal("sigma", 0.1) if unknown else 0.03
        pm.Normal("y", simulate(rate), sigma, observed=DATA)
    return model


def sample(model, step, **kwargs):
    settings = {"draws": 1000, "chains": 2, "cores": 1, "random_seed": 1}
    with model:
        return pm.sample(
            step=step, progressbar=False, compute_convergence_checks=False, **settings | kwargs
        )


def test_unknown_noise_stats_and_verdict():
    idata = sample(model_of(), pe.MultifidelitySampler(coarse), draws=2000)
    stats = idata.sample_stats
    assert stats["converged"].all()
    assert float(stats["certificate"].max()) <= 0.1
    # quadrature, with the posterior density written down once more
    rate, sigma = np.meshgrid(np.linspace(0.2, 0.45, 301), np.linspace(0.002, 0.2, 300))
    residual = DATA - decay(rate[..., None], 1000)
    log_density = -0.5 * (residual**2).sum(-1) / sigma**2 - 5 * np.log(sigma)
    log_density += -0.5 * np.log(rate) ** 2 - np.log(rate) - 0.5 * (sigma / 0.1) ** 2
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    for name, values in (("rate", rate), ("sigma", sigma)):
        mean = (weights * values).sum()
        sd = np.sqrt((weights * (values - mean) ** 2).sum())
        # 4000 draws are worth a fifth; besides, what the certificate allows
        assert abs(float(idata.posterior[name].mean()) - mean) < (0.1 + 4.5 / np.sqrt(800)) * sd
    learned, other = stats["n_evals"].max("draw").values
    assert (learned, other) == (10 * int(stats["rounds"].max()), 0)
    assert (stats["n_cheap_evals"].max("draw") > 1000).all()
    diagnosis = pe.diagnose(idata)
    assert diagnosis.trustworthy, diagnosis
    assert "a cheap model" in pe.report(idata).methods


def test_learning_is_shared_and_the_same_on_several_cores():
    model = model_of(unknown=False)
    one, two = (
        sample(model, pe.MultifidelitySampler(coarse), draws=100, cores=cores) for cores in (1, 2)
    )
    np.testing.assert_array_equal(one.posterior["rate"], two.posterior["rate"])
    assert sorted(two.sample_stats["n_evals"].max("draw").values) == [0, 20]
    assert not np.array_equal(*one.posterior["rate"].values)


@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
def test_verdict_on_a_cheap_model_that_does_not_help():
    def useless(rate):
        return np.cos(400 * rate * TIMES)  # hundreds of turns within the prior

    with pytest.warns(UserWarning, match="The cheap model does not help"):
        idata = sample(
            model_of(unknown=False), pe.MultifidelitySampler(useless, max_evaluations=20)
        )
    assert not idata.sample_stats["converged"].any()
    diagnosis = pe.diagnose(idata)
    assert diagnosis.verdict == "wrong"
    assert "does not help" in str(diagnosis)


@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
def test_verdict_on_a_certificate_that_is_not_good_enough():
    step = pe.MultifidelitySampler(coarse, tolerance=0.001, max_evaluations=20)
    idata = sample(model_of(unknown=False), step)
    assert 0.001 < float(idata.sample_stats["certificate"].max()) < 0.5
    diagnosis = pe.diagnose(idata)
    assert diagnosis.verdict == "doubtful"
    assert "Give it more: max_evaluations" in str(diagnosis)


def test_the_last_round_of_the_tuning_may_be_the_one_that_passes():
    """The start and two rounds; the comparison of both laws has no evaluations of the fine one."""
    step = pe.MultifidelitySampler(coarse)
    stats = sample(model_of(unknown=False), step, draws=100, chains=1, tune=3).sample_stats
    assert stats["converged"].all()
    assert int(stats["n_evals"].max()) == 20


def test_adjusted_draws_carry_the_density_of_the_model():
    model = model_of(unknown=False)
    step = pe.MultifidelitySampler(coarse, adjust=True)
    idata = sample(model, step, draws=300)
    stats = idata.sample_stats
    # 20 to learn; the first particles and three sweeps of each chain
    assert stats["n_evals"].max("draw").values.tolist() == [420, 400]
    assert stats["acceptance"].mean() > 0.9
    logp = model.compile_logp()
    for chain, draw in ((0, 5), (1, 250)):
        rate = float(idata.posterior["rate"][chain, draw])
        lp = float(stats["lp"][chain, draw])
        assert logp({"rate_log__": np.log(rate)}) == pytest.approx(lp, abs=1e-6)


def test_the_store_is_the_archive_of_other_samplers(tmp_path):
    path = tmp_path / "runs.db"
    model = model_of(pe.forward_model(fine, store=path), unknown=False)
    sample(model, pe.MultifidelitySampler(coarse), draws=100, chains=1)
    assert 20 <= len(pe.open_store(path)["rate"]) <= 22  # with what has told the shapes
    again = sample(model, pe.MultifidelitySampler(coarse, archive=path), draws=100, chains=1)
    assert int(again.sample_stats["n_evals"].max()) == 10
    step = pe.EnsembleGaussianProcessSampler(archive=path, tolerance=0.1)
    assert sample(model, step, draws=100, chains=1).sample_stats["converged"].all()


def test_what_is_refused():
    with pytest.raises(TypeError, match="cheap must be a function"):
        pe.MultifidelitySampler(3)
    with pm.Model() as model:
        pm.Potential("p", -(pm.Normal("u") ** 2))
    with pytest.raises(ValueError, match="only the log density of this model is known"):
        sample(model, pe.MultifidelitySampler(coarse))
    with pytest.raises(ValueError, match=r"outputs of shape \(2,\)"):
        sample(model_of(), pe.MultifidelitySampler(lambda rate: coarse(rate)[:2]))
    with pytest.raises(ValueError, match="batch=3 is too small"):
        sample(model_of(), pe.MultifidelitySampler(coarse, batch=3))
    idata = sample(model_of(), pe.MultifidelitySampler(coarse), draws=100, chains=1)
    with pytest.raises(ValueError, match="Give the path of its store"):
        pe.MultifidelitySampler(coarse, archive=idata)


def test_a_cheap_model_that_mostly_fails():
    def fails(rate):
        if rate < 2:
            raise RuntimeError("unstable")
        return coarse(rate)

    step = pe.MultifidelitySampler(pe.forward_model(fails, output_shape=(5,)))
    with pytest.raises(SamplingError, match="cheap model has failed") as failure:
        sample(model_of(), step)
    assert "unstable" in str(failure.value)
    assert "smaller time step" in str(failure.value)
