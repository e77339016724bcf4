"""Smoothed weights are those of ArviZ, and the fit finds the law of its values."""

import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy.stats import genpareto

from pymc_ensemble.diagnosis.pareto import pareto_fit, smoothed

LAWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "flat": lambda rng, n: 1e-3 * rng.normal(size=n),
    "tail": lambda rng, n: 1.5 * rng.exponential(size=n),
    "wide": lambda rng, n: 200 * rng.normal(size=n),
    "repeated": lambda rng, n: np.repeat(rng.normal(size=n // 5), 5),
    "bounded": lambda rng, n: rng.uniform(size=n),
}


@pytest.mark.parametrize("n", [50, 225, 226, 1000, 4000])
@pytest.mark.parametrize("law", LAWS)
def test_agrees_with_arviz(law, n):
    log_ratio = LAWS[law](np.random.default_rng(n), n)
    given = log_ratio.copy()
    with np.errstate(all="ignore"):
        log_weights, khat = smoothed(log_ratio)
        expected, expected_khat = array_stats.psislw(-log_ratio)
    np.testing.assert_allclose(log_weights, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(khat, expected_khat, rtol=1e-12)
    np.testing.assert_array_equal(log_ratio, given)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.5])
def test_fit_finds_shape_and_scale(shape):
    n = 20_000
    x = np.sort(genpareto(shape, scale=3.0).rvs(n, random_state=np.random.default_rng(2)))
    found, scale = pareto_fit(x)
    # standard errors of the maximum likelihood: (1 + shape) / sqrt(n), sqrt(2 (1 + shape) / n)
    assert abs(found - shape) < 4 * (1 + shape) / np.sqrt(n)
    assert abs(scale / 3 - 1) < 4 * np.sqrt(2 * (1 + shape) / n)


def test_values_that_are_the_same_have_no_fit():
    assert np.isnan(pareto_fit(np.append(np.ones(30), np.arange(2.0, 12.0)))).all()
