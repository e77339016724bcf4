"""What `diagnose` says of results that are right, and of results that are wrong."""

from time import process_time

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from known_runs import (
    ADJUSTED,
    PLAIN,
    SURROGATE,
    WALKERS,
    declare,
    positions,
    sample,
    standard_normal_run,
)
from pymc.distributions import transforms
from scipy import stats

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.facts import entries
from pymc_ensemble.diagnosis.regression import Regression
from pymc_ensemble.diagnosis.run import Run
from pymc_ensemble.diagnosis.weights import SamplingError, Weights
from pymc_ensemble.samplers.ensemble import Origin


@pytest.fixture(scope="module")
def noisy_decay():
    return sample(
        pe.gallery.decay(noise_sd=0.3), pe.EnsembleKalmanSampler(adjust=False), draws=1000
    )


@pytest.fixture(scope="module")
def of_noisy_decay(noisy_decay):
    return pe.diagnose(noisy_decay)


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


def test_weights_do_not_apply_to_draws_of_another_law():
    """Against the law fitted to the ensemble they would call these draws wrong."""
    rng = np.random.default_rng(3)
    for origin in (ADJUSTED, WALKERS, Origin("approximate"), Origin("smooth"), Origin("fit")):
        run = standard_normal_run(rng, origin=origin)
        run["sample_stats"]["log_q"].values[:] *= 0.1
        assert pe.diagnose(run).trustworthy
        assert pe.reweight(run).posterior.attrs["khat"] < 0.5 if origin.law != "fit" else True
    run = standard_normal_run(rng, p=36, J=200, origin=Origin("approximate"))
    with pytest.raises(ValueError, match="do not follow a known law"):
        pe.reweight(run)


def test_ensembles_in_different_places():
    rng = np.random.default_rng(4)
    run = standard_normal_run(rng, p=1)
    # lp of two narrow modes far apart, two chains in each, one of them four times as heavy
    side = np.repeat([3.0, -3.0], 2)[:, None, None]
    x = positions(run)
    run["sample_stats"]["lp"].values[:] = -0.5 * x[..., 0] ** 2 - np.log(4) * (side[..., 0] > 0)
    x += side
    diagnosis = pe.diagnose(run)
    assert not diagnosis.trustworthy


@pytest.mark.parametrize("origin", [PLAIN, ADJUSTED, WALKERS])
def test_burn_in_that_did_not_pass_is_never_trustworthy(origin):
    run = standard_normal_run(np.random.default_rng(5), origin=origin)
    run["sample_stats"]["converged"].values[1] = False
    diagnosis = pe.diagnose(run)
    assert diagnosis.verdict == "doubtful"
    assert len(diagnosis.reasons) == 1
    assert "has not converged: the burn-in had not passed its test; the log" in diagnosis.headline


@pytest.mark.parametrize("origin", [PLAIN, ADJUSTED, WALKERS])
def test_chains_that_differ_are_never_trustworthy(origin):
    """R-hat of chains with the variance 1 about means with the variance v: (1 + v)**0.5."""
    run = standard_normal_run(np.random.default_rng(5), S=40, origin=origin)
    where = np.array([0.5, -0.5, 0.5, -0.5])[:, None]
    positions(run)[..., 0] += where
    run["sample_stats"]["lp"].values[:] = -0.5 * (positions(run) ** 2 / [1.25, 1]).sum(-1)
    diagnosis = pe.diagnose(run)
    assert float(diagnosis.parameters["r_hat"][0]) == pytest.approx(1.33**0.5, abs=0.03)
    assert any("disagree about `x[0]` (R-hat 1.1" in reason for reason in diagnosis.reasons)


def test_chance_errors_of_standard_deviations_count():
    """Of a law with a tail, the mean is known well where its standard deviation is not.

    The draws are 768 quantiles, so that the relative error of the standard deviation is 0.17.
    """
    rng = np.random.default_rng(5)
    run = standard_normal_run(rng, S=8, J=24, origin=ADJUSTED)
    quantiles = stats.t(1.6).ppf((np.arange(768) + 0.5) / 768)
    positions(run)[..., 0] = rng.permutation(quantiles).reshape(4, 192)
    run["sample_stats"]["lp"].values[:] = np.nan  # no regression
    diagnosis = pe.diagnose(run)
    assert float(diagnosis.parameters["mcse"].max()) < 0.1
    assert any("standard deviation of `x[0]` is known to" in r for r in diagnosis.reasons)


def test_rough_maps_are_recognized():
    rng = np.random.default_rng(6)
    run = standard_normal_run(rng)
    run["sample_stats"]["lp"].values[:] += 2 * rng.standard_normal((4, 500))
    diagnosis = pe.diagnose(run)
    assert diagnosis.statistics["roughness"] == pytest.approx(2, rel=0.25)
    assert any("rough=True" in note for note in diagnosis.notes)
    assert diagnosis.trustworthy  # its draws are right all the same


def test_bias_of_the_plain_sampler_is_estimated(noisy_decay, of_noisy_decay):
    reference = pe.gallery.decay(noise_sd=0.3).reference
    parameters = of_noisy_decay.parameters
    for name in ("log_amplitude", "log_rate"):
        estimate = float(parameters["shift"].sel(parameter=name))
        assert estimate == pytest.approx(true_error(noisy_decay, reference, name), abs=0.06)


def test_far_off_start_without_burn_in():
    start = 6 + 0.3 * np.random.default_rng(1).standard_normal((60, 2))
    step = pe.EnsembleKalmanSampler(adjust=False, initial_ensemble=start)
    with pytest.warns(UserWarning, match="burn-in"):
        idata = sample(pe.gallery.decay(), step, draws=300, tune=2)
    assert not pe.diagnose(idata).trustworthy


DERIVED = {
    "square": lambda x: x**2,
    "many": lambda x: pm.math.stack([x[0] * k + x[1] for k in range(30)]),
    "repeated": lambda x: pm.math.stack([x[0], x[0], x[1]]),
    "logarithm": lambda x: pm.math.log(x),
    "infinite": lambda x: pm.math.switch(x > 0, x, np.inf),
    "constant": lambda x: 0 * x + 3.0,
}


@pytest.fixture(scope="module")
def derived():
    """A result with derived quantities of all kinds, and its model."""
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        scale = pm.HalfNormal("scale")
        for name, of in DERIVED.items():
            pm.Deterministic(name, of(x))
        pm.Normal("y", x[0] - x[1], scale, observed=[1.0, 1.4, 0.2])
    with np.errstate(all="ignore"):
        return sample(model, pe.EnsembleKalmanSampler(adjust=True), draws=500), model


@pytest.fixture(scope="module")
def of_derived(derived):
    """What is said of that result, and its reweighted draws."""
    idata, model = derived
    return pe.diagnose(idata, model=model), pe.reweight(idata, random_seed=1)


@pytest.mark.parametrize("kept", [[*DERIVED], ["many", "x", "scale"], ["infinite"], []])
def test_derived_quantities_do_not_matter(derived, of_derived, kept):
    """Nor does it matter whether free variables are in the posterior: draws carry them."""
    (idata, _), (expected, whole) = derived, of_derived
    assert list(expected.parameters["parameter"].values) == ["x[0]", "x[1]", "scale"]
    assert expected.trustworthy
    some = idata.copy()
    some["posterior"] = xr.DataTree(idata["posterior"].dataset[kept])
    found = pe.diagnose(some)
    xr.testing.assert_equal(found.parameters, expected.parameters)
    assert found.reasons == expected.reasons
    missing = [name for name in ("x", "scale") if name not in kept]
    if missing:
        assert f"the posterior is missing {', '.join(f'`{m}`' for m in missing)}" in found.notes[0]
    else:
        assert found.notes == expected.notes
    again = pe.reweight(some, random_seed=1)
    for name in kept:
        xr.testing.assert_identical(again["posterior"][name], whole["posterior"][name])


def test_diagnosis_takes_seconds_whatever_was_derived(derived):
    idata, _ = derived
    started = process_time()
    pe.diagnose(idata)
    assert process_time() - started < 3


def test_dimensions_of_the_model_may_have_any_name():
    dims = ("sweep", "particle", "parameter", "chains", "draws")
    with pm.Model(coords={dim: ["a", "b"] for dim in dims}) as model:
        for dim in dims:
            gain = pm.Normal(f"gain_{dim}", 0, 1, dims=dim)
            pm.Normal(f"y_{dim}", gain * 2.0, 0.5, observed=[1.0, 2.0], dims=dim)
    idata = sample(model, pe.EnsembleKalmanSampler(ensemble_size=40), 400, 2)
    labels = [label for dim in dims for label in entries(f"gain_{dim}", (2,))]
    assert list(pe.diagnose(idata).parameters["parameter"].values) == labels
    sizes, again = pe.ess(idata), pe.reweight(idata)["posterior"]
    ensembles = pe.to_ensemble(idata)["posterior"]
    for dim in dims:
        name = f"gain_{dim}"
        assert sizes[name].dims == (dim,)
        assert list(sizes[dim].values) == ["a", "b"]
        assert again[name].dims == ("chain", "draw", dim)
        renamed = f"{dim}_of_model" if dim in ("sweep", "particle") else dim
        assert ensembles[name].dims == ("chain", "sweep", "particle", renamed)
        assert list(ensembles[renamed].values) == ["a", "b"]


def test_a_variable_may_be_named_as_a_stat():
    with pm.Model() as model:
        sweep, particle = pm.Normal("sweep"), pm.Normal("particle")
        pm.Normal("y", sweep + particle, 0.5, observed=1.0)
    idata = sample(model, pe.EnsembleKalmanSampler(ensemble_size=40), 400, 2)
    assert list(pe.diagnose(idata).parameters["parameter"].values) == ["sweep", "particle"]
    assert set(pe.ess(idata).data_vars) == {"sweep", "particle"}
    ensembles = pe.to_ensemble(idata)["posterior"]
    assert ensembles["sweep_of_model"].dims == ("chain", "sweep", "particle")


def shares():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 3))
    with pm.Model() as model:
        w = pm.Dirichlet("w", np.ones(3))
        pm.Normal("y", pm.math.dot(x, w), 0.3, observed=x @ [0.5, 0.3, 0.2])
    return model, entries("w", (3,))


def order():
    with pm.Model() as model:
        kind = transforms.ordered
        places = pm.Normal("places", 0, 2, shape=2, transform=kind, initval=[-1.0, 1.0])
        pm.Normal("y", places, 0.3, observed=[-1.0, 1.0])
    return model, entries("places", (2,))


def moving_bound():
    """Without the model only the coordinate is known."""
    with pm.Model() as model:
        top = pm.Normal("top", 3.0, 0.1)
        below = pm.Uniform("below", 0.0, top)
        pm.Normal("y", below, 0.3, observed=1.5)
    return model, ["top", "below"]


@pytest.mark.parametrize(("of", "adjust"), [(shares, False), (order, True), (moving_bound, False)])
def test_transforms_of_several_entries_are_no_matter(of, adjust):
    """All nearly Gaussian, so that both samplers are right."""
    model, labels = of()
    idata = sample(model, pe.EnsembleKalmanSampler(adjust=adjust), draws=1000)
    with_model, without = pe.diagnose(idata, model=model), pe.diagnose(idata)
    assert with_model.trustworthy
    assert without.trustworthy
    assert list(with_model.parameters["parameter"].values) == labels
    assert np.isfinite(with_model.parameters["shift"]).all()
    if of is moving_bound:
        assert list(without.parameters["parameter"].values) == ["top", "below_interval__"]
    else:
        xr.testing.assert_allclose(without.parameters, with_model.parameters)


def bounded():
    """A saturating curve whose parameters are known hardly better than by their bounds."""
    x = np.linspace(0.2, 4, 7)
    with pm.Model() as model:
        speed = pm.Uniform("speed", 0, 5)
        half = pm.Uniform("half", 0.05, 4)
        scale = pm.HalfNormal("scale", 0.4)
        y = [0.3, 0.9, 1.3, 1.2, 1.6, 1.5, 1.9]
        pm.Normal("y", speed * x / (half + x), scale, observed=y)
    return model


@pytest.mark.parametrize("adjust", [False, True])
def test_parameters_near_bounds_are_diagnosed(adjust):
    """Unadjusted means are off by .4 to .5 posterior standard deviations.

    Of adjusted runs, which are right, two of seven are doubted for tails that the fit leaves open.
    """
    idata = sample(bounded(), pe.EnsembleKalmanSampler(adjust=adjust), draws=1000, chains=2)
    diagnosis = pe.diagnose(idata)
    if adjust:
        assert all("draws hardly reach" in reason for reason in diagnosis.reasons)
    else:
        assert not diagnosis.trustworthy


def test_draws_of_another_model_are_refused(derived):
    idata, _ = derived
    with pm.Model() as other:
        pm.Normal("x", shape=2)
        pm.HalfNormal("width")
    with pytest.raises(ValueError, match="`scale` is a free variable of one of them only"):
        pe.diagnose(idata, model=other)
    with pm.Model() as other:
        pm.Normal("x", shape=2)
        pm.Uniform("scale", 0, 9)
    with pytest.raises(ValueError, match="`scale` has another shape or transform"):
        pe.diagnose(idata, model=other)


def test_results_of_the_first_version_are_refused(derived):
    idata = derived[0].copy()
    stats = idata["sample_stats"].dataset
    idata["sample_stats"] = xr.DataTree(stats.drop_vars(["made_by", "unconstrained"]))
    calls = [pe.diagnose, pe.reweight, pe.plots.weights]
    calls.append(lambda run: pe.EnsembleKalmanSampler(initial_ensemble=run, model=derived[1]))
    for call in calls:
        with pytest.raises(ValueError, match=r"version 0\.1 of pymc_ensemble sampled"):
            call(idata)


@pytest.fixture(scope="module")
def continued():
    """A run, its continuation, and what they are together."""
    model = pe.gallery.decay(noise_sd=0.3)
    first = sample(model, pe.EnsembleKalmanSampler(adjust=True), 400, 2)
    step = pe.EnsembleKalmanSampler(adjust=True, initial_ensemble=first)
    second = sample(model, step, 600, 2)
    return first, second


def put_together(runs, dim="draw"):
    return xr.DataTree.from_dict(
        {
            name: xr.concat([run[name].dataset for run in runs], dim)
            for name in ("posterior", "sample_stats")
        }
    )


def test_all_draws_of_a_run_and_its_continuation_are_used(continued):
    first, second = continued
    both = put_together(continued)
    ensembles = pe.to_ensemble(both)["posterior"]
    assert dict(ensembles.sizes) == {"chain": 2, "sweep": 10, "particle": 100}
    expected = [pe.to_ensemble(run)["posterior"]["log_rate"] for run in continued]
    np.testing.assert_array_equal(ensembles["log_rate"], np.concatenate(expected, axis=1))
    assert list(ensembles["sweep"].values) == list(range(10))
    sizes = [float(pe.ess(run)["log_rate"]) for run in (first, second, both)]
    assert sizes[2] == pytest.approx(sizes[0] + sizes[1], rel=0.2)
    diagnosis = pe.diagnose(both)
    assert diagnosis.trustworthy
    assert float(diagnosis.parameters["ess"].sel(parameter="log_rate")) == pytest.approx(sizes[2])
    draws = {float(value) for value in both["posterior"]["log_rate"].values.ravel()}
    left = pe.reweight(both)["posterior"]["log_rate"]
    assert left.shape == (2, 1000)
    drawn = {float(value) for value in left.values.ravel()}
    assert drawn <= draws
    for run in continued:  # of each a fair share
        own = {float(value) for value in run["posterior"]["log_rate"].values.ravel()}
        assert len(drawn & own) > 0.4 * len(own)


def test_further_chains_are_used(continued):
    first, second = continued
    more = second.map_over_datasets(
        lambda data: data.isel(draw=slice(400), missing_dims="ignore").assign_coords(chain=[2, 3])
    )
    both = put_together([first, more], "chain")
    assert pe.to_ensemble(both)["posterior"].sizes["chain"] == 4
    assert pe.diagnose(both).trustworthy


@pytest.mark.parametrize("stride", [2, 3, 7, 10])
def test_thinned_draws_are_used(noisy_decay, of_noisy_decay, stride):
    """Some particles keep more draws than others; most draws are used all the same."""
    thinned = noisy_decay.isel(draw=slice(None, None, stride))
    n = thinned["posterior"].sizes["draw"] * 4
    run = Run.of(thinned)
    assert len(run.U) == n
    assert run.draw.size > n / 2
    shift = pe.diagnose(thinned).parameters["shift"]
    xr.testing.assert_allclose(shift, of_noisy_decay.parameters["shift"], atol=0.2)


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
    with pytest.raises(ValueError, match="`c`, which is not a free variable"):
        pe.diagnose(idata, model=model, var_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="`var_names` is empty"):
        pe.diagnose(idata, var_names=[])


def test_walkers_are_diagnosed():
    idata = sample(pe.gallery.bimodal(), pe.MultiscaleSampler(walkers=5), draws=500)
    diagnosis = pe.diagnose(idata)
    assert {"shift", "sd_ratio"} <= set(diagnosis.parameters)


def test_modes_are_searched_for():
    model = pe.gallery.bimodal()
    right = sample(model, pe.EnsembleKalmanSampler(adjust=True))
    assert pe.diagnose(right, model=model, probe=2000).trustworthy
    # draws of one mode only, as if no particle had ever left it
    u = positions(right)
    other_mode = u[..., 0] < u[..., 1]
    u[other_mode] = u[other_mode][:, ::-1]
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
    run["sample_stats"]["lp"].values[:] = np.nan
    with pytest.raises(ValueError, match="cannot be corrected"):
        pe.reweight(run)
    for origin in (SURROGATE, Origin("fit")):
        run = standard_normal_run(np.random.default_rng(1), origin=origin)
        with pytest.raises(ValueError, match=f"come from a {origin.law}"):
            pe.reweight(run)


@pytest.mark.parametrize("shift", [0.8, 1.5, 3.0])
def test_weights_that_cannot_be_relied_upon_are_refused(shift):
    """Too many dimensions for a regression, and a law too far from the posterior for weights."""
    run = standard_normal_run(np.random.default_rng(1), p=40, J=100, shift=shift)
    with pytest.raises(ValueError, match=r"worth \d+ of 4000 draws .*k-hat .*adjust=True"):
        pe.reweight(run)
    near = standard_normal_run(np.random.default_rng(1), p=40, J=100, shift=0.1)
    better = pe.reweight(near)
    left = better["posterior"]["x"].values.mean((0, 1))
    efficiency = better["posterior"].attrs["efficiency"]
    assert efficiency > 0.05
    assert np.abs(left.mean()) < 4 / np.sqrt(40 * 4000 * efficiency)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: np.log1p(1e-3 * w), r"\(9\d%.*tail of the weights .* nothing tells the error"),
        (lambda w: 3 * np.log1p(w), r"\(0\.\d%.*So few leave means open by [\d.]+ posterior sd"),
    ],
)
def test_the_refusal_says_what_is_known(change, reason):
    """Weights with the tail of 1 / x: nearly all of the same size, and hardly any that count."""
    rng = np.random.default_rng(2)
    run = standard_normal_run(rng, p=40, J=100)
    lp = run["sample_stats"]["lp"].values
    lp += change(rng.pareto(1.0, lp.shape))
    with pytest.raises(ValueError, match=reason):
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
    declare(run, Origin("fit"))
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


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e200])
def test_weights_with_the_longest_of_tails(scale):
    rng = np.random.default_rng(1)
    weights = Weights.of(rng.standard_normal((4000, 1)), scale * rng.standard_cauchy(4000))
    assert weights.khat > 1
    assert weights.ess == pytest.approx(1, abs=0.01)
    assert np.isfinite(weights.log_weights).all()


def test_regression_needs_different_draws():
    rng = np.random.default_rng(1)
    X = np.repeat(rng.standard_normal((6, 2)), 50, axis=0)
    assert Regression.of(X, np.zeros(300), np.copy, rng) is None
    assert Regression.of(np.ones((300, 2)), np.zeros(300), np.copy, rng) is None


@pytest.mark.parametrize("draws", [15, 30])
def test_few_draws_do_not_suffice(draws):
    idata = sample(
        pe.gallery.decay(), pe.EnsembleKalmanSampler(adjust=False), draws=draws, chains=1
    )
    assert not pe.diagnose(idata).trustworthy
    few = idata.isel(draw=slice(2))
    with pytest.raises(ValueError, match=r"has 2 draws\. They are too few to tell"):
        pe.diagnose(few)


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
    for diagnosis in told:
        assert diagnosis.parameters["parameter"].values.tolist() == ["a", "k"]
        assert diagnosis.verdict == told[0].verdict
        assert any("other step methods have moved `k`" in note for note in diagnosis.notes)
    with pytest.raises(ValueError, match="have moved `k`, so the log densities"):
        pe.diagnose(idata, model=model, repeats=40)
    with pytest.raises(ValueError, match="have moved `k`, so the log densities"):
        pe.reweight(idata)


def test_ensembles_that_disagree_are_told_of_even_if_their_pool_is_right():
    idata = sample(pe.gallery.bimodal(), pe.EnsembleKalmanSampler(adjust=False), draws=1000)
    sides = (idata.posterior["u"][..., 0] > idata.posterior["u"][..., 1]).mean("draw")
    assert float(sides.std()) > 0.2  # what the note is about
    told = str(pe.diagnose(idata))
    assert "disagree" in told or "wrong" in told


def test_masses_of_narrow_modes_far_apart_are_doubted():
    """A Metropolis test brings particles to both modes, but seldom: the masses are off."""
    model = pe.gallery.lorenz63_modes()
    idata = sample(model, pe.EnsembleKalmanSampler(), 1000, chains=2)
    positive = idata.posterior["g"].to_numpy() > 0
    assert 0.02 < positive.mean() < 0.98
    assert pe.diagnose(idata).verdict != "trustworthy"
