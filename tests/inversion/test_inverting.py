"""Inversion of PyMC models: results, messages, failures, and what other parts make of it."""

import warnings

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from pymc.exceptions import SamplingError
from scipy.optimize import minimize

import pymc_ensemble as pe
from pymc_ensemble import InverseProblem


def quiet(**options):
    return pe.invert(**{"progressbar": False, "random_seed": 1} | options)


def linear(d=5, n=12, seed=1):
    """A linear model with its posterior mean and covariance."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, d))
    data = A @ rng.standard_normal(d) + 0.5 * rng.standard_normal(n)
    with pm.Model(coords={"k": range(d)}) as model:
        x = pm.Normal("x", 1.0, 2.0, dims="k")
        pm.Normal("y", pm.math.dot(A, x), 0.5, observed=data)
    C = np.linalg.inv(A.T @ A / 0.25 + np.eye(d) / 4)
    return model, C @ (A.T @ data / 0.25 + np.ones(d) / 4), C


@pytest.mark.parametrize("update", ["transform", "perturbed"])
def test_posterior_of_a_linear_model(update):
    model, mean, C = linear()
    errors, ratios = [], []
    for seed in range(5):
        result = quiet(model=model, update=update, ensemble_size=200, random_seed=seed)
        draws = result["posterior"]["x"].to_numpy()[0]
        errors.append((draws.mean(0) - mean) / np.sqrt(np.diag(C)))
        ratios.append(draws.var(0, ddof=1) / np.diag(C))
    # errors of 2 / sqrt(J) = .14, and a deficit of up to d / J = 2.5%
    assert np.sqrt(np.mean(np.square(errors))) < 0.2
    assert 0.93 < np.mean(ratios) < 1.03


def test_result_says_what_was_done(tmp_path):
    model, *_ = linear()
    result = quiet(model=model)
    assert result["posterior"]["x"].dims == ("chain", "draw", "k")
    assert result["posterior"]["x"].shape == (1, 100, 5)
    history, stats = result["inversion"].dataset, result["sample_stats"].dataset
    assert history["time"][0] == 0
    assert history["time"][-1] == 1
    np.testing.assert_allclose(history["step"][1:].sum(), 1, atol=1e-12)
    np.testing.assert_array_equal(history["n_evals"], 100 * np.arange(1, len(history["time"]) + 1))
    assert history.attrs["target"] == "posterior"
    assert 4 < history.attrs["d_eff"] < 5
    assert history["misfit"][0] > history["misfit"][-1] < 2
    np.testing.assert_allclose(
        result["estimate"]["x"], result["posterior"]["x"].mean(("chain", "draw"))
    )
    values = {"x": result["posterior"]["x"].to_numpy()[0, 3]}
    np.testing.assert_allclose(stats["lp"][0, 3], model.compile_logp()(values))
    result.to_netcdf(tmp_path / "result.nc")
    loaded = xr.open_datatree(tmp_path / "result.nc")
    assert pe.diagnose(loaded).verdict == "doubtful"
    loaded.close()


def test_same_seed_same_result():
    model, *_ = linear()
    one, two = (quiet(model=model, update="perturbed") for _ in range(2))
    xr.testing.assert_equal(one["posterior"].dataset, two["posterior"].dataset)


def potential(problem, u):
    return float((problem.loss(problem.forward(u[None])) + problem.prior_potential(u[None]))[0])


def regression(loss, d=12, n=60):
    """A regression that bends, with a loss that is not quadratic."""
    rng = np.random.default_rng(3)
    X = 2 * rng.standard_normal((n, d)) / np.sqrt(d)
    eta = X @ rng.standard_normal(d)
    with pm.Model() as model:
        e = X @ pm.Normal("b", shape=d)
        e = e + 0.1 * pm.math.sin(3 * e)
        if loss == "poisson":
            pm.Poisson("y", pm.math.exp(e + 1), observed=rng.poisson(np.exp(eta + 1)))
        elif loss == "bernoulli":
            pm.Bernoulli("y", logit_p=e, observed=(rng.random(n) < 1 / (1 + np.exp(-eta))) * 1)
        else:
            noise = 0.3 * rng.standard_t(3, n)
            pm.StudentT("y", nu=3, mu=e, sigma=0.3, observed=eta + noise)
    return model


@pytest.mark.parametrize(
    ("loss", "J"), [("poisson", 100), ("poisson", 8), ("bernoulli", 8), ("student", 100)]
)
def test_finds_the_penalized_maximum_in_the_span(loss, J):
    """Against L-BFGS with differences in the span of the start: within a tenth of a nat."""
    model = regression(loss)
    problem = InverseProblem.from_model(model)
    for seed in range(2):
        U = problem.sample_prior(J, np.random.default_rng(seed))
        mean = U.mean(0)
        V = np.linalg.svd(U - mean, full_matrices=False)[2][: min(J - 1, 12)]
        best = minimize(
            lambda c, mean=mean, V=V: potential(problem, mean + c @ V),
            np.zeros(len(V)),
            method="L-BFGS-B",
        )
        result = quiet(model=model, target="map", initial_ensemble=U, maxiter=60)
        found = potential(problem, result["estimate"]["b"].to_numpy())
        assert found - best.fun < 0.1


def test_mode_is_that_of_find_map():
    """Without the Jacobians of transforms, as in PyMC."""
    with pm.Model() as model:
        rate = pm.LogNormal("rate")
        pm.Normal("y", pm.math.exp(-rate * np.arange(5)), 0.1, observed=[1.0, 0.4, 0.1, 0.1, 0.0])
        result = quiet(target="map", step="misfit")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            expected = pm.find_MAP(progressbar=False)
    np.testing.assert_allclose(result["estimate"]["rate"], expected["rate"], rtol=0.02)
    assert model is not None


def test_fit_stops_at_the_noise():
    model, *_ = linear(d=30, n=40)
    result = quiet(model=model, target="fit", ensemble_size=50)
    assert result["inversion"]["misfit"][-1] <= 1
    assert result["inversion"]["misfit"][-2] > 1
    assert "spread is no uncertainty" in str(pe.diagnose(result))
    assert pe.diagnose(result).verdict == "wrong"


def test_diagnose_knows_what_it_is():
    model, *_ = linear()
    diagnosis = pe.diagnose(quiet(model=model))
    assert diagnosis.verdict == "doubtful"
    assert "no evaluation was made to test" in diagnosis.headline
    assert "initial_ensemble=result" in diagnosis.remedies[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_log_densities_tell_errors_of_moments(seed):
    """Each particle was evaluated: in few dimensions that is known after all."""
    with pe.gallery.decay() as model:
        result = quiet(ensemble_size=200, random_seed=seed)
    diagnosis = pe.diagnose(result)
    sd = result["posterior"].dataset.std(("chain", "draw"))
    exact = model.reference.sel(statistic="sd")
    for name in ("log_amplitude", "log_rate"):
        told = float(diagnosis.parameters["sd_ratio"].sel(parameter=name))
        assert told == pytest.approx(float(sd[name] / exact[name]), rel=0.1)


def test_a_sampler_that_starts_there_burns_in():
    model, mean, C = linear()
    result = quiet(model=model)
    with model:
        step = pe.EnsembleKalmanSampler(initial_ensemble=result)
        idata = pm.sample(
            2000, step=step, chains=1, cores=1, tune=500, random_seed=1, progressbar=False
        )
        fresh = pm.sample(
            200,
            step=pe.EnsembleKalmanSampler(initial_ensemble=idata),
            chains=1,
            cores=1,
            random_seed=1,
            progressbar=False,
        )
    n_burn_in = int(idata["sample_stats"]["n_evals"][0, 0])
    assert n_burn_in > int(fresh["sample_stats"]["n_evals"][0, 0])  # a run that goes on skips it
    draws = idata["posterior"]["x"].to_numpy()[0]
    assert (np.abs(draws.mean(0) - mean) < 0.2 * np.sqrt(np.diag(C))).all()


def test_says_what_a_small_ensemble_costs():
    model, *_ = linear(d=30, n=60)
    with pytest.warns(UserWarning, match=r"inform about .* dimensions: with 40 particles.*Use ens"):
        quiet(model=model, ensemble_size=40)
    for size in (2, 20):  # fewer particles than informed dimensions
        with pytest.warns(UserWarning, match=rf"most of the {size - 1} dimensions.*far too small"):
            quiet(model=model, ensemble_size=size)
    with pytest.warns(UserWarning, match="from the mode that its slope points to"):
        quiet(model=regression("student"), ensemble_size=200)  # heavy tails: outliers hardly pull


def test_a_target_that_is_not_reached_is_told():
    model, *_ = linear(d=30, n=60)
    with pytest.warns(UserWarning, match="where its span fits no better.*more particles"):
        quiet(model=model, target="fit", ensemble_size=5)
    with pytest.warns(UserWarning, match="after 1 iterations.*more iterations"):
        quiet(model=model, target="map", maxiter=1)


@pytest.mark.parametrize("where", ["prior", "given"])
def test_members_that_fail_are_replaced(where):
    rng = np.random.default_rng(4)

    @pe.forward_model(output_shape=3)
    def simulate(x):
        if rng.random() < 0.3:
            raise ArithmeticError("no convergence")
        return np.array([x[0], x[1], x[0] - x[1]])

    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        pm.Normal("y", simulate(x), 0.3, observed=[0.5, 0.1, 0.3])
    given = None if where == "prior" else np.random.default_rng(1).standard_normal((100, 2))
    result = quiet(model=model, initial_ensemble=given)
    history = result["inversion"].dataset
    assert int(history["n_failed"][-1]) > 0.2 * int(history["n_evals"][-1])
    assert int(history["n_evals"][-1]) < 1.7 * 100 * len(history["time"])
    assert np.isfinite(result["sample_stats"]["lp"]).all()
    C = np.linalg.inv(np.eye(2) + np.array([[2, -1], [-1, 2]]) / 0.09)
    np.testing.assert_allclose(
        result["posterior"]["x"].std(("chain", "draw")), C[0, 0] ** 0.5, rtol=0.25
    )


def test_too_many_failures_are_told_in_words():
    @pe.forward_model(output_shape=1)
    def simulate(x):
        raise ArithmeticError("no convergence")

    with pm.Model() as model:
        pm.Normal("y", simulate(pm.Normal("x", shape=1)), 0.3, observed=[0.5])
    with pytest.raises(SamplingError, match="no convergence"):
        quiet(model=model, ensemble_size=10)


def test_plots_of_it():
    import matplotlib.pyplot as plt

    model, *_ = linear()
    result = quiet(model=model)
    ax = pe.plots.misfit(result)
    assert len(ax.lines[0].get_xdata()) == result["inversion"].sizes["iteration"]
    ax = pe.plots.path(result, "x[1]", "x[3]")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x[1]", "x[3]")
    plt.close("all")


def test_progress_by_the_log(caplog):
    model, *_ = linear()
    with caplog.at_level("INFO", logger="pymc_ensemble"):
        quiet(model=model, progressbar=True)
    assert "The data inform about" in caplog.text


def test_unfit_options_are_refused_before_anything_is_evaluated():
    model, *_ = linear()
    calls = []

    @pe.forward_model(output_shape=1)
    def simulate(x):
        calls.append(x)
        return x

    with pm.Model() as black_box:
        pm.Normal("y", simulate(pm.Normal("x", shape=1)), 0.3, observed=[0.5])
    for options, message in [
        ({"target": "mode"}, "target must be"),
        ({"ensemble_size": 1}, "ensemble_size must be an integer of at least 2"),
        ({"maxiter": 0}, "maxiter must be"),
        ({"initial_ensemble": np.zeros((5, 3))}, r"initial_ensemble has shape \(5, 3\)"),
        ({"initial_ensemble": np.ones((5, 1)), "ensemble_size": 6}, "Leave out one of them"),
        ({"localization": np.ones((1, 1))}, 'Use update="perturbed"'),
    ]:
        with pytest.raises(ValueError, match=message):
            quiet(model=black_box, **options)
    assert not calls
    with pm.Model() as density:
        pm.Potential("p", -(pm.Normal("x") ** 4))
    with pytest.raises((ValueError, NotImplementedError), match="observed"):
        quiet(model=density)
    assert model is not black_box


def test_a_potential_that_would_be_left_out_is_refused():
    """Draws of the prior do not know of it; the search for the mode does."""
    model, *_ = linear()
    with model:
        pm.Potential("pull", -0.5 * (model.free_RVs[0].sum() - 1) ** 2)
    with pytest.raises(ValueError, match=r"ignore the potential `pull`.*EnsembleKalmanSampler"):
        quiet(model=model)
    assert quiet(model=model, target="map").posterior.sizes["chain"] == 1


def test_log_says_that_noise_is_unknown(caplog):
    x = np.linspace(-1, 1, 20)
    for sigma in (0.3, None):
        caplog.clear()
        with pm.Model() as model:
            scale = pm.HalfNormal("sigma") if sigma is None else sigma
            pm.Normal("y", pm.Normal("slope") * x, scale, observed=0.5 * x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            quiet(model=model)
        assert ("noise in `y` is unknown" in caplog.text) == (sigma is None)
