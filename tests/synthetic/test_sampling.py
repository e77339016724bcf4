"""Sampling in stages, against posteriors that are known."""

import numpy as np
import pymc as pm
import pytest
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.facts import facts_of
from pymc_ensemble.synthetic.simulator import likelihoods_in
from pymc_ensemble.synthetic.stages import Staged

A = np.array([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0], [0.3, 0.3]])
NOISE = np.array([0.5, 1.0, 0.7, 0.4])
DATA = np.array([0.8, -0.5, 1.5, 0.2])
CALLS = []


def linear(a, b, rng):
    CALLS.append((a, b))
    return A @ [a, b] + NOISE * rng.standard_normal(4)


def model_of(simulate=linear, data=DATA, **options):
    likelihood = pe.synthetic_likelihood(simulate, **{"replicates": 100} | options)
    with pm.Model() as model:
        likelihood("y", pm.Normal("a"), pm.Normal("b"), observed=data)
    return model


def told(idata):
    return facts_of(idata["sample_stats"].dataset).likelihoods["y"]


@pytest.fixture(scope="module")
def linear_run():
    CALLS.clear()
    model = model_of()
    idata = pe.sample_synthetic(1000, model=model, random_seed=1, progressbar=False)
    return model, idata, len(CALLS)


def test_posterior_of_a_linear_simulator_is_the_exact_one(linear_run):
    _, idata, _ = linear_run
    precision = np.eye(2) + A.T @ (A / NOISE[:, None] ** 2)
    exact = np.linalg.solve(precision, A.T @ (DATA / NOISE**2))
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    for name, mean, spread in zip("ab", exact, sd, strict=True):
        draws = idata["posterior"][name].to_numpy().ravel()
        # means are known to .1 from 1000 averaged runs, spreads to .1 from 100 replicates
        assert draws.mean() == pytest.approx(mean, abs=0.3 * spread)
        assert draws.std() == pytest.approx(spread, rel=0.2)


def test_every_simulation_is_counted_once(linear_run):
    _, idata, calls = linear_run
    attrs = idata["synthetic"].attrs
    assert attrs["n_evals"] == calls
    assert sum(n for name, n in attrs.items() if name.startswith("n_evals_")) == calls
    assert int(idata["sample_stats"]["n_evals"].max()) == calls
    assert (attrs["n_evals_initial"], attrs["n_evals_replicates"]) == (100, 100)
    assert attrs["n_evals_ends"] == 200


def test_estimated_covariance_is_that_of_the_noise(linear_run):
    model, idata, _ = linear_run
    used = model["y_covariance"].get_value()
    # a variance of 100 replicates is known to sqrt(2 / 99)
    np.testing.assert_allclose(np.diag(used), NOISE**2 * 99 / 94, rtol=0.45)
    np.testing.assert_array_equal(idata["constant_data"]["y_covariance"], used)
    assert idata["synthetic"]["y_replicates"].shape == (100, 4)


def test_facts_of_a_good_likelihood_speak_for_it(linear_run):
    facts = told(linear_run[1])
    assert (facts["covariance"], facts["replicates"]) == ("estimated", 100)
    assert facts["gaussian"] > 0.01
    assert facts["odd"] == facts["raised"] == []
    # what is found by chance is within twice its 95% quantile
    assert abs(facts["varying"][0]) < 2 * facts["varying_by_chance"][0]


def test_diagnosis_and_report_say_what_was_sampled(linear_run):
    found = pe.report(linear_run[1])
    assert found.diagnosis.verdict == "trustworthy"
    assert "given a Gaussian of 4 summaries" in found.diagnosis.notes[0]
    assert "entered by a synthetic likelihood" in found.methods
    assert {"wood2010statistical", "hartlap2007model"} <= set(found.citations)
    assert found.evaluations == linear_run[2]


def test_draws_follow_from_the_seed(linear_run):
    model, idata, _ = linear_run
    again = pe.sample_synthetic(1000, model=model, random_seed=1, progressbar=False)
    np.testing.assert_array_equal(again["posterior"]["a"], idata["posterior"]["a"])


def spread_grows(a, rng):
    return a + np.exp(0.4 * a - 0.2) * rng.standard_normal(8)


def exact_of_spread(y):
    a = np.linspace(-6, 6, 6001)
    s = np.exp(0.4 * a - 0.2)
    lp = -0.5 * a**2 - 8 * np.log(s) - 0.5 * (((y[:, None] - a) / s) ** 2).sum(0)
    weights = np.exp(lp - lp.max())
    weights /= weights.sum()
    return weights @ a, np.sqrt(weights @ (a - weights @ a) ** 2)


def test_a_covariance_that_changes_is_noticed_and_can_be_sampled():
    """The spread of the data tells as much as their mean, and a constant covariance none of it."""
    y = spread_grows(0.5, np.random.default_rng(3))
    mean, sd = exact_of_spread(y)
    found = {}
    for option in ("constant", "linear"):
        with pm.Model() as model:
            likelihood = pe.synthetic_likelihood(spread_grows, covariance=option)
            likelihood("y", pm.Normal("a"), observed=y)
        idata = pe.sample_synthetic(600, model=model, random_seed=3, progressbar=False)
        draws = idata["posterior"]["a"].to_numpy()
        shift, ratio = (draws.mean() - mean) / sd, draws.std() / sd
        found[option] = shift, ratio, told(idata)
        changes = [r for r in pe.diagnose(idata).reasons if "changes over the posterior" in r]
        assert len(changes) == (option == "constant")
    shift, ratio, facts = found["constant"]
    assert abs(shift) > 0.6
    assert abs(facts["varying"][0]) > 1.5 * facts["varying_by_chance"][0]
    shift, ratio, facts = found["linear"]
    assert abs(shift) < 0.4
    assert ratio == pytest.approx(1, abs=0.2)
    assert abs(facts["varying"][0]) < 2 * facts["varying_by_chance"][0]


def test_several_chains_and_other_likelihoods_may_be_there():
    with pm.Model():
        a = pm.Normal("a")
        pe.synthetic_likelihood(lambda a, rng: a + rng.standard_normal(2), replicates=20)(
            "y", a, observed=[1.0, 1.2]
        )
        pe.synthetic_likelihood(lambda a, rng: 2 * a + rng.standard_normal(1), replicates=20)(
            "z", a, observed=[2.0]
        )
        pm.Normal("w", a, 1.0, observed=1.0)
        idata = pe.sample_synthetic(
            100, chains=2, ensemble_size=20, check=False, random_seed=1, progressbar=False
        )
    # precision of the prior 1, of y 2, of z 4, and of w 1
    assert idata["posterior"]["a"].shape == (2, 100)
    assert float(idata["posterior"]["a"].mean()) == pytest.approx(7.2 / 8, abs=0.25)
    assert set(facts_of(idata["sample_stats"].dataset).likelihoods) == {"y", "z"}
    stats, attrs = idata["sample_stats"], idata["synthetic"].attrs
    assert int(stats["n_evals"].max("draw").sum()) == attrs["n_evals"]


def test_failures_are_counted_and_told():
    def fails_at_times(a, b, rng):
        if rng.random() < 0.1:
            raise RuntimeError("diverged")
        return linear(a, b, rng)

    idata = pe.sample_synthetic(
        100, model=model_of(fails_at_times), check=False, random_seed=1, progressbar=False
    )
    facts = told(idata)
    # of 100 replicates 10 are expected, with a standard deviation of 3
    assert 1 <= facts["failed"] <= 22
    assert idata["synthetic"].attrs["n_failed"] > facts["failed"]
    assert np.isnan(idata["synthetic"]["y_replicates"]).any(axis=1).sum() == facts["failed"]


def test_draws_are_kept_where_the_test_cannot_be_made(caplog):
    """Beyond the ends of the posterior the simulator fails, but where it is it works."""
    limits = {"a": np.inf}

    def fails_far_away(a, b, rng):
        if abs(a) > limits["a"]:
            raise RuntimeError("diverged")
        return linear(a, b, rng)

    model = model_of(pe.forward_model(fails_far_away, stochastic=True, version="1"))
    staged = Staged(model, likelihoods_in(model), np.random.default_rng(1))
    staged.begin()
    staged.estimate(np.random.default_rng(2).normal(size=(50, 2)))
    limits["a"] = 0.0
    U = xr.Dataset({"unconstrained": (("chain", "draw", "u"), np.ones((1, 20, 2)))})
    U["unconstrained"] += np.random.default_rng(3).normal(size=(1, 20, 2))
    assert staged.check(xr.DataTree.from_dict({"sample_stats": U})) == {}
    assert "could not be tested" in caplog.text
    assert staged.counted.made["ends"] == staged.counted.failed["ends"] == 200


def test_draws_are_kept_where_the_test_is_interrupted():
    model = model_of()
    staged = Staged(model, likelihoods_in(model), np.random.default_rng(1))
    staged.begin()
    staged.estimate(np.random.default_rng(2).normal(size=(50, 2)))

    def interrupted(*arguments):
        raise KeyboardInterrupt

    staged._run = interrupted
    U = np.random.default_rng(3).normal(size=(1, 20, 2))
    stats = xr.Dataset({"unconstrained": (("chain", "draw", "u"), U)})
    assert staged.check(xr.DataTree.from_dict({"sample_stats": stats})) == {}


def test_a_first_stage_that_is_interrupted_is_not_gone_on_from(monkeypatch):
    model = model_of()
    sample = pm.sample
    monkeypatch.setattr(
        pm, "sample", lambda *args, **kwargs: sample(*args, **kwargs).isel(draw=slice(20))
    )
    with pytest.raises(KeyboardInterrupt):
        pe.sample_synthetic(50, model=model, random_seed=1, progressbar=False)


def test_draws_are_kept_if_they_are_too_few_to_tell_how_they_were_made(caplog):
    idata = pe.sample_synthetic(2, model=model_of(), random_seed=1, progressbar=False)
    assert idata["posterior"]["a"].shape == (1, 2)
    assert "2 draws are too few for the axes" in caplog.text
    assert "too few to tell how they were made" in caplog.text


def test_a_covariance_that_was_given_does_not_hide_one_that_changes():
    """The posterior is looked for far too widely, and replicates are those of another place."""

    def grows(a, rng):
        return a + 0.01 * np.exp(1.5 * a) * rng.standard_normal(1)

    with pm.Model() as model:
        likelihood = pe.synthetic_likelihood(grows, initial_covariance=[[100.0]])
        likelihood("y", pm.Normal("a"), observed=[1.0])
    idata = pe.sample_synthetic(200, model=model, random_seed=1, progressbar=False)
    assert float(idata["posterior"]["a"].std()) < 0.02  # where a is one, the noise is .045
    assert [r for r in pe.diagnose(idata).reasons if "changes over the posterior" in r]


def test_a_summary_that_does_not_vary_is_refused_whatever_covariance_was_given():
    def with_a_constant(a, b, rng):
        return np.append(linear(a, b, rng)[:3], 0.1)

    model = model_of(with_a_constant, np.append(DATA[:3], 0.1), initial_covariance=np.eye(4))
    with pytest.raises(ValueError, match="Summary 3 of `y` is the same in all 100 replicates"):
        pe.sample_synthetic(50, model=model, random_seed=1, progressbar=False)


@pytest.mark.parametrize("n_summaries", [1, 2])
def test_a_posterior_that_is_too_wide_as_variances_were_raised_is_doubtful(n_summaries):
    """Noise over the prior is mostly that of a few of its draws, by far too large at the data."""

    def grows(a, rng):
        return a + np.append(0.01 * np.exp(3 * a), 3.0)[:n_summaries] * rng.standard_normal()

    with pm.Model() as model:
        pe.synthetic_likelihood(grows)("y", pm.Normal("a"), observed=np.zeros(n_summaries))
    idata = pe.sample_synthetic(200, model=model, random_seed=1, progressbar=False)
    assert told(idata)["raised"] == [0]
    assert float(idata["posterior"]["a"].std()) > 0.02  # it should be .01
    found = pe.diagnose(idata)
    assert found.verdict == "doubtful"
    assert "rests upon it, may be too wide" in found.reasons[0]


def test_replicates_that_are_all_the_same_are_doubtful_if_the_prior_has_noise():
    def still_below_zero(a, rng):
        return a + max(a, 0.0) * rng.standard_normal(2)

    with pm.Model() as model:
        likelihood = pe.synthetic_likelihood(lambda a, rng: np.floor(still_below_zero(a, rng)))
        likelihood("y", pm.Normal("a"), observed=[-3.0, -3.0])
    idata = pe.sample_synthetic(100, model=model, random_seed=1, progressbar=False)
    assert "may be too wide" in " ".join(pe.diagnose(idata).reasons)


def test_models_may_have_a_name():
    likelihood = pe.synthetic_likelihood(linear, covariance="linear", replicates=50)
    with pm.Model(name="plant") as model:
        likelihood("y", pm.Normal("a"), pm.Normal("b"), observed=DATA)
    idata = pe.sample_synthetic(50, model=model, check=False, random_seed=1, progressbar=False)
    assert "plant::y_replicates" in idata["synthetic"]
    assert set(facts_of(idata["sample_stats"].dataset).likelihoods) == {"plant::y"}


def test_more_stages_begin_anew_every_time():
    model = model_of()
    one, other = (
        pe.sample_synthetic(
            50, model=model, stages=3, check=False, random_seed=4, progressbar=False
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(one["posterior"]["a"], other["posterior"]["a"])
    assert one["synthetic"].attrs["n_evals_replicates"] == 200


def shifted(a, rng):
    CALLS.append(a)
    return a + rng.standard_normal(2)


def test_discrete_variables_are_drawn_beside_the_others_or_refused():
    likelihood = pe.synthetic_likelihood(shifted, replicates=20)
    with pm.Model() as model:
        a = pm.Normal("a")
        likelihood("y", a, observed=[1.0, 1.2])
        pm.Poisson("after", pm.math.exp(a))
    idata = pe.sample_synthetic(100, model=model, random_seed=1, progressbar=False, check=False)
    # the posterior mean is 2.2 / 3, known to 0.2 with a covariance of 20 replicates
    assert float(idata["posterior"]["a"].mean()) == pytest.approx(2.2 / 3, abs=0.35)
    assert idata["posterior"]["after"].dtype.kind == "i"
    with model:
        pm.Normal("z", pm.Poisson("k", 2.0) * 1.0, observed=1.0)
    CALLS.clear()
    with pytest.raises(ValueError, match=r"`k` is discrete.*pymc_ensemble\.amortize"):
        pe.sample_synthetic(model=model, progressbar=False)
    assert not CALLS


@pytest.mark.parametrize("given", [True, False])
def test_summaries_that_follow_from_others_are_refused(given):
    """Their correlation would be shrunk, so that what they tell would count twice."""

    def total(a, rng):
        both = a + rng.standard_normal(2)
        return [both[0], both[1], both.sum()]

    option = {"initial_covariance": np.eye(3)} if given else {}
    likelihood = pe.synthetic_likelihood(total, replicates=20, **option)
    with pytest.raises(ValueError, match="of `y` follows from the others"), pm.Model():  # noqa: PT012
        likelihood("y", pm.Normal("a"), observed=[1.0, 1.2, 2.2])
        pe.sample_synthetic(50, random_seed=1, progressbar=False)


def test_log_likelihoods_are_refused_before_anything_is_simulated():
    model = model_of()
    CALLS.clear()
    with pytest.raises(ValueError, match="log likelihoods of single simulations"):
        pe.sample_synthetic(model=model, progressbar=False, idata_kwargs={"log_likelihood": True})
    assert not CALLS


def test_mode_and_weights_of_lucky_simulations_are_refused():
    model = model_of(initial_covariance=np.diag(NOISE**2))
    CALLS.clear()
    with model, pytest.raises(ValueError, match=r"`y` is a synthetic.*luckiest"):
        pe.find_MAP_ensemble()
    assert not CALLS
    with model:
        idata = pm.sample(
            200,
            step=pe.EnsembleKalmanSampler(adjust=False),
            chains=1,
            cores=1,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
        )
    with pytest.raises(ValueError, match="lucky runs"):
        pe.reweight(idata)
