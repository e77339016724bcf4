"""The learned law as an approximate posterior."""

import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe


def linear(noise=0.3):
    A = np.random.default_rng(1).standard_normal((5, 70)) / 3
    y = np.array([1.0, -1.0, 0.5, 2.0, 0.0])
    with pm.Model(coords={"site": range(70)}) as model:
        u = pm.Normal("u", 1.0, 2.0, dims="site")
        pm.Normal("y", pm.math.dot(A, u), noise, observed=y)
    covariance = np.linalg.inv(np.eye(70) / 4 + A.T @ A / noise**2)
    return model, covariance @ (np.full(70, 0.25) + A.T @ y / noise**2), covariance


def test_linear_models_have_weights_of_one():
    model, mean, covariance = linear()
    law = pe.approximate(model, draws=400, random_seed=1, progressbar=False)
    posterior, stats = law["posterior"], law["sample_stats"]
    assert posterior["u"].dims == ("chain", "draw", "site")
    assert posterior.attrs["efficiency"] > 0.99
    u, sd = posterior["u"].values[0], np.sqrt(np.diag(covariance))
    assert np.abs((u.mean(0) - mean) / sd).max() < 4.5 / 20
    np.testing.assert_allclose(u.std(0) / sd, 1, atol=4.5 / np.sqrt(800))
    np.testing.assert_allclose(stats["log_weight"], np.log(1 / 400), atol=0.3)
    # lp and log_q are densities: their difference is the log evidence
    evidence = pe.find_MAP_ensemble(model=model, random_seed=2, progressbar=False).log_evidence
    np.testing.assert_allclose((stats["lp"] - stats["log_q"]).mean(), evidence, atol=0.02)


def test_without_weights_nothing_more_is_evaluated():
    model, *_ = linear()
    weighed, alone = (
        pe.approximate(model, draws=100, weigh=w, random_seed=1, progressbar=False)
        for w in (True, False)
    )
    np.testing.assert_array_equal(weighed["posterior"]["u"], alone["posterior"]["u"])
    assert weighed["posterior"].attrs["n_evals"] == alone["posterior"].attrs["n_evals"] + 100
    assert "khat" not in alone["posterior"].attrs
    assert np.isnan(alone["sample_stats"]["lp"]).all()


def test_weights_correct_a_curved_map():
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", u[0] + 0.15 * u[1] ** 2 + u[0] * u[1] / 10, 0.5, observed=1.0)
    law = pe.approximate(model, draws=4000, random_seed=1, progressbar=False)
    grid = np.stack(np.meshgrid(*[np.linspace(-6, 6, 401)] * 2, indexing="ij"), -1).reshape(-1, 2)
    outputs = grid[:, 0] + 0.15 * grid[:, 1] ** 2 + grid[:, 0] * grid[:, 1] / 10
    density = np.exp(-0.5 * ((outputs - 1) / 0.5) ** 2 - 0.5 * (grid**2).sum(1))
    mean = density @ grid / density.sum()
    weights = np.exp(law["sample_stats"]["log_weight"].values[0])
    found = weights @ law["posterior"]["u"].values[0] / weights.sum()
    size = 4000 * law["posterior"].attrs["efficiency"]
    assert np.abs(found - mean).max() < 4.5 / np.sqrt(size)


@pytest.mark.parametrize(
    ("steep", "message"),
    [(2, "k-hat of the importance weights"), (60, "only .% of those of the law")],
)
def test_weights_that_cannot_be_relied_upon_are_told(steep, message):
    """Where the posterior is very narrow, draws do not come to its tails, and k-hat is small."""

    def bent(u):
        return np.stack([steep * (u[..., 0] - u[..., 1] ** 2), u[..., 1]], axis=-1)

    with pm.Model() as model:
        u = pm.Normal("u", 0, 2, shape=2)
        forward = pe.forward_model(bent, output_shape=(2,), vectorized=True)
        pm.Normal("y", forward(u), 1.0, observed=np.zeros(2))
    with pytest.warns(UserWarning, match=message):
        pe.approximate(model, random_seed=2, progressbar=False)


def test_learning_that_is_cut_short_is_told():
    model, *_ = linear()
    with pytest.warns(UserWarning, match="has not converged in 1 rounds"):
        pe.approximate(model, maxiter=1, weigh=False, random_seed=1, progressbar=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 1}, "draws must be an integer of at least 2"),
        ({"round_size": 5}, "round_size must be an integer of at least 20"),
        ({"maxiter": 0}, "maxiter must be an integer of at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        pe.approximate(linear()[0], progressbar=False, **options)


SLOPE = np.random.default_rng(4).standard_normal((12, 60)) / (1 + np.arange(60) / 4)


def noisy(u, rng):
    return SLOPE @ u + 0.15 * rng.normal(size=12)


def noisy_model():
    y = SLOPE @ np.random.default_rng(5).standard_normal(60)
    with pm.Model() as model:
        u = pm.Normal("u", shape=60)
        forward = pe.forward_model(noisy, output_shape=(12,), stochastic=True)
        pm.Normal("y", forward(u), 0.3, observed=y)
    covariance = np.linalg.inv(np.eye(60) + SLOPE.T @ SLOPE / 0.09)
    return model, covariance @ SLOPE.T @ y / 0.09, covariance


def test_a_noisy_map_has_the_law_alone_and_says_so():
    """Noise of half the likelihood's: the posterior of the mean map is in closed form."""
    model, mean, covariance = noisy_model()
    with pytest.warns(UserWarning, match="they follow the learned law"):
        law = pe.approximate(model, draws=1000, random_seed=1, progressbar=False)
    assert law["posterior"].attrs["noisy"]
    assert "khat" not in law["posterior"].attrs
    assert np.isnan(law["sample_stats"]["log_weight"]).all()
    assert law["sample_stats"]["converged"].all()
    assert "learned law alone" in pe.diagnose(law).headline
    u, directions = law["posterior"]["u"].values[0], np.linalg.svd(SLOPE)[2][:12]
    sd = np.sqrt(np.einsum("rd,de,re->r", directions, covariance, directions))
    off = (u.mean(0) - mean) @ directions.T / sd
    assert np.sqrt((off**2).mean()) < 0.3
    np.testing.assert_allclose((u @ directions.T).std(0) / sd, 1, atol=0.3)


def test_what_noise_leaves_open_is_told():
    model, *_ = noisy_model()
    with pytest.warns(UserWarning, match="has not converged"):
        law = pe.approximate(
            model, draws=10, weigh=False, maxiter=3, random_seed=1, progressbar=False
        )
    assert not law["sample_stats"]["converged"].any()
