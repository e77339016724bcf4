import pickle
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from array_problems import (
    PoissonRegression,
    bimodal,
    decay,
    errors,
    oscillating,
    random_linear,
    run,
    step,
    stiff_linear,
    sweeps,
)

from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.examination import Examination
from pymc_ensemble.samplers.kalman.examined import ExaminedState
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman, PublishedKalman
from pymc_ensemble.samplers.tempering import BurnInState

SCHEMES = {
    "plain": {},
    "short steps": {"dt": 0.3},
    "small ensemble": {"ensemble_size": 6},
    "adjust": {"adjust": True},
    "rough": {"rough": True},
    "paper": {"scheme": "paper"},
    "printed": {"scheme": "paper", "corrected": False, "dt": 0.1},
}
schemes = pytest.mark.parametrize("options", SCHEMES.values(), ids=list(SCHEMES))
PROBLEMS = {"gaussian": decay, "pointwise": PoissonRegression}


def sampler_for(problem, options):
    options = {"ensemble_size": 40} | options
    cls = PublishedKalman if options.pop("scheme", "exact") == "paper" else EnsembleKalman
    return cls(problem, **options)


# -- affine invariance ----------------------------------------------------------------------------


@pytest.mark.parametrize("decades", [(0, 0), (-8, 8), (-8, -8)])
@pytest.mark.parametrize("name", [n for n in SCHEMES if n != "rough"])
def test_paths_are_the_same_in_all_affine_coordinates(name, decades):
    """u -> B u + c, from the burn-in on, in units that differ by up to 16 decades."""
    problem = decay(noise=0.3)
    B = np.diag(10.0 ** np.array(decades)) @ [[1.0, 0.4], [-0.6, 0.9]]
    c = B @ [0.3, -2.0]
    image = problem.transformed(B, c)
    for seed in range(3):
        paths = []
        for p in (problem, image):
            U = problem.sample_prior(40, np.random.default_rng(seed))
            sampler, rng = sampler_for(p, SCHEMES[name]), np.random.default_rng(seed + 50)
            U = U[: sampler.size]
            state, path = sampler.start(U if p is problem else U @ B.T + c), []
            for _ in range(25):
                state, _ = step(sampler, p, state, rng)
                path.append(state.ensemble.U)
            paths.append(path)
        scale = np.diag(B @ np.diag(problem.sd**2) @ B.T) ** 0.5
        for here, there in zip(*paths, strict=True):
            np.testing.assert_allclose((here @ B.T + c) / scale, there / scale, atol=1e-6)


def test_paths_of_the_pointwise_force_are_affine_invariant():
    problem, rng = PoissonRegression(), np.random.default_rng(0)
    B = np.logspace(-6, 6, 5)[:, None] * (np.eye(5) + 0.3 * rng.random((5, 5)))
    c, U = B @ rng.standard_normal(5), problem.sample_prior(60, rng)
    paths = []
    for p, X in ((problem, U), (problem.transformed(B, c), U @ B.T + c)):
        sampler, r = EnsembleKalman(p, ensemble_size=60), np.random.default_rng(1)
        state = sampler.start(X)
        for _ in range(20):
            state, _ = step(sampler, p, state, r)
        assert state.inner.pointwise
        paths.append(state.ensemble.U)
    scale = np.abs(B) @ problem.sd
    np.testing.assert_allclose((paths[0] @ B.T + c) / scale, paths[1] / scale, atol=1e-6)


# -- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_linear_problem(seed):
    problem = stiff_linear(10)
    state, U = run(
        EnsembleKalman(problem), problem, np.random.default_rng(seed), max_evaluations=2100
    )
    assert state.converged
    assert np.less(errors(problem, U), (0.08, 0.05)).all()


@pytest.mark.parametrize("options", [{}, {"adjust": True}], ids=["plain", "adjust"])
@pytest.mark.parametrize("seed", range(3))
def test_random_failures_keep_the_posterior(seed, options):
    """At 30% failures, half as many evaluations more reach one and a half times the bounds."""
    problem, luck = stiff_linear(10), np.random.default_rng(seed + 100)
    problem.failing(lambda U: luck.random(len(U)) < 0.3)
    sampler = EnsembleKalman(problem, **options)
    _, U = run(sampler, problem, np.random.default_rng(seed), max_evaluations=3150)
    assert np.less(errors(problem, U), (0.12, 0.075)).all()


@schemes
@pytest.mark.parametrize("problem", PROBLEMS)
def test_same_seed_same_path(problem, options):
    problem = PROBLEMS[problem]()
    if options.get("ensemble_size") == 6:
        options = {"ensemble_size": problem.dimension + 3}
    one, other = (
        run(sampler_for(problem, options), problem, np.random.default_rng(3), n_sweeps=3)[1]
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
    assert np.isfinite(one).all()


def arrays(record):
    """All arrays in nested records."""
    if isinstance(record, np.ndarray):
        yield record
    elif isinstance(record, tuple | dict):
        for item in record.values() if isinstance(record, dict) else record:
            yield from arrays(item)
    elif is_dataclass(record):
        for field in fields(record):
            yield from arrays(getattr(record, field.name))


def lock(record):
    for array in arrays(record):
        array.flags.writeable = False


@schemes
def test_nothing_is_changed_in_place(options):
    """Neither the caller's positions, nor states, nor evaluations: all of them are locked."""
    problem = decay()
    sampler, rng = sampler_for(problem, options), np.random.default_rng(4)
    U = problem.sample_prior(sampler.size, rng)
    U.flags.writeable = False
    state = sampler.start(U, redraw=True)
    for k in range(60):
        lock(state)
        points, pending = sampler.ask(state, rng)
        lock(pending)
        evaluations = problem.evaluate(points)
        lock(evaluations)
        state, info = sampler.tell(state, pending, evaluations)
        lock(info)
        if k == 40:
            state = sampler.freeze(state)
    assert info.phase == "sampling"
    assert sampler.start(U).inner.U is not U


@schemes
def test_rounds_can_be_asked_and_told_again(options):
    """A state is a value: the same state and generator give the same round, whatever was done with
    them before."""
    problem = decay()
    sampler, rng = sampler_for(problem, options), np.random.default_rng(5)
    state = sampler.start(problem.sample_prior(sampler.size, rng))
    for _ in range(40):
        seed = rng.integers(2**32)
        results = []
        for _ in range(2):
            points, pending = sampler.ask(state, np.random.default_rng(seed))
            evaluations = problem.evaluate(points)
            results += [sampler.tell(state, pending, evaluations) for _ in range(2)]
        for other, _ in results[1:]:
            np.testing.assert_array_equal(other.ensemble.U, results[0][0].ensemble.U)
        state = results[0][0]


@schemes
def test_states_can_be_stored_and_resumed(options):
    problem = decay()
    sampler, rng = sampler_for(problem, options), np.random.default_rng(6)
    state = sampler.start(problem.sample_prior(sampler.size, rng))
    for _ in range(30):
        copy, copied_rng = pickle.loads(pickle.dumps((state, rng)))
        state, _ = step(sampler, problem, state, rng)
        again = sampler_for(problem, options)
        copy, _ = step(again, problem, copy, copied_rng)
        np.testing.assert_array_equal(state.ensemble.U, copy.ensemble.U)
        assert copy.phase == state.phase


@schemes
@pytest.mark.parametrize("n", [1, 4])
def test_evaluations_are_those_of_the_whole_ensemble_a_sweep(options, n):
    problem = random_linear(2)
    sampler, rng = sampler_for(problem, options), np.random.default_rng(7)
    state, reported = sampler.start(problem.sample_prior(sampler.size, rng)), 0
    problem.n_evaluations = 0
    while not state.burned_in:
        state, info = step(sampler, problem, state, rng)
        assert info.snapshot is None
        reported += info.n_evaluations
    assert reported == problem.n_evaluations
    assert reported % sampler.size == 0
    if sampler.size > 8 and not options.get("rough") and "scheme" not in options:
        assert reported == 2 * sampler.size  # linear: the start and the confirmed guess
    sweeps(sampler, problem, state, n, rng)
    assert problem.n_evaluations == reported + n * sampler.size


# -- phases ---------------------------------------------------------------------------------------


@schemes
@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_freezing_goes_on_from_any_phase(options, rounds):
    problem = decay()
    sampler, rng = sampler_for(problem, options), np.random.default_rng(8)
    state = sampler.start(problem.sample_prior(sampler.size, rng))
    for _ in range(rounds):
        state, _ = step(sampler, problem, state, rng)
    state = sampler.freeze(state)
    assert state.burned_in
    _, snapshots = sweeps(sampler, problem, state, 2, rng)
    assert all(np.isfinite(s.U).all() for s in snapshots)


@pytest.mark.parametrize("options", [{}, {"adjust": True}, {"dt": 0.3}])
def test_a_finished_burn_in_can_be_skipped(options):
    problem = random_linear(2)
    sampler, rng = sampler_for(problem, options), np.random.default_rng(9)
    U = problem.sample_posterior(40, rng)
    state = sampler.start(U, skip_burn_in=True)
    state, info = step(sampler, problem, state, rng)
    assert state.burned_in
    assert state.converged
    assert info.phase == "start"
    np.testing.assert_array_equal(state.ensemble.U, U)


def test_step_sizes():
    rng = np.random.default_rng(10)
    for options, expected in (({}, 2.0), ({"dt": 0.7}, 0.7), ({"ensemble_size": 7}, 0.1)):
        problem = random_linear(2)
        sampler = sampler_for(problem, options)
        state = sampler.start(problem.sample_posterior(sampler.size, rng), skip_burn_in=True)
        state, _ = step(sampler, problem, state, rng)
        _, (snapshot,) = sweeps(sampler, problem, state, 1, rng)
        assert snapshot.step_size == expected


def test_both_modes_are_kept_with_adjust():
    """The mass of a mode is 1/2; a run of 40 sweeps of 100 particles knows it to about .05."""
    problem = bimodal()
    sampler = EnsembleKalman(problem, adjust=True)
    for seed in range(3):
        _, U = run(sampler, problem, np.random.default_rng(seed), n_sweeps=40)
        U = U.reshape(-1, 2)
        assert abs((U[:, 0] > U[:, 1]).mean() - 0.5) < 0.2


# -- failures -------------------------------------------------------------------------------------


@schemes
def test_a_model_that_always_fails(options):
    problem = decay().failing(lambda U: np.ones(len(U), bool))
    sampler = sampler_for(problem, options)
    with pytest.raises(EnsembleFailure):
        run(sampler, problem, np.random.default_rng(11), n_sweeps=1)
    U = problem.sample_prior(sampler.size, np.random.default_rng(12))
    with pytest.raises(EnsembleFailure):
        step(sampler, problem, sampler.start(U), np.random.default_rng(13))


@schemes
def test_a_model_that_fails_from_the_second_round_on(options):
    problem, rng = decay(), np.random.default_rng(15)
    sampler = sampler_for(problem, options)
    state, _ = step(sampler, problem, sampler.start(problem.sample_prior(sampler.size, rng)), rng)
    problem.failing(lambda U: np.ones(len(U), bool))

    def go_on():
        nonlocal state
        for _ in range(2 * sampler.size):
            state, _ = step(sampler, problem, state, rng)

    with pytest.raises(EnsembleFailure, match="have failed"):
        go_on()


def test_data_outside_the_support_end_the_run_at_once():
    problem, rng = decay(), np.random.default_rng(18)
    problem.loss = lambda Z: np.full(len(Z), np.inf)
    sampler = EnsembleKalman(problem)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    with pytest.raises(EnsembleFailure, match="outside the support"):
        step(sampler, problem, state, rng)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjust": True, "rough": True}, "Use only rough=True .* or only adjust=True"),
        ({"dt": "a"}, "dt must be positive"),
        ({"ensemble_size": 20.0}, "must be an integer"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"dt": -1.0}, "dt must be positive"),
        ({"dt": np.nan}, "dt must be positive"),
        ({"dt": 1.0, "adjust": True}, "Leave it out"),
        ({"dt": 1.0, "rough": True}, "Leave it out"),
        ({"ensemble_size": 1}, "at least 2"),
        ({"ensemble_size": 20.5}, "integer"),
        ({"ensemble_size": 6}, "at least 14 .*default 100.* allow_subspace=True"),
        ({"ensemble_size": 13, "adjust": True}, "at least 14"),
        ({"ensemble_size": 13, "rough": True}, "at least 14"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        EnsembleKalman(random_linear(5), **options)


@pytest.mark.parametrize(("d", "expected"), [(1, 100), (23, 100), (24, 104), (50, 208)])
def test_default_ensemble_size(d, expected):
    assert EnsembleKalman(random_linear(d)).size == expected


@pytest.mark.parametrize("J", [7, 10, 13])
def test_ensembles_too_small_for_halves(J):
    """From d + 2 on they run as a whole; ten runs know the pooled variance to 10%, and the step of
    .1 biases it by less (without the correction it would be (J - d - 1) / J)."""
    problem = random_linear(5)
    sampler, variances = EnsembleKalman(problem, ensemble_size=J), []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, U = run(sampler, problem, rng, n_sweeps=150, U=problem.sample_posterior(J, rng))
        variances.append((problem.standardized(U.reshape(-1, 5)) ** 2).mean())
    assert abs(np.mean(variances) - 1) < 0.3


@pytest.mark.parametrize(("d", "J"), [(5, 7), (12, 14), (12, 18)])
def test_small_ensembles_keep_their_directions_from_the_prior_on(d, J):
    for seed in range(5):
        problem = random_linear(d)
        sampler = EnsembleKalman(problem, ensemble_size=J)
        _, U = run(sampler, problem, np.random.default_rng(seed), n_sweeps=10)
        assert np.linalg.matrix_rank(U[-1] - U[-1].mean(0)) == d


@pytest.mark.parametrize("options", [{}, {"scheme": "paper", "dt": 0.05}])
def test_ensembles_in_a_subspace_stay_in_it(options):
    problem, rng = random_linear(12), np.random.default_rng(14)
    sampler = sampler_for(problem, {"ensemble_size": 6, "allow_subspace": True} | options)
    U0 = problem.sample_prior(6, rng)
    state, _ = step(sampler, problem, sampler.start(U0), rng)
    _, snapshots = sweeps(sampler, problem, sampler.freeze(state), 20, rng)
    U = np.array([s.U for s in snapshots])
    span = np.linalg.svd(U0 - U0.mean(0))[2][:5]
    outside = (U - U0.mean(0)) - (U - U0.mean(0)) @ span.T @ span
    np.testing.assert_allclose(outside, 0, atol=1e-8)
    assert np.linalg.matrix_rank(U[-1] - U[-1].mean(0)) == 5


@pytest.mark.parametrize("options", [{}, {"adjust": True}, {"scheme": "paper"}])
def test_a_start_without_spread_is_refused(options):
    problem, rng = random_linear(3), np.random.default_rng(17)
    U = problem.sample_prior(40, rng)
    U[:, 1] = 0.5
    sampler = sampler_for(problem, options)
    with pytest.raises(EnsembleFailure, match="spans 2 of 3 dimensions"):
        step(sampler, problem, sampler.start(U), rng)
    sampler = sampler_for(problem, {"allow_subspace": True} | options)
    step(sampler, problem, sampler.start(U), rng)


def test_rough_map():
    problem = oscillating(rough=True)
    sampler, rng = EnsembleKalman(problem, rough=True), np.random.default_rng(15)
    _, U = run(sampler, problem, rng, max_evaluations=4200, U=rng.random((100, 2)))
    assert np.less(errors(problem, U), (0.2, 0.04)).all()


def test_a_burn_in_that_gave_up_has_not_converged_though_its_exponent_is_one():
    """A fit to a rough map does without the rest of the burn-in, and a Metropolis test does not."""
    problem, rng = decay(), np.random.default_rng(1)
    ensemble = problem.ensemble(problem.sample_prior(20, rng))
    given_up = BurnInState(ensemble, 0.5, exponent=1.0, stages=80, burned_in=True)
    for fluctuation, converged in ((0.0, False), (10.0, True)):
        state = ExaminedState(given_up, Examination(fluctuation, 20))
        assert state.burned_in
        assert state.converged == converged
