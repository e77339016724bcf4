"""The multi-fidelity sampler on arrays, against posteriors that are known."""

from dataclasses import replace

import numpy as np
import pytest

import pymc_ensemble as pe
from pymc_ensemble.samplers.ensemble import Ensemble, EnsembleFailure
from pymc_ensemble.samplers.gaussian_process.posterior import Whitening
from pymc_ensemble.samplers.multifidelity.correction import Correction
from pymc_ensemble.samplers.multifidelity.learning import Law
from pymc_ensemble.samplers.multifidelity.sampler import Multifidelity, learned

A = np.array([[1.0, 0.5], [0.2, -1.0], [0.7, 0.3]])


def problem_of(forward, data, noise, d):
    return pe.InverseProblem(
        forward, prior=(np.zeros(d), np.eye(d)), data=data, noise=noise, vectorized=True
    )


def pair(fine, cheap, data=(1.0, 0.5, 0.2), noise=0.1, d=2):
    """Problems of both models."""
    return problem_of(fine, data, noise, d), problem_of(cheap, data, noise, d)


def run(problems, seed=1, sweeps=0, **options):
    """State after the learning, the draws after it, and how often both models were asked."""
    fine, cheap = problems
    sampler, rng = Multifidelity(fine, **options), np.random.default_rng(seed)
    state = sampler.start(fine.sample_prior(sampler.start_size, rng), redraw=True)
    counts, draws = [0, 0], []
    while state.phase in ("start", "burn-in") or len(draws) < sweeps:
        asks_cheap = sampler.asks_cheap(state)
        points, pending = sampler.ask(state, rng)
        counts[asks_cheap] += len(points)
        evaluations = (cheap if asks_cheap else fine).evaluate(points)
        state, info = sampler.tell(state, pending, evaluations)
        if info.snapshot is not None:
            draws.append(info.snapshot)
    return state, draws, counts


def test_a_cheap_model_that_is_the_fine_one_is_certified_to_zero():
    def forward(U):
        return np.sin(U @ A.T)

    state, _, (fine, cheap) = run(pair(forward, forward))
    known = learned(state)
    assert state.converged
    assert known.certificate.limit < 1e-12
    assert (known.rounds, known.used, known.cheap) == (2, 20, cheap)
    assert fine == 20


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_linear_difference_leaves_the_exact_posterior(seed):
    """Both models are linear, and the posterior of the fine one is Gaussian."""
    B = A + np.array([[0.5, 0.0], [0.3, 0.4], [-0.6, 0.2]])
    problems = pair(lambda U: U @ A.T, lambda U: U @ B.T + 2.0)
    state, draws, (fine, _) = run(problems, seed, sweeps=40)
    assert learned(state).certificate.limit < 0.02
    assert fine == 20
    covariance = np.linalg.inv(A.T @ A / 0.01 + np.eye(2))
    mean, sd = covariance @ A.T @ [1.0, 0.5, 0.2] / 0.01, np.sqrt(np.diag(covariance))
    U = np.concatenate([snapshot.U for snapshot in draws])
    # 4000 draws of acceptance above a half are worth more than 1000
    assert np.abs((U.mean(0) - mean) / sd).max() < 4.5 / np.sqrt(1000)
    np.testing.assert_allclose(U.std(0) / sd, 1, atol=4.5 / np.sqrt(2 * 1000))


def bent(U):
    return np.column_stack([U[:, 0] + 0.3 * U[:, 1] ** 2, U[:, 1], np.sin(2 * U[:, 0])])


def straight(U):
    return np.column_stack([U[:, 0], U[:, 1], 1.5 * U[:, 0]])


def moments_on_a_grid(problem):
    axis = np.linspace(-4, 4, 401)
    U = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    potential = problem.loss(problem.evaluate(U).outputs) + problem.prior_potential(U)
    weights = np.exp(potential.min() - potential)
    weights /= weights.sum()
    mean = weights @ U
    return mean, np.sqrt(weights @ (U - mean) ** 2)


@pytest.mark.parametrize("seed", [1, 2])
def test_bent_difference(seed):
    problems = pair(bent, straight, data=(0.6, -0.8, 0.9), noise=0.1)
    state, draws, (fine, _) = run(problems, seed, sweeps=40)
    assert state.converged
    assert fine <= 60
    mean, sd = moments_on_a_grid(problems[0])
    U = np.concatenate([snapshot.U for snapshot in draws])
    tolerance = learned(state).certificate.limit + 4.5 / np.sqrt(1000)
    assert np.abs((U.mean(0) - mean) / sd).max() < tolerance
    np.testing.assert_allclose(U.std(0) / sd, 1, atol=tolerance)


def test_adjusted_draws_are_exact_whatever_the_correction_is():
    """Only one round: a linear fit to ten points takes the place of a bent map."""
    problems = pair(bent, straight, data=(0.6, -0.8, 0.9), noise=0.3)
    fine, cheap = problems
    sampler, rng = Multifidelity(fine, adjust=True), np.random.default_rng(1)
    state = sampler.start(fine.sample_prior(sampler.start_size, rng), redraw=True, rounds=2)
    draws = []
    while len(draws) < 40:
        asks_cheap = sampler.asks_cheap(state)
        points, pending = sampler.ask(state, rng)
        state, info = sampler.tell(state, pending, (cheap if asks_cheap else fine).evaluate(points))
        if info.snapshot is not None:
            draws.append(info.snapshot)
    assert not state.converged
    assert learned(state).rounds == 1
    acceptance = np.mean([snapshot.acceptance for snapshot in draws])
    assert 0.3 < acceptance < 0.99
    U = np.concatenate([snapshot.U for snapshot in draws[5:]])
    mean, sd = moments_on_a_grid(fine)
    # 3500 proposals that do not depend on what they replace; a third of them counts in full
    assert np.abs((U.mean(0) - mean) / sd).max() < 4.5 / np.sqrt(1100)
    np.testing.assert_allclose(U.std(0) / sd, 1, atol=4.5 / np.sqrt(2 * 1100))
    for snapshot in draws[-2:]:
        potential = fine.loss(fine.evaluate(snapshot.U).outputs) + fine.prior_potential(snapshot.U)
        np.testing.assert_allclose(-snapshot.lp, potential)


@pytest.mark.parametrize("seed", [1, 2])
def test_both_of_two_modes_keep_their_mass(seed):
    def fine(U):
        return np.column_stack([U[:, 0] ** 2 + 0.1 * U[:, 0] ** 4, U[:, 1]])

    def cheap(U):
        return np.column_stack([U[:, 0] ** 2, 0.8 * U[:, 1]])

    problems = pair(fine, cheap, data=(1.5, 0.3), noise=0.1)
    state, draws, _ = run(problems, seed, sweeps=40)
    assert state.converged
    right = np.mean([snapshot.U[:, 0] > 0 for snapshot in draws])
    # a path of 40 sweeps has changed its mode some 4 times: worth 400 draws of a coin
    assert abs(right - 0.5) < 4.5 * 0.5 / np.sqrt(400)


def useless(U):
    return np.column_stack([np.sin(25 * U[:, 0]), np.cos(31 * U[:, 1]), np.sin(17 * U.sum(1))])


@pytest.mark.parametrize("seed", [1, 2])
def test_what_does_not_help_is_never_certified(seed):
    state, _, (fine, _) = run(pair(bent, useless), seed, max_evaluations=30)
    known = learned(state)
    assert not state.converged
    assert known.certificate.limit > 0.5
    assert fine == known.used == 30


def test_draws_that_have_not_mixed_get_no_certificate():
    fine, cheap = pair(bent, straight, data=(0.6, -0.8, 0.9))
    sampler, rng = Multifidelity(fine), np.random.default_rng(1)
    state = sampler.start(fine.sample_prior(sampler.start_size, rng), redraw=True)
    while state.phase in ("start", "burn-in"):
        asks_cheap = sampler.asks_cheap(state)
        points, pending = sampler.ask(state, rng)
        if state.phase == "burn-in" and not asks_cheap:
            state = replace(state, inner=replace(state.inner, independent=False))
        state, _ = sampler.tell(state, pending, (cheap if asks_cheap else fine).evaluate(points))
    assert not state.converged
    assert learned(state).certificate.limit == np.inf
    assert learned(state).rounds == 10


@pytest.mark.parametrize("shift", [0.05, 0.5])
def test_what_has_passed_by_chance_is_not_certified(shift):
    """The first batch that passes is said to have proved another correction than it has.

    That one shifts all outputs by so many standard deviations of the noise.
    """
    fine, cheap = pair(bent, straight, data=(0.6, -0.8, 0.9))
    sampler, rng = Multifidelity(fine), np.random.default_rng(1)
    state = sampler.start(fine.sample_prior(sampler.start_size, rng), redraw=True)
    rounds = 0
    while state.phase in ("start", "burn-in"):
        asks_cheap = sampler.asks_cheap(state)
        points, pending = sampler.ask(state, rng)
        state, _ = sampler.tell(state, pending, (cheap if asks_cheap else fine).evaluate(points))
        if state.phase == "burn-in" and not asks_cheap and state.inner.passed is not None:
            assert not state.inner.converged
            if not rounds:
                passed, rounds = state.inner.passed, state.inner.rounds
                law = replace(passed.correction, center=passed.correction.center + 0.1 * shift)
                draws = replace(passed.draws, Z=passed.draws.Z + 0.1 * shift)
                draws = replace(draws, loss=fine.loss(draws.Z))
                state = replace(state, inner=replace(state.inner, passed=Law(law, draws)))
    known = learned(state)
    assert state.converged
    assert known.certificate.moved <= known.certificate.limit <= 0.1
    if shift > 0.1:
        assert known.rounds > rounds
    else:
        assert known.rounds == rounds
        assert known.certificate.moved > 0.01


def test_the_difference_of_two_laws():
    """N(0, 1/2) and N(-c/2, 1/2): their means are c / sqrt(2) standard deviations apart."""
    problem, _ = pair(lambda U: U, lambda U: U, data=(0.0,), noise=1.0, d=1)
    U, c = np.random.default_rng(1).standard_normal((4000, 1)) / np.sqrt(2), 0.2
    whitening = Whitening.of(U)
    prior = problem.prior_potential
    laws = []
    for shift in (0.0, c):
        at, correction = U - shift / 2, Correction(whitening, np.array([shift]), np.eye(1)[:0], ())
        Z = at + shift
        laws.append(Law(correction, Ensemble(at, Z, problem.loss(Z), prior(at))))
    # weights of 4000 draws have a standard error of .2 / sqrt(2 * 4000)
    assert laws[0].difference(laws[1], problem) == pytest.approx(c / np.sqrt(2), abs=0.01)
    assert laws[0].difference(laws[0], problem) < 1e-9


def test_earlier_evaluations_save_the_first_round():
    problems = pair(bent, straight, data=(0.6, -0.8, 0.9))
    state, *_ = run(problems)
    known = learned(state).known.fine
    again, _, (fine, _) = run(problems, seed=2, archive=(known.U, known.Z))
    assert again.converged
    assert fine == 10


def test_points_at_which_the_cheap_model_fails_have_no_probability():
    def half(U):
        return np.where(U[:, [0]] > -0.5, straight(U), np.nan)

    state, draws, _ = run(pair(bent, half, data=(0.6, -0.8, 0.9)), sweeps=5)
    assert state.converged
    assert min(snapshot.U[:, 0].min() for snapshot in draws) > -0.5


def test_a_cheap_model_that_mostly_fails_is_refused():
    def fails(U):
        return np.where(U[:, [0]] > 0.5, straight(U), np.nan)

    with pytest.raises(EnsembleFailure, match="cheap model has failed"):
        run(pair(bent, fails))


def test_a_fine_model_that_mostly_fails_is_refused():
    def fails(U):
        return np.where(U[:, [0]] > 5.0, bent(U), np.nan)

    with pytest.raises(EnsembleFailure, match="10 of 10 evaluations of the fine model"):
        run(pair(fails, straight))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_failures_of_the_fine_model_among_draws_take_the_certificate(seed):
    """A quarter of the corrected posterior has no density: ten draws may miss it, not forget it."""

    def fails(U):
        return np.where(U[:, [1]] > -0.81, bent(U), np.nan)

    state, *_ = run(pair(fails, straight, data=(0.6, -0.8, 0.9)), seed, max_evaluations=60)
    assert not state.converged
    assert len(learned(state).lost) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 5}, "batch=5 is too small for 2 parameters"),
        ({"max_evaluations": 15}, "leaves no room for a certificate"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"ensemble_size": 9}, "ensemble_size=9 is too small"),
        ({"batch": 2.5}, "batch must be an integer"),
    ],
)
def test_options_that_make_no_sense(options, message):
    fine, _ = pair(bent, straight)
    with pytest.raises(ValueError, match=message):
        Multifidelity(fine, **options)
