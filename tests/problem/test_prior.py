"""Draws from the prior: reproducible, and of the right law."""

import re
import warnings

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pymc.distributions import transforms
from scipy import stats

import pymc_ensemble as pe
from pymc_ensemble.problem import InverseProblem, _pymc
from pymc_ensemble.problem.points import split_angles, unconstrained

Y = np.array([0.3, -0.2, 0.5])
J = 4000


def draws(define, size=J, seed=1):
    with warnings.catch_warnings(action="ignore"), pm.Model():
        define()
        problem = InverseProblem.from_model()
    sample = problem.sample_prior(size, np.random.default_rng(seed))
    assert np.isfinite(sample).all()
    return sample


def has_law(sample, law):
    """Kolmogorov-Smirnov test that a right sample fails once in a million."""
    return stats.kstest(sample, law.cdf).pvalue > 1e-6


def hierarchy():
    spread = pm.HalfNormal("spread", 2.0)
    effect = pm.Normal("effect", 5.0, spread, shape=2, initval=[100.0, 100.0])
    pm.Normal("y", effect[0], 1.0, observed=np.ma.masked_array(Y, [1, 0, 0]))


def test_hierarchy_with_a_missing_value():
    log_spread, first, second, missing = draws(hierarchy).T
    spread = np.exp(log_spread)
    assert has_law(spread, stats.halfnorm(scale=2))
    # residuals given the parents are standard normal, and independent of each other
    residuals = [(first - 5) / spread, (second - 5) / spread, missing - first]
    for residual in residuals:
        assert has_law(residual, stats.norm())
    correlations = np.corrcoef([log_spread, *residuals])[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(J)


def test_same_seed_same_draws():
    np.testing.assert_array_equal(draws(hierarchy, 10, 3), draws(hierarchy, 10, 3))
    assert not np.any(draws(hierarchy, 10, 3) == draws(hierarchy, 10, 4))


def test_generator_moves_on_and_the_model_is_left_alone():
    with warnings.catch_warnings(action="ignore"), pm.Model() as model:
        hierarchy()
    problem = InverseProblem.from_model(model)
    before = pm.draw(model["spread"], random_seed=1)
    rng = np.random.default_rng(1)
    first, second = problem.sample_prior(5, rng), problem.sample_prior(5, rng)
    assert not np.any(first == second)
    assert pm.draw(model["spread"], random_seed=1) == before


def test_transforms():
    def define():
        p = pm.Uniform("p", 2, 5)
        w = pm.Dirichlet("w", [1.0, 2.0, 3.0])
        pm.Normal("y", p * w, 1.0, observed=Y)

    sample = draws(define)
    assert has_law(stats.logistic.cdf(sample[:, 0]), stats.uniform())
    with pm.Model() as model:
        define()
    backward = model.rvs_to_transforms[model["w"]].backward
    w = backward(pt.constant(sample[:, 1:])).eval(mode="FAST_COMPILE")
    assert has_law(w[:, 2], stats.beta(3, 3))


MIXTURES = {
    "one vector": lambda: pm.NormalMixture("m", [0.3, 0.7], [-1.0, 2.0], [0.5, 1.0], shape=(3, 2)),
    "two": lambda: pm.Mixture(
        "m", [0.3, 0.7], [pm.Normal.dist(-1.0, 0.5), pm.Normal.dist(2.0, 1.0)], shape=(3, 2)
    ),
}


@pytest.mark.parametrize("define", MIXTURES.values(), ids=MIXTURES)
def test_mixtures_are_drawn_together(define):
    """Every draw and every entry has components of its own."""
    with pm.Model():
        pm.Normal("y", define(), 1.0, observed=np.zeros((3, 2)))
        problem = InverseProblem.from_model()
    sample = problem.sample_prior(J, np.random.default_rng(1))
    assert problem._prior._draws._batch is not None

    def cdf(x):
        return 0.3 * stats.norm(-1, 0.5).cdf(x) + 0.7 * stats.norm(2, 1).cdf(x)

    assert all(stats.kstest(column, cdf).pvalue > 1e-6 for column in sample.T)
    correlations = np.corrcoef(sample.T)[np.triu_indices(6, 1)]
    following = [np.corrcoef(column[1:], column[:-1])[0, 1] for column in sample.T]
    assert np.abs([*correlations, *following]).max() < 5 / np.sqrt(J)


def test_mixtures_with_unknown_weights_are_drawn_one_by_one():
    """Each draw has weights of its own."""

    def define():
        w = pm.Dirichlet("w", [1.0, 1.0])
        m = pm.NormalMixture("m", w, [-100.0, 100.0], 1.0)
        pm.Normal("y", m, 1.0, observed=Y[0])

    weight, m = draws(define, 1000).T
    weight = 1 / (1 + np.exp(-weight))  # of the first component, two of which sum to one
    assert np.abs(np.corrcoef(weight, m)[0, 1]) > 0.5


def test_lkj_covariance():
    def define():
        deviation = pm.Exponential.dist(1.0, shape=2)
        chol, _, _ = pm.LKJCholeskyCov("L", n=2, eta=2.0, sd_dist=deviation)
        pm.MvNormal("y", pm.Normal("a", shape=2), chol=chol, observed=Y[:2])

    sample = draws(define, 600)
    assert has_law(np.exp(sample[:, 0]), stats.expon())


def test_ordered_variables_are_drawn_in_order():
    """Independent variables of one law, given their order, are order statistics."""

    def exchangeable():
        a = pm.Normal("a", shape=3, transform=transforms.ordered, initval=[-1, 0, 1])
        pm.Normal("y", a, 1.0, observed=Y)

    sample = draws(exchangeable)
    first = sample[:, 0]
    a = np.cumsum(np.column_stack([first, np.exp(sample[:, 1:])]), axis=1)
    # the law of the largest of three
    assert stats.kstest(a[:, 2], lambda x: stats.norm.cdf(x) ** 3).pvalue > 1e-6

    def distinct():
        a = pm.Normal("a", [0.0, 0.5], 1.0, transform=transforms.ordered, initval=[-1, 1])
        pm.Normal("y", a[0], 1.0, observed=Y)

    sample = draws(distinct)
    difference = np.exp(sample[:, 1])
    assert has_law(difference, stats.truncnorm(-0.5 / np.sqrt(2), np.inf, 0.5, np.sqrt(2)))


def test_draws_out_of_reach_are_refused():
    def define():
        positive = transforms.Interval(0, None)
        a = pm.Normal("a", -30, 1, transform=positive, default_transform=None, initval=1.0)
        pm.Normal("y", a, 1.0, observed=Y)

    with pytest.raises(ValueError, match=r"`a_interval__`.*initial_ensemble="):
        draws(define, 3)


def test_private_names_are_where_they_were():
    for name in _pymc.__all__:
        assert getattr(_pymc, name) is not None
    from pytensor.compile import optdb

    names = set(optdb["canonicalize"]._names)
    assert _pymc.PARAMETER_CHECKS_TO_INFINITY in names
    assert _pymc.LOWER_LABELS in set(optdb._names)


@pytest.mark.parametrize(("mu", "kappa"), [(0.0, 0.5), (3.0, 2.0), (-40.0, 1.0)])
def test_angles_are_kept_to_one_period(mu, kappa):
    """Around the mean, where its law is that of the angle turned into this period."""
    with pm.Model() as model:
        angle = pm.VonMises("angle", mu, kappa, shape=2)
        pm.Normal("y", pm.math.cos(angle), 1.0, observed=[0.1, 0.2])
    problem = InverseProblem.from_model(model)
    U = problem.sample_prior(J, np.random.default_rng(1))
    assert np.abs(U - mu).max() <= np.pi
    for u in U.T:
        assert has_law(u, stats.vonmises(kappa, loc=mu))
    inside = mu + np.array([[0.0, 1.0], [-3.1, 3.1]])
    potential = problem.prior_potential(inside)
    expected = -stats.vonmises(kappa, loc=mu).logpdf(inside).sum(1)
    np.testing.assert_allclose(potential, expected, rtol=1e-7)  # of its Bessel function
    np.testing.assert_allclose(
        problem.prior_gradient(inside), kappa * np.sin(inside - mu), atol=1e-10
    )
    for outside in ([[0.0, 3.2]], [[-7.0, 0.0]]):
        assert problem.prior_potential(mu + np.array(outside)) == np.inf
    named = unconstrained(model, {"angle": np.array([[3.1, -3.1], [0.0, 1.0]])})
    assert np.abs(named - mu).max() <= np.pi
    np.testing.assert_allclose(np.exp(1j * named), np.exp(1j * np.array([[3.1, -3.1], [0.0, 1.0]])))


def test_angles_around_an_unknown_mean():
    with pm.Model() as model:
        mean = pm.Normal("mean", 2.0, 3.0)
        angle = pm.VonMises("angle", mean, 1.5)
        free = pm.Uniform("free", -np.pi, np.pi, default_transform=transforms.circular)
        pm.Normal("y", pm.math.cos(angle) + free, 1.0, observed=0.1)
    problem = InverseProblem.from_model(model)
    U = problem.sample_prior(J, np.random.default_rng(2))
    assert np.isfinite(problem.prior_potential(U)).all()
    assert has_law(U[:, 1] - U[:, 0], stats.vonmises(1.5))
    assert has_law(U[:, 2], stats.uniform(-np.pi, 2 * np.pi))
    assert (problem.prior_potential([[7.0, 3.0, 0.0], [7.0, 5.0, 3.2]]) == np.inf).all()


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (pe.EnsembleKalmanSampler, {"adjust": True}),
        (pe.EnsembleGaussianProcessSampler, {"ensemble_size": 40}),
        (pe.MultiscaleSampler, {"adjust": True}),
    ],
)
def test_a_posterior_at_the_cut_is_told(step, options):
    """With the remedy that the warning names there is none."""

    def sample(mu):
        with pm.Model():
            phase = pm.VonMises("phase", mu, 0.01)
            parts = pm.math.stack([pm.math.cos(phase), pm.math.sin(phase)])
            pm.Normal("y", parts, 0.1, observed=[-1.0, 0.02])
            return pm.sample(
                100, chains=1, cores=1, step=step(**options), random_seed=1, progressbar=False,
                compute_convergence_checks=False,
            )  # fmt: skip

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(0.0)
    told = [str(w.message) for w in caught if "`phase`" in str(w.message)]
    assert len(told) == 1
    [mu] = re.findall(r"`mu=(-?[\d.]+)`", told[0])
    assert abs(np.cos(float(mu)) + 1) < 0.02
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        idata = sample(float(mu))
    assert not [w for w in caught if "`phase`" in str(w.message)]
    u = idata.sample_stats["unconstrained"].to_numpy()
    assert u.std() == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("kappa", [0.01, 0.5, 2.0, 100.0])
def test_only_angles_on_both_sides_of_the_cut_are_split(kappa):
    with pm.Model() as model:
        pm.VonMises("phase", 0.0, 0.01, shape=2)
    names = ["phase_circular__[0]", "phase_circular__[1]"]
    for seed in range(20):
        U = np.random.default_rng(seed).vonmises(0.0, kappa, (60, 2))
        assert split_angles(model, U, names) == {}
        if kappa >= 2:
            U[:, 1] = np.angle(-np.exp(1j * U[:, 1]))
            [(name, where)] = split_angles(model, U, names).items()
            assert name == "phase[1]"
            assert np.cos(where) < -0.9


@pytest.mark.parametrize("truth", [2.0, 5.5])
def test_ensembles_do_not_drift_over_periods(truth):
    """The posterior of a direction that is seen with noise, by quadrature."""
    seen = 1.5 * np.array([np.cos(truth), np.sin(truth)])
    with pm.Model() as model:
        angle = pm.VonMises("angle", 3.5, 1.0)
        pm.Normal("y", pm.math.stack([pm.math.cos(angle), pm.math.sin(angle)]), 0.5, observed=seen)
    a = 3.5 + np.linspace(-np.pi, np.pi, 4001)
    w = np.exp(np.cos(a - 3.5) + (np.column_stack([np.cos(a), np.sin(a)]) @ seen) / 0.25)
    w /= w.sum()
    mean = w @ a
    sd = np.sqrt(w @ (a - mean) ** 2)
    with model:
        idata = pm.sample(
            500, chains=2, cores=1, step=pe.EnsembleKalmanSampler(adjust=True), random_seed=1,
            progressbar=False, compute_convergence_checks=False,
        )  # fmt: skip
    u = idata.sample_stats["unconstrained"].to_numpy()
    assert np.abs(u - 3.5).max() <= np.pi
    # 1000 draws, nearly independent: two hundred are the least
    assert u.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(200))
    assert u.std() == pytest.approx(sd, rel=4 / np.sqrt(400))
    assert idata.sample_stats["n_evals"].to_numpy()[:, -1].sum() < 8000
