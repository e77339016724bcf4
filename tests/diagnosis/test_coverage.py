"""Coverage by simulation: of draws whose law is known, and through `pymc.sample`."""

import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest
import simuk
import xarray as xr
from toys import ToyStep

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.simulation import (
    Simulation,
    distance,
    log_densities,
    rank,
    thinned,
)
from pymc_ensemble.diagnosis.uniformity import Coverage, judged

START = "fork" if sys.platform == "linux" else "spawn"  # which has to import everything


def line():
    """Three parameters with a shape and a transform, a deterministic variable, and two data."""
    with pm.Model() as model:
        slope = pm.Normal("slope", shape=2)
        scale = pm.LogNormal("scale", 0.0, 0.3)
        mu = pm.Deterministic("mu", slope * np.array([1.0, 2.0]))
        pm.Normal("y", mu, 0.5, observed=[0.0, 0.0])
        pm.Normal("z", scale, 0.3, observed=1.0)
    return model


def scalar(sd=1.0):
    """A prior, and data that tell nothing."""
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, sd)
        pm.Normal("y", 1e-8 * x, 1.0, observed=0.0)
    return model


def run(model, step, simulations, **kwargs):
    return pe.coverage(model, step, simulations=simulations, random_seed=1, **kwargs)


@pytest.fixture(scope="module")
def result():
    return run(line(), pe.EnsembleKalmanSampler, 5, draws=200)


# -- ranks and verdicts -------------------------------------------------------------------------


@pytest.mark.parametrize("n_draws", [1, 7])
def test_ranks_are_uniform(n_draws):
    """Truth and draws from one law: of continuous variables, and of discrete ones with ties."""
    rng = np.random.default_rng(1)
    n = 20_000
    for values in (rng.normal(size=(n, n_draws + 1)), rng.integers(3, size=(n, n_draws + 1))):
        ranks = rank(values[:, 1:], values[:, 0], rng=rng)
        x = np.linspace(0.05, 0.95, 19)
        ecdf = np.searchsorted(np.sort(ranks), x) / n
        assert np.abs(ecdf - x).max() < 4 * 0.5 / np.sqrt(n)


def simulation(rng, shift=0.0, scale=1.0, L=200):
    """Draws from N(shift, scale**2) where the posterior is N(0, 1), in two parameters."""
    truth, draws = rng.normal(size=2), shift + scale * rng.normal(size=(L, 2))
    below = rank(draws.T, truth, rng=rng)
    far = distance(draws, np.vstack([draws, truth]))
    level = float(rank(far[:-1], far[-1], rng=rng))
    return Simulation(xr.Dataset({"u": ("k", below)}), level, False, L, 0)


@pytest.mark.parametrize(
    ("law", "verdict", "word"),
    [
        ({}, "calibrated", None),
        ({"scale": 0.7}, "overconfident", "highest density: regions of"),
        ({"scale": 1.4}, "conservative", "highest density: regions of"),
        ({"shift": 0.5}, "overconfident", "`u[0]`"),
    ],
)
def test_verdicts(law, verdict, word):
    rng = np.random.default_rng(2)
    result = judged({k: simulation(rng, **law) for k in range(200)}, 200, {}, 0.95)
    assert result.verdict == result.data["coverage"].attrs["verdict"] == verdict
    assert result.calibrated is (word is None) is not result.reasons
    assert word is None or any(reason.startswith(word) for reason in result.reasons)
    assert str(result).startswith(f"{verdict}, by 200 of 200 simulations")
    if "shift" in law:
        assert any("draws are too high" in reason for reason in result.reasons)
    if law.get("scale") == 0.7:
        # of an isotropic Gaussian in two dimensions: 1 - (1 - 0.5) ** 0.49
        half = result.data["coverage"]["coverage"].sel(region="highest density").interp(level=0.5)
        assert float(half) == pytest.approx(0.288, abs=3 * np.sqrt(0.288 * 0.712 / 200))


def test_bands_hold_the_curves_of_a_calibrated_sampler():
    """All five curves together with 95%: 8 of 40 runs leave them with a probability of 10^-3."""
    rng = np.random.default_rng(3)
    verdicts = [
        judged({k: simulation(rng, L=50) for k in range(30)}, 30, {}, 0.95).verdict
        for _ in range(40)
    ]
    assert verdicts.count("calibrated") >= 33


# -- draws --------------------------------------------------------------------------------------


def tree(x, **stats):
    """A result with draws of shape (chain, draw)."""
    dims = ("chain", "draw")
    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"x": (dims, x)}),
            "sample_stats": xr.Dataset({name: (dims, values) for name, values in stats.items()}),
        }
    )


def test_draws_are_thinned_along_the_paths_of_particles():
    """Each of 40 particles stays where it is for five sweeps."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 40, 4)).repeat(5, axis=2).reshape(2, -1)
    sweep = np.tile(np.arange(20), 40) * np.ones((2, 1), dtype=int)
    particle = np.arange(40).repeat(20) * np.ones((2, 1), dtype=int)
    kept = thinned(tree(x, sweep=sweep, particle=particle), rng)
    n = 2 * 40 * 4
    assert 0.7 * n < kept.sizes["draw"] <= n
    assert len(np.unique(kept["x"])) > 0.9 * kept.sizes["draw"]


def test_draws_of_other_samplers_are_thinned_by_their_autocorrelation():
    rng = np.random.default_rng(5)
    kept = thinned(tree(rng.normal(size=(2, 100)).repeat(5, axis=1)), rng)
    assert 140 < kept.sizes["draw"] <= 200


def test_densities_that_draws_carry_are_used_if_they_are_those_of_the_model():
    model = line()
    rng = np.random.default_rng(6)
    draws = xr.Dataset(
        {
            "slope": (("draw", "k"), rng.normal(size=(50, 2))),
            "scale": ("draw", rng.lognormal(size=50)),
        }
    )
    truth = draws.isel(draw=0)
    for data in ({"y": np.zeros(2), "z": np.array(1.0)}, {"y": np.ones(2), "z": np.array(0.5)}):
        log_density = pm.observe(model, data).compile_logp()

        def lp(point, log_density=log_density):
            values = {"slope": point["slope"].values, "scale_log__": np.log(point["scale"].values)}
            return float(log_density(values))

        draws["lp"] = ("draw", [lp(draws.isel(draw=k)) for k in range(50)])
        of_draws, of_truth, by_lp = log_densities(model, draws, truth, data)
        assert by_lp
        assert of_truth == pytest.approx(float(draws["lp"][0]))
        np.testing.assert_array_equal(of_draws, draws["lp"])
        # the density of a surrogate is not the model's, nor may there be any
        for others in (draws.assign(lp=draws["lp"] + 1), draws.drop_vars("lp")):
            of_draws, of_truth, by_lp = log_densities(model, others, truth, data)
            assert not by_lp
            assert len(of_draws) == 25


# -- through pymc.sample ------------------------------------------------------------------------


def test_result_has_what_arviz_draws(result, tmp_path):
    assert isinstance(result, Coverage)
    assert (result.finished, result.simulations, result.failures) == (5, 5, {})
    assert result.calibrated
    ranks = result.data["prior_sbc"].dataset
    assert dict(ranks.sizes) == {"chain": 1, "draw": 5, "slope_dim_0": 2}
    assert set(ranks) == {"slope", "scale"}
    assert float(ranks.to_array().min()) > 0
    assert float(ranks.to_array().max()) < 1
    regions = ["highest density", "slope[0]", "slope[1]", "scale"]
    assert list(result.data["coverage"]["region"].values) == regions
    told = result.data["simulations"].dataset
    assert told["by_lp"].all()
    assert (told["n_evals"] >= 300).all()
    assert (told["n_draws"] > 50).all()
    az.plot_ecdf_pit(result.data, backend="matplotlib")
    result.data.to_netcdf(tmp_path / "coverage.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "coverage.nc", engine="h5netcdf") as loaded:
        ax = pe.plots.coverage(loaded)
    lines = [line.get_ydata() for line in ax.lines[1:]]
    np.testing.assert_array_equal(lines, result.data["coverage"]["coverage"])
    plt.close("all")


@pytest.mark.slow
def test_results_do_not_depend_on_the_executor(result):
    with ProcessPoolExecutor(2, mp_context=get_context(START)) as executor:
        # a function that makes the model is as good as the model
        other = run(line, pe.EnsembleKalmanSampler, 5, draws=200, executor=executor)
    xr.testing.assert_allclose(other.data["prior_sbc"].dataset, result.data["prior_sbc"].dataset)
    assert other.verdict == result.verdict


@pytest.mark.parametrize(("sd", "verdict"), [(2.0, "overconfident"), (0.5, "conservative")])
def test_wrong_samplers_are_told(sd, verdict):
    """The toy draws from N(0, 1), whatever the prior is."""
    result = run(scalar(sd), ToyStep, 30, draws=60)
    assert result.verdict == verdict
    assert result.finished == 30
    # the truth is further out, or further in, than it should be
    levels = result.data["simulations"]["highest_density"]
    assert (float(levels.mean()) > 0.6) is (verdict == "overconfident")
    assert (float(levels.mean()) < 0.4) is (verdict == "conservative")


def test_failures_are_kept_with_their_reason(caplog):
    def positive(x):
        if x[0] < -1:
            return np.full(1, np.nan)
        return x

    forward = pe.forward_model(positive, output_shape=(1,))
    with pm.Model() as model:
        x = pm.Normal("x", shape=1)
        pm.Normal("y", forward(x), 1.0, observed=[0.0])
    with caplog.at_level(logging.WARNING, "pymc_ensemble"):
        result = run(model, ToyStep, 20, draws=30)
    truths = 20 - result.finished
    assert 0 < truths == len(result.failures) < 10
    assert all("the forward map fails there" in reason for reason in result.failures.values())
    assert f"{truths} of 20 simulations failed" in caplog.text
    assert f"{truths} simulations failed" in str(result)
    kept = result.data["prior_sbc"]["draw"].values
    assert set(kept) == set(range(20)) - set(result.failures)


def test_too_many_failures_end_in_an_error():
    made = []

    def step():
        made.append(1)
        if len(made) > 2:
            raise OSError("no license")
        return ToyStep()

    with pytest.raises(RuntimeError, match="9 of 10 simulations failed; number 1: OSError: no lic"):
        run(scalar(), step, 10, draws=30)


def refused(**kwargs):
    """A model whose forward evaluation would be an error."""

    def never(x):
        raise AssertionError("evaluated")

    forward = pe.forward_model(never, output_shape=(1,))
    with pm.Model() as model:
        x = pm.Normal("x", shape=1)
        z = forward(x)
        if "potential" in kwargs:
            pm.Potential("soft", -(z.sum() ** 2))
        if "discrete" in kwargs:
            z = z + pm.Bernoulli("switch", 0.5)
        if "unobserved" not in kwargs:
            pm.Normal("y", z, 1.0, observed=[0.0])
    return model


@pytest.mark.parametrize(
    ("model", "step", "error", "message"),
    [
        (refused(), pe.EnsembleKalmanSampler(), TypeError, "a function that makes a step method"),
        (refused(), "EKS", TypeError, "a function that makes a step method"),
        (lambda: 3, pe.EnsembleKalmanSampler, TypeError, "must be a pymc.Model"),
        (refused(unobserved=1), pe.EnsembleKalmanSampler, ValueError, "no observed variables"),
        (refused(potential=1), pe.EnsembleKalmanSampler, ValueError, "potential `soft`"),
        (refused(discrete=1), pe.EnsembleKalmanSampler, ValueError, "`switch` is discrete"),
    ],
)
def test_wrong_use_is_refused_before_any_evaluation(model, step, error, message):
    with pytest.raises(error, match=message):
        pe.coverage(model, step, simulations=5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"probability": 95}, ValueError, "probability=95 must be between 0 and 1"),
        ({"draws": -1}, ValueError, "draws must be an integer of at least 1, not -1"),
        ({"chains": 0}, ValueError, "chains must be"),
        ({"draws": 1.5}, ValueError, "draws must be"),
        ({"ensemble_size": 30}, TypeError, "`ensemble_size` is not an argument of `pymc.sample`"),
        ({"return_inferencedata": False}, TypeError, "`return_inferencedata` is not an argument"),
    ],
)
def test_wrong_settings_are_refused_before_any_evaluation(options, error, message):
    with pytest.raises(error, match=message):
        pe.coverage(refused(), pe.EnsembleKalmanSampler, **options)


# -- simuk --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        pe.EnsembleKalmanSampler(adjust=True),
        pe.MultiscaleSampler(walkers=5),
        pe.EnsembleGaussianProcessSampler(ensemble_size=20),
    ],
    ids=lambda step: type(step).__name__,
)
def test_simuk_takes_step_methods(step):
    """It clones the model for each simulation, and says nothing of those that fail."""
    options = {"step": step, "draws": 50, "chains": 1, "cores": 1}
    sbc = simuk.SBC(line(), num_simulations=2, sample_kwargs=options, seed=1, progress_bar=False)
    sbc.run_simulations()
    ranks = sbc.simulations["prior_sbc"].dataset
    assert dict(ranks.sizes) == {"chain": 1, "draw": 2, "slope_dim_0": 2}
    assert 0 <= int(ranks.to_array().min()) <= int(ranks.to_array().max()) <= 50
