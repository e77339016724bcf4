"""Ensemble Kalman inversion on arrays: its laws in linear problems, which are known exactly."""

import numpy as np
import pytest
from array_problems import GaussianProblem, LinearProblem, PoissonRegression

from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.kalman.inversion import Inversion


def linear_problem(d=10, K=20, seed=10):
    """Singular values 10, 5, 10/3, ..."""
    rng = np.random.default_rng(seed)
    Q, W = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (d, K))
    A = (W[:, : min(d, K)] * (10 / np.arange(1, min(d, K) + 1))) @ Q[:, : min(d, K)].T
    data = A @ rng.standard_normal(d) + rng.standard_normal(K)
    return LinearProblem(A, data, np.zeros(d), np.eye(d)), A


def inverted(problem, U, rng=None, steps=0, **options):
    """States of an inversion, the first one first; of so many steps, wherever it would end."""
    kernel, rng = Inversion(problem, **options), rng or np.random.default_rng(0)
    states = [kernel.start(problem.ensemble(U))]
    while len(states) <= steps or not (steps or states[-1].done):
        points, pending = kernel.ask(states[-1], rng)
        state, _ = kernel.tell(states[-1], pending, problem.evaluate(points))
        states.append(state)
    return states


def outside(U, start):
    """What of `U` lies out of the affine span of the particles `start`."""
    V = np.linalg.svd(start - start.mean(0), full_matrices=False)[2][: len(start) - 1]
    deviations = U - start.mean(0)
    return np.abs(deviations - deviations @ V.T @ V).max()


def gap(problem, state):
    """Potential of the mean over that of the mode, in a linear problem."""
    e = state.ensemble.U.mean(0) - problem.mean
    return 0.5 * e @ problem.precision @ e


@pytest.mark.parametrize("J", [8, 40])
def test_one_step_is_the_kalman_formula(J):
    problem, A = linear_problem()
    U = problem.sample_prior(J, np.random.default_rng(1))
    *_, end = inverted(problem, U, step=1.0)
    C = np.cov(U.T)
    gain = C @ A.T @ np.linalg.inv(A @ C @ A.T + np.eye(20))
    mean = U.mean(0) + gain @ (problem.data - A @ U.mean(0))
    np.testing.assert_allclose(end.ensemble.U.mean(0), mean, atol=1e-10)
    np.testing.assert_allclose(np.cov(end.ensemble.U.T), C - gain @ A @ C, atol=1e-10)
    assert end.converged
    assert end.time == 1


def test_perturbed_step_has_the_kalman_formula_on_average():
    problem, A = linear_problem()
    U, rng = problem.sample_prior(20, np.random.default_rng(1)), np.random.default_rng(2)
    C = np.cov(U.T)
    gain = C @ A.T @ np.linalg.inv(A @ C @ A.T + np.eye(20))
    ends = [inverted(problem, U, rng, update="perturbed", step=1.0)[-1] for _ in range(400)]
    members = np.array([end.ensemble.U for end in ends])
    expected = U + (problem.data - U @ A.T) @ gain.T
    sd = np.sqrt(np.diag(gain @ gain.T))  # of one member, by the noise of its data
    assert (np.abs(members.mean(0) - expected) < 5 * sd / np.sqrt(400)).all()
    np.testing.assert_allclose(members.std(0), np.tile(sd, (20, 1)), rtol=0.2)


def test_localization_of_ones_changes_nothing():
    problem, _ = linear_problem()
    U = problem.sample_prior(20, np.random.default_rng(1))
    options = {"update": "perturbed", "step": 0.5}
    plain = inverted(problem, U, **options)[-1]
    for ones in (np.ones((10, 20)), np.ones_like):
        same = inverted(problem, U, localization=ones, **options)[-1]
        np.testing.assert_allclose(same.ensemble.U, plain.ensemble.U, atol=1e-10)
    none = inverted(problem, U, localization=np.zeros((10, 20)), **options)[-1]
    np.testing.assert_array_equal(none.ensemble.U, U)


@pytest.mark.parametrize("update", ["transform", "perturbed"])
@pytest.mark.parametrize("target", ["posterior", "map", "fit"])
def test_never_leaves_the_span_of_its_start(update, target):
    problem, _ = linear_problem(d=40, K=30)
    U = problem.sample_prior(12, np.random.default_rng(1))
    *_, end = inverted(problem, U, update=update, target=target, max_steps=15)
    assert outside(end.ensemble.U, U) < 1e-10


def test_times_of_the_controller_sum_to_one():
    problem, _ = linear_problem()
    for step in ("misfit", 0.1, 0.3):
        states = inverted(problem, problem.sample_prior(50, np.random.default_rng(1)), step=step)
        steps = [state.step_size for state in states[1:]]
        assert abs(sum(steps) - 1) < 1e-12
        assert min(steps) > 1e-9
    assert len(states) == 5


@pytest.mark.parametrize(
    ("options", "seeds", "ratio"),
    [
        ({"update": "perturbed", "step": 1.0}, 60, 0.97),
        ({"update": "perturbed", "step": 1 / 16}, 40, 0.91),
        ({"update": "transform", "step": 1 / 4}, 60, 0.97),
    ],
)
def test_deficit_of_the_variance(options, seeds, ratio):
    """Measured by an independent program; the Monte Carlo error is .008 at most."""
    problem, _ = linear_problem()
    ratios = []
    for seed in range(seeds):
        rng = np.random.default_rng(1000 + seed)
        *_, end = inverted(problem, problem.sample_prior(100, rng), rng, **options)
        ratios.append(np.mean(end.ensemble.U.var(0, ddof=1) / problem.sd**2))
    assert abs(np.mean(ratios) - ratio) < 0.02
    assert 6 < end.information < 9  # 7.6 with the prior's own covariance: d_eff / J = 8%


def test_residual_decays_like_one_over_time():
    """By (V4): the residual in the span is (1 + t M)^-1 times that of the start, the rest stays."""
    problem, A = linear_problem(d=30, K=25)
    U = problem.sample_prior(10, np.random.default_rng(1))
    V = np.linalg.svd((U - U.mean(0)) @ A.T, full_matrices=False)[2][:9]
    times, inside, beyond = [], [], []
    for state in inverted(problem, U, target="fit", steps=20)[1:]:
        residual = problem.data - A @ state.ensemble.U.mean(0)
        times.append(state.time)
        inside.append(np.linalg.norm(V @ residual))
        beyond.append(residual - V.T @ (V @ residual))
        start = problem.data - A @ U.mean(0)
        M = A @ np.cov(U.T) @ A.T
        expected = np.linalg.solve(np.eye(25) + state.time * M, start)
        np.testing.assert_allclose(residual, expected, atol=1e-8)
    late = np.array(times) > 100
    exponent = np.polyfit(np.log(np.array(times)[late]), np.log(np.array(inside)[late]), 1)[0]
    assert abs(exponent + 1) < 0.05
    assert np.ptp(beyond, axis=0).max() < 1e-10


@pytest.mark.parametrize("update", ["transform", "perturbed"])
def test_finds_the_mode_of_a_linear_problem(update):
    problem, _ = linear_problem()
    *_, end = inverted(
        problem, problem.sample_prior(100, np.random.default_rng(1)), target="map", update=update
    )
    assert end.converged
    assert gap(problem, end) < 0.05


def test_momentum_finds_the_same_mode():
    problem, _ = linear_problem()
    U = problem.sample_prior(100, np.random.default_rng(1))
    *_, end = inverted(problem, U, target="map", momentum=True)
    assert end.converged
    assert gap(problem, end) < 0.05
    slow, fast = (
        inverted(problem, U, steps=40, target="map", momentum=momentum, step=0.01)[-1]
        for momentum in (False, True)
    )
    assert gap(problem, fast) < 0.5 * gap(problem, slow)


def test_stops_where_the_noise_explains_the_misfit():
    problem, _ = linear_problem(d=40, K=30)
    *_, end = inverted(problem, problem.sample_prior(100, np.random.default_rng(2)), target="fit")
    assert end.converged
    assert end.misfit <= 1
    few = problem.sample_prior(3, np.random.default_rng(2))
    *_, end = inverted(problem, few, target="fit")
    assert not end.converged
    assert end.misfit > 1
    assert end.gain < 0.01  # the span has nothing better


def test_inflation_multiplies_the_spread():
    problem, _ = linear_problem()
    U = problem.sample_prior(50, np.random.default_rng(1))
    plain, wide = (inverted(problem, U, step=1.0, inflation=c)[-1].ensemble.U for c in (1.0, 1.5))
    np.testing.assert_allclose(np.cov(wide.T), 1.5**2 * np.cov(plain.T), atol=1e-10)
    np.testing.assert_allclose(wide.mean(0), plain.mean(0), atol=1e-10)


def test_losses_that_bend():
    """Counts, whose curvature grows with the outputs: a step that is too long is cut."""
    problem = PoissonRegression()
    for seed in range(3):
        U = 3 * problem.sample_prior(40, np.random.default_rng(seed))
        states = inverted(problem, U, target="map")
        mean = states[-1].ensemble.U.mean(0)
        Z = mean[None] @ problem.X.T
        gradient = problem.loss_gradient(Z) @ problem.X + problem.prior_gradient(mean[None])
        H = (problem.X.T * problem.curvature(Z)[0]) @ problem.X + np.eye(5)
        assert states[-1].converged
        assert 0.5 * (gradient @ np.linalg.solve(H, gradient.T)).item() < 0.1  # nats to the mode


class Unreliable:
    """A share of the evaluations fails, whatever the parameters are."""

    def __init__(self, share):
        self.rng, self.share = np.random.default_rng(5), share

    def __call__(self, U):
        return self.rng.random(len(U)) < self.share


def test_failed_members_are_drawn_anew_from_the_others():
    problem, _ = linear_problem()
    ratios = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        U = problem.sample_prior(100, rng)
        problem.failing(Unreliable(0.3)).n_evaluations = 0
        *_, end = inverted(problem, U, rng, step=1 / 4)
        assert end.ensemble.ok.all()
        assert outside(end.ensemble.U, U) < 1e-10
        assert problem.n_evaluations < 1.6 * 500  # 1 / (1 - .3) on average
        ratios.append(np.mean(end.ensemble.U.var(0, ddof=1) / problem.sd**2))
    assert abs(np.mean(ratios) - 0.97) < 0.02  # as without failures; the Monte Carlo error is .004


def test_outputs_gone_astray_count_as_failed():
    problem, A = linear_problem()
    problem.forward_map = lambda U: np.where(U[:, :1] > 1.5, 1e15, 1.0) * (U @ A.T)
    states = inverted(problem, problem.sample_prior(100, np.random.default_rng(1)))
    assert np.abs(states[-1].ensemble.Z).max() < 1e4


def test_too_few_survivors_are_no_ensemble():
    problem, _ = linear_problem()
    problem.failing(lambda U: np.arange(len(U)) % 10 > 0)
    with pytest.raises(EnsembleFailure, match=r"Only 4 of 40 members \(10%\)"):
        inverted(problem, problem.sample_prior(40, np.random.default_rng(1)))


def test_outputs_too_large_for_information():
    problem = GaussianProblem(lambda U: 1e200 * U, np.zeros(3), np.zeros(3), np.eye(3))
    with pytest.raises(EnsembleFailure, match=r"Only 0 of 20|is not finite"):
        inverted(problem, problem.sample_prior(20, np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "mode"}, 'target must be "posterior" or "map" or "fit"'),
        ({"update": "etki"}, "update must be"),
        ({"step": "dmc"}, "step must be"),
        ({"step": -1.0}, "step must be positive"),
        ({"inflation": 0}, "inflation must be positive"),
        ({"momentum": True}, "overshoots the posterior"),
        ({"localization": np.ones_like}, 'Use update="perturbed"'),
        ({"max_steps": 0}, "max_steps must be an integer"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Inversion(linear_problem()[0], **options)


def test_weights_of_another_shape():
    problem, _ = linear_problem()
    U = problem.sample_prior(20, np.random.default_rng(1))
    with pytest.raises(ValueError, match=r"of shape \(10, 20\): parameters by outputs"):
        inverted(problem, U, update="perturbed", localization=np.ones((3, 20)))
