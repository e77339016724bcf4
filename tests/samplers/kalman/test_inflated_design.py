from dataclasses import replace

import numpy as np
import pytest
from array_problems import (
    LinearProblem,
    PoissonRegression,
    burn_in,
    decay,
    oscillating,
    random_linear,
    step,
    sweeps,
    within,
)

from pymc_ensemble.samplers.kalman.inflated_design import (
    INFLATION_FACTOR,
    PRIOR_WIDTH,
    InflatedDesign,
    pooled_law,
)


def noisy(problem, rng, noise=1.0):
    """The same forward map with fresh white noise at every evaluation."""
    smooth = problem.forward_map
    problem.forward_map = lambda U: (Z := smooth(U)) + noise * rng.standard_normal(Z.shape)
    return problem


def started(problem, rng, J=60, spread=2.0):
    """State of the design around an ensemble that is `spread` times wider than the posterior."""
    U = problem.mean + spread * problem.sd * rng.standard_normal((J, problem.dimension))
    part = InflatedDesign(problem)
    return part, part.start(problem.ensemble(U))


# -- the pooled fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_pooled_law_of_a_linear_map_is_the_posterior(seed):
    """Wherever the points lie."""
    problem, rng = random_linear(4, seed), np.random.default_rng(seed)
    points = 5 * rng.standard_normal((30, 4)) + 3
    law = pooled_law(problem, points, problem.forward_map(points))
    np.testing.assert_allclose(law.mean, problem.mean, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(law.precision, problem.precision, rtol=1e-8)


def test_pooled_law_is_linearized_at_its_own_mean():
    """For linear outputs the gradient of the log posterior vanishes there."""
    problem, rng = PoissonRegression(), np.random.default_rng(0)
    points = problem.mean + 3 * problem.sd * rng.standard_normal((60, 5))
    law = pooled_law(problem, points, problem.forward_map(points))
    z = problem.forward_map(law.mean[None])
    gradient = problem.loss_gradient(z) @ problem.X + problem.prior_gradient(law.mean[None])
    np.testing.assert_allclose(gradient @ law.covariance / problem.sd, 0, atol=1e-2)
    precision = (problem.X.T * problem.curvature(z)[0]) @ problem.X + problem.P0
    np.testing.assert_allclose(law.precision, precision, rtol=1e-2, atol=0.05)


def test_white_noise_does_not_sharpen_the_pooled_law():
    """The noise of the slopes adds noise^2 K / n to the information in every direction of unit
    variance, here 20% of it; corrected for it, the mean over 500 replicas is that of the map."""
    problem, rng = random_linear(3), np.random.default_rng(1)
    points = rng.standard_normal((30, 3))
    points = (points - points.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    exact, noise = problem.forward_map(points), 1.0
    precisions = [
        pooled_law(problem, points, exact + noise * rng.standard_normal(exact.shape)).precision
        for _ in range(500)
    ]
    assert within(precisions, problem.precision)
    added = noise**2 * 5 / 30 * np.eye(3)
    assert not within(precisions, problem.precision + added)


class LogScale(LinearProblem):
    """Logarithm u of an exponential or half-normal variable that the outputs hardly know.

    The prior potential is e^(k u) / k - u with k = 1 or 2. Over a Gaussian law N(m, s^2) its mean
    is least at m = -k s^2 / 2, where the mean of its curvature is k.
    """

    gaussian_prior = False

    def __init__(self, k):
        super().__init__(np.array([[0.01]]), np.zeros(1), np.zeros(1), np.eye(1))
        self.k = k

    def prior_potential(self, U):
        return (np.exp(self.k * U) / self.k - U)[:, 0]

    def prior_gradient(self, U):
        return np.exp(self.k * U) - 1


@pytest.mark.parametrize("center", [-4.0, -0.5, 4.0])
def test_mean_of_a_pooled_law_balances_a_convex_prior(center):
    """Wherever the points lie, and however much wider than the posterior.

    On 2000 points the means of e^x and of its slope are known to 2%; the outputs add 1e-4.
    """
    problem, rng = LogScale(1), np.random.default_rng(0)
    points = center + 3 * rng.standard_normal((2000, 1))
    law = pooled_law(problem, points, problem.forward_map(points), inflation=3.0)
    np.testing.assert_allclose(law.mean, -0.5 * PRIOR_WIDTH**2, atol=0.04)
    np.testing.assert_allclose(law.covariance, 1, atol=0.06)


@pytest.mark.parametrize("center", [-40.0, 40.0])
def test_mean_of_a_pooled_law_stays_near_its_points(center):
    """Whole Newton steps lead dozens of widths away from them."""
    problem, rng = LogScale(1), np.random.default_rng(1)
    points = center + rng.standard_normal((50, 1))
    law = pooled_law(problem, points, problem.forward_map(points))
    distance = (law.mean - points.mean()) / points.std()
    assert 0 < distance * -np.sign(center) <= 2 + 1e-6


@pytest.mark.parametrize(("k", "mean", "sd"), [(1, -0.577, 1.283), (2, -0.635, 1.111)])
@pytest.mark.parametrize("seed", range(3))
def test_design_follows_a_prior_that_is_not_gaussian(k, mean, sd, seed):
    """Where that is all there is to know; it is skewed, and its left tail is exponential.

    Rounds of 100 particles that are renewed every few sweeps know the mean to .05 sd.
    """
    problem, rng = LogScale(k), np.random.default_rng(seed)
    part, start = InflatedDesign(problem), mean + sd * rng.standard_normal((100, 1))
    state, _ = burn_in(part, problem, part.start(problem.ensemble(start)), rng)
    assert state.converged
    state, snapshots = sweeps(part, problem, part.freeze(state), 40, rng)
    U = np.concatenate([s.U for s in snapshots])
    np.testing.assert_allclose(U.mean(), mean, atol=0.2 * sd)
    np.testing.assert_allclose(U.std(), sd, rtol=0.15)


# -- how far the design may reach -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_design_widens_on_a_linear_map_and_narrows_on_a_curved_one(seed):
    rng = np.random.default_rng(seed)
    part, state = started(noisy(random_linear(3), rng), rng)
    linear, _ = burn_in(part, part.problem, state, rng)
    assert linear.inflation > 4
    part, state = started(decay(), rng, J=100)
    curved, _ = burn_in(part, part.problem, state, rng)
    assert curved.inflation <= 3


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_design_settles_at_the_width_of_the_posterior(spread):
    """A noisy linear map, started far too narrow or too wide: neither collapse nor runaway.

    The design has the covariance of the law, whose information has a relative error of about
    noise / (width sqrt(n)), a few percent here.
    """
    for seed in range(5):
        rng = np.random.default_rng(seed)
        problem = noisy(random_linear(3), rng)
        part, state = started(problem, rng, spread=spread)
        state, _ = burn_in(part, problem, state, rng)
        widths = np.linalg.eigvals(state.root @ state.root.T @ problem.precision).real
        assert state.converged
        assert (widths > 0.7).all()
        assert (widths < 1.4).all()
        shift = np.linalg.cholesky(problem.precision).T @ (state.center - problem.mean)
        assert np.linalg.norm(shift) < 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("c", "curved"), [(0.0, False), (0.1, False), (1.0, True)])
def test_map_that_is_too_curved_for_a_linear_fit(seed, c, curved):
    """Outputs exp(c u0) u1, a scale times an effect, with a little noise of their own.

    The observations, -0.2 to 0.4, have an error of 1, and the prior of both is N(0, 1): by
    quadrature u0 is -0.07 +- 1.00 for c = 0.1, and -0.51 +- 0.87 for c = 1.
    """
    rng = np.random.default_rng(seed)
    A, data = np.array([[0.0, 1.0]] * 3), np.array([0.4, -0.2, 0.1])
    problem = LinearProblem(A, data, np.zeros(2), np.eye(2))
    problem.forward_map = lambda U: (
        (np.exp(c * U[:, :1]) * U[:, 1:]) * np.ones(3) + 0.02 * rng.standard_normal((len(U), 3))
    )
    part, state = started(problem, rng)
    state, _ = burn_in(part, problem, state, rng)
    assert state.burned_in
    assert state.curved == curved
    assert state.converged == (not curved)


def test_many_failures_narrow_the_design():
    """Beyond 2 posterior sd of u1 nothing can be evaluated: a third of a design 3 sd wide."""
    problem, rng = random_linear(2), np.random.default_rng(4)
    problem.failing(lambda U: np.abs(U[:, 0] - problem.mean[0]) > 2.9 * problem.sd[0])
    part, state = started(problem, rng, spread=1.0, J=100)
    state, _ = burn_in(part, problem, state, rng)
    assert INFLATION_FACTOR <= state.inflation < 3
    np.testing.assert_allclose(state.law.mean, problem.mean, atol=1e-6)


# -- sampling -------------------------------------------------------------------------------------


def test_finished_draws_follow_the_fitted_density():
    """They are redrawn with the last fit: twenty sweeps of 200 particles know the mean to .02 and
    the covariance to .04, if sweeps are nearly independent."""
    problem, rng = (
        noisy(oscillating(rough=False), np.random.default_rng(5)),
        np.random.default_rng(6),
    )
    part, state = started(problem, rng, J=200)
    state, _ = burn_in(part, problem, state, rng)
    state, snapshots = sweeps(part, problem, part.freeze(state), 20, rng)
    before = problem.n_evaluations
    finished = part.finish(state, snapshots, rng)
    assert problem.n_evaluations == before
    assert len(finished) == 20
    window = (np.concatenate(state.points), np.concatenate(state.outputs))
    law = pooled_law(problem, *window)
    U = np.concatenate([s.U for s in finished])
    x = (U - law.mean) @ np.linalg.cholesky(law.precision)
    np.testing.assert_allclose(x.mean(0), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(x.T), np.eye(2), atol=0.12)
    for snapshot in finished[:2]:  # lp is the density of the fitted model
        difference = snapshot.lp - law.log_density(snapshot.U)
        np.testing.assert_allclose(difference, difference[0], atol=1e-3)


def test_frozen_design_stays_and_its_fit_learns():
    problem, rng = noisy(random_linear(3), np.random.default_rng(7)), np.random.default_rng(8)
    part, state = started(problem, rng)
    state, _ = burn_in(part, problem, state, rng)
    frozen = part.freeze(state)
    later, snapshots = sweeps(part, problem, frozen, 10, rng)
    np.testing.assert_array_equal(later.center, frozen.center)
    np.testing.assert_array_equal(later.root, frozen.root)
    assert later.inflation == frozen.inflation
    assert len(np.concatenate(later.points)) == len(frozen.points[0]) + 600
    assert all(np.isfinite(s.lp).all() for s in snapshots)


@pytest.mark.parametrize("n_rounds", range(6))
def test_design_can_be_frozen_at_any_time(n_rounds):
    """After the start, and right after it was narrowed."""
    problem, rng = decay(roughness=1.0), np.random.default_rng(9)
    part, state = started(problem, rng, J=100)
    for _ in range(n_rounds):
        state, _ = step(part, problem, state, rng)
    narrowed = replace(state, inflation=state.inflation / 1.5)
    for candidate in (state, narrowed):
        frozen = part.freeze(candidate)
        after, info = step(part, problem, frozen, rng)
        assert info.snapshot is not None
        assert np.isfinite(after.ensemble.U).all()


def test_failures_are_left_out_of_the_pool():
    problem, rng = random_linear(3), np.random.default_rng(10)
    part, state = started(problem, rng)
    problem.failing(lambda U: np.arange(len(U)) % 3 == 0)
    state, info = step(part, problem, state, rng)
    assert info.n_failed == 20
    assert len(state.points[0]) == len(state.outputs[0]) == 40
    assert np.isfinite(state.outputs[0]).all()
    problem.failing(lambda U: np.ones(len(U), bool))
    after, info = step(part, problem, state, rng)
    assert not info.complete
    assert len(after.points) == len(state.points)
