"""Models whose log density has nothing but values: exact moments by quadrature."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from known_runs import sample

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.facts import facts_of

GRID = np.linspace(-4, 6, 800)


@pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dscalar])
def log_likelihood(theta):
    """A black box, as users of emcee have it."""
    return np.array(-5 * (theta[0] - 1) ** 2 - 2.5 * (theta[1] - theta[0] ** 2) ** 2)


def moments(log_density):
    """Means, standard deviations and the log evidence of a density on the plane."""
    X, Y = np.meshgrid(GRID, GRID, indexing="ij")
    lp = log_density(X, Y) - 0.5 * (X**2 + Y**2) - np.log(2 * np.pi)
    w = np.exp(lp) * (GRID[1] - GRID[0]) ** 2
    mean = np.array([(w * v).sum() / w.sum() for v in (X, Y)])
    sd = np.sqrt([(w * v**2).sum() / w.sum() for v in (X, Y)] - mean**2)
    return mean, sd, np.log(w.sum())


def box(X, Y):
    return -5 * (X - 1) ** 2 - 2.5 * (Y - X**2) ** 2


def custom(x):
    def logp(value, mu):
        return log_likelihood(mu) + 0 * value

    pm.CustomDist("y", x, logp=logp, signature="(n)->()", observed=np.array(0.0))


def potential(x):
    pm.Potential("y", log_likelihood(x))


def both(x):
    """A forward map, and a black box beside it."""
    pm.Potential("box", log_likelihood(x))
    pm.Normal("y", x, 1.0, observed=[0.5, 0.5])


def edge(x):
    pm.Potential("y", pt.switch(x[0] + x[1] > 0.5, 0.0, -np.inf))


DENSITIES = {
    custom: box,
    potential: box,
    both: lambda X, Y: box(X, Y) - 0.5 * ((X - 0.5) ** 2 + (Y - 0.5) ** 2) - np.log(2 * np.pi),
    edge: lambda X, Y: np.where(X + Y > 0.5, 0.0, -np.inf),
}


def model_of(define):
    with pm.Model() as model:
        define(pm.Normal("x", shape=2))
    return model


@pytest.mark.parametrize("define", DENSITIES, ids=lambda define: define.__name__)
def test_models_without_a_forward_map(define, caplog):
    """Draws, densities and evidence, compared with quadrature.

    At an acceptance of 0.4 to 0.6, 4000 draws are worth some 1000.
    """
    model = model_of(define)
    with caplog.at_level("INFO", logger="pymc_ensemble"):
        idata = sample(model, pe.EnsembleKalmanSampler(), 2000, 2)
    known = "moves use only values of the log density"
    assert (known in caplog.text) == (define is not both)
    mean, sd, evidence = moments(DENSITIES[define])
    x = idata.posterior.x.values.reshape(-1, 2)
    assert np.abs((x.mean(0) - mean) / sd).max() < 4 / np.sqrt(1000)
    np.testing.assert_allclose(x.std(0) / sd, 1, atol=0.1)
    lp = model.compile_logp()
    for k in (0, 999):
        assert float(lp({"x": x[k]})) == pytest.approx(idata.sample_stats.lp.values[0, k])
    assert idata.sample_stats.converged.all()
    found = pe.log_evidence(idata)
    assert abs(found.value - evidence) < 3.5 * found.standard_error
    assert found.standard_error < 0.1


@pytest.mark.parametrize("options", [{"adjust": False}, {"rough": True}])
def test_a_fit_to_a_forward_map_needs_one(options):
    with model_of(potential), pytest.raises(ValueError, match="there is no observed variable"):
        pe.EnsembleKalmanSampler(**options)


def test_published_scheme_needs_a_forward_map():
    with model_of(potential), pytest.raises(ValueError, match="likelihood"):
        pe.EnsembleKalmanSampler(scheme="paper")


def test_noisy_density_is_refused():
    rng = np.random.default_rng(1)

    @pytensor.wrap_py(itypes=[pt.dvector], otypes=[pt.dscalar])
    def noisy(theta):
        return np.array(-5 * (theta**2).sum() + 5 * rng.standard_normal())

    with pytest.raises(pm.exceptions.SamplingError, match="EnsembleGaussianProcessSampler"):
        sample(model_of(lambda x: pm.Potential("y", noisy(x))), pe.EnsembleKalmanSampler())


def rippled(ripple):
    """A decay whose outputs carry ripples that are far shorter than the posterior is wide."""
    t = np.arange(6.0)
    with pm.Model() as model:
        rate, size = pm.LogNormal("rate", 0, 0.5), pm.Normal("size", 1, 0.5)
        decay = size * pm.math.exp(-rate * t) + ripple * pm.math.sin(400 * rate + t)
        pm.Normal("y", decay, 0.1, observed=np.exp(-t) + 0.05 * np.cos(7 * t))
    return model


@pytest.mark.parametrize("seed", [1, 2])
def test_all_chains_follow_what_the_first_one_has_found(seed):
    """Fluctuations near the bound: five differences of one chain know a third of them at most."""
    model, runs = rippled(0.08), []
    for cores in (1, 2):
        step = pe.EnsembleKalmanSampler(ensemble_size=40)
        with model:
            idata = pm.sample(
                200,
                step=step,
                chains=3,
                cores=cores,
                random_seed=seed,
                progressbar=False,
                compute_convergence_checks=False,
            )
        stats = idata.sample_stats
        origins = [facts_of(stats.isel(chain=[k])).origin for k in range(3)]
        assert len(set(origins)) == 1
        assert origins[0].fluctuation > 0
        assert f"fluctuates by {origins[0].fluctuation:.2g}" in str(pe.report(idata))
        runs.append(idata)
    one, other = runs
    np.testing.assert_array_equal(one.posterior.rate, other.posterior.rate)
    np.testing.assert_array_equal(one.sample_stats.n_evals, other.sample_stats.n_evals)


@pytest.mark.filterwarnings("ignore:The burn-in had not passed:UserWarning")
def test_a_first_chain_that_is_cut_short_keeps_nobody_waiting():
    step = pe.EnsembleKalmanSampler(ensemble_size=40)
    idata = sample(rippled(1.0), step, draws=80, chains=2, tune=2)
    assert facts_of(idata.sample_stats).origin.adjusted
    fluctuation, evaluations, bent = step._board.finding
    assert np.isnan(fluctuation)
    assert (evaluations, bent) == (0, False)


def ridge(ripple):
    """A bent ridge, whose outputs carry ripples."""
    waves = 40 * np.random.default_rng(4).standard_normal((3, 2))
    phases = 2 * np.pi * np.random.default_rng(2).random(3)
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        mean = pm.math.stack([u[0], 2 * (u[1] - u[0] ** 2), u[0] + u[1]])
        rippled = mean + ripple * pm.math.sin(pm.math.dot(waves, u) + phases)
        pm.Normal("y", rippled, 1.0, observed=[0.5, -0.3, 0.4])
    return model


def test_all_chains_follow_a_verdict_that_was_revised():
    """Ripples call for a fit, which the first chain finds not to do: none tries it again."""
    runs = []
    for cores in (1, 2):
        step = pe.EnsembleKalmanSampler(ensemble_size=40)
        with ridge(1.2):
            idata = pm.sample(
                200,
                step=step,
                chains=3,
                cores=cores,
                random_seed=2,
                progressbar=False,
                compute_convergence_checks=False,
            )
        stats = idata.sample_stats
        origins = {facts_of(stats.isel(chain=[k])).origin for k in range(3)}
        assert {(origin.law, origin.adjusted) for origin in origins} == {("density", True)}
        assert len(origins) == 1
        assert origins.pop().fluctuation > 1.2  # which, on a map that is not bent, means a fit
        evaluations = stats["n_evals"].max("draw").to_numpy()
        # an examination, and at least two rounds of a fit, before the first chain gave it up
        assert (evaluations[0] - evaluations[1:] > 20 + 2 * 40).all()
        runs.append(idata)
    np.testing.assert_array_equal(runs[0].posterior.u, runs[1].posterior.u)


def straight(sigma):
    """Eight data on a plane, with a noise that is known or not."""
    A = np.random.default_rng(3).standard_normal((8, 3))
    data = A @ [0.5, -0.3, 1.0] + 0.3 * np.random.default_rng(2).standard_normal(8)
    with pm.Model() as model:
        u = pm.Normal("u", shape=3)
        scale = pm.HalfNormal("sigma", 1.0) if sigma is None else sigma
        pm.Normal("y", pm.math.dot(A, u), scale, observed=data)
    return model


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_log_says_that_plain_draws_are_off(sigma, caplog):
    """With few data an unknown noise has no Gaussian posterior: its sd is a third too small."""
    caplog.set_level("INFO", logger="pymc_ensemble")
    step = pe.EnsembleKalmanSampler(adjust=False)
    sample(straight(sigma), step, 2000, chains=1)
    assert ("noise in `y` is unknown" in caplog.text) == (sigma is None)
    assert ("too narrow" in caplog.text) == (sigma is None)
    assert ("what it should be, according to the log densities" in caplog.text) == (sigma is None)
    caplog.clear()
    sample(straight(sigma), pe.EnsembleKalmanSampler(adjust=True), 300, chains=1)
    assert "is unknown" not in caplog.text
