"""What fourth differences tell of a forward map, and what the default sampler makes of it."""

import numpy as np
import pytest
from array_problems import (
    Density,
    GaussianProblem,
    PoissonRegression,
    bimodal,
    burn_in,
    decay,
    errors,
    four_modes,
    oscillating,
    random_linear,
    run,
    step,
    stiff_linear,
)

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import Ensemble
from pymc_ensemble.samplers.examination import (
    EVALUATIONS,
    LARGEST_FLUCTUATION,
    STEP,
    Examination,
    Probes,
)
from pymc_ensemble.samplers.kalman.examined import ExaminedDesign
from pymc_ensemble.samplers.kalman.inflated_design import DesignState, InflatedDesign
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.multiscale.sampler import Multiscale
from pymc_ensemble.samplers.options import PATIENCE
from pymc_ensemble.samplers.split_sweeps import SweepState


class Loss(GaussianProblem):
    """Its one output is its loss; noise of the standard deviation `noise` on top."""

    def __init__(self, d, function, noise=0.0, seed=0):
        rng = np.random.default_rng(seed)

        def forward_map(U):
            return (function(U) + noise * rng.standard_normal(len(U)))[:, None]

        super().__init__(forward_map, [0.0], np.zeros(d), np.eye(d))

    def loss(self, Z):
        return Z[:, 0]


def examine(problem, U, seed=1):
    probes = Probes.of(problem.ensemble(U), np.random.default_rng(seed))
    assert len(probes.points) == EVALUATIONS
    return probes.judge(problem, problem.evaluate(probes.points))


def standard(n, d, seed=0):
    """Ensemble whose covariance is the identity."""
    U = np.random.default_rng(seed).standard_normal((n, d))
    U -= U.mean(0)
    return U @ np.linalg.inv(np.linalg.cholesky(U.T @ U / n)).T


def test_fourth_differences_of_polynomials():
    """They vanish up to the third degree; of x^4 along v they are 24 h^4 v^4, for d=1 all alike."""
    cubic = Loss(3, lambda U: 5 * U[:, 0] ** 3 - U[:, 1] * U[:, 2] ** 2 + 7 * U.sum(1))
    assert examine(cubic, standard(50, 3)).fluctuation < 1e-12
    quartic = Loss(1, lambda U: 0.01 * U[:, 0] ** 4)
    expected = 0.01 * 24 * STEP**4 / np.sqrt(70)
    assert examine(quartic, standard(50, 1)).fluctuation == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sd", [0.1, 3.0])
def test_standard_deviation_of_white_noise(sd):
    """The square that is found is that of the noise, times chi^2 with 5 degrees of freedom / 5."""
    squares = []
    for seed in range(200):
        problem = Loss(2, lambda U: (U**2).sum(1) / 2, sd, seed)
        squares.append(examine(problem, standard(40, 2, seed), seed).fluctuation ** 2)
    ratio = np.array(squares) / sd**2
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(200)
    assert ratio.var() == pytest.approx(2 / 5, rel=0.4)


def test_coordinates_do_not_matter():
    problem, B = random_linear(3), np.array([[1e-6, 0, 0], [3.0, 40, 0], [0, 0, 1e5]])
    wave = problem.forward_map
    problem.forward_map = lambda U: wave(U) + np.sin(3 * U[:, :1])
    other = problem.transformed(B, np.ones(3))
    U = problem.sample_posterior(40, np.random.default_rng(1))
    here, there = examine(problem, U), examine(other, U @ B.T + 1)
    assert here.fluctuation > 0
    # singular vectors have other signs in other coordinates, so directions are others
    assert 0.2 < there.fluctuation / here.fluctuation < 5


def two_modes():
    """Narrow modes at u = -1 and u = 1, as the square is known; their sd is 1/50."""
    return GaussianProblem(
        lambda U: np.column_stack([25 * (U[:, 0] ** 2 - 1), 0 * U[:, 1]]),
        np.zeros(2),
        np.zeros(2),
        np.eye(2),
    )


@pytest.mark.parametrize("sd", [0.0, 3.0])
def test_steps_that_suit_modes_tell_narrow_ones_from_noise(sd):
    """Along u the fourth derivative of the loss is 7500: a step of 0.2 finds 1.4, of 0.004 none."""
    problem, rng = noisy(two_modes(), sd, 1), np.random.default_rng(1)
    U = rng.standard_normal((80, 2)) * [0.02, 1.0] + rng.choice([-1, 1], 80)[:, None] * [1, 0]
    found = []
    for by_mode in (False, True):
        probes = Probes.of(problem.ensemble(U), rng, by_mode=by_mode)
        assert len(probes.points) == EVALUATIONS
        found.append(probes.judge(problem, problem.evaluate(probes.points)))
    joined = found[0].after(found[1])
    assert joined.evaluations == 2 * EVALUATIONS
    assert joined.fluctuation == found[1].fluctuation
    if sd:
        assert 1 / 3 < found[1].fluctuation / found[0].fluctuation < 3
    else:
        assert 0.1 < found[0].fluctuation < 1.4
        assert found[1].fluctuation < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_narrow_modes_are_not_taken_for_roughness(seed):
    """Where a linear fit does not do for them, the map is examined again, and meets a test."""
    problem = two_modes()
    sampler, rng = EnsembleKalman(problem, adjust=None, rough=None), np.random.default_rng(seed)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    state, _ = burn_in(sampler, problem, state, rng)
    assert not state.found.rough
    assert sampler.origin(state).adjusted
    assert state.converged
    assert np.abs(state.ensemble.U[:, 0]).mean() == pytest.approx(1.0, abs=0.02)


def test_fits_and_tests_that_do_not_rest_are_given_up():
    """The test is the one that follows a fit, on a map that fluctuates."""
    problem = noisy(decay(0.3), 0.5, 0)
    sampler, rng = EnsembleKalman(problem, adjust=None, rough=None), np.random.default_rng(0)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    while not isinstance(state.inner, ExaminedDesign):
        state, _ = step(sampler, problem, state, rng)
    most = sampler.burn_in.burn_in.max_stages
    assert state.inner.given_up(most - PATIENCE).inner.stages == most - PATIENCE
    fit, count = InflatedDesign(problem, patience=2), 0
    design = fit.start(state.evaluated)
    while not design.burned_in:
        design, _ = step(fit, problem, design, rng)
        count += 1
    assert count == 2
    assert design.curved
    assert not design.converged


def test_failures_are_left_out():
    problem = Loss(2, lambda U: (U**2).sum(1) / 2)
    probes = Probes.of(problem.ensemble(standard(40, 2)), np.random.default_rng(1))
    outputs = problem.evaluate(probes.points).outputs
    outputs[:12] = np.nan
    assert probes.judge(problem, Evaluations.from_outputs(outputs)).fluctuation < 1e-12
    outputs[:16] = np.nan
    found = probes.judge(problem, Evaluations.from_outputs(outputs))
    assert np.isnan(found.fluctuation)
    assert not found.rough
    assert "not known" in str(found)


def test_probes_of_an_ensemble_that_has_collapsed():
    problem = Loss(2, lambda U: (U**2).sum(1) / 2)
    ensemble = Ensemble.evaluated(problem, np.ones((8, 2)), problem.evaluate(np.ones((8, 2))))
    probes = Probes.of(ensemble, np.random.default_rng(1))
    assert probes.judge(problem, problem.evaluate(probes.points)).evaluations == len(probes.points)


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_linear(4),
        lambda: stiff_linear(6),
        PoissonRegression,
        decay,
        lambda: decay(0.3),
        bimodal,
        four_modes,
        lambda: Density(decay(0.3)),
    ],
)
def test_smooth_maps_are_found_smooth(make):
    """Also where a posterior has several modes, or a density no forward map."""
    problem = make()
    sampler, rng = EnsembleKalman(problem, adjust=None, rough=None), np.random.default_rng(1)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    state, _ = burn_in(sampler, problem, state, rng)
    # most are below a tenth of it; the steps, of the sd of all, are long for four narrow modes
    assert state.found.fluctuation < LARGEST_FLUCTUATION / 3
    assert isinstance(state.inner, SweepState)
    assert sampler.origin(state).adjusted


def noisy(problem, sd, seed):
    rng, smooth = np.random.default_rng(seed), problem.forward_map
    problem.forward_map = lambda U: (
        smooth(U) + sd * rng.standard_normal((len(U), len(problem.data)))
    )
    return problem


def rough_decay():
    return decay(roughness=3.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: noisy(decay(), 1.0, 1),
        lambda: noisy(random_linear(4), 1.0, 1),
        lambda: oscillating(True),
    ],
)
def test_rough_maps_are_averaged(make):
    """The moments are those of the smooth posterior, to which a Metropolis test does not lead."""
    problem = make()
    sampler, rng = EnsembleKalman(problem, adjust=None, rough=None), np.random.default_rng(1)
    state, U = run(sampler, problem, rng, n_sweeps=20)
    assert state.found.rough
    assert isinstance(state.inner, DesignState)
    assert sampler.origin(state).law == "fit"
    assert max(errors(problem, U)) < 0.2


def test_a_map_that_is_too_curved_for_a_fit_meets_a_test():
    """A linear fit errs by 0.3 posterior sd there; it says so, and the burn-in goes on."""
    problem = noisy(decay(0.3), 0.5, 0)
    sampler, rng = EnsembleKalman(problem, adjust=None, rough=None), np.random.default_rng(0)
    state, U = run(sampler, problem, rng, n_sweeps=20)
    assert state.found.bent
    assert not state.found.rough
    assert state.found.fluctuation > LARGEST_FLUCTUATION
    assert state.converged
    assert sampler.origin(state).adjusted
    assert errors(problem, U)[0] < 0.2
    assert "too curved" in str(state.found)


def test_a_linear_map_costs_nothing():
    """But the examination: the burn-in is that of the adjusted sampler, and all moves are made."""
    problem, costs = random_linear(4), []
    for options in ({"adjust": None, "rough": None}, {"adjust": True}):
        rng = np.random.default_rng(1)
        sampler = EnsembleKalman(problem, **options)
        problem.n_evaluations = 0
        state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
        burn_in(sampler, problem, state, rng)
        costs.append(problem.n_evaluations)
    assert costs[0] == costs[1] + EVALUATIONS
    assert EVALUATIONS <= 20


def test_a_continued_run_is_examined_as_well():
    problem = oscillating(True)
    sampler, rng = EnsembleKalman(problem, adjust=None, rough=None), np.random.default_rng(1)
    U = problem.sample_posterior(sampler.size, rng)
    state = sampler.start(U, skip_burn_in=True)
    state, _ = burn_in(sampler, problem, state, rng)
    assert state.found.rough
    smooth = decay()
    sampler = EnsembleKalman(smooth, adjust=None, rough=None)
    U = smooth.mean + smooth.sd * rng.standard_normal((sampler.size, 2))
    state, reports = burn_in(sampler, smooth, sampler.start(U, skip_burn_in=True), rng)
    assert not state.found.rough
    assert sum(report.n_evaluations for report in reports) == sampler.size + EVALUATIONS


def test_a_burn_in_that_is_cut_short_leads_to_a_test():
    problem = decay()
    sampler, rng = EnsembleKalman(problem, adjust=None, rough=None), np.random.default_rng(1)
    state = sampler.start(problem.sample_prior(sampler.size, rng))
    state = sampler.freeze(step(sampler, problem, state, rng)[0])
    assert state.found is None
    assert sampler.origin(state).adjusted


@pytest.mark.parametrize(
    ("options", "size"),
    [({"dt": 0.5}, 100), ({}, 7), ({"adjust": False}, 100), ({"rough": False}, 100)],
)
def test_who_decides_is_not_told_otherwise(options, size):
    options = {"adjust": None, "rough": None} | options
    assert not EnsembleKalman(decay(), ensemble_size=size, **options).finds_out


@pytest.mark.parametrize(("make", "law"), [(decay, "density"), (rough_decay, "smooth")])
def test_walkers_follow_what_their_pilot_has_found(make, law):
    """The larger error of a run is .15, give or take .06: that of three runs together .04."""
    squares = []
    for seed in range(1, 4):
        problem = make()
        sampler = Multiscale(problem, walkers=10, adjust=None, rough=None)
        rng = np.random.default_rng(seed)
        state, U = run(sampler, problem, rng, n_sweeps=400, max_rounds=2000)
        origin = sampler.origin(state)
        assert (origin.law, origin.adjusted) == (law, law == "density")
        assert state.found.rough == (law == "smooth")
        squares.append(max(errors(problem, U)) ** 2)
    assert np.sqrt(np.mean(squares)) < 0.27


@pytest.mark.parametrize(
    ("options", "adjusted"),
    [({"delta": 0.5}, False), ({"preconditioner": None}, True), ({"adjust": False}, False)],
)
def test_walkers_without_a_pilot_do_not_find_out(options, adjusted):
    options = {"adjust": None, "rough": None} | options
    sampler = Multiscale(decay(), **options)
    assert not sampler.finds_out
    assert bool(sampler.adjust) == adjusted
    assert Multiscale(Density(decay()), adjust=None, rough=None).adjust


def test_words():
    assert "by 0.01." in str(Examination(0.0123, 20))
    assert "rough=True" not in str(Examination(0.0123, 20))
    assert "smooth posterior" in str(Examination(3.0, 20))


def test_limit_of_the_fluctuation():
    """Of five differences: the chi-squared law of five degrees has its 5% quantile at 1.1455."""
    rng = np.random.default_rng(3)
    problem = Loss(2, lambda U: (U**2).sum(1) / 2 + rng.standard_normal(len(U)))
    probes = Probes.of(problem.ensemble(standard(40, 2)), np.random.default_rng(1))
    found = probes.judge(problem, problem.evaluate(probes.points))
    assert found.limit / found.fluctuation == pytest.approx(np.sqrt(5 / 1.1455), rel=1e-4)
    assert Examination(np.nan, 20).limit == np.inf
