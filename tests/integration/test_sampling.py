"""The ensemble Kalman sampler under `pm.sample`, from the default call to what comes after it."""

import os

import arviz as az
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from scipy.stats import norm

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.ensembles import ess
from pymc_ensemble.samplers.kalman.sampler import PublishedKalman


def line_model(n=50):
    """A straight line with unknown noise and a deterministic; no datum is an outlier."""
    x = np.linspace(-1, 1, n)
    noise = np.random.default_rng(3).permutation(norm.ppf((np.arange(n) + 0.5) / n))
    with pm.Model(coords={"term": ["intercept", "slope"]}) as model:
        beta = pm.Normal("beta", 0, 2, dims="term")
        sigma = pm.HalfNormal("sigma")
        mu = pm.Deterministic("mu", beta[0] + beta[1] * x)
        pm.Normal("y", mu, sigma, observed=1 + 0.5 * x + 0.2 * noise)
    return model


def sample(model, step=None, **kwargs):
    settings = {"draws": 400, "chains": 2, "cores": 1, "random_seed": 1, "progressbar": False}
    with model:
        step = pe.EnsembleKalmanSampler(ensemble_size=40) if step is None else step
        return pm.sample(step=step, **settings | kwargs)


@pytest.fixture(scope="module")
def model():
    return line_model()


@pytest.fixture(scope="module")
def idata(model):
    return sample(model)


def test_defaults_of_everything():
    """Nothing but the step: 1000 draws, bar, number of cores as PyMC chooses it."""
    rng = np.random.default_rng(5)
    with pm.Model():
        u = pm.Normal("u", 0, 1, shape=3)
        pm.Normal("y", u, 0.5, observed=rng.normal(size=3))
        idata = pm.sample(step=pe.EnsembleKalmanSampler(), random_seed=2)
    assert idata.posterior.sizes["draw"] == 1000
    assert idata.sample_stats.converged.all()
    # conjugate: precision 1 + 4
    exact = 4 / 5 * idata.observed_data["y"].to_numpy()
    n = ess(idata)["u"].to_numpy()
    error = (idata.posterior.u.mean(("chain", "draw")) - exact) * np.sqrt(5 * n)
    assert np.abs(error).max() < 4
    variance = idata.posterior.u.var(("chain", "draw")) * 5
    np.testing.assert_allclose(variance, 1, atol=4 * np.sqrt(2 / n.min()))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no fork")
@pytest.mark.parametrize("mp_ctx", ["fork", "forkserver"])
def test_same_draws_on_any_number_of_cores(model, idata, mp_ctx):
    """Spawned processes are those of a forkserver without its imports; other tests have them."""
    step = pe.EnsembleKalmanSampler(ensemble_size=40)  # bound when PyMC asks for its variables
    parallel = sample(model, step, cores=2, mp_ctx=mp_ctx)
    for group in ("posterior", "sample_stats"):
        for name, values in idata[group].data_vars.items():
            np.testing.assert_array_equal(values, parallel[group][name], err_msg=name)


def test_lp_is_the_log_density_of_the_model(model, idata):
    logp = model.compile_logp()
    posterior = idata.posterior.isel(draw=slice(None, None, 97))
    stats = idata.sample_stats.isel(draw=slice(None, None, 97))
    for chain in range(2):
        for draw in range(posterior.sizes["draw"]):
            at = posterior.isel(chain=chain, draw=draw)
            point = {"beta": at["beta"].to_numpy(), "sigma_log__": np.log(at["sigma"].to_numpy())}
            assert stats.lp[chain, draw].item() == pytest.approx(float(logp(point)), rel=1e-8)


@pytest.mark.parametrize("change", ["observe", "do", "clone"])
def test_step_without_model_samples_copies(change):
    with pm.Model() as template:
        a = pm.Normal("a")
        b = pm.Normal("b")
        y = pm.Normal("y", a + b, 0.5, shape=5)
    step = pe.EnsembleKalmanSampler(ensemble_size=40)
    data = np.array([1.0, 1.2, 0.8, 1.1, 0.9])
    observed = pm.observe(template, {y: data})
    for model in {
        "observe": [observed, pm.observe(template, {y: -data})],
        "do": [pm.do(observed, {"b": 0.0}), pm.do(observed, {"b": 1.0})],
        "clone": [observed, observed.copy()],
    }[change]:
        idata = sample(model, step, draws=800)
        shift = 0.0 if change != "do" else model["b"].eval()
        free = len(model.free_RVs)
        # precision of a + b: prior 1/free, data 5 / 0.25
        mean = (idata.observed_data["y"].mean().item() - shift) * 20 / (20 + 1 / free)
        total = sum(idata.posterior[rv.name] for rv in model.free_RVs)
        assert total.mean().item() == pytest.approx(mean, abs=5 * np.sqrt(1 / 20 / 500))


def test_everything_downstream(model, idata, tmp_path):
    summary = az.summary(idata, var_names=["beta", "sigma"])
    assert (summary["r_hat"].astype(float) < 1.1).all()
    for plot in (az.plot_trace, az.plot_rank_dist, az.plot_dist, az.plot_pair, az.plot_forest):
        plot(idata, var_names=["beta", "sigma"])
    with model:
        pm.compute_log_likelihood(idata, progressbar=False)
        pm.sample_posterior_predictive(
            idata, extend_inferencedata=True, progressbar=False, random_seed=1
        )
    loo = az.loo(idata)
    assert np.isfinite(loo.elpd)
    assert idata.posterior_predictive["y"].dims[:2] == ("chain", "draw")

    idata.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "run.nc", engine="h5netcdf") as loaded:
        ensembles = pe.to_ensemble(loaded)
        assert dict(ensembles["posterior"].sizes) == {
            "chain": 2,
            "sweep": 10,
            "particle": 40,
            "term": 2,
            "mu_dim_0": 50,
        }
        assert ensembles["log_likelihood"]["y"].dims[:3] == ("chain", "sweep", "particle")
        xr.testing.assert_equal(
            ensembles["posterior"].dataset, pe.to_ensemble(idata)["posterior"].dataset
        )
        ratio = az.ess(loaded["posterior"], method="mean")["beta"] / ess(loaded)["beta"]
    assert 1 / 1.5 < ratio.min() <= ratio.max() < 1.5


def test_run_is_continued(model, idata):
    with model:
        step = pe.EnsembleKalmanSampler(initial_ensemble=idata)
        more = pm.sample(step=step, draws=400, chains=2, cores=1, random_seed=2, progressbar=False)
    assert (more.sample_stats.n_evals.max("draw") <= 40 * 13).all()
    assert more.sample_stats.converged.all()
    both = xr.concat([idata.posterior.dataset, more.posterior.dataset], dim="chain")
    assert (az.rhat(both)["beta"] < 1.1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble_size": 3}, "ensemble_size=3 is too small"),
        ({"scheme": "fancy"}, 'scheme must be "exact" or "paper"'),
        ({"adjust": True, "rough": True}, "exclude each other"),
        ({"dt": -1.0}, "dt must be positive"),
    ],
)
def test_options_are_judged_at_construction(model, options, message):
    with model, pytest.raises(ValueError, match=message):
        pe.EnsembleKalmanSampler(**options)
    step = None if "scheme" in options else pe.EnsembleKalmanSampler(**options)
    if step is not None:  # without a model: when sampling starts
        with pytest.raises(ValueError, match=message):
            sample(model, step)


def test_models_with_discrete_variables_are_sent_to_the_sampler_that_takes_them():
    with pm.Model():
        pm.Normal("y", pm.Poisson("k", 3.0) + pm.Normal("a"), observed=0.0)
        pe.MultiscaleSampler()
        with pytest.raises(ValueError, match="sample with MultiscaleSampler, which"):
            pe.EnsembleKalmanSampler()


@pytest.mark.parametrize("scheme", ["exact", "paper"])
def test_options_of_the_other_scheme_are_refused(scheme):
    option = {"exact": {"corrected": False}, "paper": {"adjust": True}}[scheme]
    with pytest.raises(ValueError, match=f'is not an option of scheme="{scheme}"'):
        pe.EnsembleKalmanSampler(scheme=scheme, **option)


@pytest.mark.parametrize("options", [{"adjust": True}, {"rough": True}, {"scheme": "paper"}])
def test_options_reach_the_sampler(model, idata, options):
    step = pe.EnsembleKalmanSampler(ensemble_size=40, **options)
    other = sample(model, step)
    sampler = step._bound.sampler
    assert isinstance(sampler, PublishedKalman) == ("scheme" in options)
    assert all(getattr(sampler, name) for name in options if name != "scheme")
    assert not np.array_equal(other.posterior.beta, idata.posterior.beta)
    assert np.isfinite(other.sample_stats.lp).all()


def test_rough_map_with_a_scale_that_is_hardly_informed():
    """In logarithms, the prior of a half-normal scale is far from Gaussian."""
    with pm.Model() as model:
        tau = pm.HalfNormal("tau")
        a = pm.Normal("a")
        pm.Normal("y", a + 0.1 * tau, 0.5, observed=0.3)
    idata = sample(model, pe.EnsembleKalmanSampler(rough=True))
    assert np.isfinite(idata.posterior.tau).all()
    # exact, but for a slope that is nearly nothing: the posterior of `a` given tau = 0.8
    assert abs(float(idata.posterior.a.mean()) - (0.3 - 0.08) / 1.25) < 0.1


def test_rough_map_that_is_too_curved_for_a_linear_fit():
    """A scale times an effect: the fit has tau 0.5 to 1 standard deviations too high."""
    with pm.Model() as model:
        tau = pm.HalfNormal("tau")
        z = pm.Normal("z", shape=2)
        pm.Normal("y", tau * z, 0.5, observed=[0.1, -0.1])
    with pytest.warns(UserWarning, match="the forward map is curved where the posterior is"):
        idata = sample(model, pe.EnsembleKalmanSampler(rough=True))
    assert not idata.sample_stats.converged.any()
    diagnosis = pe.diagnose(idata)
    assert diagnosis.verdict != "trustworthy"
    assert any("EnsembleGaussianProcessSampler" in remedy for remedy in diagnosis.remedies)


def test_saved_state_of_the_real_sampler(model):
    """In the burn-in, between sweeps, and within a block."""
    with model:
        step = pe.EnsembleKalmanSampler(ensemble_size=40)
        for saved_at in (1, 6, 60, 100):
            step.setup_chain(np.random.default_rng(5), 50, 80)

            def advance(step, point, calls):
                drawn = []
                for call in calls:
                    if call == 50:
                        step.stop_tuning()
                    point, [stats] = step.step(point)
                    drawn.append((*point["beta"], stats["lp"], stats["n_evals"]))
                return drawn

            start = model.initial_point()
            advance(step, start, range(saved_at))
            saved = step.sampling_state
            expected = advance(step, start, range(saved_at, 130))
            step.sampling_state = saved
            assert advance(step, start, range(saved_at, 130)) == expected


def test_failing_members_do_not_end_a_run(caplog):
    """A forward map that gives up in a part of the prior."""
    with pm.Model() as model:
        rate = pm.Normal("rate", 0, 1, shape=2)
        curve = pm.math.log(3.0 - rate.sum())  # NaN beyond 3, which is 1.7% of the prior
        pm.Normal("y", curve, 0.1, observed=1.0)
    idata = sample(model, pe.EnsembleKalmanSampler(ensemble_size=100))
    assert idata.sample_stats.n_failed.max() > 0
    assert "a forward evaluation failed, at rate=[" in caplog.text
    assert np.isfinite(idata.sample_stats.lp).all()


def exponential(rate, t):
    return np.exp(-rate * t)


def grown(forward):
    """A model of five times, and what makes it one of seven."""
    times, more = np.arange(5.0), np.linspace(0, 2, 7)
    with pm.Model() as model:
        t, y = pm.Data("t", times), pm.Data("y", np.exp(-0.5 * times))
        mu = forward(pm.LogNormal("rate"), t)
        pm.Normal("obs", mu, 0.1, observed=y, shape=mu.shape)
    return model, {"t": more, "y": np.exp(-more)}


@pytest.mark.parametrize(
    ("make", "forward"),
    [
        (lambda: pe.EnsembleKalmanSampler(ensemble_size=20), pe.forward_model(exponential)),
        (lambda: pe.MultiscaleSampler(), pe.forward_model(exponential)),
        (
            lambda: pe.EnsembleGaussianProcessSampler(ensemble_size=30),
            pe.forward_model(exponential),
        ),
        (
            lambda: pe.EnsembleLangevinSampler(ensemble_size=20),
            lambda rate, t: pm.math.exp(-rate * t),
        ),
    ],
)
def test_data_of_another_length(make, forward):
    """Predictions, and runs with the same step and a new one, as if the model were built anew."""
    options = {"draws": 100, "chains": 1, "cores": 1, "progressbar": False, "random_seed": 1}
    options |= {"compute_convergence_checks": False}
    model, data = grown(forward)
    with model:
        step = make()
        idata = pm.sample(step=step, **options)
        pm.set_data(data)
        predicted = pm.sample_posterior_predictive(idata, progressbar=False, random_seed=1)
        mean = np.exp(-idata.posterior["rate"].to_numpy().reshape(-1, 1) * data["t"])
        noise = predicted.posterior_predictive["obs"].to_numpy()[0] - mean
        assert noise.shape == (100, 7)
        # the mean of 100 normal draws, and their standard deviation
        assert abs(noise.mean(0)).max() < 4.5 * 0.1 / 10
        assert noise.std() == pytest.approx(0.1, rel=0.15)
        again = [pm.sample(step=s, **options).posterior["rate"] for s in (step, make())]
    np.testing.assert_array_equal(*again)
    other, _ = grown(forward)
    with other:
        pm.set_data(data)
        fresh = pm.sample(step=make(), **options).posterior["rate"]
    np.testing.assert_array_equal(again[0], fresh)
    assert abs(float(again[0].mean()) - 1) < 0.2


def test_data_of_another_length_with_described_outputs():
    model, data = grown(pe.forward_model(exponential, output_shape=(5,)))
    with model:
        idata = pm.sample_prior_predictive(2, random_seed=1)
        pm.set_data(data)
        with pytest.raises(ValueError, match="leave out `output_shape`"):
            pm.sample_posterior_predictive(idata.prior, progressbar=False)
