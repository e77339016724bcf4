"""Weights over all proposals of a run with a Metropolis test, against exact laws."""

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from known_runs import sample
from pymc.distributions.transforms import Interval
from scipy.stats import halfnorm, norm

import pymc_ensemble as pe
from pymc_ensemble.samplers.ensemble import Ensemble
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman

DATA = np.array([0.3, -1.2, 2.0])
A = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 2.0], [1.0, 1.0, 1.0]])
Y = np.array([0.5, -1.0, 1.5, 0.2])


def model_with_bounds(default_transform=None):
    """Two transforms, an unknown scale of the noise, and a deterministic variable."""
    own = {} if default_transform is None else {"default_transform": default_transform}
    with pm.Model(coords={"place": ["here"]}) as model:
        s = pm.HalfNormal("s", 1.5)
        x = pm.Uniform("x", -3, 3, dims="place", **own)
        pm.Deterministic("double", 2 * x, dims="place")
        pm.Normal("y", x[0], s, observed=DATA)
    return model


def exact_moments():
    """Means and standard deviations of s and x, by quadrature."""
    s, x = np.linspace(1e-3, 12, 1500), np.linspace(-3, 3, 601)
    S, X = np.meshgrid(s, x, indexing="ij")
    lp = halfnorm(scale=1.5).logpdf(S) + sum(norm(X, S).logpdf(y) for y in DATA)
    w = np.exp(lp - lp.max())
    w /= w.sum()
    means = np.array([(w * V).sum() for V in (S, X)])
    sds = np.array([np.sqrt((w * (V - m) ** 2).sum()) for V, m in zip((S, X), means, strict=True)])
    return means, sds


@pytest.fixture(scope="module")
def adjusted():
    return sample(model_with_bounds(), pe.EnsembleKalmanSampler(adjust=True), 1000, 8)


def test_proposals_have_the_moments_of_the_posterior(adjusted):
    """Over eight runs errors of means, in units of what the effective sizes say, have size one.

    The mean of the 16 squares has the standard deviation 0.35. Bounds are those of the range in
    which the error of weighted means is that of as many independent draws up to a factor of 1.5.
    """
    means, sds = exact_moments()
    z, ratios = [], []
    for chain in range(8):
        better = pe.reweight(adjusted.isel(chain=[chain]), proposals=True)
        posterior = better["posterior"].dataset
        values = np.stack([posterior[name].values.ravel() for name in ("s", "x")])
        size = posterior.attrs["efficiency"] * values.shape[1]
        assert posterior.attrs["khat"] < 0.7
        assert 400 < size < 800
        z.append((values.mean(1) - means) / sds * np.sqrt(size))
        ratios.append(values.std(1) / sds)
    assert np.mean(np.square(z)) < 1.5**2 + 3 * 0.35
    # a standard error of 1 / sqrt(8 * 500), and 0.7 of it and more for sds of these shapes
    assert np.abs(np.mean(z, 0)).max() < 4 * 1.5 / np.sqrt(8)
    assert np.abs(np.mean(ratios, 0) - 1).max() < 0.08


def test_weights_are_exact_for_a_linear_map():
    """Mean and covariance of a Gaussian posterior, from 30 ensembles that share no draws.

    Averages over all of them have the error of their spread, by which they are judged.
    """
    rng = np.random.default_rng(1)
    problem = pe.InverseProblem(lambda u: A @ u, prior=(np.zeros(3), np.eye(3)), data=Y, noise=0.7)
    C = np.linalg.inv(np.eye(3) + A.T @ A / 0.49)
    mean, root = C @ A.T @ Y / 0.49, np.linalg.cholesky(C)
    found = []
    for _ in range(30):
        log_w, x = [], []
        sampler = EnsembleKalman(problem, 60, adjust=True)
        state = sampler.start(problem.sample_prior(60, rng), redraw=True)
        while len(log_w) < 8:
            points, pending = sampler.ask(state, rng)
            state, info = sampler.tell(state, pending, problem.evaluate(points))
            if info.snapshot is not None:
                told = info.snapshot
                known = np.isfinite(told.proposal_log_q)
                values = Ensemble.evaluated(
                    problem, told.proposal[known], problem.evaluate(told.proposal[known])
                )
                np.testing.assert_allclose(told.proposal_lp[known], -values.potential)
                assert np.isnan(told.proposal[~known]).all()
                log_w.append((told.proposal_lp - told.proposal_log_q)[known])
                x.append(np.linalg.solve(root, (told.proposal[known] - mean).T).T)
        w, x = np.exp(np.concatenate(log_w)), np.concatenate(x)
        found.append(np.concatenate([w @ x, w @ x**2 - w.sum()]) / w.sum())
    found = np.array(found)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0)) < 4 * error).all()
    assert error.max() < 0.02


def test_reweighted_draws_are_proposals_in_the_form_of_draws(adjusted):
    before, better = adjusted, pe.reweight(adjusted, proposals=True)
    posterior, stats = (better[name].dataset for name in ("posterior", "sample_stats"))
    assert set(posterior) == {"s", "x"}
    assert posterior["x"].dims == ("chain", "draw", "place")
    assert posterior.sizes == before["posterior"].dataset[["s", "x"]].sizes
    U = stats["unconstrained"].values
    np.testing.assert_allclose(np.log(posterior["s"].values), U[..., 0])
    np.testing.assert_allclose(posterior["x"].values[..., 0], 6 / (1 + np.exp(-U[..., 1])) - 3)
    proposed = before["sample_stats"]["proposal"].values.reshape(-1, 2)
    assert set(map(tuple, U.reshape(-1, 2))) <= set(map(tuple, proposed))
    new = set(map(tuple, U.reshape(-1, 2))) - set(
        map(tuple, before["sample_stats"]["unconstrained"].values.reshape(-1, 2))
    )
    assert len(new) > 500, "those that were rejected count, too"
    logp = model_with_bounds().compile_logp()
    for draw in (0, 7, 500):
        point = {"s_log__": U[0, draw, 0], "x_interval__": U[0, draw, 1:]}
        assert float(logp(point)) == pytest.approx(stats["lp"].values[0, draw])
    computed = pm.compute_deterministics(posterior, model=model_with_bounds(), progressbar=False)
    np.testing.assert_allclose(computed["double"], 2 * posterior["x"])


def test_the_same_with_processes_slices_and_files(tmp_path):
    def run(cores):
        with model_with_bounds():
            return pm.sample(
                600,
                step=pe.EnsembleKalmanSampler(adjust=True),
                chains=2,
                cores=cores,
                random_seed=3,
                progressbar=False,
                compute_convergence_checks=False,
            )

    one, two = run(1), run(2)
    stats = one["sample_stats"].dataset
    xr.testing.assert_equal(stats["proposal"], two["sample_stats"]["proposal"])
    independent = np.isfinite(stats["proposal_log_q"].values)
    assert (np.isfinite(stats["proposal"].values).all(-1) == independent).all()
    accepted = independent & (stats["proposal_lp"].values == stats["lp"].values)
    assert 0.3 < accepted.mean() < independent.mean()
    np.testing.assert_array_equal(
        stats["proposal"].values[accepted], stats["unconstrained"].values[accepted]
    )
    two.isel(draw=slice(0, 400)).to_netcdf(tmp_path / "run.nc")
    with xr.open_datatree(tmp_path / "run.nc") as part:
        saved = pe.reweight(part, proposals=True)
    sliced = pe.reweight(one.isel(draw=slice(0, 400)), proposals=True)
    xr.testing.assert_equal(saved["posterior"].dataset, sliced["posterior"].dataset)
    assert saved["posterior"].sizes["draw"] == 400
    with pytest.raises(ValueError, match="are reweighted"):
        pe.reweight(saved, proposals=True)


def test_what_has_no_proposals_is_refused(adjusted):
    plain = sample(model_with_bounds(), pe.EnsembleKalmanSampler(adjust=False), 300, 1)
    assert "proposal" not in plain["sample_stats"].dataset
    with pytest.raises(ValueError, match="adjust=True"):
        pe.reweight(plain, proposals=True)
    with pytest.raises(TypeError, match="proposals"):
        pe.reweight(adjusted, proposals="yes")
    stats = adjusted["sample_stats"].dataset
    few = adjusted.copy(deep=True)
    log_q = stats["proposal_log_q"].copy(deep=True)
    log_q[:, 3:] = np.nan
    few["sample_stats"] = xr.DataTree(stats.assign(proposal_log_q=log_q))
    with pytest.raises(ValueError, match=r"independent proposals .50 are needed. for their"):
        pe.reweight(few, proposals=True)
    log_q = stats["proposal_log_q"].where(stats["draw"] % 8 == 0)
    poor = adjusted.copy(deep=True)
    poor["sample_stats"] = xr.DataTree(stats.assign(proposal_log_q=log_q))
    with pytest.raises(ValueError, match="but the draws themselves"):
        pe.reweight(poor, proposals=True)


def test_a_transform_of_ones_own_needs_the_model():
    class Narrow(Interval):
        name = "narrow"

    model = model_with_bounds(default_transform=Narrow(-3.0, 3.0))
    idata = sample(model, pe.EnsembleKalmanSampler(adjust=True), 300, 1)
    with pytest.raises(ValueError, match=r"transform of `x` .* model=model"):
        pe.reweight(idata, proposals=True)
    better = pe.reweight(idata, proposals=True, model=model)["posterior"].dataset
    assert better["x"].dims == ("chain", "draw", "place")
    assert np.abs(better["x"]).max() < 3
