from dataclasses import replace

import numpy as np
import pytest
from array_problems import bimodal, decay, errors, random_linear, step
from scipy.stats import norm

from pymc_ensemble.samplers.ensemble import Ensemble
from pymc_ensemble.samplers.examination import Examination
from pymc_ensemble.samplers.gaussian_process.epochs import Epochs
from pymc_ensemble.samplers.gaussian_process.growing import GrowingGaussianProcess, spread
from pymc_ensemble.samplers.gaussian_process.growing_state import Budget, GrowingState
from pymc_ensemble.samplers.gaussian_process.proof import Repeats
from pymc_ensemble.samplers.gaussian_process.sampler import learned


def grow(problem, seed, **options):
    """Learn until the surrogate is certified, or no certificate can be given."""
    sampler = GrowingGaussianProcess(problem, **options)
    rng, problem.n_evaluations = np.random.default_rng(seed), 0
    state = sampler.start(sampler.first_design(rng), redraw=True)
    while not state.burned_in:
        state, _ = step(sampler, problem, state, rng)
    known = learned(state)
    assert isinstance(known, GrowingState)
    assert known.used == problem.n_evaluations
    return sampler, state, known


def draws(sampler, problem, state, n_sweeps=20):
    state, rng, snapshots = sampler.freeze(state), np.random.default_rng(1), []
    while len(snapshots) < n_sweeps:
        state, info = step(sampler, problem, state, rng)
        if info.snapshot is not None:
            snapshots.append(info.snapshot.U)
    return np.concatenate(snapshots)


@pytest.mark.parametrize("make", [decay, bimodal, lambda: random_linear(4)])
def test_a_certified_posterior_costs_less_than_an_ensemble(make):
    problem = make()
    sampler, state, known = grow(problem, 0)
    assert known.converged
    assert known.certificate.limit <= 0.1
    assert problem.n_evaluations < 100
    before = problem.n_evaluations
    mean, sd = errors(problem, draws(sampler, problem, state))
    assert problem.n_evaluations == before
    assert mean < 0.15
    assert sd < 0.15


@pytest.mark.parametrize("after", [10, 15, 25])
def test_a_map_that_changes_its_mind_is_not_certified(after):
    """All outputs are twice as large after some evaluations, for good."""
    problem, calls = decay(), []
    before = problem.forward_map

    def changing(U):
        calls.append(len(U))
        return before(U) * (2.0 if sum(calls) > after else 1.0)

    problem.forward_map = changing
    _, _, known = grow(problem, 0)
    assert not known.converged
    assert "other outputs when it was called again" in known.verdict
    assert problem.n_evaluations < 150, "no more is spent on it"


def test_a_map_that_is_another_one_at_each_call_is_not_certified():
    problem, calls = decay(), []
    before = problem.forward_map

    def drifting(U):
        calls.append(len(U))
        return before(U) * 1.1 ** len(calls)

    problem.forward_map = drifting
    _, _, known = grow(problem, 0, max_evaluations=150)
    assert not known.converged


@pytest.mark.parametrize("seed", range(2))
def test_a_posterior_that_failures_cut_off_is_not_certified(seed):
    problem = random_linear(2)
    cut = problem.mean[0] + 0.5 * problem.sd[0]
    problem.failing(lambda U: U[:, 0] > cut)
    _, _, known = grow(problem, seed, max_evaluations=150)
    assert not known.converged


def test_failures_away_from_the_posterior_do_no_harm():
    problem = random_linear(2)
    cut = problem.mean[0] + 8 * problem.sd[0]
    problem.failing(lambda U: U[:, 0] > cut)
    sampler, state, known = grow(problem, 0)
    assert known.converged
    mean, sd = errors(problem, draws(sampler, problem, state))
    assert max(mean, sd) < 0.15


def test_outputs_of_very_different_size_are_right_or_not_certified():
    A = np.array([[1.0, 0.0], [0.0, 1.0], [1e6, 1e6], [1e-6, 0.0]])
    problem = random_linear(2)
    problem.forward_map, problem.data = lambda U: U @ A.T, A @ [0.3, -0.3]
    problem.P0, problem.prior_mean = np.eye(2), np.zeros(2)
    sampler, state, known = grow(problem, 0, max_evaluations=150)
    along = np.array([1.0, -1.0]) / np.sqrt(2)
    sd = np.sqrt(along @ np.linalg.inv(A.T @ A + np.eye(2)) @ along)
    right = (draws(sampler, problem, state) @ along).std() == pytest.approx(sd, rel=0.15)
    assert right or not known.converged


def test_repeats_are_the_oldest_points_hardly_moved():
    problem = random_linear(2)
    _, _, known = grow(problem, 0)
    archive, posterior = known.archive, known.bound(problem).posterior
    repeats = Repeats.of(archive, np.array([0, 4, 7, 8]), posterior)
    once_more = repeats.renewed(archive[np.array([1, 2, 3])])
    np.testing.assert_array_equal(once_more.loss, archive.loss[1:4])
    np.testing.assert_allclose(
        once_more.points - archive.U[[0, 4, 7]], 2 * (repeats.points - archive.U[[0, 4, 7]])
    )
    same = archive[np.array([0, 4, 7])]
    assert (repeats.points != same.U).any(1).all()
    np.testing.assert_allclose(repeats.points, same.U, rtol=0, atol=1e-7)
    assert not repeats.contradicted(same, 0.1)
    change = 0.11 + 1e-3 * np.abs(same.loss[1])
    for value in (same.loss[1] + change, same.loss[1] - change, np.nan):
        loss = np.array([same.loss[0], value, same.loss[2]])
        assert repeats.contradicted(replace(same, loss=loss), 0.1)


def test_evaluations_are_limited():
    problem = bimodal()
    _, _, known = grow(problem, 0, max_evaluations=23)
    assert problem.n_evaluations <= 23
    assert not known.converged


def test_rounds_grow_with_what_is_known():
    budget = Budget(10, 0.1, 130, growth=40, epochs=7)
    assert [budget.size(n, 25) for n in (10, 60, 120, 125, 130)] == [10, 15, 10, 5, 0]
    assert not budget.spent(129, 5)
    assert budget.spent(130, 5)
    assert replace(budget, rounds=5).spent(50, 5)


def test_rounds_occupy_all_workers():
    budget = Budget(12, 0.1, 1000, growth=400, epochs=7, workers=4)
    assert [budget.size(n, 100) for n in (10, 51, 53)] == [12, 12, 16]
    assert budget.size(10, 100, beside=3) == 13
    problem, sizes = decay(), []
    sampler, rng = GrowingGaussianProcess(problem, workers=4), np.random.default_rng(0)
    state = sampler.start(sampler.first_design(rng), redraw=True)
    while not state.burned_in:
        points, pending = sampler.ask(state, rng)
        sizes.append(len(points))
        state, _ = sampler.tell(state, pending, problem.evaluate(points))
    assert state.converged
    assert [size % 4 for size in sizes] == [0] * len(sizes)


def noisy():
    """Linear outputs with noise of their own, half as large as that of the data."""
    problem, rng = random_linear(2), np.random.default_rng(5)
    before = problem.forward_map
    problem.forward_map = lambda U: before(U) + 0.5 * rng.standard_normal((len(U), 4))
    return problem


def declared_noisy():
    problem = noisy()
    problem.stochastic = True
    return problem


def crashing():
    """One evaluation in ten fails, wherever it is."""
    rng = np.random.default_rng(6)
    return random_linear(2).failing(lambda U: rng.random(len(U)) < 0.1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (noisy, "other outputs at each call"),
        (declared_noisy, "other outputs at each call"),
        (crashing, "other outputs at each call"),
        (lambda: decay(roughness=1.0), "the log density fluctuates"),
    ],
)
def test_where_no_certificate_can_be_expected_epochs_follow(make, reason):
    """They cost no more than epochs alone, eight times J, and are as accurate."""
    problem = make()
    sampler, state, known = grow(problem, 0)
    assert reason in known.verdict
    assert known.converged
    assert known.verification.passed
    assert known.used <= 8 * sampler.size
    mean, sd = errors(problem, draws(sampler, problem, state))
    assert mean < 0.2
    assert sd < 0.15


def test_epochs_follow_where_failures_cut_the_posterior_off():
    problem = random_linear(2)
    cut = problem.mean[0] + 0.5 * problem.sd[0]
    problem.failing(lambda U: U[:, 0] > cut)
    sampler, state, known = grow(problem, 0)
    assert "have failed where the posterior would be" in known.verdict
    assert known.converged
    # moments of the normal law below half a standard deviation
    x = draws(sampler, problem, state)[:, 0]
    a = norm.pdf(0.5) / norm.cdf(0.5)
    assert (x.mean() - problem.mean[0]) / problem.sd[0] == pytest.approx(-a, abs=0.15)
    assert x.std() / problem.sd[0] == pytest.approx(np.sqrt(1 - 0.5 * a - a**2), abs=0.1)


def test_epochs_have_a_certificate_of_their_own():
    """Noise explains the residuals; what the surrogate does not know is left."""
    _, _, known = grow(noisy(), 0)
    certificate = known.certificate
    assert certificate.noise == known.verification.noise
    assert 0.03 < certificate.limit < 0.3


def test_only_noise_that_an_examination_has_found_explains_differences():
    """The same differences pass a verification or not, by what is known about the map."""
    problem = noisy()
    _, _, known = grow(problem, 0)
    known = known.bound(problem)
    good = Ensemble.evaluated(problem, known.particles, problem.evaluate(known.particles))
    epochs = Epochs(problem, True)
    noise = epochs._verify(known, good).noise
    assert noise > 0.5
    for found, noisy_map, passed in [
        (Examination(noise, 20, limit=2 * noise), True, True),
        (Examination(0.01, 20, limit=0.02), False, False),
        (Examination(0.01, 20, limit=0.02), True, False),
    ]:
        state = replace(known, found=found, noisy=noisy_map)
        verification = epochs._verify(state, good)
        assert verification.passed is passed
        assert verification.noise == pytest.approx(min(noise, max(0.1, found.limit)))


def test_a_surrogate_of_a_smooth_map_grows_on():
    """A limit of evaluations ends it if the map was not examined, or is rough."""
    _, _, known = grow(decay(), 0)
    slow = replace(known, used=known.budget.growth)
    smooth = Examination(0.01, 20, limit=0.02)
    assert "were not enough" in slow.hopeless
    assert replace(slow, found=smooth).hopeless == ""
    assert "were not enough" in replace(slow, found=smooth, refused=4).hopeless
    assert "fluctuates" in replace(slow, found=Examination(0.5, 20, limit=1.0)).hopeless


def test_rough_maps_are_examined_again_where_the_posterior_is():
    _, _, known = grow(decay(roughness=1.0), 0)
    assert known.looked
    assert known.converged
    assert known.found.fluctuation > known.budget.tolerance


@pytest.mark.parametrize("make", [decay, bimodal])
def test_adjusted_draws_begin_where_the_surrogate_was_learned(make):
    """A handful of points stands for the posterior; the test makes the draws exact."""
    problem = make()
    sampler, state, known = grow(problem, 0, adjust=True)
    assert known.converged
    learned_with = problem.n_evaluations
    assert learned_with < 100
    U = draws(sampler, problem, state, 12)
    assert problem.n_evaluations - learned_with == 12 * sampler.size
    mean, sd = errors(problem, U[2 * sampler.size :])
    assert mean < 0.15
    assert sd < 0.15


def test_first_design_covers_the_prior():
    """Four points of four far clusters: one in each."""
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    candidates = np.repeat(centers, 25, axis=0) + rng.standard_normal((100, 2))
    chosen = spread(candidates, 4)
    assert sorted(np.linalg.norm(chosen[:, None] - centers, axis=2).argmin(1)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "epochs=3 has no meaning"),
        ({"batch": 9}, "at least 10"),
        ({"max_evaluations": 22}, "at least 23"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GrowingGaussianProcess(decay(), **options)
