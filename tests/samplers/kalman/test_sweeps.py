from dataclasses import replace

import numpy as np
import pytest
from array_problems import (
    FixedNoise,
    PoissonRegression,
    bimodal,
    changes,
    decay,
    random_linear,
    sample_bimodal,
    step,
    sweeps,
    truncated,
    within,
)

from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.kalman.metropolis import MixtureMetropolis
from pymc_ensemble.samplers.kalman.relaxation import (
    Relaxation,
    WholeRelaxation,
    pointwise_force,
    pointwise_step,
)
from pymc_ensemble.samplers.linearization import fit_law


@pytest.mark.parametrize("dt", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("J", [24, 28])
def test_split_halves_are_free_of_bias(J, dt):
    """For a linear problem the posterior is invariant at every step size and ensemble size.

    Twenty runs of forty sweeps, each from exact draws of the posterior: Monte Carlo sd of the
    pooled sd below .35%.
    """
    problem = random_linear(10)
    kernel, variances = Relaxation(problem, 12, dt), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        state = kernel.start(problem.ensemble(problem.sample_posterior(J, rng)))
        _, snapshots = sweeps(kernel, problem, state, 40, rng)
        x = problem.standardized(np.concatenate([s.U for s in snapshots]))
        variances.append((x**2).mean())
    assert within(variances, 1.0)
    assert abs(np.sqrt(np.mean(variances)) - 1) < 0.014


@pytest.mark.parametrize("dt", [0.3, 2.0, np.inf])
def test_would_be_acceptance_is_one_for_a_linear_problem(dt):
    problem, rng = random_linear(3), np.random.default_rng(0)
    kernel = Relaxation(problem, 5, dt)
    state = kernel.start(problem.ensemble(problem.sample_posterior(20, rng)))
    _, snapshots = sweeps(kernel, problem, state, 5, rng)
    for snapshot in snapshots:
        np.testing.assert_allclose(snapshot.acceptance, 1, atol=1e-8)
        constant = snapshot.lp - snapshot.log_q  # the normalizing constant
        np.testing.assert_allclose(constant, constant[0], atol=1e-8)


@pytest.mark.parametrize("kernel", [Relaxation, MixtureMetropolis])
def test_each_half_moves_with_the_other_half_as_it_is_now(kernel):
    problem, rng = decay(), np.random.default_rng(1)
    kernel = kernel(problem, 4)
    U = problem.mean + problem.sd * rng.standard_normal((21, 2))
    first = kernel.start(problem.ensemble(U))
    points, pending = kernel.ask(first, rng)
    moved = pending.index
    resting = np.setdiff1d(np.arange(21), moved)
    assert len(moved) == 10
    np.testing.assert_allclose(pending.law.anomalies.mean, U[resting].mean(0))
    second, info = kernel.tell(first, pending, problem.evaluate(points))
    assert not info.complete
    np.testing.assert_array_equal(second.ensemble.U[resting], U[resting])
    points, pending = kernel.ask(second, rng)
    np.testing.assert_array_equal(np.sort(pending.index), resting)
    np.testing.assert_allclose(pending.law.anomalies.mean, second.ensemble.U[moved].mean(0))
    assert not np.allclose(second.ensemble.U[moved].mean(0), U[moved].mean(0))
    third, info = kernel.tell(second, pending, problem.evaluate(points))
    assert info.complete
    assert info.snapshot.U is third.ensemble.U
    again = kernel.ask(third, rng)[1].index
    assert set(again) != set(moved)  # a new partition each sweep


def test_exact_draws_of_the_bimodal_posterior():
    """The known moments, so that the tests above start from what they say."""
    U = sample_bimodal(200_000, np.random.default_rng(0))
    np.testing.assert_allclose(U.var(0), 0.86584078, rtol=0.015)
    np.testing.assert_allclose(np.cov(U.T)[0, 1], 0.134159, atol=0.01)
    np.testing.assert_allclose(np.abs(U[:, 0] - U[:, 1]).mean(), 1.120759, rtol=0.01)


def test_adjusted_moves_leave_the_posterior_on_the_region_of_success_invariant():
    def fails(U):
        return U[:, 0] > 0.8

    problem = bimodal().failing(fails)
    kernel, draw = MixtureMetropolis(problem, 4), truncated(sample_bimodal, fails)
    assert within(changes(kernel, problem, draw, J=20, n_sweeps=3, replicas=300), 0.0)


def test_relaxation_leaves_the_posterior_on_the_region_of_success_invariant():
    """Failed members keep their position: with split halves the moves are reversible, so keeping
    is exact (0.2 of the posterior's mass fails)."""
    problem = random_linear(2)

    def fails(U):
        return U[:, 0] > problem.mean[0] + 0.84 * problem.sd[0]

    problem.failing(fails)
    kernel, draw = Relaxation(problem, 4, 1.0), truncated(problem.sample_posterior, fails)
    assert within(changes(kernel, problem, draw, J=20, n_sweeps=4, replicas=300), 0.0)


def test_failed_members_keep_everything():
    problem, rng = random_linear(2), np.random.default_rng(2)
    kernel = Relaxation(problem, 4)
    state = kernel.start(problem.ensemble(problem.sample_posterior(20, rng)))
    problem.fails = lambda U: np.arange(len(U)) < 3
    after, info = step(kernel, problem, state, rng)
    unmoved = (after.ensemble.U == state.ensemble.U).all(1)
    assert info.n_failed == 3
    assert unmoved.sum() == 10 + 3  # the other half, and the failed
    np.testing.assert_array_equal(after.ensemble.Z[unmoved], state.ensemble.Z[unmoved])
    np.testing.assert_array_equal(after.ensemble.loss[unmoved], state.ensemble.loss[unmoved])


@pytest.mark.parametrize("kernel", [Relaxation, WholeRelaxation, MixtureMetropolis])
def test_a_round_of_failures_moves_nothing(kernel):
    problem, rng = random_linear(2), np.random.default_rng(3)
    kernel = kernel(problem, 4)
    state = kernel.start(problem.ensemble(problem.sample_posterior(20, rng)))
    problem.fails = lambda U: np.ones(len(U), bool)
    after, info = step(kernel, problem, state, rng)
    assert info.n_failed == info.n_evaluations
    np.testing.assert_array_equal(after.ensemble.U, state.ensemble.U)


@pytest.mark.parametrize("kernel", [Relaxation, WholeRelaxation])
def test_untested_moves_do_not_leave_for_the_far_tail(kernel):
    """A law that is far too wide cannot throw the particles away."""
    problem, rng = random_linear(2), np.random.default_rng(5)
    state = kernel(problem, 4).start(problem.ensemble(problem.sample_posterior(20, rng)))
    part = kernel(problem, 4)
    points, pending = part.ask(state, rng)
    far = problem.mean + 1e3 * problem.sd * np.ones((len(points), 1))
    pending = replace(pending, points=far)
    after, _ = part.tell(state, pending, problem.evaluate(far))
    np.testing.assert_array_equal(after.ensemble.U, state.ensemble.U)


def test_too_few_plausible_partners_is_an_error():
    problem, rng = random_linear(2), np.random.default_rng(4)
    kernel = Relaxation(problem, 4)
    for n_ok in (0, 3):
        problem.fails = lambda U, n=n_ok: np.arange(len(U)) >= n
        state = kernel.start(problem.ensemble(problem.sample_posterior(20, rng)))
        with pytest.raises(EnsembleFailure, match="4 are needed"):
            kernel.ask(state, rng)


def test_pointwise_force_of_a_gaussian_linear_problem_is_the_linear_one():
    problem, rng = random_linear(3), np.random.default_rng(5)
    ensemble = problem.ensemble(problem.sample_posterior(20, rng))
    group, partners = ensemble[:10], ensemble[10:]
    law = fit_law(problem, partners)
    force = pointwise_force(problem, law, group)
    np.testing.assert_allclose(force, law.linear_force(law.map.coordinates(group.U)), atol=1e-9)
    assert pointwise_step(problem, ensemble) == (False, np.inf)


def test_pointwise_force_is_the_gradient_for_linear_outputs():
    """-C grad V(u) wherever the force is not clipped: the slope of a linear map is exact."""
    problem, rng = PoissonRegression(), np.random.default_rng(6)
    U = problem.mean + 0.5 * problem.sd * rng.standard_normal((40, 5))
    ensemble = problem.ensemble(U)
    group, partners = ensemble[:20], ensemble[20:]
    law = fit_law(problem, partners)
    force = pointwise_force(problem, law, group)
    gradient = problem.loss_gradient(group.Z) @ problem.X + problem.prior_gradient(group.U)
    np.testing.assert_allclose(force, -gradient @ law.anomalies.L, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("distance", [0.3, 300.0])
def test_pointwise_force_uses_each_output_within_bounds(distance):
    """-(slope^T grad loss(z_i) + L^T grad V0(u_i)), but at most 2 sqrt(d) off the linear force."""
    problem, rng = decay(), np.random.default_rng(10)
    U = problem.mean + problem.sd * rng.standard_normal((30, 2))
    partners = problem.ensemble(U)
    group = problem.ensemble(problem.mean + distance * problem.sd * np.array([[1.0, -1], [0, 1]]))
    law = fit_law(problem, partners)
    force = pointwise_force(problem, law, group)
    slope = (partners.Z - partners.Z.mean(0)).T @ law.anomalies.Q / np.sqrt(30)
    gradient = problem.loss_gradient(group.Z) @ slope
    own = -gradient - problem.prior_gradient(group.U) @ law.anomalies.L
    linear = law.linear_force(law.map.coordinates(group.U))
    size = np.linalg.norm(own - linear, axis=1, keepdims=True)
    assert (size > 2 * np.sqrt(2)).all() == (distance == 300.0)
    expected = linear + (own - linear) * np.minimum(1, 2 * np.sqrt(2) / size)
    np.testing.assert_allclose(force, expected, rtol=1e-8)


def test_pointwise_force_is_chosen_where_the_loss_is_to_blame():
    rng = np.random.default_rng(7)
    problem = PoissonRegression()
    U = problem.mean + problem.sd * rng.standard_normal((100, 5))
    pointwise, dt = pointwise_step(problem, problem.ensemble(U))
    assert pointwise
    assert 0 < dt < np.inf
    problem = decay(noise=0.3)
    U = problem.mean + problem.sd * rng.standard_normal((100, 2))
    assert not pointwise_step(problem, problem.ensemble(U))[0]


def test_an_implausible_member_does_not_count_for_the_pointwise_force():
    problem, rng = PoissonRegression(), np.random.default_rng(8)
    U = problem.mean + problem.sd * rng.standard_normal((20, 5))
    far = np.vstack([U, problem.mean + 3.0])
    kernel = Relaxation(problem, 7)
    state = kernel.start(problem.ensemble(np.vstack([far, U])))
    assert state.pointwise
    step(kernel, problem, state, rng)
    assert pointwise_step(problem, problem.ensemble(np.vstack([far, U])))[0]


@pytest.mark.parametrize("J", [6, 7])
def test_small_ensembles_move_as_a_whole_with_their_correction(J):
    """Drift -C P (u - m) + (d + 1) / J (u - mean) over a short time, all members at once."""
    problem, rng, dt = random_linear(3), np.random.default_rng(9), 1e-6
    kernel = WholeRelaxation(problem, 5, dt)
    U = problem.sample_posterior(J, rng)
    state = kernel.start(problem.ensemble(U))
    points, pending = kernel.ask(state, FixedNoise(0.0))
    C = np.cov(U.T, bias=True)
    drift = -(U - problem.mean) @ problem.precision @ C + 4 / J * (U - U.mean(0))
    velocity = (points - U[pending.index]) / dt
    np.testing.assert_allclose(velocity, drift[pending.index], rtol=1e-4, atol=1e-4)
    _, info = kernel.tell(state, pending, problem.evaluate(points))
    assert info.complete


def test_small_ensembles_are_right_to_a_few_percent():
    """With the correction the law is that of the posterior as dt -> 0; without it the variance
    would be (J - d - 1) / J = .33. Forty runs: Monte Carlo sd of the variance 2%."""
    problem, variances = random_linear(3), []
    kernel = WholeRelaxation(problem, 5, 0.05)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        state = kernel.start(problem.ensemble(problem.sample_posterior(6, rng)))
        _, snapshots = sweeps(kernel, problem, state, 60, rng)
        x = problem.standardized(np.concatenate([s.U for s in snapshots]))
        variances.append((x**2).mean())
    assert abs(np.mean(variances) - 1) < 0.15


def test_ensembles_in_a_subspace_have_the_conditional_posterior():
    """Within its span of rank r = J - 1 the ensemble follows the posterior restricted to the span.

    With d + 1 instead of r + 1 in the correction the variance would be
    (J - 1 + d - r) / (J - 1) = 2.2 times as large.
    """
    problem, J, ratios = random_linear(12), 6, []
    kernel = WholeRelaxation(problem, 3)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        state = kernel.start(problem.ensemble(problem.sample_posterior(J, rng)))
        law = fit_law(problem, state.ensemble)
        L = law.anomalies.L
        precision = L.T @ problem.precision @ L  # of the coordinates in the span
        center = np.linalg.solve(
            precision, L.T @ problem.precision @ (problem.mean - law.anomalies.mean)
        )
        _, snapshots = sweeps(kernel, problem, state, 400, rng)
        x = law.map.coordinates(np.concatenate([s.U for s in snapshots[50:]])) - center
        ratios.append(np.trace(precision @ (x.T @ x)) / len(x) / (J - 1))
    assert abs(np.mean(ratios) - 1) < 0.3
