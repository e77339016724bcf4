import numpy as np
import pytest
from array_problems import FixedNoise, decay, oscillating, step

from pymc_ensemble.samplers.gaussian_process.published import PublishedSurrogate
from pymc_ensemble.samplers.langevin_steps import EULER_STEP


def settled(problem, rng, n=40):
    """State with particles that are spread over the posterior."""
    U = problem.mean + problem.sd * rng.standard_normal((n, problem.dimension))
    part = PublishedSurrogate(problem, 0.1)
    return part, part.start(problem.ensemble(U))


def test_drift_follows_the_slope_of_the_loss():
    """Without noise the particles go downhill, by no more than a tenth of their spread a step."""
    problem = decay(noise=0.3)
    part, state = settled(problem, np.random.default_rng(0), 200)
    points, pending = part.ask(state, FixedNoise(0.0))
    before, after = state.ensemble.potential, problem.ensemble(points).potential
    far = before > np.quantile(before, 0.7)
    assert (after[far] < before[far]).mean() > 0.85
    moved = np.sqrt(((points - state.ensemble.U) ** 2).sum(1)).max()
    assert moved <= 1.01 * part.steps * EULER_STEP * np.sqrt(state.ensemble.U.var(0).mean())
    assert pending.dt <= 0.1


def test_hyperparameters_climb_their_posterior():
    problem = decay(noise=0.3)
    part, state = settled(problem, np.random.default_rng(1), 60)
    rng, start = np.random.default_rng(2), state.hyperparameters
    for _ in range(30):
        state, _ = step(part, problem, state, rng)
    assert (state.hyperparameters != start).all()
    assert np.isfinite(state.hyperparameters).all()


def test_conditioning_points_are_the_present_ensemble_alone():
    problem, rng = decay(noise=0.3), np.random.default_rng(3)
    part, state = settled(problem, rng)
    points, pending = part.ask(state, rng)
    state, info = part.tell(state, pending, problem.evaluate(points))
    assert np.array_equal(state.ensemble.U, points)
    assert np.array_equal(info.snapshot.U, points)
    assert info.n_evaluations == len(points)


def test_adaptive_step_keeps_a_rough_run_together():
    """A fixed step of this size diverges from the start of the paper."""
    problem, rng = oscillating(True), np.random.default_rng(4)
    part = PublishedSurrogate(problem, 0.1)
    state = part.start(problem.ensemble(rng.random((100, 2))))
    for _ in range(60):
        state, _ = step(part, problem, state, rng)
    spread = state.ensemble.U.std(0) / problem.sd
    assert (spread < 5).all()
    assert (np.abs(state.ensemble.U.mean(0) - problem.mean) < 6 * problem.sd).all()


def test_failed_members_go_on_from_others():
    problem, rng = decay(noise=0.3), np.random.default_rng(5)
    problem.failing(lambda U: np.arange(len(U)) < 5)
    part, state = settled(problem, rng)
    assert state.ensemble.ok.all()
    assert len(np.unique(state.ensemble.U, axis=0)) == 35
    points, _ = part.ask(state, rng)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_the_parameters_do_not_matter(unit):
    """The same run in other units of all parameters, up to rounding."""
    problem = decay(noise=0.3)
    other = problem.transformed(unit * np.eye(2), np.zeros(2))
    rng = np.random.default_rng(6)
    U = problem.mean + problem.sd * rng.standard_normal((40, 2))
    moved = []
    for p, scale in ((problem, 1.0), (other, unit)):
        part = PublishedSurrogate(p, 0.1)
        points, _ = part.ask(part.start(p.ensemble(scale * U)), np.random.default_rng(7))
        moved.append(points / scale)
    np.testing.assert_allclose(*moved, rtol=1e-6)
