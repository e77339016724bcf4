import cloudpickle
import numpy as np
import pymc as pm
import pytest
from array_problems import (
    bimodal,
    burn_in,
    changes,
    decay,
    random_linear,
    run,
    sample_bimodal,
    step,
    truncated,
    within,
)
from scipy.stats import multivariate_normal

import pymc_ensemble as pe
from pymc_ensemble.samplers.kalman.metropolis import MixtureMetropolis
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.linearization import fit_law
from pymc_ensemble.samplers.moves import DEFAULT, proposed


def snooker(group, partners, law, rng):
    """Slide along the line to a partner, by the difference of two others, seen along it."""
    n, d = group.shape
    z, a, b = (partners[rng.integers(len(partners), size=n)] for _ in range(3))
    line = (group - z) / np.linalg.norm(group - z, axis=1, keepdims=True)
    points = group + 1.7 * ((a - b) * line).sum(1, keepdims=True) * line
    after, before = (np.linalg.norm(u - z, axis=1) for u in (points, group))
    return points, (d - 1) * np.log(after / before)


def from_the_law(group, partners, law, rng):
    """Independent draws from the fitted law, with their log density."""
    points = rng.multivariate_normal(law.mean, law.covariance, len(group))
    log_q = law.log_density(points)
    return points, law.log_density(group) - log_q, log_q


def without_ratio(group, partners, law, rng):
    points, log_ratio = pe.moves.stretch(group, partners, law, rng)
    return points, np.zeros_like(log_ratio)


SHIPPED = [pe.moves.independence, pe.moves.differential_evolution, pe.moves.stretch, pe.moves.walk]
MIXTURES = [
    *({move: 1.0} for move in (*SHIPPED, snooker, from_the_law)),
    dict(DEFAULT),
    {pe.moves.stretch: 2, snooker: 3.0, from_the_law: np.float64(1.0)},
]


@pytest.mark.parametrize("moves", MIXTURES, ids=lambda m: "+".join(f.__name__ for f in m))
def test_moves_leave_a_bimodal_posterior_invariant(moves):
    """With the smallest ensembles, whose fits are worst: no moment changes by more than four of its
    Monte Carlo standard errors."""
    problem = bimodal()
    kernel = MixtureMetropolis(problem, 4, moves)
    found = changes(kernel, problem, sample_bimodal, J=8, n_sweeps=3, replicas=250)
    assert within(found, 0.0)


def test_a_wrong_ratio_is_seen_by_this_test():
    """Without its ratio a stretch draws the particles together."""
    problem = bimodal()
    kernel = MixtureMetropolis(problem, 4, {without_ratio: 1.0})
    found = changes(kernel, problem, sample_bimodal, J=8, n_sweeps=3, replicas=250)
    assert not within(found, 0.0)


@pytest.mark.parametrize("moves", [{pe.moves.stretch: 0.5, pe.moves.walk: 0.5}, {snooker: 1.0}])
def test_moves_leave_the_posterior_on_the_region_of_success_invariant(moves):
    def fails(U):
        return U[:, 0] > 0.8

    problem = bimodal().failing(fails)
    kernel, draw = MixtureMetropolis(problem, 4, moves), truncated(sample_bimodal, fails)
    assert within(changes(kernel, problem, draw, J=20, n_sweeps=3, replicas=200), 0.0)


def test_a_run_from_the_prior_with_moves():
    """Burn-in included; 40 sweeps know the mean to about .05 sd."""
    problem = decay(noise=0.3)
    sampler = EnsembleKalman(problem, moves={pe.moves.independence: 0.5, snooker: 0.5})
    assert sampler.adjust
    state, U = run(sampler, problem, np.random.default_rng(0), n_sweeps=40)
    assert state.converged
    U = U.reshape(-1, 2)
    assert (np.abs(U.mean(0) - problem.mean) < 0.2 * problem.sd).all()
    assert (np.abs(U.std(0) / problem.sd - 1) < 0.15).all()


def test_each_move_gets_its_share_of_the_particles():
    problem, rng, sizes = random_linear(2), np.random.default_rng(1), {}

    def counting(move):
        def counted(group, partners, law, rng):
            assert group.shape[1] == partners.shape[1] == len(law.mean) == 2
            assert len(partners) == 500
            sizes[move] = len(group)
            return move(group, partners, law, rng)

        return counted

    kernel = MixtureMetropolis(
        problem, 4, {counting(pe.moves.walk): 3.0, counting(pe.moves.stretch): 1.0}
    )
    step(kernel, problem, kernel.start(problem.ensemble(problem.sample_prior(1000, rng))), rng)
    assert sum(sizes.values()) == 500
    assert abs(sizes[pe.moves.walk] / 500 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 500)


def test_density_of_independent_proposals_is_handed_on():
    """In the pending round and in the snapshot; NaN for moves that depend on the particle."""
    problem, rng = random_linear(2), np.random.default_rng(2)
    kernel = MixtureMetropolis(problem, 4, {from_the_law: 0.5, pe.moves.walk: 0.5})
    state = kernel.start(problem.ensemble(problem.sample_posterior(40, rng)))
    found, values = np.full(40, np.nan), np.full(40, np.nan)
    for _ in range(2):
        points, pending = kernel.ask(state, rng)
        q = multivariate_normal(pending.law.mean, pending.law.covariance)
        known = ~np.isnan(pending.log_q)
        assert 0 < known.sum() < len(points)
        np.testing.assert_allclose(pending.log_q[known], q.logpdf(points[known]), atol=1e-8)
        found[pending.index] = pending.log_q
        values[pending.index] = np.where(known, -problem.ensemble(points).potential, np.nan)
        state, info = kernel.tell(state, pending, problem.evaluate(points))
    np.testing.assert_array_equal(info.snapshot.proposal_log_q, found)
    np.testing.assert_allclose(info.snapshot.proposal_lp, values)


# -- wrong moves ----------------------------------------------------------------------------------


def one_short(group, partners, law, rng):
    return group[1:], np.zeros(len(group) - 1)


def one_column_less(group, partners, law, rng):
    return group[:, 1:], np.zeros(len(group))


def points_alone(group, partners, law, rng):
    return group


def four_arrays(group, partners, law, rng):
    return group, *np.zeros((3, len(group)))


def no_number(group, partners, law, rng):
    return group, np.full(len(group), np.nan)


def always(group, partners, law, rng):
    return group, np.full(len(group), np.inf)


def nowhere(group, partners, law, rng):
    return group * np.inf, np.zeros(len(group))


def in_place(group, partners, law, rng):
    group += 1.0
    return group, np.zeros(len(group))


def partners_in_place(group, partners, law, rng):
    partners[:] = 0.0
    return group + 0.1, np.zeros(len(group))


def law_in_place(group, partners, law, rng):
    law.anomalies.mean[:] = 0.0
    return group + 0.1, np.zeros(len(group))


def three_arguments(group, partners, rng):
    return group, np.zeros(len(group))


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (one_short, r"one_short` has returned arrays of the shapes \(3, 2\), \(3,\)"),
        (one_column_less, r"must return points, shape \(4, 2\)"),
        (points_alone, "points_alone` has r"),
        (four_arrays, "four_arrays` has returned arrays"),
        (no_number, "no_number` has returned a log ratio of nan"),
        (always, "always` has returned a log ratio of inf"),
        (nowhere, "nowhere` has proposed a point that is not finite"),
        (in_place, "in_place` has raised ValueError: .*read-only"),
        (partners_in_place, "partners_in_place` has raised ValueError: .*read-only"),
        (law_in_place, "law_in_place` has raised ValueError: .*read-only"),
        (three_arguments, "three_arguments` has raised TypeError"),
    ],
)
def test_wrong_moves_are_refused_before_anything_is_evaluated(move, message):
    problem = random_linear(2)
    with pytest.raises(pe.moves.WrongMoveError, match=message):
        EnsembleKalman(problem, moves={pe.moves.stretch: 0.5, move: 0.5})
    assert problem.n_evaluations == 0


def test_a_move_that_goes_wrong_later_is_refused_by_name():
    """Only far out, where no trial gets."""

    def fragile(group, partners, law, rng):
        far = np.abs(group[:, 0]) > 50
        return group + 0.1, np.where(far, np.nan, 0.0)

    problem, rng = random_linear(2), np.random.default_rng(3)
    kernel = MixtureMetropolis(problem, 4, {fragile: 1.0})
    U = problem.sample_posterior(20, rng)
    kernel.ask(kernel.start(problem.ensemble(U)), rng)
    with pytest.raises(pe.moves.WrongMoveError, match="`fragile` has returned a log ratio of nan"):
        kernel.ask(kernel.start(problem.ensemble(U + 100.0)), rng)


@pytest.mark.parametrize(
    ("moves", "error", "message"),
    [
        ({}, ValueError, "`moves` is empty"),
        (pe.moves.stretch, TypeError, "must map functions to weights"),
        ([pe.moves.stretch], TypeError, "must map functions to weights"),
        ({"stretch": 1.0}, TypeError, "'stretch', which cannot be called"),
        ({pe.moves.stretch: -1.0}, ValueError, "weight of the move `stretch` must be positive"),
        ({pe.moves.stretch: 0}, ValueError, "must be positive and finite, not 0"),
        ({pe.moves.stretch: np.inf}, ValueError, "must be positive and finite, not inf"),
        ({pe.moves.stretch: np.nan}, ValueError, "must be positive and finite, not nan"),
        ({pe.moves.stretch: True}, ValueError, "must be positive and finite, not True"),
        ({pe.moves.stretch: "1"}, ValueError, "must be positive and finite, not '1'"),
    ],
)
def test_wrong_weights_are_refused(moves, error, message):
    with pytest.raises(error, match=message):
        EnsembleKalman(random_linear(2), moves=moves)


def test_moves_and_other_options():
    moves = {pe.moves.stretch: 1.0}
    with pytest.raises(ValueError, match="exclude each other"):
        EnsembleKalman(random_linear(2), moves=moves, rough=True)
    with pytest.raises(ValueError, match="dt has no meaning with adjust=True"):
        EnsembleKalman(random_linear(2), moves=moves, dt=1.0)
    with pytest.raises(ValueError, match='is not an option of scheme="paper"'):
        pe.EnsembleKalmanSampler(moves=moves, scheme="paper")


def test_independence_where_partners_do_not_span_the_space():
    """They evolve: their differences stay in the span, where the group is."""
    problem, rng = random_linear(3), np.random.default_rng(4)
    flat = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 3)) + 1.0
    law = fit_law(problem, problem.ensemble(flat))
    points, log_ratio, log_q = proposed(pe.moves.independence, flat[:8], flat[8:], law, rng)
    assert np.linalg.matrix_rank(points - flat[0], tol=1e-8) == 2
    assert (log_ratio == 0).all()
    assert np.isnan(log_q).all()


# -- as a step method -----------------------------------------------------------------------------


def model():
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", u[0] + 0.3 * u**2, 0.5, observed=[0.4, 1.0])
    return model


def test_moves_travel_to_chain_processes_and_into_the_facts():
    """A function of a script has no module that another process could import."""
    half = 0.5
    moves = {pe.moves.independence: half, lambda *given: snooker(*given): half}
    step = pe.EnsembleKalmanSampler(moves=moves, ensemble_size=20)
    copy = cloudpickle.loads(cloudpickle.dumps(step))
    assert list(copy._options["moves"].values()) == [0.5, 0.5]
    options = {"draws": 100, "chains": 2, "random_seed": 3, "progressbar": False}
    options["compute_convergence_checks"] = False
    with model():
        one, two = (pm.sample(step=step, cores=cores, **options) for cores in (1, 2))
    np.testing.assert_array_equal(one.posterior.u, two.posterior.u)
    facts = step._facts
    assert facts.options["moves"] == "independence 0.5, <lambda> 0.5"
    assert facts.options["adjust"] is True


def test_a_wrong_move_is_refused_with_the_model_at_construction():
    with model(), pytest.raises(pe.moves.WrongMoveError, match="`no_number`"):
        pe.EnsembleKalmanSampler(moves={no_number: 1.0})


def test_burn_in_does_not_need_the_moves():
    """The moves sample; tempering brings the ensemble to the posterior, whatever they are."""

    def stays(group, partners, law, rng):
        return group.copy(), np.zeros(len(group))

    problem = decay()
    sampler = EnsembleKalman(problem, moves={stays: 1.0})
    rng = np.random.default_rng(5)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    state, _ = burn_in(sampler, problem, state, rng)
    assert state.converged
