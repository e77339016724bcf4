"""Draws where the posterior has almost none of its mass."""

import numpy as np
import pymc as pm
import pytest
from known_runs import ADJUSTED, PLAIN, positions, standard_normal_run
from scipy import stats
from scipy.special import digamma, gammaln
from toys import sample

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.cells import Misplaced, _entropy, spacing_entropy
from pymc_ensemble.samplers.ensemble import Origin

WHERE = "where the posterior has almost none of its mass"


def misplaced(x, lp):
    """What is found among independent draws, shape (4000, d)."""
    x, lp = x.reshape(4, 10, 100, -1), lp.reshape(4, 10, 100)
    return Misplaced.of(x, lp, x)


def normal(rng, d=4):
    x = rng.standard_normal((4000, d))
    return x, -0.5 * (x**2).sum(1)


def funnel(rng, d=10):
    v = 3 * rng.standard_normal(4000)
    x = np.exp(v / 2)[:, None] * rng.standard_normal((4000, d - 1))
    lp = -0.5 * (v / 3) ** 2 - 0.5 * (x**2).sum(1) * np.exp(-v) - 0.5 * (d - 1) * v
    return np.column_stack([v, x]), lp


def cauchy(rng, d=10):
    x = rng.standard_cauchy((4000, d))
    return x, -np.log1p(x**2).sum(1)


def ring(rng):
    r, angle = 1 + 0.02 * rng.standard_normal(4000), 2 * np.pi * rng.random(4000)
    x = np.column_stack([r * np.cos(angle), r * np.sin(angle)])
    return x, -0.5 * ((r - 1) / 0.02) ** 2 - np.log(r)


def unlike_modes(rng, d=5):
    narrow = rng.random(4000) < 0.5
    x = rng.standard_normal((4000, d)) * np.where(narrow, 0.05, 1.0)[:, None] + 10 * narrow[:, None]
    wide, tight = -0.5 * (x**2).sum(1), -0.5 * ((x - 10) ** 2).sum(1) / 0.05**2
    return x, np.logaddexp(wide, tight - d * np.log(0.05))


def banana(rng, d=3):
    x, lp = normal(rng, d)
    x[:, 1] += 5 * x[:, 0] ** 2
    x[:, 2] += 3 * x[:, 1]
    return x, lp


@pytest.mark.parametrize("law", [normal, funnel, cauchy, ring, unlike_modes, banana])
def test_draws_of_the_density_are_in_their_place(law):
    for seed in range(3):
        assert misplaced(*law(np.random.default_rng(seed))).share == 0


def test_cells_that_are_empty_are_those_by_the_density():
    """Of two Gaussian laws 6 sd apart: the log mass of a cell falls by 6 for each sd."""
    x, lp = normal(np.random.default_rng(1))
    found = misplaced(x, lp - 6 * x[:, 2])
    edges = stats.norm.ppf(np.linspace(0, 1, 11))
    centers = 10 * (stats.norm.pdf(edges[:-1]) - stats.norm.pdf(edges[1:]))
    assert (6 * (centers - np.median(centers)) > 5).sum() == 2  # by the mean log density of each
    left = stats.truncnorm(-np.inf, edges[8])
    assert found.share == pytest.approx(0.2)
    # the standard errors of 4000 draws are 0.016 of a mean, 0.011 of a standard deviation
    np.testing.assert_allclose(found.shift, [0, 0, -left.mean() / left.std(), 0], atol=0.08)
    np.testing.assert_allclose(found.sd_ratio, [1, 1, 1 / left.std(), 1], atol=0.05)
    assert found.far == np.abs(found.shift).max()  # 0.46, where the other is log2(1.31) = 0.39


def test_entropies():
    """Of the slice of a Gaussian law it is known; of a Student-t law that of its radius counts."""
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 3, 4000)
    assert spacing_entropy(x) == pytest.approx(np.log(3), abs=0.03)
    factor = np.array([[1.0, 0, 0], [0.5, 0.2, 0], [-1.0, 0.3, 2.0]])
    z = rng.standard_normal((4000, 3)) @ factor.T
    exact = stats.multivariate_normal(cov=factor @ factor.T).entropy()
    for k in range(3):
        assert _entropy(z, k) == pytest.approx(exact, abs=0.06)
    nu, p = 5, 3
    t = rng.standard_normal((4000, p)) / np.sqrt(rng.chisquare(nu, 4000) / nu)[:, None]
    half = (nu + p) / 2
    exact = half * (digamma(half) - digamma(nu / 2)) + p / 2 * np.log(nu * np.pi)
    exact += gammaln(nu / 2) - gammaln(half)
    assert _entropy(t, 0) == pytest.approx(exact, abs=0.12)  # given x, its ellipsoids differ


def test_particles_that_stand_still_tell_nothing():
    """A hundredth of the mass is at the neck, where a tenth of the particles is stuck."""
    x, lp = (a.reshape(4, 10, 100, -1) for a in funnel(np.random.default_rng(3)))
    stuck = np.argsort(x[:, 0, :, 0], axis=1)[:, :10]
    for chain in range(4):
        x[chain, :, stuck[chain]] = x[chain, 0, stuck[chain]][:, None]
        lp[chain, :, stuck[chain]] = lp[chain, 0, stuck[chain]][:, None]
    found = Misplaced.of(x, lp[..., 0], x)
    assert found.share == 0
    few = Misplaced.of(x[:, :1], lp[:, :1, :, 0], x[:, :1])  # 400 draws of 10 parameters
    assert few is None


def flown_off(rng, origin):
    """Draws of a funnel of 10 parameters, one chain of them far up where it is wide."""
    run = standard_normal_run(rng, p=10, origin=origin)
    x = positions(run)
    shape = x.shape[:2]
    v = np.where(np.arange(shape[0])[:, None] == 3, 9.0, 0.0) + 0.7 * rng.standard_normal(shape)
    x[..., 0] = v
    x[..., 1:] = np.exp(v / 2)[..., None] * rng.standard_normal((*shape, 9))
    lp = -0.5 * v**2 / 0.7**2 - 0.5 * (x[..., 1:] ** 2).sum(-1) * np.exp(-v) - 4.5 * v
    run["sample_stats"]["lp"].values[:] = lp
    return run


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_chain_that_has_flown_off_is_wrong(seed):
    diagnosis = pe.diagnose(flown_off(np.random.default_rng(seed), Origin("approximate")))
    assert diagnosis.verdict == "wrong"


@pytest.mark.filterwarnings("ignore:The burn-in had not passed its test:UserWarning")
@pytest.mark.parametrize("model", ["schools", "funnel"])
def test_plain_runs_of_funnels_are_not_trusted(model):
    """The Gaussian law of the ensemble is not theirs, whether chains have flown off or not."""
    with pm.Model() as schools:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        theta = pm.Normal("theta", mu, tau, shape=8)
        se = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
        pm.Normal("y", theta, se, observed=[28.0, 8, -3, 7, -1, 1, 18, 12])
    with pm.Model() as funnel:
        scale = pm.Deterministic("tau", pm.math.exp(pm.Normal("v", 0, 3) / 2))
        x = pm.Normal("x", 0, scale, shape=9)
        pm.Normal("y", x[:3], 1.0, observed=[0.5, -1.0, 2.0])
    idata = sample(
        {"schools": schools, "funnel": funnel}[model],
        pe.EnsembleKalmanSampler(adjust=False),
        draws=400,
        chains=2,
    )
    assert pe.diagnose(idata).verdict != "trustworthy"


@pytest.mark.parametrize(
    ("origin", "verdict"),
    [(Origin("approximate"), "doubtful"), (PLAIN, "trustworthy"), (ADJUSTED, "trustworthy")],
)
def test_moments_that_nothing_has_checked_are_doubtful(origin, verdict):
    """Weights check a law that is known, and a Metropolis test leaves chance only."""
    run = standard_normal_run(np.random.default_rng(4), p=40, J=100, S=10, origin=origin)
    diagnosis = pe.diagnose(run)
    assert diagnosis.verdict == verdict
    if verdict == "doubtful":
        assert "no Metropolis test, and 40 parameters are too many" in diagnosis.headline
        assert "adjust=True" in diagnosis.remedies[0]
