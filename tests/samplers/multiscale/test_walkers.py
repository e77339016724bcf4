import pickle
from dataclasses import replace

import numpy as np
import pytest
from array_problems import (
    Density,
    LinearProblem,
    PoissonRegression,
    decay,
    random_linear,
    sample_density,
    step,
    sweeps,
    within,
)
from scipy.stats import kstest, multivariate_normal

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.langevin_steps import clipped
from pymc_ensemble.samplers.multiscale.explorers import Explorers, Preconditioner, haar_frames
from pymc_ensemble.samplers.multiscale.walkers import MAX_REJECTIONS, Walkers
from pymc_ensemble.samplers.options import PATIENCE

PLAIN = 1e-3  # distance of explorers where their differences are all but exact


def exact(problem):
    """The covariance of the posterior of a linear problem as preconditioner."""
    return Preconditioner(problem.mean, np.linalg.cholesky(problem.covariance))


def measure(explorers, U, root, rng):
    """Measurement at `U` with fresh directions, and the directions."""
    directions = explorers.directions(len(U), rng)
    points = explorers.points(U, directions, root)
    evaluations = explorers.problem.evaluate(points)
    return explorers.measure(points, evaluations, directions, root), directions


def gradient(problem, U, e=1e-5):
    """Of the potential, by differences along the coordinates."""

    def potential(U):
        return problem.loss(problem.evaluate(U).outputs) + problem.prior_potential(U)

    steps = e * np.eye(problem.dimension)
    return np.stack([(potential(U + s) - potential(U - s)) / (2 * e) for s in steps], axis=1)


# -- preconditioner -----------------------------------------------------------------------------


def test_covariance_of_many_points():
    problem, rng = random_linear(3), np.random.default_rng(0)
    points = problem.sample_posterior(200, rng)
    preconditioner = Preconditioner.of_points(points)
    np.testing.assert_allclose(preconditioner.root @ preconditioner.root.T, np.cov(points.T))
    np.testing.assert_allclose(np.cov(preconditioner.normalized(points).T), np.eye(3), atol=1e-12)
    law = multivariate_normal(points.mean(0), np.cov(points.T))
    np.testing.assert_allclose(preconditioner.log_density(points), law.logpdf(points))


def test_covariance_of_few_points_is_shrunk_to_its_diagonal():
    points = np.random.default_rng(0).standard_normal((4, 6)) * np.arange(1, 7)
    preconditioner = Preconditioner.of_points(points)
    K, sample = preconditioner.root @ preconditioner.root.T, np.cov(points.T)
    np.testing.assert_allclose(np.diag(K), np.diag(sample))
    np.testing.assert_allclose(K[0, 1], 4 / 24 * sample[0, 1])


def test_one_dimension():
    preconditioner = Preconditioner.of_points(np.arange(5.0)[:, None])
    assert preconditioner.root[0, 0] == pytest.approx(np.sqrt(2.5))


# -- directions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("J", "d"), [(1, 1), (3, 3), (6, 3), (10, 10)])
def test_complete_frames_are_even(J, d):
    frames = haar_frames(7, J, d, np.random.default_rng(0))
    assert frames.shape == (7, J, d)
    second = np.einsum("mji,mjk->mik", frames, frames) / J
    np.testing.assert_allclose(second, np.broadcast_to(np.eye(d), (7, d, d)), atol=1e-12)


def test_incomplete_frames_are_orthogonal():
    frames = haar_frames(5, 4, 6, np.random.default_rng(0))
    products = frames @ np.swapaxes(frames, 1, 2)
    np.testing.assert_allclose(products, np.broadcast_to(6 * np.eye(4), (5, 4, 4)), atol=1e-12)


def test_frames_are_haar_distributed():
    """LAPACK alone returns reflections whose first entries are negative."""
    frames = haar_frames(20_000, 3, 3, np.random.default_rng(0)) / np.sqrt(3)
    assert within(frames, 0.0)
    # a coordinate of a uniform point on the sphere in three dimensions is uniform itself
    for j in range(3):
        for i in range(3):
            assert kstest(frames[:, j, i], "uniform", (-1, 2)).pvalue > 1e-5
    assert within(np.linalg.det(frames), 0.0)


# -- measured drift -----------------------------------------------------------------------------


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("make", [lambda: random_linear(4), PoissonRegression])
def test_full_frame_measures_the_gradient(make, central):
    """For a linear map every distance is small enough, whatever the loss and the prior."""
    problem, rng = make(), np.random.default_rng(1)
    d = problem.dimension
    U = problem.sample_prior(5, rng)
    root = np.tril(rng.standard_normal((d, d))) + 3 * np.eye(d)
    explorers = Explorers(problem, d, 0.7, central)
    assert explorers.cloud_size == (2 * d + 1 if central else d + 1)
    measurement, _ = measure(explorers, U, root, rng)
    expected = -gradient(problem, U) @ root
    np.testing.assert_allclose(measurement.drift, expected, rtol=1e-6, atol=1e-6)
    assert measurement.heard.all()
    np.testing.assert_array_equal(measurement.centers.U, U)


@pytest.mark.parametrize("J", [1, 3])
def test_fewer_directions_are_right_on_average(J):
    problem, rng = random_linear(4), np.random.default_rng(1)
    U = np.repeat(problem.sample_prior(1, rng), 4000, axis=0)
    measurement, _ = measure(Explorers(problem, J, 0.5), U, np.eye(4), rng)
    assert within(measurement.drift, -gradient(problem, U[:1])[0])


def test_independent_directions_take_the_slope_of_the_prior_too():
    """-(1/J) sum_j <xi_j, gradient of the whole potential> xi_j."""
    problem, rng = random_linear(3), np.random.default_rng(1)
    U, root = problem.sample_prior(6, rng), 0.5 * np.eye(3)
    measurement, xi = measure(Explorers(problem, 8, 0.5, independent=True), U, root, rng)
    slopes = np.einsum("mjd,md->mj", xi, gradient(problem, U) @ root)
    expected = -np.einsum("mj,mjd->md", slopes, xi) / 8
    np.testing.assert_allclose(measurement.drift, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(np.einsum("mji,mjk->mik", xi, xi) / 8 - np.eye(3)).max() > 0.1


def sigma_errors(problem, J, central, both_signs, distances=(0.02, 0.01)):
    """Largest errors of the drift at two distances along the same directions."""
    rng = np.random.default_rng(2)
    U, found = 0.3 * rng.standard_normal((20, 2)), []
    directions = haar_frames(20, J, 2, rng)
    for sigma in distances:
        explorers, drifts = Explorers(problem, J, sigma, central), []
        for sign in (1, -1) if both_signs else (1,):
            points = explorers.points(U, sign * directions, np.eye(2))
            values = problem.evaluate(points)
            drifts.append(explorers.measure(points, values, sign * directions, np.eye(2)).drift)
        found.append(np.abs(np.mean(drifts, axis=0) + gradient(problem, U)).max())
    return found


@pytest.mark.parametrize(
    ("central", "both_signs", "order"), [(False, False, 1), (True, False, 2), (False, True, 2)]
)
@pytest.mark.parametrize("hidden", [False, True])
def test_error_shrinks_with_the_distance(central, both_signs, order, hidden):
    """One-sided differences have the first order, and the second on average over their signs."""
    problem = decay(noise=0.3)
    large, small = sigma_errors(Density(problem) if hidden else problem, 2, central, both_signs)
    assert np.log2(large / small) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("central", [False, True])
def test_failed_explorers_are_left_out(central):
    problem, rng = random_linear(3), np.random.default_rng(1)
    explorers, U = Explorers(problem, 3, 0.5, central), problem.sample_prior(2, rng)
    directions = explorers.directions(2, rng)
    points = explorers.points(U, directions, np.eye(3))
    Z = problem.evaluate(points).outputs
    Z[2] = np.nan  # second explorer of the first walker
    drift = explorers.measure(points, Evaluations.from_outputs(Z), directions, np.eye(3)).drift
    heard, prior = directions[0, [0, 2]], problem.prior_gradient(U[:1])[0]
    slopes = heard @ (gradient(problem, U)[0] - prior)
    np.testing.assert_allclose(drift[0], -slopes @ heard / 2 - prior, rtol=1e-6)
    np.testing.assert_allclose(drift[1], -gradient(problem, U)[1], rtol=1e-6)


def silenced(problem, walkers, rng):
    """Three walkers, evaluated, and what happens if all explorers of one of them fail."""
    kernel, state = walkers_at(problem, problem.sample_posterior(3, rng), 0.1, 2, **walkers)
    points, pending = kernel.ask(state, rng)
    Z = problem.evaluate(points).outputs
    Z[[1, 2]] = np.nan
    return state, *kernel.tell(
        state, replace(pending, uniforms=np.zeros(3)), Evaluations.from_outputs(Z)
    )


def test_walker_without_any_explorer():
    """The test judges what the Gaussian law proposes; without a test the walker stays."""
    problem, rng = random_linear(2), np.random.default_rng(1)
    state, new, info = silenced(problem, {}, rng)
    np.testing.assert_array_equal(new.U[0], state.U[0])
    assert info.snapshot.acceptance[0] == 0
    state, new, info = silenced(problem, {"adjust": True}, rng)
    assert (new.U[0] != state.U[0]).all()
    assert info.snapshot.acceptance[0] > 0
    law = new.preconditioner
    np.testing.assert_allclose(new.measurement.drift[0], -law.normalized(new.U - law.mean)[0])
    assert new.measurement.heard.tolist() == [False, True, True]


def test_adjusted_walkers_reach_a_wall():
    """Behind it nothing can be evaluated; the only explorer looks there half of the time."""
    problem = LinearProblem(np.array([[0.1]]), [0.0], [0.0], [[1.0]])
    problem.failing(lambda U: U[:, 0] < 0)
    rng = np.random.default_rng(0)
    U = np.abs(rng.standard_normal((4000, 1))) * problem.sd
    law = Preconditioner(np.zeros(1), np.ones((1, 1)))
    kernel, state = walkers_at(problem, U, 0.3, 1, 0.5, preconditioner=law, adjust=True, rng=rng)
    state, _ = sweeps(kernel, problem, state, 25, rng)
    assert kstest(state.U[:, 0] / problem.sd[0], "halfnorm").pvalue > 1e-4
    assert not np.isin(state.U, U).any()


def test_no_slope_leads_to_where_the_density_is_zero():
    class HalfPlane(Density):
        def loss(self, Z):
            return np.where(Z[:, 0] > 1e290, np.inf, Z[:, 0])

    problem = HalfPlane(random_linear(2))
    problem.evaluate = lambda U: Evaluations.from_outputs(np.where(U[:, :1] > 0, 0.0, 1e300))
    explorers = Explorers(problem, 2, 0.1, central=False)
    U, directions = np.array([[0.05, 0.0]]), np.array([[[-1.4, 0.0], [0.0, 1.4]]])
    points = explorers.points(U, directions, np.eye(2))
    measurement = explorers.measure(points, problem.evaluate(points), directions, np.eye(2))
    np.testing.assert_allclose(measurement.drift, -problem.prior_gradient(U))


def test_clip():
    drift = np.array([[3.0, 4.0], [300.0, 400.0], [0.0, 0.0]])
    longest = 2 * (np.sqrt(2) + 3)
    np.testing.assert_allclose(
        clipped(drift, 1.5), [[3, 4], [0.6 * longest, 0.8 * longest], [0, 0]]
    )
    np.testing.assert_allclose(clipped(drift, 0.25)[1], [1.2 * longest, 1.6 * longest])


# -- steps --------------------------------------------------------------------------------------


def walkers_at(
    problem, U, h, n_directions, sigma=PLAIN, *, preconditioner=None, rng=None, **options
):
    """Evaluated walkers with these settings: kernel and state."""
    independent = not options.get("averaged", True) and options.pop("independent", True)
    central = options.pop("central", False)
    explorers = Explorers(problem, n_directions, sigma, central, independent)
    kernel = Walkers(explorers, **options)
    state = kernel.start(U, preconditioner or exact(problem), h)
    state, info = step(kernel, problem, state, rng or np.random.default_rng(9))
    assert not info.complete
    assert info.snapshot is None
    return kernel, state


@pytest.mark.parametrize("central", [False, True])
def test_a_step_is_one_batch_of_all_clouds(central):
    problem = random_linear(3)
    U = problem.sample_posterior(5, np.random.default_rng(0))
    kernel, state = walkers_at(problem, U, 0.3, 2, central=central)
    points, pending = kernel.ask(state, np.random.default_rng(1))
    cloud = 5 if central else 3
    assert points.shape == (5 * cloud, 3)
    _, info = kernel.tell(state, pending, problem.evaluate(points))
    assert info.n_evaluations == 5 * cloud
    assert info.complete


def test_averaged_step_by_its_formula():
    problem, rng = random_linear(3), np.random.default_rng(0)
    U = problem.sample_posterior(4, rng)
    kernel, state = walkers_at(problem, U, 0.3, 3)
    root, last = state.preconditioner.root, state.noise
    for _ in range(3):
        points, pending = kernel.ask(state, rng)
        drift = -gradient(problem, state.U) @ root
        expected = state.U + (0.3 * drift + np.sqrt(0.15) * (last + pending.noise)) @ root.T
        np.testing.assert_allclose(points[::4], expected, atol=1e-6)
        last = pending.noise
        state, info = kernel.tell(state, pending, problem.evaluate(points))
        np.testing.assert_array_equal(info.snapshot.U, state.U)
        np.testing.assert_allclose(state.U, points[::4])
        lp = -problem.loss(problem.forward_map(state.U)) - problem.prior_potential(state.U)
        np.testing.assert_allclose(info.snapshot.lp, lp)
        assert info.snapshot.step_size == 0.3
        law = multivariate_normal(problem.mean, problem.covariance)
        np.testing.assert_allclose(info.snapshot.log_q, law.logpdf(state.U))


def test_published_step_by_its_formula():
    problem, rng = random_linear(3), np.random.default_rng(0)
    U = problem.sample_posterior(4, rng)
    kernel, state = walkers_at(problem, U, 0.3, 5, averaged=False)
    points, pending = kernel.ask(state, rng)
    root = state.preconditioner.root
    expected = U + (0.3 * state.measurement.drift + np.sqrt(0.6) * pending.noise) @ root.T
    np.testing.assert_allclose(points[::6], expected)


@pytest.mark.parametrize("h", [0.2, 0.5, 1.0])
def test_averaged_steps_have_the_law_of_a_linear_problem(h):
    """Whatever the step size is; Euler-Maruyama would be off by 5, 15 and 41 %."""
    problem, rng = random_linear(4), np.random.default_rng(3)
    U = problem.sample_posterior(4000, rng)
    skewed = np.linalg.cholesky(problem.covariance) @ np.diag([0.7, 0.9, 1.1, 1.2])
    kernel, state = walkers_at(
        problem, U, h, 4, preconditioner=Preconditioner(problem.mean, skewed), rng=rng
    )
    state, _ = sweeps(kernel, problem, state, int(4 / h), rng)
    state, snapshots = sweeps(kernel, problem, state, 15, rng)
    x = problem.standardized(np.array([s.U for s in snapshots]))
    assert within(x.mean(0), 0.0)
    assert within((x**2).mean((0, 2)), 1.0)
    assert abs(np.sqrt((x**2).mean()) - 1) < 0.015


def euler_variance(h, d=1, J=np.inf):
    """Of Euler-Maruyama steps with J independent directions and the ideal preconditioner.

    With S = (1/J) sum_j xi_j xi_j^T it is E[S^2] = (1 + (d + 1) / J) I in
    s = s E[(I - h S)^2] + 2 h.
    """
    return 2 / (2 - h * (1 + (d + 1) / J))


@pytest.mark.parametrize(("h", "J"), [(0.2, 4), (0.2, 2), (0.5, None)])
def test_published_steps_have_their_known_bias(h, J):
    """It grows with the step size and shrinks with the number of directions."""
    problem, rng, M = random_linear(2), np.random.default_rng(3), 4000
    U = problem.sample_posterior(M, rng)
    kernel, state = walkers_at(
        problem, U, h, J or 2, averaged=False, independent=J is not None, rng=rng
    )
    state, _ = sweeps(kernel, problem, state, int(4 / h), rng)
    state, snapshots = sweeps(kernel, problem, state, 15, rng)
    squares = (problem.standardized(np.array([s.U for s in snapshots])) ** 2).mean((0, 2))
    expected = euler_variance(h, 2, J or np.inf)
    assert within(squares, expected)
    assert 4 * squares.std() / np.sqrt(M) < 0.5 * (expected - euler_variance(h) if J else 0.3)


@pytest.mark.parametrize("delta", [0.0, 0.7, 3.0])
def test_relaxation_of_the_directions(delta):
    problem, rng = random_linear(2), np.random.default_rng(3)
    U = problem.sample_posterior(5000, rng)
    kernel, state = walkers_at(problem, U, 0.4, 2, averaged=False, delta=delta, rng=rng)
    first = state.directions
    state, _ = sweeps(kernel, problem, state, 1, rng)
    second = state.directions
    kept = np.exp(-0.4 / delta**2) if delta else 0.0
    products = (first * second).reshape(-1)
    assert within(products, kept)
    assert within((second**2).reshape(-1), 1.0)


# -- Metropolis test ----------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [False, True])
def test_adjusted_steps_keep_a_posterior_with_one_distant_explorer(hidden):
    """Started in the posterior of the decay they stay there; without the test they would not."""
    smooth, rng = decay(), np.random.default_rng(5)
    problem = Density(smooth) if hidden else smooth
    start = sample_density(smooth, [-0.2, -0.9], [0.8, 0.5], 4000, rng)
    preconditioner, outcomes = Preconditioner.of_points(start), {}
    for adjust in (True, False):
        kernel, state = walkers_at(
            problem, start, 0.4, 1, 1.0, preconditioner=preconditioner, adjust=adjust, rng=rng
        )
        directions = state.directions
        state, snapshots = sweeps(kernel, problem, state, 25, rng)
        if adjust:
            np.testing.assert_array_equal(state.directions, directions)
            acceptance = np.mean([s.acceptance for s in snapshots])
            assert 0.3 < acceptance < 0.9
        x = (state.U - smooth.mean) / smooth.sd
        outcomes[adjust] = (
            within(x, 0.0) and within(x**2, 1.0) and within(x[:, 0] * x[:, 1], 0.73681)
        )
    assert outcomes == {True: True, False: False}


def test_adjusted_acceptance_by_its_formula():
    problem, rng = decay(noise=0.3), np.random.default_rng(0)
    h, U = 0.3, problem.mean + 0.2 * rng.standard_normal((50, 2))
    root = np.array([[0.3, 0.0], [0.2, 0.25]])
    kernel, state = walkers_at(
        problem, U, h, 2, preconditioner=Preconditioner(problem.mean, root), adjust=True
    )
    points, pending = kernel.ask(state, rng)
    new, info = kernel.tell(state, pending, problem.evaluate(points))
    V, f = points[::3], state.measurement.drift
    there = kernel.explorers.measure(points, problem.evaluate(points), state.directions, root).drift

    def potential(U):
        return problem.loss(problem.forward_map(U)) + problem.prior_potential(U)

    def log_q(to, start, drift):
        e = np.linalg.solve(root, (to - start).T).T - h * drift
        return -(e**2).sum(1) / (4 * h)

    log_alpha = potential(U) - potential(V) + log_q(U, V, there) - log_q(V, U, f)
    np.testing.assert_allclose(info.snapshot.acceptance, np.minimum(1, np.exp(log_alpha)))
    accepted = pending.uniforms < info.snapshot.acceptance
    assert 0 < accepted.sum() < 50
    np.testing.assert_array_equal(new.U, np.where(accepted[:, None], V, U))


# -- failures -----------------------------------------------------------------------------------


def test_walker_whose_move_fails_stays():
    problem, rng = random_linear(2), np.random.default_rng(0)
    kernel, state = walkers_at(problem, problem.sample_posterior(3, rng), 0.3, 2)
    points, pending = kernel.ask(state, rng)
    Z = problem.evaluate(points).outputs
    Z[3] = np.nan  # the second walker
    new, info = kernel.tell(state, pending, Evaluations.from_outputs(Z))
    np.testing.assert_array_equal(new.U[1], state.U[1])
    np.testing.assert_allclose(new.U[[0, 2]], points[[0, 6]])
    np.testing.assert_array_equal(new.measurement.drift[1], state.measurement.drift[1])
    np.testing.assert_array_equal(new.noise[1], state.noise[1])
    assert info.snapshot.acceptance[1] == 0
    assert info.n_failed == 1


@pytest.mark.parametrize("adjust", [False, True])
def test_an_explorer_that_fails_has_the_slope_of_the_gaussian_law(adjust):
    """Of a linear map it is the true one. Without a test the others have to do."""
    problem, rng = random_linear(3), np.random.default_rng(0)
    kernel, state = walkers_at(problem, problem.sample_posterior(4, rng), 0.3, 3, adjust=adjust)
    points, pending = kernel.ask(state, rng)
    Z = problem.evaluate(points).outputs
    known, _ = kernel.tell(state, pending, Evaluations.from_outputs(Z))
    Z[1::4] = np.nan  # the first explorers of all walkers
    new, _ = kernel.tell(state, pending, Evaluations.from_outputs(Z))
    measured = kernel.explorers.measure(
        points, Evaluations.from_outputs(Z), pending.directions, state.preconditioner.root
    )
    if adjust:
        np.testing.assert_allclose(new.measurement.drift, known.measurement.drift, atol=1e-6)
    else:
        np.testing.assert_array_equal(new.measurement.drift, measured.drift)
        assert np.abs(measured.drift - known.measurement.drift).max() > 0.1


def test_walker_that_fails_where_it_starts():
    """For good it ends the run; by bad luck it is tried again, by itself."""
    problem = random_linear(2).failing(lambda U: U[:, 0] > 100)
    kernel, rng = Walkers(Explorers(problem, 2, PLAIN)), np.random.default_rng(0)
    state = kernel.start(np.array([[0.0, 0.0], [200.0, 0.0]]), exact(problem), 0.3)
    for _ in range(PATIENCE - 1):
        state, info = step(kernel, problem, state, rng)
        assert info.snapshot is None
    with pytest.raises(
        EnsembleFailure,
        match=f"1 of 2 walkers found no start where the forward map works, in {PATIENCE} tries",
    ):
        step(kernel, problem, state, rng)
    problem, U = random_linear(2), np.zeros((2, 2))
    state = kernel.start(U, exact(problem), 0.3)
    for unlucky in (0, 3, None):  # the first walker, then the other one, which was known already
        points, pending = kernel.ask(state, rng)
        Z = problem.evaluate(points).outputs
        if unlucky is not None:
            Z[unlucky] = np.nan
        state, _ = kernel.tell(state, pending, Evaluations.from_outputs(Z))
    assert state.rejected == 0
    np.testing.assert_allclose(state.measurement.centers.U[:, 0][1], state.U[1, 0])


def test_all_walkers_fail_for_long():
    problem, rng = random_linear(2), np.random.default_rng(0)
    kernel, state = walkers_at(problem, problem.sample_posterior(3, rng), 0.3, 2)
    problem.failing(lambda U: np.ones(len(U), bool))
    for n in range(1, MAX_REJECTIONS):
        state, _ = step(kernel, problem, state, rng)
        assert state.rejected == n
    with pytest.raises(EnsembleFailure, match=f"failed in {MAX_REJECTIONS} steps in a row"):
        step(kernel, problem, state, rng)


# -- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"adjust": True}, {"averaged": False, "delta": 0.5}])
def test_states_are_values(options):
    """They pickle, what comes later does not change them, and the seed decides all."""
    problem = random_linear(3)
    U = problem.sample_posterior(4, np.random.default_rng(0))
    before = U.copy()
    kernel, state = walkers_at(problem, U, 0.3, 3, **options)
    stored = pickle.dumps(state)
    paths = []
    for origin in (state, pickle.loads(stored), state):
        _, snapshots = sweeps(kernel, problem, origin, 5, np.random.default_rng(7))
        paths.append([s.U for s in snapshots])
    np.testing.assert_array_equal(paths[0], paths[1])
    np.testing.assert_array_equal(paths[0], paths[2])
    np.testing.assert_array_equal(U, before)
    assert pickle.dumps(state) == stored
    assert not np.array_equal(paths[0][0], paths[0][1])


def test_pending_rounds_pickle():
    problem, rng = random_linear(3), np.random.default_rng(0)
    kernel, state = walkers_at(problem, problem.sample_posterior(4, rng), 0.3, 3)
    points, pending = kernel.ask(state, rng)
    values = problem.evaluate(points)
    one, _ = kernel.tell(state, pending, values)
    other, _ = kernel.tell(state, pickle.loads(pickle.dumps(pending)), values)
    np.testing.assert_array_equal(one.U, other.U)


def test_affine_invariance():
    """Paths in other coordinates are the paths, in other coordinates."""
    problem, rng = random_linear(3), np.random.default_rng(0)
    B, c = np.diag([2.0, 0.5, 100.0]), np.array([1.0, -2.0, 3.0])
    other = problem.transformed(B, c)
    U, given, paths = problem.sample_posterior(3, rng), exact(problem), []
    for each, start, law in (
        (problem, U, given),
        (other, U @ B.T + c, replace(given, root=B @ given.root)),
    ):
        kernel, state = walkers_at(each, start, 0.3, 3, preconditioner=law)
        _, snapshots = sweeps(kernel, each, state, 10, np.random.default_rng(1))
        paths.append(np.array([s.U for s in snapshots]))
    np.testing.assert_allclose(paths[0] @ B.T + c, paths[1], rtol=1e-6, atol=1e-6)


def test_heavy_walls_are_survived():
    """The clip keeps explicit steps from exploding in quartic tails."""
    problem = LinearProblem(np.eye(2), np.zeros(2), np.zeros(2), np.eye(2))
    problem.forward_map = lambda U: U**2
    U = np.full((50, 2), 30.0)
    law = Preconditioner(np.zeros(2), np.eye(2))
    kernel, state = walkers_at(problem, U, 0.1, 2, preconditioner=law)
    state, snapshots = sweeps(kernel, problem, state, 300, np.random.default_rng(0))
    assert np.isfinite(state.U).all()
    assert np.abs(np.array([s.U for s in snapshots[-50:]])).max() < 8
