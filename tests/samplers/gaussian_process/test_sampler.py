import pickle
from dataclasses import replace

import numpy as np
import pytest
from array_problems import (
    GaussianProblem,
    bimodal,
    decay,
    errors,
    oscillating,
    random_linear,
    run,
    step,
    stiff_linear,
)

from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.gaussian_process.draws import SurrogateDraws
from pymc_ensemble.samplers.gaussian_process.sampler import (
    EnsembleGaussianProcess,
    PublishedGaussianProcess,
    learned,
)
from pymc_ensemble.samplers.gaussian_process.verification import Verification


def learn(problem, rng, U=None, **options):
    """Run until the surrogate is verified, or all epochs are over."""
    sampler = EnsembleGaussianProcess(problem, **options)
    problem.n_evaluations = 0
    U = problem.sample_prior(sampler.size, rng) if U is None else U
    state, reports = sampler.start(U, redraw=True), []
    for _ in range(sampler.epochs + 6):
        if state.burned_in:
            break
        state, info = step(sampler, problem, state, rng)
        reports.append(info)
    return sampler, state, reports


def draws(sampler, problem, state, rng, n_sweeps=20):
    state, snapshots = sampler.freeze(state), []
    while len(snapshots) < n_sweeps:
        state, info = step(sampler, problem, state, rng)
        if info.snapshot is not None:
            snapshots.append(info.snapshot)
    return np.concatenate([snapshot.U for snapshot in snapshots])


def test_a_particle_in_a_hole_does_not_open_it_to_draws():
    problem = decay()
    _, state, _ = learn(problem, np.random.default_rng(0), ensemble_size=60)
    known, draws = learned(state), SurrogateDraws(problem)
    particles = known.ladder.particles.copy()
    particles[0, 0] = known.particles.mean(0) + 30 * known.particles.std(0)
    strayed = replace(known, ladder=replace(known.ladder, particles=particles))
    posterior = known.bound(problem).posterior
    assert posterior.loss_sd(posterior.whitening.coordinates(particles[0, :1])) > 10
    assert draws.start(strayed).surest < 1.5 * draws.start(known).surest


@pytest.mark.parametrize("target", ["forward", "potential"])
@pytest.mark.parametrize("make", [decay, bimodal, lambda: random_linear(4)])
def test_posterior(make, target):
    """2000 nearly independent draws: standard errors of .02 and .016."""
    problem = make()
    sampler, state, _ = learn(problem, np.random.default_rng(0), target=target)
    assert state.converged
    before = problem.n_evaluations
    U = draws(sampler, problem, state, np.random.default_rng(1))
    assert problem.n_evaluations == before, "draws cost no evaluation"
    mean, sd = errors(problem, U)
    assert mean < 0.1
    assert sd < 0.08


def test_rough_map_is_averaged():
    problem, rng = oscillating(True), np.random.default_rng(0)
    sampler, state, _ = learn(
        problem, rng, U=np.random.default_rng(1).random((200, 2)), ensemble_size=200
    )
    assert problem.n_evaluations == 1600
    mean, sd = errors(problem, draws(sampler, problem, state, rng))
    assert mean < 0.35
    assert sd < 0.12


def test_design_is_wider_than_the_posterior_where_the_map_is_rough():
    problem, rng = oscillating(True), np.random.default_rng(0)
    sampler = EnsembleGaussianProcess(problem, ensemble_size=120)
    state, widest = sampler.start(rng.random((120, 2))), 0.0
    for _ in range(8):
        points, pending = sampler.ask(state, rng)
        state, _ = sampler.tell(state, pending, problem.evaluate(points))
        if problem.n_evaluations > 360:
            widest = max(widest, (points.std(0) / problem.sd).min())
    assert widest > 1.3


def test_smooth_map_takes_few_evaluations():
    problem = stiff_linear(10)
    _, state, _ = learn(problem, np.random.default_rng(0), ensemble_size=50)
    assert state.converged
    assert problem.n_evaluations <= 200


def test_same_seed_same_draws_and_states_can_be_pickled():
    problem = decay()
    results = []
    for way in (lambda state: state, lambda state: pickle.loads(pickle.dumps(state))):
        rng = np.random.default_rng(3)
        sampler = EnsembleGaussianProcess(problem, ensemble_size=40)
        state = sampler.start(problem.sample_prior(40, rng))
        for _ in range(3):
            points, pending = way(sampler.ask(state, rng))
            state, _ = sampler.tell(way(state), pending, problem.evaluate(points))
        state = way(sampler.freeze(state))
        state, info = step(sampler, problem, state, rng)
        results.append(info.snapshot.U)
    assert np.array_equal(*results)


def test_tell_changes_neither_state_nor_points():
    problem, rng = decay(), np.random.default_rng(3)
    sampler = EnsembleGaussianProcess(problem, ensemble_size=40)
    U = problem.sample_prior(40, rng)
    given = U.copy()
    state = sampler.start(U)
    for _ in range(2):
        points, pending = sampler.ask(state, rng)
        frozen, asked = pickle.dumps(state), points.copy()
        new, _ = sampler.tell(state, pending, problem.evaluate(points))
        assert pickle.dumps(state) == frozen
        assert np.array_equal(points, asked)
        state = new
    assert np.array_equal(U, given)


# -- archive --------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [False, True])
def test_archive_saves_evaluations(losses):
    """Most times: of the losses alone, a run learns the tails of its archive now and then."""
    with_archive, without = [], []
    for seed in range(3):
        problem, rng = decay(prior_sd=3.0), np.random.default_rng(seed)
        points = problem.mean + 4 * problem.sd * rng.standard_normal((300, 2))
        known = problem.ensemble(points)
        options = {"ensemble_size": 50, "target": "potential" if losses else "forward"}
        archive = (known.U, known.loss if losses else known.Z)
        sampler, state, _ = learn(problem, rng, archive=archive, **options)
        with_archive.append(problem.n_evaluations)
        assert len(learned(state).archive) == len(known) + with_archive[-1]
        if state.converged:
            assert errors(problem, draws(sampler, problem, state, rng, 20))[0] < 0.15
        learn(problem, np.random.default_rng(seed), **options)
        without.append(problem.n_evaluations)
    assert np.median(with_archive) < np.median(without)


def test_failures_of_an_archive_are_remembered():
    problem, rng = decay(), np.random.default_rng(0)
    known = problem.ensemble(problem.sample_prior(60, rng))
    Z = known.Z.copy()
    Z[::3, 0] = np.nan
    sampler = EnsembleGaussianProcess(problem, ensemble_size=30, archive=(known.U, Z))
    state, _ = step(sampler, problem, sampler.start(problem.sample_prior(30, rng)), rng)
    assert np.array_equal(state.inner.failed, known.U[::3])


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (
            (np.zeros((5, 2)), np.zeros((5, 11))),
            "11 outputs for each point, but the problem has 12",
        ),
        ((np.full((5, 2), np.inf), np.zeros((5, 12))), "not finite"),
        ((np.zeros((5, 3)), np.zeros((5, 12))), r"points of the archive have shape \(5, 3\)"),
        ((np.zeros((5, 2)), np.zeros((4, 12))), r"outputs of the archive have shape \(4, 12\)"),
        ((np.zeros((5, 2)), np.zeros(5)), 'use target="potential"'),
    ],
)
def test_archives_of_the_wrong_shape_are_refused(archive, message):
    with pytest.raises(ValueError, match=message):
        EnsembleGaussianProcess(decay(), archive=archive)


# -- failures and degenerate problems -------------------------------------------------------------


def test_failures_at_random_are_left_out():
    luck = np.random.default_rng(5)
    problem = decay().failing(lambda U: luck.random(len(U)) < 0.3)
    sampler, state, reports = learn(problem, np.random.default_rng(0))
    assert state.converged
    assert sum(report.n_failed for report in reports) > 0.15 * problem.n_evaluations
    assert errors(problem, draws(sampler, problem, state, np.random.default_rng(1)))[0] < 0.15


def test_region_of_failures_is_left_out_of_the_posterior():
    """The law is the posterior restricted to the region where the forward map works."""
    problem = random_linear(2)
    cut = problem.mean[0] + 0.5 * problem.sd[0]
    problem.failing(lambda U: U[:, 0] > cut)
    sampler, state, _ = learn(problem, np.random.default_rng(0))
    U = draws(sampler, problem, state, np.random.default_rng(1))
    assert (U[:, 0] > cut + 0.3 * problem.sd[0]).mean() < 0.02
    exact = problem.sample_posterior(200_000, np.random.default_rng(2))
    exact = exact[exact[:, 0] <= cut]
    assert (np.abs(U.mean(0) - exact.mean(0)) < 0.25 * problem.sd).all()


def test_nothing_but_failures_is_an_error():
    problem = decay().failing(lambda U: np.ones(len(U), dtype=bool))
    with pytest.raises(EnsembleFailure, match=r"have failed|finite posterior density"):
        learn(problem, np.random.default_rng(0))


def test_failures_after_the_start_are_an_error():
    calls = []

    def fails(U):
        calls.append(len(U))
        return np.full(len(U), len(calls) > 1)

    with pytest.raises(EnsembleFailure, match="All of the last"):
        learn(decay().failing(fails), np.random.default_rng(0))


def test_outputs_of_very_different_size():
    """Twelve orders of magnitude between the outputs, in the units of their noise."""
    A = np.array([[1.0, 0.0], [0.0, 1.0], [1e6, 1e6], [1e-6, 0.0]])
    problem = random_linear(2)
    problem.forward_map, problem.data = lambda U: U @ A.T, A @ [0.3, -0.3]
    problem.P0, problem.prior_mean = np.eye(2), np.zeros(2)
    sampler, state, _ = learn(problem, np.random.default_rng(0))
    precision = A.T @ A + np.eye(2)
    U = draws(sampler, problem, state, np.random.default_rng(1))
    along = np.array([1.0, -1.0]) / np.sqrt(2)  # what the large output leaves open
    sd = np.sqrt(along @ np.linalg.inv(precision) @ along)
    assert (U @ along).std() == pytest.approx(sd, rel=0.15)


def test_exponential_outputs_from_a_wide_prior():
    """Outputs of the first ensemble span more than twelve orders of magnitude."""
    problem = decay(prior_sd=5.0)
    outputs = problem.ensemble(problem.sample_prior(100, np.random.default_rng(0))).Z
    outputs = outputs[outputs > 1e-30]
    assert outputs.max() / outputs.min() > 1e12
    sampler, state, _ = learn(problem, np.random.default_rng(0))
    assert state.converged
    assert errors(problem, draws(sampler, problem, state, np.random.default_rng(1)))[0] < 0.15


def test_constant_outputs_leave_the_prior():
    problem = GaussianProblem(lambda U: np.ones((len(U), 3)), np.ones(3), np.zeros(2), np.eye(2))
    sampler, state, _ = learn(problem, np.random.default_rng(0))
    assert state.converged
    U = draws(sampler, problem, state, np.random.default_rng(1))
    np.testing.assert_allclose(U.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(U.std(0), 1, atol=0.12)


@pytest.mark.parametrize("seed", range(2))
def test_start_of_few_points_does_not_cut_the_posterior(seed):
    """Losses of few points are predicted without error, but the posterior goes on beyond them."""
    problem, rng = random_linear(3), np.random.default_rng(seed)
    U = np.repeat(problem.mean + 0.3 * problem.sd * rng.standard_normal((8, 3)), 10, axis=0)
    sampler, state, _ = learn(problem, rng, U=U, target="potential", ensemble_size=80)
    assert state.converged
    mean, sd = errors(problem, draws(sampler, problem, state, rng, 40))
    assert mean < 0.12
    assert sd < 0.08


@pytest.mark.parametrize("target", ["forward", "potential"])
def test_start_from_nearly_one_point(target):
    """A ball of a thousandth of the posterior's size, as around an optimum."""
    problem, rng = random_linear(3), np.random.default_rng(0)
    U = problem.mean + 1e-3 * problem.sd * rng.standard_normal((40, 3))
    sampler, state, _ = learn(problem, rng, U=U, target=target, ensemble_size=40)
    assert state.converged
    mean, sd = errors(problem, draws(sampler, problem, state, rng, 50))
    assert mean < 0.12
    assert sd < 0.08


def test_duplicates_in_the_initial_ensemble():
    problem, rng = decay(), np.random.default_rng(0)
    U = np.repeat(problem.sample_prior(10, rng), 10, axis=0)
    sampler, state, _ = learn(problem, rng, U=U)
    assert state.converged
    assert errors(problem, draws(sampler, problem, state, rng))[0] < 0.15


def test_one_parameter():
    problem = random_linear(1)
    sampler, state, _ = learn(problem, np.random.default_rng(0), ensemble_size=20)
    assert state.converged
    mean, sd = errors(problem, draws(sampler, problem, state, np.random.default_rng(1), 100))
    assert mean < 0.12
    assert sd < 0.1


@pytest.mark.parametrize("target", ["forward", "potential"])
def test_thirty_parameters(target):
    """Outputs are learned; the loss alone is not, which is seen."""
    problem = stiff_linear(30)
    sampler, state, _ = learn(problem, np.random.default_rng(0), target=target, ensemble_size=130)
    assert state.converged == (target == "forward")
    if target == "forward":
        mean, _ = errors(problem, draws(sampler, problem, state, np.random.default_rng(1), 5))
        assert mean < 0.2


# -- verification ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "noise", "passed"),
    [
        (np.zeros(100), 0.1, True),
        (np.full(100, 1.5), 0.1, False),  # biased
        (np.linspace(-3, 3, 100), 0.1, False),  # scattered
        (np.r_[np.zeros(90), np.tile([-9.0, 9.0], 5)], 0.1, False),  # outliers
        (np.linspace(-3, 3, 100), 3.0, True),  # noise explains it
    ],
)
def test_verification(difference, noise, passed):
    assert Verification.of(difference, np.full(100, noise)).passed is passed


def test_particles_beyond_all_evaluations_are_not_verified():
    zero, noise = np.zeros(100), np.full(100, 0.1)
    assert Verification.of(zero, noise, beyond=0.03).passed
    failed = Verification.of(zero, noise, beyond=0.04)
    assert not failed.passed
    assert "4% of the particles beyond all evaluations" in str(failed)


def test_map_that_changes_its_mind_is_not_verified():
    """A surrogate of evaluations that say nothing of later ones never passes."""
    problem, n = decay(), []

    def drifting(U):
        n.append(len(U))
        return (
            np.exp(U[:, :1]) * np.exp(-np.exp(U[:, 1:]) * np.linspace(0.2, 4, 12)) * 2.0 ** len(n)
        )

    problem.forward_map = drifting
    _, state, reports = learn(problem, np.random.default_rng(0), ensemble_size=40)
    assert not state.converged
    assert len(reports) == 13
    assert "verification failed" in reports[-1].message


def test_fewer_rounds_leave_room_for_the_verification():
    problem, rng = oscillating(True), np.random.default_rng(0)
    sampler = EnsembleGaussianProcess(problem, ensemble_size=40)
    state = sampler.start(rng.random((40, 2)), rounds=4)
    for _ in range(4):
        state, info = step(sampler, problem, state, rng)
    assert problem.n_evaluations == 160
    assert "verification" in info.message


# -- other schemes --------------------------------------------------------------------------------


def test_delayed_acceptance_is_exact():
    """A surrogate that was hardly trained explores badly, but the law is right."""
    problem, rng = decay(noise=0.3), np.random.default_rng(0)
    sampler = EnsembleGaussianProcess(problem, adjust=True, epochs=2)
    state = sampler.start(problem.sample_prior(100, rng), rounds=3)
    for _ in range(3):
        state, _ = step(sampler, problem, state, rng)
    U = draws(sampler, problem, state, rng, 120)[4000:]
    mean, sd = errors(problem, U)
    assert mean < 0.06
    assert sd < 0.06


def test_delayed_acceptance_takes_an_evaluation_a_draw():
    problem = decay()
    sampler = EnsembleGaussianProcess(problem, adjust=True)
    _, U = run(sampler, problem, np.random.default_rng(0), max_evaluations=2000)
    assert len(U) == (2000 - 300) // 100
    # lp is that of the map itself, and nearly all proposals are accepted
    state, snapshots = sampler.start(U[-1]), []
    rng = np.random.default_rng(1)
    while not snapshots:
        state, info = step(sampler, problem, state, rng)
        state = sampler.freeze(state) if problem.n_evaluations > 2400 else state
        snapshots += [info.snapshot] if info.snapshot is not None else []
    np.testing.assert_allclose(snapshots[0].lp, -problem.ensemble(snapshots[0].U).potential)
    assert snapshots[0].acceptance.mean() > 0.8


def test_published_scheme_finds_a_smooth_posterior():
    problem, rng = decay(noise=0.3), np.random.default_rng(0)
    sampler = PublishedGaussianProcess(problem, ensemble_size=60)
    U = problem.mean + problem.sd * rng.standard_normal((60, 2))
    state = sampler.freeze(step(sampler, problem, sampler.start(U), rng)[0])
    kept = []
    for _ in range(120):
        state, info = step(sampler, problem, state, rng)
        kept.append(info.snapshot.U)
        assert info.n_evaluations == 60
    mean, sd = errors(problem, np.concatenate(kept[40:]))
    assert mean < 0.5
    assert sd < 0.5


# -- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "outputs"}, "target must be"),
        ({"epochs": 1}, "epochs must be an integer of at least 2"),
        ({"ensemble_size": 3}, "too small for 2 parameters.*3 coefficients.*at least 4"),
        ({"ensemble_size": 1}, "at least 2"),
        ({"ensemble_size": 10.5}, "must be an integer"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        EnsembleGaussianProcess(decay(), **options)


def test_wrong_options_of_the_published_scheme():
    with pytest.raises(ValueError, match="dt must be positive"):
        PublishedGaussianProcess(decay(), dt=-1.0)
    with pytest.raises(ValueError, match="too small for 2 parameters"):
        PublishedGaussianProcess(decay(), ensemble_size=3)


def test_outputs_of_a_density_cannot_be_the_target():
    problem = decay()
    problem.density_only = True
    with pytest.raises(ValueError, match="only the log density of this model"):
        EnsembleGaussianProcess(problem, target="forward")


def test_ensemble_without_spread_is_refused():
    problem, rng = decay(), np.random.default_rng(0)
    sampler = EnsembleGaussianProcess(problem, ensemble_size=20)
    U = np.column_stack([rng.standard_normal(20), np.ones(20)])
    with pytest.raises(EnsembleFailure, match="spans 1 of 2 dimensions"):
        step(sampler, problem, sampler.start(U), rng)
