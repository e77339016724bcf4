"""Steps of the training by an ensemble, on arrays."""

import numpy as np
import pytest
from array_problems import LinearProblem

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.kalman.training import Training, TrainingState, spectral_norm


@pytest.fixture
def problem():
    rng = np.random.default_rng(1)
    A = rng.standard_normal((15, 30))
    return LinearProblem(A, A @ rng.standard_normal(30), np.zeros(30), np.eye(30))


def trained(problem, kernel, J=20, steps=1, seed=2):
    rng = np.random.default_rng(seed)
    state = TrainingState(problem.sample_prior(J, rng))
    info = None
    for _ in range(steps):
        points, pending = kernel.ask(state, rng)
        state, info = kernel.tell(state, pending, problem.evaluate(points))
    return state, info


def test_a_step_has_its_length_and_direction(problem):
    """Eq. (V13): the covariance of parameters and outputs times the gradient, normalized."""
    U = problem.sample_prior(20, np.random.default_rng(2))
    state, _ = trained(problem, Training(problem, np.ones(30), step=0.7, spread=0.0))
    Z = problem.forward_map(U)
    C = (U - U.mean(0)).T @ (Z - Z.mean(0)) / 20
    D = problem.loss_gradient(Z) @ (Z - Z.mean(0)).T / 20
    expected = U - 0.7 / np.linalg.norm(D) * problem.loss_gradient(Z) @ C.T
    np.testing.assert_allclose(state.particles, expected, atol=1e-10)
    assert state.loss == pytest.approx(problem.loss(Z).mean())


def test_spectral_norm():
    rng = np.random.default_rng(1)
    for _ in range(20):
        D = rng.standard_normal((30, 30)) @ np.diag(np.arange(30.0)) @ rng.standard_normal((30, 30))
        assert spectral_norm(D) == pytest.approx(np.linalg.norm(D, 2), rel=0.05)
    assert spectral_norm(np.zeros((3, 3))) == 0


@pytest.mark.parametrize("step", [3.0, 100.0])
def test_long_steps_do_not_throw_particles_apart(problem, step):
    """Without noise the spread of a linear problem never grows."""
    kernel = Training(problem, np.ones(30), step=step, spread=0.0)
    spreads = [
        trained(problem, kernel, steps=n)[0].particles.std(0).mean() for n in (0, 1, 2, 5, 20)
    ]
    assert (np.diff(spreads) <= 1e-12).all()


def test_without_spread_it_stays_in_the_span_of_its_start(problem):
    U = problem.sample_prior(20, np.random.default_rng(2))
    state, _ = trained(problem, Training(problem, np.ones(30), spread=0.0), steps=30)
    V = np.linalg.svd(U - U.mean(0), full_matrices=False)[2][:19]
    e = state.particles - U.mean(0)
    assert np.abs(e - e @ V.T @ V).max() < 1e-10


@pytest.mark.parametrize("momentum", [False, True])
def test_loss_falls(problem, momentum):
    kernel = Training(problem, np.ones(30), step=0.3, spread=0.0, momentum=momentum)
    start, _ = trained(problem, kernel, J=60)
    end, _ = trained(problem, kernel, J=60, steps=60)
    assert end.loss < 0.05 * start.loss


def test_added_noise_has_its_size(problem):
    scale = np.linspace(0.5, 2, 30)
    plain, noisy = (
        trained(problem, Training(problem, scale, spread=spread), J=2000)[0].particles
        for spread in (0.0, 0.1)
    )
    np.testing.assert_allclose((noisy - plain).std(0), 0.1 * scale, rtol=0.1)


def test_replaced_particles_come_closer_by_the_root_of_the_number(problem):
    scale = np.linspace(0.5, 2, 30)
    kernel = Training(problem, scale, spread="replace")
    state, _ = trained(problem, kernel, J=2000, steps=4)
    np.testing.assert_allclose(state.particles.std(0), scale / 2, rtol=0.1)


def test_single_precision_is_kept(problem):
    rng = np.random.default_rng(2)
    for options in ({"spread": 0.1}, {"spread": "replace"}, {"spread": 0.0, "momentum": True}):
        kernel = Training(problem, np.ones(30), **options)
        state = TrainingState(problem.sample_prior(20, rng).astype(np.float32))
        points, pending = kernel.ask(state, rng)
        state, _ = kernel.tell(state, pending, problem.evaluate(points))
        assert state.particles.dtype == np.float32


def test_failed_members_are_drawn_from_the_others(problem):
    problem.failing(lambda U: np.arange(len(U)) % 3 == 0)
    kernel = Training(problem, np.ones(30), step=0.3, spread=0.0)
    state, info = trained(problem, kernel, J=90, steps=40)
    assert info.n_failed == 30
    assert np.isfinite(state.particles).all()
    first, _ = trained(problem, kernel, J=90)
    assert state.loss < 0.2 * first.loss


def test_too_few_survivors_are_no_ensemble(problem):
    kernel = Training(problem, np.ones(30))
    with pytest.raises(EnsembleFailure, match="Only 0 of 20 members"):
        kernel.tell(
            TrainingState(np.zeros((20, 30))),
            1,
            Evaluations.from_outputs(np.full((20, 15), np.nan)),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0}, "step must be positive"),
        ({"spread": -1}, "spread must be"),
        ({"spread": "add"}, 'spread must be a number or "replace"'),
        ({"momentum": True}, "would grow without bound"),
    ],
)
def test_options_that_make_no_sense(problem, options, message):
    with pytest.raises(ValueError, match=message):
        Training(problem, np.ones(30), **options)
