"""Bayesian regression of slopes: its closed form, and linear maps of many parameters."""

import numpy as np
import pytest

from pymc_ensemble.samplers.ensemble import EnsembleFailure
from pymc_ensemble.samplers.informed import covariance
from pymc_ensemble.samplers.informed.covariance import MatrixCovariance, ReducedCovariance
from pymc_ensemble.samplers.informed.tracker import SlopeTracker


def observed(form, rng, d=6, n=4):
    variances, known = rng.uniform(1, 2, d), 0.1 * rng.standard_normal((3, d))
    X, noise = rng.standard_normal((n, d)), rng.uniform(0.1, 1, n)
    return form.of(variances, known), np.diag(variances) - known.T @ known, X, noise


@pytest.mark.parametrize("form", [MatrixCovariance, ReducedCovariance])
def test_covariance_after_observations(form):
    """Both forms are the Kalman filter: posterior precision is that before plus X' R^-1 X."""
    before, matrix, X, noise = observed(form, np.random.default_rng(1))
    after, gain = before.reduced(X, noise)
    expected = np.linalg.inv(np.linalg.inv(matrix) + X.T / noise @ X)
    np.testing.assert_allclose(after.times(np.eye(6)), expected, atol=1e-12)
    np.testing.assert_allclose(after.diagonal, np.diag(expected), atol=1e-12)
    np.testing.assert_allclose(gain, (expected @ X.T / noise).T, atol=1e-12)
    added = after.plus(np.arange(6.0)).times(np.eye(6))
    np.testing.assert_allclose(added, expected + np.diag(np.arange(6.0)), atol=1e-12)


def test_steps_beyond_all_measure_are_refused_in_words():
    """A slope of outputs that differ by hundreds of orders of magnitude asks for such steps."""
    before, _, X, noise = observed(MatrixCovariance, np.random.default_rng(1))
    with pytest.raises(EnsembleFailure, match="orders of magnitude"):
        before.reduced(1e200 * X, noise)


def test_what_is_forgotten_leaves_more_unknown(monkeypatch):
    monkeypatch.setattr(covariance, "WINDOW", 4)
    before, _, X, noise = observed(ReducedCovariance, np.random.default_rng(2))
    after, _ = before.reduced(X, noise)
    whole, _ = MatrixCovariance(before.times(np.eye(6))).reduced(X, noise)
    assert len(after.known) == 4
    difference = after.times(np.eye(6)) - whole.matrix
    assert np.linalg.eigvalsh(difference).min() > -1e-12


def linear(rng, d, K, *, ordered):
    """Slope with singular values that fall, in leading coordinates or in a random basis."""
    left = np.linalg.qr(rng.standard_normal((K, K)))[0]
    right = np.eye(d)[:, :K] if ordered else np.linalg.qr(rng.standard_normal((d, K)))[0]
    return left * (10 / np.arange(1, K + 1)) @ right.T


def learn(A, rng, rounds, size):
    X = rng.standard_normal((size, A.shape[1]))
    tracker = SlopeTracker.of_ensemble(X, X @ A.T + 3.0)
    for _ in range(rounds):
        X = 5e-3 * tracker.directions(size, rng)
        tracker = tracker.updated(X, X @ A.T)
    return tracker


@pytest.mark.parametrize(("ordered", "largest"), [(True, 5e-6), (False, 0.05)])
def test_linear_map_of_many_parameters(ordered, largest):
    """Nine rounds of a hundred: the slope of 500 parameters, none of it forgotten."""
    rng = np.random.default_rng(3)
    A = linear(rng, 500, 50, ordered=ordered)
    tracker = learn(A, rng, 8, 100)
    error = np.linalg.norm(tracker.slope - A) / np.linalg.norm(A)
    assert error < largest
    assert tracker.forgotten == 0


@pytest.mark.parametrize("limit", [0, 2000])
def test_both_forms_learn_the_same(monkeypatch, limit):
    monkeypatch.setattr(covariance, "MATRIX_LIMIT", limit)
    rng = np.random.default_rng(4)
    A = linear(rng, 30, 5, ordered=False)
    tracker = learn(A, rng, 4, 10)
    assert isinstance(tracker.covariance, MatrixCovariance if limit else ReducedCovariance)
    np.testing.assert_allclose(tracker.slope, A, atol=1e-3)
    assert tracker.unknown < 1e-6


def test_a_slope_that_has_changed_is_learned_anew():
    rng = np.random.default_rng(5)
    A, B = linear(rng, 20, 5, ordered=True), linear(rng, 20, 5, ordered=False)
    tracker = learn(A, rng, 3, 20)
    for _ in range(3):
        X = 5e-3 * tracker.directions(20, rng)
        tracker = tracker.updated(X, X @ B.T)
    np.testing.assert_allclose(tracker.slope, B, atol=1e-2)


def test_more_is_unknown_of_what_was_not_explored():
    rng = np.random.default_rng(6)
    A = linear(rng, 40, 10, ordered=False)
    tracker = learn(A, rng, 1, 10)
    directions = tracker.directions(15, rng)
    np.testing.assert_allclose(directions @ directions.T, np.eye(15), atol=1e-10)
    known = np.diag(directions @ tracker.covariance.times(directions).T).sum()
    largest = np.sort(np.linalg.eigvalsh(tracker.covariance.matrix))[-15:].sum()
    assert 0.95 * largest < known <= largest * (1 + 1e-12)


def test_outputs_that_do_not_change():
    rng = np.random.default_rng(7)
    tracker = SlopeTracker.of_ensemble(rng.standard_normal((10, 4)), np.ones((10, 3)))
    X = tracker.directions(4, rng)
    assert not tracker.updated(X, np.zeros((len(X), 3))).slope.any()
    assert tracker.unknown == 0
