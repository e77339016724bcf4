"""The evidence against exact values: closed forms, and quadrature; and how honest its error is."""

from dataclasses import replace

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from array_problems import Density, LinearProblem
from known_runs import declare_facts, declare_sampled, sample
from scipy.special import logsumexp
from scipy.stats import halfnorm, multivariate_normal, multivariate_t, norm

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.bridge import Mixture, averaged, bridged, control_variates
from pymc_ensemble.diagnosis.facts import facts_of
from pymc_ensemble.samplers.ensemble import Origin
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman

DATA = np.array([0.3, -1.2, 2.0])


def model_with_bounds():
    """Two transforms, whose Jacobians count, and an unknown scale of the noise."""
    with pm.Model() as model:
        s = pm.HalfNormal("s", 1.5)
        x = pm.Uniform("x", -3, 3)
        pm.Normal("y", x, s, observed=DATA)
    return model


@pytest.fixture(scope="module")
def exact():
    """By quadrature."""
    s, x = np.linspace(1e-3, 12, 2000), np.linspace(-3, 3, 801)
    S, X = np.meshgrid(s, x, indexing="ij")
    lp = halfnorm(scale=1.5).logpdf(S) - np.log(6) + sum(norm(X, S).logpdf(y) for y in DATA)
    return logsumexp(lp) + np.log((s[1] - s[0]) * (x[1] - x[0]))


@pytest.fixture(scope="module")
def adjusted():
    return sample(model_with_bounds(), pe.EnsembleKalmanSampler(adjust=True), 1000, 2)


@pytest.fixture(scope="module")
def plain():
    return sample(
        model_with_bounds(), pe.EnsembleKalmanSampler(ensemble_size=200, adjust=False), 600, 2
    )


def close(found, exact, largest):
    """Whether the value is right within 3.5 standard errors, which are small."""
    return found.standard_error < largest and abs(found.value - exact) < 3.5 * found.standard_error


def test_proposals_tell_the_evidence_for_free(adjusted, exact):
    found = pe.log_evidence(adjusted)
    assert close(found, exact, 0.05)
    assert found.method == "proposals"
    assert 1300 < found.n_points < 1900  # 0.8 of 2000 moves
    assert str(found).startswith("log evidence -6.9")
    assert "independence proposals" in str(found)


def test_proposals_of_other_moves_have_no_density(adjusted):
    stats = adjusted["sample_stats"]
    known = np.isfinite(stats["proposal_log_q"])
    assert (np.isnan(stats["proposal_lp"]) == ~known).all()
    assert 0.75 < known.mean() < 0.85
    accepted = known & (stats["proposal_lp"] == stats["lp"])
    assert (accepted.mean() > 0.4) & (accepted.mean() < known.mean())


def test_a_part_of_a_run_will_do(adjusted, exact, tmp_path):
    adjusted.isel(draw=slice(0, None, 3)).to_netcdf(tmp_path / "run.nc")
    with xr.open_datatree(tmp_path / "run.nc") as part:
        found = pe.log_evidence(part)
    assert close(found, exact, 0.08)
    assert found.n_points < 700


def test_gaussian_process_with_a_test(exact):
    step = pe.EnsembleGaussianProcessSampler(adjust=True)
    found = pe.log_evidence(sample(model_with_bounds(), step, 500, 2))
    assert close(found, exact, 0.15)


def test_other_runs_need_evaluations(plain, adjusted, exact):
    with pytest.raises(ValueError, match=r"0 independence proposals .* evaluations=1000"):
        pe.log_evidence(plain)
    with pytest.raises(TypeError, match="no model"):
        pe.log_evidence(plain, evaluations=500)
    found = pe.log_evidence(plain, model=model_with_bounds(), evaluations=500)
    assert found.method == "importance"
    assert found.n_points == 500
    assert close(found, exact, 0.1)
    found = pe.log_evidence(adjusted, model=model_with_bounds(), evaluations=500)
    assert found.method == "bridge"
    assert close(found, exact, 0.05)


def test_two_models_need_evaluations_of_the_fine_one():
    """A normal prior and a linear map. Draws without a test carry the corrected density."""
    slope = np.array([1.0, 2.0, -1.0])
    simulate = pe.forward_model(lambda x: slope * x)
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Normal("y", simulate(x), 0.5, observed=DATA)
    covariance = 0.25 * np.eye(3) + np.outer(slope, slope)
    exact = multivariate_normal(np.zeros(3), covariance).logpdf(DATA)
    for adjust in (False, True):
        step = pe.MultifidelitySampler(lambda x: 1.2 * slope * x, adjust=adjust, model=model)
        idata = sample(model, step, 500, 2)
        with pytest.raises(ValueError, match=r"evaluations=1000"):
            pe.log_evidence(idata)
        found = pe.log_evidence(idata, model=model, evaluations=1000)
        assert found.method == ("bridge" if adjust else "importance")
        assert close(found, exact, 0.05)


def test_draws_of_other_samplers(adjusted, exact):
    """As those of NUTS, which have neither coordinates nor facts."""
    foreign = xr.DataTree.from_dict({"posterior": adjusted["posterior"].dataset})
    found = pe.log_evidence(foreign, model=model_with_bounds(), evaluations=500)
    assert found.method == "bridge"
    assert close(found, exact, 0.08)


def test_two_modes_by_a_bridge():
    """A mixture of two narrow laws: the draws choose as many components."""
    laws = [multivariate_normal([-3.0, 0.0], 0.1), multivariate_normal([2.0, 1.0], 0.3)]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        U = np.concatenate([law.rvs(300, random_state=rng) for law in laws])
        mixture = Mixture.of(U[::2], rng)
        assert len(mixture.components) >= 3  # two, and the wide one
        points = mixture.draw(500, rng)

        def log_ratio(at, mixture=mixture):
            lp = logsumexp([law.logpdf(at) for law in laws], axis=0) + 7.0
            return lp - mixture.log_density(at)

        value, error, size = bridged(log_ratio(points), log_ratio(U[1::2])[None])
        assert error < 0.06
        assert abs(value - 7.0 - np.log(2)) < 3.5 * error
        assert 200 < size <= 500


def test_draws_of_another_law_are_not_bridged(adjusted):
    """Draws that are too wide, as of an ensemble that has not arrived; those that are right pass.

    Evaluations at points of a mixture tell the evidence without the draws.
    """
    model = model_with_bounds()
    posterior = adjusted["posterior"].dataset
    for seed in range(5):
        right = xr.DataTree.from_dict({"posterior": posterior})
        assert pe.log_evidence(right, model=model, evaluations=600, random_seed=seed)
    wide = posterior.assign(s=posterior["s"] * 1.8, x=posterior["x"] * 0.2)
    wrong = xr.DataTree.from_dict({"posterior": wide})
    with pytest.raises(
        ValueError, match=r"do not follow the posterior: with the draws, .* longer burn-in"
    ):
        pe.log_evidence(wrong, model=model, evaluations=600)


def test_draws_that_had_not_arrived_do_not_enter(adjusted):
    early = adjusted.copy(deep=True)
    stats = early["sample_stats"].dataset
    early["sample_stats"] = xr.DataTree(stats.assign(converged=stats["converged"] & False))
    found = pe.log_evidence(early, model=model_with_bounds(), evaluations=600)
    assert found.method == "importance"


def test_scales_of_a_mixture_do_not_matter():
    """Units of 1e-12 and of 1e15, and a correlation of 0.999."""
    root = np.diag([1e-12, 1e15]) @ np.linalg.cholesky([[1, 0.999], [0.999, 1]])
    z = np.random.default_rng(1).standard_normal((400, 2))
    mixtures = [Mixture.of(U, np.random.default_rng(2)) for U in (z, z @ root.T)]
    first, second = (m.log_density(U) for m, U in zip(mixtures, (z, z @ root.T), strict=True))
    log_det = np.linalg.slogdet(root / [[1e-12], [1e15]])[1] + np.log(1e3)
    # k-means may divide the draws otherwise in other coordinates
    np.testing.assert_allclose(second.mean(), first.mean() - log_det, atol=0.1)


# -- honest errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [False, True], ids=["forward map", "density"])
def test_standard_errors_are_those_of_many_runs(hidden):
    """Over 40 runs of a linear problem the squared errors, in units of theirs, have the mean one.

    The mean of 40 squares of normal variables has the standard deviation 0.22. Control variates
    take half of the variance, and more.
    """
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 3))
    problem = LinearProblem(A, rng.standard_normal(6) * 2, np.zeros(3), np.eye(3))
    # this toy leaves out the constants of prior and noise
    law = multivariate_normal(np.zeros(6), A @ A.T + np.eye(6))
    constant = 4.5 * np.log(2 * np.pi)
    exact = law.logpdf(problem.data) + constant
    off, errors = np.empty((2, 40, 2))
    for seed in range(40):
        U, points, lp, log_q = proposals(Density(problem) if hidden else problem, seed)
        known, second = ~np.isnan(log_q), np.arange(len(U)) >= len(U) // 2
        points = np.where(known[:, None], points, U)
        controls = control_variates(U, second, points, log_q, np.random.default_rng(seed))
        for k, given in enumerate([None, controls[known]]):
            chain = np.zeros(known.sum(), dtype=int)
            value, error = averaged((lp - log_q)[known], chain, given)
            off[seed, k], errors[seed, k] = value - exact, error
    z = off / errors
    assert (np.abs((z**2).mean(0) - 1) < 4 * 0.22).all()
    assert np.abs(z).max() < 3.5
    plain, corrected = np.sqrt((off**2).mean(0))
    assert corrected < 0.75 * plain


def proposals(problem, seed):
    """Draws of eight sweeps, what was proposed, and log densities of that."""
    sampler, rng = EnsembleKalman(problem, 60, adjust=True), np.random.default_rng(seed)
    state, found = sampler.start(problem.sample_prior(60, rng), redraw=True), []
    while len(found) < 8:
        points, pending = sampler.ask(state, rng)
        state, info = sampler.tell(state, pending, problem.evaluate(points))
        if info.snapshot is not None:
            shot = info.snapshot
            found.append((shot.U, shot.proposal, shot.proposal_lp, shot.proposal_log_q))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def test_control_variates_take_what_they_explain():
    rng = np.random.default_rng(1)
    controls, chain = rng.standard_normal((50, 2)), np.zeros(50, dtype=int)
    value, error = averaged(np.log(3 + controls @ [0.5, -0.2]), chain, controls)
    assert value == pytest.approx(np.log(3), abs=1e-12)
    assert error < 1e-12


def test_laws_for_control_variates_need_draws():
    draws = np.repeat([[0.0, 0.0], [1.0, 1.0]], 20, axis=0)
    second = np.arange(40) % 2 == 1
    rng = np.random.default_rng(1)
    assert control_variates(draws, second, draws, np.zeros(40), rng) is None


def test_chains_that_disagree_make_the_error_larger():
    log_w = np.array([0.0, 0.1, -0.1] * 20 + [1.0, 1.1, 0.9] * 20)
    together = averaged(log_w, np.zeros(120, dtype=int))
    apart = averaged(log_w, np.repeat([0, 1], 60))
    assert apart[0] == together[0]
    means = np.array([np.exp(log_w[:60]).mean(), np.exp(log_w[60:]).mean()])
    assert apart[1] == pytest.approx(means.std(ddof=1) / np.sqrt(2) / means.mean())
    assert apart[1] > 3 * together[1]


# -- refusals -----------------------------------------------------------------------------------


def test_heavy_tails_are_refused(adjusted):
    run = adjusted.copy(deep=True)
    stats = run["sample_stats"].dataset
    x = multivariate_t([0.0], 1.0, df=1).rvs(stats["lp"].shape, random_state=1)
    run["sample_stats"] = xr.DataTree(
        stats.assign(
            proposal_log_q=(stats["lp"].dims, 0 * x),
            proposal_lp=(stats["lp"].dims, np.log(np.abs(x))),
        )
    )
    with pytest.raises(ValueError, match=r"k-hat of .* larger ensemble_size"):
        pe.log_evidence(run)


def test_what_is_not_known_is_refused(adjusted):
    fit = declare_sampled(adjusted.copy(deep=True), Origin("density", adjusted=True))
    with pytest.raises(ValueError, match="averaged out"):
        pe.log_evidence(with_facts(fit, {"map": "rough"}))
    with pytest.raises(ValueError, match="stochastic"):
        pe.log_evidence(with_facts(fit, {"map": "stochastic"}))
    with pytest.raises(ValueError, match="improper"):
        pe.log_evidence(with_facts(fit, {"map": None, "proper": False}))
    stats = adjusted["sample_stats"].dataset
    lost = adjusted.copy(deep=True)
    lost["sample_stats"] = xr.DataTree(stats.assign(lost=stats["lost"] | True))
    with pytest.raises(ValueError, match="lost a mode"):
        pe.log_evidence(lost)
    old = adjusted.copy(deep=True)
    old["sample_stats"] = xr.DataTree(stats.drop_vars(["proposal_lp", "proposal_log_q"]))
    with pytest.raises(ValueError, match="no stat `proposal_log_q`"):
        pe.log_evidence(old)
    with pytest.raises(ValueError, match="evaluations must be an integer of at least 100"):
        pe.log_evidence(adjusted, model=model_with_bounds(), evaluations=10)
    with pytest.raises(TypeError, match="DataTree"):
        pe.log_evidence(None)


def with_facts(run, changes):
    return declare_facts(run, replace(facts_of(run["sample_stats"].dataset), **changes))


def test_improper_priors_and_random_likelihoods_are_refused(adjusted):
    foreign = xr.DataTree.from_dict({"posterior": adjusted["posterior"].dataset[["x"]]})
    with pm.Model() as flat:
        x = pm.Flat("x")
        pm.Normal("y", x, 1.0, observed=DATA)
    with pytest.raises(ValueError, match="improper prior"):
        pe.log_evidence(foreign, model=flat, evaluations=500)

    @pe.forward_model(output_shape=(), stochastic=True)
    def noisy(x, *, rng):
        return x + rng.standard_normal()

    with pm.Model() as random:
        x = pm.Normal("x")
        pm.Normal("y", noisy(x), 1.0, observed=0.3)
    with pytest.raises(ValueError, match="stochastic"):
        pe.log_evidence(foreign, model=random, evaluations=500)
