"""A synthetic likelihood as an observed variable of a model."""

import numpy as np
import pymc as pm
import pytest
from scipy import stats

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.facts import facts_of
from pymc_ensemble.forward.rounds import evaluating
from pymc_ensemble.synthetic.simulator import likelihoods_in

TIMES = np.arange(4.0)


def growth(level, rate, rng):
    return rng.poisson(np.exp(level + rate * TIMES))


def root(counts):
    return np.sqrt(np.asarray(counts) + 0.375)


DATA = np.array([12, 14, 25, 30])


def model_of(simulate=growth, **options):
    of_roots = pe.synthetic_likelihood(simulate, **{"summaries": root, "replicates": 40} | options)
    with pm.Model() as model:
        level, rate = pm.Normal("level", 2.5, 0.5), pm.Normal("rate", 0.3, 0.2)
        of_roots("y", level, rate, observed=DATA)
    return model


def covariance(model):
    return model["y_covariance"].get_value()


def test_data_are_summarized_and_the_noise_is_that_of_the_prior():
    model = model_of()
    np.testing.assert_allclose(model.rvs_to_values[model["y"]].eval(), root(DATA))
    assert isinstance(model["y"].owner.op, pm.MvNormal.rv_type)
    # roots of counts have a variance of about a quarter, known to a fifth from 50 pairs
    np.testing.assert_allclose(np.diag(covariance(model)), 0.25, atol=0.17)
    [(simulator, _)] = likelihoods_in(model)
    assert simulator.initial.n_evals == 100


def test_summaries_may_have_a_dimension():
    with pm.Model(coords={"time": TIMES}) as model:
        pe.synthetic_likelihood(growth, summaries=root, replicates=20)(
            "y", pm.Normal("level", 2.5, 0.5), rate=0.3, observed=DATA, dims="time"
        )
    assert model.named_vars_to_dims["y"] == ("time",)


def test_forward_models_give_the_same_with_workers_a_store_or_in_batches(tmp_path):
    expected = covariance(model_of())
    store = tmp_path / "runs.db"
    stored = pe.forward_model(growth, stochastic=True, store=store, executor=2)
    np.testing.assert_array_equal(covariance(model_of(stored)), expected)
    assert pe.open_store(store).sizes["evaluation"] == 100
    assert pe.open_store(store)["output"].shape == (100, 4)


def test_simulators_of_batches_have_their_rows_summarized():
    def batch(level, rate, rng):
        return np.array([growth(*one) for one in zip(level, rate, rng, strict=True)])

    vectorized = pe.forward_model(batch, stochastic=True, vectorized=True)
    np.testing.assert_array_equal(covariance(model_of(vectorized)), covariance(model_of()))


def test_other_summaries_are_another_version(tmp_path):
    stored = pe.forward_model(growth, stochastic=True, store=tmp_path / "runs.db", version="1")
    model_of(stored)
    model_of(stored, summaries=lambda counts: np.log(np.asarray(counts) + 1.0))
    versions = set(pe.open_store(tmp_path / "runs.db")["version"].to_numpy())
    assert len(versions) == 2


def test_one_stage_is_what_pymc_samples():
    with model_of():
        idata = pm.sample(
            60,
            step=pe.EnsembleKalmanSampler(rough=True, ensemble_size=30),
            chains=1,
            cores=1,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
        )
    assert {"observed_data", "constant_data"} <= set(idata.children)
    told = facts_of(idata["sample_stats"].dataset).likelihoods
    assert told == {"y": {"summaries": 4, "covariance": "prior", "pilot": 100}}


def test_density_is_gaussian_with_its_determinant():
    """Of a simulator without noise the density is known: its variances change with parameters."""
    initial = np.array([[0.5, 0.1], [0.1, 0.3]])
    of_pair = pe.synthetic_likelihood(
        lambda a, b, rng: np.array([a, a * b]),
        replicates=10,
        covariance="linear",
        initial_covariance=initial,
    )
    with pm.Model() as model:
        a, b = pm.LogNormal("a"), pm.Normal("b")
        of_pair("y", a, b, observed=[1.0, 2.0])
    slopes, center = np.array([[0.4, 0.0], [-0.2, 0.3]]), np.array([0.1, -0.5])
    model.set_data("y_slopes", slopes)
    model.set_data("y_center", center)
    density = model.compile_fn(model.logp(vars=[model["y"]]), inputs=model.value_vars)
    u = np.array([0.3, 0.7])  # the logarithm of a, and b
    scale = np.exp(0.5 * slopes @ (u - center))
    mean = np.array([np.exp(u[0]), np.exp(u[0]) * u[1]])
    expected = stats.multivariate_normal.logpdf([1.0, 2.0], mean, initial * np.outer(scale, scale))
    with evaluating(1):
        assert float(density({"a_log__": u[0], "b": u[1]})) == pytest.approx(expected)


def test_a_covariance_that_the_user_sets_is_told():
    model = model_of(initial_covariance=np.eye(4))
    [(simulator, _)] = likelihoods_in(model)
    assert simulator.likelihood_facts(model)[1]["covariance"] == "given"
    assert simulator.n_evaluations == 0


def test_summaries_without_noise_are_refused():
    with pytest.raises(ValueError, match="Summary 1 of `y` is always the same when"):
        model_of(summaries=lambda counts: [counts.mean(), 3.0], replicates=10)


def test_simulators_that_fail_over_most_of_the_prior_are_refused():
    def fails(level, rate, rng):
        raise RuntimeError("no convergence")

    with pytest.raises(
        ValueError, match=r"100 of 100 runs of fails .* failed(.|\n)*no convergence"
    ):
        model_of(fails)


def test_data_and_simulations_have_summaries_of_the_same_shape():
    def shorter(level, rate, rng):
        return growth(level, rate, rng)[:3]

    def square(level, rate, rng):
        return growth(level, rate, rng).reshape(2, 2)

    for simulate in (shorter, square):
        with pytest.raises(ValueError, match=r"have the shape .* observed data have \(4,\)"):
            model_of(simulate)
    one = pe.synthetic_likelihood(lambda a, rng: rng.normal(a), replicates=5)
    with pm.Model():  # a number, and an array of it
        one("y", pm.Normal("a"), observed=[1.0])


def test_arguments_without_a_prior_need_a_covariance():
    of_roots = pe.synthetic_likelihood(growth, summaries=root)
    with pm.Model(), pytest.raises(ValueError, match="initial_covariance"):
        of_roots("y", pm.Flat("level"), pm.Normal("rate"), observed=DATA)
