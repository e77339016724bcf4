import pickle

import numpy as np
import pytest
from array_problems import decay, oscillating, random_linear, step, within

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.langevin import EnsembleLangevin


class WithGradient:
    """An array problem whose evaluations give the loss and its gradient, by differences."""

    def __init__(self, problem, width=1e-6):
        self.problem, self.width = problem, width
        self.dimension = problem.dimension
        self.prior_potential, self.prior_gradient = problem.prior_potential, problem.prior_gradient
        self.sample_prior = problem.sample_prior
        self.n_evaluations = 0
        self.fails = None

    def loss_at(self, U):
        return self.problem.loss(self.problem.forward_map(U))

    def evaluate(self, U, seed=None):
        self.n_evaluations += len(U)
        steps = self.width * np.eye(self.dimension)
        slopes = [(self.loss_at(U + e) - self.loss_at(U - e)) / (2 * self.width) for e in steps]
        Z = np.stack([self.loss_at(U), *slopes], 1)
        if self.fails is not None:
            Z[self.fails(U)] = np.nan
        return Evaluations.from_outputs(Z)

    def loss(self, Z):
        return np.where(np.isfinite(Z).all(1), Z[:, 0], np.inf)


def sample(problem, sampler, U, rng, n_sweeps, skip_burn_in=True):
    state, kept = sampler.start(U, skip_burn_in=skip_burn_in), []
    while len(kept) < n_sweeps:
        state, info = step(sampler, problem, state, rng)
        if info.snapshot is not None:
            kept.append(info.snapshot.U)
    return np.array(kept), state


def test_adjusted_steps_leave_the_posterior_alone():
    """Many short runs from exact draws: means and variances stay, at any step."""
    linear = random_linear(2)
    problem, rng = WithGradient(linear), np.random.default_rng(0)
    sampler = EnsembleLangevin(problem, ensemble_size=8, adjust=True)
    means, variances = [], []
    for _ in range(150):
        U, _ = sample(problem, sampler, linear.sample_posterior(8, rng), rng, 3)
        x = linear.standardized(U[-1])
        means.append(x.mean(0))
        variances.append((x**2).mean(0))
    assert within(means, 0.0)
    assert within(variances, 1.0)


def test_corrected_steps_have_the_right_variance():
    """With the correction the stationary variance is exact up to the error of the time step."""
    linear = random_linear(2)
    problem, rng = WithGradient(linear), np.random.default_rng(1)
    sampler = EnsembleLangevin(problem, ensemble_size=10, dt=0.02)
    U, _ = sample(problem, sampler, linear.sample_posterior(10, rng), rng, 6000)
    x = linear.standardized(U.reshape(-1, 2))
    # Euler steps: a relative excess of dt / 2; without the correction it would be 1 - 3 / 10
    np.testing.assert_allclose((x**2).mean(0), 1.0, atol=0.15)


@pytest.mark.parametrize("adjust", [False, True])
def test_burn_in_from_the_prior(adjust):
    smooth = decay(noise=0.3)
    problem, rng = WithGradient(smooth), np.random.default_rng(2)
    sampler = EnsembleLangevin(problem, adjust=adjust)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    for _ in range(2000):
        if state.burned_in:
            break
        state, _ = step(sampler, problem, state, rng)
    assert state.converged
    kept = []
    while len(kept) < 150:
        state, info = step(sampler, problem, state, rng)
        kept += [info.snapshot.U] if info.snapshot is not None else []
    U = np.concatenate(kept)
    assert (np.abs(U.mean(0) - smooth.mean) < 0.15 * smooth.sd).all()
    assert (np.abs(U.std(0) / smooth.sd - 1) < 0.15).all()


def test_rough_posteriors_catch_the_particles():
    """The gradient follows the fluctuations: steps are tiny, and hardly anything moves."""
    problem, rng = WithGradient(oscillating(True)), np.random.default_rng(3)
    sampler = EnsembleLangevin(problem)
    U = rng.random((100, 2))
    kept, state = sample(problem, sampler, U, rng, 50)
    assert state.ensemble is not None
    moved = np.sqrt(((kept[-1] - U) ** 2).mean(0))
    assert (moved < U.std(0)).all()


def test_sweeps_cost_an_evaluation_a_particle():
    linear = random_linear(2)
    for adjust in (False, True):
        problem, rng = WithGradient(linear), np.random.default_rng(4)
        sampler = EnsembleLangevin(problem, ensemble_size=12, adjust=adjust)
        sample(problem, sampler, linear.sample_posterior(12, rng), rng, 5)
        assert problem.n_evaluations == 6 * 12


def test_failed_members_stay_where_they_are():
    linear = random_linear(2)
    problem, rng = WithGradient(linear), np.random.default_rng(5)
    sampler = EnsembleLangevin(problem, ensemble_size=20)
    state, _ = step(sampler, problem, sampler.start(linear.sample_posterior(20, rng)), rng)
    problem.fails = lambda U: np.arange(len(U)) < 5
    before = state.ensemble.U
    state, info = step(sampler, problem, state, rng)
    assert info.n_failed == 5
    assert np.array_equal(state.ensemble.U[:5], before[:5])
    assert not (state.ensemble.U[5:] == before[5:]).any()
    problem.fails = lambda U: np.ones(len(U), dtype=bool)
    with pytest.raises(EnsembleFailure, match="All of the last 20 forward evaluations"):
        step(sampler, problem, state, rng)


def test_states_can_be_pickled():
    linear = random_linear(2)
    problem, rng = WithGradient(linear), np.random.default_rng(6)
    sampler = EnsembleLangevin(problem, ensemble_size=12, adjust=True)
    _, state = sample(problem, sampler, linear.sample_posterior(12, rng), rng, 2)
    copy = pickle.loads(pickle.dumps(state))
    a, b = (sampler.ask(s, np.random.default_rng(7))[0] for s in (state, copy))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt": 0.0}, "dt must be positive"),
        ({"dt": 0.1, "adjust": True}, "dt has no meaning with adjust=True"),
        ({"ensemble_size": 3}, "ensemble_size=3 is too small for 2 parameters. Use at least 4"),
        ({"ensemble_size": 7, "adjust": True}, "too small for 2 parameters. Use at least 8"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        EnsembleLangevin(WithGradient(random_linear(2)), **options)


def test_ensemble_without_spread_is_refused():
    problem = WithGradient(random_linear(2))
    sampler = EnsembleLangevin(problem, ensemble_size=10)
    with pytest.raises(EnsembleFailure, match="spans 1 of 2 dimensions"):
        step(sampler, problem, sampler.start(np.ones((10, 2)) * np.arange(10)[:, None]), None)
