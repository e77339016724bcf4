"""The ensemble Gaussian process sampler under `pm.sample`."""

import logging
import warnings

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.samplers.gaussian_process.sampler import EnsembleGaussianProcess

A = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
Y = np.array([0.5, -0.3, 1.2])
COVARIANCE = np.linalg.inv(A.T @ A / 0.25 + np.eye(2))
MEAN = COVARIANCE @ A.T @ Y / 0.25


def linear_model(scale=1.0):
    forward = pe.forward_model(lambda u: A @ u, output_shape=(3,))
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", scale * forward(u), 0.5, observed=Y)
    model.forward = forward
    return model


def sample(model, step=None, **kwargs):
    settings = {"draws": 400, "chains": 1, "cores": 1, "random_seed": 1}
    with model:
        return pm.sample(
            step=pe.EnsembleGaussianProcessSampler(ensemble_size=20) if step is None else step,
            progressbar=False,
            compute_convergence_checks=False,
            **settings | kwargs,
        )


def test_posterior_and_cost():
    """Draws cost nothing; 2000 of them have standard errors of about .03."""
    model = linear_model()
    idata = sample(model, draws=2000)
    u = idata.posterior["u"].values.reshape(-1, 2)
    sd = np.sqrt(np.diag(COVARIANCE))
    assert (np.abs(u.mean(0) - MEAN) < 0.15 * sd).all()
    assert (np.abs(u.std(0) / sd - 1) < 0.12).all()
    assert (idata.sample_stats["n_evals"] == model.forward.n_evaluations).all()
    assert model.forward.n_evaluations <= 160
    assert idata.sample_stats["converged"].all()


def test_lp_is_that_of_the_surrogate():
    model = linear_model()
    idata = sample(model)
    logp = model.compile_logp()
    u = idata.posterior["u"].values[0, ::50]
    exact = [float(logp({"u": point})) for point in u]
    np.testing.assert_allclose(idata.sample_stats["lp"][0, ::50], exact, atol=0.05)


def test_one_core_or_two():
    """One chain learns for all; which of them it is does not matter."""
    runs = [sample(linear_model(), cores=cores, chains=3) for cores in (1, 2)]
    draws = [run.posterior["u"].values for run in runs]
    assert np.array_equal(*draws)
    assert not np.array_equal(draws[0][0], draws[0][1])  # chains have moves of their own
    for run in runs:
        n_evals = run.sample_stats["n_evals"].values
        assert (n_evals == n_evals[:, :1]).all()
        assert sorted(n_evals[:, 0])[:2] == [0, 0]
    assert len({run.sample_stats["n_evals"].values.max() for run in runs}) == 1


def test_evaluations_do_not_grow_with_the_number_of_chains():
    used = []
    for chains in (1, 4):
        model = linear_model()
        sample(model, chains=chains, draws=40)
        used.append(model.forward.n_evaluations)
    assert used[0] == used[1]


def test_adjusted_draws_carry_the_exact_density():
    model = linear_model()
    step = pe.EnsembleGaussianProcessSampler(ensemble_size=20, adjust=True)
    idata = sample(model, step)
    logp = model.compile_logp()
    u = idata.posterior["u"].values[0, ::50]
    exact = [float(logp({"u": point})) for point in u]
    np.testing.assert_allclose(idata.sample_stats["lp"][0, ::50], exact)
    n_evals = idata.sample_stats["n_evals"].values[0]
    assert n_evals.max() - n_evals.min() == 19 * 20  # twenty sweeps


def test_density_without_forward_map(caplog):
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        pm.Potential("ring", -8 * (pm.math.sqrt((x**2).sum()) - 1) ** 2)
    with caplog.at_level(logging.INFO, logger="pymc_ensemble"):
        idata = sample(model, pe.EnsembleGaussianProcessSampler(), draws=2000)
    assert "the surrogate predicts the log density" in caplog.text
    x = idata.posterior["x"].values.reshape(-1, 2)
    radius = np.sqrt((x**2).sum(1))
    r = np.linspace(0, 6, 4001)
    w = r * np.exp(-(r**2) / 2 - 8 * (r - 1) ** 2)
    assert radius.mean() == pytest.approx((w @ r) / w.sum(), abs=0.03)
    assert (np.abs(x.mean(0)) < 0.15).all()


def test_bounded_parameters_and_unknown_noise():
    """Priors in unconstrained coordinates are taken as they are."""
    rng = np.random.default_rng(0)
    t, data = np.linspace(0, 3, 30), None
    data = 2.0 * np.exp(-0.7 * t) + 0.1 * rng.standard_normal(30)
    with pm.Model() as model:
        amplitude = pm.HalfNormal("amplitude", 3.0)
        rate = pm.Gamma("rate", 2.0, 2.0)
        sigma = pm.HalfNormal("sigma", 0.5)
        pm.Normal("y", amplitude * pm.math.exp(-rate * t), sigma, observed=data)
    surrogate = sample(model, pe.EnsembleGaussianProcessSampler(), draws=3000)
    assert surrogate.sample_stats["converged"].all()
    # moments by quadrature; they move by less than a hundredth of an sd on a wider or finer grid
    ranges = {"amplitude": (1.7, 2.3), "rate": (0.5, 0.9), "sigma": (0.05, 0.2)}
    a, r, s = np.meshgrid(*(np.linspace(*ends, 61) for ends in ranges.values()), indexing="ij")
    squares = sum((y - a * np.exp(-r * at)) ** 2 for y, at in zip(data, t, strict=True))
    potential = 0.5 * squares / s**2 + 30 * np.log(s)
    potential += 0.5 * (a / 3) ** 2 + 2 * r - np.log(r) + 0.5 * (s / 0.5) ** 2
    weights = np.exp(potential.min() - potential)
    weights /= weights.sum()
    for name, values in zip(ranges, (a, r, s), strict=True):
        mean = (weights * values).sum()
        sd = np.sqrt((weights * (values - mean) ** 2).sum())
        draws = surrogate.posterior[name].values
        assert abs(draws.mean() - mean) < 0.2 * sd
        assert draws.std() / sd == pytest.approx(1, abs=0.2)


def test_what_was_learned_is_told(caplog):
    model = linear_model()
    step = pe.EnsembleGaussianProcessSampler(ensemble_size=20, model=model)
    assert step.learned is None
    with caplog.at_level(logging.INFO, logger="pymc_ensemble"):
        sample(model, step)
    assert step.learned.verification.passed
    assert step.learned.surrogate_error.shape == (2, 2)
    assert len(step.learned.archive) == model.forward.n_evaluations
    assert "surrogate errors of mean and sd" in caplog.text
    assert "verification passed" in caplog.text


@pytest.mark.parametrize("cores", [1, 2])
def test_stats_tell_how_good_the_surrogate_is(cores):
    """Steps are built before their model is known, and run in other processes."""
    step = pe.EnsembleGaussianProcessSampler(ensemble_size=20)
    options = {"chains": 2, "cores": cores, "discard_tuned_samples": False}
    idata = sample(linear_model(), step, draws=100, **options)
    stats = idata.sample_stats
    for name in ("surrogate_error", "surrogate_error_sd"):
        assert stats[name].shape == (2, 100, 2)
        assert ((stats[name] > 0) & (stats[name] < 0.5)).all()
        assert (stats[name] == stats[name][:, :1]).all()  # the same for all draws of a chain
    # all is learned before the first draw, and once for both chains
    tuning = idata.warmup_sample_stats["verification_mean"]
    assert (tuning[:, 0] == stats["verification_mean"][:, 0]).all()
    assert (stats["verification_mean"][0] == stats["verification_mean"][1]).all()
    assert (np.abs(stats["verification_mean"]) < 0.5).all()
    assert (stats["verification_sd"] < 1.2).all()
    assert (stats["verification_noise"] == 0.1).all()
    assert (stats["verification_outliers"] == 0).all()
    by_particle = pe.to_ensemble(idata).sample_stats["surrogate_error"]
    assert by_particle.dims[:3] == ("chain", "sweep", "particle")
    if cores == 1:
        assert np.array_equal(stats["surrogate_error"][-1, -1], step.learned.surrogate_error[0])


def test_growth_to_a_certificate():
    """By default four chains share some ten evaluations, and what was certified is said."""
    model = linear_model()
    idata = sample(model, pe.EnsembleGaussianProcessSampler(), chains=4, draws=500)
    u = idata.posterior["u"].values.reshape(-1, 2)
    sd = np.sqrt(np.diag(COVARIANCE))
    assert (np.abs(u.mean(0) - MEAN) < 0.15 * sd).all()
    assert (np.abs(u.std(0) / sd - 1) < 0.12).all()
    assert model.forward.n_evaluations <= 60
    stats = idata.sample_stats
    assert int(stats["n_evals"].values.max(1).sum()) == model.forward.n_evaluations
    assert stats["converged"].all()
    assert (stats["certificate"] <= 0.1).all()
    assert pe.diagnose(idata).verdict == "trustworthy"
    assert pe.report(idata, model).facts.options["certificate"] <= 0.1


def test_without_a_certificate_a_run_is_doubtful():
    model = linear_model()
    step = pe.EnsembleGaussianProcessSampler(tolerance=1e-12, max_evaluations=40)
    with pytest.warns(UserWarning, match="not certified"):
        idata = sample(model, step)
    assert model.forward.n_evaluations <= 40
    assert not idata.sample_stats["converged"].any()
    found = pe.diagnose(idata)
    assert found.verdict == "doubtful"
    assert "was not certified" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 20, "epochs": 7}, "epochs=7 and batch=20 contradict each other"),
        ({"tolerance": 0.1, "epochs": 3}, "epochs=3 and tolerance=0.1 contradict"),
        ({"scheme": "paper", "tolerance": 0.1}, "not an option of scheme"),
    ],
)
def test_a_surrogate_grows_or_is_learned_in_epochs(options, message):
    with pytest.raises(ValueError, match=message):
        pe.EnsembleGaussianProcessSampler(**options)


@pytest.mark.parametrize("options", [{"ensemble_size": 20}, {"epochs": 7}])
def test_options_of_epochs_choose_them(options):
    model = linear_model()
    step = pe.EnsembleGaussianProcessSampler(**options, model=model)
    assert type(step._bound.sampler) is EnsembleGaussianProcess
    assert step.default_tune_steps == 13


@pytest.mark.parametrize("adjust", [False, True])
def test_growth_with_one_core_or_two(adjust):
    """One chain learns for all; which of them it is does not matter."""
    runs, used = [], 0
    for cores in (1, 2):
        model, step = linear_model(), pe.EnsembleGaussianProcessSampler(adjust=adjust)
        runs.append(sample(model, step, cores=cores, chains=3, draws=300))
        used = used or model.forward.n_evaluations
    assert np.array_equal(*(run.posterior["u"].values for run in runs))
    for run in runs:
        n_evals = run.sample_stats["n_evals"].values.max(1)
        assert n_evals.sum() == used
        own = 300 if adjust else 0  # each draw costs one evaluation
        assert sorted(n_evals)[:2] == [own, own]
        assert own + 23 <= max(n_evals) <= own + 60
        assert run.sample_stats["converged"].all()


def test_workers_have_whole_rounds():
    forward = pe.forward_model(lambda u: A @ u, output_shape=(3,), executor=4)
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", forward(u), 0.5, observed=Y)
    step = pe.EnsembleGaussianProcessSampler(model=model)
    assert step._bound.sampler.start_size == 12
    assert pe.EnsembleGaussianProcessSampler(model=model, batch=20)._bound.sampler.start_size == 20
    forward.close()


def test_evaluations_of_an_earlier_run_are_learned_from():
    model = linear_model()
    step = pe.EnsembleGaussianProcessSampler(ensemble_size=20, model=model)
    sample(model, step)
    known = step.learned.archive
    idata = sample(
        model, pe.EnsembleGaussianProcessSampler(ensemble_size=10, archive=(known.U, known.Z))
    )
    assert idata.sample_stats["converged"].all()
    assert (idata.sample_stats["n_evals"] == 20).all()  # initial ensemble and verification
    by_name = {"u": known.U}
    assert (
        sample(
            model, pe.EnsembleGaussianProcessSampler(ensemble_size=10, archive=(by_name, known.Z))
        )
        .sample_stats["converged"]
        .all()
    )


def test_draws_of_another_sampler_are_learned_from():
    model = linear_model()
    exact = sample(model, pe.EnsembleKalmanSampler(ensemble_size=20, adjust=True))
    options = {"ensemble_size": 20, "archive": exact}
    idata = sample(model, pe.EnsembleGaussianProcessSampler(target="potential", **options))
    assert idata.sample_stats["converged"].all()
    assert int(idata.sample_stats["n_evals"].max()) <= 60
    with pytest.raises(ValueError, match='use target="potential"'):
        sample(model, pe.EnsembleGaussianProcessSampler(**options))


@pytest.mark.parametrize("draws", [20, 100])
@pytest.mark.parametrize("rough", [False, True])
def test_densities_of_a_fit_are_not_learned_from(draws, rough):
    model, step = linear_model(), pe.EnsembleGaussianProcessSampler(ensemble_size=20)
    if rough:
        step = pe.EnsembleKalmanSampler(ensemble_size=20, rough=True)
    fitted = sample(model, step, draws=draws)
    before = model.forward.n_evaluations
    with pytest.raises(ValueError, match="`lp` comes from a fit"):
        pe.EnsembleGaussianProcessSampler(target="potential", archive=fitted, model=model)
    assert model.forward.n_evaluations == before


def test_initial_ensemble_of_an_earlier_run():
    model = linear_model()
    first = sample(model, pe.EnsembleKalmanSampler(ensemble_size=30))
    second = sample(model, pe.EnsembleGaussianProcessSampler(initial_ensemble=first))
    assert second.sample_stats["converged"].all()
    third = sample(model, pe.EnsembleGaussianProcessSampler(initial_ensemble=second))
    assert third.sample_stats["converged"].all()


def test_tune_counts_epochs():
    model = gallery.linear_multiscale()
    start = np.random.default_rng(0).random((20, 2))
    before = model.forward.n_evaluations
    step = pe.EnsembleGaussianProcessSampler(initial_ensemble=start)
    with pytest.warns(UserWarning, match="had not passed its test after 1 iterations"):
        sample(model, step, tune=1)  # no epoch is left for the verification
    assert model.forward.n_evaluations - before == 20
    before = model.forward.n_evaluations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it had not passed, if it has not
        idata = sample(model, step, tune=4, discard_tuned_samples=False)
    assert model.forward.n_evaluations - before <= 80
    assert idata.warmup_posterior.sizes["draw"] == 4
    assert pe.EnsembleGaussianProcessSampler().default_tune_steps == 100
    assert pe.EnsembleGaussianProcessSampler(epochs=5).default_tune_steps == 11


def test_tune_zero_learns_before_the_first_draw():
    model = linear_model()
    idata = sample(model, tune=0)
    assert idata.sample_stats["converged"].all()


def test_failed_verification_is_warned_of():
    """A forward map that is never the same cannot be verified."""
    n = []

    def drifting(u):
        n.append(1)
        return A @ u * (1 + len(n) / 20)

    forward = pe.forward_model(drifting, output_shape=(3,), vectorized=False)
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", forward(u), 0.01, observed=Y)
    with pytest.warns(UserWarning, match="had not passed its test.*verification failed"):
        idata = sample(model)
    assert not idata.sample_stats["converged"].any()


def test_published_scheme():
    model = linear_model()
    step = pe.EnsembleGaussianProcessSampler(ensemble_size=30, scheme="paper")
    with pytest.warns(UserWarning, match="had not passed its test"):
        idata = sample(model, step, tune=3, draws=60)
    assert int(idata.sample_stats["n_evals"].max()) == 5 * 30
    assert np.isnan(idata.sample_stats["surrogate_error"]).all()
    assert pe.EnsembleGaussianProcessSampler(scheme="paper").default_tune_steps == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "both"}, "target must be"),
        ({"ensemble_size": 3}, "too small for 2 parameters"),
        ({"epochs": 0}, "epochs must be"),
        ({"archive": 3.0}, r"archive must be a pair \(points, outputs\)"),
        ({"archive": (np.zeros((3, 3)), np.zeros((3, 3)))}, "points of the archive have shape"),
        (
            {"archive": (np.zeros((3, 2)), np.zeros((3, 4)))},
            "4 outputs for each point.* problem has 3",
        ),
        ({"archive": (np.full((3, 2), np.nan), np.zeros((3, 3)))}, "points .* not finite"),
        ({"archive": ({"b": np.zeros(3)}, np.zeros((3, 3)))}, "archive names `b`"),
        ({"archive": ({}, np.zeros((3, 3)))}, "archive has no values for `u`"),
        ({"archive": ("ab", "cd")}, "arrays of numbers"),
        ({"initial_ensemble": "foo"}, "initial_ensemble must be an array of numbers.*'foo'"),
        ({"dt": 1.0}, 'dt=1.0 is not an option of scheme="archive"'),
        ({"adjust": True, "scheme": "paper"}, 'adjust=True is not an option of scheme="paper"'),
    ],
)
def test_wrong_use_is_refused_at_construction(options, message):
    model = linear_model()
    with model, pytest.raises(ValueError, match=message):
        pe.EnsembleGaussianProcessSampler(**options)
    assert model.forward.n_evaluations == 0


def test_archive_from_a_store(tmp_path):
    calls = []

    def model(store):
        @pe.forward_model(output_shape=(3,), store=store, version="1")
        def simulate(rate, level):
            calls.append(rate)
            return level * np.exp(-rate * np.arange(3))

        with pm.Model() as model:
            rate = pm.LogNormal("rate", 0, 0.5)
            level = pm.Normal("level", 1, 0.3)
            pm.Normal("y", simulate(rate, level), 0.1, observed=[1.0, 0.4, 0.2])
        return model

    path = tmp_path / "runs.db"
    sample(model(path), pe.EnsembleKalmanSampler(ensemble_size=30), draws=60)
    known = len(calls)
    assert known > 60
    calls.clear()
    same = model(path)
    with same:
        step = pe.EnsembleGaussianProcessSampler(ensemble_size=30, archive=path)
        pe.EnsembleGaussianProcessSampler(ensemble_size=30, archive=pe.open_store(path))
    assert not calls  # all of them were found
    sample(same, step, draws=60)
    assert len(step.learned.archive) >= known + len(calls)
    with pm.Model():
        rate = pm.LogNormal("rate", 0, 0.5)
        other = pm.Normal("other")
        pm.Normal("y", rate + other, 0.1, observed=1.0)
        with pytest.raises(ValueError, match="`other`"):
            pe.EnsembleGaussianProcessSampler(archive=path)


def store_model(path, version="1", stochastic=False):
    def simulate(a, b, rng):
        return np.array([a, a - b]) + (0.1 * rng.standard_normal(2) if stochastic else 0)

    def exact(a, b):
        return simulate(a, b, None)

    forward = pe.forward_model(
        simulate if stochastic else exact,
        output_shape=(2,),
        stochastic=stochastic,
        store=path,
        version=version,
    )
    with pm.Model() as model:
        a, b = pm.LogNormal("a"), pm.Normal("b")
        pm.Normal("y", forward(a, b), 0.5, observed=[0.5, 0.2])
    model.forward = forward
    return model


@pytest.mark.parametrize("stochastic", [False, True])
def test_stored_outputs_are_not_evaluated_again(tmp_path, stochastic):
    path = tmp_path / "runs.db"
    sample(store_model(path, "1"), pe.EnsembleKalmanSampler(ensemble_size=30), draws=30)
    newer = store_model(path, "2", stochastic)
    sample(newer, pe.EnsembleKalmanSampler(ensemble_size=30), draws=30)
    again = store_model(path, "2", stochastic)
    step = pe.EnsembleGaussianProcessSampler(ensemble_size=30, archive=path, model=again)
    assert again.forward.n_evaluations == 0
    points, outputs = step._bound.sampler.archive
    assert len(points) == newer.forward.n_evaluations  # none of version 1
    exact = np.stack([np.exp(points[:, 0]), np.exp(points[:, 0]) - points[:, 1]], axis=1)
    np.testing.assert_allclose(outputs, exact, atol=0.6 if stochastic else 1e-9)


def test_stores_of_others_are_refused_before_anything_is_evaluated(tmp_path):
    path = tmp_path / "runs.db"
    sample(store_model(path), pe.EnsembleKalmanSampler(ensemble_size=30), draws=30)
    for other, message in [
        (store_model(None), r"is not the store of exact.*forward_model\(\.\.\., store="),
        (store_model(tmp_path / "other.db"), "is not the store of exact"),
        (store_model(path, "3"), "no successful evaluation of this version"),
    ]:
        for archive in (path, pe.open_store(path)):
            with pytest.raises(ValueError, match=message):
                pe.EnsembleGaussianProcessSampler(archive=archive, model=other)
        assert other.forward.n_evaluations == 0
