import numpy as np
import pytest
from array_problems import FixedNoise, LinearProblem, decay, random_linear, step, sweeps, within
from scipy.stats import wishart

from pymc_ensemble.samplers.kalman.published import PublishedScheme, interaction_norm


def interaction_matrix(problem, Z):
    """D_ik = (1/J) <z_k - mean z, gradient of the loss at z_i>."""
    return problem.loss_gradient(Z) @ (Z - Z.mean(0)).T / len(Z)


@pytest.mark.parametrize("J", [4, 30])
def test_interaction_norm(J):
    """Fewer and more particles than the twelve outputs."""
    problem, rng = decay(), np.random.default_rng(0)
    Z = problem.forward_map(0.3 * rng.standard_normal((J, 2)))
    D = interaction_matrix(problem, Z)
    np.testing.assert_allclose(D.sum(1), 0, atol=1e-10 * np.abs(D).max())
    np.testing.assert_allclose(
        interaction_norm(Z, problem.loss_gradient(Z)), np.linalg.norm(D), rtol=1e-10
    )


@pytest.mark.parametrize("corrected", [False, True])
def test_printed_formula(corrected):
    """(I + dt C P0) u*_i = u_i + dt C P0 m0 - dt sum_k D_ik u_k, dt = 1 / (|D| + 1e-8)."""
    problem, rng = decay(), np.random.default_rng(1)
    problem.prior_mean, problem.P0 = np.array([0.3, 0.1]), np.array([[2.0, 0.4], [0.4, 1.0]])
    J, d = 9, 2
    U = 0.3 * rng.standard_normal((J, d))
    C, D = np.cov(U.T, bias=True), interaction_matrix(problem, problem.forward_map(U))
    dt = 1 / (np.linalg.norm(D) + 1e-8)
    drift = dt * problem.prior_mean @ problem.P0 @ C - dt * D @ U
    if corrected:
        drift += dt * (d + 1) / J * (U - U.mean(0))
    expected = np.linalg.solve(np.eye(d) + dt * C @ problem.P0, (U + drift).T).T

    scheme = PublishedScheme(problem, d + 2, corrected=corrected)
    state = scheme.start(problem.ensemble(U))
    points, move = scheme.ask(state, FixedNoise(0.0))
    assert move.dt == pytest.approx(dt)
    np.testing.assert_allclose(points, expected, rtol=1e-9)
    kicks = [scheme.ask(state, FixedNoise(e))[0][0] - points[0] for e in np.eye(d)]
    np.testing.assert_allclose(np.transpose(kicks) @ kicks, 2 * dt * C, rtol=1e-8)


def stationary_ensemble(problem, J, corrected, rng):
    """Exact draw of the invariant law of the continuous dynamics for a linear problem.

    Without the correction its density is that of J independent posterior draws times
    ``det(C)^(-(d + 1) / 2)``: the covariance has a Wishart law with d + 1 degrees of freedom less.
    """
    if corrected:
        return problem.sample_posterior(J, rng)
    d = problem.dimension
    mean = rng.multivariate_normal(problem.mean, problem.covariance / J)
    C = wishart(J - d - 2, problem.covariance / J).rvs(random_state=rng).reshape(d, d)
    X = rng.standard_normal((J, d))
    left, _, right = np.linalg.svd(X - X.mean(0), full_matrices=False)
    return mean + left @ right @ np.linalg.cholesky(J * C).T


@pytest.mark.parametrize(("J", "corrected"), [(8, False), (12, False), (8, True)])
def test_finite_ensemble_law(J, corrected):
    """Pooled variance (J - d - 1) / J and E[C] = (J - d - 2) / J of the posterior's without the
    correction, 1 and (J - 1) / J with it.

    200 replicas over the time .4 know the change of both to 3%; the time step .02 adds at most .5%.
    With the law of the other option E[C] would drift by more than 20%.
    """
    problem, d, dt = random_linear(2), 2, 0.02
    scheme = PublishedScheme(problem, d + 2, dt, corrected)
    lost = 0 if corrected else d + 1
    expected = np.array([(J - lost) / J, (J - 1 - lost) / J])

    def variances(U):
        x = problem.standardized(U)
        return (x**2).mean(), x.var(0).mean()

    start, end = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        state = scheme.start(problem.ensemble(stationary_ensemble(problem, J, corrected, rng)))
        start.append(variances(state.ensemble.U))
        state, snapshots = sweeps(scheme, problem, state, 20, rng)
        end.append(variances(state.ensemble.U))
        assert snapshots[-1].step_size == dt
    assert within(start, expected)
    change = np.mean(np.subtract(end, start), 0) / expected
    np.testing.assert_allclose(change, 0, atol=0.11)
    np.testing.assert_allclose(np.mean(end, 0), expected, rtol=0.12)


@pytest.mark.parametrize("dt", [0.05, 0.2])
def test_step_bias_law(dt):
    """Variance ratio (1 - q) / (dt (l + q s)), q = sqrt(1 - 2 dt), of a coordinate in which the
    share s = 1 - l of the precision is the prior's.

    8000 particles over the time 10 after 5; their squares are correlated over the time 1, so a
    variance has a Monte Carlo sd of sqrt(2 / 80 000) = .5%.
    """
    share, rng = np.array([0.1, 0.5, 0.9]), np.random.default_rng(2)
    problem = LinearProblem(
        np.diag(np.sqrt(1 - share)) * [1, 3, 0.1],
        [0.0, 1, -1],
        np.zeros(3),
        np.diag(share) * np.diag([1, 9, 0.01]),
    )
    scheme = PublishedScheme(problem, 5, dt)
    state = scheme.start(problem.ensemble(problem.sample_posterior(8000, rng)))
    state, _ = sweeps(scheme, problem, state, int(5 / dt), rng)
    state, snapshots = sweeps(scheme, problem, state, int(10 / dt), rng)
    assert {s.step_size for s in snapshots} == {dt}
    q = np.sqrt(1 - 2 * dt)
    ratio = (np.array([s.U for s in snapshots]) / problem.sd).reshape(-1, 3).var(0)
    np.testing.assert_allclose(ratio, (1 - q) / (dt * (1 - share + q * share)), rtol=0.02)


def test_failed_members_stay_where_they_are():
    problem, rng = random_linear(2), np.random.default_rng(3)
    scheme = PublishedScheme(problem, 4)
    state = scheme.start(problem.ensemble(problem.sample_posterior(20, rng)))
    problem.fails = lambda U: np.arange(len(U)) % 4 == 0
    after, info = step(scheme, problem, state, rng)
    failed = np.arange(20) % 4 == 0
    assert info.n_failed == 5
    np.testing.assert_array_equal(after.ensemble.U[failed], state.ensemble.U[failed])
    assert (after.ensemble.U[~failed] != state.ensemble.U[~failed]).all()
    assert after.ensemble.ok.all()
