import pickle

import numpy as np
import pytest
from array_problems import (
    Density,
    LinearProblem,
    bimodal,
    burn_in,
    decay,
    errors,
    oscillating,
    random_linear,
    run,
    step,
    stiff_linear,
    sweeps,
)

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.langevin_steps import EULER_STEP
from pymc_ensemble.samplers.multiscale.explorers import Preconditioner
from pymc_ensemble.samplers.multiscale.pilot import Pilot, herd
from pymc_ensemble.samplers.multiscale.probe import PROBES
from pymc_ensemble.samplers.multiscale.sampler import Multiscale, PublishedMultiscale
from pymc_ensemble.samplers.multiscale.warm_up import LARGEST_STEP
from pymc_ensemble.samplers.rest import FORGOTTEN

WARM_UP = int(np.ceil(FORGOTTEN / LARGEST_STEP))  # steps


def start(sampler, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    U = sampler.problem.sample_prior(sampler.start_size, rng)
    return sampler.start(U, redraw=True, **kwargs), rng


def stage(state):
    """What goes on: the phases of a sampler, with the pilot's probe apart."""
    if state.phase == "settling":
        return "probe" if state.inner.probing else "warm-up"
    if state.phase == "sampling":
        return "sampling"
    return "pilot" if state.pilot is None else "probe"


def sampler_of(problem, **options):
    cls = PublishedMultiscale if options.pop("scheme", "averaged") == "paper" else Multiscale
    return cls(problem, **options)


def until(sampler, state, rng, phase, max_rounds=500):
    """State at the beginning of a stage."""
    for _ in range(max_rounds):
        if stage(state) == phase:
            return state
        state, _ = step(sampler, sampler.problem, state, rng)
    raise AssertionError(f"{phase} does not begin")


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjust": True, "rough": True}, "exclude each other"),
        ({"adjust": True, "delta": 0.1}, "delta has no meaning"),
        ({"directions": 0}, "directions must be an integer of at least 1, not 0"),
        ({"directions": 2.5}, "directions must be an integer"),
        ({"walkers": 0}, "walkers must be an integer of at least 1, not 0"),
        ({"walkers": "ten"}, "walkers must be an integer"),
        ({"sigma": 0.0}, "sigma must be positive, not 0.0"),
        ({"sigma": np.inf}, "sigma must be positive"),
        ({"step_size": -0.1}, "step_size must be positive"),
        ({"step_size": True}, "step_size must be positive"),
        ({"delta": -1.0}, "delta must be a number of at least 0"),
        ({"preconditioner": "posterior"}, "not 'posterior'"),
        ({"preconditioner": np.eye(3)}, r"shape \(3, 3\), but the model has 2 .*\(2, 2\)"),
        ({"preconditioner": -np.eye(2)}, "symmetric and positive definite"),
        ({"preconditioner": [[1.0, 0.5], [0.0, 1.0]]}, "symmetric and positive definite"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Multiscale(random_linear(2), **options)


def test_rough_density_is_refused():
    with pytest.raises(ValueError, match="only the log density of this model is known"):
        Multiscale(Density(random_linear(2)), rough=True)


@pytest.mark.parametrize(
    ("d", "options", "cloud"),
    [
        (3, {}, 4),
        (3, {"directions": 1}, 2),
        (3, {"directions": 7}, 8),
        (3, {"central": True}, 7),
        (3, {"rough": True}, 7),
        (3, {"rough": True, "central": False}, 4),
        (40, {}, 41),
    ],
)
def test_evaluations_of_a_step(d, options, cloud):
    sampler = Multiscale(random_linear(d), walkers=3, **options)
    assert sampler.evaluations_per_sweep == 3 * cloud
    assert sampler.size == 3


# -- phases and what they cost --------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"adjust": True}, {"scheme": "paper"}, {"rough": True}])
def test_every_round_is_counted(options):
    """One batch a round, and a step of the walkers is one round."""
    problem = random_linear(3)
    sampler = sampler_of(problem, walkers=4, **options)
    state, rng = start(sampler)
    phases, told = [], 0
    problem.n_evaluations = 0
    while not state.burned_in:
        phases.append(stage(state))
        points, pending = sampler.ask(state, rng)
        if stage(state) == "warm-up":
            assert len(points) == sampler.evaluations_per_sweep
        if stage(state) == "probe":
            assert len(points) == PROBES * 7
        assert not state.converged
        state, info = sampler.tell(state, pending, problem.evaluate(points))
        assert info.snapshot is None
        assert info.phase in ("start", "burn-in")
        told += info.n_evaluations
        assert told == problem.n_evaluations
    order = list(dict.fromkeys(phases))
    assert order == ["pilot", "probe", "warm-up"]
    assert state.converged
    before = problem.n_evaluations
    state, snapshots = sweeps(sampler, problem, state, 5, rng)
    assert problem.n_evaluations - before == 5 * sampler.evaluations_per_sweep
    assert snapshots[0].U.shape == (4, 3)
    assert sampler.finish(state, snapshots, rng) == snapshots


def test_stiffness_of_a_linear_problem():
    """The largest eigenvalue of K times the precision, exactly, in every frame."""
    problem = random_linear(4)
    sampler = Multiscale(problem, preconditioner=np.diag([0.1, 0.2, 0.3, 0.4]))
    state, rng = start(sampler)
    state = until(sampler, state, rng, "warm-up")
    eigenvalues = np.linalg.eigvals(np.diag([0.1, 0.2, 0.3, 0.4]) @ problem.precision).real
    assert state.pilot.stiffness == pytest.approx(eigenvalues.max(), rel=1e-8)
    assert state.inner.step_size == pytest.approx(min(0.8, 1.4 / eigenvalues.max()))


@pytest.mark.parametrize("scaled", [False, True])
def test_stiffness_of_a_density(scaled):
    """Only the bend along directions is seen: with or without scaling, steps must be stable."""
    problem = stiff_linear(10)
    K = 0.5 * problem.covariance if scaled else np.eye(10)
    sampler = Multiscale(Density(problem), preconditioner=K)
    state, rng = start(sampler)
    state = until(sampler, state, rng, "warm-up")
    largest = 0.5 if scaled else np.linalg.eigvalsh(problem.precision)[-1]
    assert 0.95 * largest < state.pilot.stiffness < 1.8 * largest


def test_stiffness_beside_a_wall():
    """Explorers that meet a density of zero are left out."""

    class HalfLine(Density):
        def loss(self, Z):
            return np.where(Z[:, 0] > 1e290, np.inf, Z[:, 0])

        def evaluate(self, U):
            return Evaluations.from_outputs(np.where(U[:, :1] > 0, U[:, :1], 1e300))

    sampler = Multiscale(HalfLine(random_linear(1)), preconditioner=[[1.0]])
    U = np.linspace(1e-4, 0.3, 20)[:, None]
    state = sampler.start(U, skip_burn_in=True)
    state, _ = step(sampler, sampler.problem, state, np.random.default_rng(0))
    assert state.pilot.stiffness == pytest.approx(sampler.problem.P0[0, 0], rel=1e-6)


def test_bad_luck_does_not_shorten_steps():
    """Three in ten points fail, wherever they are: shorter steps would fail as often."""
    sizes = {}
    for share in (0.0, 0.3):
        sizes[share] = []
        for seed in range(8):
            problem, luck = random_linear(2), np.random.default_rng(seed)
            evaluate = problem.evaluate

            def unlucky(U, seed=None, evaluate=evaluate, luck=luck, share=share):
                outputs = evaluate(U).outputs
                outputs[luck.random(len(U)) < share] = np.nan
                return Evaluations.from_outputs(outputs)

            problem.evaluate = unlucky
            sampler = Multiscale(problem, adjust=True)
            state, rng = start(sampler, seed)
            state = until(sampler, state, rng, "sampling")
            sizes[share].append(np.log(state.inner.step_size))
    difference = np.mean(sizes[0.3]) - np.mean(sizes[0.0])
    spread = np.hypot(*(np.std(s, ddof=1) for s in sizes.values())) / np.sqrt(8)
    assert difference > np.log(0.6) - 3 * spread


def test_step_size_of_the_user():
    sampler = Multiscale(random_linear(2), step_size=0.123, adjust=True)
    state, rng = start(sampler)
    state = until(sampler, state, rng, "sampling")
    assert state.inner.step_size == 0.123


def test_published_steps_are_small():
    sampler = PublishedMultiscale(stiff_linear(10))
    state, rng = start(sampler)
    state = until(sampler, state, rng, "sampling")
    assert state.inner.step_size <= 0.1 * 10 / 11


def test_adjusted_steps_are_tuned():
    problem = decay(noise=0.3)
    sampler = Multiscale(problem, walkers=10, adjust=True)
    state, rng = start(sampler)
    state = until(sampler, state, rng, "sampling")
    _, snapshots = sweeps(sampler, problem, state, 200, rng)
    assert np.mean([s.acceptance for s in snapshots]) == pytest.approx(0.57, abs=0.12)
    assert len({s.step_size for s in snapshots}) == 1


def test_preconditioner_is_the_covariance():
    problem = random_linear(3)
    sampler = Multiscale(problem)
    state, rng = start(sampler)
    state = until(sampler, state, rng, "probe")
    root = state.pilot.preconditioner.root
    eigenvalues = np.linalg.eigvals(root @ root.T @ problem.precision).real
    assert eigenvalues.min() > 0.6
    assert eigenvalues.max() < 1.6


@pytest.mark.parametrize(("given", "K"), [(None, np.eye(2)), (np.diag([2.0, 3.0]),) * 2])
def test_given_preconditioner(given, K):
    """From given positions there is no pilot; from the prior the pilot finds positions alone."""
    problem = random_linear(2)
    sampler = Multiscale(problem, preconditioner=given)
    state, rng = start(sampler)
    assert stage(state) == "pilot"
    state = until(sampler, state, rng, "sampling")
    root = state.inner.preconditioner.root
    np.testing.assert_allclose(root @ root.T, K)
    state = sampler.start(problem.sample_posterior(20, rng))
    assert stage(state) == "probe"
    state = until(sampler, state, rng, "sampling")
    assert state.converged


def test_positions_of_the_posterior_need_no_pilot():
    problem, rng = random_linear(3), np.random.default_rng(0)
    sampler = Multiscale(problem, walkers=5)
    problem.n_evaluations = 0
    state = sampler.start(problem.sample_posterior(400, rng), skip_burn_in=True)
    state, _ = burn_in(sampler, problem, state, rng)
    # the probe, the first evaluation of the walkers, and their warm-up
    assert problem.n_evaluations == PROBES * 7 + (1 + WARM_UP) * 20
    assert state.converged


def test_too_few_positions_for_a_pilot():
    sampler = Multiscale(random_linear(3))
    with pytest.raises(ValueError, match=r"has 9 members, .* at least 10"):
        sampler.start(np.zeros((9, 3)))


def test_chains_start_where_the_pilot_has_been():
    """At different positions, with one pilot, and no evaluation spent twice."""
    problem = random_linear(2)
    sampler = Multiscale(problem, walkers=2)
    state, rng = start(sampler)
    state = until(sampler, state, rng, "sampling")
    pilot, starts = state.pilot, []
    for number in range(3):
        problem.n_evaluations = 0
        other = sampler.set_out(pilot, number)
        assert stage(other) == "warm-up"
        starts.append(other.inner.U)
        other, _ = burn_in(sampler, problem, other, rng)
        assert problem.n_evaluations == (1 + WARM_UP) * sampler.evaluations_per_sweep
        assert other.converged
    assert len(np.unique(np.concatenate(starts), axis=0)) == 6


def test_more_walkers_than_positions_repeat_them():
    pilot = Pilot(np.arange(6.0).reshape(3, 2), Preconditioner(np.zeros(2), np.eye(2)), 1.0)
    state = Multiscale(random_linear(2), walkers=5).set_out(pilot, 1)
    np.testing.assert_array_equal(state.inner.U, pilot.positions[[2, 0, 1, 2, 0]])


@pytest.mark.parametrize("phase", ["pilot", "probe", "warm-up", "sampling"])
def test_freeze_goes_on_with_what_is_known(phase):
    problem = random_linear(2)
    sampler = Multiscale(problem, walkers=3)
    state, rng = start(sampler)
    state, _ = step(sampler, problem, state, rng)
    state = sampler.freeze(until(sampler, state, rng, phase))
    assert state.burned_in
    assert state.converged == (phase == "sampling")
    state, snapshots = sweeps(sampler, problem, state, 3, rng)
    assert np.isfinite([s.lp for s in snapshots]).all()


@pytest.mark.parametrize("rounds", [1, 6, 12])
def test_freeze_during_the_pilot(rounds):
    problem = random_linear(2)
    sampler = Multiscale(problem, walkers=3)
    state, rng = start(sampler)
    for _ in range(rounds):
        state, _ = step(sampler, problem, state, rng)
    state = sampler.freeze(state)
    assert state.burned_in
    assert not state.converged
    sweeps(sampler, problem, state, 3, rng)


def test_forgotten_posterior_is_evaluated_anew():
    problem = random_linear(2)
    sampler = Multiscale(problem)
    state, rng = start(sampler)
    state = until(sampler, state, rng, "sampling")
    state, _ = sweeps(sampler, problem, state, 1, rng)
    forgotten = sampler.forget(state)
    assert forgotten.ensemble is None
    points, _ = sampler.ask(forgotten, rng)
    np.testing.assert_array_equal(points[0], state.inner.U[0])
    assert stage(sampler.forget(start(sampler)[0])) == "pilot"


# -- representation of the posterior --------------------------------------------------------------


def test_herd_represents_the_points():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(-3, 1, (700, 2)), rng.normal(3, 1, (300, 2))])
    chosen = herd(points, 100)
    assert len(set(chosen.tolist())) == 100
    for n in (10, 20, 50, 100):
        share = (points[chosen[:n], 0] < 0).mean()
        assert abs(share - 0.7) <= 1.01 / n
        # independent draws would miss by 3.2 / sqrt(n) in each coordinate
        assert np.abs(points[chosen[:n]].mean(0) - points.mean(0)).max() < 3 / n + 0.1


def test_herd_of_few_points():
    assert sorted(herd(np.arange(6.0).reshape(3, 2), 10).tolist()) == [0, 1, 2]


# -- whole runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "mean", "sd"),
    [
        (lambda: stiff_linear(10), {}, 0.12, 0.09),
        (lambda: Density(stiff_linear(5)), {}, 0.12, 0.09),
        (lambda: decay(noise=0.3), {"adjust": True}, 0.15, 0.12),
        (lambda: decay(), {"adjust": True, "directions": 1, "sigma": 1.0}, 0.25, 0.15),
        (bimodal, {}, 0.3, 0.12),
    ],
)
def test_moments_of_a_run(make, options, mean, sd):
    """Bounds are about four Monte Carlo errors."""
    problem = make()
    sampler = Multiscale(problem, walkers=20, **options)
    state, draws = run(sampler, problem, np.random.default_rng(1), n_sweeps=400)
    assert state.converged
    shift, ratio = errors(problem, draws)
    assert shift < mean
    assert ratio < sd


def test_rough_map_is_averaged():
    """Explorers at a distance see the slope behind the oscillation, others only that."""
    problem, found = oscillating(True), {}
    for rough in (True, False):
        sampler = Multiscale(problem, walkers=20, rough=rough)
        _, draws = run(sampler, problem, np.random.default_rng(1), n_sweeps=300)
        found[rough] = errors(problem, draws)
    assert found[True][0] < 0.35
    assert found[True][1] < 0.3
    assert found[False][0] > 1


def test_failing_members():
    problem = random_linear(3)
    luck = np.random.default_rng(7)
    problem.failing(lambda U: luck.random(len(U)) < 0.05)
    sampler = Multiscale(problem, walkers=20)
    state, rng = start(sampler)
    state = until(sampler, state, rng, "probe")
    problem.fails = None
    state, _ = step(sampler, problem, state, rng)
    state, _ = step(sampler, problem, state, rng)
    problem.failing(lambda U: luck.random(len(U)) < 0.05)
    state = until(sampler, state, rng, "sampling")
    state, snapshots = sweeps(sampler, problem, state, 300, rng)
    # moves that fail are refused at random, explorers at random: neither biases much
    shift, ratio = errors(problem, np.array([s.U for s in snapshots]))
    assert shift < 0.1
    assert ratio < 0.1


def test_nothing_but_failures():
    problem = random_linear(3).failing(lambda U: np.ones(len(U), bool))
    sampler = Multiscale(problem)
    state, rng = start(sampler)
    with pytest.raises(EnsembleFailure):
        until(sampler, state, rng, "probe")


def test_stiffness_that_cannot_be_measured():
    """All explorers of the probe fail: a small step is taken on trust."""
    problem = random_linear(2)
    sampler = Multiscale(problem, preconditioner=problem.covariance)
    rng = np.random.default_rng(0)
    state = sampler.start(problem.sample_posterior(30, rng))
    problem.failing(lambda U: np.ones(len(U), bool))
    state, _ = step(sampler, problem, state, rng)
    problem.fails = None
    assert np.isnan(state.pilot.stiffness)
    assert state.inner.step_size == EULER_STEP
    state = until(sampler, state, rng, "sampling")


@pytest.mark.parametrize("options", [{}, {"adjust": True}, {"delta": 0.5}, {"scheme": "paper"}])
def test_states_pickle_at_every_round(options):
    """What comes after is the same, bit by bit, and no state is changed by what comes after."""
    problem = random_linear(2)
    sampler = sampler_of(problem, walkers=2, **options)
    state, rng = start(sampler)
    states, generators, expected = [], [], []
    while len(expected) < 3:
        states.append(pickle.dumps(state))
        generators.append(pickle.dumps(rng))
        state, info = step(sampler, problem, state, rng)
        expected += [] if info.snapshot is None else [info.snapshot.U]
    for k in {*range(0, len(states), len(states) // 8), len(states) - 1}:
        other, rng = pickle.loads(states[k]), pickle.loads(generators[k])
        found = []
        for _ in range(len(states) - k):
            other, info = step(sampler, problem, other, rng)
            found += [] if info.snapshot is None else [info.snapshot.U]
        np.testing.assert_array_equal(found[-1], expected[-1])


def test_the_callers_arrays_are_left_alone():
    problem = random_linear(2)
    matrix = 2 * problem.covariance
    sampler = Multiscale(problem, preconditioner=matrix, walkers=2)
    rng = np.random.default_rng(0)
    U = problem.sample_posterior(30, rng)
    copies = U.copy(), matrix.copy()
    state = sampler.start(U)
    state = until(sampler, state, rng, "sampling")
    sweeps(sampler, problem, state, 3, rng)
    np.testing.assert_array_equal(U, copies[0])
    np.testing.assert_array_equal(matrix, copies[1])


def test_one_dimension():
    problem = LinearProblem(np.array([[2.0], [1.0]]), [1.0, 0.3], [0.5], [[1.0]])
    sampler = Multiscale(problem, walkers=10)
    _, draws = run(sampler, problem, np.random.default_rng(1), n_sweeps=500)
    shift, ratio = errors(problem, draws)
    assert shift < 0.1
    assert ratio < 0.06


def test_a_full_frame_pays_in_many_dimensions():
    """Errors are root mean squares over 40 coordinates and 4 seeds, so known to 6%."""
    problem, squares = random_linear(40), []
    for options in ({}, {"directions": 20}):
        draws = [
            run(
                Multiscale(problem, walkers=10, **options),
                problem,
                np.random.default_rng(seed),
                max_evaluations=20_000,
            )[1]
            for seed in range(4)
        ]
        squares.append(np.mean([errors(problem, U.reshape(-1, 40))[0] ** 2 for U in draws]))
    assert np.sqrt(squares[0] / squares[1]) < 0.75


def test_fewer_directions_than_dimensions():
    """Steps are as small as that demands."""
    problem = random_linear(35)
    sampler = Multiscale(problem, walkers=10, directions=20)
    assert sampler.evaluations_per_sweep == 210
    state = sampler.start(
        problem.sample_posterior(200, np.random.default_rng(0)), skip_burn_in=True
    )
    state, _ = step(sampler, problem, state, np.random.default_rng(1))
    assert state.inner.step_size <= 0.1 * 20 / 36
