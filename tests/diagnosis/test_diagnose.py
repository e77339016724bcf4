"""What `diagnose` says of results that are right, and of results that are wrong."""

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from known_runs import sample, standard_normal_run

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.coordinates import Bounds
from pymc_ensemble.diagnosis.free_variables import independent_blocks, logarithmic, needed_blocks
from pymc_ensemble.diagnosis.regression import Regression
from pymc_ensemble.diagnosis.weights import SamplingError, Weights


@pytest.fixture(scope="module")
def noisy_decay():
    return sample(
        pe.gallery.decay(noise_sd=0.3), pe.EnsembleKalmanSampler(adjust=False), draws=1000
    )


def true_error(idata, reference, name):
    mean, sd = (float(reference[name].sel(statistic=k)) for k in ("mean", "sd"))
    return (float(idata.posterior[name].mean()) - mean) / sd


# -- verdicts -----------------------------------------------------------------------------------


def test_right_draws_are_trustworthy():
    diagnosis = pe.diagnose(standard_normal_run(np.random.default_rng(1)))
    assert diagnosis.verdict == "trustworthy"
    assert diagnosis.trustworthy
    assert diagnosis.reasons == ()
    assert list(diagnosis.parameters["parameter"].values) == ["x[0]", "x[1]"]
    assert np.abs(diagnosis.parameters["shift"]).max() < 0.08
    assert np.abs(diagnosis.parameters["sd_ratio"] - 1).max() < 0.06
    assert "trustworthy" in str(diagnosis)
    assert "x[0]" in diagnosis._repr_html_()


@pytest.mark.parametrize(
    ("shift", "scale", "word"), [(0.5, 1.0, "mean"), (0.0, 0.7, "deviation"), (0, 1.4, "deviation")]
)
def test_wrong_draws_are_measured(shift, scale, word):
    run = standard_normal_run(np.random.default_rng(2), shift=shift, scale=scale)
    diagnosis = pe.diagnose(run)
    assert diagnosis.verdict == "wrong"
    assert word in diagnosis.reasons[0]
    assert diagnosis.remedies
    np.testing.assert_allclose(diagnosis.parameters["shift"], shift, atol=0.08)
    np.testing.assert_allclose(diagnosis.parameters["sd_ratio"], scale, atol=0.08)


def test_metropolis_runs_are_recognized():
    rng = np.random.default_rng(3)
    run = standard_normal_run(rng)
    x = run["posterior"]["x"].values.reshape(4, 50, 10, 2)
    x[:, :, 1::2] = x[:, :, ::2]  # half of the moves refused
    run["posterior"]["x"].values[:] = x.reshape(4, 500, 2)
    run["sample_stats"]["acceptance"].values[:] = 0.5
    # weights against the law would call these draws wrong; they do not apply
    run["sample_stats"]["lp"].values[:] = -0.5 * (x.reshape(4, 500, 2) ** 2).sum(-1)
    run["sample_stats"]["log_q"].values[:] = -0.05 * (x.reshape(4, 500, 2) ** 2).sum(-1)
    assert pe.diagnose(run).trustworthy


def test_ensembles_in_different_places():
    rng = np.random.default_rng(4)
    run = standard_normal_run(rng, p=1)
    # lp of two narrow modes far apart, two chains in each, one of them four times as heavy
    side = np.repeat([3.0, -3.0], 2)[:, None, None]
    x = run["posterior"]["x"].values
    run["sample_stats"]["lp"].values[:] = -0.5 * x[..., 0] ** 2 - np.log(4) * (side[..., 0] > 0)
    x += side
    diagnosis = pe.diagnose(run)
    assert not diagnosis.trustworthy


def test_burn_in_that_did_not_pass_is_told_where_nothing_else_is_known():
    run = standard_normal_run(np.random.default_rng(5), C=2, S=3, J=8, p=3)
    run["sample_stats"]["lp"].values[:] = np.nan
    run["sample_stats"]["converged"].values[:] = False
    diagnosis = pe.diagnose(run)
    assert not diagnosis.trustworthy
    assert any("burn-in" in reason for reason in diagnosis.reasons)


def test_rough_maps_are_recognized():
    rng = np.random.default_rng(6)
    run = standard_normal_run(rng)
    run["sample_stats"]["lp"].values[:] += 2 * rng.standard_normal((4, 500))
    diagnosis = pe.diagnose(run)
    assert diagnosis.statistics["roughness"] == pytest.approx(2, rel=0.25)
    assert any("rough=True" in note for note in diagnosis.notes)
    assert diagnosis.trustworthy  # its draws are right all the same


def test_bias_of_the_plain_sampler_is_estimated(noisy_decay):
    reference = pe.gallery.decay(noise_sd=0.3).reference
    parameters = pe.diagnose(noisy_decay).parameters
    for name in ("log_amplitude", "log_rate"):
        estimate = float(parameters["shift"].sel(parameter=name))
        assert estimate == pytest.approx(true_error(noisy_decay, reference, name), abs=0.06)


def test_far_off_start_without_burn_in():
    start = 6 + 0.3 * np.random.default_rng(1).standard_normal((60, 2))
    step = pe.EnsembleKalmanSampler(adjust=False, initial_ensemble=start)
    with pytest.warns(UserWarning, match="burn-in"):
        idata = sample(pe.gallery.decay(), step, draws=300, tune=2)
    assert not pe.diagnose(idata).trustworthy


def test_deterministic_variables_are_left_out():
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        scale = pm.HalfNormal("scale")
        pm.Deterministic("square", x**2)
        pm.Normal("y", x[0] - x[1], scale, observed=[1.0, 1.4, 0.2])
    diagnosis = pe.diagnose(sample(model, pe.EnsembleKalmanSampler(adjust=True)))
    assert list(diagnosis.parameters["parameter"].values) == ["x[0]", "x[1]", "scale"]
    assert any("taken for deterministic: `square`" in note for note in diagnosis.notes)


def test_variables_may_come_in_any_order():
    with pm.Model() as model:
        a, b = pm.Normal("a", 3.0), pm.Normal("b", -3.0, shape=2)
        pm.Deterministic("c", a + b[0])
        pm.Normal("y", pm.math.stack([a, b[0], b[1] - a]), 0.5, observed=[3.2, -3.0, -6.0])
    idata = sample(model, pe.EnsembleKalmanSampler(adjust=True), chains=2)
    diagnosis = pe.diagnose(idata, model=model, var_names=["b", "a"], probe=300, repeats=8)
    assert list(diagnosis.parameters["parameter"].values) == ["b[0]", "b[1]", "a"]
    assert diagnosis.trustworthy
    assert diagnosis.statistics["noise"] < 0.01
    assert len(pe.diagnose(idata, model=model, var_names="b").parameters["parameter"]) == 2
    with pytest.raises(ValueError, match="`c`, which is no free variable"):
        pe.diagnose(idata, model=model, var_names=["a", "b", "c"])


def test_walkers_are_diagnosed():
    idata = sample(pe.gallery.bimodal(), pe.MultiscaleSampler(walkers=5), draws=500)
    diagnosis = pe.diagnose(idata)
    assert {"shift", "sd_ratio"} <= set(diagnosis.parameters)


def test_modes_are_searched_for():
    model = pe.gallery.bimodal()
    right = sample(model, pe.EnsembleKalmanSampler(adjust=True))
    assert pe.diagnose(right, model=model, probe=2000).trustworthy
    one_mode = right.posterior["u"][..., 0] > right.posterior["u"][..., 1]
    # draws of one mode only, as if no particle had ever left it
    mirrored = right.posterior["u"].values.copy()
    mirrored[~one_mode.values] = mirrored[~one_mode.values][:, ::-1]
    right.posterior["u"].values[:] = mirrored
    assert not any("mode" in reason for reason in pe.diagnose(right).reasons)
    found = pe.diagnose(right, model=model, probe=2000)
    assert any("mode that the draws do not have" in reason for reason in found.reasons)
    assert found.verdict == "wrong"
    with pytest.raises(ValueError, match="model="):
        pe.diagnose(right, probe=100)


def test_other_samplers_are_refused():
    with pytest.raises(ValueError, match="ensemble step method"):
        pe.diagnose(xr.DataTree.from_dict({"posterior": xr.Dataset()}))
    run = standard_normal_run(np.random.default_rng(1))
    run["sample_stats"] = xr.DataTree(run["sample_stats"].dataset.drop_vars("lp"))
    with pytest.raises(ValueError, match="`lp`"):
        pe.diagnose(run)


# -- reweighting --------------------------------------------------------------------------------


def test_reweighting_removes_the_bias(noisy_decay):
    reference = pe.gallery.decay(noise_sd=0.3).reference
    better = pe.reweight(noisy_decay)
    assert better.posterior.sizes == noisy_decay.posterior.sizes
    before, after = (
        max(abs(true_error(run, reference, name)) for name in ("log_amplitude", "log_rate"))
        for run in (noisy_decay, better)
    )
    assert before > 0.15
    assert after < before / 3
    assert 0 < better.posterior.attrs["efficiency"] <= 1
    # draws stay together with what was computed for them
    pairs = {
        tuple(pair)
        for pair in zip(
            noisy_decay.posterior["log_rate"].values.ravel(),
            noisy_decay.sample_stats["lp"].values.ravel(),
            strict=True,
        )
    }
    assert all(
        tuple(pair) in pairs
        for pair in zip(
            better.posterior["log_rate"].values.ravel(),
            better.sample_stats["lp"].values.ravel(),
            strict=True,
        )
    )


def test_reweighted_draws_are_not_diagnosed(noisy_decay):
    better = pe.reweight(noisy_decay)
    for again in (pe.diagnose, pe.reweight):
        with pytest.raises(ValueError, match="are reweighted"):
            again(better)


def test_draws_that_nothing_can_correct_are_not_reweighted(noisy_decay):
    run = noisy_decay.copy(deep=True)
    run["sample_stats"]["n_evals"].values[:] *= 3  # of walkers
    assert 0 < pe.reweight(run).posterior.attrs["efficiency"] < 1
    run["sample_stats"]["lp"].values[:] = np.nan
    with pytest.raises(ValueError, match="cannot be corrected"):
        pe.reweight(run)


def test_weights_that_cannot_be_relied_upon_estimate_no_errors():
    run = standard_normal_run(np.random.default_rng(1), S=2, J=8, p=4)
    stats = run["sample_stats"]
    stats["log_q"].values[:] *= 6
    diagnosis = pe.diagnose(run)
    assert diagnosis.statistics["khat"] > 0.7
    assert diagnosis.parameters[["shift", "sd_ratio"]].isnull().all()
    stats["log_q"].values[:] = stats["lp"].values
    assert not pe.diagnose(run).parameters["shift"].isnull().any()


def test_what_the_burn_in_of_a_fit_cannot_tell_is_noted():
    run = standard_normal_run(np.random.default_rng(1))
    assert not any("rough=True the burn-in" in note for note in pe.diagnose(run).notes)
    run["sample_stats"]["step_size"].values[:] = np.inf
    assert any("rough=True the burn-in" in note for note in pe.diagnose(run).notes)


# -- the parts ----------------------------------------------------------------------------------


def test_sampling_error_of_stuck_chains():
    rng = np.random.default_rng(1)
    X = np.repeat(rng.standard_normal((4, 1, 20, 1)), 10, axis=1)
    assert SamplingError.of(X).mean[0] == pytest.approx(1 / np.sqrt(80), rel=0.6)
    X = rng.standard_normal((4, 10, 20, 1)) * 0.1 + np.array([1.0, -1, 1, -1])[:, None, None, None]
    assert SamplingError.of(X).mean[0] > 0.4


def test_weights_of_a_known_shift():
    X = np.random.default_rng(1).standard_normal((4000, 1)) + 0.3
    weights = Weights.of(X, -0.5 * X[:, 0] ** 2 + 0.5 * (X[:, 0] - 0.3) ** 2)
    assert weights.shift[0] == pytest.approx(0.3, abs=0.06)
    assert weights.khat < 0.5
    assert Weights.of(X, np.zeros(4000)).efficiency == pytest.approx(1)


def test_regression_needs_different_draws():
    rng = np.random.default_rng(1)
    X = np.repeat(rng.standard_normal((6, 2)), 50, axis=0)
    nothing = Bounds.logarithmic(np.zeros(2, dtype=bool))
    assert Regression.of(X, np.zeros(300), nothing, rng) is None
    assert Regression.of(np.ones((300, 2)), np.zeros(300), nothing, rng) is None


def test_logarithms_are_recognized():
    rng = np.random.default_rng(1)
    U = rng.standard_normal((800, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.2], [0, 0, 0.5]])
    log_q = -0.5 * (U**2).sum(1)
    X = np.column_stack([np.exp(U[:, 0]), U[:, 1] + 20, U[:, 2]])
    assert logarithmic(X, log_q).tolist() == [True, False, False]


def test_functions_of_others_are_recognized():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((900, 2))
    log_q = -0.5 * (x**2).sum(1)
    blocks = [x[:, :1], x[:, 1:], x[:, :1] * x[:, 1:], rng.standard_normal((900, 100))]
    assert needed_blocks(blocks, log_q, 60) == [True, True, False, False]


def test_functions_of_variables_that_happen_to_be_positive_are_recognized():
    rng = np.random.default_rng(1)
    u = rng.standard_normal((900, 2))
    log_q = -0.5 * (u**2).sum(1)
    a, b = 6 + u[:, :1], -6 + u[:, 1:]
    assert needed_blocks([a, b, a + b], log_q, 60) == [True, True, False]
    rate = np.exp(u[:, 1:])
    assert needed_blocks([a, rate, a * rate], log_q, 60) == [True, True, False]


def test_sums_and_products_are_recognized_whatever_the_laws_are():
    x = np.random.default_rng(1).random((900, 2))
    a, b = x[:, :1], x[:, 1:]
    assert independent_blocks([a, b, a * b, a + b], 60) == [True, True, False, False]
    assert independent_blocks([a, b, np.sin(9 * a)], 60) == [True] * 3
    assert independent_blocks([a**2, b, a, a**2 / b], 60) == [True, True, False, False]
    few = [np.repeat(v[:5], 100, axis=0) for v in (a, b)]  # of which each explains the other
    assert independent_blocks(few, 60) == [True, True]


@pytest.mark.parametrize("draws", [2, 10, 30])
def test_few_draws_do_not_suffice(draws):
    idata = sample(
        pe.gallery.decay(), pe.EnsembleKalmanSampler(adjust=False), draws=draws, chains=1
    )
    assert not pe.diagnose(idata).trustworthy


def test_root_of_a_variable_does_not_take_its_place():
    rng = np.random.default_rng(1)
    with pm.Model() as model:
        variance = pm.LogNormal("variance", 0, 2)
        a = pm.Normal("a")
        sigma = pm.Deterministic("sigma", pm.math.sqrt(variance))
        pm.Normal("y", a * np.ones(30), sigma, observed=0.2 * rng.normal(size=30))
    idata = sample(model, pe.EnsembleKalmanSampler(adjust=True), draws=1000)
    diagnosis = pe.diagnose(idata)
    assert diagnosis.parameters["parameter"].values.tolist() == ["a", "variance"]
    assert diagnosis.trustworthy
    with pytest.raises(ValueError, match="`var_names` is empty"):
        pe.diagnose(idata, var_names=[])


def test_discrete_variables_are_not_left_out():
    with pm.Model() as model:
        k = pm.Bernoulli("k", 0.4)
        a = pm.Normal("a")
        pm.Normal("y", a + k, 0.3, observed=[0.75, 0.85])
        steps = [pe.MultiscaleSampler(vars=[a], adjust=True), pm.BinaryGibbsMetropolis([k])]
        idata = pm.sample(
            200, tune=250, step=steps, chains=2, cores=1, random_seed=1, progressbar=False,
            compute_convergence_checks=False,
        )  # fmt: skip
    told = [pe.diagnose(idata, model=given) for given in (None, model)]
    assert told[0].parameters["parameter"].values.tolist() == ["k", "a"]
    assert set(told[1].parameters["parameter"].values) == {"k", "a"}
    assert told[0].verdict == told[1].verdict


def test_no_coordinate_of_different_laws_is_left_out():
    rng = np.random.default_rng(1)
    u = rng.standard_normal((900, 4))
    log_q = -0.5 * (u**2).sum(1) + 0.7 * rng.standard_normal(900)  # laws of several chains
    assert needed_blocks([u[:, k : k + 1] for k in range(4)], log_q, 60) == [True] * 4


def test_ensembles_that_disagree_are_told_of_even_if_their_pool_is_right():
    idata = sample(pe.gallery.bimodal(), pe.EnsembleKalmanSampler(adjust=False), draws=1000)
    sides = (idata.posterior["u"][..., 0] > idata.posterior["u"][..., 1]).mean("draw")
    assert float(sides.std()) > 0.2  # what the note is about
    told = str(pe.diagnose(idata))
    assert "disagree" in told or "wrong" in told
