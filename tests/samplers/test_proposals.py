import numpy as np
import pytest
from array_problems import FixedNoise, random_linear
from scipy.stats import f, kstest, multivariate_normal, multivariate_t

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.linearization import fit_law, moment_law


@pytest.fixture(params=[2, 7])
def problem(request):
    return random_linear(request.param)


@pytest.fixture
def law(problem):
    d = problem.dimension
    return fit_law(problem, problem.ensemble(np.random.default_rng(0).random((2 * d + 4, d))))


def test_ratio_of_independent_proposals_is_that_of_student_t_densities(problem, law):
    rng, d = np.random.default_rng(1), problem.dimension
    U = rng.standard_normal((20, d))
    points, log_ratio, log_q = proposals.independence((law,), U, rng)
    q = multivariate_t(law.mean, law.covariance, df=max(5, d))
    np.testing.assert_allclose(log_ratio, q.logpdf(U) - q.logpdf(points), atol=1e-8)
    np.testing.assert_allclose(log_q, q.logpdf(points), atol=1e-8)


def test_density_of_a_mixture_of_independent_proposals(problem, law):
    rng, d = np.random.default_rng(11), problem.dimension
    U, laws = rng.standard_normal((20, d)), (law, moment_law(law.anomalies))
    points, log_ratio, log_q = proposals.independence(laws, U, rng)
    parts = [multivariate_t(part.mean, part.covariance, df=max(5, d)) for part in laws]
    before, after = (np.logaddexp(*(q.logpdf(u) for q in parts)) - np.log(2) for u in (U, points))
    np.testing.assert_allclose(log_ratio, before - after, atol=1e-8)
    np.testing.assert_allclose(log_q, after, atol=1e-8)


def test_independent_proposals_follow_the_student_t_law(problem, law):
    """|u - m|^2_P / d of a t vector follows F(d, nu)."""
    d = problem.dimension
    points, *_ = proposals.independence((law,), np.zeros((4000, d)), np.random.default_rng(2))
    distance = law.distance(law.map.coordinates(points))
    assert kstest(distance / d, f(d, max(5, d)).cdf).pvalue > 0.001


@pytest.mark.parametrize("r", [0.0, 0.7])
def test_ratio_of_autoregressive_proposals(problem, law, r):
    """q(u' | u) is normal around m + r (u - m) with covariance (1 - r^2) P^-1."""
    rng = np.random.default_rng(3)
    U = rng.standard_normal((10, problem.dimension))
    points, log_ratio = proposals.autoregressive(law, U, r, rng)

    def log_q(end, start):
        center = law.mean + r * (start - law.mean)
        return multivariate_normal(center, (1 - r**2) * law.covariance).logpdf(end)

    expected = [log_q(u, v) - log_q(v, u) for u, v in zip(U, points, strict=True)]
    np.testing.assert_allclose(log_ratio, expected, rtol=1e-6, atol=1e-8)


def test_gaussian_proposals_are_always_accepted_for_a_linear_problem(problem, law):
    rng = np.random.default_rng(4)
    U = problem.sample_posterior(30, rng)
    points, log_ratio = proposals.autoregressive(law, U, 0.3, rng)
    V = [problem.ensemble(X).potential for X in (U, points)]
    np.testing.assert_allclose(proposals.acceptance(*V, log_ratio), 1, atol=1e-8)


def test_differences_of_two_distinct_partners():
    """From partners on the axes the step tells which two were subtracted, and how long it is."""
    d, n = 3, 20_000
    U = np.ones((n, d))
    points = proposals.differential_evolution(U, np.eye(d), np.eye(d), FixedNoise(0.0, seed=6))
    step = points - U
    plus, minus = step.argmax(1), step.argmin(1)
    counts = np.zeros((d, d))
    np.add.at(counts, (plus, minus), 1)
    assert (counts.diagonal() == 0).all()
    share = counts[~np.eye(d, dtype=bool)] / n  # of ordered pairs: 1/6 each
    np.testing.assert_allclose(share, 1 / 6, atol=4 * np.sqrt(5 / 36 / n))
    length = step.max(1)
    jump = np.isclose(length, 1.0)
    np.testing.assert_allclose(length[~jump], 2.38 / np.sqrt(2 * d))
    assert abs(jump.mean() - 0.1) < 4 * np.sqrt(0.09 / n)


def test_jitter_has_the_shape_of_the_ensemble():
    root = np.array([[2.0, 0.0], [0.3, 0.1]])
    kicks = [
        proposals.differential_evolution(np.zeros((1, 2)), np.zeros((2, 2)), root, FixedNoise(e))[0]
        for e in np.eye(2)
    ]
    np.testing.assert_allclose(np.transpose(kicks), 1e-5 * root, rtol=1e-12)


def test_stacked_ensembles_evolve_by_themselves():
    """Each one along the differences of its own partners."""
    rng = np.random.default_rng(8)
    partners = np.array([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    U, root = np.zeros((2, 50, 2)), np.zeros((2, 2, 1))
    points = proposals.differential_evolution(U, partners, root, rng)
    assert (points[0, :, 0] != 0).all()
    assert (points[1, :, 1] != 0).all()
    assert (points[0, :, 1] == 0).all()
    assert (points[1, :, 0] == 0).all()


def test_acceptance_with_failures():
    """A failed proposal is rejected, and one from a failed position is accepted."""
    potential = np.array([1.0, np.inf, np.inf, 0.0])
    proposed = np.array([np.inf, 1.0, np.inf, 1.0])
    alpha = proposals.acceptance(potential, proposed, np.array([0.0, 0.0, 0.0, 0.5]))
    np.testing.assert_allclose(alpha, [0, 1, 0, np.exp(-0.5)])
