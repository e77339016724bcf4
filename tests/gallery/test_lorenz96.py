"""The two-scale Lorenz system: its equations, its averages, its data."""

import importlib

import numpy as np
import pytest

from pymc_ensemble import gallery
from pymc_ensemble.gallery.lorenz96 import (
    FAST,
    FLUCTUATIONS,
    OBSERVED,
    PRIOR,
    SLOW,
    TRUTH,
    _velocity,
    lorenz96_averages,
    random_start,
)

# The module, which the function of the same name hides.
lorenz96 = importlib.import_module("pymc_ensemble.gallery.lorenz96")


def truths(n):
    return np.tile(list(TRUTH.values()), (n, 1))


def random_starts(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([random_start(rng) for _ in range(n)])


def test_balance_of_energy():
    """Advection and coupling conserve the energy of both scales together."""
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((SLOW, 7)), rng.standard_normal((FAST, SLOW, 7))
    h, F, c, b = np.exp(rng.standard_normal((4, 7)))
    dX, dY = _velocity(X, Y, h, F, c, b)
    power = (X * dX).sum(0) + (Y * dY).sum((0, 1))
    expected = F * X.sum(0) - (X**2).sum(0) - c * (Y**2).sum((0, 1))
    np.testing.assert_allclose(power, expected, rtol=1e-12, atol=1e-10)


def test_equations_as_they_are_printed():
    rng = np.random.default_rng(2)
    X, Y = rng.standard_normal((SLOW, 1)), rng.standard_normal((FAST, SLOW, 1))
    h, F, c, b = 0.7, 9.0, 8.0, 11.0
    dX, dY = _velocity(X, Y, *(np.array([p]) for p in (h, F, c, b)))
    x, y = X[:, 0], Y[:, :, 0].T.ravel()  # all fast variables in a row, j fastest
    for k in (0, 1, 17, SLOW - 1):
        mean = y[FAST * k : FAST * (k + 1)].mean()
        advection = -x[k - 1] * (x[k - 2] - x[(k + 1) % SLOW])
        assert dX[k, 0] == pytest.approx(advection - x[k] + F - h * c * mean)
    for m in (0, 1, 9, 10, 188, 358, 359):
        n = len(y)
        slope = -b * y[(m + 1) % n] * (y[(m + 2) % n] - y[m - 1]) - y[m] + h / FAST * x[m // FAST]
        assert dY[m % FAST, m // FAST, 0] == pytest.approx(c * slope)


def test_fixed_point():
    """Without coupling the state X = F, Y = 0 does not move."""
    start = np.zeros((1, 1 + FAST, SLOW))
    start[:, 0] = 9.0
    averages = lorenz96_averages(np.array([[0.0, 9.0, 2.0, 10.0]]), start, window=0.5)
    np.testing.assert_allclose(averages[0, 0], [9, 0, 81, 0, 0], rtol=1e-12, atol=1e-12)


def test_symmetry():
    """Changing the signs of h and b changes those of the fast variables, in every digit."""
    starts = random_starts(2)
    mirrored = starts * np.r_[1.0, np.full(FAST, -1.0)][:, None]
    averages = lorenz96_averages(truths(2), starts, window=0.5)
    reflected = lorenz96_averages(truths(2) * [-1, 1, 1, -1], mirrored, window=0.5)
    np.testing.assert_allclose(reflected, averages * [1, -1, 1, -1, 1], rtol=1e-12)


def test_members_do_not_depend_on_their_batch(monkeypatch):
    """Chaos would blow up the smallest difference."""
    starts = random_starts(7)
    together = lorenz96_averages(truths(7), starts, window=1.0, windows=2)
    monkeypatch.setattr(lorenz96, "CHUNK", 3)
    np.testing.assert_allclose(
        lorenz96_averages(truths(7), starts, window=1.0, windows=2), together, rtol=1e-12
    )


def test_runs_that_blow_up_are_not_finite():
    wild = np.array([[1.0, 200.0, 8.0, 100.0], list(TRUTH.values())])
    averages = lorenz96_averages(wild, random_starts(2), window=0.5)[:, 0]
    assert not np.isfinite(averages[0]).any()
    assert np.isfinite(averages[1]).all()


@pytest.mark.slow
def test_data_are_of_the_truth():
    """The observation and the covariance against 32 windows of other runs."""
    windows = lorenz96_averages(truths(32), random_starts(32, seed=3), windows=1).reshape(-1, 5)
    n = len(windows)
    misfit = OBSERVED - windows.mean(0)
    assert misfit @ np.linalg.solve(FLUCTUATIONS, misfit) < 25.7  # chi-square of 5, 1e-4
    ratio = np.linalg.eigvals(np.linalg.solve(FLUCTUATIONS, np.cov(windows.T))).real
    # Ratio of the variances of n and 200 windows in the worst of five directions.
    assert np.abs(np.log(ratio)).max() < 4.5 * np.sqrt(2 / n + 2 / 200)


def test_reference_is_near_the_truth():
    reference = gallery.lorenz96().reference
    for name, (_, prior_sd) in PRIOR.items():
        mean, sd, mcse_mean, mcse_sd = reference[name].values
        assert abs(mean - TRUTH[name]) < 4 * sd
        assert sd < prior_sd
        assert mcse_mean < 0.2 * sd
        assert mcse_sd < 0.2 * sd
