"""Rearranging draws into ensembles, and the effective sample size that follows from them."""

import itertools

import arviz as az
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from toys import ToyStep, gaussian_model

from pymc_ensemble.diagnosis.ensembles import ensemble_layout, ess, path_ess, to_ensemble
from pymc_ensemble.step_methods import base as step_methods


def result(sweep, particle, **posterior):
    """A result of `pm.sample` as far as `to_ensemble` looks at it."""
    dims = ("chain", "draw")
    stats = {"sweep": (dims, np.array(sweep)), "particle": (dims, np.array(particle))}
    n_chains, n_draws = np.shape(sweep)
    label = 100 * np.arange(n_chains)[:, None] + np.arange(n_draws)
    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"label": (dims, label), **posterior}),
            "sample_stats": xr.Dataset(stats),
            "observed_data": xr.Dataset({"y": ("n", np.zeros(3))}),
            "warmup_posterior": xr.Dataset({"label": (dims, label)}),
        }
    )


def blocks(J, *lengths):
    """Sweeps and particles of the draws of several blocks."""
    sweep, particle, first = [], [], 0
    for length in lengths:
        for j, s in itertools.product(range(J), range(first, first + length)):
            sweep.append(s)
            particle.append(j)
        first += length
    return np.array(sweep), np.array(particle)


def test_every_draw_is_where_its_stats_say():
    sweep, particle = blocks(3, 2, 1)
    ensembles = to_ensemble(result([sweep, sweep], [particle, particle]))
    label = ensembles["posterior"]["label"]
    assert label.dims == ("chain", "sweep", "particle")
    first = [[0, 2, 4], [1, 3, 5], [6, 7, 8]]
    np.testing.assert_array_equal(label[0], first)
    np.testing.assert_array_equal(label[1], np.add(first, 100))
    assert "warmup_posterior" not in ensembles.children
    assert ensembles["observed_data"]["y"].dims == ("n",)


def test_vectors_keep_their_dimensions_and_coordinates():
    sweep, particle = blocks(3, 2)
    x = xr.DataArray(
        np.arange(12.0).reshape(1, 6, 2),
        dims=("chain", "draw", "city"),
        coords={"city": ["a", "b"], "chain": [4]},
    )
    x = to_ensemble(result([sweep], [particle], x=x))["posterior"]["x"]
    assert x.dims == ("chain", "sweep", "particle", "city")
    assert x.sel(chain=4, sweep=1, particle=2, city="b") == 11
    assert list(x.coords["sweep"]) == [0, 1]


@pytest.mark.parametrize(
    ("lengths", "n_draws", "sweeps", "particles"),
    [
        ((4,), 12, 4, 3),  # complete
        ((4,), 9, 4, 2),  # the last particle lacks three sweeps
        ((4,), 11, 4, 2),
        ((4,), 3, 3, 1),  # not even one path is complete
        ((2, 2), 7, 2, 3),  # the second block has barely begun
        ((2, 2), 10, 4, 2),
        ((5, 5), 29, 10, 2),
    ],
)
def test_incomplete_particles_are_dropped(lengths, n_draws, sweeps, particles):
    """Particles with an incomplete path are dropped, but sweeps that few particles have are too."""
    sweep, particle = (values[:n_draws] for values in blocks(3, *lengths))
    posterior = to_ensemble(result([sweep], [particle]))["posterior"]
    assert dict(posterior.sizes) == {"chain": 1, "sweep": sweeps, "particle": particles}


def test_chains_that_were_interrupted_at_different_times():
    """PyMC cuts chains to a common length; paths have different lengths in each."""
    short, long = blocks(10, 3), blocks(10, 5)
    n = 30
    sweep, particle = (np.stack([a[:n], b[:n]]) for a, b in zip(short, long, strict=True))
    posterior = to_ensemble(result(sweep, particle))["posterior"]
    assert dict(posterior.sizes) == {"chain": 2, "sweep": 3, "particle": 6}
    for chain, length in enumerate((3, 5)):
        expected = 100 * chain + np.arange(3)[:, None] + length * np.arange(6)
        np.testing.assert_array_equal(posterior["label"][chain], expected)


def test_layout_without_common_draws_is_empty():
    sweeps, particles, draw = ensemble_layout(np.array([[0, 0], [1, 1]]), np.array([[0, 1]] * 2))
    assert draw.size == len(sweeps) * len(particles) == 0


def test_results_of_other_samplers_are_refused():
    with gaussian_model():
        idata = pm.sample(
            draws=20, tune=0, chains=1, step=pm.Metropolis(), progressbar=False, random_seed=1
        )
    with pytest.raises(ValueError, match=r"does not come from an ensemble.*EnsembleKalmanSampler"):
        to_ensemble(idata)
    with pytest.raises(ValueError, match="does not come from an ensemble"):
        to_ensemble(xr.DataTree())


def autoregressive(rng, shape, S, r):
    """Stationary paths with autocorrelation ``r**lag`` and variance one."""
    x = np.empty((*shape, S))
    x[..., 0] = rng.normal(size=shape)
    for s in range(1, S):
        x[..., s] = r * x[..., s - 1] + np.sqrt(1 - r**2) * rng.normal(size=shape)
    return x


def effective_size(n, S, r):
    """Exact: the variance of one draw over that of the mean."""
    lag = np.arange(1, S)
    return n / (1 + 2 * np.sum((1 - lag / S) * r**lag))


@pytest.mark.parametrize("r", [0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("S", [5, 10, 101])
def test_ess_of_autoregressive_paths(r, S):
    rng = np.random.default_rng(7)
    paths = autoregressive(rng, (8, 4, 50), S, r)  # 8 variables, 4 chains, 50 particles
    estimate = path_ess(paths)
    exact = effective_size(4 * 50 * S, S, r)
    # 200 paths: an autocorrelation is known to 7% or better
    np.testing.assert_allclose(estimate, exact, rtol=0.3)
    assert np.exp(np.log(estimate / exact).mean()) == pytest.approx(1, abs=0.15)


def test_ess_sees_chains_that_disagree():
    """Ensembles in different places have seen one independent draw of the place each."""
    rng = np.random.default_rng(7)
    paths = rng.normal(size=(4, 50, 20)) + 10 * np.arange(4)[:, None, None]
    assert path_ess(paths) < 4 * 50 * 1.2


def test_ess_of_a_constant_is_unknown():
    assert np.isnan(path_ess(np.ones((2, 3, 4))))


@pytest.mark.parametrize(
    ("correlation", "block_bytes"),
    [
        (0.0, step_methods.BLOCK_BYTES),
        (0.5, step_methods.BLOCK_BYTES),
        (0.8, step_methods.BLOCK_BYTES),
        (0.98, step_methods.BLOCK_BYTES),
        (0.5, 0),  # blocks of five sweeps
    ],
)
def test_arviz_sees_the_correlation_there_is(correlation, block_bytes, monkeypatch):
    """`az.ess` of the draws as they come agrees with that of the ensembles, and the truth."""
    monkeypatch.setattr(step_methods, "BLOCK_BYTES", block_bytes)
    J, S, chains = 100, 20, 4
    with gaussian_model(10):
        step = ToyStep(ensemble_size=J, correlation=correlation)
        idata = pm.sample(
            draws=J * S,
            chains=chains,
            cores=1,
            step=step,
            random_seed=3,
            progressbar=False,
            compute_convergence_checks=False,
        )
    ensemble_aware = ess(idata)["x"]
    arviz = az.ess(idata.posterior, method="mean")["x"]
    exact = effective_size(J * S * chains, S, correlation)
    assert np.exp(np.log(ensemble_aware / exact).mean()).item() == pytest.approx(1, abs=0.2)
    ratio = arviz / ensemble_aware
    assert ratio.max() < 1.5
    assert ratio.min() > 1 / 1.5
    assert ess(idata, ["x"]).equals(ess(idata))
