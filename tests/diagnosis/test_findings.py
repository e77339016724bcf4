"""What is said of a run, and which remedy is offered."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from known_runs import ADJUSTED, PLAIN, SURROGATE, WALKERS, declare, positions, standard_normal_run

import pymc_ensemble as pe
from pymc_ensemble.diagnosis.findings import first_look, judge
from pymc_ensemble.diagnosis.known import Evidence
from pymc_ensemble.diagnosis.regression import Regression
from pymc_ensemble.diagnosis.run import Run
from pymc_ensemble.diagnosis.stand_ins import far_from_learned
from pymc_ensemble.samplers.ensemble import Origin


def changed(run, **stats):
    """The run with other stats; functions get those it has."""
    for name, value in stats.items():
        values = run["sample_stats"][name].values
        values[:] = value(values) if callable(value) else value
    return run


def refused(run):
    """The run as if a Metropolis test had refused every other move."""
    C, n, _ = positions(run).shape
    S = int(run["sample_stats"]["sweep"].max()) + 1
    for values in (positions(run), run["sample_stats"]["lp"].values):
        paths = values.reshape(C, n // S, S, -1)
        paths[:, :, 1::2] = paths[:, :, ::2]
    return declare(changed(run, acceptance=0.5), ADJUSTED)


def test_rough_maps_are_no_matter_of_more_draws():
    rng = np.random.default_rng(1)
    run = standard_normal_run(rng, shift=1.0)
    changed(run, lp=lambda lp: lp + 1.5 * rng.standard_normal(lp.shape))
    diagnosis = pe.diagnose(refused(run))
    assert any("the forward map is rough" in reason for reason in diagnosis.reasons)
    assert any("the mean of" in reason for reason in diagnosis.reasons)
    assert all("rough=True" in remedy for remedy in diagnosis.remedies)
    assert not any("pymc_ensemble.reweight" in remedy for remedy in diagnosis.remedies)


@pytest.mark.parametrize(
    ("options", "stats", "word"),
    [
        ({}, {}, "adjust=True"),
        ({}, {"converged": False}, "burn-in"),
        ({"J": 6, "S": 60, "p": 2}, {}, "ensemble_size of 8"),
        ({"origin": WALKERS}, {}, "smaller step_size"),
        ({}, {"n_failed": lambda n: np.tile(np.arange(n.shape[1]) % 10 * 20, (4, 1))}, "failed"),
    ],
)
def test_remedies_fit_the_run(options, stats, word):
    run = standard_normal_run(np.random.default_rng(2), shift=1.0, **options)
    diagnosis = pe.diagnose(changed(run, **stats))
    assert "the mean of" in diagnosis.headline
    assert word in diagnosis.remedies[0]


def test_remedy_of_noisy_maps_is_no_metropolis_test():
    run = Run.of(standard_normal_run(np.random.default_rng(2), shift=1.0))
    plain = Evidence.of(run, None, np.random.default_rng(1))
    assert "adjust=True" in judge(plain)[0].remedy
    noisy = judge(replace(plain, noise=2.0))[0].remedy
    assert "rough=True" in noisy
    assert "adjust=True" not in noisy


def test_walkers_are_not_told_to_use_walkers():
    run = standard_normal_run(np.random.default_rng(3), p=1)
    positions(run)[:] += np.repeat([5.0, -5.0], [3, 1])[:, None, None]
    remedies = pe.diagnose(declare(run, WALKERS)).remedies
    assert any("use more walkers" in remedy for remedy in remedies)
    assert not any("MultiscaleSampler" in remedy for remedy in remedies)


def test_remedy_of_ensembles_in_different_modes():
    run = standard_normal_run(np.random.default_rng(3), p=1)
    side = np.repeat([5.0, -5.0], [3, 1])[:, None]
    positions(run)[:] += side[..., None]
    diagnosis = pe.diagnose(run)
    assert not diagnosis.trustworthy
    assert any("MultiscaleSampler with many walkers" in remedy for remedy in diagnosis.remedies)


def test_modes_that_all_chains_have_lost():
    run = standard_normal_run(np.random.default_rng(4))
    run["sample_stats"] = run["sample_stats"].dataset.assign(
        lost=(("chain", "draw"), np.tile([[True], [True], [True], [False]], 500))
    )
    assert pe.diagnose(run).trustworthy  # one chain has it
    changed(run, lost=True)
    assert "a mode was lost" in pe.diagnose(run).headline
    rng = np.random.default_rng(4)
    changed(run, lp=lambda lp: lp + 1.5 * rng.standard_normal(lp.shape))
    rough = pe.diagnose(refused(run))
    assert not any("a mode was lost" in r for r in rough.reasons[:1])
    assert any("a mode was lost" in reason for reason in rough.reasons)


def test_open_questions_of_a_surrogate():
    run = standard_normal_run(np.random.default_rng(5), origin=SURROGATE)
    assert pe.diagnose(run).trustworthy
    error = (("chain", "draw", "k"), np.full((4, 500, 2), 0.4))
    run["sample_stats"] = run["sample_stats"].dataset.assign(surrogate_error=error)
    assert "leaves means open by 0.40" in pe.diagnose(run).headline


def test_failures_without_a_regression():
    run = changed(
        standard_normal_run(np.random.default_rng(6)),
        lp=np.nan,
        n_failed=lambda n: np.tile(np.arange(n.shape[1]) % 10 * 10, (4, 1)),
    )
    diagnosis = pe.diagnose(run)
    assert any("20% of the forward evaluations failed" in reason for reason in diagnosis.reasons)
    assert any("store" in remedy for remedy in diagnosis.remedies)


def failing(run, early, late):
    """The run with so many failures before its first sweep, and in each of the others."""
    return changed(run, n_failed=early + late * run["sample_stats"]["sweep"].values)


@pytest.mark.parametrize("origin", [SURROGATE, ADJUSTED, PLAIN, WALKERS])
def test_failures_of_the_burn_in_are_no_failures_after_it(origin):
    """Fifty evaluations a sweep; those of the first sweep cannot be told from the burn-in."""
    run = changed(standard_normal_run(np.random.default_rng(7), origin=origin), lp=np.nan)
    said = str(pe.diagnose(failing(run, 90, 0)))
    assert "failed" not in said
    if origin is SURROGATE:
        changed(run, n_evals=500)
        assert "failed" not in str(pe.diagnose(failing(run, 90, 0)))
    else:
        assert "20% of the forward evaluations failed" in str(pe.diagnose(failing(run, 90, 10)))


def test_notes_make_peace_with_the_warnings_of_pymc():
    run = standard_normal_run(np.random.default_rng(8), S=5, J=16)
    diagnosis = pe.diagnose(run)
    assert diagnosis.trustworthy
    assert any("PyMC warns below 100 effective draws a chain" in note for note in diagnosis.notes)
    long = standard_normal_run(np.random.default_rng(8), S=20)
    assert not any("PyMC asks" in note for note in pe.diagnose(long).notes)


def test_agreement_of_chains_does_not_make_up_for_a_fit_that_knows_nothing():
    run = Run.of(refused(standard_normal_run(np.random.default_rng(9), S=60)))
    known = Evidence.of(run, None, np.random.default_rng(1))
    told = []
    for uncertainty in (0.1, 4.0, 30.0):
        fit = replace(known.regression, uncertainty=uncertainty)
        told.append([f.reason for f in judge(replace(known, regression=fit))])
    assert told[:2] == [[], []]
    assert told[2] == ["the posterior has tails, or regions, that the draws hardly reach."]


def test_first_look_at_a_chain():
    run = Run.of(standard_normal_run(np.random.default_rng(9), C=1))
    assert first_look(run) == []
    wide = Run.of(
        changed(standard_normal_run(np.random.default_rng(9), C=1), log_q=lambda q: 6 * q)
    )
    assert any(
        "not the law that was fitted to the ensemble" in one.reason for one in first_look(wide)
    )


def test_regression_knows_its_uncertainty():
    """Noise of the values makes moments uncertain by as much as they are off, not more."""
    rng = np.random.default_rng(10)
    X = 0.5 + rng.standard_normal((1500, 2))
    lp = -0.5 * (X**2).sum(1)
    sure = Regression.of(X, lp, np.copy, rng)
    unsure = Regression.of(X, lp + 2 * rng.standard_normal(1500), np.copy, rng)
    of_sample = 4000**-0.5  # of the weighted sample that both take their moments from
    assert sure.largest_error < 2 * of_sample < unsure.largest_error < 0.3
    assert unsure.noise == pytest.approx(2, rel=0.15)
    np.testing.assert_array_equal(unsure.shift_error, unsure.u_shift_error)  # coordinates are shown
    np.testing.assert_array_equal(unsure.sd_ratio_error, unsure.u_sd_ratio_error)
    assert np.abs(sure.shift - X.mean(0)).max() < 0.06
    assert np.abs(unsure.shift - X.mean(0)).max() < 4 * unsure.shift_error.max() + 0.06


@pytest.mark.parametrize(("error", "verdicts"), [(0.1, []), (0.01, ["wrong"])])
def test_what_a_fit_does_not_know_of_coordinates_is_no_error(error, verdicts):
    """Draws of an exact sampler, and a fit with a heavy tail, which may be wrong in coordinates."""
    run = standard_normal_run(np.random.default_rng(12), S=40, origin=ADJUSTED)
    known = Evidence.of(Run.of(run), None, np.random.default_rng(1))
    ratio, errors = np.array([0.5, 1.0]), np.array([error, error])
    fit = replace(known.fit, sd_ratio=ratio, u_sd_ratio=[0.83, 1], u_sd_ratio_error=errors)
    found = judge(replace(known, regression=fit))
    assert [one.severity for one in found] == verdicts
    assert all("standard deviation of `x[0]` is 0.50 times" in one.reason for one in found)


def test_regression_with_points_that_are_no_draws():
    """Half of a posterior, and a few evaluations on its other side."""
    rng = np.random.default_rng(11)
    X = np.abs(rng.standard_normal((1000, 1)))
    others = -np.abs(rng.standard_normal((300, 1)))
    found = Regression.of(X, -0.5 * X[:, 0] ** 2, np.copy, rng, (others, -0.5 * others[:, 0] ** 2))
    assert found.mean[0] == pytest.approx(0, abs=0.1)
    assert found.sd[0] == pytest.approx(1, abs=0.1)
    unknown = np.full(1000, np.nan)  # as of a surrogate
    found = Regression.of(X, unknown, np.copy, rng, (others, -0.5 * others[:, 0] ** 2))
    assert found.mean[0] < -0.3


@pytest.mark.parametrize(
    ("reached", "of_law", "accepted", "words"),
    [
        (None, None, 0.5, None),
        (0.51, 0.11, 0.5, None),
        (0.49, 0.11, 0.5, "may miss a part"),
        (0.49, 0.09, 0.5, "far from the learned law: draws of the posterior would accept"),
        (0.49, 0.09, 0.24, "far from the learned law: only 24%"),
    ],
)
def test_a_learned_law_is_doubted_by_what_draws_would_accept(reached, of_law, accepted, words):
    """Below a half by draws of the prior, a tenth by the posterior, a quarter by walkers."""
    origin = Origin("density", adjusted=True, learned=True, law_acceptance=of_law, reached=reached)
    run = SimpleNamespace(origin=origin, independent_acceptance=accepted)
    found = list(far_from_learned(SimpleNamespace(run=run)))
    assert len(found) == (words is not None)
    assert all(finding.severity == "doubtful" and words in finding.reason for finding in found)
