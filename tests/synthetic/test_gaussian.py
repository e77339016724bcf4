"""The Gaussian of summaries, its tests and its comparisons, against exact laws."""

import numpy as np
import pytest
from scipy import stats

from pymc_ensemble.synthetic.gaussian import (
    Change,
    Covariance,
    Shape,
    Spread,
    of_pairs,
    partial_log_ratio,
    shrinkage,
    varying_log_ratio,
)

SIGMA = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
FACTOR = np.linalg.cholesky(SIGMA)


def gaussian(n, rng):
    return rng.standard_normal((n, 3)) @ FACTOR.T


def test_shrinkage_is_that_of_the_formula():
    # K = 2 and correlation .9: squares 3.62, square of the trace 4
    assert shrinkage(np.array([[1, 0.9], [0.9, 1]]), 50) == pytest.approx(4 / (50 * 1.62))
    assert shrinkage(np.eye(4), 50) == 1.0
    assert shrinkage(np.ones((1, 1)), 5) == 0.0


def test_inverse_of_the_covariance_is_right_on_average():
    """With one summary nothing is shrunk, and the mean of 1 / s^2 is (R - 1) / (R - 3)."""
    rng, R = np.random.default_rng(1), 10
    found = [1 / Covariance.of(rng.normal(0, 2, (R, 1))).matrix[0, 0] for _ in range(20_000)]
    # a standard error of 0.7 / sqrt(20 000) of the mean
    assert np.mean(found) * 4 == pytest.approx(1, abs=0.02)


def test_covariance_is_that_of_many_replicates():
    found = Covariance.of(gaussian(100_000, np.random.default_rng(2)))
    np.testing.assert_allclose(found.matrix, SIGMA, atol=0.03)
    assert found.shrinkage < 1e-3
    assert not found.raised.any()


def test_small_variances_are_raised_and_no_others():
    x = gaussian(200, np.random.default_rng(3))
    x[:, 1] = 4.0
    found = Covariance.of(x, np.array([0.1, 0.2, 0.1]))
    assert found.raised.tolist() == [False, True, False]
    assert found.matrix[1, 1] == pytest.approx(0.2 * found.correction)
    assert np.linalg.eigvalsh(found.matrix)[0] > 0


def test_pairs_tell_the_noise_whatever_the_means_are():
    rng = np.random.default_rng(4)
    means = 100 * rng.standard_normal((50_000, 3))
    first, second = means + gaussian(50_000, rng), means + gaussian(50_000, rng)
    np.testing.assert_allclose(of_pairs(first, second).matrix, SIGMA, atol=0.05)


def test_pairs_that_are_equal_are_marked():
    x = gaussian(50, np.random.default_rng(5))
    y = gaussian(50, np.random.default_rng(6))
    y[:, 2] = x[:, 2]
    assert of_pairs(x, y).raised.tolist() == [False, False, True]


def test_gaussian_replicates_pass_as_often_as_p_values_say():
    rng = np.random.default_rng(7)
    p = np.array([Shape.of(gaussian(30, rng), rng).p for _ in range(20)])
    # of 20, about 2 are below 0.1, and 7 or more in one of 400 series
    assert (p < 0.1).sum() < 7


def test_shape_does_not_depend_on_units():
    x = gaussian(80, np.random.default_rng(8))
    A, b = np.array([[3.0, 1.0, 0.0], [0.0, 0.1, 5.0], [1.0, 0.0, 1.0]]), np.array([1e3, 0, -7])
    one, other = (Shape.of(y, np.random.default_rng(9)).p for y in (x, x @ A.T + b))
    assert one == other


@pytest.mark.parametrize("odd", ["skewed", "heavy"])
def test_a_summary_that_is_not_gaussian_is_named(odd):
    rng = np.random.default_rng(10)
    x = gaussian(200, rng)
    x[:, 1] = rng.exponential(size=200) if odd == "skewed" else rng.standard_t(3, 200)
    found = Shape.of(x, rng)
    assert found.p < 0.01
    assert found.odd.tolist() == [False, True, False]


def test_ratio_with_changing_variances_is_that_of_the_densities():
    rng = np.random.default_rng(11)
    residuals, points = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    slopes = rng.standard_normal((3, 2))
    found = varying_log_ratio(residuals, points, SIGMA, slopes)
    for r, x, ratio in zip(residuals, points, found, strict=True):
        scale = np.exp(0.5 * slopes @ x)
        there = SIGMA * np.outer(scale, scale)
        expected = stats.multivariate_normal.logpdf(r, cov=there)
        expected -= stats.multivariate_normal.logpdf(r, cov=SIGMA)
        assert ratio == pytest.approx(expected)


def test_ratio_without_a_summary_is_that_of_the_densities():
    residuals = np.random.default_rng(12).standard_normal((6, 3))
    kept = np.array([True, False, True])
    found = partial_log_ratio(residuals, SIGMA, kept)
    some = stats.multivariate_normal.logpdf(residuals[:, kept], cov=SIGMA[np.ix_(kept, kept)])
    expected = some - stats.multivariate_normal.logpdf(residuals, cov=SIGMA)
    np.testing.assert_allclose(found - found[0], expected - expected[0])


def test_slopes_of_log_variances_are_those_of_the_replicates():
    """Replicates of 4000 tell a log variance to sqrt(2 / 4000) = 0.022."""
    rng, slopes = np.random.default_rng(13), np.array([[0.5, 0.0], [-0.3, 0.2], [0.0, 0.0]])
    points = np.vstack([np.zeros(2), 2 * np.eye(2), -2 * np.eye(2)])
    made = [x @ np.ones((2, 3)) + gaussian(4000, rng) * np.exp(0.5 * slopes @ x) for x in points]
    spread = Spread.of(points, made, np.full(3, 1e-9))
    # each axis has two ends at a distance of two: a standard error of 0.022 / sqrt(8)
    assert np.diag(spread.factor @ spread.factor.T) == pytest.approx(2 / 3999 / 8)
    np.testing.assert_allclose(spread.slopes, slopes, atol=0.04)
    np.testing.assert_allclose(spread.mean(points), points @ np.ones((2, 3)), atol=0.1)
    chance = np.array([spread.by_chance(rng) for _ in range(2000)])
    assert chance.std() == pytest.approx(0.022 / np.sqrt(8), rel=0.1)


def test_change_of_moments_is_that_of_a_shifted_gaussian():
    U = np.random.default_rng(14).normal(5.0, 2.0, (200_000, 1))
    found = Change.of(U, 0.5 * (U[:, 0] - 5.0) / 2.0)
    shift, log_sd = found.largest
    assert shift == pytest.approx(0.5, abs=0.02)
    assert log_sd == pytest.approx(0.0, abs=0.02)
