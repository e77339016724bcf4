import numpy as np
import pytest

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.benchmark.problems import PROBLEMS, find
from pymc_ensemble.benchmark.traces import CURVES, Meter, Run, Trace, curves


def steps(n):
    return np.arange(1, n + 1)


def test_draws_count_by_what_had_been_spent_before_them():
    draws = np.arange(1000.0)[:, None]
    trace = Trace(draws, 50 + steps(1000), 5 + steps(1000) // 10)
    for evaluations, rounds, (found,) in trace.samples():
        n = min(int(evaluations) - 50, 1000)
        assert len(found) == n
        assert rounds == 5 + n // 10
    assert n == 1000
    assert evaluations == 1050  # what was spent, not what could have been


def test_of_a_trace_with_warm_up_one_may_choose():
    trace = Trace(np.arange(1000.0)[:, None], steps(1000), steps(1000), warm_up=True)
    *_, (_, _, choices) = trace.samples()
    assert [len(draws) for draws in choices] == [900, 750, 500]
    assert all(draws[-1] == 999 for draws in choices)


def test_a_trace_that_does_not_grow_counts_as_a_whole():
    trace = Trace(np.zeros((100, 1)), np.full(100, 300), np.full(100, 3), growing=False)
    assert [(e, r, len(d)) for e, r, (d,) in trace.samples()] == [(300, 3, 100)]


def test_curves_have_the_errors_of_a_known_law():
    problem = find("linear 3-d")
    _, sd = problem.moments
    draws = problem.reference_draws
    assert draws.shape == (2000, 3)
    biased = Trace(draws + 0.5 * sd, steps(2000), steps(2000))
    result = curves(Run([biased]), problem)
    end = result.isel(checkpoint=-1)
    assert float(end["mean_worst"]) == pytest.approx(0.5, abs=0.1)
    assert float(end["sd_worst"]) < 0.1
    assert 0.1 < float(end["wasserstein"]) < 0.5
    assert np.isnan(end["mode_mass"])
    assert set(CURVES) < set(result.data_vars)
    assert result["draws"].shape == (1000, 3)


def test_a_meter_counts_batches_from_outside():
    model = gallery.decay()
    problem = pe.InverseProblem.from_model(model)
    meter = Meter(model.forward)
    rng = np.random.default_rng(1)
    points = rng.standard_normal((7, 2))
    before = model.forward.n_evaluations
    problem.evaluate(points)
    problem.evaluate(rng.standard_normal((3, 2)))
    problem.evaluate(points)  # known
    assert meter.batches == [7, 3]
    assert model.forward.n_evaluations - before == 10
    assert meter.rounds([1, 7, 8, 10]).tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_know_their_posterior(name):
    problem = find(name)
    mean, sd = problem.moments
    draws = problem.reference_draws
    assert draws.shape == (2000, len(mean))
    # five standard errors of means of 2000 draws, which need not be quite independent
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0, atol=5 * np.sqrt(1.5 / 2000))
    np.testing.assert_allclose(draws.std(0) / sd, 1, atol=0.15)


def test_unknown_problems_are_refused():
    for name in ("cubic 3-d", "decays"):
        with pytest.raises(KeyError, match=f"no problem '{name}'"):
            find(name)
