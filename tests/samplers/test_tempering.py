from dataclasses import replace

import numpy as np
import pytest
from array_problems import (
    GaussianProblem,
    PoissonRegression,
    TwoCompartments,
    bimodal,
    burn_in,
    decay,
    errors,
    random_linear,
    sample_bimodal,
    step,
    within,
)

from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.linear_guess import guessed_draws, linear_guess
from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.options import PATIENCE
from pymc_ensemble.samplers.rest import drifts, standstill
from pymc_ensemble.samplers.start import Start
from pymc_ensemble.samplers.tempering import TemperedBurnIn
from pymc_ensemble.samplers.weights import (
    next_exponent,
    normalized_weights,
    plausible,
    systematic_resample,
)


def from_prior(part, problem, J, rng):
    return part.start(problem.ensemble(problem.sample_prior(J, rng)))


# -- weights, exponents, masks --------------------------------------------------------------------


def test_weights_of_extreme_log_weights():
    weights, effective = normalized_weights(np.array([-2000.0, -2000.0, -np.inf]))
    np.testing.assert_allclose(weights, [0.5, 0.5, 0])
    assert effective == pytest.approx(2)
    weights, _ = normalized_weights(np.full(4, -np.inf))
    np.testing.assert_allclose(weights, 0.25)


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e12])
def test_next_exponent_keeps_the_effective_size(scale):
    loss = scale * np.random.default_rng(0).chisquare(3, 200)
    exponent = next_exponent(loss, 0.0, 80.0)
    if scale < 1:
        assert exponent == 1
        assert normalized_weights(-loss)[1] > 80
    else:
        assert normalized_weights(-exponent * loss)[1] == pytest.approx(80, rel=1e-6)
    assert next_exponent(loss, exponent, 80.0) >= exponent


def test_systematic_resampling_rounds_the_expected_numbers():
    rng = np.random.default_rng(1)
    weights = rng.random(30) * (rng.random(30) < 0.7)
    weights /= weights.sum()
    counts = np.zeros(30)
    for _ in range(400):
        count = np.bincount(systematic_resample(weights, 50, rng.random()), minlength=30)
        assert (np.abs(count - 50 * weights) < 1).all()
        counts += count
    fraction = 50 * weights % 1
    error = np.sqrt(fraction * (1 - fraction) / 400) + 1e-9
    assert (np.abs(counts / 400 - 50 * weights) < 4.5 * error).all()


def test_far_members_are_implausible_unless_all_scatter():
    """Tails end at the median + 10 + 2 d + 5 times its distance from the lowest twentieth."""
    potential = np.arange(11.0)  # lowest twentieth 0.5, median 5: the bound is 5 + 14 + 22.5
    far = np.append(potential, [np.inf, np.inf])
    assert plausible(far, 2)[:11].all()
    assert not plausible(far, 2)[11:].any()
    for value, expected in ((41.4, True), (41.6, False)):
        potential[10] = value
        assert plausible(potential, 2)[10] == expected
    assert not plausible(np.full(5, np.inf), 2).any()


@pytest.mark.parametrize(("shift", "stretch", "expected"), [(0.45, 1, 1), (0.55, 1, 0), (0, 2, 0)])
def test_standstill_is_half_a_standard_deviation(shift, stretch, expected):
    U = np.random.default_rng(2).standard_normal((50, 3))
    L = Anomalies.of(U).L
    moved = U * stretch + shift * L @ np.ones(3)
    assert standstill(Anomalies.of(U), Anomalies.of(moved)) == expected
    scales = np.array([1e-8, 1.0, 1e8])
    assert standstill(Anomalies.of(U * scales), Anomalies.of(moved * scales)) == expected


def test_steps_without_a_common_direction_are_no_drift():
    """One of twenty by either of two tests, which are nearly independent in eleven dimensions."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(400):
        steps = rng.standard_normal((80, 11))
        steps[rng.random(80) < 0.3] = 0.0  # moves that were rejected
        found += drifts(np.zeros((80, 11)), steps)
    assert abs(found / 400 - 0.0975) < 4 * np.sqrt(0.1 * 0.9 / 400)


@pytest.mark.parametrize("coordinate", [0, 3, 5])
def test_a_common_direction_is_a_drift(coordinate):
    """Half of a hundred particles go one sd of their steps on average: seven standard errors."""
    rng = np.random.default_rng(4)
    before = rng.standard_normal((100, 6))
    steps = rng.standard_normal((100, 6))
    steps[:, coordinate] += 1.0
    steps[50:] = 0.0
    assert drifts(before, before + steps)
    B = rng.standard_normal((6, 6)) * np.logspace(-6, 6, 6)
    B[:, -1] = B[-1] = 0.0
    B[-1, -1] = 1.0  # any coordinates of the particles, but the same potential
    assert drifts(before @ B, (before + steps) @ B)


def test_an_ensemble_that_hardly_moves_may_drift():
    U = np.random.default_rng(5).standard_normal((50, 4))
    assert drifts(U, U)
    few = U.copy()
    few[:4] = -few[:4]
    assert drifts(U, few)


# -- nearly linear problems -----------------------------------------------------------------------


@pytest.mark.parametrize("problem", [random_linear(5), PoissonRegression()])
@pytest.mark.parametrize("seed", range(3))
def test_linear_forward_maps_cost_two_evaluations_a_member(problem, seed):
    rng = np.random.default_rng(seed)
    problem.n_evaluations = 0
    part = TemperedBurnIn(problem, 7)
    state, reports = burn_in(part, problem, from_prior(part, problem, 100, rng), rng)
    assert problem.n_evaluations == 200
    assert [r.complete for r in reports] == [True]
    assert state.converged
    assert state.exponent == 1


class NoCounts(GaussianProblem):
    """Four counts with rates ``exp(u)``, all zero: hardly an edge, and no Gaussian law is near."""

    quadratic_loss = False

    def __init__(self):
        super().__init__(lambda U: U, np.zeros(4), np.zeros(4), np.eye(4) / 9)
        u = np.linspace(-20.0, 8.0, 4001)
        weights = np.exp(-np.exp(u) - u**2 / 18)
        weights /= weights.sum()
        mean = weights @ u
        self.mean, self.sd = np.full(4, mean), np.full(4, np.sqrt(weights @ (u - mean) ** 2))

    def pointwise_loss(self, Z):
        return np.exp(Z)

    loss_gradient = curvature = pointwise_loss


def test_posteriors_of_linear_maps_need_not_be_gaussian():
    """The fitted map knows them: two evaluations a member, and draws are right at once."""
    problem, U = NoCounts(), []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        part = TemperedBurnIn(problem, 6)
        problem.n_evaluations = 0
        ensemble = problem.ensemble(problem.sample_prior(100, rng))
        law = linear_guess(problem, ensemble)
        draws = law.map.particles(law.center + law.spread(law.noise(2000, rng)))
        log_weights = -problem.loss(draws) - problem.prior_potential(draws) - law.log_density(draws)
        assert normalized_weights(log_weights)[1] < 0.5 * len(draws)
        state, _ = burn_in(part, problem, part.start(ensemble), rng)
        assert problem.n_evaluations == 200
        assert state.converged
        U.append(state.ensemble.U)
    assert within(np.mean(U, axis=1), problem.mean)
    assert within(np.std(U, axis=1), problem.sd)


def test_no_guess_by_a_law_that_covers_nothing():
    problem, rng = NoCounts(), np.random.default_rng(1)
    law = linear_guess(problem, problem.ensemble(problem.sample_prior(100, rng)))
    assert guessed_draws(problem, law, 100, rng) is not None
    narrow = replace(law, rates=1e6 * law.rates, force=1e6 * law.force)
    assert guessed_draws(problem, narrow, 100, rng) is None


def test_linear_guess_is_exact_for_a_linear_problem():
    problem, rng = random_linear(4), np.random.default_rng(3)
    law = linear_guess(problem, problem.ensemble(problem.sample_prior(20, rng)))
    np.testing.assert_allclose(law.mean, problem.mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(law.precision, problem.precision, rtol=1e-8)


def test_linear_guess_is_the_mode_for_linear_outputs():
    problem, rng = PoissonRegression(), np.random.default_rng(4)
    mode = linear_guess(problem, problem.ensemble(problem.sample_prior(50, rng))).mean[None]
    gradient = problem.loss_gradient(problem.forward_map(mode)) @ problem.X
    gradient += problem.prior_gradient(mode)
    np.testing.assert_allclose(gradient * problem.sd, 0, atol=1e-3)


def test_no_linear_guess_for_a_curved_map_or_few_members():
    rng = np.random.default_rng(5)
    problem = decay()
    assert linear_guess(problem, problem.ensemble(problem.sample_prior(100, rng))) is None
    problem = random_linear(4)
    assert linear_guess(problem, problem.ensemble(problem.sample_prior(11, rng))) is None


# -- from wide priors -----------------------------------------------------------------------------


@pytest.mark.parametrize("finish", ["relax", "metropolis"])
def test_from_a_prior_a_hundred_times_wider_than_the_posterior(finish):
    """Prior sd 5, posterior sd about .05; exponentials of it overflow.

    One ensemble of 100 knows the mean to .1 and the sd to .07; the mode of the linear fit is off
    by a tenth, too. Without tests at the end one run in sixty stays away from the posterior: two of
    eight would do so by chance in one of a hundred cases.
    """
    problem, right = decay(prior_sd=5.0), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        part = TemperedBurnIn(problem, 4, finish=finish)
        state, _ = burn_in(part, problem, from_prior(part, problem, 100, rng), rng)
        mean, sd = errors(problem, state.ensemble.U)
        assert state.converged
        right += mean < 0.5 and sd < 0.35
    assert right >= (7 if finish == "relax" else 8)


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_an_ensemble_on_its_way_has_not_arrived(spread):
    """Half of the moves are accepted, and still the noise falls slowly: mean and covariance hardly
    change from one stage to the next, while they are up to 3 sd off.

    The mean of a hundred members has a chance error of .1 sd in each of five coordinates; the
    largest of the five is .16 in the root mean square.
    """
    problem, J, errors = TwoCompartments(), 100, []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        U = problem.prior_mean + spread * (problem.sample_prior(J, rng) - problem.prior_mean)
        part = TemperedBurnIn(problem, 7, finish="metropolis")
        state, _ = burn_in(part, problem, part.start(problem.ensemble(U)), rng)
        assert state.converged
        errors.append(np.abs((state.ensemble.U.mean(0) - problem.mean) / problem.sd).max())
    assert np.sqrt(np.square(errors).mean()) < 0.4


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_third_of_the_prior_fails(seed, deterministic):
    """One side of the prior, far from the posterior, cannot be evaluated at all."""
    problem, rng = decay().failing(lambda U: U[:, 0] < -0.43), np.random.default_rng(seed)
    part = TemperedBurnIn(problem, 4, deterministic)
    start = from_prior(part, problem, 100, rng)
    assert 20 < (~start.ensemble.ok).sum() < 50
    state, _ = burn_in(part, problem, start, rng)
    mean, sd = errors(problem, state.ensemble.U)
    assert state.converged
    assert state.ensemble.ok.all()
    assert mean < 0.5
    assert sd < 0.35


def test_random_failures_do_not_stop_the_burn_in():
    problem, rng = decay(), np.random.default_rng(6)
    problem.failing(lambda U: rng.random(len(U)) < 1 / 3)
    part = TemperedBurnIn(problem, 4)
    state, _ = burn_in(part, problem, from_prior(part, problem, 100, rng), rng)
    assert state.converged
    assert errors(problem, state.ensemble.U)[0] < 0.5


@pytest.mark.parametrize("seed", range(6))
def test_both_modes_survive_the_metropolis_finish(seed):
    """Half of the mass on either side of u1 = u2. Up to ten independent resamplings of a hundred
    members would scatter the share by .05 sqrt(10) = .16 at most."""
    problem, rng = bimodal(), np.random.default_rng(seed)
    part = TemperedBurnIn(problem, 4, finish="metropolis")
    state, _ = burn_in(part, problem, from_prior(part, problem, 100, rng), rng)
    U = state.ensemble.U
    assert 0.2 < (U[:, 0] > U[:, 1]).mean() < 0.8
    assert abs(np.abs(U[:, 0] - U[:, 1]).mean() - 1.120759) < 0.25


def test_stages_resample_for_their_exponent():
    """Member i appears J w_i times, rounded up or down, with w_i ~ exp(-b loss_i)."""
    problem, rng = decay(), np.random.default_rng(7)
    part = TemperedBurnIn(problem, 4)
    state = from_prior(part, problem, 100, rng)
    _, pending = part.ask(state, rng)
    weights, effective = normalized_weights(-pending.stage.exponent * state.ensemble.loss)
    assert effective == pytest.approx(50)
    resampled = pending.origin.ensemble
    counts = (resampled.U[:, None] == state.ensemble.U).all(2).sum(0)
    assert (np.abs(counts - 100 * weights) < 1).all()
    np.testing.assert_array_equal(resampled.Z, problem.forward_map(resampled.U))


def test_metropolis_stage_at_exponent_one_keeps_the_posterior():
    """From exact draws, with the law fitted to the ensemble itself: a bias of order 1 / J = .002,
    and a Monte Carlo sd of .006 on the mean of |u1 - u2|."""
    problem, rng, means = bimodal(), np.random.default_rng(7), []
    part = TemperedBurnIn(problem, 4, finish="metropolis")
    for _ in range(20):
        start = part.start(problem.ensemble(sample_bimodal(500, rng)))
        state = type(start)(start.ensemble, 0.5, exponent=1.0, guessed=True)
        for _ in range(3):
            state, _ = step(part, problem, state, rng)
        means.append(np.abs(np.diff(state.ensemble.U)).mean())
    assert abs(np.mean(means) - 1.120759) < 0.03


# -- giving up ------------------------------------------------------------------------------------


def test_the_burn_in_gives_up_after_its_last_stage():
    problem, rng = decay(), np.random.default_rng(8)
    part = TemperedBurnIn(problem, 4, max_stages=2)
    state, _ = burn_in(part, problem, from_prior(part, problem, 100, rng), rng)
    assert state.stages == 2
    assert not state.converged


def test_too_few_members_are_an_error():
    problem, rng = random_linear(3), np.random.default_rng(9)
    problem.failing(lambda U: np.arange(len(U)) >= 4)
    part = TemperedBurnIn(problem, 5)
    with pytest.raises(EnsembleFailure, match=r"Only 4 of 20 .* 5 are needed"):
        part.ask(from_prior(part, problem, 20, rng), rng)


# -- first evaluation -----------------------------------------------------------------------------


def test_failed_prior_draws_are_drawn_again():
    """Only the failed ones, and they follow the prior on the region of success."""
    problem, rng = random_linear(2), np.random.default_rng(10)
    problem.failing(lambda U: U[:, 0] > problem.prior_mean[0])
    part = Start(problem, 4)
    state, rounds = part.start(problem.sample_prior(400, rng), redraw=True), []
    while not state.complete:
        state, info = step(part, problem, state, rng)
        rounds.append((info.n_evaluations, info.n_failed))
    assert rounds[0][0] == 400
    assert [n for n, _ in rounds[1:]] == [failed for _, failed in rounds[:-1]]
    assert state.ensemble.ok.all()
    x = (state.ensemble.U[:, 0] - problem.prior_mean[0]) / np.sqrt(np.linalg.inv(problem.P0)[0, 0])
    assert x.max() < 0
    assert abs(x.mean() + np.sqrt(2 / np.pi)) < 4 * np.sqrt((1 - 2 / np.pi) / 400)


def test_redraws_end():
    problem, rng = random_linear(2), np.random.default_rng(11)
    problem.failing(lambda U: np.arange(len(U)) % 10 > 0)  # one of up to ten succeeds
    part = Start(problem, 4)
    state, n = part.start(problem.sample_prior(200, rng), redraw=True), 0
    problem.failing(lambda U: np.arange(len(U)) >= 5 * (len(U) == 200))
    while not state.complete:
        state, _ = step(part, problem, state, rng)
        n += 1
    assert n == PATIENCE + 1
    assert state.ensemble.ok.sum() == 5
    part = Start(problem, 6)
    state = part.start(problem.sample_prior(200, rng), redraw=True)
    for _ in range(PATIENCE):
        state, _ = step(part, problem, state, rng)
    with pytest.raises(EnsembleFailure, match=r"Only 5 of 200 .* 6 are needed"):
        step(part, problem, state, rng)


def test_given_positions_are_not_drawn_again():
    problem, rng = random_linear(2), np.random.default_rng(12)
    problem.failing(lambda U: np.arange(len(U)) == 3)
    U = problem.sample_prior(20, rng)
    part = Start(problem, 4)
    state, info = step(part, problem, part.start(U, redraw=False), rng)
    assert state.complete
    assert info.n_failed == 1
    np.testing.assert_array_equal(state.ensemble.U, U)
    np.testing.assert_array_equal(state.ensemble.ok, np.arange(20) != 3)
