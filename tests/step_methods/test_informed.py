"""The likelihood-informed sampler under `pm.sample`."""

import re

import numpy as np
import pymc as pm
import pytest
from pymc.exceptions import SamplingError

import pymc_ensemble as pe

STEP = pe.LikelihoodInformedSampler


def sample(model, step, **kwargs):
    settings = {"draws": 500, "chains": 2, "cores": 1, "random_seed": 1}
    with model:
        return pm.sample(
            step=step, progressbar=False, compute_convergence_checks=False, **settings | kwargs
        )


def walk(d=80):
    """A random walk with every fourth level observed: prior and posterior are Gaussian."""
    seen = np.arange(3, d, 4)
    y = np.sin(seen / 10)
    with pm.Model() as model:
        level = pm.GaussianRandomWalk(
            "level", sigma=0.2, init_dist=pm.Normal.dist(0.5, 1.0), shape=d
        )
        pm.Normal("y", level[seen], 0.3, observed=y)
    steps = np.eye(d) - np.eye(d, k=-1)
    steps[0] /= 1.0
    steps[1:] /= 0.2
    precision = steps.T @ steps
    force = precision @ np.full(d, 0.5)
    precision[seen, seen] += 1 / 0.09
    force[seen] += y / 0.09
    return model, np.linalg.solve(precision, force), np.linalg.inv(precision)


def test_gaussian_random_walk_is_whitened_and_sampled_exactly():
    model, mean, covariance = walk()
    idata = sample(model, STEP(), draws=2000)
    stats, u = idata.sample_stats, idata.posterior["level"].values.reshape(-1, len(mean))
    assert stats["converged"].all()
    assert stats["acceptance"].mean() > 0.98
    assert np.isinf(stats["step_size"]).all()
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((u.mean(0) - mean) / sd).max() < 4.5 / np.sqrt(len(u))
    np.testing.assert_allclose(u.std(0) / sd, 1, atol=0.08)
    logp = model.compile_logp()
    exact = [float(logp({"level": point})) for point in u[::1000]]
    np.testing.assert_allclose(stats["lp"].values.ravel()[::1000], exact)


def test_learning_is_shared_and_the_same_on_several_cores():
    model, *_ = walk(20)
    one, two = (
        sample(model, STEP(walkers=10), draws=50, cores=cores, chains=2) for cores in (1, 2)
    )
    np.testing.assert_array_equal(one.posterior["level"], two.posterior["level"])
    last = one.sample_stats["n_evals"].max("draw").values
    sweeps = 50  # evaluations of five sweeps of ten walkers
    assert last[0] > last[1] > sweeps  # only one chain counts what was learned for both
    np.testing.assert_array_equal(last.sum(), two.sample_stats["n_evals"].max("draw").sum())


def test_diagnose_knows_that_walkers_are_chains_of_their_own():
    model, *_ = walk()
    diagnosis = pe.diagnose(sample(model, STEP()))
    assert diagnosis.verdict == "trustworthy"
    assert "particles are few" not in str(diagnosis)


def bent(u):
    """A banana that is far longer than it is wide: no Gaussian law is near it."""
    return np.stack([20 * (u[..., 0] - u[..., 1] ** 2), u[..., 1]], axis=-1)


def test_a_posterior_that_is_far_from_the_law_is_flagged():
    with pm.Model() as model:
        u = pm.Normal("u", 0, 2, shape=2)
        forward = pe.forward_model(bent, output_shape=(2,), vectorized=True)
        pm.Normal("y", forward(u), 1.0, observed=np.zeros(2))
    idata = sample(model, STEP(), draws=400)
    diagnosis = pe.diagnose(idata)
    assert diagnosis.verdict != "trustworthy"
    assert "far from the learned law" in str(diagnosis)


@pytest.mark.parametrize(("steep", "flagged"), [(20.0, False), (60.0, True)])
def test_a_law_is_called_far_below_a_quarter_of_acceptance(caplog, steep, flagged):
    """Between that and 0.7 curvature is learned, and the law is usable."""

    def near_a_parabola(u):
        away = u[..., 0] - 0.5 * u[..., 1] ** 2 - 0.3 * u[..., 2]
        return np.stack([steep * away, u[..., 1]], axis=-1)

    with pm.Model() as model:
        u = pm.Normal("u", shape=3)
        forward = pe.forward_model(near_a_parabola, output_shape=(2,), vectorized=True)
        pm.Normal("y", forward(u), 1.0, observed=[0.0, 1.0])
    with caplog.at_level("INFO", logger="pymc_ensemble"):
        diagnosis = pe.diagnose(sample(model, STEP(), draws=400))
    (told,) = set(re.findall(r"Of draws of the law alone (\d+)%", caplog.text))
    assert (0 < int(told) < 25) if flagged else (25 < int(told) < 70)
    assert ("far from the learned law" in str(diagnosis)) == flagged
    assert (diagnosis.verdict == "trustworthy") == (not flagged)


def test_hyperparameters_that_bend_outputs_are_flagged():
    """A latent process of many sites is far from any line, though curvature helps."""
    x = np.linspace(0, 1, 30)
    counts = np.exp(1 + 1.5 * np.sin(7 * x)).astype(int)
    with pm.Model() as model:
        amplitude = pm.HalfNormal("amplitude")
        length = pm.LogNormal("length", -1.0, 1.0)
        kernel = amplitude**2 * pm.gp.cov.Matern52(1, length)
        f = pm.gp.Latent(cov_func=kernel).prior("f", x[:, None], jitter=1e-6)
        pm.Poisson("y", pm.math.exp(f + 1), observed=counts)
    idata = sample(model, STEP(), draws=200)
    assert "far from the learned law" in str(pe.diagnose(idata))
    draws, stats = idata.posterior.isel(chain=0), idata.sample_stats.isel(chain=0)
    point = {
        "amplitude_log__": np.log(draws["amplitude"].values[7]),
        "length_log__": np.log(draws["length"].values[7]),
        "f_rotated_": draws["f_rotated_"].values[7],
    }
    assert float(model.compile_logp()(point)) == pytest.approx(float(stats["lp"][7]))


def noisy(u, rng):
    return u + 0.1 * rng.normal(size=2)


def test_declared_noise_is_refused_before_anything_is_evaluated():
    with pm.Model():
        u = pm.Normal("u", shape=2)
        forward = pe.forward_model(noisy, output_shape=(2,), stochastic=True)
        pm.Normal("y", forward(u), 1.0, observed=np.zeros(2))
        with pytest.raises(ValueError, match=r"stochastic.*EnsembleKalmanSampler"):
            STEP()


GENERATOR = np.random.default_rng(3)


def secretly_noisy(u):
    return u + 0.3 * GENERATOR.normal(size=2)


def test_undeclared_noise_is_found_out():
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal(
            "y", pe.forward_model(secretly_noisy, output_shape=(2,))(u), 0.1, observed=np.zeros(2)
        )
    with pytest.raises(SamplingError, match="other outputs when the same point"):
        sample(model, STEP())


def test_models_without_a_forward_map_are_refused():
    with pm.Model():
        x = pm.Normal("x", shape=2)
        pm.Potential("ring", -8 * (pm.math.sqrt((x**2).sum()) - 1) ** 2)
        with pytest.raises((NotImplementedError, ValueError), match="likelihood"):
            STEP()


def test_continues_from_an_earlier_result():
    model, *_ = walk(20)
    first = sample(model, STEP(walkers=10), draws=50)
    again = sample(model, STEP(walkers=10, initial_ensemble=first), draws=50)
    assert again.sample_stats["converged"].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"walkers": 3}, "walkers must be an integer of at least 4"),
        ({"walkers": 2.5}, "walkers must be"),
        ({"round_size": 10}, "round_size must be an integer of at least 20"),
    ],
)
def test_wrong_options(options, message):
    model, *_ = walk(5)
    with pytest.raises(ValueError, match=message):
        STEP(model=model, **options)
