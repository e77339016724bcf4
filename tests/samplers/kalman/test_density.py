"""Densities that give only their values, with known posteriors."""

from dataclasses import replace

import numpy as np
import pytest
from array_problems import Density, LinearProblem, PoissonRegression
from scipy.stats import norm, truncnorm

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import Ensemble, EnsembleFailure
from pymc_ensemble.samplers.gaussian_process.basis import basis_size
from pymc_ensemble.samplers.kalman.clusters import cluster_laws
from pymc_ensemble.samplers.kalman.density import DensityMetropolis, renewal
from pymc_ensemble.samplers.kalman.quadratic import (
    Archive,
    quadratic_law,
    seen_from,
)
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.linearization import Anomalies, moment_law


class Values:
    """A log likelihood by its values, and a Gaussian prior of independent coordinates."""

    density_only = True
    quadratic_loss = False
    gaussian_prior = True
    n_outputs = 1
    impossible = 1e30

    def __init__(self, loss, sd):
        self.loss_of, self.sd = loss, np.asarray(sd, float)
        self.dimension = len(self.sd)

    def sample_prior(self, size, rng):
        return rng.standard_normal((size, self.dimension)) * self.sd

    def evaluate(self, U):
        return Evaluations.from_outputs(np.minimum(self.loss_of(U), 2 * self.impossible)[:, None])

    def loss(self, Z):
        return np.where(Z[:, 0] < self.impossible, Z[:, 0], np.inf)

    def prior_potential(self, U):
        return 0.5 * ((U / self.sd) ** 2).sum(1)

    def prior_gradient(self, U):
        return U / self.sd**2

    def prior_hessian(self, u):
        return np.diag(1 / self.sd**2)


def linear(d, seed=0, spread=100.0):
    """Squared singular values from one to `spread`, and unit noise."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((2 * d, d)))
    W, _ = np.linalg.qr(rng.standard_normal((d, d)))
    A = Q * np.sqrt(np.logspace(0, np.log10(spread), d)) @ W.T
    y = A @ rng.standard_normal(d) + rng.standard_normal(2 * d)
    return LinearProblem(A, y, np.zeros(d), np.eye(d))


def run(problem, seed, sweeps=6, size=None, **options):
    """Draws, shape (sweeps, J, d), evaluations of the burn-in, and the last state."""
    sampler, rng = EnsembleKalman(problem, size, **options), np.random.default_rng(seed)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    draws, burn_in, n = [], None, 0
    while len(draws) < sweeps:
        points, pending = sampler.ask(state, rng)
        sampling = state.burned_in
        state, info = sampler.tell(state, pending, problem.evaluate(points))
        n += len(points)
        if state.burned_in and burn_in is None:
            burn_in = n
        if sampling and info.snapshot is not None:
            draws.append(info.snapshot.U)
    return np.array(draws), burn_in, state


# -- the quadratic ------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [1.0, 0.3])
@pytest.mark.parametrize("d", [1, 3, 8])
def test_quadratic_of_a_linear_problem_is_its_posterior(d, exponent):
    """However far from it the points are, if there are enough of them."""
    linear_problem, rng = linear(d), np.random.default_rng(1)
    problem = Density(linear_problem)
    archive = Archive.of(
        problem.ensemble(problem.sample_prior(3 * basis_size("quadratic", d) + 20, rng))
    )
    P = exponent * (linear_problem.precision - np.eye(d)) + np.eye(d)
    mean = np.linalg.solve(P, exponent * linear_problem.precision @ linear_problem.mean)
    # an ensemble that is off by a standard deviation in each direction, and wider
    root = np.linalg.cholesky(np.linalg.inv(P))
    U = mean + (1.5 * rng.standard_normal((40, d)) + 1) @ root.T
    members = problem.ensemble(U)
    law = quadratic_law(problem, archive, members, Anomalies.of(U), exponent)
    np.testing.assert_allclose(root.T @ law.precision @ root, np.eye(d), atol=0.02)
    np.testing.assert_allclose(np.linalg.solve(root, law.mean - mean), 0, atol=0.02)


def test_no_quadratic_of_few_points_or_directions():
    problem, rng = Density(linear(4)), np.random.default_rng(1)
    few = basis_size("quadratic", 4) - 1
    members = problem.ensemble(problem.sample_prior(few, rng))
    anomalies = Anomalies.of(members.U)
    assert quadratic_law(problem, Archive.of(members), members, anomalies) is None
    flat = members.U.copy()
    flat[:, 0] = 1.0
    flat = problem.ensemble(np.tile(flat, (3, 1)))
    archive = Archive.of(flat)
    assert quadratic_law(problem, archive, flat, Anomalies.of(flat.U)) is None


def test_failures_teach_nothing():
    problem = Values(lambda U: np.where(U[:, 0] > 0, 1e30, U[:, 0] ** 2), [1.0])
    ensemble = problem_ensemble(problem, np.array([[-1.0], [1.0], [-2.0]]))
    archive = Archive.of(ensemble)
    np.testing.assert_array_equal(archive.U, [[-1.0], [-2.0]])
    np.testing.assert_array_equal(archive.joined(ensemble).loss, [1.0, 4.0, 1.0, 4.0])


def problem_ensemble(problem, U):
    return Ensemble.evaluated(problem, U, problem.evaluate(U))


@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_law_is_the_same_from_another_ensemble(scale):
    rng = np.random.default_rng(2)
    units = np.array([1.0, scale, 1 / scale])
    U, V = rng.standard_normal((2, 30, 3)) * units
    law = moment_law(Anomalies.of(U))
    law = replace(law, rates=np.array([0.5, 1.0, 4.0]), force=np.array([1.0, -0.5, 2.0]))
    other = seen_from(law, Anomalies.of(0.3 * V + units))
    np.testing.assert_allclose(other.log_density(U), law.log_density(U), rtol=1e-6, atol=1e-6)


# -- sweeps -------------------------------------------------------------------------------------


def test_posterior_is_invariant_whatever_the_frozen_law_is():
    """A law that is far off makes moves be rejected, and draws no worse.

    After ten sweeps of 2000 particles the means, in sd, have the standard error 0.022, and the
    standard deviations 0.016.
    """
    linear_problem, rng = linear(2), np.random.default_rng(3)
    problem = Density(linear_problem)
    kernel = DensityMetropolis(problem, 4)
    ensemble = problem.ensemble(linear_problem.sample_posterior(2000, rng))
    state = kernel.start(ensemble, at_rest=True)
    wrong = replace(moment_law(Anomalies.of(ensemble.U)), force=np.array([1.5, -1.0]))
    state = kernel.freeze(replace(state, law=wrong))
    for _ in range(20):
        points, pending = kernel.ask(state, rng)
        state, _ = kernel.tell(state, pending, problem.evaluate(points))
    z = linear_problem.standardized(state.ensemble.U)
    assert np.abs(z.mean(0)).max() < 4 * 0.022
    assert np.abs(np.log(z.std(0))).max() < 4 * 0.016
    assert state.archive is None  # the law does not learn any more
    assert state.law is wrong


def test_renewal_is_the_logarithm_of_what_has_stayed():
    assert renewal(0.0) == 0
    assert renewal(1 - np.exp(-1)) == pytest.approx(1)
    assert renewal(0.3) + renewal(0.2) == pytest.approx(renewal(1 - 0.7 * 0.8))
    assert np.isfinite(renewal(1.0))


def test_ensemble_that_does_not_move_is_not_at_rest():
    """A mean that stands still because nothing is accepted proves nothing."""
    problem = Values(lambda U: np.where(np.abs(U).max(1) > 0.01, 1e30, 0.0), [1.0, 1.0])
    rng = np.random.default_rng(1)
    kernel = DensityMetropolis(problem, 4)
    # so wide a law that no proposal is possible
    state = kernel.start(problem_ensemble(problem, 0.004 * rng.standard_normal((40, 2))))
    wide = replace(moment_law(Anomalies.of(1e6 * rng.standard_normal((40, 2)))))
    kernel = replace(kernel, moves={lambda g, p, law, rng: (g + 1.0, np.zeros(len(g))): 1.0})
    state = replace(state, law=wide)
    for _ in range(30):
        points, pending = kernel.ask(state, rng)
        state, _ = kernel.tell(state, pending, problem.evaluate(points))
    assert not state.burned_in


# -- from the prior to the posterior ------------------------------------------------------------


def test_twenty_dimensions_by_values_alone():
    """No ensemble that calls itself converged is off by half a standard deviation.

    Of 100 draws a mean has the standard error 0.1, and the largest of 20 is 0.25 on average.
    """
    problem = linear(20)
    for seed in range(5):
        draws, burn_in, state = run(Density(problem), seed, sweeps=3)
        assert state.converged
        assert burn_in < 4000
        error = (draws.mean((0, 1)) - problem.mean) / problem.sd
        assert np.abs(error).max() < 0.5
        assert np.sqrt((error**2).mean()) < 0.15


def test_counts_by_values_alone():
    problem = PoissonRegression()
    for seed in range(3):
        draws, burn_in, _ = run(Density(problem), seed, sweeps=15)
        assert burn_in < 3000
        np.testing.assert_allclose((draws.mean((0, 1)) - problem.mean) / problem.sd, 0, atol=0.2)
        np.testing.assert_allclose(draws.std((0, 1)) / problem.sd, 1, atol=0.15)


def moments(pieces):
    """Mean and standard deviation of a mixture of frozen laws, with weights."""
    total = sum(weight for weight, _ in pieces)
    mean = sum(weight * law.mean() for weight, law in pieces) / total
    square = sum(weight * (law.var() + law.mean() ** 2) for weight, law in pieces) / total
    return mean, np.sqrt(square - mean**2)


@pytest.mark.parametrize("seed", [1, 2])
def test_hard_edges(seed):
    """A likelihood that is zero on nine tenths of the prior, and flat elsewhere."""
    edge = norm.ppf(0.9)
    problem = Values(lambda U: np.where(U[:, 0] > edge, 0.0, 1e30), [1.0, 1.0])
    draws, _, state = run(problem, seed, sweeps=30)
    assert state.converged
    law = truncnorm(edge, np.inf)
    assert draws[..., 0].min() > edge
    z = (draws - [law.mean(), 0.0]) / [law.std(), 1.0]
    # at an acceptance of 0.4, 3000 draws are worth some 700
    assert np.abs(z.mean((0, 1))).max() < 4 / np.sqrt(700)
    np.testing.assert_allclose(z.std((0, 1)), 1, atol=0.15)


@pytest.mark.parametrize("seed", [1, 2])
def test_plateaus(seed):
    """Two levels of the likelihood: there is no slope anywhere."""
    problem = Values(lambda U: np.where(U[:, 0] > 1.5, -10.0, 0.0), [1.0, 1.0])
    draws, _, _ = run(problem, seed, sweeps=30)
    high = norm.sf(1.5) * np.exp(10.0)
    pieces = [(1 - norm.sf(1.5), truncnorm(-np.inf, 1.5)), (high, truncnorm(1.5, np.inf))]
    mean, sd = moments(pieces)
    z = (draws - [mean, 0.0]) / [sd, 1.0]
    assert np.abs(z.mean((0, 1))).max() < 4 / np.sqrt(600)
    np.testing.assert_allclose(z.std((0, 1)), 1, atol=0.15)


def test_scales_and_correlations():
    """Units from 1e-12 to 1e15, and a correlation of 0.999."""
    units = np.array([1e-12, 1.0, 1e15])
    R = np.linalg.inv([[1, 0.999, 0], [0.999, 1, 0], [0, 0, 1]]) / 0.01
    shift = np.array([1.0, 1.0, -1.0])

    def loss(U):
        e = U / units - shift
        return 0.5 * ((e @ R) * e).sum(1)

    C = np.linalg.inv(R + np.eye(3))
    mean, sd = C @ R @ shift, np.sqrt(np.diag(C))
    for seed in range(2):
        draws, burn_in, state = run(Values(loss, units), seed, sweeps=12)
        assert state.converged
        assert burn_in < 2000
        z = (draws / units - mean) / sd
        assert np.abs(z.mean((0, 1))).max() < 4 / np.sqrt(500)
        np.testing.assert_allclose(z.std((0, 1)), 1, atol=0.15)


# -- options ------------------------------------------------------------------------------------


def test_moves_are_always_tested():
    problem = Density(linear(2))
    sampler = EnsembleKalman(problem)
    assert sampler.origin(None).adjusted
    assert isinstance(sampler.kernel, DensityMetropolis)
    with pytest.raises(ValueError, match="rough=True fits the outputs of a forward map"):
        EnsembleKalman(problem, adjust=None, rough=True)
    with pytest.raises(ValueError, match="dt has no meaning"):
        EnsembleKalman(problem, adjust=None, rough=None, dt=1.0)
    with pytest.raises(ValueError, match="at least 8"):
        EnsembleKalman(problem, 6, adjust=None, rough=None)


def test_examination_refuses_a_noisy_density():
    noise = np.random.default_rng(5)
    problem = Values(lambda U: 5 * (U**2).sum(1) + 5 * noise.standard_normal(len(U)), [1.0, 1.0])
    with pytest.raises(EnsembleFailure, match=r"noisy or rough.*EnsembleGaussianProcessSampler"):
        run(problem, 1, adjust=None, rough=None)
    smooth = Values(lambda U: 5 * (U**2).sum(1), [1.0, 1.0])
    _, _, state = run(smooth, 1, adjust=None, rough=None)
    assert state.found is not None
    assert not state.found.rough


# -- modes --------------------------------------------------------------------------------------


def test_one_gaussian_is_not_divided():
    """Of 200 Gaussian clouds the criterion divides few, and it divides what has modes."""
    divided = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        U = rng.standard_normal((50, 2 + seed % 4))
        divided += bool(cluster_laws(U, Anomalies.of(U), rng))
    assert divided <= 4
    centers = np.array([[3.0, 3.0], [-3.0, 3.0], [3.0, -3.0], [-3.0, -3.0]])
    for seed in range(10):
        rng = np.random.default_rng(seed)
        U = np.repeat(centers, 20, axis=0) + 0.3 * rng.standard_normal((80, 2))
        laws = cluster_laws(U, Anomalies.of(U), rng)
        assert 4 <= len(laws) <= 5
        found = np.array([law.mean for law in laws])
        nearest = np.linalg.norm(centers[:, None] - found, axis=2).min(1)
        assert nearest.max() < 0.5


def test_masses_of_four_modes():
    """Narrow modes of unequal masses: an independent draw finds each of them."""
    centers = np.array([[1.5, 1.5], [-1.5, 1.5], [1.5, -1.5], [-1.5, -1.5]])
    masses = np.array([0.4, 0.3, 0.2, 0.1])

    def loss(U):
        squares = ((U[:, None] - centers) ** 2).sum(2) / (2 * 0.15**2)
        lowest = squares.min(1)
        terms = masses * np.exp(lowest[:, None] - squares)
        return lowest - np.log(terms.sum(1)) - 0.5 * (U**2).sum(1)  # the prior drops out

    for seed in range(3):
        draws, burn_in, _ = run(Values(loss, [1.0, 1.0]), seed, sweeps=30, size=200)
        assert burn_in < 8000
        U = draws.reshape(-1, 2)
        nearest = np.linalg.norm(U[:, None] - centers, axis=2).argmin(1)
        shares = np.bincount(nearest, minlength=4) / len(U)
        np.testing.assert_allclose(shares, masses, atol=0.1)
